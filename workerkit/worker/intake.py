"""What may be taken now: the reasons not to, the windows, and one reconciler that tells the broker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from workerkit.ports import Broker, Delivery
from workerkit.worker.selection import Selector
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
        most: messages after which the worker ends, which no window exceeds.
        on_failed: called with an error of ours: what the broker hands out is then not known any more.
    """

    def __init__(
        self, broker: Broker, most: int | None, on_failed: Callable[[BaseException], None], log: FilteringBoundLogger
    ) -> None:
        self._broker = broker
        self._most = most
        self._on_failed = on_failed
        self._log = log
        self._selector: Selector | None = None
        self._fixed = 0
        self._least = 1
        self._taken: dict[str, int] = {}  # what the broker was told last, of each queue
        self._tellers: dict[str, asyncio.Task[None]] = {}
        self._logged = 0
        self.auto: AutoWindow | None = None
        self.reasons = {"starting"}
        """Why nothing is taken at present."""

    def open(self, queues: Collection[str], fixed: int | None, slots: int, selector: Selector | None = None) -> None:
        """Take from these queues, unless there is another reason not to.

        Args:
            queues: the sources.
            fixed: the window of each, or None to find one by ``AutoWindow``.
            slots: callbacks that can run at once.
            selector: told of each queue that begins to be consumed.
        """
        self._fixed = fixed or 0
        self.auto = AutoWindow(slots) if fixed is None else None
        # With several queues, each has something here to choose from though all that runs is of the same one.
        self._least = 2 * slots if len(queues) > 1 else slots
        self._selector = selector
        self._taken = dict.fromkeys(queues, 0)
        self.allow("starting")

    def refuse(self, reason: str) -> None:
        """Take nothing while there is this reason."""
        self.reasons.add(reason)
        self._reconcile()

    def allow(self, reason: str) -> None:
        """This reason is gone."""
        self.reasons.discard(reason)
        self._reconcile()

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
        if self.auto is None:
            window = self._fixed
        elif self._broker.capabilities(queue).ordered:
            window = _ORDERED_WINDOW
        else:
            window = max(self._least, self.auto.window)
        return window if self._most is None else min(window, self._most)

    def _reconcile(self) -> None:
        """Have the broker told what has changed."""
        for queue, taken in self._taken.items():
            if queue not in self._tellers and self.window(queue) != taken:
                self._tellers[queue] = asyncio.create_task(self._tell(queue))

    async def _tell(self, queue: str) -> None:
        try:
            while (window := self.window(queue)) != self._taken[queue]:
                opened = window > self._taken[queue]
                self._taken[queue] = window
                await self._broker.take(queue, window)
                if opened and self._selector is not None:
                    self._selector.on_open(queue, time.monotonic())
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
        self._reconcile()
