"""What brings a message back or keeps it: by the queue itself, or by a copy that is confirmed before the original goes.

Until the broker has the copy, the original is unacknowledged: it may be there twice for a moment, and is never nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from workerkit import headers
from workerkit.brokers.backoff import Backoff
from workerkit.brokers.rabbitmq.amqp import Channel, Connection
from workerkit.brokers.rabbitmq.background import Background
from workerkit.brokers.rabbitmq.errors import PreconditionFailed
from workerkit.brokers.rabbitmq.fastpath import Settling
from workerkit.brokers.rabbitmq.publisher import ConfirmedPublisher
from workerkit.brokers.rabbitmq.subscription import Subscription, id_of
from workerkit.brokers.rabbitmq.topology import (
    EXPLICIT_RETRY_GRACE,
    explicit_retry_queue,
    nearest_declared,
    retry_queue_name,
)
from workerkit.brokers.rabbitmq.versions import QueueTraits
from workerkit.brokers.rabbitmq.wire import PROPERTIES_LIMIT, is_not_for_copies, returns_of
from workerkit.envelope import attempt_of, dead_letter, dead_queue_name, released_copy, retry_copy
from workerkit.errors import AccessRefused, BrokerError, ConnectionLost, PublishFailed, QueueNotFound, Unconfirmed
from workerkit.outgoing import Outgoing
from workerkit.ports import BrokerEvents, Delivery, Plan
from workerkit.properties import header_number
from workerkit.settlement import HAND_BACK, Acknowledge, Cause, DeadLetter, Reason, Release, RetryLater, Settlement

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_NOT_BY_WORKERS = 1_000
"""Returns that no worker has had a part in: each would have seen the number before and acted on it.

RabbitMQ 3.10.8 moves the consumers of a deleted queue to the new one of its name, takes what that delivers for
duplicates, and hands it out to nobody again and again: 40,000 times in ten seconds, each of them counted.
"""
RENEW_AFTER = 10
"""Returns after which a message is put back as a copy.

