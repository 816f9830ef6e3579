"""FastStream over RabbitMQ, on uvloop, as its own command line has it where uvloop is installed."""

from __future__ import annotations

import uvloop
from common import PREFETCH, QUEUE, URL, count
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

broker = RabbitBroker(URL, default_channel=Channel(prefetch_count=PREFETCH), logger=None)


@broker.subscriber(RabbitQueue(QUEUE, declare=False), ack_policy=AckPolicy.MANUAL)
async def noop(message: RabbitMessage) -> None:
    await message.ack()
    count()


uvloop.run(FastStream(broker, logger=None).run())
