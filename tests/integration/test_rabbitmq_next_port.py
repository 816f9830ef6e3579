"""The RabbitMQ adapter on RabbitMQ 4.3, where hand-backs do not count and retries can be the queue's own."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from support.loops import on_a_loop
from support.port import settle
from support.port import started_rabbitmq as started
from support.rabbit import Rabbit
from support.workers import eventually

from workerkit.properties import decode_headers
from workerkit.settings.model import DelayedRetrySettings, Duration, QueueSettings
from workerkit.settlement import HAND_BACK, Cause, Reason, RetryLater
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

NATIVE = QueueSettings(delayed_retry=DelayedRetrySettings(min=Duration(0.4), max=Duration(0.6)))


@pytest.fixture
def rabbit(rabbitmq_next: PrivateRabbitmq) -> Iterator[Rabbit]:
    """A direct connection to the newer node."""
    with Rabbit(rabbitmq_next.url) as rabbit:
        yield rabbit


def lose(node: PrivateRabbitmq, queue: str, times: int) -> None:
    """Get the message and drop the connection, as often."""
    for _ in range(times):
        with Rabbit(node.url) as careless:
            eventually(lambda: careless.ready(queue) == 1, "it is back")
            careless.hold(queue)


@on_a_loop
async def test_losses_are_carried_on_when_a_message_is_renewed(
    rabbitmq_next: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """RabbitMQ's own limit of 20 would drop it without a trace; ours keeps it, with the reason."""
    async with started(rabbitmq_next, queue):
        pass
    rabbit.publish(queue, "poison")
    await asyncio.to_thread(lose, rabbitmq_next, queue, 10)
    async with started(rabbitmq_next, queue) as case:
        await case.broker.take(queue, 1)
        (renewed,) = await case.events.until(1)
        assert len(case.logged("message.renewed")) == 1
        assert (renewed.attempt, decode_headers(renewed.raw_properties)["workerkit-losses"]) == (1, 10)
        settle(case.broker, [renewed], HAND_BACK)
        await case.events.until(2)
    await asyncio.to_thread(lose, rabbitmq_next, queue, 1)
    async with started(rabbitmq_next, queue) as case:
        await case.broker.take(queue, 1)
        await asyncio.to_thread(eventually, lambda: rabbit.ready(f"{queue}.dead") == 1, "a dead letter")
    ((_, headers),) = rabbit.dead(queue)
    assert headers["workerkit-reason"] == "lost"


@on_a_loop
async def test_the_delay_that_is_told_of_a_native_retry_is_the_one_that_the_queue_makes(
    rabbitmq_next: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """Longer with each failure, up to a limit; the policy's delay is not asked for."""
    later = RetryLater(30.0, 2, explicit=False, cause=Cause(Reason.NACKED, "no"))
    async with started(rabbitmq_next, queue, settings=NATIVE) as case:
        rabbit.publish(queue, b"1")
        await case.broker.take(queue, 1)
        for attempt, delay in ((1, 0.4), (2, 0.6), (3, 0.6)):
            deliveries = await case.events.until(attempt)
            assert deliveries[-1].attempt == attempt
            began = time.monotonic()
            settle(case.broker, deliveries[-1:], later)
            _, told = case.events.settled[-1]
            assert isinstance(told, RetryLater)
            assert told.delay == delay
            await case.events.until(attempt + 1)
            assert time.monotonic() - began > delay - 0.1
