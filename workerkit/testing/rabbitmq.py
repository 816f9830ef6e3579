"""A real RabbitMQ node of one's own, for tests and the demo.

    with PrivateRabbitmq() as node:
        connection = pika.BlockingConnection(pika.URLParameters(node.url))

The node runs the machine's own RabbitMQ package as the current user, on free loopback ports, with its data in a
temporary folder. It shares nothing with a RabbitMQ that may already run on the machine: not the Erlang port mapper
(epmd), not the cookie, not the configuration. It leaves nothing behind, no process and no file, even when Python is
killed with SIGKILL.

Standard library only. Linux only.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from workerkit.errors import BrokerError, ConnectionFailed
from workerkit.testing.system import LOOPBACK, free_ports, kill_tree, listens, shake_hands

_NODE_NAME: Final = "workerkit@localhost"  # may be the same for every node, as each has an epmd of its own
_START_DEADLINE: Final = 60.0  # seconds; a start takes about 6 on two idle cores
_LOG_TAIL_LINES: Final = 30

# The package's own scripts. Those of the same names on the PATH are wrappers that insist on the user `rabbitmq`.
_SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CTL: Final = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")
_EPMD: Final = Path("/usr/bin/epmd")
_PLUGINS: Final = "usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins"

# Mnesia's log holds the declared objects, dets tables the names of the quorum queues. Later versions have no Mnesia.
_FLUSH_EXPRESSION: Final = """
    case mnesia:system_info(is_running) of yes -> mnesia:sync_log(); _ -> ok end,
    lists:foreach(fun dets:sync/1, dets:all()).
"""

# Outlives Python, whatever Python dies of: its standard input is a pipe that only Python holds open, on which it is
# told the process groups that run now. PR_SET_PDEATHSIG would not do, as it fires when the *thread* that started the
# node ends.
_WARDEN_SCRIPT: Final = """
    while read -r line; do groups=$line; done
    if [ -n "$groups" ]; then kill -s KILL -- $groups; fi
    rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
