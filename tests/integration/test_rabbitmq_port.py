"""The RabbitMQ adapter by itself, driven through the port on a real node."""

import asyncio
from collections.abc import Iterator

import pytest
from support.loops import on_a_loop
from support.port import settle
from support.port import started_rabbitmq as started
from support.rabbit import Rabbit
from support.workers import eventually

from workerkit.outgoing import Outgoing
from workerkit.ports import Delivery
from workerkit.properties import Properties, decode_headers, encode
from workerkit.settings.model import QueueSettings
from workerkit.settlement import (
    HAND_BACK,
    Acknowledge,
    Cause,
    DeadLetter,
    Reason,
    Release,
    RetryLater,
)
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

CAUSE = Cause(Reason.EXCEPTION, "no such file", "FileNotFoundError")
PLAIN = encode(Properties(delivery_mode=2))


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


@pytest.fixture
def second(queue: str, rabbit: Rabbit) -> Iterator[str]:
    """Another queue."""
    name = f"{queue}-2"
    yield name
    rabbit.delete(name, f"{name}.dead")


# ---- windows


@on_a_loop
async def test_nothing_is_consumed_until_something_is_taken(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """The queues are there after the start; messages come with the first window."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, b"1", b"2")
        assert rabbit.consumers(queue) == 0
        await case.broker.take(queue, 1)
        await case.events.only(1)
        assert rabbit.consumers(queue) == 1


@on_a_loop
async def test_a_window_grows_without_a_gap(rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str) -> None:
    """The bigger consumer is there before the smaller one goes, and each message comes once."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, *(b"%d" % number for number in range(20)))
        await case.broker.take(queue, 2)
        await case.events.only(2)
        await case.broker.take(queue, 10)
        await case.events.until(10)
        settle(case.broker, list(case.events.deliveries))
        await case.events.until(20)
        settle(case.broker, case.events.deliveries[len(case.events.settled) :])
        assert sorted(bodies(case.events.deliveries), key=int) == [b"%d" % number for number in range(20)]
        assert len(case.events.settled) == 20
        await asyncio.to_thread(eventually, lambda: rabbit.consumers(queue) == 1, "the smaller one is gone")


@on_a_loop
async def test_a_smaller_window_counts_what_is_unsettled_from_before(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """With window 1 and a message that is worked on, nothing may be fetched to wait behind it."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, *(b"%d" % number for number in range(8)))
        await case.broker.take(queue, 5)
        await case.events.only(5)
        await case.broker.take(queue, 1)
        settle(case.broker, case.events.deliveries[:4])
        await case.events.only(5)
        settle(case.broker, case.events.deliveries[4:5])
        await case.events.only(6)
        settle(case.broker, case.events.deliveries[5:6])
        await case.events.only(7)


@on_a_loop
async def test_a_source_that_is_resumed_counts_what_is_unsettled(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """A pause does not make room."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, b"1", b"2")
        await case.broker.take(queue, 1)
        await case.events.only(1)
        await case.broker.take(queue, 0)
        await case.broker.take(queue, 1)
        await case.events.only(1)
        settle(case.broker, case.events.deliveries[:1])
        await case.events.only(2)


@on_a_loop
async def test_nothing_is_on_its_way_once_nothing_is_taken(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """What was delivered stays ours, and can be settled."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, *(b"%d" % number + b"x" * 100_000 for number in range(50)))
        await case.broker.take(queue, 500)
        await case.events.until(1)
        await case.broker.take(queue, 0)
        ours = len(case.events.deliveries)
        await case.events.only(ours)
        settle(case.broker, case.events.deliveries)
        assert len(case.events.settled) == ours
        eventually(lambda: rabbit.ready(queue) == 50 - ours, "the rest is ready")


@on_a_loop
async def test_another_consumer_is_seen(rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str) -> None:
    """Our own does not count."""
    async with started(rabbitmq, queue) as case:
        assert not await case.broker.wanted_elsewhere(queue)
        rabbit.publish(queue, b"1", b"2")
        await case.broker.take(queue, 2)
        await case.events.until(2)
        await case.broker.take(queue, 1)
        assert not await case.broker.wanted_elsewhere(queue)
        async with started(rabbitmq, queue) as other:
            await other.broker.take(queue, 1)
            await case.broker.take(queue, 2)
            settle(case.broker, case.events.deliveries)
            assert await case.broker.wanted_elsewhere(queue)


# ---- losses


@on_a_loop
async def test_a_lost_source_touches_no_message_of_another(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, second: str
) -> None:
    """Its receipt is reported, its channel opened again; the other's messages are settled as if nothing had been."""
    async with started(rabbitmq, queue, second) as case:
        rabbit.publish(queue, b"mine")
        rabbit.publish(second, b"other")
        await case.broker.take(queue, 1)
        await case.broker.take(second, 1)
        await case.events.until(2)
        mine, other = sorted(case.events.deliveries, key=lambda delivery: delivery.body)
        rabbit.delete(queue)
        await case.events.until(1, "lost")
        assert case.events.lost == [mine.receipt]
        settle(case.broker, [mine, other])
        assert [delivery.body for delivery, _ in case.events.settled] == [b"other"]
        assert [delivery.body for delivery, _ in case.events.dropped] == [b"mine"]
        await asyncio.to_thread(eventually, lambda: rabbit.consumers(queue) == 1, "it is consumed again")
        rabbit.publish(queue, b"again")
        await case.events.until(3)
        assert not case.logged("conn.lost")
        assert [line["queue"] for line in case.logged("source.up")] == [queue]


@on_a_loop
async def test_after_a_lost_connection_the_last_windows_are_taken_again(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, second: str
) -> None:
    """All receipts are lost, settlements of before are dropped and reported, and both sources come back."""
    async with started(rabbitmq, queue, second) as case:
        rabbit.publish(queue, b"1", b"2", b"3")
        await case.broker.take(queue, 2)
        await case.broker.take(second, 1)
        await case.events.until(2)
        stale = list(case.events.deliveries)
        await asyncio.to_thread(close_consumer_connection, rabbitmq)
        await case.events.until(2, "lost")
        assert stale[0].receipt in case.events.lost
        settle(case.broker, stale)
        assert bodies([delivery for delivery, _ in case.events.dropped]) == bodies(stale)
        assert case.events.settled == []
        await case.events.until(4)
        assert all(delivery.receipt is not stale[0].receipt for delivery in case.events.deliveries[2:])
        await asyncio.to_thread(eventually, lambda: case.logged("conn.up"), "it is up")
        assert rabbit.consumers(queue) == rabbit.consumers(second) == 1


# ---- settling


@on_a_loop
async def test_each_settlement_is_answered_once(rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str) -> None:
    """A mixed batch: acknowledged, released, retried, kept as a dead letter."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, *(b"%d" % number for number in range(5)))
        await case.broker.take(queue, 5)
        await case.events.until(5)
        await case.broker.take(queue, 0)
        later = RetryLater(0.2, 2, explicit=False, cause=CAUSE)
        settlements = [Acknowledge(), HAND_BACK, later, DeadLetter(CAUSE), Acknowledge()]
        case.broker.settle(list(zip(case.events.deliveries, settlements, strict=True)))
        settled = await case.events.until(5, "settled")
        assert [told for _, told in sorted(settled, key=lambda one: one[0].body)] == settlements
        assert case.events.dropped == []
        await case.broker.take(queue, 5)
        await case.events.only(7, for_=0.6)
        assert sorted((d.body, d.attempt) for d in case.events.deliveries[5:]) == [(b"1", 1), (b"2", 2)]
        assert decode_headers(case.events.deliveries[-1].raw_properties)["workerkit-attempt"] == 2
        ((body, headers),) = rabbit.dead(queue)
        assert (body, headers["workerkit-reason"], headers["workerkit-worker"]) == (3, "exception", "worker")


@on_a_loop
async def test_a_message_that_is_released_with_a_delay_waits_outside_and_is_no_attempt_more(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """A copy with the count of its releases, in a queue for that delay."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, b"1")
        await case.broker.take(queue, 1)
        await case.events.until(1)
        settle(case.broker, case.events.deliveries, Release(0.7, 3))
        ((_, told),) = await case.events.until(1, "settled")
        assert told == Release(0.7, 3)
        assert rabbit.ready(f"{queue}.retry.700ms.once") == 1
        await case.events.until(2)
        again = case.events.deliveries[1]
        assert again.attempt == 1
        assert decode_headers(again.raw_properties)["workerkit-releases"] == 3


@on_a_loop
async def test_a_refused_delay_becomes_the_nearest_that_is_declared_and_is_said_once(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """With ``declare: false`` no queue can be made for a delay of the task's own; nothing else may suffer for it."""
    async with started(rabbitmq, queue, delays=(0.2, 5.0)):
        pass  # declares
    restricted = QueueSettings(declare=False)
    async with started(rabbitmq, queue, delays=(0.2, 5.0), settings=restricted) as case:
        rabbit.publish(queue, b"1", b"2")
        await case.broker.take(queue, 2)
        await case.events.until(2)
        settle(case.broker, case.events.deliveries, RetryLater(1.0, 2, explicit=True, cause=CAUSE))
        settled = await case.events.until(2, "settled")
        assert [told.delay for _, told in settled] == [0.2, 0.2]
        ((line),) = case.logged("retry.delay_changed")
        assert (line["wanted"], line["used"]) == (1.0, 0.2)
        await case.events.until(4)
        assert not case.logged("publish.failed")


@on_a_loop
async def test_without_the_permission_to_configure_the_nearest_delay_is_used(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """The refusal closes a channel of its own: copies that are on their way keep theirs."""
    async with started(rabbitmq, queue):
        pass
    await asyncio.to_thread(rabbitmq.ctl, "add_user", queue, "secret")
    # Everything but the queues for one delay, whose names end in `.once`.
    await asyncio.to_thread(rabbitmq.ctl, "set_permissions", queue, f"^{queue}(\\.dead|\\.retry\\.200ms)?$", ".*", ".*")
    url = rabbitmq.url.replace("guest:guest", f"{queue}:secret")
    async with started(rabbitmq, queue, url=url) as case:
        rabbit.publish(queue, *(b"%d" % number for number in range(20)))
        await case.broker.take(queue, 20)
        await case.events.until(20)
        dead, retried = case.events.deliveries[:10], case.events.deliveries[10:]
        case.broker.settle(
            [(delivery, DeadLetter(CAUSE)) for delivery in dead]
            + [(delivery, RetryLater(60.0, 2, explicit=True, cause=CAUSE)) for delivery in retried]
        )
        await case.events.until(20, "settled")
        assert not case.logged("publish.failed")
        assert len(case.logged("retry.delay_changed")) == 1


# ---- publishing with the acknowledgement


@on_a_loop
async def test_what_is_published_with_an_acknowledgement_is_there_before_it(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, second: str
) -> None:
    """To a queue, and to one later."""
    rabbit.declare(second)
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, b"1")
        await case.broker.take(queue, 1)
        (delivery,) = await case.events.until(1)
        messages = (Outgoing("", second, PLAIN, b"now"), Outgoing("", second, PLAIN, b"later", 0.5))
        settle(case.broker, [delivery], Acknowledge(messages))
        await case.events.until(1, "settled")
        assert bodies_of(rabbit, second) == [b"now"]
        await asyncio.to_thread(eventually, lambda: rabbit.ready(second) == 1, "the other")
        assert bodies_of(rabbit, second) == [b"later"]
    assert rabbit.ready(queue) == 0


@pytest.mark.parametrize(
    ("exchange", "key", "delay"), [("", "nowhere", None), ("no-such-exchange", "x", None), ("", "nowhere", 5.0)]
)
@on_a_loop
async def test_what_cannot_be_routed_leaves_the_original_to_be_settled(
    exchange: str, key: str, delay: float | None, rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """A missing exchange must not close the channel on which others wait for their confirms."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, b"1", b"2")
        await case.broker.take(queue, 2)
        first, second = await case.events.until(2)
        case.broker.settle(
            [(first, Acknowledge((Outgoing(exchange, key, PLAIN, b"x", delay),))), (second, DeadLetter(CAUSE))]
        )
        ((delivery, cause),) = await case.events.until(1, "unpublished")
        assert delivery is first
        assert cause.reason is Reason.EXCEPTION
        assert cause.exception == "workerkit.Unroutable"
        await case.events.until(1, "settled")
        assert not case.logged("publish.failed")
        settle(case.broker, [first])
        await case.events.until(2, "settled")
    assert rabbit.ready(queue) == 0


def close_consumer_connection(node: PrivateRabbitmq) -> None:
    listed = node.ctl("--quiet", "list_connections", "pid", "client_properties").splitlines()
    (pid,) = [line.split("\t")[0] for line in listed if "workerkit test consume" in line]
    node.ctl("close_connection", pid, "test")


def bodies_of(rabbit: Rabbit, queue: str) -> list[bytes]:
    return [body for body, _ in rabbit.take_all(queue)]
