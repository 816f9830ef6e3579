"""Dramatiq. Run as a program, it publishes one message with the argument that stands on its standard input."""

from __future__ import annotations

import json
import sys

import dramatiq
from common import PREFETCH, QUEUE, URL, count, count_in_thread
from dramatiq.brokers.rabbitmq import RabbitmqBroker


class Broker(RabbitmqBroker):
    """Dramatiq has no option for quorum queues; this one takes the queue as it stands on the broker."""

    def _declare_queue(self, queue_name):
        return self.channel.queue_declare(queue_name, passive=True)


dramatiq.set_broker(Broker(url=URL))


counting = count if PREFETCH else count_in_thread  # one thread, or as many as there are by default


@dramatiq.actor(queue_name=QUEUE)
def noop(_payload) -> None:
    counting()


if __name__ == "__main__":
    noop.send(json.load(sys.stdin))
