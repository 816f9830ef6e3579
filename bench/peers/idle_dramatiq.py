"""Dramatiq. Run as a program, it publishes as many messages as its argument says."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from idle_ledger import note

dramatiq.set_broker(RabbitmqBroker(url=os.environ["BENCH_URL"]))


@dramatiq.actor(queue_name=os.environ["BENCH_QUEUE"])
def noting() -> None:
    note()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        noting.send()
