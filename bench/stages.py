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
from workerkit.brokers.rabbitmq.redelivery import Redelivery
from workerkit.brokers.rabbitmq.unacked import Unacked
from workerkit.brokers.rabbitmq.versions import QueueTraits
from workerkit.settlement import ACK
from workerkit.worker.custody import Holding
from workerkit.worker.link import FrameReader, deliver_frames, unpack_delivery
from workerkit.worker.logs import ConsumerLog
from workerkit.worker.page import Page
from workerkit.worker.running import BlockingRunner
from workerkit.worker.settler import describe
from workerkit.worker.uplink import Uplink
from workerkit.worker.window import AutoWindow

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
    splitter.sources[1] = ("jobs", None)
    splitter.feed(data)
    ((_, deliveries),) = [item for item in splitter.feed(data) if not isinstance(item, bytes)]
    page, page_fd = Page.create()
    os.close(page_fd)
    ours, _theirs = socket.socketpair()
    uplink = Uplink(ours, page)
    runner = BlockingRunner(Task(), ["jobs"], uplink, lambda _: None)  # no coroutine is to be run to its end
    page.must_wake()  # the consumer counts as awake: what a wake-up costs is the kernel's part
    holding = Holding(page)
    holding.add(deliveries, 1)
    sent = b"".join(deliver_frames(deliveries, {"jobs": 0}))
    reader = FrameReader()
    frames = reader.feed(sent)
    for _, buffer, start, end in frames:
        runner.deliver(buffer, start, end)  # the page then says of each that it is acknowledged
    redelivery = object.__new__(Redelivery)  # no connection is needed to look at attempts
    log = ConsumerLog(
        "info", "json", {"worker": "jobs", "instance": "00", "pid": 1}, fd=os.open(os.devnull, os.O_WRONLY)
    )

    sending = Holding(page)

    def forward() -> None:
        sending.add(deliveries, 1)
        sending._free += [delivery.slot for delivery in deliveries]  # noqa: SLF001 - as if it was over at once
        deliver_frames(deliveries, {"jobs": 0})

    def execute() -> None:
        for _, buffer, start, end in frames:
            runner.deliver(buffer, start, end)

    def acknowledged() -> None:
        holding.inflight.update((delivery.seq, delivery) for delivery in deliveries)
        holding.acknowledged()

    def lines() -> None:
        events = [{"outcome": ACK.verb.name, **describe(delivery), "duration_ms": 0.1} for delivery in deliveries]
        log.write_events("info", "message.settled", events)

    return {
        "consumer: bytes to deliveries": lambda: splitter.feed(data),
        "consumer: which attempt it is": lambda: redelivery.receive(QueueTraits(), deliveries),
        "consumer: in flight, and into one write": forward,
        "executor: frames of the link": lambda: reader.feed(sent),
        "executor: one message out of a frame": lambda: [
            unpack_delivery(buffer, start, end, ["jobs"]) for _, buffer, start, end in frames
        ],
        "executor: all of it, with an empty callback": execute,
        "consumer: acknowledgements found in the page": acknowledged,
        "consumer: runs of acknowledgements": settle_alone,
        "consumer: how many to take ahead": lambda: AutoWindow(1).note(deliveries),
        "consumer: a log line for each": lines,
        "for comparison: pika's decoding of the same bytes": lambda: by_pika(data),
    }


if __name__ == "__main__":
    print(
        markdown(
            ("stage", "µs per message"), [(name, f"{microseconds(stage):.2f}") for name, stage in stages().items()]
        )
    )