"""


class RabbitmqMissing(ConnectionFailed):
    """There is no RabbitMQ package here to start a node from; ``str(error)`` says what to install."""


class PrivateRabbitmq:
    """One private RabbitMQ node: ``start()`` and ``stop()`` it, ``kill()`` and ``freeze()`` it.

    The ports are fixed for the life of the object, so a node that was killed comes back at the same ``url``. Not safe
    for use by several threads at once.

    Args:
        root: the folder in which the node makes, and finally removes, a folder of its own. Default: the system's
            temporary folder.
    """

    _system = Path("/")
    """The root folder of the system whose RabbitMQ this is."""

    def __init__(self, *, root: Path | None = None) -> None:
        self._root = root
        self._port, self._distribution_port, self._epmd_port = free_ports(3)
        self._folder: Path | None = None
        self._warden: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._beam: subprocess.Popen[bytes] | None = None
        self._version: str | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} {'running' if self.running else 'not running'}>"

    @property
    def url(self) -> str:
        """The AMQP address, user ``guest``, virtual host ``/``. Known before the node is started."""
        return f"amqp://guest:guest@{LOOPBACK}:{self._port}/%2F"

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1."""
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running node (its Erlang virtual machine)."""
        return self._running_beam().pid

    @property
    def running(self) -> bool:
        """Whether the node's process exists; true of a frozen node too."""
        return self._beam is not None and self._beam.poll() is None

    @property
    def version(self) -> str:
        """The server's version, such as ``3.10.8``, as it names itself in the protocol handshake."""
        if self._version is None:
            raise BrokerError("the private RabbitMQ was never started, so its version is not known")
        return self._version

    def start(self) -> None:
        """Start the node, or start it again with its ports and data after ``kill()``; return when it answers AMQP.

        Raises:
            RabbitmqMissing: RabbitMQ is not installed.
            ConnectionFailed: the node died, or did not answer in 60 s; the message ends with the tail of its log.
        """
        if self.running:
            return
        self._check_installed()
        if self._folder is None:
            self._make_folder()
        if self._epmd is None or self._epmd.poll() is not None:
            self._start_epmd()
        try:
            self._beam = self._spawn(_SERVER)
            self._version = self._wait_for_handshake(self._beam)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the node with every process that it started, and remove its data. May be called at any time."""
        self.kill()
        if self._epmd is not None:
            kill_tree(self._epmd)
            self._epmd = None
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None
        if self._warden is not None:
            self._tell_warden()
            self._warden.communicate()  # closes its standard input, which ends it
            self._warden = None

    def kill(self) -> None:
        """Crash the node with SIGKILL. Its data and ports are kept for the next ``start()``."""
        if self._beam is None:
            return
        kill_tree(self._beam)
        self._beam = None
        self._tell_warden()

    def flush(self) -> None:
        """Make what was declared up to now survive a ``kill()``. Takes about a second.

        Confirmed messages are on disk at once, but up to 4.1 RabbitMQ keeps declarations in memory for about two
        seconds; a queue that is lost in a crash takes its messages with it.
        """
        self.ctl("--quiet", "eval", _FLUSH_EXPRESSION)

    def freeze(self) -> None:
        """SIGSTOP the node: its connections stay open and nothing answers."""
        self._running_beam().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT the node after ``freeze()``."""
        self._running_beam().send_signal(signal.SIGCONT)

    def ctl(self, *args: str, timeout: float = 30) -> str:
        """Run ``rabbitmqctl`` with ``args`` against this node and return what it prints. Takes one to two seconds.

        Args:
            args: for example ``"--quiet", "list_queues", "name", "messages"``.
            timeout: seconds.

        Raises:
            BrokerError: the node does not run, or the command failed or took too long; the message holds its output.
        """
        self._running_beam()
        with subprocess.Popen(
            self._command(_CTL, *args),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except BaseException as error:
                kill_tree(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise BrokerError(f"rabbitmqctl {' '.join(args)} gave no answer in {timeout:g} s") from None
                raise
        if process.returncode != 0:
            raise BrokerError(
                f"rabbitmqctl {' '.join(args)} ended with status {process.returncode}:\n{(errors or output).strip()}"
            )
        return output

    def log(self) -> str:
        """Everything that the node has logged since the folder was made, its earlier runs included."""
        path = self._console
        return path.read_text(errors="replace") if path is not None and path.exists() else ""

    # -- starting ---------------------------------------------------------------------------------------------------

    def _check_installed(self) -> None:
        if not (self._system / _SERVER.relative_to("/")).is_file():
            raise RabbitmqMissing("no RabbitMQ is installed on this machine: run `apt-get install rabbitmq-server`")

    def _make_folder(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="workerkit-rabbitmq-", dir=self._root))
        self._warden = subprocess.Popen(
            ["/bin/sh", "-c", _WARDEN_SCRIPT, "workerkit-warden", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt from the keyboard, or a runner that kills a process group, spares it
        )
        cookie = self._folder / ".erlang.cookie"
        cookie.write_text(random.SystemRandom().randbytes(16).hex())
        cookie.chmod(0o400)  # Erlang refuses a cookie that others can read
        (self._folder / "environment.conf").touch()
        (self._folder / "enabled_plugins").write_text("[].\n")
        # This way a node needs no /etc/hosts, nor a helper process to ask the resolver.
        (self._folder / "inetrc").write_text('{lookup, [file]}.\n{host, {127,0,0,1}, ["localhost"]}.\n')
        (self._folder / "advanced.config").write_text(
            f'[{{rabbit, [{{tcp_listeners, [{{"{LOOPBACK}", {self._port}}}]}}]}}].\n'
        )
        self._link_plugins(self._folder / "plugins")

    def _link_plugins(self, folder: Path) -> None:
        """Fill ``folder`` with links to the parts of the server, and not to its optional plugins.

        At every start the server reads through all the plugins that it could enable. Without them it starts a second
        earlier.
        """
        folder.mkdir()
        for part in self._system.glob(f"{_PLUGINS}/*"):
            optional = part.name.startswith("rabbitmq_") and not part.name.startswith("rabbitmq_prelaunch")
            if part.is_dir() and not optional:
                (folder / part.name).symlink_to("/" / part.relative_to(self._system))

    def _start_epmd(self) -> None:
        """Start epmd and wait until it listens: a node that finds no epmd starts one, and that one would stay."""
        self._epmd = self._spawn(_EPMD, "-address", LOOPBACK, "-port", str(self._epmd_port))
        deadline = time.monotonic() + _START_DEADLINE
        while not listens(self._epmd_port):
            if self._epmd.poll() is not None or time.monotonic() > deadline:
                raise ConnectionFailed(f"epmd did not start on port {self._epmd_port}{self._log_tail()}")
            time.sleep(0.01)

    def _wait_for_handshake(self, beam: subprocess.Popen[bytes]) -> str:
        """Poll the AMQP port until the server introduces itself; its version."""
        deadline = time.monotonic() + _START_DEADLINE
        while True:
            with contextlib.suppress(OSError):
                return shake_hands(self._port)
            if beam.poll() is not None:
                raise ConnectionFailed(f"RabbitMQ died with status {beam.returncode} at its start{self._log_tail()}")
            if time.monotonic() > deadline:
                raise ConnectionFailed(f"RabbitMQ gave no answer in {_START_DEADLINE:g} s{self._log_tail()}")
            time.sleep(0.05)

    def _spawn(self, program: Path, *args: str) -> subprocess.Popen[bytes]:
        assert self._console is not None
        with self._console.open("ab") as console:
            process = subprocess.Popen(
                self._command(program, *args),
                env=self._environment(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tell_warden(process)
        return process

    def _command(self, program: Path, *args: str) -> list[str]:
        """The command that runs a program of the system."""
        return [str(program), *args]

    def _folder_inside(self) -> Path:
        """The node's folder, by the path under which the node itself sees it."""
        assert self._folder is not None
        return self._folder

    def _environment(self) -> dict[str, str]:
        """All that the node's processes see: nothing of the caller's environment or the machine's ``/etc/rabbitmq``."""
        folder = self._folder_inside()
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_FLAGS": "-start_epmd false",
            "ERL_INETRC": str(folder / "inetrc"),
            "RABBITMQ_NODENAME": _NODE_NAME,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PLUGINS_DIR": str(folder / "plugins"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment.conf"),
            # An Erlang-terms file spares the start the translation of the usual format; the other two do not exist.
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
            # Makes the script *become* the Erlang machine, not wait for it: the process that we start is the node.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    # -- running ----------------------------------------------------------------------------------------------------

    @property
    def _console(self) -> Path | None:
        return self._folder / "console.log" if self._folder else None

    def _running_beam(self) -> subprocess.Popen[bytes]:
        if self._beam is None or self._beam.poll() is not None:
            raise BrokerError("the private RabbitMQ does not run")
        return self._beam

    def _log_tail(self) -> str:
        lines = self.log().splitlines()[-_LOG_TAIL_LINES:]
        return (
            ". The end of its log:\n" + "\n".join(f"  {line}" for line in lines) if lines else ", and logged nothing."
        )

    def _tell_warden(self, *started: subprocess.Popen[bytes]) -> None:
        """Tell the warden which process groups to kill should this process die."""
        assert self._warden is not None
        assert self._warden.stdin is not None
        alive = {process.pid for process in (self._epmd, self._beam, *started) if process and process.poll() is None}
        with contextlib.suppress(BrokenPipeError):  # somebody killed the warden: the node can do without
            self._warden.stdin.write(" ".join(f"-{pid}" for pid in sorted(alive)).encode() + b"\n")
            self._warden.stdin.flush()
