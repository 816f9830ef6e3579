"""The end of the RabbitMQ adapter: what was settled stays settled, and what was not is said."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from support.chroot import ordinary_node
from support.loops import on_a_loop
from support.port import settle
from support.port import started_rabbitmq as started
from support.rabbit import Rabbit
from support.workers import eventually

from workerkit.settlement import HAND_BACK, Cause, DeadLetter, Reason
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

COUNT = 100


@pytest.fixture
def busy() -> Iterator[None]:
    """Three loops that want a processor each."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.fixture
def own() -> Iterator[PrivateRabbitmq]:
    """A node that can be frozen."""
    with ordinary_node() as node:
        yield node


@pytest.mark.usefixtures("busy")
@on_a_loop
async def test_acknowledged_messages_do_not_come_back_after_a_close_with_a_backlog(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """Big bodies on their way, a machine that is busy with other things, the last acknowledgement just before."""
    rabbit.declare(queue, queue_type="quorum")
    rabbit.publish(queue, *(b"%03d" % number + b"x" * 1_000_000 for number in range(COUNT)), message_id="m")
    async with started(rabbitmq, queue) as case:
        await case.broker.take(queue, 200)
        for number in range(30):
            await case.events.until(number + 1)
            settle(case.broker, case.events.deliveries[number : number + 1])
        await case.broker.take(queue, 0)
        settle(case.broker, case.events.deliveries[30:31])
        settle(case.broker, case.events.deliveries[31:], HAND_BACK)
        assert not case.events.dropped
    assert not case.logged("settle.unconfirmed")
    eventually(lambda: rabbit.ready(queue) == COUNT - 31, "exactly what was not acknowledged is ready")
    await asyncio.sleep(0.5)
    assert rabbit.ready(queue) == COUNT - 31


@on_a_loop
async def test_what_ends_while_nothing_is_taken_any_more_is_held_by_the_queue_before_the_close_ends(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """Many settlements by themselves, for a queue that is slow: the broker keeps most of them back, in the process
    that an answered close of the channel ends."""
    name = f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)'
    process = f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), amqqueue:get_pid(Q)"

    async def tell(what: str) -> None:
        await asyncio.to_thread(rabbitmq.ctl, "eval", f"sys:{what}(begin {process} end).")

    async def resume() -> None:
        await asyncio.sleep(0.5)
        await tell("resume")

    rabbit.declare(queue, queue_type="quorum")
    rabbit.publish(queue, *(b"%d" % number for number in range(200)))
    async with started(rabbitmq, queue) as case:
        await case.broker.take(queue, 200)
        await case.events.until(200)
        await case.broker.take(queue, 0)
        await tell("suspend")
        resuming = asyncio.create_task(resume())
        for delivery in case.events.deliveries[:150]:
            settle(case.broker, [delivery])
        await case.broker.close(10.0)
        await resuming
    assert not case.logged("settle.unconfirmed")
    await asyncio.to_thread(eventually, lambda: rabbit.ready(queue) >= 50, "the rest is ready")
    await asyncio.sleep(0.5)
    assert len(rabbit.take_all(queue)) == 50


def test_a_close_waits_for_a_broker_that_is_frozen_for_a_while(own: PrivateRabbitmq) -> None:
    """A socket that is closed with unread data in it is reset, and the broker drops what it has not read."""

    async def scene() -> float:
        async with started(own, "frozen") as case:
            await case.broker.take("frozen", 50)
            await case.events.until(50)
            await case.broker.take("frozen", 0)
            settle(case.broker, case.events.deliveries[:20])
            own.freeze()
            threading.Timer(2.0, own.thaw).start()
            settle(case.broker, case.events.deliveries[20:40])
            began = time.monotonic()
        assert not case.logged("settle.unconfirmed")
        return time.monotonic() - began

    with Rabbit(own.url) as rabbit:
        rabbit.declare("frozen", queue_type="quorum")
        rabbit.publish("frozen", *(b"%d" % number for number in range(100)))
        assert asyncio.run(scene()) > 1.5
        eventually(lambda: rabbit.ready("frozen") == 60, "exactly what was not acknowledged is ready")


