"""Taskiq over aio-pika. Run as a program, it publishes one task with the argument that stands on its standard input."""

from __future__ import annotations

import asyncio
import json
import sys

from common import PAUSE, PREFETCH, QUEUE, URL, count
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

options = {"qos": PREFETCH} if PREFETCH else {}
broker = AioPikaBroker(URL, exchange=Exchange("taskiq"), task_queues=[Queue(name=QUEUE, declare=False)], **options)


@broker.task("noop")
async def noop(_payload: dict) -> None:
    if PAUSE:
        await asyncio.sleep(PAUSE)
    count()


async def publish_one() -> None:
    await broker.startup()
    queue = await broker.write_channel.get_queue(QUEUE)
    await queue.bind("taskiq", QUEUE)
    await noop.kiq(json.load(sys.stdin))
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(publish_one())
