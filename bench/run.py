"""One client, once: fill a queue, start the client, measure while it empties the queue, stop it, check the queue."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pika
import pika.exceptions
import yaml

from bench import loader, meter
from bench.clients import PEERS, Client
from bench.scenes import Scene
from bench.venvs import packages_of
from workerkit.brokers.rabbitmq.topology import derive
from workerkit.retry import RetryPolicy
from workerkit.settings.model import QueueSettings
from workerkit.testing.rabbitmq import PrivateRabbitmq

_QUEUE = "bench"
_SETPRIV = "/usr/bin/setpriv"  # so that a client does not outlive the benchmark
_TIME_LIMIT = 45.0
"""Seconds from the start of a client to its last message."""
_EDGE = 0.05
"""Share of the messages at the beginning and at the end that is not measured; the prefetch count if that is more."""
_POLL = 0.004
_MEMORY_POLL = 0.25
_IDLE = 0.15
"""Seconds in which a client that has nothing left to do uses hardly any processor time."""
_BUSY_AT_MOST = 5.0
"""Seconds a client has, after its last callback, until it is idle: some acknowledge later, on another thread."""


class RunFailed(Exception):
    """No figures; ``str(error)`` says why."""


@dataclass(frozen=True)
class Figures:
    """What one run gave."""

    rate: float
    """messages/s"""
    processor_time: float
    """Seconds per message, all processes of the client."""
    peak_memory: int
    """Bytes, summed proportional set sizes."""


class Runner:
    """Runs clients against one node."""

    def __init__(self, node: PrivateRabbitmq) -> None:
        self._node = node
        self._messages: dict[tuple[str | None, int], bytes] = {}

    def run(self, client: Client, scene: Scene, count: int) -> Figures:
        """Measure one client.

        Raises:
            Absent: it cannot run here.
            RunFailed: it did not finish, or not every message was acknowledged.
        """
        parameters = pika.URLParameters(f"{self._node.url}?heartbeat=0")
        try:
            with (
                tempfile.TemporaryDirectory(prefix="workerkit-bench-") as folder,
                closing(pika.BlockingConnection(parameters)) as connection,
            ):
                return self._run(connection.channel(), Path(folder), client, scene, count)
        except (loader.LoadFailed, subprocess.TimeoutExpired, pika.exceptions.AMQPError, OSError) as error:
            raise RunFailed(f"{type(error).__name__}: {error}") from error

    def _run(self, channel: pika.channel.Channel, folder: Path, client: Client, scene: Scene, count: int) -> Figures:
        environment = self._environment(client, scene, folder)
        counts = meter.Counts(folder / "counts")
        message = self._message(channel, client, scene, environment)
        _make_queue(channel, scene)
        loader.load(self._node.port, channel, _QUEUE, message, count)
        if client.log_level:
            _make_project(folder, self._node.url, scene, client)
        output = folder / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [_SETPRIV, "--pdeathsig", "TERM", str(client.program()), *client.arguments(scene)],
                cwd=folder if client.log_level else PEERS,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            figures = _watch(process, counts, window(count, scene), count, output)
            _wait_until_idle(process)
            time.sleep(client.last_acks)
        finally:
            _kill(process)
        _check_empty(channel)
        if counts.total() != count:
            raise RunFailed(f"{counts.total()} callbacks for {count} messages")
        if client.log_level == "info" and (lines := output.read_bytes().count(b'"message.settled"')) != count:
            raise RunFailed(f"{lines} log lines for {count} messages")
        _delete_queues(channel)
        return figures

    def _environment(self, client: Client, scene: Scene, folder: Path) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("WORKERKIT_", "PYTHON"))}
        return {
            **own,
            **({"PYTHONPATH": str(packages_of(client.packages))} if client.packages else {}),
            "BENCH_URL": self._node.url,
            "BENCH_PORT": str(self._node.port),
            "BENCH_QUEUE": _QUEUE,
            "BENCH_QUEUE_TYPE": scene.queue_type,
            "BENCH_PREFETCH": str(scene.prefetch or ""),
            "BENCH_PAUSE": str(scene.pause),
            "BENCH_COUNTS": str(folder / "counts"),
            **client.environment(scene),
        }

    def _message(
        self, channel: pika.channel.Channel, client: Client, scene: Scene, environment: Mapping[str, str]
    ) -> bytes:
        """The frames of one of its messages; clients with the same envelope share them."""
        key = (client.publisher, scene.size)
        if key not in self._messages:
            if client.publisher is None:
                self._messages[key] = loader.bare(scene.size, _QUEUE)
            else:
                _make_queue(channel, scene)
                command = [str(client.program()), client.publisher]
                self._messages[key] = loader.enveloped(channel, _QUEUE, scene.size, command, env=environment, cwd=PEERS)
        return self._messages[key]


def _make_queue(channel: pika.channel.Channel, scene: Scene) -> None:
    """Empty, whatever there was before."""
    _delete_queues(channel)
    channel.queue_declare(_QUEUE, durable=True, arguments={"x-queue-type": scene.queue_type})


def _delete_queues(channel: pika.channel.Channel) -> None:
    """The queue, and what workerkit and Dramatiq put beside it."""
    derived = derive(_QUEUE, QueueSettings(), {}, RetryPolicy().delays, native=False)
    for name in (*(queue.name for queue in derived.queues), f"{_QUEUE}.DQ", f"{_QUEUE}.XQ"):
        channel.queue_delete(name)


def _check_empty(channel: pika.channel.Channel) -> None:
    """The client has gone, so what it had not acknowledged is in the queue again."""
    deadline = time.monotonic() + 5
    while channel.queue_declare(_QUEUE, passive=True).method.consumer_count:
        if time.monotonic() > deadline:
            raise RunFailed("the client has ended, and is still registered as a consumer")
        time.sleep(0.02)
    time.sleep(0.1)  # a queue counts what it got back as ready a moment after it has lost the consumer
    if left := loader.ready_count(channel, _QUEUE):
        raise RunFailed(f"{left} messages were not acknowledged")


def window(count: int, scene: Scene) -> tuple[int, int]:
    """How many messages are done when the measurement of a run begins, and when it ends.

    In between RabbitMQ keeps the client's prefetch window full, so as many messages are under way at the end as at the
    beginning. Where there are too few messages for that, everything from the first one on is measured. With default
    settings it always begins with the first one: how long a client takes to get going is part of its defaults.
    """
    edge = max(round(count * _EDGE), scene.window)
    if scene.prefetch is None:
        return 1, max(count - edge, count // 2)
    return (edge, count - edge) if 4 * edge <= count else (1, count)


def _watch(
    process: subprocess.Popen[bytes], counts: meter.Counts, measured: tuple[int, int], count: int, output: Path
) -> Figures:
    """Wait until the client has done all ``count`` messages; the figures are of those between the ``measured`` two."""
    first, last = measured
    deadline = time.monotonic() + _TIME_LIMIT
    next_memory = 0.0
    peak = 0
    begin: _Look | None = None
    end: _Look | None = None
    while True:
        done, now = counts.total(), time.monotonic()
        if begin is None and done >= first:
            begin = _Look(done, now, meter.processor_time(process.pid))
        if end is None and done >= last:
            end = _Look(done, now, meter.processor_time(process.pid))
        if now >= next_memory or done >= count:
            peak = max(peak, meter.memory(process.pid))
            next_memory = now + _MEMORY_POLL
        if done >= count:
            break
        if process.poll() is not None:
            raise RunFailed(f"it ended with {process.returncode} after {done} of {count} messages\n{_tail(output)}")
        if now > deadline:
            raise RunFailed(f"{done} of {count} messages in {_TIME_LIMIT:g} s\n{_tail(output)}")
        time.sleep(_POLL)
    assert begin is not None
    assert end is not None
    messages = end.done - begin.done
    if not messages:
        raise RunFailed("all messages were done between two looks: too few for a measurement")
    return Figures(messages / (end.at - begin.at), (end.used - begin.used) / messages, peak)


class _Look(NamedTuple):
    """The counter, the time and the client's processor time at one moment."""

    done: int
    at: float
    used: float


