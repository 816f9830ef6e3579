"""The clients that are compared: how each is started, and what its messages look like."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.scenes import ASYNC, ASYNC_1000, DEFAULTS, Scene
from bench.venvs import FOLDER, packages_of, python_of

WORKERKIT = "workerkit"
LOG_LINE_ON = "workerkit, log line on"
PREFETCHED_AS_THE_OTHERS = "workerkit, prefetch as the others"
AT_500 = "workerkit, prefetch 500"
PIKA = "pika BlockingConnection"
PIKA_AT_1 = f"{PIKA}, prefetch 1"
PEERS = Path(__file__).parent / "peers"
C_CONSUMER = FOLDER / "consumer"
"""Compiled by ``scripts/bench.sh``."""

_CELERY = ("-m", "celery", "-A", "celery_app", "worker", "--loglevel", "WARNING")
_CELERY_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


# Celery acknowledges when its event loop next wakes up, which it does once a second when there is nothing to do.
_CELERY_WAKES = 1.3


class Absent(Exception):
    """A client cannot be measured here; ``str(error)`` says why."""


@dataclass(frozen=True)
class Client:
    """One client of the broker.

    Attributes:
        name: in the tables.
        pace: messages/s that it is expected to do in the first scene, or in the one for which it is listed; decides how
            many it gets in the first round.
        venv: the environment that it runs in; None: it is not a Python program.
        arguments: of its program, given the scene.
        publisher: the program that publishes one message in the client's own envelope; None: it takes the bare body.
        environment: in addition to what all are told, given the scene.
        log_level: of workerkit; None: it is another client.
        packages: another environment whose packages it can import; None for none.
        settings: of workerkit's worker, beside its task and its queue, given the scene.
        last_acks: seconds for which it may be idle before it sends its last acknowledgements.
    """

    name: str
    pace: int
    venv: str | None
    arguments: Callable[[Scene], tuple[str, ...]]
    publisher: str | None = None
    environment: Callable[[Scene], Mapping[str, str]] = field(default=lambda _scene: {})
    log_level: str | None = None
    packages: str | None = None
    settings: Callable[[Scene], Mapping[str, object]] = field(default=lambda scene: {"prefetch_count": scene.prefetch})
    last_acks: float = 0.0

    def program(self) -> Path:
        """What is started.

        Raises:
            Absent: it cannot be, on this machine.
        """
        if self.venv is None:
            if not C_CONSUMER.exists():
                raise Absent("bench/peers/consumer.c could not be compiled: it needs a C compiler and librabbitmq-dev")
            return C_CONSUMER
        try:
            if self.packages is not None:
                packages_of(self.packages)
            return python_of(self.venv)
        except (subprocess.CalledProcessError, OSError) as error:
            raise Absent(f"its packages could not be installed: {error}") from error


def _script(name: str) -> Callable[[Scene], tuple[str, ...]]:
    return lambda _scene: (str(PEERS / name),)


def _always(*arguments: str) -> Callable[[Scene], tuple[str, ...]]:
    return lambda _scene: arguments


def _nothing(_scene: Scene) -> dict[str, object]:
    return {}


def acks_per_frame(scene: Scene) -> int:
    """100, or half of the prefetch window: if the whole window waited for one frame, the broker would wait with it."""
    return min(100, max(1, scene.window // 2))


def _prefork_processes(scene: Scene) -> int:
    """Two, on two cores; one where the broker may hand out only one message at a time."""
    return min(2, scene.window)


_RUN_WORKERKIT = _always("-m", "workerkit", "--config", "config/workerkit.yaml", "run", "noop")

_USUAL = (
    Client(WORKERKIT, 45_000, "workerkit", _RUN_WORKERKIT, log_level="warning"),
    Client(LOG_LINE_ON, 20_000, "workerkit", _RUN_WORKERKIT, log_level="info"),
    Client(PIKA, 10_000, "pika", _script("pika_blocking.py")),
    Client("pika SelectConnection", 18_000, "pika", _script("pika_select.py")),
    Client("py-amqp", 10_000, "amqp", _script("py_amqp.py")),
    Client("kombu ConsumerMixin", 7_000, "amqp", _script("kombu_mixin.py")),
    Client("aio-pika", 6_000, "aio", _script("aio_pika_consume.py")),
    Client("FastStream", 1_600, "aio", _script("faststream_app.py")),
    Client(
        "Celery solo",
        2_800,
        "celery",
        _always(*_CELERY, "--pool", "solo", *_CELERY_QUIET),
        publisher="celery_app.py",
        last_acks=_CELERY_WAKES,
    ),
    Client(
        "Celery prefork",
        1_400,
        "celery",
        lambda scene: (*_CELERY, "--pool", "prefork", "-c", str(_prefork_processes(scene)), *_CELERY_QUIET),
        publisher="celery_app.py",
        last_acks=_CELERY_WAKES,
        environment=lambda scene: {"BENCH_PROCESSES": str(_prefork_processes(scene))},
    ),
    Client(
        "Dramatiq",
        4_500,
        "dramatiq",
        _always("-m", "dramatiq", "dramatiq_app", "--processes", "1", "--threads", "1", "--skip-logging"),
        publisher="dramatiq_app.py",
        environment=lambda scene: {"dramatiq_queue_prefetch": str(scene.prefetch)},
    ),
    Client(
        "Taskiq",
        2_600,
        "taskiq",
        lambda scene: (
            *("-m", "taskiq", "worker", "taskiq_app:broker", "--workers", "1", "--log-level", "WARNING"),
            *("--max-async-tasks", str(scene.prefetch), "--ack-type", "when_executed", "--no-parse"),
        ),
        publisher="taskiq_app.py",
    ),
    Client("C librabbitmq, ack each", 60_000, None, _always("1")),
    Client("C librabbitmq, 100 acks per frame", 90_000, None, lambda scene: (str(acks_per_frame(scene)),)),
)

_TASKIQ = ("-m", "taskiq", "worker", "taskiq_app:broker", "--log-level", "WARNING")

# What they do when they are told no more than where the messages are. Warnings are all that is logged here, too.
_AT_THEIR_DEFAULTS = (
    Client(WORKERKIT, 45_000, "workerkit", _RUN_WORKERKIT, log_level="warning", settings=_nothing),
    Client(LOG_LINE_ON, 20_000, "workerkit", _RUN_WORKERKIT, log_level="info", settings=_nothing),
    Client(
        AT_500, 45_000, "workerkit", _RUN_WORKERKIT, log_level="warning", settings=lambda _: {"prefetch_count": 500}
    ),
    Client(PIKA_AT_1, 2_000, "pika", _script("pika_blocking.py"), environment=lambda _: {"BENCH_PREFETCH": "1"}),
    Client("FastStream", 1_600, "aio", _script("faststream_app.py")),
    Client("Celery", 1_400, "celery", _always(*_CELERY), publisher="celery_app.py", last_acks=_CELERY_WAKES),
    Client(
        "Dramatiq",
        2_500,
        "dramatiq",
        _always("-m", "dramatiq", "dramatiq_app", "--skip-logging"),
        publisher="dramatiq_app.py",
    ),
    Client("Taskiq", 1_500, "taskiq", _always(*_TASKIQ), publisher="taskiq_app.py"),
)


def _concurrent(scene: Scene) -> dict[str, object]:
    return {"concurrency": scene.prefetch}


def _concurrent_and_prefetched(scene: Scene) -> dict[str, object]:
    return {"concurrency": scene.prefetch, "prefetch_count": scene.prefetch}


# The others run as many coroutines at once as messages are prefetched, and Taskiq as many as it is told; on uvloop.
_ASYNCHRONOUS = (
    Client(
        WORKERKIT,
        10_000,
        "workerkit",
        _RUN_WORKERKIT,
        log_level="warning",
        packages="uvloop",
        settings=_concurrent,
    ),
    Client(
        PREFETCHED_AS_THE_OTHERS,
        10_000,
        "workerkit",
        _RUN_WORKERKIT,
        log_level="warning",
        packages="uvloop",
        settings=_concurrent_and_prefetched,
    ),
    Client(
        "workerkit, asyncio's own loop",
        10_000,
        "workerkit",
        _RUN_WORKERKIT,
        log_level="warning",
        settings=_concurrent,
    ),
    *(client for client in _USUAL if client.name in {"aio-pika", "FastStream", "Taskiq"}),
)

CLIENTS = tuple({client.name: client for client in (*_USUAL, *_AT_THEIR_DEFAULTS, *_ASYNCHRONOUS)}.values())
"""One of each name."""


def clients_of(scene: Scene) -> tuple[Client, ...]:
    """Those that are measured in a scene."""
    if scene == ASYNC_1000:  # so many slots that workerkit takes no more ahead by itself
        return tuple(client for client in _ASYNCHRONOUS if client.name != PREFETCHED_AS_THE_OTHERS)
    return {DEFAULTS: _AT_THEIR_DEFAULTS, ASYNC: _ASYNCHRONOUS}.get(scene, _USUAL)
