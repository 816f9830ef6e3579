"""py-amqp."""

from __future__ import annotations

import amqp
from common import PORT, PREFETCH, QUEUE, count


def on_message(message) -> None:
    message.channel.basic_ack(message.delivery_tag)
    count()


with amqp.Connection(f"127.0.0.1:{PORT}") as connection:
    channel = connection.channel()
    channel.basic_qos(0, PREFETCH, False)
    channel.basic_consume(QUEUE, callback=on_message)
    while True:
        connection.drain_events()
