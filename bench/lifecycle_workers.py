"""Real workers of every kind, for the scenes of ``bench.lifecycle``: how each is started, fed, looked at and ended."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import pika
import psutil

from bench import loader, meter
from workerkit.testing.rabbitmq import PrivateRabbitmq

PEERS = Path(__file__).parent / "peers"
DEADLINE = 60.0
"""Seconds that anything may take that is not itself measured for longer."""

MIB = 1024 * 1024
# With mingle it would wait a second at its start for other workers to answer. Gossip and heartbeats stay: without them
# its loop sleeps for up to ten seconds before it notices that it shall stop.
_CELERY = ("-m", "celery", "-A", "idle_celery", "worker", "-n", "{queue}.{number}@bench", "--loglevel", "warning")
_CELERY_SOLO = (*_CELERY, "--without-mingle", "-P", "solo")
_CELERY_PREFORK = (*_CELERY, "--without-mingle", "-P", "prefork", "-c", "1")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of worker.

    Attributes:
        client: its name in the report.
        venv: whose interpreter it runs on.
        command: what follows the interpreter; ``{task}``, ``{queue}`` and ``{number}`` are filled in.
        publisher: a script that publishes in the framework's own format; empty where any message will do.
        needs_supervisor: nothing starts it again when the process that runs callbacks dies, or it ends with that.
    """

    client: str
    venv: str
    command: tuple[str, ...]
    publisher: str = ""
    needs_supervisor: bool = False


WORKERKIT = Kind("workerkit", "workerkit", ("-P", "-m", "workerkit", "run", "{task}"))
CELERY_PREFORK = Kind("Celery prefork", "celery", _CELERY_PREFORK, "idle_celery.py")
KINDS = (
    WORKERKIT,
    Kind("pika script", "pika", (str(PEERS / "idle_pika.py"),), needs_supervisor=True),
    Kind("Celery solo", "celery", _CELERY_SOLO, "idle_celery.py", needs_supervisor=True),
    CELERY_PREFORK,
    Kind(
        "Dramatiq",
        "dramatiq",
        ("-m", "dramatiq", "idle_dramatiq", "--processes", "1", "--threads", "1"),
        "idle_dramatiq.py",
        needs_supervisor=True,
    ),
    Kind(
        "Taskiq",
        "taskiq",
        ("-m", "taskiq", "worker", "idle_taskiq:broker", "--workers", "1", "--max-async-tasks", "1"),
        "idle_taskiq.py",
    ),
)

_PROJECT = """
broker: {{url: '{url}'}}
workers:
  noting: {{task: "idle_workerkit:Noting", queue: {queue}, retry: {{delays: [1h]}}}}
  silent: {{task: "idle_workerkit:Silent", queue: {queue}, prefetch_count: 500}}
  computing: {{task: "idle_workerkit:Computing", queue: {queue}}}
  pool: {{task: "idle_workerkit:Computing", queue: {queue}, executors: 4}}
logging: {{level: warning}}
"""

_SUPERVISORD = """
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
[program:worker]
command={command}
redirect_stderr=true
stdout_logfile={folder}/supervised.log
autorestart=true
startsecs=1
stopasgroup=true
killasgroup=true
"""

_SEVERAL = """
left=$1; shift
trap 'kill -TERM $pids; wait; exit 0' TERM
while [ "$left" -gt 0 ]; do "$@" & pids="$pids $!"; left=$((left - 1)); done
wait
"""


class Begun(NamedTuple):
    """A callback: when it began, in nanoseconds of the monotonic clock, and in which process."""

    at: int
    pid: int


