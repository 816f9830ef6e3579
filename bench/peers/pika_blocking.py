"""pika, BlockingConnection."""

from __future__ import annotations

import pika
from common import PREFETCH, QUEUE, URL, count


def on_message(channel, method, _properties, _body) -> None:
    channel.basic_ack(method.delivery_tag)
    count()


connection = pika.BlockingConnection(pika.URLParameters(URL))
channel = connection.channel()
channel.basic_qos(prefetch_count=PREFETCH)
channel.basic_consume(QUEUE, on_message)
channel.start_consuming()