def _wait_until_idle(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _BUSY_AT_MOST
    busy = True
    while busy and time.monotonic() < deadline:
        used = meter.processor_time(process.pid)
        time.sleep(_IDLE)
        busy = meter.processor_time(process.pid) - used > _IDLE / 20


def _kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for all of it. It is idle; what it has not acknowledged by now goes back to the queue."""
    for pid in list(meter.processes(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _tail(output: Path) -> str:
    return output.read_bytes()[-1500:].decode("utf-8", "replace")


def _make_project(folder: Path, url: str, scene: Scene, client: Client) -> None:
    """A project as users have it: a task, and ``config/workerkit.yaml``."""
    workers = folder / "workers"
    workers.mkdir()
    shutil.copy(PEERS / "workerkit_task.py", workers / "noop.py")
    shutil.copy(PEERS / "common.py", folder)
    config = folder / "config"
    config.mkdir()
    settings = {
        "broker": {"url": url},
        "queues": {_QUEUE: {"type": scene.queue_type}},
        "workers": {
            "noop": {
                "task": "workers.noop:Sleeping" if scene.pause else "workers.noop:Noop",
                "queue": _QUEUE,
                **client.settings(scene),
            }
        },
        "logging": {"level": client.log_level, "format": "json"},
    }
    (config / "workerkit.yaml").write_text(yaml.safe_dump(settings), "utf-8")