class Worker:
    """One worker with all its processes: a session of their own."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._command = " ".join(command)
        with (folder / "worker.log").open("ab") as log:
            self.started = time.monotonic_ns()
            self.process = subprocess.Popen(
                ["/usr/bin/setpriv", "--pdeathsig", "TERM", *command],  # it ends with us, whatever we die of
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever state it is in, it is gone afterwards."""
        while family := self.family():
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.poll()
            time.sleep(0.02)
        self.process.wait(DEADLINE)

    def family(self) -> list[psutil.Process]:
        """Its processes that are alive."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def pss(self) -> float:
        """Proportional set size of all its processes, in MiB: memory that several share is divided among them."""
        return meter.memory(self.process.pid) / MIB

    def processor_time(self) -> float:
        """Seconds that all its processes have computed."""
        return meter.processor_time(self.process.pid)

    def terminate(self) -> float:
        """SIGTERM to the process that was started; the seconds until the last of its processes has ended."""
        with contextlib.ExitStack() as opened:
            family = []
            for process in self.family():
                family.append(os.pidfd_open(process.pid))
                opened.callback(os.close, family[-1])
            started = time.monotonic()
            self.process.send_signal(signal.SIGTERM)
            for descriptor in family:
                if not select.select([descriptor], [], [], DEADLINE)[0]:
                    raise RuntimeError(f"{self._command} has not ended {DEADLINE:g} s after SIGTERM")
            seconds = time.monotonic() - started
        if self.process.wait(DEADLINE) != 0:
            raise RuntimeError(f"{self._command} ended with {self.process.returncode} after SIGTERM")
        return seconds

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False


class Site:
    """Where workers of one kind run: a folder, a queue, and the ledger of their callbacks.

    Args:
        kind: of the workers.
        folder: is made.
        node: the broker.
        python_of: the interpreters of the peers' environments.
    """

    def __init__(self, kind: Kind, folder: Path, node: PrivateRabbitmq, python_of: Callable[[str], Path]) -> None:
        self.kind = kind
        self.queue = f"bench.{kind.client.lower().replace(' ', '-')}"
        self._folder = folder
        self._node = node
        self._python = str(python_of(kind.venv))
        self._supervisord = [str(python_of("workerkit")), "-P", "-m", "supervisor.supervisord", "-n"]
        self._ledger = folder / "ledger"
        (folder / "config").mkdir(parents=True)
        (folder / "config" / "workerkit.yaml").write_text(_PROJECT.format(url=node.url, queue=self.queue), "utf-8")
        shutil.copy(PEERS / "idle_workerkit.py", folder)

    def prepare(self, messages: int) -> None:
        """A new queue that holds so many messages, and an empty ledger."""
        self._ledger.write_bytes(b"")
        with self.channel() as channel:
            channel.queue_delete(self.queue)
            if self.kind is WORKERKIT:
                self._run("-P", "-m", "workerkit", "queues", "declare")
            elif not self.kind.publisher:
                channel.queue_declare(self.queue, durable=True, arguments={"x-queue-type": "quorum"})
        self.publish(messages)
        eventually(lambda: self.ready() == messages, f"{self.queue} has {messages} messages")

    def load(self, messages: int, size: int) -> None:
        """Add so many messages of so many bytes, quickly; only for kinds that take any message."""
        with self.channel() as channel:
            loader.load(self._node.port, channel, self.queue, loader.bare(size, self.queue), messages)

    def publish(self, messages: int) -> None:
        """Publish so many messages to the workers."""
        if self.kind.publisher:
            self._run(str(PEERS / self.kind.publisher), str(messages))
            return
        with self.channel() as channel:
            # What is published to a quorum queue without confirms just before the connection closes may be lost.
            channel.confirm_delivery()
            for _ in range(messages):
                channel.basic_publish("", self.queue, b"{}", pika.BasicProperties("application/json", delivery_mode=2))

    def start(
        self,
        *,
        pause: float = 0.0,
        supervised: bool = False,
        number: int = 0,
        task: str = "noting",
        instances: int | None = None,
    ) -> Worker:
        """Start a worker.

        Args:
            pause: seconds that each callback works.
            supervised: start it through a supervisord, if its kind needs one to come back from a death.
            number: tells it from others that run at the same time.
            task: ``noting``, or one of those that workerkit alone has.
            instances: start so many through a shell, which passes SIGTERM on; None: one, without a shell.
        """
        command = [
            self._python,
            *(part.format(task=task, queue=self.queue, number=number) for part in self.kind.command),
        ]
        if supervised and self.kind.needs_supervisor:
            conf = self._folder / "supervisord.conf"
            conf.write_text(_SUPERVISORD.format(folder=self._folder, command=" ".join(command)), "utf-8")
            command = [*self._supervisord, "-c", str(conf)]
        if instances is not None:
            command = ["/bin/sh", "-c", _SEVERAL, "sh", str(instances), *command]
        return Worker(command, self._folder, self._environment(pause))

    def begun(self) -> list[Begun]:
        """The callbacks so far, in order."""
        complete = self._ledger.read_bytes().rpartition(b"\n")[0]
        return [Begun(*map(int, line.split())) for line in complete.splitlines()]

    def wait_for(self, callbacks: int) -> list[Begun]:
        """Wait until so many callbacks have begun."""
        eventually(lambda: len(self.begun()) >= callbacks, f"{callbacks} callbacks of {self.kind.client}", self.tail)
        return self.begun()

    def ready(self) -> int:
        """How many messages wait in the queue; -1 if there is no such queue."""
        with self.channel() as channel:
            try:
                return int(channel.queue_declare(self.queue, passive=True).method.message_count)
            except pika.exceptions.ChannelClosedByBroker:
                return -1

    def wait_for_consumers(self, count: int) -> None:
        """Wait until the broker has so many consumers on the queue."""
        with self.channel() as channel:
            eventually(
                lambda: channel.queue_declare(self.queue, passive=True).method.consumer_count == count,
                f"{count} consumers of {self.kind.client}",
                self.tail,
            )

    def tail(self) -> str:
        """The end of what its workers have logged."""
        logs = [path.read_text("utf-8", "replace") for path in sorted(self._folder.glob("*.log"))]
        return "\n".join(log[-2000:] for log in logs)

    def _run(self, *arguments: str) -> None:
        ended = subprocess.run(
            [self._python, *arguments],
            cwd=self._folder,
            env=self._environment(0.0),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if ended.returncode != 0:
            raise RuntimeError(f"{arguments} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")

    def _environment(self, pause: float) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("WORKERKIT_", "BENCH_"))}
        return {
            **own,
            "PYTHONPATH": str(PEERS),
            "BENCH_URL": self._node.url,
            "BENCH_QUEUE": self.queue,
            "BENCH_LEDGER": str(self._ledger),
            "BENCH_PAUSE": str(pause),
        }

    @contextlib.contextmanager
    def channel(self) -> Iterator[pika.channel.Channel]:
        """A connection of our own to the broker, which need not be attended to."""
        connection = pika.BlockingConnection(pika.URLParameters(f"{self._node.url}?heartbeat=0"))
        try:
            yield connection.channel()
        finally:
            connection.close()


def eventually(
    condition: Callable[[], bool], what: str, log: Callable[[], str] = str, within: float = DEADLINE
) -> None:
    """Wait until it is true. Raises RuntimeError, with the end of the log, if that takes too long."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {within:g} s: {what}\n{log()}")
        time.sleep(0.02)
