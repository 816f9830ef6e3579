"""Many confirmed publishes at once, up to the first that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """The earliest piece of work that failed."""

    number: int
    """As its submitter counts."""
    before: int
    """How many pieces were submitted before it; all of them ended well."""
    error: Exception


class Pipeline:
    """Keeps a bounded number of pieces of work in flight, and takes no more once one has failed.

    Args:
        width: how many at once.
    """

    def __init__(self, width: int) -> None:
        self.done = 0
        """How many pieces ended well."""
        self.failure: Failure | None = None
        self._submitted = 0
        self._slots = asyncio.Semaphore(width)
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, number: int, work: Callable[[], Awaitable[None]]) -> bool:
        """Start piece ``number`` when there is room. False: an earlier one has failed, and this one was not started."""
        await self._slots.acquire()
        if self.failure is not None:
            self._slots.release()
            return False
        task = asyncio.create_task(self._run(number, self._submitted, work))
        self._submitted += 1
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, number: int, before: int, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - kept for whoever submitted it
            if self.failure is None or before < self.failure.before:
                self.failure = Failure(number, before, error)
        else:
            self.done += 1
        finally:
            self._slots.release()