def test_what_the_broker_has_not_answered_for_at_the_deadline_is_named(own: PrivateRabbitmq) -> None:
    """With ids by which the operator finds it: it may come back."""

    async def scene() -> None:
        async with started(own, "silent") as case:
            await case.broker.take("silent", 10)
            await case.events.until(10)
            await case.broker.take("silent", 0)
            own.freeze()
            settle(case.broker, case.events.deliveries[:3])
            began = time.monotonic()
            await case.broker.close(0.6)
            assert time.monotonic() - began < 3
            ((line),) = case.logged("settle.unconfirmed")
            assert line["message_ids"] == ["m0", "m1", "m2"]
            assert line["earlier"] is False

    with Rabbit(own.url) as rabbit:
        rabbit.declare("silent", queue_type="quorum")
        rabbit.publish("silent", *(b"m%d" % number for number in range(10)))
    try:
        asyncio.run(scene())
    finally:
        own.thaw()


@on_a_loop
async def test_a_copy_that_is_not_confirmed_at_the_end_gives_the_original_back(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """Answered once, as dropped."""
    async with started(rabbitmq, queue) as case:
        rabbit.publish(queue, b"1")
        await case.broker.take(queue, 1)
        await case.events.until(1)
        await case.broker.take(queue, 0)
        rabbit.delete(f"{queue}.dead")
        settle(case.broker, case.events.deliveries, DeadLetter(Cause(Reason.NACKED, "no")))
        await case.broker.close(1.0)
        assert [delivery.body for delivery, _ in case.events.dropped] == [b"1"]
        assert case.events.settled == []
    eventually(lambda: rabbit.ready(queue) == 1, "it is the broker's again")


# ---- a message that takes its whole worker with it


def lose(node: PrivateRabbitmq, queue: str, times: int) -> None:
    """Get the message and drop the connection, as often."""
    for _ in range(times):
        with Rabbit(node.url) as careless:
            eventually(lambda: careless.ready(queue) == 1, "it is back")
            careless.hold(queue)


@on_a_loop
async def test_a_message_that_lost_its_worker_too_often_is_a_dead_letter(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """Nobody is left to say why: the queue's own count does."""
    async with started(rabbitmq, queue):
        pass
    rabbit.publish(queue, "poison")
    await asyncio.to_thread(lose, rabbitmq, queue, 12)
    async with started(rabbitmq, queue) as case:
        await case.broker.take(queue, 1)
        await asyncio.to_thread(eventually, lambda: rabbit.ready(f"{queue}.dead") == 1, "a dead letter")
        assert case.events.deliveries == []
        assert case.events.settled == case.events.dropped == []
        assert len(case.logged("message.lost_too_often")) == 1
    ((body, headers),) = rabbit.dead(queue)
    assert (body, headers["workerkit-reason"]) == ("poison", "lost")
    assert rabbit.ready(queue) == 0


@on_a_loop
async def test_a_message_that_is_handed_back_is_not_lost_however_often(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """Stops are no losses, though RabbitMQ before 4.3 counts what is handed back as if they were."""
    async with started(rabbitmq, queue, max_losses=3) as case:
        rabbit.publish(queue, b"patient")
        await case.broker.take(queue, 1)
        for number in range(60):
            deliveries = await case.events.until(number + 1)
            settle(case.broker, deliveries[-1:], HAND_BACK)
        await case.events.until(61)
        await case.events.until(60, "settled")
        assert not case.logged("message.lost_too_often")
        assert case.events.deliveries[-1].attempt == 1
        settle(case.broker, case.events.deliveries[-1:])
    assert rabbit.ready(queue) == 0
