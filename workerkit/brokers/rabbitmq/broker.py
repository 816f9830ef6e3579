"""A worker's RabbitMQ: the broker port over one connection that consumes and one that publishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pika

from workerkit.brokers.rabbitmq.background import Background
from workerkit.brokers.rabbitmq.connection import ConsumerConnection, connect
from workerkit.brokers.rabbitmq.fastpath import Settling, missing_in_pika
from workerkit.brokers.rabbitmq.redelivery import Redelivery, at_once
from workerkit.brokers.rabbitmq.subscription import Incarnation, Subscription
from workerkit.errors import BrokerError
from workerkit.ports import BrokerEvents, Capabilities, Delivery, Plan, Settled
from workerkit.settings.model import BrokerSettings, ExchangeSettings, QueueSettings
from workerkit.settlement import ACKNOWLEDGE, MAX_DELAY

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_CLOSING_SHARE = 0.5
"""Of the patience at the end: kept for closing, while copies wait for their confirmation."""


class RabbitmqBroker:
    """Fills ``workerkit.ports.Broker``.

    1. Consumes each source on a channel of its own; a source that is lost comes back by itself.
    2. Settles on the channel that delivered, or not at all.
    3. Publishes what a settlement needs over a second connection, and settles the original after the confirm.

    Args:
        settings: where the broker is.
        queues: configured queues; a queue that is not among them has the defaults.
        exchanges: configured exchanges.
        name: of this worker instance, for connection names and consumer tags.
        log: connection and settlement troubles.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        queues: Mapping[str, QueueSettings],
        exchanges: Mapping[str, ExchangeSettings],
        *,
        name: str,
        log: FilteringBoundLogger,
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._exchanges = exchanges
        self._name = name
        self._log = log
        self._events: BrokerEvents
        self._sources: dict[str, Subscription] = {}
        self._connection: ConsumerConnection
        self._redelivery: Redelivery

    async def start(self, plan: Plan, events: BrokerEvents) -> None:
        """See the port."""
        if missing := missing_in_pika():
            note = "everything goes through pika's documented methods, more slowly"
            self._log.warning("amqp.short_cuts_off", pika=pika.__version__, missing=missing, note=note)
        self._events = events
        background = Background(events.on_failed)
        self._sources = {
            queue: Subscription(
                queue,
                self._queues.get(queue, QueueSettings()),
                self._exchanges,
                plan.delays,
                name=self._name,
                background=background,
                log=self._log,
                on_deliveries=self._on_deliveries,
                on_lost=events.on_lost,
            )
            for queue in plan.queues
        }
        self._redelivery = Redelivery(
            plan,
            self._sources,
            lambda: connect(self._settings, f"workerkit {self._name} publish"),
            events,
            self._log,
        )
        sources = list(self._sources.values())
        self._connection = ConsumerConnection(
            self._settings, f"workerkit {self._name} consume", sources, background, self._log
        )
        await self._connection.start()

    def capabilities(self, queue: str) -> Capabilities:
        """See the port."""
        traits = self._sources[queue].traits
        return Capabilities(MAX_DELAY, ordered=traits.ordered, counts_losses=traits.counts_losses or traits.native)

    async def take(self, queue: str, window: int) -> None:
        """See the port."""
        await self._connection.take(self._sources[queue], window)

    async def wanted_elsewhere(self, queue: str) -> bool:
        """See the port."""
        return await self._sources[queue].wanted_elsewhere()

    def hold(self, hold: bool) -> None:
        """See the port."""
        self._connection.hold(hold)

    def _on_deliveries(self, incarnation: Incarnation, deliveries: list[Delivery]) -> None:
        deliveries = self._redelivery.receive(incarnation.source.traits, deliveries)
        if deliveries:
            self._events.on_deliveries(deliveries)

    def settle(self, batch: Sequence[Settled]) -> None:
        """See the port. Nearly all that is settled are acknowledgements of one source, in one write."""
        if not batch:
            return
        receipt = batch[0][0].receipt
        done = [delivery for delivery, settlement in batch if settlement is ACKNOWLEDGE and delivery.receipt is receipt]
        if len(done) == len(batch):
            self._settle(receipt, Settling.ACK, done, batch)
            return
        groups: dict[tuple[Incarnation, Settling], list[Settled]] = {}
        for delivery, settlement in batch:
            if ended := at_once(delivery, settlement):
                how, told = ended
                groups.setdefault((delivery.receipt, how), []).append((delivery, told))
            elif delivery.receipt.lost:
                self._events.on_dropped([delivery], "the channel that delivered is gone")
            else:
                self._redelivery.settle(delivery, settlement)
        for (incarnation, how), settled in groups.items():
            self._settle(incarnation, how, [delivery for delivery, _ in settled], settled)

    def _settle(
        self, incarnation: Incarnation, how: Settling, deliveries: list[Delivery], settled: Sequence[Settled]
    ) -> None:
        try:
            incarnation.settle(how, deliveries)
        except BrokerError as error:
            self._events.on_dropped(deliveries, str(error))
        else:
            self._events.on_settled(settled)

    async def close(self, patience: float) -> None:
        """See the port."""
        if not self._sources:
            return
        deadline = time.monotonic() + patience
        await self._redelivery.finish(patience * (1 - _CLOSING_SHARE))
        await asyncio.gather(self._redelivery.close(), self._connection.close(deadline))
