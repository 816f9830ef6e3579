"""aio-pika, on uvloop: faster than on the loop of the standard library."""

from __future__ import annotations

import asyncio

import aio_pika
import uvloop
from common import PAUSE, PREFETCH, QUEUE, URL, count


async def on_message(message) -> None:
    if PAUSE:
        await asyncio.sleep(PAUSE)
    await message.ack()
    count()


async def main() -> None:
    connection = await aio_pika.connect_robust(URL)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    queue = await channel.get_queue(QUEUE)
    await queue.consume(on_message)
    await asyncio.Future()


uvloop.run(main())
