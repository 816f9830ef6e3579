"""A worker as people write it with pika: BlockingConnection, prefetch 1, and a handler for SIGTERM."""

from __future__ import annotations

import os
import signal

import pika
from idle_ledger import note


def on_message(channel, method, _properties, _body) -> None:
    note()
    channel.basic_ack(method.delivery_tag)


connection = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_URL"]))
channel = connection.channel()
channel.basic_qos(prefetch_count=1)
channel.basic_consume(os.environ["BENCH_QUEUE"], on_message)
signal.signal(signal.SIGTERM, lambda *_: connection.add_callback_threadsafe(channel.stop_consuming))
channel.start_consuming()
connection.close()
