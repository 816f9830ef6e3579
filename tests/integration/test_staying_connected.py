"""The adapter by itself, on a real broker: errors in the midst of its own healing must not end it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import structlog
from support.rabbit import Rabbit
from workerkit.worker.ports import Delivery, Subscription

from workerkit.brokers.rabbitmq import broker as broker_module
from workerkit.brokers.rabbitmq.broker import RabbitmqBroker
from workerkit.errors import ConnectionLost
from workerkit.settings import BrokerSettings
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration


class Events:
    """Acknowledges what arrives and remembers what it was told."""

    def __init__(self) -> None:
        self.broker: RabbitmqBroker
        self.arrived = asyncio.Event()
        self.lost = asyncio.Event()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        self.broker.ack(deliveries)
        self.arrived.set()

    def on_channel_lost(self) -> None:
        self.lost.set()

    def on_failed(self, error: BaseException) -> None:
        self.failed.set_result(error)


def run(node: PrivateRabbitmq, queue: str, scene: Callable[[RabbitmqBroker, Events], Awaitable[None]]) -> None:
    async def main() -> None:
        settings = BrokerSettings(url=node.url)
        broker = RabbitmqBroker(settings, {}, {}, name="test", log=structlog.get_logger())
        events = Events()
        events.broker = broker
        await broker.start(Subscription("test", queue, 1, (5.0,)), events)
        try:
            await scene(broker, events)
        finally:
            await broker.close()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often: the interval is a matter of cost."""
    monkeypatch.setattr(broker_module, "WATCH_INTERVAL", 0.2)


def test_a_connection_lost_while_the_channel_is_renewed_is_made_again(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that keeps the worker consuming must outlive whatever it runs into."""

    async def scene(broker: RabbitmqBroker, events: Events) -> None:
        async def fail(*_: object) -> None:
            monkeypatch.undo()
            raise ConnectionLost("in the midst of it")

        monkeypatch.setattr(broker, "_refresh", fail)
        await asyncio.to_thread(rabbit.publish, queue, "first")
        await asyncio.wait_for(events.arrived.wait(), 10)
        await asyncio.wait_for(events.lost.wait(), 10)
        events.arrived.clear()
        await asyncio.to_thread(rabbit.publish, queue, "second")
        await asyncio.wait_for(events.arrived.wait(), 10)

    if rabbitmq.version.startswith("4"):
        pytest.skip("this broker tells of re-created queues, so nothing is renewed")
    run(rabbitmq, queue, scene)


def test_an_error_of_ours_in_the_background_is_reported(
    rabbitmq: PrivateRabbitmq, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that silently stopped reconnecting would look healthy for ever."""

    async def scene(broker: RabbitmqBroker, events: Events) -> None:
        async def fail() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(broker, "_watch", fail)
        assert isinstance(await asyncio.wait_for(events.failed, 10), ZeroDivisionError)

    run(rabbitmq, queue, scene)
