"""Taskiq over aio-pika. Run as a program, it publishes as many tasks as its argument says."""

from __future__ import annotations

import asyncio
import os
import sys

from idle_ledger import note
from taskiq_aio_pika import AioPikaBroker, Queue

broker = AioPikaBroker(os.environ["BENCH_URL"], qos=1, task_queues=[Queue(name=os.environ["BENCH_QUEUE"])])


@broker.task("noting")
async def noting() -> None:
    note()


async def publish(count: int) -> None:
    await broker.startup()
    for _ in range(count):
        await noting.kiq()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(publish(int(sys.argv[1])))
