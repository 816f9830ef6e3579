"""Celery. Run as a program, it publishes as many tasks as its argument says."""

from __future__ import annotations

import os
import sys

from celery import Celery
from idle_ledger import note

app = Celery("bench", broker=os.environ["BENCH_URL"])
app.conf.update(
    task_default_queue=os.environ["BENCH_QUEUE"],
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)


@app.task(name="noting")
def noting() -> None:
    note()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        noting.delay()
