"""workerkit's publisher with confirms, under all of its interfaces: many publishes in flight."""

from __future__ import annotations

import asyncio

from publish_run import Run

from workerkit.brokers.rabbitmq.connection import connect
from workerkit.brokers.rabbitmq.publisher import ConfirmedPublisher
from workerkit.errors import PublishFailed
from workerkit.properties import Properties, encode
from workerkit.settings.model import BrokerSettings


async def main() -> None:
    run = Run()
    publisher = ConfirmedPublisher(lambda: connect(BrokerSettings(url=run.url), "bench"))
    await publisher.channel()
    confirmed = 0
    failures: list[PublishFailed] = []

    def ended(failure: PublishFailed | None) -> None:
        nonlocal confirmed
        if failure is None:
            confirmed += 1
        else:
            failures.append(failure)

    sent = 0
    for number in run.numbers():
        properties = encode(Properties(content_type="application/json", delivery_mode=2, message_id=str(number)))
        if not publisher.ready:
            await publisher.room()
        if failures:
            break
        publisher.submit("", run.queue, properties, run.body, ended)
        sent += 1
    while confirmed + len(failures) < sent:  # noqa: ASYNC110 - once, at the end
        await asyncio.sleep(0.001)
    run.report(confirmed)
    await publisher.close()
    if failures:
        raise failures[0]


if __name__ == "__main__":
    asyncio.run(main())
