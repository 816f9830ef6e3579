"""The stream behind ``publish --lines``: in order, and over at the first failure."""

from typing import Any

from support.loops import on_a_loop

from workerkit.brokers.rabbitmq.stream import Stream
from workerkit.errors import ConnectionLost, PublishRefused, Unroutable


class Publisher:
    """Takes what it is given, and answers when a test says so."""

    def __init__(self) -> None:
        self.ready = True
        self.ended: list[Any] = []

    async def room(self) -> None:
        raise ConnectionLost("the broker is gone")

    def submit(self, _exchange: str, _key: str, _properties: bytes, _body: bytes, ended: Any) -> None:
        self.ended.append(ended)


async def send(stream: Stream, *numbers: int) -> list[bool]:
    return [await stream.send(number, "q", b"\0\0", b"") for number in numbers]


@on_a_loop
async def test_nothing_is_sent_after_a_failure() -> None:
    """What the broker refused once is not hammered on: those after it are not even tried."""
    publisher = Publisher()
    stream = Stream(publisher)  # type: ignore[arg-type]
    assert await send(stream, 7, 8) == [True, True]
    publisher.ended[0](PublishRefused("full"))
    assert await send(stream, 9) == [False]
    assert len(publisher.ended) == 2
    publisher.ended[1](None)
    assert (stream.confirmed, stream.failure.number, stream.failure.before) == (1, 7, 0)


@on_a_loop
async def test_the_failure_that_counts_is_the_earliest() -> None:
    """Several fail, in any order: the rest is published again from the first of them on."""
    publisher = Publisher()
    stream = Stream(publisher)  # type: ignore[arg-type]
    await send(stream, 10, 20, 30)
    publisher.ready = False
    assert await send(stream, 40) == [False]
    publisher.ended[2](Unroutable("second"))
    publisher.ended[1](Unroutable("first"))
    publisher.ended[0](None)
    assert (stream.failure.number, stream.failure.before, str(stream.failure.error)) == (20, 1, "first")
