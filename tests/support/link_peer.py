"""The consumer's end of a real executor process, by hand: a socket pair, a page, and a script of frames. No broker."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from workerkit.ports import Delivery
from workerkit.properties import Properties, encode
from workerkit.settlement import Outcome
from workerkit.worker.link import (
    Aftermath,
    Dying,
    FrameReader,
    Kind,
    aftermath_frame,
    deliver_frames,
    frame,
    json_frame,
    unpack_settled,
)
from workerkit.worker.loading import Resolved, Spec
from workerkit.worker.page import Page

PATIENCE = 20.0
"""Seconds after which something that should happen is taken to be missing; machines under load are slow."""


class Peer:
    """Starts an executor process on a task and talks to it as the consumer does.

    Args:
        task: ``module:Class``, the module being in ``folder``.
        folder: the project root of the task.
        config: settings by name.
        environment: variables for the process.
    """

    def __init__(
        self, task: str, folder: Path, config: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        self._sock, theirs = socket.socketpair()
        self.page, page_fd = Page.create()
        crash_fd = os.memfd_create("crash")
        fds = (theirs.fileno(), page_fd, crash_fd)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-u", "-m", "workerkit.worker.executor", *map(str, fds), str(os.getpid())],
            pass_fds=fds,
            env={**os.environ, **(environment or {})},
        )
        theirs.close()
        os.close(page_fd)
        os.close(crash_fd)
        self._sock.settimeout(PATIENCE)
        self._reader = FrameReader()
        self._frames: list[tuple[int, bytes]] = []
        self._seq = 0
        self.sent: dict[int, Delivery] = {}
        """Every delivery by its sequence number."""
        self.settled: dict[int, Outcome] = {}
        """What came in SETTLED frames."""
        self.log: list[dict[str, Any]] = []
        self.spec = Spec("jobs", "00", task, str(folder), "debug", dict(config))
        self.send(json_frame(Kind.HELLO, self.spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._sock.close()
        self.page.close()

    def ready(self) -> Resolved:
        """Wait for READY."""
        self.resolved = msgspec.json.decode(self.frame_of(Kind.READY), type=Resolved)
        self._queues = {name: number for number, name in enumerate(self.resolved.queues)}
        return self.resolved

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._sock.sendall(piece)

    def make(self, body: bytes = b"{}", *, queue: str | None = None, attempt: int = 1, **properties: Any) -> Delivery:
        """The next delivery, in a slot of its own; not sent."""
        self._seq += 1
        delivery = Delivery(
            queue=queue or next(iter(self._queues)),
            exchange="",
            routing_key="jobs",
            redelivered=False,
            attempt=attempt,
            raw_properties=encode(Properties(**{"message_id": f"m{self._seq}", **properties})),
            body=body,
            seq=self._seq,
            slot=self._seq,
        )
        self.sent[delivery.seq] = delivery
        return delivery

    def deliver(self, *bodies: Any, **properties: Any) -> list[int]:
        """Send messages with these JSON bodies in one write; returns their sequence numbers."""
        deliveries = [self.make(msgspec.json.encode(body), **properties) for body in bodies]
        self.send(*deliver_frames(deliveries, self._queues))
        return [delivery.seq for delivery in deliveries]

    def tell_aftermath(self, delivery: Delivery, aftermath: Aftermath) -> None:
        self.send(aftermath_frame(delivery, aftermath, self._queues))

    def cancel(self, seq: int) -> None:
        self.send(json_frame(Kind.CANCEL, seq))

    def stop(self) -> None:
        self.send(frame(Kind.STOP))

    def frame_of(self, kind: Kind) -> bytes:
        """The payload of the next frame of this kind; what comes before it is kept. Raises EOFError at the end."""
        while True:
            for index, (found, payload) in enumerate(self._frames):
                if found == kind:
                    del self._frames[index]
                    return payload
            self._receive()

    def outcome(self, seq: int) -> Outcome:
        """How ``seq`` was settled, by a frame; waits for it."""
        while seq not in self.settled:
            self._receive()
        return self.settled[seq]

    def death(self) -> Any:
        """The account of a DYING frame; waits for it."""
        return msgspec.json.decode(self.frame_of(Kind.DYING), type=Dying)

    def exit_code(self) -> int:
        """Read to the end of the link and return how the process ended."""
        with contextlib.suppress(EOFError):
            while True:
                self._receive()
        return self.process.wait(PATIENCE)

    def event(self, name: str, **keys: Any) -> dict[str, Any]:
        """A log line with this event and these values; waits for it."""
        while True:
            for line in self.log:
                if line["event"] == name and keys.items() <= line.items():
                    return line
            self._receive()

    def acknowledged(self) -> set[int]:
        """Which deliveries the page says are done, ever."""
        done = set()
        for seq, delivery in self.sent.items():
            if self.page.acknowledged({seq: delivery}):
                done.add(seq)
        return done

    def running(self) -> list[int]:
        return [running.seq for running in self.page.running(self.sent.values())]

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that shows in the page, and read meanwhile. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("it did not happen")
            if select.select([self._sock], [], [], 0.002)[0]:
                self._receive()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(65536)
        except ConnectionResetError:  # it ended with frames of ours unread
            data = b""
        if not data:
            raise EOFError("the executor has closed its end")
        for kind, buffer, start, end in self._reader.feed(data):
            if kind == Kind.LOG:
                self.log.append(msgspec.json.decode(buffer[start:end]))
            elif kind == Kind.SETTLED:
                seq, _, outcome = unpack_settled(buffer, start, end)
                assert seq not in self.settled, "settled twice"
                self.settled[seq] = outcome
            elif kind != Kind.WAKE:
                self._frames.append((kind, buffer[start:end]))
