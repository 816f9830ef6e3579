"""Where the microseconds of one message go: each stage of the path timed by itself, in one process, with no broker.

    .venv/bin/python -m bench.stages

Small messages of one queue, 100 at a time, the best of many repetitions: what the code costs with warm caches and
nobody else on the processor. What the kernel adds (receiving, sending, waking) is in the whole runs of ``make bench``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pika
import pika.frame
import pika.spec

from bench.report import markdown
from workerkit import MessageAdapter, WorkerTask
from workerkit.brokers.rabbitmq.frames import FrameSplitter
from workerkit.brokers.rabbitmq.unacked import Unacked
from workerkit.settlement import ACK
from workerkit.worker import copies
from workerkit.worker.executor import Executor
from workerkit.worker.link import FrameReader, Page, deliver_frames, unpack_delivery
from workerkit.worker.logs import ConsumerLog
from workerkit.worker.ports import Delivery
from workerkit.worker.settler import describe

BATCH = 100
_REPEAT = 2000

_PROPERTIES = pika.BasicProperties(delivery_mode=2, content_type="application/json", message_id="0" * 36)


class Task(WorkerTask):
    """The least that a callback can do."""

    def callback(self, message: MessageAdapter) -> None:
        """Acknowledge."""
        message.ack()


def stream() -> bytes:
    """A batch of deliveries as the broker sends them."""
    frames = []
    for tag in range(1, BATCH + 1):
        deliver = pika.spec.Basic.Deliver("worker_00@host.1234.1", tag, False, "", "jobs")
        frames += [
            pika.frame.Method(1, deliver),
            pika.frame.Header(1, 100, _PROPERTIES),
            pika.frame.Body(1, b"x" * 100),
        ]
    return b"".join(frame.marshal() for frame in frames)


def microseconds(stage: Callable[[], Any]) -> float:
    """Per message, the best of many."""
    best = float("inf")
    for _ in range(_REPEAT):
        started = time.perf_counter_ns()
        stage()
        best = min(best, time.perf_counter_ns() - started)
    return best / 1000 / BATCH


def by_pika(data: bytes) -> None:
    """pika's own decoding of the same bytes, up to its frame objects."""
    while data:
        used, _ = pika.frame.decode_frame(data)
        data = data[used:]


def settle_alone() -> None:
    unacked = Unacked()
    unacked.add(1, BATCH)
    unacked.settle(range(1, BATCH + 1))


def stages() -> dict[str, Callable[[], Any]]:
    """The stages by name, in the order of the path."""
    data = stream()
    splitter = FrameSplitter()
    splitter.sources[1] = ("jobs", 1)
    splitter.feed(data)
    ((_, deliveries),) = [item for item in splitter.feed(data) if not isinstance(item, bytes)]
    for delivery in deliveries:
        delivery.seq = delivery.tag
    sent = b"".join(deliver_frames(deliveries))
    reader = FrameReader()
    frames = reader.feed(sent)
    page, page_fd = Page.create()
    os.close(page_fd)
    ours, _theirs = socket.socketpair()
    executor = Executor(ours, page)
    executor._decode, executor._queue = lambda *_: None, "jobs"  # noqa: SLF001 - what run() sets
    page.must_wake()  # the consumer counts as awake: what a wake-up costs is the kernel's part
    task = Task()
    log = ConsumerLog(
        "info", "json", {"worker": "jobs", "instance": "00", "pid": 1}, fd=os.open(os.devnull, os.O_WRONLY)
    )

    def forward() -> None:
        inflight: dict[int, Delivery] = {}
        for delivery in deliveries:
            inflight[delivery.seq] = delivery
        deliver_frames(deliveries)

    def execute() -> None:
        for _, buffer, start, end in frames:
            executor._deliver(task, buffer, start, end)  # noqa: SLF001

    def lines() -> None:
        events = [{"outcome": ACK.verb.name, **describe(delivery), "duration_ms": 0.1} for delivery in deliveries]
        log.write_events("info", "message.settled", events)

    return {
        "consumer: bytes to deliveries": lambda: splitter.feed(data),
        "consumer: which attempt it is": lambda: copies.count_attempts(deliveries, native=False),
        "consumer: in flight, and into one write": forward,
        "executor: frames of the link": lambda: reader.feed(sent),
        "executor: one message out of a frame": lambda: [
            unpack_delivery(buffer, start, end, "jobs") for _, buffer, start, end in frames
        ],
        "executor: all of it, with an empty callback": execute,
        "consumer: acknowledgements found in the page": lambda: page.acknowledged(range(1, BATCH + 1)),
        "consumer: runs of acknowledgements": settle_alone,
        "consumer: a log line for each": lines,
        "for comparison: pika's decoding of the same bytes": lambda: by_pika(data),
    }


if __name__ == "__main__":
    print(
        markdown(
            ("stage", "µs per message"), [(name, f"{microseconds(stage):.2f}") for name, stage in stages().items()]
        )
    )
