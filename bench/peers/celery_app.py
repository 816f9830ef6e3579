"""Celery. Run as a program, it publishes one task with the argument that stands on its standard input."""

from __future__ import annotations

import json
import os
import sys

from celery import Celery
from common import PREFETCH, QUEUE, QUEUE_TYPE, URL, count
from kombu import Exchange, Queue

app = Celery("bench", broker=URL)
app.conf.update(
    task_queues=[Queue(QUEUE, Exchange(""), QUEUE, queue_arguments={"x-queue-type": QUEUE_TYPE})],
    task_default_queue=QUEUE,
    task_default_exchange="",
    task_default_routing_key=QUEUE,
)
if PREFETCH:
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=max(1, PREFETCH // int(os.environ.get("BENCH_PROCESSES", "1"))),
        worker_enable_remote_control=False,
        broker_heartbeat=0,
    )


@app.task(name="noop")
def noop(_payload) -> None:
    count()


if __name__ == "__main__":
    noop.delay(json.load(sys.stdin))
