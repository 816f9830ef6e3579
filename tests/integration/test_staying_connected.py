"""The adapter by itself, on a real broker: errors in the midst of its own healing must not end it."""

import asyncio

import pytest
from support.loops import on_a_loop
from support.port import settle
from support.port import started_rabbitmq as started
from support.rabbit import Rabbit
from support.workers import eventually

from workerkit.brokers.rabbitmq import broker as broker_module
from workerkit.brokers.rabbitmq.subscription import Subscription
from workerkit.errors import ConnectionLost
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often: the interval is a matter of cost."""
    monkeypatch.setattr(broker_module, "WATCH_INTERVAL", 0.2)


@on_a_loop
async def test_a_connection_lost_while_the_channel_is_renewed_is_made_again(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that keeps the worker consuming must outlive whatever it runs into."""
    if rabbitmq.version.startswith("4"):
        pytest.skip("this broker tells of re-created queues, so nothing is renewed")

    async def fail(*_: object) -> None:
        monkeypatch.undo()
        raise ConnectionLost("in the midst of it")

    async with started(rabbitmq, queue) as case:
        monkeypatch.setattr(Subscription, "_refresh", fail)
        await case.broker.take(queue, 1)
        rabbit.publish(queue, b"first")
        settle(case.broker, await case.events.until(1))
        await case.events.until(1, "lost")
        rabbit.publish(queue, b"second")
        await case.events.until(2)


@on_a_loop
async def test_an_idle_channel_is_renewed_after_work_and_takes_what_comes_next(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """An old broker may have moved the consumer to another queue of that name in silence. Nothing is lost by it."""
    if rabbitmq.version.startswith("4"):
        pytest.skip("this broker tells of re-created queues, so nothing is renewed")
    async with started(rabbitmq, queue) as case:
        await case.broker.take(queue, 1)
        rabbit.publish(queue, b"first")
        (first,) = await case.events.until(1)
        settle(case.broker, [first])
        source = case.broker._sources[queue]
        await asyncio.to_thread(eventually, lambda: source.incarnation is not first.receipt, "another channel")
        rabbit.publish(queue, b"second")
        await case.events.only(2)
        assert case.events.lost == []
        assert rabbit.consumers(queue) == 1


@on_a_loop
async def test_an_error_of_ours_in_the_background_is_reported(
    rabbitmq: PrivateRabbitmq, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that silently stopped reconnecting would look healthy for ever."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with started(rabbitmq, queue) as case:
        monkeypatch.setattr(Subscription, "check", fail)
        await case.broker.take(queue, 1)
        await case.events.until(1, "failed")
        assert isinstance(case.events.failed.pop(), ZeroDivisionError)
