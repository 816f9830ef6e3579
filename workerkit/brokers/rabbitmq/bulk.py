"""Publishing to one queue from the command line: one message or a stream of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from workerkit.brokers.rabbitmq.admin import queue_state, session
from workerkit.brokers.rabbitmq.amqp import Channel, Connection
from workerkit.brokers.rabbitmq.delays import Delays
from workerkit.brokers.rabbitmq.errors import PreconditionFailed
from workerkit.brokers.rabbitmq.publisher import ConfirmedPublisher
from workerkit.brokers.rabbitmq.stream import Failure, Stream
from workerkit.errors import BadData, QueueNotFound
from workerkit.settings.model import Settings

_TELL_INTERVAL = 0.1


class Line(NamedTuple):
    """A message to publish, and the line of the input that it is."""

    number: int
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
    messages: AsyncIterator[Iterable[Line]],
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

        async def reuse() -> Connection:
            return connection

        publisher = ConfirmedPublisher(reuse)
        channel = await publisher.channel()
        target = _Target(settings, queue, delay, publisher)
        await target.prepare()
        stream = Stream(publisher)
        telling = _Telling(stream, on_confirmed)
        interrupted = False
        try:
            async for batch in messages:
                if not await _send(stream, batch, target):
                    break
        except asyncio.CancelledError:
            interrupted = True
        finally:
            await publisher.drain()
            telling.end()
        failure = stream.failure and await _explained(stream.failure, connection, channel, (queue, target.name))
        return Published(stream.confirmed, failure, interrupted)


async def _send(stream: Stream, batch: Iterable[Line], target: _Target) -> bool:
    """False: one has failed, and no more will be published."""
    for number, properties, body in batch:
        if target.stale:
            await target.prepare()
        if not await stream.send(number, target.name, properties, body):
            return False
    return stream.failure is None


class _Target:
    """The queue that messages are published to: the one meant, or the one in which they wait for it."""

    def __init__(self, settings: Settings, queue: str, delay: float | None, publisher: ConfirmedPublisher) -> None:
        self.name = queue
        self._queue = queue
        self._delay = delay
        self._publisher = publisher
        self._delays = Delays(settings)

    @property
    def stale(self) -> bool:
        """Whether it has to be prepared first, or again."""
        return self._delay is not None and self._delays.name(self._queue, self._delay) is None

    async def prepare(self) -> None:
        if self._delay is not None:
            await self._delays.prepare(self._queue, self._delay, self._publisher.connection)
            self.name = self._delays.name(self._queue, self._delay) or self.name


class _Telling:
    """Says some times a second how many messages have been confirmed since the last time."""

    def __init__(self, stream: Stream, on_confirmed: Callable[[int], None]) -> None:
        self._stream = stream
        self._on_confirmed = on_confirmed
        self._told = 0
        self._task = asyncio.create_task(self._keep_telling())

    def end(self) -> None:
        self._task.cancel()
        self._tell()

    def _tell(self) -> None:
        self._on_confirmed(self._stream.confirmed - self._told)
        self._told = self._stream.confirmed

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(_TELL_INTERVAL)
            self._tell()


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
