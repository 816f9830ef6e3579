"""kombu over py-amqp: with ``confirm_publish`` each publish waits for its confirm."""

from __future__ import annotations

from typing import NoReturn

import kombu
from publish_run import Run


def main() -> None:
    run = Run()
    with kombu.Connection(run.url, transport_options={"confirm_publish": True}) as connection:
        producer = kombu.Producer(connection, on_return=_returned)
        connection.ensure_connection()
        confirmed = 0
        for number in run.numbers():
            producer.publish(
                run.body,
                exchange="",
                routing_key=run.queue,
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                message_id=str(number),
                mandatory=True,
            )
            confirmed += 1
        run.report(confirmed)


def _returned(*reason: object) -> NoReturn:
    raise RuntimeError(f"a message was returned: {reason[:2]}")


if __name__ == "__main__":
    main()
