"""A worker's RabbitMQ: consumes one queue, settles what it delivers, and comes back after every loss."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pika

from workerkit.brokers.backoff import Backoff
from workerkit.brokers.rabbitmq.amqp import Channel, Connection
from workerkit.brokers.rabbitmq.declare import check, declare
from workerkit.brokers.rabbitmq.fastpath import missing_in_pika
from workerkit.brokers.rabbitmq.publisher import Publisher
from workerkit.brokers.rabbitmq.topology import Queue, dead_queue_name, derive, explicit_retry_queue, retry_queue
from workerkit.brokers.rabbitmq.unacked import Unacked
from workerkit.errors import AccessRefused, BrokerError, ConfigurationError, ConnectionFailed, ConnectionLost
from workerkit.settings.model import BrokerSettings, ExchangeSettings, QueueSettings
from workerkit.settlement import Cause, RetryLater
from workerkit.worker import copies
from workerkit.worker.ports import BrokerEvents, Delivery, Subscription

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

WATCH_INTERVAL = 5.0
"""Seconds between checks that the broker still has our consumer and serves it."""
_IDLE_STALL = 2
"""Checks in a row with messages ready, none of them ours, after which the subscription counts as dead."""
_REFUSED_DELAY = 30.0
"""Seconds between tries once a running worker is refused: a changed password must not look like an attack."""


async def connect(settings: BrokerSettings, name: str) -> Connection:
    """Connect to the first of the configured URLs that answers.

    Raises:
        ConnectionFailed: none did; each is named with its reason.
        AccessRefused: one refused.
    """
    urls = [settings.url] if isinstance(settings.url, str) else settings.url
    failures = []
    for url in urls:
        try:
            return await Connection.open(
                url, name=name, heartbeat=settings.heartbeat, attempt_timeout=settings.connection_timeout
            )
        except (ConnectionFailed, ConnectionLost) as error:
            failures.append(str(error))
    raise ConnectionFailed("; ".join(failures))


class RabbitmqBroker:
    """The broker port over RabbitMQ.

    1. Connects, declares, consumes, and checks that the consumer is registered; after any loss, again.
    2. Settles on the channel that delivered, or not at all.
    3. Publishes retries and dead letters over a second connection, and settles the original after their confirm.

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
        self._subscription: Subscription
        self._queue: QueueSettings
        self._events: BrokerEvents
        self._publisher = Publisher(self._connect_to_publish, wait_while_blocked=True)
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._number = 0  # of the channel incarnation; tags are only good on theirs
        self._tags = itertools.count(1)
        self._tag = ""
        self._unacked = Unacked()
        self._probe: Channel | None = None
        self._served = False
        self._used = False  # the present channel has had deliveries
        self._backlog = False  # more was sent to us lately than was read at once
        self._stalled_checks = 0
        self._native = False
        self._limited = False  # returns are limited by the broker, and nobody else counts them
        self._renewing: set[asyncio.Task[bool]] = set()
        self._paused = False
        self._lost: asyncio.Future[str]
        self._keeper: asyncio.Task[None] | None = None

    # ---- staying connected

    async def start(self, subscription: Subscription, events: BrokerEvents) -> None:
        """Connect, declare, consume; then stay consuming until ``close``. See the port for what it raises."""
        self._subscription = subscription
        self._queue = self._queues.get(subscription.queue, QueueSettings())
        self._events = events
        if missing := missing_in_pika():
            note = "everything goes through pika's documented methods, more slowly"
            self._log.warning("amqp.short_cuts_off", pika=pika.__version__, missing=missing, note=note)
        await self._consume_again(first=True)
        self._keeper = asyncio.create_task(self._keep_consuming())
        self._keeper.add_done_callback(self._report)

    async def _keep_consuming(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                why = await asyncio.wait_for(asyncio.shield(self._lost), WATCH_INTERVAL)
                started = time.monotonic()
                self._log.warning("conn.lost", why=why)
                if self._connection is not None:
                    await self._connection.close()
                await self._consume_again(first=False)
                self._log.info("conn.up", after_ms=round((time.monotonic() - started) * 1000))
                continue
            await self._watch()

    async def _consume_again(self, *, first: bool) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._open()
                return
            except (AccessRefused, ConfigurationError) as error:
                if first:
                    raise
                self._log.error("conn.refused", error=str(error), again_in=_REFUSED_DELAY)
                await asyncio.sleep(_REFUSED_DELAY)
            except BrokerError as error:
                delay = backoff.delay()
                self._log.warning("conn.failed", error=str(error), again_in=round(delay, 2))
                await asyncio.sleep(delay)
                backoff = backoff.next()

    async def _open(self) -> None:
        """One try at everything: connection, topology, channel, subscription. Closes what it opened when it fails."""
        connection = await connect(self._settings, f"workerkit {self._name} consume")
        try:
            # Decided anew for each connection, from the server that answered: never guessed from the arguments alone.
            self._native = connection.version.delays_retries and self._queue.delayed_retry is not None
            self._limited = connection.version.limits_deliveries and self._queue.type == "quorum" and not self._native
            topology = derive(
                self._subscription.queue,
                self._queue,
                self._exchanges,
                self._subscription.delays,
                native=self._native,
            )
            await (declare if self._queue.declare else check)(connection, topology)
            channel = await connection.channel()
            await channel.qos(self._subscription.prefetch_count)
            self._lost = asyncio.get_running_loop().create_future()
            self._connection, self._probe = connection, None
            self._adopt(channel)
            if not self._paused:
                await self._subscribe(channel)
                await self._watch()
            if self._lost.done():
                raise ConnectionLost(self._lost.result())
        except BaseException as error:
            # A stop may cancel this when messages are in flight already: they are settled first, `close` comes last.
            if not isinstance(error, asyncio.CancelledError) or self._connection is not connection:
                await connection.close()
            raise

    def _adopt(self, channel: Channel) -> None:
        """Make it the channel that consumes: the one incarnation whose tags can be settled."""
        self._number += 1
        self._unacked = Unacked()
        self._used = self._served = self._backlog = False
        self._stalled_checks = 0
        self._channel = channel
        channel.on_cancel(lambda: self._lose(channel, "the broker cancelled the consumer; was the queue deleted?"))
        channel.closed.add_done_callback(lambda closed: self._lose(channel, str(closed.result())))

    async def _subscribe(self, channel: Channel) -> None:
        number = self._number
        self._tag = f"{self._name}.{next(self._tags)}"
        try:
            await channel.consume(
                self._subscription.queue,
                self._tag,
                lambda batch: self._on_deliveries(channel, batch),
                incarnation=number,
            )
        except BrokerError as error:
            self._lose(channel, str(error))
            raise

    async def _watch(self) -> None:
        """See that we are served: a connection that looks healthy may have lost its subscription."""
        channel, connection = self._channel, self._connection
        if channel is None or connection is None:
            return
        if self._backlog:
            self._backlog = False
            return  # we are served, more than we can take; an answer would come behind all of that, too late
        try:
            if self._probe is None or not self._probe.is_open:
                self._probe = await connection.channel()
            state = await self._probe.check_queue(self._subscription.queue)
        except BrokerError as error:
            self._lose(channel, str(error))
            return
        idle = not self._served and not self._unacked
        self._served = False
        self._stalled_checks = self._stalled_checks + 1 if idle and state.messages_ready else 0
        if self._paused:
            return
        if state.consumers == 0:
            self._lose(channel, "the broker does not list our consumer")
        elif self._stalled_checks >= _IDLE_STALL and not self._queue.arguments.get("x-single-active-consumer"):
            self._lose(channel, f"{state.messages_ready} messages are ready and none is delivered")
        elif idle and self._used and connection.version.moves_consumers_silently:
            try:
                await self._refresh(connection, channel)
            except BrokerError as error:
                self._lose(self._channel or channel, str(error))

    async def _refresh(self, connection: Connection, channel: Channel) -> None:
        """Move to a new channel while nothing is in flight; the old one gives back what never reached us.

        Once after each time that there was work: only a channel that has had deliveries takes new ones for duplicates.
        """
        fresh = await connection.channel()
        await fresh.qos(self._subscription.prefetch_count)
        if self._channel is channel and not self._unacked and not self._paused:
            self._adopt(fresh)
            await self._subscribe(fresh)
            fresh = channel
        await fresh.close()

    def _lose(self, channel: Channel, why: str) -> None:
        """The channel is of no more use. Synchronous: from this moment on its settlements are dropped."""
        if self._channel is channel:
            self._channel = None
            self._events.on_channel_lost()
            self._lost.set_result(why)

    async def _connect_to_publish(self) -> Connection:
        connection = await connect(self._settings, f"workerkit {self._name} publish")
        connection.on_blocked = self._on_blocked
        return connection

    def _on_blocked(self, blocked: bool, reason: str) -> None:
        note = "retries and dead letters wait, acks do not"
        self._log.warning("conn.blocked", reason=reason, note=note) if blocked else self._log.info("conn.unblocked")

    # ---- taking messages

    def _on_deliveries(self, channel: Channel, deliveries: list[Delivery]) -> None:
        if self._channel is not channel:
            return
        self._served = self._used = True
        self._unacked.add(deliveries[-1].tag)
        copies.count_attempts(deliveries, native=self._native)
        if self._limited and (worn := [delivery for delivery in deliveries if copies.is_worn(delivery.raw_properties)]):
            deliveries = [delivery for delivery in deliveries if delivery not in worn]
            self._renew(worn)
        if deliveries:
            self._events.on_deliveries(deliveries)

    def _renew(self, worn: list[Delivery]) -> None:
        """Put messages back as copies before the broker's delivery limit drops them."""
        for delivery in worn:
            self._log.info("message.renewed", queue=delivery.queue, delivery_tag=delivery.tag, attempt=delivery.attempt)
            copy = self._copy_then_ack(delivery, Queue(delivery.queue), copies.renewed(delivery), declare_first=False)
            task = asyncio.create_task(copy)
            self._renewing.add(task)
            task.add_done_callback(self._renewing.discard)
            task.add_done_callback(self._report)

    def _report(self, task: asyncio.Task[Any]) -> None:
        """An error of ours must end the worker: nobody else would notice that it no longer consumes."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._events.on_failed(error)

    async def pause(self) -> None:
        """Cancel the subscription; what was delivered stays ours."""
        self._paused = True
        self.hold(False)  # the broker's answer comes behind all that it has sent
        tag, self._tag = self._tag, ""  # cancelling twice would wait for an answer that never comes
        if self._channel is not None and tag:
            with contextlib.suppress(BrokerError):
                await self._channel.cancel(tag)

    async def resume(self) -> None:
        """Subscribe again."""
        self._paused = False
        if self._channel is not None:
            with contextlib.suppress(BrokerError):
                await self._subscribe(self._channel)

    def hold(self, hold: bool) -> None:
        """See the port. Not in a pause: what is still sent to us then goes back at once."""
        if self._connection is not None and not (hold and self._paused):
            self._backlog = self._backlog or hold
            self._connection.hold(hold)

    # ---- settling

    def holds(self, delivery: Delivery) -> bool:
        """Whether the channel that delivered it is there."""
        return self._channel is not None and delivery.channel == self._number

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge; runs without a gap share one frame."""
        self._settle(deliveries, Channel.ack)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """basic.nack with requeue: does not count as a failure from RabbitMQ 4.3 on."""
        self._settle(deliveries, Channel.nack)

    def _give_back_blamed(self, delivery: Delivery) -> bool:
        """basic.reject with requeue: a failure that every version of quorum queues counts."""
        held = self.holds(delivery)
        self._settle([delivery], lambda channel, frames: channel.reject(frames[0][0]))
        return held

    def _settle(self, deliveries: Sequence[Delivery], send: Callable[[Channel, list[tuple[int, bool]]], None]) -> None:
        """Settle what the present channel delivered; the others are the broker's again."""
        channel, number = self._channel, self._number
        tags = [delivery.tag for delivery in deliveries if delivery.channel == number] if channel else []
        if len(tags) < len(deliveries):
            why = "the channel that delivered is gone"
            self._log.warning("settle.dropped", why=why, messages=len(deliveries) - len(tags))
        frames = self._unacked.settle(tags)
        if channel is None or not frames:
            return
        try:
            send(channel, frames)
        except BrokerError as error:
            self._log.warning("settle.dropped", why=str(error), messages=len(tags))

    async def retry(self, delivery: Delivery, later: RetryLater) -> bool:
        """Native delayed retry: one reject. Otherwise a confirmed copy to the retry queue, then an ack."""
        if self._native and not later.explicit:
            return self._give_back_blamed(delivery)
        declared = not self._native and later.delay in self._subscription.delays
        target = (retry_queue if declared else explicit_retry_queue)(delivery.queue, later.delay)
        copy = copies.retry_copy(delivery, later.attempt)
        return await self._copy_then_ack(delivery, target, copy, declare_first=not declared)

    async def dead_letter(self, delivery: Delivery, cause: Cause) -> bool:
        """A confirmed copy with the story to the dead-letter queue, then an ack."""
        target = Queue(dead_queue_name(delivery.queue))
        story = copies.dead_letter(delivery, cause, self._subscription.worker)
        return await self._copy_then_ack(delivery, target, story, declare_first=False)

    async def _copy_then_ack(
        self, delivery: Delivery, target: Queue, properties: bytes, *, declare_first: bool
    ) -> bool:
        """Publish until the broker has the copy, holding the original; only then acknowledge it."""
        backoff = Backoff(0.2, 5.0)
        try:
            while self.holds(delivery):
                try:
                    if declare_first:
                        channel = await self._publisher.channel()
                        await channel.declare_queue(target.name, target.arguments)
                    await self._publisher.publish("", target.name, properties, delivery.body)
                    break
                except BrokerError as error:
                    delay = backoff.delay()
                    self._log.error("publish.failed", to=target.name, error=str(error), again_in=round(delay, 2))
                    await asyncio.sleep(delay)
                    backoff = backoff.next()
        except asyncio.CancelledError:
            self._give_back_blamed(delivery)
            raise
        held = self.holds(delivery)
        self.ack([delivery])
        return held

    async def close(self) -> None:
        """Stop reconnecting, flush, close both connections in order."""
        if self._keeper is not None:
            for task in (self._keeper, *self._renewing):
                task.cancel()
            await asyncio.wait({self._keeper, *self._renewing})
        self._channel = None
        await asyncio.gather(self._publisher.close(), *(c.close() for c in (self._connection,) if c is not None))
