"""pika BlockingConnection: ``confirm_delivery`` makes each publish wait for its confirm."""

from __future__ import annotations

import pika
from publish_run import Run


def main() -> None:
    run = Run()
    connection = pika.BlockingConnection(pika.URLParameters(run.url))
    channel = connection.channel()
    channel.confirm_delivery()
    confirmed = 0
    for number in run.numbers():
        properties = pika.BasicProperties("application/json", delivery_mode=2, message_id=str(number))
        channel.basic_publish("", run.queue, run.body, properties, mandatory=True)  # raises if it is not confirmed
        confirmed += 1
    run.report(confirmed)
    connection.close()


if __name__ == "__main__":
    main()
