"""Publishing with confirms: how many messages a second each client gets into a durable quorum queue.

Every message is persistent, mandatory, has 100 bytes and a message id of its own, and counts when RabbitMQ has
confirmed it. A client publishes for a fixed time from an open connection, then waits for what is still in flight; that
wait is part of its time. The queue must then hold exactly as many messages as were confirmed, or the run is an error.

``workerkit publish --lines`` is the whole command, from its start to its end, with a file that holds a message a line.

    python -m bench.publishing [ROUNDS]      tries it with a private node
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pika

from bench.samples import Sample
from bench.venvs import python_of as own_python_of
from workerkit.testing.rabbitmq import PrivateRabbitmq

BODY_SIZE = 100
SECONDS = 3.0
"""How long a client publishes."""
LINES = 50_000
"""Messages of one ``workerkit publish --lines``: enough that its start does not hide what a message costs."""
TIMEOUT = 90.0

_PEERS = Path(__file__).parent / "peers"
_QUEUE = "bench.publishing"
_SCENE = f"publishing with confirms, quorum, {BODY_SIZE} B"
_SETTLED_WITHIN = 10.0
"""Seconds. A quorum queue tells its length a little late."""


@dataclass(frozen=True, slots=True)
class _Published:
    confirmed: int
    seconds: float
    cpu: float


def measure(
    node: PrivateRabbitmq, python_of: Callable[[str], Path], rounds: int, tell: Callable[[str], None]
) -> list[Sample]:
    """Let the clients publish in turn, ``rounds`` times. Raises RuntimeError if a message is missing."""
    scripts = {
        "workerkit": ("workerkit", "publish_workerkit.py"),
        "pika BlockingConnection": ("pika", "publish_pika.py"),
        "kombu": ("amqp", "publish_kombu.py"),
        "aio-pika": ("aio", "publish_aio.py"),
    }
    runs: dict[str, Callable[[], _Published]] = {
        client: partial(_run_script, node.url, python_of(venv), script) for client, (venv, script) in scripts.items()
    }
    runs["workerkit publish --lines"] = partial(_run_command, node.url, python_of("workerkit"))
    samples = []
    clients = list(runs)
    for number in range(1, rounds + 1):
        for client in clients:
            with _empty_queue(node.url) as ready:
                published = runs[client]()
                ready(published.confirmed)
            rate = published.confirmed / published.seconds
            cpu = published.cpu / published.confirmed * 1e6
            tell(f"{_SCENE}: round {number}, {client}: {rate:,.0f} messages/s, {cpu:.1f} µs CPU")
            samples.append(Sample(_SCENE, "messages/s", client, number, rate))
            samples.append(Sample(_SCENE, "CPU µs/message", client, number, cpu))
        clients.append(clients.pop(0))
    return samples


def _run_script(url: str, python: Path, script: str) -> _Published:
    command = [python, _PEERS / script, url, _QUEUE, str(SECONDS), str(BODY_SIZE)]
    return _Published(**json.loads(_output([str(part) for part in command])))


def _run_command(url: str, python: Path) -> _Published:
    with tempfile.TemporaryDirectory(prefix="workerkit-bench-") as folder:
        config = Path(folder) / "config" / "workerkit.yaml"
        config.parent.mkdir()
        config.write_text(f"broker: {{url: '{url}'}}\n", "utf-8")
        lines = Path(folder) / "lines"
        lines.write_text(f'"{"x" * (BODY_SIZE - 2)}"\n' * LINES, "utf-8")
        command = [str(python), "-P", "-m", "workerkit", "--config", str(config)]
        cpu, started = _children_cpu(), time.monotonic()
        output = _output([*command, "publish", _QUEUE, f"@{lines}", "--lines", "--json"])
        seconds = time.monotonic() - started
    return _Published(json.loads(output)["published"], seconds, _children_cpu() - cpu)


def _output(command: list[str]) -> str:
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return ended.stdout


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _empty_queue(url: str) -> Iterator[Callable[[int], None]]:
    """A new queue, and a function that raises RuntimeError unless the queue holds so many messages."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})

    def check(expected: int) -> None:
        deadline = time.monotonic() + _SETTLED_WITHIN
        while (ready := channel.queue_declare(_QUEUE, passive=True).method.message_count) != expected:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{expected} messages were confirmed, but the queue has {ready}")
            connection.sleep(0.1)

    try:
        yield check
    finally:
        connection.process_data_events()
        channel.queue_delete(_QUEUE)
        connection.close()


if __name__ == "__main__":
    with PrivateRabbitmq() as private_node:
        measure(private_node, own_python_of, int((sys.argv[1:] or ["1"])[0]), print)
