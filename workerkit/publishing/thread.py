"""An event loop on a thread, for callers that have none; and the hand-over of many messages from one to the other.

A signal handler may publish, too, and then the code that it interrupts stands still until the loop has confirmed that.
So nothing here takes a lock that the loop takes as well: neither ``threading.Condition`` nor what is made of it, such
as ``concurrent.futures.Future``, whose ``result`` holds one for a moment before it waits.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from workerkit.outgoing import Outgoing
from workerkit.publishing.sender import Sender

_AHEAD = 200
"""Messages that may wait to be taken by the loop, beside those in flight."""
_AHEAD_BYTES = 1024 * 1024
"""Bytes of their bodies; one message may be bigger."""

T = TypeVar("T")


class _Gate:
    """A bare lock as an event: lets one waiter through for each time that it was opened. No waiter holds anything."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let a waiter through, now or when it comes. Harmless when that is so already."""
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def wait(self, patience: float | None = None) -> bool:
        """Wait until it is opened, ``patience`` seconds at most. False: it was not."""
        return self._lock.acquire(timeout=-1 if patience is None else patience)


class Sending(Generic[T]):
    """Work on its way through the loop, as its caller sees it."""

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._gate = _Gate()
        self._task: asyncio.Task[T] | None = None

    def result(self, patience: float | None = None) -> T:
        """Wait for what becomes of it. To be called once.

        Raises:
            TimeoutError: nothing did within ``patience`` seconds.
            RuntimeError: the publisher was closed meanwhile.
            Exception: what the work raised.
        """
        if not self._gate.wait(patience):
            raise TimeoutError
        assert self._task is not None
        try:
            return self._task.result()
        except asyncio.CancelledError:
            raise RuntimeError("the publisher was closed meanwhile") from None

    @property
    def started(self) -> bool:
        """Whether the loop has come to it."""
        return self._task is not None

    def cancel(self) -> None:
        """End it; what is not sent yet never is."""
        self._thread.call(self._cancel)

    def start(self, work: Coroutine[Any, Any, T]) -> None:
        """On the loop."""
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(lambda _: self._gate.open())

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class LoopThread:
    """A daemon thread with an event loop and a sender on it; for one process, as a fork takes no threads along.

    Nothing here holds its lock while it waits, so all of it may be called from a signal handler that interrupts it.

    Args:
        make_sender: called on the loop, before the first message.
        patience: seconds for the thread to run at all.

    Raises:
        TimeoutError: it does not.
    """

    def __init__(self, make_sender: Callable[[], Sender], patience: float) -> None:
        self._make_sender = make_sender
        self._sender: Sender | None = None
        self._lock = threading.RLock()
        self._stopping = False
        # The loop is made over there: that writes to a log, whose lock a signal handler could find held here.
        made: list[asyncio.AbstractEventLoop] = []
        there, self._ended = _Gate(), _Gate()
        # Not a ``threading.Thread``: its start takes a lock that all threads share, and may be what is interrupted.
        self._ident = _thread.start_new_thread(_run, (made, there, self._ended))
        if not there.wait(patience):
            raise TimeoutError
        (self._loop,) = made

    def submit(self, work: Callable[[Sender], Coroutine[Any, Any, T]]) -> Sending[T]:
        """Start ``work`` on the loop. Raises RuntimeError when the thread is being stopped."""
        with self._lock:
            sending: Sending[T] = Sending(self)
            if not self._stopping:
                self.call(lambda: sending.start(self._with_sender(work)))
            # A signal handler may have closed it in the midst of the line before, and then that was for nothing.
            if self._stopping and not sending.started:
                raise RuntimeError("the publisher is closed")
            return sending

    def call(self, function: Callable[[], object]) -> None:
        """Call on the loop, soon; not at all when it has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Let what is being published end, then close the connection and end the thread. Does not wait for that."""
        with self._lock:
            if not self._stopping:
                self._stopping = True
                self._loop.call_soon_threadsafe(self._begin_to_end)

    def join(self, patience: float | None = None) -> None:
        """Wait until the thread has ended: at most ``patience`` seconds, or as long as its messages have time."""
        if threading.get_ident() != self._ident and self._ended.wait(patience):
            self._ended.open()  # for whoever else waits

    async def _with_sender(self, work: Callable[[Sender], Coroutine[Any, Any, T]]) -> T:
        if self._sender is None:
            self._sender = self._make_sender()
        return await work(self._sender)

    def _begin_to_end(self) -> None:
        self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        try:
            if self._sender is not None:
                await self._sender.close()
        finally:
            self._loop.stop()


def _run(made: list[asyncio.AbstractEventLoop], there: _Gate, ended: _Gate) -> None:
    """Apart from the object, so that the thread does not keep that alive."""
    try:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # cancels what is left at the end
            made.append(runner.get_loop())
            there.open()
            runner.get_loop().run_forever()
    finally:
        ended.open()


class Feed:
    """Messages that one thread makes, on their way to the loop that publishes them; no more than a few wait here.

    Args:
        thread: has the loop.
    """

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._room = _Gate()
        self._waiting: deque[Outgoing] = deque()
        self._put_bytes = 0  # each of the two is written by one thread only
        self._taken_bytes = 0
        self._ended = False
        self._wanted = True
        self._arrived = asyncio.Event()

    def put(self, message: Outgoing) -> bool:
        """Hand over when there is room. False: no more is wanted."""
        while self._wanted and (len(self._waiting) >= _AHEAD or self._put_bytes - self._taken_bytes >= _AHEAD_BYTES):
            self._room.wait()
        if self._wanted:
            self._put_bytes += len(message.body)
            self._waiting.append(message)
            if len(self._waiting) == 1:
                self._thread.call(self._arrived.set)
        return self._wanted

    def end(self) -> None:
        """There are no more."""
        self._ended = True
        self._thread.call(self._arrived.set)

    def refuse(self) -> None:
        """Want no more; called on the loop, or by whoever has ended the wait."""
        self._wanted = False
        self._room.open()

    async def batches(self) -> AsyncIterator[list[Outgoing]]:
        """What is there, again and again, up to the end. To be iterated on the loop."""
        while True:
            ended = self._ended  # before what is there is taken: after it, there is nothing more
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._taken_bytes += sum(len(message.body) for message in batch)
            self._room.open()
            yield batch
            if ended and not batch:
                return
            if not self._waiting and not self._ended:
                await self._arrived.wait()
            self._arrived.clear()
