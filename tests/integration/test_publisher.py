"""Publishing to a real broker that takes messages, refuses them, or does not answer: never in silence, never twice."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.chroot import ordinary_node
from support.loops import on_a_loop
from support.rabbit import Rabbit

from workerkit.brokers.rabbitmq import amqp
from workerkit.brokers.rabbitmq import publisher as publisher_module
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.publisher import ConfirmedPublisher
from workerkit.errors import BrokerError, PublishFailed, PublishRefused, PublishTimeout, Unconfirmed, Unroutable
from workerkit.properties import Properties, encode
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

PLAIN = encode(Properties(delivery_mode=2))


@pytest.fixture
def alarm(rabbitmq: PrivateRabbitmq, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateRabbitmq]:
    """A node under a memory alarm: it reads nothing from connections that publish."""
    monkeypatch.setattr(publisher_module, "PUBLISH_TIMEOUT", 0.5)
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    yield rabbitmq
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")


def test_a_blocked_broker_gets_the_message_once_however_long_it_takes(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, alarm: PrivateRabbitmq
) -> None:
    """A worker's retries and dead letters wait out the alarm; each time-out would add a copy of the same message."""
    rabbit.declare(queue, queue_type="quorum")
    rabbit.declare(f"{queue}.dead", queue_type="quorum")

    async def scene() -> None:
        publisher = ConfirmedPublisher(lambda: connect(rabbitmq), wait_while_blocked=True)
        publish = asyncio.create_task(publisher.publish("", queue, PLAIN, b"once"))
        assert not (await asyncio.wait({publish}, timeout=3))[0]
        await asyncio.to_thread(alarm.ctl, "set_vm_memory_high_watermark", "0.4")
        await asyncio.wait_for(publish, 20)
        await publisher.close()

    asyncio.run(scene())
    assert rabbit.ready(queue) == 1


def test_a_command_does_not_wait_for_a_blocked_broker(rabbitmq: PrivateRabbitmq, queue: str, alarm: object) -> None:
    """It says what blocks and that the outcome is not known, and leaves the connection behind."""

    async def scene() -> None:
        publisher = ConfirmedPublisher(lambda: connect(rabbitmq))
        with pytest.raises(PublishFailed, match=r"blocks publishers .*may still arrive"):
            await publisher.publish("", queue, PLAIN, b"perhaps")
        await publisher.close()

    asyncio.run(scene())


FRAME = 131072 - 8
"""Bytes of a body that fit into one frame of what RabbitMQ negotiates."""
SIZES = (4, 5, 100, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 3 * FRAME + 1)


@pytest.mark.parametrize("short_cut", [True, False], ids=["by-hand", "through-pika"])
@on_a_loop
async def test_each_of_many_in_flight_has_its_own_outcome(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, monkeypatch: pytest.MonkeyPatch, short_cut: bool
) -> None:
    """Bodies of no frame, of one and of several; every third has no queue and is the one that is returned."""
    if not short_cut:
        monkeypatch.setattr(amqp, "missing_in_pika", lambda: ["what the short cut needs"])
    rabbit.declare(queue, queue_type="quorum")
    bodies = [b"%04d" % number + bytes(size - 4) for number, size in enumerate([*SIZES, *[100] * 1500])]
    bodies.append(b"")
    async with publisher_to(rabbitmq) as publisher:
        keys = [f"{queue}-größer" if number % 3 == 2 else queue for number in range(len(bodies))]
        outcomes = await publish(publisher, *zip(keys, bodies, strict=True))
    assert [type(outcome) for outcome in outcomes] == [Unroutable if key != queue else type(None) for key in keys]
    assert f"routing key '{queue}-größer'): 312 NO_ROUTE" in str(outcomes[2])
    # Tasks that each wait for room have no order among them; what is published as a stream has.
    arrived = sorted(body for body, _ in rabbit.take_all(queue))
    assert arrived == sorted(body for key, body in zip(keys, bodies, strict=True) if key == queue)


