"""An event loop on a thread, for callers that have none; and the hand-over of many messages from one to the other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from workerkit.outgoing import Outgoing
from workerkit.publishing.sender import Sender

_AHEAD = 200
"""Messages that may wait to be taken by the loop, beside those in flight."""
_AHEAD_BYTES = 1024 * 1024
"""Bytes of their bodies; one message may be bigger."""

T = TypeVar("T")


class LoopThread:
    """A daemon thread with an event loop and a sender on it; for one process, as a fork takes no threads along.

    Nothing here holds its lock while it waits, so all of it may be called from a signal handler that interrupts it.
    """

    def __init__(self, make_sender: Callable[[], Sender]) -> None:
        self._make_sender = make_sender
        self._sender: Sender | None = None
        self._lock = threading.RLock()
        self._stopping = False
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="workerkit publisher", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Sender], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Start ``work`` on the loop. Raises RuntimeError when the thread is being stopped."""
        with self._lock:
            if self._stopping:
                raise RuntimeError("the publisher is closed")
            return asyncio.run_coroutine_threadsafe(self._with_sender(work), self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call on the loop, soon; not at all when it has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Let what is being published end, then close the connection and end the thread. Does not wait for that."""
        with self._lock:
            if not self._stopping:
                self._stopping = True
                asyncio.run_coroutine_threadsafe(self._end(), self._loop)

    def join(self, patience: float | None = None) -> None:
        """Wait until the thread has ended: at most ``patience`` seconds, or as long as its messages have time."""
        if threading.current_thread() is not self._thread:
            self._thread.join(patience)

    async def _with_sender(self, work: Callable[[Sender], Coroutine[Any, Any, T]]) -> T:
        if self._sender is None:
            self._sender = self._make_sender()
        return await work(self._sender)

    async def _end(self) -> None:
        try:
            if self._sender is not None:
                await self._sender.close()
        finally:
            self._loop.stop()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Apart from the object, so that the thread does not keep that alive."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


class Feed:
    """Messages that one thread makes, on their way to the loop that publishes them; no more than a few wait here.

    Args:
        thread: has the loop.
    """

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._room = threading.Condition()
        self._waiting: list[Outgoing] = []
        self._bytes = 0
        self._ended = False
        self._wanted = True
        self._arrived = asyncio.Event()

    def put(self, message: Outgoing) -> bool:
        """Hand over when there is room. False: no more is wanted."""
        with self._room:
            while self._wanted and (len(self._waiting) >= _AHEAD or self._bytes >= _AHEAD_BYTES):
                self._room.wait()
            if self._wanted:
                self._waiting.append(message)
                self._bytes += len(message.body)
        if len(self._waiting) == 1:
            self._thread.call(self._arrived.set)
        return self._wanted

    def end(self) -> None:
        """There are no more."""
        self._ended = True
        self._thread.call(self._arrived.set)

    def refuse(self) -> None:
        """Want no more; called on the loop, or by whoever has ended the wait."""
        with self._room:
            self._wanted = False
            self._room.notify_all()

    async def batches(self) -> AsyncIterator[list[Outgoing]]:
        """What is there, again and again, up to the end. To be iterated on the loop."""
        while True:
            ended = self._ended  # before what is there is taken: after it, there is nothing more
            with self._room:
                batch, self._waiting, self._bytes = self._waiting, [], 0
                self._room.notify_all()
            yield batch
            if ended and not batch:
                return
            if not self._waiting and not self._ended:
                await self._arrived.wait()
            self._arrived.clear()
