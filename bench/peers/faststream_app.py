"""FastStream over RabbitMQ, on uvloop, as its own command line has it where uvloop is installed."""

from __future__ import annotations

import asyncio

import uvloop
from common import PAUSE, PREFETCH, QUEUE, URL, count
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

broker = RabbitBroker(URL, default_channel=Channel(prefetch_count=PREFETCH or None), logger=None)

if PREFETCH:

    @broker.subscriber(RabbitQueue(QUEUE, declare=False), ack_policy=AckPolicy.MANUAL)
    async def noop(message: RabbitMessage) -> None:
        if PAUSE:
            await asyncio.sleep(PAUSE)
        await message.ack()
        count()

else:

    @broker.subscriber(RabbitQueue(QUEUE, declare=False))
    async def noop(message: RabbitMessage) -> None:  # noqa: ARG001 - it is acknowledged for the callback
        count()


uvloop.run(FastStream(broker, logger=None).run())
