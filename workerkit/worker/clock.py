"""The time limits of an executor: finds the callback, or the ``shutdown``, that runs too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from workerkit.worker.child import Executor
from workerkit.worker.link import Phase, Running

SHUTDOWN_TIMEOUT = 10.0
"""Seconds that ``WorkerTask.shutdown`` may run."""
_LONGEST_TICK = 5.0
"""Seconds between looks at the page, at most, while there is something to do."""


class Clock:
    """Looks at the page of one executor after the other, and stands still while there is nothing to do.

    Args:
        has_work: whether the executor has deliveries.
        overdue: called when something runs too long, with what it is, its limit in seconds and the executor's stacks.
    """

    def __init__(self, has_work: Callable[[], bool], overdue: Callable[[Running, float, str], None]) -> None:
        self._has_work = has_work
        self._overdue = overdue
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self.callback_timeout: float | None = None

    def watch(self, executor: Executor) -> None:
        """Look at this executor from now on. Harmless when that is so already."""
        if self._timer is None and self._asking is None:
            self._look_later(executor, self._tick)

    def stop(self) -> None:
        """The executor is gone."""
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        self._timer = self._asking = None

    @property
    def _tick(self) -> float:
        """No longer than the limit: then a look sees each callback before its time is up, and the next is in time."""
        return min(self.callback_timeout or _LONGEST_TICK, _LONGEST_TICK)

    def _look_later(self, executor: Executor, delay: float) -> None:
        self._timer = self._loop.call_later(delay, self._look, executor)

    def _look(self, executor: Executor) -> None:
        self._timer = None
        # Should a processor with weaker rules than x86 ever let a wake-up get lost (see Page.must_wake), it ends here.
        executor.drain()
        running = executor.page.running()
        if running is None:
            if self._has_work():
                self._look_later(executor, self._tick)
            return
        _, phase, started_ns = running
        limit = SHUTDOWN_TIMEOUT if phase is Phase.SHUTDOWN else self.callback_timeout
        if limit is None:
            self._look_later(executor, self._tick)
            return
        left = started_ns / 1e9 + limit - time.monotonic()
        if left > 0:
            self._look_later(executor, min(left, self._tick))
        else:
            self._asking = self._loop.create_task(self._ask(executor, running, limit))

    async def _ask(self, executor: Executor, running: Running, limit: float) -> None:
        """First the stacks, which say where it hangs; then the end."""
        stacks = await executor.stacks()
        self._asking = None
        if executor.page.running() == running:
            self._overdue(running, limit, stacks)
        else:  # it came to an end after all
            self._look_later(executor, self._tick)
