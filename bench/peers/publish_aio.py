"""aio-pika: publisher confirms, windows of many publishes that are awaited together."""

from __future__ import annotations

import asyncio
from itertools import islice

import aio_pika
from publish_run import Run

WINDOW = 200  # as many as workerkit has in flight


async def main() -> None:
    run = Run()
    connection = await aio_pika.connect(run.url)
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = channel.default_exchange

        def publish(number: int) -> asyncio.Future[object]:
            message = aio_pika.Message(
                run.body,
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=str(number),
            )
            return asyncio.ensure_future(exchange.publish(message, run.queue, mandatory=True))

        confirmed = 0
        numbers = run.numbers()
        while window := [publish(number) for number in islice(numbers, WINDOW)]:
            await asyncio.gather(*window)  # raises if one is not confirmed
            confirmed += len(window)
        run.report(confirmed)


if __name__ == "__main__":
    asyncio.run(main())
