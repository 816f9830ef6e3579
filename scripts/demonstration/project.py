"""A throw-away project with this repository's workers and settings, and the Supervisor that runs it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import yaml

from workerkit.errors import ControlError
from workerkit.settings import Settings, load
from workerkit.supervision import Instance, SupervisorControl, socket_path

_START_DEADLINE = 60.0
"""Seconds. On two idle cores it takes three until all instances run."""

# With the death of its parent, whatever that dies of, Supervisor gets a SIGTERM and stops its workers.
_TIED_TO_US = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the demonstration has ended already")
os.execv(sys.argv[2], sys.argv[2:])
"""


class DemoFailed(Exception):
    """The demonstration cannot go on; ``str(error)`` says why."""


class DemoProject:
    """A project folder in ``/tmp``, with queue names that nobody else uses.

    1. ``create`` copies the workers and writes the settings.
    2. ``workerkit`` runs the product's own commands in it.
    3. ``start_supervisor`` and ``stop_supervisor`` do what they say.
    4. ``remove`` deletes the folder.

    Args:
        repository: where the workers and ``config/workerkit.yaml`` are.
        url: of the broker.
    """

    def __init__(self, repository: Path, url: str) -> None:
        self._repository = repository
        # Settings of this machine's own projects must not find their way into this one.
        own = {name: value for name, value in os.environ.items() if not name.startswith("WORKERKIT_")}
        self._environment = {**own, "AMQP_URL": url}
        self._supervisord: subprocess.Popen[bytes] | None = None
        # Not in TMPDIR, which may be deep: a Unix socket's path is limited.
        self.folder = Path(tempfile.mkdtemp(prefix="workerkit-demo-", dir="/tmp"))
        self.settings: Settings

    def create(self) -> None:
        """Copy the workers; write this repository's settings with other queue names."""
        copy = self.folder / "workers"
        shutil.copytree(self._repository / "workers", copy, ignore=shutil.ignore_patterns("__pycache__"))
        config = self.folder / "config" / "workerkit.yaml"
        config.parent.mkdir()
        settings = yaml.safe_load((self._repository / "config" / "workerkit.yaml").read_text("utf-8"))
        prefix = f"workerkit-demo-{secrets.token_hex(4)}"
        for worker in settings["workers"].values():
            worker["queue"] = f"{prefix}.{worker['queue']}"
        settings["queues"] = {f"{prefix}.{name}": queue for name, queue in settings["queues"].items()}
        settings["logging"] = {"format": "json", "level": "info"}
        config.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
        self.settings = load(config, self._environment).settings

    @property
    def queues(self) -> dict[str, str]:
        """The queue of each worker."""
        return {name: str(worker.queue) for name, worker in self.settings.workers.items()}

    @property
    def log_folder(self) -> Path:
        """Where Supervisor keeps the output of the workers and its own log."""
        return self.folder / "supervisor" / "log"

    def result_folder(self, worker: str) -> Path:
        """Where a worker leaves its results."""
        return self.folder / self.settings.workers[worker].environment["RESULTS_FOLDER"]

    def workerkit(self, *arguments: str) -> None:
        """Run a ``workerkit`` command. Raises DemoFailed."""
        self._run("workerkit", *arguments)

    def supervisorctl(self, *arguments: str) -> None:
        """Run a ``supervisorctl`` command. Raises DemoFailed."""
        self._run("supervisor.supervisorctl", "-c", str(self._conf), *arguments)

    def start_supervisor(self) -> None:
        """Start supervisord in the foreground, as a child, and wait until it answers. Raises DemoFailed."""
        supervisord = [sys.executable, "-P", "-m", "supervisor.supervisord", "--nodaemon", "-c", str(self._conf)]
        with (self.folder / "supervisord.out").open("wb") as output:
            self._supervisord = subprocess.Popen(
                [sys.executable, "-c", _TIED_TO_US, str(os.getpid()), *supervisord],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we then stop it in order
            )
        self._wait_for_instances(lambda _instances: True)

    def wait_until_running(self) -> list[Instance]:
        """Wait until Supervisor says that every instance runs. Raises DemoFailed."""
        return self._wait_for_instances(lambda instances: all(i.state == "RUNNING" for i in instances))

    def stop_supervisor(self) -> None:
        """Have Supervisor stop its workers and end; wait for that. Harmless when there is none."""
        process, self._supervisord = self._supervisord, None
        if process is None:
            return
        patience = self.settings.supervisor.stopwaitsecs + 10
        with suppress(DemoFailed, subprocess.TimeoutExpired):
            self.supervisorctl("shutdown")
            process.wait(patience)
        for number in (signal.SIGTERM, signal.SIGKILL):  # it did not even take the command
            if process.poll() is None:
                process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(patience)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)

    def worker_starts(self) -> int:
        """How many worker processes Supervisor has started so far."""
        return (self.log_folder / "supervisord.log").read_text("utf-8").count(" INFO spawned: ")

    @property
    def _conf(self) -> Path:
        return self.folder / "supervisor" / "supervisord.conf"

    def _run(self, module: str, *arguments: str) -> None:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", module, *arguments],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_DEADLINE,
            check=False,
        )
        if ended.returncode != 0:
            name = module.rpartition(".")[2]
            output = (ended.stderr + ended.stdout).strip()
            raise DemoFailed(f"`{name} {' '.join(arguments)}` ended with {ended.returncode}: {output}")

    def _wait_for_instances(self, enough: Callable[[list[Instance]], bool]) -> list[Instance]:
        assert self._supervisord is not None
        control = SupervisorControl(socket_path(self.folder))
        deadline = time.monotonic() + _START_DEADLINE
        while True:
            problem = "not all instances run"
            try:
                instances = control.instances()
                if enough(instances):
                    return instances
            except ControlError as error:
                problem = str(error)
            if self._supervisord.poll() is not None:
                output = (self.folder / "supervisord.out").read_text("utf-8", "replace")
                raise DemoFailed(f"supervisord ended with {self._supervisord.returncode}:\n{output}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"{problem}, {_START_DEADLINE:g} s after their start\n{self.last_words()}")
            time.sleep(0.1)

    def last_words(self) -> str:
        """The end of each worker's log, for when something is wrong."""
        tails = []
        for path in sorted(self.log_folder.glob("*.log")):
            tails += [f"{path.name}: {line}" for line in path.read_text("utf-8", "replace").splitlines()[-3:]]
        return "\n".join(tails)
