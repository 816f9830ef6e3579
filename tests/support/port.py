"""A worker's side of the broker port, for tests that drive an adapter through it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from workerkit.ports import Broker, Delivery, Settled
from workerkit.settlement import ACKNOWLEDGE, Cause, Settlement


class Recorder:
    """Remembers what it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.settled: list[Settled] = []
        self.dropped: list[tuple[Delivery, str]] = []
        self.unpublished: list[tuple[Delivery, Cause]] = []
        self.lost: list[Any] = []
        self.failed: list[BaseException] = []
        self._changed = asyncio.Event()

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        self.deliveries += deliveries
        self._changed.set()

    def on_settled(self, settled: Sequence[Settled]) -> None:
        self.settled += settled
        self._changed.set()

    def on_dropped(self, deliveries: Sequence[Delivery], why: str) -> None:
        self.dropped += [(delivery, why) for delivery in deliveries]
        self._changed.set()

    def on_unpublished(self, delivery: Delivery, cause: Cause) -> None:
        self.unpublished.append((delivery, cause))
        self._changed.set()

    def on_lost(self, receipts: Collection[Any]) -> None:
        self.lost += receipts
        self._changed.set()

    def on_failed(self, error: BaseException) -> None:
        self.failed.append(error)
        self._changed.set()

    async def until(self, count: int, what: str = "deliveries", within: float = 10.0) -> list[Any]:
        """Wait until ``count`` of one kind have been reported; returns them."""
        found: list[Any] = getattr(self, what)
        try:
            async with asyncio.timeout(within):
                while len(found) < count:
                    assert not self.failed, self.failed
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{len(found)} of {count} {what} within {within:g} s: {self.__dict__}") from None
        return found

    async def only(self, count: int, what: str = "deliveries", for_: float = 0.5) -> None:
        """See that exactly so many are reported, and none more for some time."""
        await self.until(count, what)
        await asyncio.sleep(for_)
        found = getattr(self, what)
        assert len(found) == count, f"{len(found)} {what}, not {count}"


def settle(broker: Broker, deliveries: Sequence[Delivery], settlement: Settlement = ACKNOWLEDGE) -> None:
    """Settle all in the same way, in one batch."""
    broker.settle([(delivery, settlement) for delivery in deliveries])
