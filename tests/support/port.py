"""A worker's side of the broker port, for tests that drive an adapter through it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import structlog

from workerkit.brokers.rabbitmq.broker import RabbitmqBroker
from workerkit.ports import Broker, Delivery, Plan, Settled
from workerkit.settings.model import BrokerSettings, QueueSettings
from workerkit.settlement import ACKNOWLEDGE, Cause, Settlement
from workerkit.testing.rabbitmq import PrivateRabbitmq


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


class Case:
    """A RabbitMQ adapter, what it reported and what it logged."""

    def __init__(self, queues: dict[str, QueueSettings], url: str) -> None:
        self.events = Recorder()
        self.lines: list[dict[str, Any]] = []
        log: Any = structlog.wrap_logger(None, processors=[self._keep])
        self.broker = RabbitmqBroker(BrokerSettings(url=url), queues, {}, name="test", log=log)

    def _keep(self, _logger: object, _method: str, event: Any) -> Any:
        self.lines.append(dict(event))
        raise structlog.DropEvent

    def logged(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]


@contextlib.asynccontextmanager
async def started_rabbitmq(
    node: PrivateRabbitmq,
    *queues: str,
    delays: tuple[float, ...] = (0.2,),
    settings: QueueSettings | None = None,
    url: str = "",
    max_losses: int = 10,
) -> AsyncIterator[Case]:
    """Connected, with nothing taken yet; closed in order at the end."""
    case = Case(dict.fromkeys(queues, settings) if settings else {}, url or node.url)
    await case.broker.start(Plan("worker", queues, delays, max_losses), case.events)
    try:
        yield case
    finally:
        await case.broker.close(5.0)
    assert case.events.failed == []
