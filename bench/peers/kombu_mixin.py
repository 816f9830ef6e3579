"""kombu, ConsumerMixin. ``on_message`` gets the body as it is; ``callbacks`` would decode it first."""

from __future__ import annotations

from common import PREFETCH, QUEUE, URL, count
from kombu import Connection, Queue
from kombu.mixins import ConsumerMixin


class Consumer(ConsumerMixin):
    def __init__(self, connection) -> None:
        self.connection = connection

    def get_consumers(self, Consumer, _channel):  # noqa: N803 - its own signature
        queue = Queue(QUEUE, no_declare=True)
        return [Consumer([queue], on_message=self.on_message, prefetch_count=PREFETCH)]

    def on_message(self, message) -> None:
        message.ack()
        count()


with Connection(URL) as connection:
    Consumer(connection).run()
