"""The publishing port over RabbitMQ."""

from __future__ import annotations

from functools import partial

import pika

from workerkit.brokers.ended import Ended
from workerkit.brokers.rabbitmq.admin import connect_for
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.delays import Delays
from workerkit.brokers.rabbitmq.publisher import ConfirmedPublisher
from workerkit.errors import PublishFailed, QueueNotFound, Unroutable
from workerkit.outgoing import Outgoing
from workerkit.settings.model import BrokerSettings, Settings


def check_url(url: str) -> None:
    """Whether a connection can be tried. Raises ValueError, whose text shows nothing of the URL or its password."""
    try:
        pika.URLParameters(url)
    except Exception:  # noqa: BLE001 - pika evaluates options of the URL
        raise ValueError(
            "the broker's URL cannot be read: write amqp://user:password@host:5672/vhost, special characters as %XX"
        ) from None


class RabbitmqPublishing:
    """One connection with confirms, for the loop it is made on.

    Args:
        broker: where RabbitMQ is.
        settings: which queue delays messages for how long; None when that is not known.
        timeout: seconds the broker gets for one message.
    """

    def __init__(self, broker: BrokerSettings, settings: Settings | None, timeout: float) -> None:
        self._broker = broker
        self._publisher = ConfirmedPublisher(self._connect, timeout=timeout)
        self._delays = Delays(settings, self._publisher.connection)

    @property
    def blocked_by(self) -> str:
        return self._publisher.blocked_by

    def ready(self, message: Outgoing) -> bool:
        return self._publisher.ready and (
            message.delay is None or self._delays.ready(message.routing_key, message.delay)
        )

    async def room(self, message: Outgoing) -> None:
        if message.delay is not None:
            try:
                await self._delays.prepare(message.routing_key, message.delay)
            except QueueNotFound as error:
                raise Unroutable(str(error)) from None
        await self._publisher.room()

    def submit(self, message: Outgoing, ended: Ended) -> None:
        key = message.routing_key
        if message.delay is not None:
            key = self._delays.name(key, message.delay)
            ended = partial(self._delayed, ended)
        self._publisher.submit(message.exchange, key, message.raw_properties, message.body, ended)

    async def close(self) -> None:
        await self._publisher.close()

    async def _connect(self) -> Connection:
        self._delays.forget()  # it may be another broker, or one that has lost its queues
        return await connect_for(self._broker, "publisher")

    def _delayed(self, ended: Ended, error: PublishFailed | None) -> None:
        if isinstance(error, Unroutable):
            self._delays.forget()
        ended(error)
