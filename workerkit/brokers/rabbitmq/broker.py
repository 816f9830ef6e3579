"""A worker's RabbitMQ: the broker port over one connection that consumes and one that publishes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pika

from workerkit.brokers.backoff import Backoff
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.background import Background
from workerkit.brokers.rabbitmq.connection import connect
from workerkit.brokers.rabbitmq.fastpath import Settling, missing_in_pika
from workerkit.brokers.rabbitmq.redelivery import Redelivery, at_once
from workerkit.brokers.rabbitmq.subscription import REFUSED_DELAY, Incarnation, Subscription
from workerkit.errors import AccessRefused, BrokerError, ConfigurationError
from workerkit.ports import BrokerEvents, Capabilities, Delivery, Plan, Settled
from workerkit.settings.model import BrokerSettings, ExchangeSettings, QueueSettings
from workerkit.settlement import ACKNOWLEDGE, MAX_DELAY

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

WATCH_INTERVAL = 5.0
"""Seconds between two checks that the broker still has our consumers and serves them."""
_CHECKS = 10
"""Sources that are checked in one go; of more, each has its turn later."""
_RESTORE_TIMEOUT = 5.0
"""Seconds for which a connection waits for its sources before it counts as up; one that is in trouble goes on alone."""
_CLOSING_SHARE = 0.5
"""Of the patience at the end: kept for closing, while copies wait for their confirmation."""


class RabbitmqBroker:
    """Fills ``workerkit.ports.Broker``.

    1. Consumes each source on a channel of its own; a source that is lost comes back by itself.
    2. Settles on the channel that delivered, or not at all.
    3. Publishes what a settlement needs over a second connection, and settles the original after the confirm.

    Args:
        queues: configured queues; a queue that is not among them has the defaults.
        name: of this worker instance, for connection names and consumer tags.
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
        self._redelivery: Redelivery
        self._background: Background
        self._sources: dict[str, Subscription] = {}
        self._connection: Connection | None = None
        self._backlog = False  # more was sent to us lately than was read at once
        self._asking = 0  # how many wait for an answer, which comes behind all that was sent before

    async def start(self, plan: Plan, events: BrokerEvents) -> None:
        """See the port."""
        if missing := missing_in_pika():
            note = "everything goes through pika's documented methods, more slowly"
            self._log.warning("amqp.short_cuts_off", pika=pika.__version__, missing=missing, note=note)
        self._events = events
        self._background = Background(events.on_failed)
        self._sources = {
            queue: Subscription(
                queue,
                self._queues.get(queue, QueueSettings()),
                self._exchanges,
                plan.delays,
                name=self._name,
                background=self._background,
                log=self._log,
                on_deliveries=self._on_deliveries,
                on_lost=events.on_lost,
            )
            for queue in plan.queues
        }
        self._redelivery = Redelivery(
            plan, self._sources, lambda: connect(self._settings, f"workerkit {self._name} publish"), events, self._log
        )
        await self._open(first=True)
        self._background.start(self._keep())
        self._background.start(self._watch())

    # ---- staying connected

    async def _keep(self) -> None:
        while True:
            assert self._connection is not None
            reason = await asyncio.shield(self._connection.closed)
            started = time.monotonic()
            self._log.warning("conn.lost", why=str(reason))
            await self._open(first=False)
            self._log.info("conn.up", after_ms=round((time.monotonic() - started) * 1000))

    async def _open(self, *, first: bool) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._try(first=first)
                return
            except (AccessRefused, ConfigurationError) as error:
                if first:
                    raise
                delay = REFUSED_DELAY
                self._log.error("conn.refused", error=str(error), again_in=delay)
            except BrokerError as error:
                delay = backoff.delay()
                self._log.warning("conn.failed", error=str(error), again_in=round(delay, 2))
                backoff = backoff.next()
            await asyncio.sleep(delay)

    async def _try(self, *, first: bool) -> None:
        """One try: the connection and, at the start, all sources. Later each source finds its own way back."""
        connection = await connect(self._settings, f"workerkit {self._name} consume")
        if not first:
            self._connection = connection
            restoring = [source.restore(connection) for source in self._sources.values()]
            await asyncio.wait(restoring, timeout=_RESTORE_TIMEOUT)
            if not connection.is_open:
                raise connection.closed.result()
            return
        try:
            for source in self._sources.values():
                await source.open(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection

    async def _watch(self) -> None:
        turns = itertools.cycle(self._sources.values())
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            if self._backlog:
                self._backlog = False
                continue  # we are served, more than we can take; an answer would come behind all of that, too late
            for source in itertools.islice(turns, min(_CHECKS, len(self._sources))):
                await source.check()

    # ---- taking messages

    def capabilities(self, queue: str) -> Capabilities:
        """See the port."""
        traits = self._sources[queue].traits
        return Capabilities(MAX_DELAY, ordered=traits.ordered, counts_losses=traits.counts_losses or traits.native)

    async def take(self, queue: str, window: int) -> None:
        """See the port. Nothing is held back that the broker's answers come behind."""
        self._asking += 1
        self.hold(False)
        try:
            await self._sources[queue].take(window)
        finally:
            self._asking -= 1

    async def wanted_elsewhere(self, queue: str) -> bool:
        """See the port."""
        return await self._sources[queue].wanted_elsewhere()

    def hold(self, hold: bool) -> None:
        """See the port. While an answer of the broker is awaited there is no holding."""
        if self._connection is not None and not (hold and self._asking):
            self._backlog = self._backlog or hold
            self._connection.hold(hold)

    def _on_deliveries(self, incarnation: Incarnation, deliveries: list[Delivery]) -> None:
        deliveries = self._redelivery.receive(incarnation.source.traits, deliveries)
        if deliveries:
            self._events.on_deliveries(deliveries)

    # ---- settling

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

    # ---- the end

    async def close(self, patience: float) -> None:
        """See the port."""
        if not self._sources:
            return
        deadline = time.monotonic() + patience
        await self._redelivery.finish(patience * (1 - _CLOSING_SHARE))
        await asyncio.gather(self._redelivery.close(), self._close(deadline))

    async def _close(self, deadline: float) -> None:
        """Close every source, then the connection, each in order if that can be done until ``deadline`` (monotonic)."""
        self._asking += 1
        self.hold(False)
        await self._background.finish(0)
        await asyncio.gather(*(source.close(deadline) for source in self._sources.values()))
        if self._connection is not None:
            await self._connection.close(max(0.0, deadline - time.monotonic()))
