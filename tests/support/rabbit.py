"""A direct look at the broker, through pika and past workerkit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Self

import pika
import pika.exceptions

from workerkit.brokers.rabbitmq.amqp import RawProperties
from workerkit.properties import Properties, encode


class Rabbit:
    """A blocking connection with confirms, for publishing to and looking at queues."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def publish(self, queue: str, *bodies: Any, exchange: str = "", **properties: Any) -> None:
        """Publish JSON bodies (bytes go as they are), persistent and confirmed, each with its text as message id."""
        for body in bodies:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            given = {"message_id": raw.decode("utf-8", "replace")[:200], "delivery_mode": 2, **properties}
            # pika cannot encode a float header; other clients can, and do.
            floats = any(isinstance(value, float) for value in given.get("headers", {}).values())
            encoded = RawProperties(encode(Properties(**given))) if floats else pika.BasicProperties(**given)
            self._channel.basic_publish(exchange, queue, raw, encoded, mandatory=True)

    def publish_many(self, queue: str, *bodies: Any) -> None:
        """As ``publish``, but each is sent before those ahead of it are confirmed."""
        unconfirmed = set(range(1, len(bodies) + 1))
        refused: list[object] = []

        def on_confirm(frame: pika.frame.Method) -> None:
            last = frame.method.delivery_tag
            unconfirmed.difference_update([n for n in unconfirmed if n <= last] if frame.method.multiple else [last])
            if isinstance(frame.method, pika.spec.Basic.Nack):
                refused.append(frame.method)

        channel = self._connection.channel()
        channel.add_on_return_callback(lambda *returned: refused.append(returned))
        channel._impl.confirm_delivery(on_confirm)  # what the blocking channel itself offers waits for each by itself
        for body in bodies:
            raw = json.dumps(body).encode()
            properties = pika.BasicProperties(message_id=raw.decode()[:200], delivery_mode=2)
            channel.basic_publish("", queue, raw, properties, mandatory=True)
        while unconfirmed:
            self._connection.process_data_events(time_limit=1)
        assert not refused, refused
        channel.close()

    def declare(self, queue: str, **arguments: Any) -> None:
        given = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        self._channel.queue_declare(queue, durable=True, arguments=given)

    def delete(self, *queues: str) -> None:
        for queue in queues:
            self._channel.queue_delete(queue)

    def ready(self, queue: str) -> int:
        return int(self._channel.queue_declare(queue, passive=True).method.message_count)

    def consumers(self, queue: str) -> int:
        """How many consume it; none while it does not exist."""
        if self._channel.is_closed:
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        try:
            return self._consumers(queue)
        except pika.exceptions.ChannelClosedByBroker:
            return 0

    def _consumers(self, queue: str) -> int:
        return int(self._channel.queue_declare(queue, passive=True).method.consumer_count)

    def take_all(self, queue: str) -> list[tuple[bytes, pika.BasicProperties]]:
        """Take every ready message."""
        taken = []
        while True:
            method, properties, body = self._channel.basic_get(queue, auto_ack=True)
            if method is None:
                return taken
            taken.append((body, properties))

    def hold(self, queue: str) -> None:
        """Take one message and keep it unacknowledged until the connection ends."""
        method, _, _ = self._channel.basic_get(queue)
        assert method is not None

    def dead(self, queue: str) -> list[tuple[Any, dict[str, Any]]]:
        """Take the dead letters of a queue: bodies and headers."""
        return [(json.loads(body), properties.headers) for body, properties in self.take_all(f"{queue}.dead")]


def ids(count: int, prefix: str = "m") -> Iterable[str]:
    """Message bodies m0000, m0001, …"""
    return (f"{prefix}{number:05d}" for number in range(count))
