"""pika, SelectConnection."""

from __future__ import annotations

import pika
from common import PREFETCH, QUEUE, URL, count


def on_message(channel, method, _properties, _body) -> None:
    channel.basic_ack(method.delivery_tag)
    count()


def on_connection(connection) -> None:
    connection.channel(on_open_callback=on_channel)


def on_channel(channel) -> None:
    channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _ok: channel.basic_consume(QUEUE, on_message))


pika.SelectConnection(pika.URLParameters(URL), on_open_callback=on_connection).ioloop.start()
