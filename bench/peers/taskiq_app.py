"""Taskiq over aio-pika. Run as a program, it publishes one task with the argument that stands on its standard input."""

from __future__ import annotations

import asyncio
import json
import sys

from common import PREFETCH, QUEUE, URL, count
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

broker = AioPikaBroker(URL, qos=PREFETCH, exchange=Exchange("taskiq"), task_queues=[Queue(name=QUEUE, declare=False)])


@broker.task("noop")
async def noop(_payload: dict) -> None:
    count()


async def publish_one() -> None:
    await broker.startup()
    queue = await broker.write_channel.get_queue(QUEUE)
    await queue.bind("taskiq", QUEUE)
    await noop.kiq(json.load(sys.stdin))
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(publish_one())
