"""What becomes of a message whose connection is lost, whose time is over, or whose neighbour failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
from support.loops import on_a_loop

from workerkit.errors import (
    AccessRefused,
    BrokerError,
    ConnectionFailed,
    ConnectionLost,
    PublishFailed,
    PublishRefused,
    PublishTimeout,
    Unconfirmed,
    Unroutable,
)
from workerkit.outgoing import Outgoing, compose
from workerkit.publishing.sender import Run, Sender


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing here could set an event
        await asyncio.sleep(0.001)


async def has_sent(adapter: Adapter, count: int) -> None:
    await until(lambda: len(adapter.sent) >= count)


class Adapter:
    """A broker that does what a test says."""

    def __init__(self) -> None:
        self.blocked_by = ""
        self.open = True
        self.open_for: tuple[bytes, ...] = ()
        self.faults: list[BrokerError] = []
        self.sent: list[tuple[Outgoing, Any]] = []
        self.closed = False

    def ready(self, message: Outgoing) -> bool:
        return self.open or message.body in self.open_for

    async def room(self, message: Outgoing) -> None:
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop(0)
        await until(lambda: self.open)

    def submit(self, message: Outgoing, ended: Any) -> None:
        self.sent.append((message, ended))

    async def close(self) -> None:
        self.closed = True

    async def answer(self, *errors: PublishFailed | None) -> None:
        """End the oldest messages that are open, as soon as they are there."""
        for error in errors:
            await has_sent(self, 1)
            self.sent.pop(0)[1](error)
        await asyncio.sleep(0)

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message, _ in self.sent]


def message(data: Any) -> Outgoing:
    return compose("q", data)


async def batches(*groups: Iterable[int]) -> AsyncIterator[list[Outgoing]]:
    for group in groups:
        yield [message(number) for number in group]


@on_a_loop
async def test_a_message_whose_connection_was_lost_is_sent_again_as_it_was() -> None:
    """With its id, so that a repeat can be recognised; the connection is opened as often as it takes."""
    adapter = Adapter()
    sender = Sender(adapter, timeout=10)
    publishing = asyncio.create_task(sender.publish(message(1)))
    await has_sent(adapter, 1)
    first = adapter.sent[0][0]
    adapter.open, adapter.faults = False, [ConnectionFailed("nobody answers"), ConnectionLost("gone again")]
    await adapter.answer(Unconfirmed("lost"))
    adapter.open = True
    await has_sent(adapter, 1)
    assert adapter.sent[0][0] is first
    await adapter.answer(None)
    await publishing


@pytest.mark.parametrize(
    "error", [Unroutable("no queue"), PublishRefused("full"), PublishTimeout("late"), PublishFailed("a long name")]
)
@on_a_loop
async def test_what_another_try_does_not_mend_is_raised_at_once(error: PublishFailed) -> None:
    """The broker has answered."""
    adapter = Adapter()
    publishing = asyncio.create_task(Sender(adapter, timeout=10).publish(message(1)))
    await adapter.answer(error)
    with pytest.raises(type(error)):
        await publishing
    assert not adapter.sent


@on_a_loop
async def test_who_is_refused_does_not_try_again() -> None:
    """A wrong password stays wrong."""
    adapter = Adapter()
    adapter.open, adapter.faults = False, [AccessRefused("wrong password")]
    with pytest.raises(AccessRefused):
        await Sender(adapter, timeout=10).publish(message(1))


@on_a_loop
async def test_a_message_that_could_not_be_sent_in_time_never_is() -> None:
    """The text says so, and why; the one that was sent may be there, and its text says that."""
    adapter = Adapter()
    sender = Sender(adapter, timeout=0.2)
    adapter.open, adapter.faults = False, [ConnectionFailed("nobody answers")]
    with pytest.raises(PublishTimeout, match=r"could not be sent within 0\.2 s: nobody answers"):
        await sender.publish(message(1))
    adapter.open = True
    await asyncio.sleep(0.05)
    assert not adapter.sent
    adapter.blocked_by = "low on memory"
    expected = r"no confirm within 0\.2 s, as the broker blocks publishers \(low on memory\).*; the message may have"
    with pytest.raises(PublishTimeout, match=expected):
        await sender.publish(message(2))


@on_a_loop
async def test_no_more_than_a_window_is_dealt_with_at_once() -> None:
    """The others wait in line, and each is woken when it is its turn."""
    adapter = Adapter()
    sender = Sender(adapter, timeout=10)
    publishing = [asyncio.create_task(sender.publish(message(number))) for number in range(1500)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(adapter.sent) == 1000
    for expected in range(1500):
        await has_sent(adapter, 1)
        assert adapter.bodies[0] == b"%d" % expected
        await adapter.answer(None)
    await asyncio.gather(*publishing)


@on_a_loop
async def test_of_many_the_earliest_that_failed_is_raised_when_all_have_ended() -> None:
    """A later one may fail first; nothing is read after the first failure that is known."""
    adapter = Adapter()

    async def endless() -> AsyncIterator[list[Outgoing]]:
        for start in range(0, 1000, 5):
            yield [message(number) for number in range(start, start + 5)]
            await asyncio.sleep(0)

    publishing = asyncio.create_task(Sender(adapter, timeout=10).publish_many(endless()))
    await has_sent(adapter, 5)
    sent = list(adapter.sent)
    before = len(sent)
    sent[3][1](Unroutable("the fourth"))
    await asyncio.sleep(0.01)
    count = len(adapter.sent)
    assert count <= before + 5
    sent[1][1](PublishRefused("the second"))
    await asyncio.sleep(0.01)
    assert not publishing.done()
    for index, (_, ended) in enumerate(adapter.sent):
        if index not in (1, 3):
            ended(None)
    with pytest.raises(PublishRefused, match="the second") as failed:
        await publishing
    assert failed.value.index == 1
    assert len(adapter.sent) == count


@on_a_loop
async def test_of_many_those_that_are_tried_again_come_before_the_next() -> None:
    """A lost connection repeats what was in flight, and does not let the rest overtake it."""
    adapter = Adapter()
    gate = asyncio.Event()

    async def source() -> AsyncIterator[list[Outgoing]]:
        yield [message(0), message(1)]
        await gate.wait()
        yield [message(2)]

    publishing = asyncio.create_task(Sender(adapter, timeout=10).publish_many(source()))
    await has_sent(adapter, 2)
    lost, adapter.sent = adapter.sent, []
    adapter.open, adapter.open_for = False, (b"2",)
    for _, ended in lost:
        ended(Unconfirmed("lost"))
    gate.set()
    await asyncio.sleep(0.05)
    assert not adapter.sent
    adapter.open = True
    await has_sent(adapter, 2)
    await asyncio.sleep(0.05)
    assert sorted(adapter.bodies) == [b"0", b"1"]  # each has pauses of its own between its tries
    await adapter.answer(None, None, None)
    assert await publishing == 3


@pytest.mark.parametrize("sent", [True, False])
@on_a_loop
async def test_a_run_that_tries_nothing_again_ends_at_a_lost_connection(sent: bool) -> None:
    """An operator's command says how far it came, and leaves the rest to the operator."""
    adapter = Adapter()
    run: Run[Outgoing] = Run(Sender(adapter, timeout=10, tries_again=False))
    await run.send_all(batches([1, 2]))
    await adapter.answer(None)
    if sent:
        await adapter.answer(Unconfirmed("lost"))
    adapter.open, adapter.faults = False, [ConnectionLost("gone")]
    await run.send_all(batches([3]))
    assert run.failure is not None
    assert (run.failure.index, run.failure.message.body) == ((1, b"2") if sent else (2, b"3"))
    assert type(run.failure.error) is (Unconfirmed if sent else ConnectionLost)


