"""The executor's end of the link and of the page: what it hears, and how it makes itself heard."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections import deque

from workerkit.errors import ExitCode
from workerkit.settlement import ACK, RELEASE, Cause, Outcome, Reason
from workerkit.worker.link import READ_SIZE, Dying, Frame, FrameReader, Kind, frame, json_frame, settled_frame
from workerkit.worker.page import Page, Phase

_WAKE = frame(Kind.WAKE)
_CALLBACK = int(Phase.CALLBACK)  # a plain number: an enum costs a tenth of a microsecond per message
INTERRUPTED = 130
"""Exit code after a KeyboardInterrupt: 128 + SIGINT, as shells have it."""


class Uplink:
    """Reads frames, and sends them whole from any thread.

    A child that a callback forks shares the socket and the page, and must not speak for the executor: in it everything
    here is silent but its log.
    """

    def __init__(self, link: socket.socket, page: Page) -> None:
        self.page = page
        self.forked = False
        self._link = link
        self._reader = FrameReader()
        self._lock = threading.RLock()
        self._outgoing: deque[bytes] = deque()
        self._sending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._waking = False
        os.register_at_fork(after_in_child=self._on_fork)

    def fileno(self) -> int:
        """Of the socket, for an event loop."""
        return self._link.fileno()

    def receive(self) -> list[Frame]:
        """The frames that the next read brings, which may be none; waits for one.

        Raises:
            SystemExit: the consumer is gone, and every settlement with it.
            BlockingIOError: there is nothing, and the socket does not wait.
        """
        data = self._link.recv(READ_SIZE)
        if not data:
            raise SystemExit(ExitCode.OK)
        return self._reader.feed(data)

    def wake_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the consumer once for all that this loop, which runs on this thread, does in one turn."""
        self._loop, self._loop_thread = loop, threading.get_ident()

    def wake(self) -> None:
        """Have the consumer look at the page, unless it is about to."""
        if self._loop is None or threading.get_ident() != self._loop_thread:
            self._wake_now()
        elif not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake_now)

    def _wake_now(self) -> None:
        self._waking = False
        if self.page.must_wake():
            self.send(_WAKE)

    def log(self, line: bytes) -> None:
        """Have a line written by the consumer."""
        if self.forked:
            os.write(2, line)  # read by the consumer, line by line
        else:
            self.send(frame(Kind.LOG, line), log=True)

    def send(self, data: bytes, *, log: bool = False) -> None:
        """Send one frame whole. Threads take turns; a signal handler that logs in the midst of a send is not in a turn
        of its own, so its frame is left to the send that it interrupted.
        """
        if self.forked:
            return
        with self._lock:
            self._outgoing.append(data)
            if self._sending:
                return
            self._sending = True
            try:
                while self._outgoing:
                    self._send_all(self._outgoing.popleft())
            except OSError:
                if not log:
                    os._exit(ExitCode.TEMPORARY)  # the consumer is gone: nothing that happens here can count any more
            finally:
                self._sending = False

    def _send_all(self, data: bytes) -> None:
        """As ``socket.sendall``, for a socket that some event loops make non-blocking."""
        sent = 0
        while True:
            try:
                sent += self._link.send(data[sent:] if sent else data)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._link, select.POLLOUT)
                poll.poll()
            if sent == len(data):
                return

    def _on_fork(self) -> None:
        self.forked = True


class LinkHandle:
    """One message that this executor has, as the consumer knows it."""

    __slots__ = ("_started_ns", "seq", "slot", "uplink")

    def __init__(self, uplink: Uplink, slot: int, seq: int) -> None:
        self.uplink = uplink
        self.slot = slot
        self.seq = seq
        self._started_ns = time.monotonic_ns()

    def begin(self) -> bool:
        """Say that its callback runs. False: it must not run any more, and is over."""
        page, slot, seq = self.uplink.page, self.slot, self.seq
        if page.is_void(slot, seq):
            page.end(slot, seq)  # its slot is free again
            return False
        # First say "I run it", then ask whether it is still ours: the consumer voids it first and looks afterwards
        # whether it has begun, so at least one of the two sees the other.
        page.begin(slot, seq, _CALLBACK, self._started_ns)
        if page.is_void(slot, seq):
            page.end(slot, seq)
            self.settle(RELEASE)  # voided in just this moment: the consumer may take it for started
            return False
        return True

    def begin_shutdown(self) -> None:
        """Say that its ``shutdown`` runs."""
        self.uplink.page.begin(self.slot, self.seq, Phase.SHUTDOWN, time.monotonic_ns())

    def die(self, cause: Cause) -> None:
        """Announce the death of this executor before ``shutdown`` runs: its cause is known even if that dies too."""
        if self.uplink.forked:
            os._exit(exit_code(cause))  # the end of the child, not of the executor
        self.uplink.send(json_frame(Kind.DYING, Dying(cause, self.seq)))
        self.begin_shutdown()

    def settle(self, outcome: Outcome) -> None:
        """Say what was decided: an acknowledgement in the page, anything else in a frame."""
        uplink = self.uplink
        if uplink.forked:
            return
        duration_ns = time.monotonic_ns() - self._started_ns
        if outcome is not ACK:
            uplink.send(settled_frame(self.seq, duration_ns, outcome))
            return
        uplink.page.acknowledge(self.slot, self.seq, duration_ns)
        uplink.wake()

    @property
    def lost(self) -> bool:
        """Whether the consumer has learned that the message is the broker's again."""
        return self.uplink.page.is_lost(self.slot, self.seq)


def exit_code(death: Cause) -> int:
    """With which code an executor ends that dies of this."""
    if death.exit_code is not None:
        return death.exit_code
    return INTERRUPTED if death.reason is Reason.SIGNAL else ExitCode.INTERNAL
