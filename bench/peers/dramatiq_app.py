"""Dramatiq. Run as a program, it publishes one message with the argument that stands on its standard input."""

from __future__ import annotations

import json
import sys

import dramatiq
from common import QUEUE, URL, count
from dramatiq.brokers.rabbitmq import RabbitmqBroker


class Broker(RabbitmqBroker):
    """Dramatiq has no option for quorum queues; this one takes the queue as it stands on the broker."""

    def _declare_queue(self, queue_name):
        return self.channel.queue_declare(queue_name, passive=True)


dramatiq.set_broker(Broker(url=URL))


@dramatiq.actor(queue_name=QUEUE)
def noop(_payload) -> None:
    count()


if __name__ == "__main__":
    noop.send(json.load(sys.stdin))
