"""A worker reduced to its seam: it takes what a broker delivers, settles what a test says, and notes all it is told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from workerkit.ports import Broker, Delivery, Plan, Settled
from workerkit.settlement import ACKNOWLEDGE, Cause, Settlement

PATIENCE = 20.0
"""Seconds after which something that a test waits for will not come any more."""


class Peer:
    """Fills ``BrokerEvents`` for one broker.

    Whatever a test is about, this holds for every one: each settlement is answered, once, and nothing else is; what
    arrives in one call is of one source.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.arrived: list[Delivery] = []
        """Everything that was ever delivered."""
        self.arrival: dict[int, float] = {}
        """When, by the deliveries' ids, on the monotonic clock."""
        self.settled: list[Settled] = []
        self.dropped: list[Delivery] = []
        self.unpublished: list[tuple[Delivery, Cause]] = []
        self.lost: list[Delivery] = []
        """What was lost while it was unsettled."""
        self.queues: tuple[str, ...] = ()
        self.closed = False
        self._read = 0
        self._handed_in: Counter[int] = Counter()
        self._open: dict[int, Delivery] = {}
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    async def start(
        self,
        *queues: str,
        delays: tuple[float, ...] = (0.2, 0.4),
        max_losses: int = 10,
        max_attempts: int = 5,
        window: int = 0,
    ) -> None:
        """Start the broker; take ``window`` messages of each queue."""
        self.queues = queues
        await self.broker.start(Plan("peer", queues, delays, max_losses, max_attempts), self)
        for queue in queues if window else ():
            await self.broker.take(queue, window)

    @property
    def unsettled(self) -> list[Delivery]:
        """What it has and has not settled."""
        return list(self._open.values())

    # ---- told by the broker

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        assert len({delivery.queue for delivery in deliveries}) == 1
        for delivery in deliveries:
            self.arrival[id(delivery)] = time.monotonic()
            self._open[id(delivery)] = delivery
        self.arrived += deliveries
        self._changed.set()

    def on_settled(self, settled: Sequence[Settled]) -> None:
        for delivery, _ in settled:
            self._answered(delivery)
        self.settled += settled

    def on_dropped(self, deliveries: Sequence[Delivery], why: str) -> None:
        assert why
        for delivery in deliveries:
            self._answered(delivery)
        self.dropped += deliveries

    def on_unpublished(self, delivery: Delivery, cause: Cause) -> None:
        self._answered(delivery)
        self._open[id(delivery)] = delivery
        self.unpublished.append((delivery, cause))

    def on_lost(self, receipts: Collection[Any]) -> None:
        lost = [delivery for delivery in self._open.values() if delivery.receipt in receipts]
        for delivery in lost:
            del self._open[id(delivery)]
        self.lost += lost
        self._changed.set()

    def on_failed(self, error: BaseException) -> None:
        self._failure = error
        self._changed.set()

    def _answered(self, delivery: Delivery) -> None:
        if self._handed_in[id(delivery)] != 1:
            self._failure = AssertionError(f"an answer for what was not handed in, or the second one: {delivery}")
        self._handed_in[id(delivery)] -= 1
        self._changed.set()

    # ---- told by a test

    def settle(self, settlement: Settlement, *deliveries: Delivery) -> None:
        """Settle all of these in the same way, in one call."""
        for delivery in deliveries:
            self._handed_in[id(delivery)] += 1
            self._open.pop(id(delivery), None)
        self.broker.settle([(delivery, settlement) for delivery in deliveries])

    def ack(self, *deliveries: Delivery) -> None:
        self.settle(ACKNOWLEDGE, *deliveries)

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until something is so; it is looked at after each event."""
        async with asyncio.timeout(PATIENCE):
            try:
                while not condition():
                    assert self._failure is None, self._failure
                    self._changed.clear()
                    await self._changed.wait()
            except TimeoutError:
                raise AssertionError(f"not within {PATIENCE:g} s: {what}; {self}") from None

    async def delivered(self, count: int) -> list[Delivery]:
        """The next ``count`` deliveries, waiting for them."""
        start = self._read
        self._read += count
        await self.until(lambda: len(self.arrived) >= self._read, f"{count} deliveries")
        return self.arrived[start : self._read]

    async def has(self, body: bytes) -> Delivery:
        """The next delivery, which must have this body."""
        (delivery,) = await self.delivered(1)
        assert delivery.body == body
        return delivery

    async def gets_nothing_more(self, within: float = 0.4) -> None:
        """See that no delivery beyond those that were read comes."""
        await asyncio.sleep(within)
        assert self._failure is None, self._failure
        assert [delivery.body for delivery in self.arrived[self._read :]] == []

    async def answers(self) -> None:
        """Wait until every settlement has its answer."""
        await self.until(lambda: not any(self._handed_in.values()), "an answer for each settlement")

    async def close(self, patience: float = 5.0) -> None:
        """Close the broker; then each settlement has its answer."""
        if not self.closed:
            self.closed = True
            await self.broker.close(patience)

    def check(self) -> None:
        """See that nothing went wrong, for the end of a test."""
        assert self._failure is None, self._failure
        unanswered = sum(self._handed_in.values())
        assert unanswered == 0, f"{unanswered} settlements have no answer: {self}"

    def __repr__(self) -> str:
        told = ("arrived", "settled", "dropped", "unpublished", "lost")
        return "told: " + ", ".join(f"{len(getattr(self, name))} {name}" for name in told)


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]
