"""workerkit's ``Publisher``, driven as ``workerkit publish --lines`` drives it: many publishes in flight."""

from __future__ import annotations

import asyncio
from functools import partial

from publish_run import Run

from workerkit.brokers.rabbitmq.broker import connect
from workerkit.brokers.rabbitmq.bulk import WIDTH
from workerkit.brokers.rabbitmq.pipeline import Pipeline
from workerkit.brokers.rabbitmq.publisher import Publisher
from workerkit.properties import Properties, encode
from workerkit.settings.model import BrokerSettings


async def main() -> None:
    run = Run()
    publisher = Publisher(lambda: connect(BrokerSettings(url=run.url), "bench"))
    await publisher.channel()
    pipeline = Pipeline(WIDTH)
    for number in run.numbers():
        properties = encode(Properties(content_type="application/json", delivery_mode=2, message_id=str(number)))
        if not await pipeline.submit(number, partial(publisher.publish, "", run.queue, properties, run.body)):
            break
    await pipeline.drain()
    run.report(pipeline.done)
    await publisher.close()
    if pipeline.failure is not None:
        raise pipeline.failure.error


if __name__ == "__main__":
    asyncio.run(main())