@on_a_loop
async def test_many_end_in_time_when_nothing_is_confirmed() -> None:
    """Each has its own time, so the whole has."""
    adapter = Adapter()
    adapter.open, adapter.faults = False, [ConnectionFailed("nobody answers")]
    with pytest.raises(PublishTimeout, match="nobody answers") as failed:
        await asyncio.wait_for(Sender(adapter, timeout=0.2).publish_many(batches([1, 2], [3])), 5)
    assert failed.value.index == 0


@on_a_loop
async def test_closing_waits_for_what_is_being_published() -> None:
    """Only then the connection goes. What was given up by its caller keeps nobody waiting."""
    adapter = Adapter()
    sender = Sender(adapter, timeout=10)
    publishing = asyncio.create_task(sender.publish(message(1)))
    given_up = asyncio.create_task(sender.publish(message(2)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(sender.close())
    given_up.cancel()
    with suppress(asyncio.CancelledError):
        await given_up
    assert not adapter.closed
    await adapter.answer(None)
    await asyncio.gather(publishing, closing)
    assert adapter.closed


@on_a_loop
async def test_what_an_iterable_gave_before_it_failed_is_waited_for() -> None:
    """Its error says nothing about them."""
    adapter = Adapter()

    async def breaks() -> AsyncIterator[list[Outgoing]]:
        yield [message(1)]
        raise LookupError("the table is gone")

    publishing = asyncio.create_task(Sender(adapter, timeout=10).publish_many(breaks()))
    await has_sent(adapter, 1)
    await asyncio.sleep(0.01)
    assert not publishing.done()
    await adapter.answer(None)
    with pytest.raises(LookupError):
        await publishing
