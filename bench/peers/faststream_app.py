"""FastStream over RabbitMQ. A handler that asks for the message alone has the body left as it is."""

from __future__ import annotations

import asyncio

from common import PREFETCH, QUEUE, URL, count
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

broker = RabbitBroker(URL, default_channel=Channel(prefetch_count=PREFETCH), logger=None)


@broker.subscriber(RabbitQueue(QUEUE, declare=False), ack_policy=AckPolicy.MANUAL)
async def noop(message: RabbitMessage) -> None:
    await message.ack()
    count()


asyncio.run(FastStream(broker, logger=None).run())
