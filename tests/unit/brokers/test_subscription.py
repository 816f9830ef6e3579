"""One source on a channel that does what the test says: what becomes of it when the broker does not answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from workerkit.brokers.rabbitmq.amqp import Connection, QueueState
from workerkit.brokers.rabbitmq.background import Background
from workerkit.brokers.rabbitmq.subscription import Subscription
from workerkit.brokers.rabbitmq.versions import ServerVersion
from workerkit.errors import BrokerError, ConnectionLost, QueueNotFound
from workerkit.settings.model import QueueSettings


class FakeChannel:
    def __init__(self, connection: "FakeConnection") -> None:
        self.connection = connection
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self.calls: list[tuple[str, Any]] = []
        self.before: Callable[[str], Awaitable[None]] | None = None
        """Called with the name of each method before it is answered."""

    @property
    def is_open(self) -> bool:
        return not self.closed.done()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        pass

    async def qos(self, prefetch_count: int) -> None:
        await self._call("qos", prefetch_count)

    async def consume(self, queue: str, tag: str, on_deliveries: Any, *, receipt: Any) -> None:
        await self._call("consume", tag)

    async def check_queue(self, name: str) -> QueueState:
        """As a broker does: of what is not there it says so, and closes the channel for all who wait on it."""
        await self._call("check", name)
        await asyncio.sleep(0)  # the others ask meanwhile
        if name == "missing":
            self.closed.set_result(QueueNotFound("there is no queue 'missing'"))
        await asyncio.wait({self.closed}, timeout=0.01)
        if self.closed.done():
            raise self.closed.result()
        return QueueState(7, 1)

    async def cancel(self, tag: str) -> None:
        await self._call("cancel", tag)

    async def close(self) -> None:
        self.closed.set_result(ConnectionLost("closed"))

    async def _call(self, name: str, argument: Any) -> None:
        self.calls.append((name, argument))
        if self.before is not None:
            await self.before(name)


class FakeConnection:
    is_open = True
    version = ServerVersion.parse("RabbitMQ", "4.0.5")

    def __init__(self) -> None:
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self.channels: list[FakeChannel] = []
        self.state: Callable[[], Awaitable[QueueState]] | None = None

    async def ask(self, _question: Any) -> QueueState:
        assert self.state is not None
        return await self.state()

    async def channel(self) -> FakeChannel:
        self.channels.append(FakeChannel(self))
        return self.channels[-1]


class Scene:
    """A source that is open, and takes nothing yet."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.lost: list[Any] = []
        self.connection = FakeConnection()
        self.background = Background(self.errors.append)
        self.source = Subscription(
            "jobs",
            QueueSettings(),
            {},
            (),
            name="w",
            background=self.background,
            log=structlog.get_logger(),
            on_deliveries=lambda *_: None,
            on_lost=self.lost.extend,
        )

    async def open(self) -> FakeChannel:
        self.source._adopt(await self.connection.channel())  # type: ignore[arg-type] # without its declarations
        return self.connection.channels[0]


def test_a_source_whose_channel_does_not_answer_comes_back_on_another_one(monkeypatch: Any) -> None:
    """The channel is still open, and nobody would ask it again: the worker would never take anything."""

    async def scenario() -> None:
        async def no_answer(_name: str) -> None:
            raise ConnectionLost("the broker did not answer within 20 s")

        async def declared(*_: Any) -> None:
            pass

        monkeypatch.setattr("workerkit.brokers.rabbitmq.subscription.declare", declared)
        scene = Scene()
        channel = await scene.open()
        await scene.source.take(10)
        channel.before = no_answer
        await scene.source.take(0)
        assert scene.lost == [], "what runs can still be settled on it"
        await scene.source.take(10)
        assert len(scene.lost) == 1
        await asyncio.wait(scene.background._tasks)
        assert [name for name, _ in scene.connection.channels[1].calls] == ["qos", "consume"]
        assert scene.errors == []

    asyncio.run(scenario())


def test_a_count_from_the_middle_of_a_change_is_no_loss() -> None:
    """A smaller window: the old consumer ends, then the new one begins, and in between the queue has none of ours."""

    async def scenario() -> None:
        scene = Scene()
        channel = await scene.open()
        await scene.source.take(10)
        asked, answer = asyncio.Event(), asyncio.Event()

        async def state() -> QueueState:
            asked.set()
            await answer.wait()
            return QueueState(0, 0)

        scene.connection.state = state
        check = asyncio.create_task(scene.source.check())
        await asked.wait()
        await scene.source.take(1)
        answer.set()
        await check
        assert [name for name, _ in channel.calls] == ["qos", "consume", "cancel", "qos", "consume"]
        assert scene.lost == []
        await scene.source.check()
        assert len(scene.lost) == 1, "nothing changed meanwhile"
        await scene.background.finish(0)

    asyncio.run(scenario())


def test_a_queue_that_is_missing_is_not_taken_for_another_that_is_asked_about_meanwhile() -> None:
    """Its source would be given up, and all that it runs would come back."""

    async def scenario() -> None:
        connection = Connection("w")
        connection.channel = FakeConnection().channel  # type: ignore[method-assign,assignment]

        def state_of(queue: str) -> Awaitable[QueueState]:
            return connection.ask(lambda channel: channel.check_queue(queue))

        assert await state_of("jobs") == QueueState(7, 1)
        missing, state = await asyncio.gather(state_of("missing"), state_of("jobs"), return_exceptions=True)
        assert isinstance(missing, QueueNotFound)
        assert state == QueueState(7, 1)

    asyncio.run(scenario())