From RabbitMQ 4.0 on quorum queues drop a message after 20 returns, without a trace where no dead-letter exchange is
set. A release counts as one before 4.3, a lost connection always: restarts must not add up to a lost message.
"""
_DECLARE_AGAIN = EXPLICIT_RETRY_GRACE / 4
"""Seconds. A queue for one delay expires when it is not declared for longer than its grace."""
_ATTEMPT = headers.ATTEMPT.encode()

T = TypeVar("T")
Ended = tuple[Settling, Settlement]
"""By which method the original is settled, and what the worker is told of it."""


def at_once(delivery: Delivery, settlement: Settlement) -> Ended | None:
    """How this is settled without a copy; None when it takes one."""
    traits: QueueTraits = delivery.receipt.source.traits
    if isinstance(settlement, Acknowledge) and not settlement.publish:
        return Settling.ACK, settlement
    if isinstance(settlement, Release) and not settlement.delay:
        # The first return of a message is not counted as a loss, so that nearly all can go back as they are.
        counts = traits.counts_losses and traits.counts_hand_backs and delivery.redelivered
        return None if counts and returns_of(delivery.raw_properties) else (Settling.NACK, settlement)
    if isinstance(settlement, RetryLater) and traits.native and not (settlement.explicit or settlement.alone):
        return Settling.REJECT, _natively(settlement, delivery)
    return None


def _natively(later: RetryLater, delivery: Delivery) -> RetryLater:
    """With the delay that the queue will really make: one step longer for each failure."""
    policy = delivery.receipt.source.settings.delayed_retry
    assert policy is not None
    return replace(later, delay=min(policy.min * (returns_of(delivery.raw_properties) + 1), float(policy.max)))


def _losses_of(delivery: Delivery, traits: QueueTraits) -> int:
    """How often the message has lost its whole worker, as far as this queue tells."""
    if not traits.counts_losses:
        return 0
    returns = returns_of(delivery.raw_properties)
    if returns > _NOT_BY_WORKERS:
        returns = 0
    elif traits.counts_hand_backs:
        returns = max(0, returns - 1)
    return header_number(delivery.raw_properties, headers.LOSSES) + returns


class Redelivery:
    """Copies for retries, releases, renewals and dead letters, and what is published with an acknowledgement.

    Args:
        connect: opens the connection to publish on.
        events: told how each settlement ended.
        log: for what could not be published, or not as it was asked for.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Mapping[str, Subscription],
        connect: Callable[[], Awaitable[Connection]],
        events: BrokerEvents,
        log: FilteringBoundLogger,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._open_connection = connect
        self._events = events
        self._log = log
        self._publisher = ConfirmedPublisher(self._connect, wait_while_blocked=True)
        self._known: dict[str, float] = {}  # until when we believe that a queue or an exchange is there
        self._refused: set[str] = set()  # queues for one delay that cannot be made, which we have said
        self._background = Background(events.on_failed)

    # ---- what arrives

    def receive(self, traits: QueueTraits, deliveries: list[Delivery]) -> list[Delivery]:
        """Say of each which attempt it is, and take care of those that must not be worked on.

        Nearly all are first attempts that nobody has had before, and they must cost next to nothing. With native
        retry there are no copies: there the queue's own count of failures is added. It is not used elsewhere, since
        other versions count every return.
        """
        if traits.native:
            for delivery in deliveries:
                delivery.attempt = attempt_of(delivery.raw_properties) + returns_of(delivery.raw_properties)
            came_back = [delivery for delivery in deliveries if delivery.attempt > self._plan.max_attempts]
        else:
            for delivery in deliveries:
                if _ATTEMPT in delivery.raw_properties:
                    delivery.attempt = attempt_of(delivery.raw_properties)
            counted = traits.counts_losses or traits.limited
            came_back = [delivery for delivery in deliveries if delivery.redelivered] if counted else []
        replaced = {delivery.tag for delivery in came_back if self._replace(delivery, traits)}
        return [delivery for delivery in deliveries if delivery.tag not in replaced] if replaced else deliveries

    def _replace(self, delivery: Delivery, traits: QueueTraits) -> bool:
        """Put a copy in place of a message that has come back too often. False: it has not."""
        # A message that fails its last attempt does not come back: what comes after it has lost its worker.
        losses = delivery.attempt - self._plan.max_attempts if traits.native else _losses_of(delivery, traits)
        about = {"queue": delivery.queue, "message_id": id_of(delivery), "attempt": delivery.attempt, "losses": losses}
        copy: Settlement
        if losses > self._plan.max_losses:
            self._log.error("message.lost_too_often", **about)
            why = f"its worker was lost {losses} times while it had this message"
            copy = DeadLetter(Cause(Reason.LOST, why))
        elif traits.limited and returns_of(delivery.raw_properties) >= RENEW_AFTER:
            self._log.info("message.renewed", **about)
            copy = HAND_BACK
        else:
            return False
        self._background.start(self._settle(delivery, copy, seen=False))
        return True

    # ---- settling

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Begin to settle what cannot be settled at once; the events tell how it ends."""
        self._background.start(self._settle(delivery, settlement, seen=True))

    async def _settle(self, delivery: Delivery, settlement: Settlement, *, seen: bool) -> None:
        """``seen``: the worker has had it, and is told how it ends."""
        try:
            ended = await self._copy(delivery, settlement)
            if isinstance(ended, Cause):
                self._events.on_unpublished(delivery, ended)
                return
            how, settlement = ended
            delivery.receipt.settle(how, [delivery])
        except BrokerError as error:
            if seen:
                self._events.on_dropped([delivery], str(error))
        except asyncio.CancelledError:
            blamed = seen and isinstance(settlement, RetryLater | DeadLetter)
            with contextlib.suppress(BrokerError):
                delivery.receipt.settle(Settling.REJECT if blamed else Settling.NACK, [delivery])
            if seen:
                self._events.on_dropped([delivery], "given back, as no confirmation came before the end")
            raise
        else:
            if seen:
                self._events.on_settled([(delivery, settlement)])

    async def _copy(self, delivery: Delivery, settlement: Settlement) -> Ended | Cause:
        """Publish until the broker has it. Raises BrokerError: the original is not ours any more."""
        if isinstance(settlement, Acknowledge):
            return await self._publish_all(delivery, settlement) or (Settling.ACK, settlement)
        drop, limit = is_not_for_copies, PROPERTIES_LIMIT
        losses = _losses_of(delivery, delivery.receipt.source.traits)
        if isinstance(settlement, DeadLetter):
            properties = dead_letter(delivery, settlement.cause, self._plan.worker, drop=drop, limit=limit)
        elif isinstance(settlement, RetryLater):
            properties = retry_copy(delivery, settlement, losses=losses, drop=drop, limit=limit)
        else:
            release = settlement if settlement.delay else HAND_BACK
            properties = released_copy(delivery, release, losses=losses, drop=drop, limit=limit)
        return await self._persist(delivery, partial(self._publish_copy, delivery, settlement, properties))

    async def _publish_copy(
        self, delivery: Delivery, settlement: RetryLater | Release | DeadLetter, properties: bytes
    ) -> Ended:
        """Publish to where it belongs. Where there is nowhere to wait but the queue itself, the original goes back."""
        target = delivery.queue
        if isinstance(settlement, DeadLetter):
            target = dead_queue_name(target)
        elif isinstance(settlement, RetryLater) or settlement.delay:
            waiting = await self._waiting_queue(target, settlement.delay)
            if waiting is None and isinstance(settlement, Release):
                return Settling.NACK, replace(settlement, delay=0.0)
            if waiting is None and isinstance(settlement, RetryLater) and not settlement.alone:
                return Settling.REJECT, _natively(settlement, delivery)
            target, delay = waiting or (target, 0.0)
            settlement = replace(settlement, delay=delay)
        await self._publisher.publish("", target, properties, delivery.body)
        return Settling.ACK, settlement

    async def _persist(
        self, delivery: Delivery, publish: Callable[[], Awaitable[T]], *, give_up_refused: bool = False
    ) -> T:
        """Try until it works, for as long as the original is ours. Raises BrokerError: it is not, or it was refused."""
        backoff = Backoff(0.2, 5.0)
        while not delivery.receipt.lost:
            try:
                return await publish()
            except BrokerError as error:
                if give_up_refused and _is_refusal(error):
                    raise
                self._known.clear()
                delay = backoff.delay()
                self._log.error("publish.failed", queue=delivery.queue, error=str(error), again_in=round(delay, 2))
                await asyncio.sleep(delay)
                backoff = backoff.next()
        raise ConnectionLost("the channel that delivered is gone")

    # ---- what is published with an acknowledgement

    async def _publish_all(self, delivery: Delivery, settlement: Acknowledge) -> Cause | None:
        """Publish all; why the broker did not take one of them, or None. Raises BrokerError: the original is gone."""
        publishing = [
            self._persist(delivery, partial(self._publish, message), give_up_refused=True)
            for message in settlement.publish
        ]
        errors = [result for result in await asyncio.gather(*publishing, return_exceptions=True) if result is not None]
        for error in errors:
            if _is_refusal(error):
                name = "Unroutable" if isinstance(error, QueueNotFound) else type(error).__name__
                return Cause(Reason.EXCEPTION, str(error), exception=f"workerkit.{name}")
        if errors:
            raise errors[0]
        return None

    async def _publish(self, message: Outgoing) -> None:
        exchange, key = message.exchange, message.routing_key
        if message.delay:  # then there is no exchange
            await self._check(key, partial(Channel.check_queue, name=key))
            waiting = await self._waiting_queue(key, message.delay)
            if waiting is None:
                raise PublishFailed(f"there is no queue to wait in for {key!r}, and the user may not declare one")
            key, _ = waiting
        elif exchange:  # a publish to one that is missing would close the channel that others use
            await self._check(f"exchange {exchange}", partial(Channel.check_exchange, name=exchange))
        await self._publisher.publish(exchange, key, message.raw_properties, message.body)

    # ---- queues to wait in

    async def _waiting_queue(self, queue: str, delay: float) -> tuple[str, float] | None:
        """The queue in which a message waits before it comes to ``queue``, and for how many seconds.

        That is one of the policy's when the delay is; else one is declared for this delay. Where that is not allowed,
        it is the policy's with the nearest delay, if there is any.
        """
        source = self._sources.get(queue)
        declared = () if source is None or source.traits.native else self._plan.delays
        if delay in declared:
            return retry_queue_name(queue, delay), delay
        wanted = explicit_retry_queue(queue, delay)
        nearest = nearest_declared(declared, delay) if declared else None
        if wanted.name not in self._refused and (source is None or source.settings.declare):
            ask = partial(Channel.declare_queue, name=wanted.name, arguments=wanted.arguments)
            with contextlib.suppress(AccessRefused, PreconditionFailed):
                await self._check(wanted.name, ask)
                return wanted.name, delay
        if wanted.name not in self._refused:  # others may have asked at the same time
            self._refused.add(wanted.name)
            why = "the user may not declare a queue for this delay"
            self._log.warning("retry.delay_changed", queue=queue, wanted=delay, used=nearest, why=why)
        return None if nearest is None else (retry_queue_name(queue, nearest), nearest)

    async def _check(self, name: str, ask: Callable[[Channel], Awaitable[object]]) -> None:
        """Ask the broker for something, if that is not known to be there."""

        async def ask_if_unknown(channel: Channel) -> None:
            now = time.monotonic()
            if now >= self._known.get(name, 0.0):
                await ask(channel)
                self._known[name] = now + _DECLARE_AGAIN

        await (await self._publisher.connection()).ask(ask_if_unknown)

    async def _connect(self) -> Connection:
        connection = await self._open_connection()
        connection.on_blocked = self._on_blocked
        return connection

    def _on_blocked(self, blocked: bool, reason: str) -> None:
        note = "retries and dead letters wait, acks do not"
        self._log.warning("conn.blocked", reason=reason, note=note) if blocked else self._log.info("conn.unblocked")

    # ---- the end

    async def finish(self, patience: float) -> None:
        """Wait for what is not confirmed, for at most ``patience`` seconds, and give the rest back."""
        await self._background.finish(patience)

    async def close(self) -> None:
        """Close the connection to publish on."""
        await self._publisher.close()


def _is_refusal(error: BaseException) -> bool:
    """Whether the broker will not take this message: publishing it again would end the same way."""
    return isinstance(error, QueueNotFound) or (isinstance(error, PublishFailed) and not isinstance(error, Unconfirmed))
