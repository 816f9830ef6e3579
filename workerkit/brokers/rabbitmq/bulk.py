"""Publishing to one queue from the command line: one message or a stream of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from workerkit.brokers.rabbitmq.admin import queue_state, session, topology_of
from workerkit.brokers.rabbitmq.amqp import Channel, Connection
from workerkit.brokers.rabbitmq.errors import PreconditionFailed
from workerkit.brokers.rabbitmq.pipeline import Failure
from workerkit.brokers.rabbitmq.publisher import Publisher
from workerkit.brokers.rabbitmq.topology import EXPLICIT_RETRY_GRACE, Queue, explicit_retry_queue, retry_queue_name
from workerkit.errors import BadData, BrokerError, ConfigurationError, QueueNotFound
from workerkit.settings.model import QueueSettings, Settings

_DECLARE_AGAIN = EXPLICIT_RETRY_GRACE / 4
"""Seconds. A queue for one delay expires when it is not declared for longer than its grace; a stream may be slow."""
_TELL_INTERVAL = 0.1


class Outgoing(NamedTuple):
    """A message to publish."""

    number: int
    """The line of the input that it is."""
    properties: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Published:
    """How far it went."""

    confirmed: int
    failure: Failure | None
    """The first message that the broker does not have. Later ones may be confirmed: many are in flight at once."""
    interrupted: bool


async def publish_all(
    settings: Settings,
    queue: str,
    delay: float | None,
    messages: AsyncIterator[Iterable[Outgoing]],
    *,
    on_confirmed: Callable[[int], None],
    on_blocked: Callable[[str], None],
) -> Published:
    """Publish, each message mandatory and confirmed, up to the first failure or until the task is cancelled.

    Args:
        settings: where the broker is, and what waits where.
        queue: must exist, also when the messages come to it later.
        delay: seconds until they do; None for at once.
        messages: in batches as they are there, taken as fast as the broker confirms.
        on_confirmed: called some times a second, with how many have been confirmed since the last time.
        on_blocked: called with the reason when the broker stops reading from publishers.

    Raises:
        QueueNotFound: there is no such queue; nothing was published.
        BrokerError: the broker is away, or refuses us.
    """
    async with session(settings.broker, "publish") as connection:
        connection.on_blocked = lambda blocked, reason: on_blocked(reason) if blocked else None
        await queue_state(connection, queue)
        route = _Route(settings, connection, queue, delay)

        async def reuse() -> Connection:
            return connection

        publisher = Publisher(reuse)
        channel = await publisher.channel()
        stream = _Stream(publisher, route, on_confirmed)
        telling = asyncio.create_task(stream.keep_telling())
        interrupted = False
        try:
            async for batch in messages:
                if not await stream.send(batch):
                    break
        except asyncio.CancelledError:
            interrupted = True
        finally:
            await publisher.drain()
            telling.cancel()
        stream.tell()
        failure = stream.failure and await _explained(stream.failure, connection, channel, (queue, route.name))
        return Published(stream.confirmed, failure, interrupted)


class _Stream:
    """Messages on their way to one queue, in order, and none after the first that failed."""

    def __init__(self, publisher: Publisher, route: _Route, on_confirmed: Callable[[int], None]) -> None:
        self.confirmed = 0
        self.failure: Failure | None = None
        self._submitted = 0
        self._told = 0
        self._publisher = publisher
        self._route = route
        self._on_confirmed = on_confirmed

    async def send(self, batch: Iterable[Outgoing]) -> bool:
        """Publish as there is room. False: one has failed, and no more will be published."""
        publisher = self._publisher
        await self._route.prepare(publisher)
        for number, properties, body in batch:
            ended = partial(self._ended, number, self._submitted)
            try:
                if not publisher.ready:
                    await publisher.room()
                    await self._route.prepare(publisher)
                if self.failure is not None:
                    return False
                publisher.submit("", self._route.name, properties, body, ended)
            except BrokerError as error:
                ended(error)
                return False
            self._submitted += 1
        return self.failure is None

    def _ended(self, number: int, before: int, error: BrokerError | None) -> None:
        if error is None:
            self.confirmed += 1
        elif self.failure is None or before < self.failure.before:
            self.failure = Failure(number, before, error)

    def tell(self) -> None:
        self._on_confirmed(self.confirmed - self._told)
        self._told = self.confirmed

    async def keep_telling(self) -> None:
        while True:
            await asyncio.sleep(_TELL_INTERVAL)
            self.tell()


class _Route:
    """The queue that messages are published to: the one meant, or the one in which they wait for it."""

    def __init__(self, settings: Settings, connection: Connection, queue: str, delay: float | None) -> None:
        self.name = queue
        self._waiting: Queue | None = None
        self._declared = float("-inf")
        if delay is None:
            return
        policy = topology_of(settings, queue, connection.version).retries
        name = retry_queue_name(queue, delay)
        self._waiting = next((retry for retry in policy if retry.name == name), explicit_retry_queue(queue, delay))
        self.name = self._waiting.name
        if self.name == name and not settings.queues.get(queue, QueueSettings()).declare:
            self._waiting = None  # somebody with the permission has declared it, or publishing says that it is missing

    async def prepare(self, publisher: Publisher) -> None:
        """Declare the waiting queue, at first and then often enough to keep it."""
        if self._waiting is None or time.monotonic() - self._declared < _DECLARE_AGAIN:
            return
        channel = await publisher.channel()
        try:
            await channel.declare_queue(self._waiting.name, self._waiting.arguments)
        except PreconditionFailed as error:
            raise ConfigurationError(f"queue {self.name!r}, which delays messages, exists already: {error}") from None
        self._declared = time.monotonic()


async def _explained(failure: Failure, connection: Connection, channel: Channel, queues: tuple[str, str]) -> Failure:
    """The failure with its real cause, where a publish can only say that the message did not arrive."""
    error = failure.error
    closed = channel.closed.result() if channel.closed.done() else None
    if isinstance(closed, PreconditionFailed):  # the message itself is not acceptable, too big for example
        error = BadData(f"RabbitMQ refused the message: {closed}")
    elif connection.is_open:
        try:
            for queue in queues:
                await queue_state(connection, queue)
        except QueueNotFound as missing:
            error = missing
    return Failure(failure.number, failure.before, error)
