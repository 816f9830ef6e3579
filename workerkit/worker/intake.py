"""What may be taken now: the reasons not to, the windows, and one reconciler that tells the broker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from workerkit.ports import Broker, Delivery
from workerkit.worker.window import AutoWindow

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_WORTH_A_LINE = 4
"""Times by which the automatic window has changed since it was last logged."""
_ORDERED_WINDOW = 1


class Intake:
    """Sees that the broker hands out what it should: nothing while there is a reason, else a window for each queue.

    Args:
        broker: to be told.
        queues: the sources.
        fixed: the window of each source, or None to find one by ``AutoWindow``.
        slots: callbacks that can run at once.
        most: messages after which the worker ends, which no window exceeds.
        reasons: why nothing is taken at present; added to and taken from here.
        on_open: called with a queue when it begins to be consumed.
        on_failed: called with an error of ours: what the broker hands out is then not known any more.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        *,
        fixed: int | None,
        slots: int,
        most: int | None,
        reasons: set[str],
        on_open: Callable[[str, float], None],
        on_failed: Callable[[BaseException], None],
        log: FilteringBoundLogger,
    ) -> None:
        self._broker = broker
        self._queues = tuple(queues)
        self._fixed = fixed
        # With several queues, each has something here to choose from though all that runs is of the same one.
        self._least = 2 * slots if len(queues) > 1 else slots
        self._most = most
        self._on_open = on_open
        self._on_failed = on_failed
        self._log = log
        self._taken = dict.fromkeys(queues, 0)  # what the broker was told last
        self._tellers: dict[str, asyncio.Task[None]] = {}
        self._logged = 0
        self.auto = None if fixed is not None else AutoWindow(slots)
        self.reasons = reasons

    def note(self, finished: Sequence[Delivery]) -> None:
        """Callbacks have ended."""
        if self.auto is not None and self.auto.note(finished):
            self._on_new_window()

    def note_running(self, seconds: float) -> None:
        """A callback has been running for so long."""
        if self.auto is not None and self.auto.note_running(seconds):
            self._on_new_window()

    async def settle_down(self, patience: float) -> None:
        """Wait until the broker has been told everything, for so many seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while tellers := list(self._tellers.values()):
                    await asyncio.wait(tellers)

    def close(self) -> None:
        """Tell the broker nothing any more."""
        for teller in self._tellers.values():
            teller.cancel()

    def window(self, queue: str) -> int:
        """What should be taken from a queue now."""
        if self.reasons:
            return 0
        capabilities = self._broker.capabilities(queue)
        if self.auto is None:
            assert self._fixed is not None
            window = self._fixed
        else:
            window = _ORDERED_WINDOW if capabilities.ordered else max(self._least, self.auto.window)
        return window if self._most is None else min(window, self._most)

    def reconcile(self) -> None:
        """Have the broker told what has changed."""
        for queue in self._queues:
            if queue not in self._tellers and self.window(queue) != self._taken[queue]:
                self._tellers[queue] = asyncio.create_task(self._tell(queue))

    async def _tell(self, queue: str) -> None:
        try:
            while (window := self.window(queue)) != self._taken[queue]:
                opened = window > self._taken[queue]
                self._taken[queue] = window
                await self._broker.take(queue, window)
                if opened:
                    self._on_open(queue, time.monotonic())
        except Exception as error:  # noqa: BLE001 - reported; nobody else would notice that nothing is consumed
            self._on_failed(error)
        finally:
            del self._tellers[queue]

    def _on_new_window(self) -> None:
        assert self.auto is not None
        window = self.auto.window
        if max(window, self._logged) >= _WORTH_A_LINE * max(1, min(window, self._logged)):
            self._log.info("worker.prefetch", prefetch_count=window, was=self._logged or None)
            self._logged = window
        self.reconcile()