@on_a_loop
async def test_what_a_full_queue_refuses_is_nacked(rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str) -> None:
    """And nothing else: what is confirmed is in the queue."""
    rabbit.declare(queue, max_length=5, overflow="reject-publish")
    async with publisher_to(rabbitmq) as publisher:
        outcomes = await publish(publisher, *((queue, b"%d" % number) for number in range(300)))
    assert {type(outcome) for outcome in outcomes} == {type(None), PublishRefused}
    confirmed = [b"%d" % number for number, outcome in enumerate(outcomes) if outcome is None]
    assert [body for body, _ in rabbit.take_all(queue)] == confirmed


@on_a_loop
async def test_a_closed_channel_ends_what_is_in_flight_and_another_takes_over(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """A message that the broker does not accept takes its neighbours down with it, in the open; those who publish
    while the next channel opens wait for it, and its confirms are counted from the start."""
    rabbit.declare(queue, queue_type="quorum")
    async with publisher_to(rabbitmq) as publisher:
        await publisher.channel()
        publishes = [publisher.publish("", queue, PLAIN, b"%d" % number) for number in range(500)]
        publishes.insert(200, publisher.publish("no-such-exchange", queue, PLAIN, b"refused"))
        outcomes = await asyncio.gather(*publishes, return_exceptions=True)
        connection = publisher._connection
        again = await publish(publisher, *((queue, b"again %d" % number) for number in range(500)), ("nowhere", b""))
        assert publisher._connection is connection
    assert isinstance(outcomes[200], Unroutable)
    assert "no exchange 'no-such-exchange'" in str(outcomes[200])
    assert {type(outcome) for outcome in outcomes[201:]} == {Unconfirmed}
    assert {type(outcome) for outcome in outcomes[:200]} <= {type(None), Unconfirmed}
    assert [type(outcome) for outcome in again] == [type(None)] * 500 + [Unroutable]
    arrived = Counter(body for body, _ in rabbit.take_all(queue))
    assert set(arrived.values()) == {1}
    assert {b"%d" % number for number in range(200) if outcomes[number] is None} <= arrived.keys()
    assert {b"again %d" % number for number in range(500)} <= arrived.keys()
    assert not arrived.keys() & {b"%d" % number for number in range(200, 500)}


@on_a_loop
async def test_a_name_that_is_too_long_is_refused_before_it_is_sent(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """The broker does not count it: the confirms after it are those of the right messages."""
    rabbit.declare(queue, queue_type="quorum")
    async with publisher_to(rabbitmq) as publisher:
        outcomes = await publish(publisher, (queue, b"1"), ("q" * 256, b"2"), ("nowhere", b"3"), (queue, b"4"))
    assert [type(outcome) for outcome in outcomes] == [type(None), PublishFailed, Unroutable, type(None)]
    assert "at most 255 bytes" in str(outcomes[1])


def test_of_two_that_look_alike_the_one_that_came_back_is_returned(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """The first is on its way into a queue that is slow to confirm, when the binding goes and the second is routed."""
    rabbit.declare(queue)
    process = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)), amqqueue:get_pid(Q)'

    async def scene() -> None:
        async with publisher_to(rabbitmq) as publisher:
            channel = await publisher.channel()
            await channel.declare_exchange(queue, "fanout", durable=False, arguments={})
            await channel.bind(queue, queue, "", {})
            await asyncio.to_thread(rabbitmq.ctl, "eval", f"sys:suspend(begin {process} end).")
            try:
                first = asyncio.create_task(publisher.publish(queue, "", with_id("1"), b"same"))
                await asyncio.sleep(0.1)
                await asyncio.to_thread(rabbit._channel.queue_unbind, queue, queue, "")
                second = asyncio.create_task(publisher.publish(queue, "", with_id("2"), b"same"))
                with pytest.raises(Unroutable):
                    await asyncio.wait_for(second, 5)
                assert not first.done()
            finally:
                await asyncio.to_thread(rabbitmq.ctl, "eval", f"sys:resume(begin {process} end).")
            await first

    asyncio.run(scene())
    assert [properties.message_id for _, properties in rabbit.take_all(queue)] == ["1"]


@pytest.fixture(scope="module")
def own() -> Iterator[PrivateRabbitmq]:
    """A node that can be frozen and killed."""
    with ordinary_node() as node:
        yield node


def test_a_frozen_broker_gets_a_bounded_number_and_each_publisher_an_answer(
    own: PrivateRabbitmq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What did not get out of this machine by the deadline never does; what did is there once."""
    monkeypatch.setattr(publisher_module, "PUBLISH_TIMEOUT", 1.0)
    monkeypatch.setattr(publisher_module, "WINDOW_BYTES", 16_000_000)  # more than the kernel takes
    body = bytes(50_000)

    async def scene() -> list[Any]:
        async with publisher_to(own) as publisher:
            await publisher.publish("", "frozen", PLAIN, b"before")
            own.freeze()
            started = time.monotonic()
            sent = [("frozen", b"%04d" % number + body) for number in range(1000)]
            publishing = asyncio.create_task(publish(publisher, *sent))
            await asyncio.sleep(0.5)
            connection = publisher._connection
            assert connection is not None
            unsent = connection._pika._transport.get_write_buffer_size()
            assert 1_000_000 < unsent < 16_100_000, "of 50 MB"
            outcomes = await publishing
            assert time.monotonic() - started < 8
            own.thaw()
            await publisher.publish("", "frozen", PLAIN, b"after")
            return outcomes

    with Rabbit(own.url) as rabbit:
        rabbit.declare("frozen", queue_type="quorum")
    try:
        outcomes = asyncio.run(scene())
    finally:
        own.thaw()
    assert all(isinstance(outcome, BrokerError) for outcome in outcomes)
    assert isinstance(outcomes[0], PublishTimeout)
    with Rabbit(own.url) as rabbit:
        arrived = Counter(body[:6] for body, _ in rabbit.take_all("frozen"))
    assert set(arrived.values()) == {1}
    assert arrived.keys() > {b"before", b"after"}
    assert len(arrived) < 15_000_000 // len(body)


def test_nothing_confirmed_is_lost_when_the_broker_is_killed_under_load(own: PrivateRabbitmq) -> None:
    """Each publish ends, and those after the restart go to the same queue over a new connection."""
    confirmed: set[bytes] = set()
    unknown: set[bytes] = set()
    under_load = asyncio.Event()

    async def lane(publisher: ConfirmedPublisher, name: int) -> None:
        number = 0
        while not unknown:
            body = b"%d/%d" % (name, number)
            number += 1
            try:
                await publisher.publish("", "killed", PLAIN, body)
            except BrokerError:
                unknown.add(body)
            else:
                confirmed.add(body)
                if len(confirmed) == 3000:
                    under_load.set()

    async def scene() -> None:
        async with publisher_to(own) as publisher:
            lanes = [asyncio.create_task(lane(publisher, number)) for number in range(300)]
            await asyncio.wait_for(under_load.wait(), 20)
            await asyncio.to_thread(own.kill)
            await asyncio.wait_for(asyncio.gather(*lanes), 20)
            await asyncio.to_thread(own.start)
            await publisher.publish("", "killed", PLAIN, b"after")

    with Rabbit(own.url) as rabbit:
        rabbit.declare("killed", queue_type="quorum")
    own.flush()
    asyncio.run(scene())
    with Rabbit(own.url) as rabbit:
        arrived = Counter(body for body, _ in rabbit.take_all("killed"))
    assert len(unknown) == 300
    assert set(arrived.values()) == {1}
    assert confirmed | {b"after"} <= arrived.keys() <= confirmed | unknown | {b"after"}


@asynccontextmanager
async def publisher_to(node: PrivateRabbitmq) -> AsyncIterator[ConfirmedPublisher]:
    publisher = ConfirmedPublisher(lambda: connect(node))
    try:
        yield publisher
    finally:
        await publisher.close()


async def publish(publisher: ConfirmedPublisher, *messages: tuple[str, bytes]) -> list[Any]:
    """All at once, to queues; what each ended with."""
    publishes = [publisher.publish("", key, PLAIN, body) for key, body in messages]
    return await asyncio.gather(*publishes, return_exceptions=True)


def with_id(name: str) -> bytes:
    return encode(Properties(delivery_mode=2, message_id=name))


async def connect(node: PrivateRabbitmq) -> Connection:
    return await Connection.open(node.url, name="test", heartbeat=10, attempt_timeout=3)
