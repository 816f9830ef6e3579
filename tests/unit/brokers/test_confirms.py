"""What a publisher makes of a broker's answers: each message ends once, as the broker said, or in time without it."""

import asyncio
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.loops import on_a_loop

from workerkit.brokers.rabbitmq import publisher as publisher_module
from workerkit.brokers.rabbitmq.publisher import ConfirmedPublisher
from workerkit.errors import BrokerError, ConnectionFailed, ConnectionLost, PublishFailed
from workerkit.properties import Properties, encode

PLAIN = encode(Properties())


class Channel:
    """What is published on it, and a way to answer."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, bytes, bytes]] = []
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self.fault: BaseException | None = None
        self.stopped = False

    @property
    def is_open(self) -> bool:
        return not self.closed.done()

    def on_return(self, callback: Any) -> None:
        self._on_return = callback

    async def confirm_select(self, on_confirm: Any) -> None:
        await asyncio.sleep(0)
        self.confirm = on_confirm

    def publish(self, *message: Any) -> None:
        if self.fault is not None:
            raise self.fault
        assert not self.stopped
        self.published.append(message)

    def stop_publishing(self) -> None:
        self.stopped = True

    def give_back(self, tag: int) -> None:
        exchange, routing_key, properties, body = self.published[tag - 1]
        self._on_return(exchange, routing_key, pika.BasicProperties().decode(properties), body, "312 NO_ROUTE")


class Connection:
    """A broker that says what a test makes it say."""

    def __init__(self) -> None:
        self.blocked_by = ""
        self.aborted = False
        self.channels: list[Channel] = []

    @property
    def is_open(self) -> bool:
        return not self.aborted

    async def channel(self) -> Channel:
        await asyncio.sleep(0)
        self.channels.append(Channel())
        return self.channels[-1]

    def abort(self) -> None:
        self.aborted = True
        for channel in self.channels:
            if channel.is_open:
                channel.closed.set_result(ConnectionLost("given up"))


class Scene:
    """A publisher with one connection after the other."""

    def __init__(self, **options: Any) -> None:
        self.connections: list[Connection] = []
        self.publisher = ConfirmedPublisher(self._connect, **options)  # type: ignore[arg-type]
        self.ended: list[list[PublishFailed | None]] = []

    async def _connect(self) -> Connection:
        await asyncio.sleep(0)
        self.connections.append(Connection())
        return self.connections[-1]

    @property
    def connection(self) -> Connection:
        return self.connections[-1]

    @property
    def channel(self) -> Channel:
        return self.connection.channels[-1]

    async def submit(self, body: bytes = b"body", properties: bytes = PLAIN) -> None:
        await self.publisher.room()
        self.ended.append([])
        self.publisher.submit("", "q", properties, body, self.ended[-1].append)

    def outcomes(self) -> list[str]:
        """The name of each outcome, empty for none yet; fails where a message has ended twice."""
        assert all(len(ended) <= 1 for ended in self.ended)
        return [("Confirmed" if ended[0] is None else type(ended[0]).__name__) if ended else "" for ended in self.ended]


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of half a second."""
    monkeypatch.setattr(publisher_module, "PUBLISH_TIMEOUT", 0.5)


class Broker:
    """Looks at messages in order and returns some at once; confirms what it has looked at in any order."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.scene = Scene()
        self.expected: list[str] = []  # by message
        self._connect()

    def _connect(self) -> None:
        self.fates: list[str] = []  # of what is published on the present channel, by tag - 1
        self.seen = 0
        self.unconfirmed: list[int] = []  # tags

    async def publish(self) -> None:
        for fate in self.draw(st.lists(st.sampled_from(["Confirmed", "Unroutable", "PublishRefused"]), max_size=5)):
            await self.scene.submit(properties=encode(Properties(message_id=str(len(self.expected)))))
            self.fates.append(fate)
            self.expected.append("")

    async def look(self) -> None:
        for tag in range(self.seen + 1, self.draw(st.integers(self.seen, len(self.fates))) + 1):
            self.seen = tag
            self.unconfirmed.append(tag)
            if self.fates[tag - 1] == "Unroutable":
                self.scene.channel.give_back(tag)

    async def confirm(self) -> None:
        if not self.unconfirmed:
            return
        tag = self.draw(st.sampled_from(self.unconfirmed))
        refused = self.fates[tag - 1] == "PublishRefused"
        run = [other for other in self.unconfirmed if other <= tag]
        multiple = self.draw(st.booleans()) and all((self.fates[t - 1] == "PublishRefused") == refused for t in run)
        for other in run if multiple else [tag]:
            self.unconfirmed.remove(other)
            self.expected[other - 1 - len(self.fates)] = self.fates[other - 1]
        self.scene.channel.confirm(tag, multiple, not refused)

    async def lose(self) -> None:
        if self.scene.connections:
            self.scene.connection.abort()
            await asyncio.sleep(0)
            self.expected = [outcome or "Unconfirmed" for outcome in self.expected]
            self._connect()


@given(st.data())
def test_every_message_ends_once_and_as_the_broker_said(data: st.DataObject) -> None:
    """Confirms one by one and in runs, and the loss of the connection at any point: what is open then is unconfirmed,
    and the tags of the next one count from 1 again."""

    async def scene() -> None:
        broker = Broker(data)
        steps = st.sampled_from([broker.publish, broker.look, broker.confirm, broker.lose])
        for step in data.draw(st.lists(steps, max_size=40)):
            await step()
            assert broker.scene.outcomes() == broker.expected

    asyncio.run(scene())


@on_a_loop
async def test_a_return_is_of_the_message_with_its_properties() -> None:
    """The first of two that look alike may be on its way into a queue that is gone when the second is routed."""
    scene = Scene()
    for name in ("routed", "returned"):
        await scene.submit(properties=encode(Properties(message_id=name)))
    scene.channel.give_back(2)
    scene.channel.confirm(2, True, True)
    assert scene.outcomes() == ["Confirmed", "Unroutable"]


@on_a_loop
async def test_a_return_whose_properties_the_broker_changed_is_of_the_oldest_alike() -> None:
    """Nobody else can be meant."""
    scene = Scene()
    for body in (b"a", b"b", b"b"):
        await scene.submit(body)
    scene.channel.published[1] = ("", "q", encode(Properties(headers={"routed-by": "an interceptor"})), b"b")
    scene.channel.give_back(2)
    scene.channel.confirm(3, True, True)
    assert scene.outcomes() == ["Confirmed", "Unroutable", "Confirmed"]


@on_a_loop
async def test_what_came_back_on_a_lost_connection_says_nothing_of_the_next() -> None:
    """Tags count from 1 again, and so do returns."""
    scene = Scene()
    for body in (b"1", b"2", b"3"):
        await scene.submit(body)
    scene.channel.give_back(3)
    scene.connection.abort()
    for body in (b"1", b"2", b"3"):
        await scene.submit(body)
    scene.channel.give_back(1)
    scene.channel.confirm(3, True, True)
    assert scene.outcomes() == ["Unconfirmed"] * 3 + ["Unroutable", "Confirmed", "Confirmed"]


@on_a_loop
async def test_a_return_that_fits_no_message_ends_the_connection() -> None:
    """One of those in flight is not where its confirm will say it is."""
    scene = Scene()
    await scene.submit(b"ours")
    scene.channel.published[0] = ("", "q", PLAIN, b"not ours")
    scene.channel.give_back(1)
    scene.channel.confirm(1, False, True)
    assert scene.outcomes() == ["Unconfirmed"]
    assert scene.connection.aborted


@on_a_loop
async def test_messages_alike_in_everything_come_back_one_by_one() -> None:
    """Two returns are two messages."""
    scene = Scene()
    for _ in range(3):
        await scene.submit()
    scene.channel.give_back(1)
    scene.channel.give_back(2)
    scene.channel.confirm(3, True, True)
    assert scene.outcomes() == ["Unroutable", "Unroutable", "Confirmed"]


@pytest.mark.usefixtures("_quick")
@on_a_loop
async def test_the_deadline_holds_for_each_while_others_are_confirmed() -> None:
    """A broker that confirms everything else keeps nobody waiting; the connection is left behind."""
    scene = Scene()
    await scene.submit()
    started = asyncio.get_running_loop().time()
    while not scene.ended[0]:
        await scene.submit()
        scene.channel.confirm(len(scene.ended), False, True)
        await asyncio.sleep(0.02)
    assert 0.5 <= asyncio.get_running_loop().time() - started < 1
    assert scene.outcomes() == ["PublishTimeout"] + ["Confirmed"] * (len(scene.ended) - 1)
    assert scene.channel.stopped
    assert scene.connection.aborted


@pytest.mark.usefixtures("_quick")
@on_a_loop
async def test_what_was_published_before_the_deadline_of_another_is_unconfirmed() -> None:
    """Its own time is not up, and its confirm cannot come any more."""
    scene = Scene()
    await scene.submit()
    await asyncio.sleep(0.3)
    await scene.submit()
    await asyncio.sleep(0.4)
    assert scene.outcomes() == ["PublishTimeout", "Unconfirmed"]
    await scene.submit()
    scene.channel.confirm(1, False, True)
    assert scene.outcomes() == ["PublishTimeout", "Unconfirmed", "Confirmed"]
    assert len(scene.connections) == 2


@pytest.mark.usefixtures("_quick")
@on_a_loop
async def test_the_time_in_which_the_broker_blocks_does_not_count() -> None:
    """It gets the whole time once it reads again, whenever that is."""
    scene = Scene(wait_while_blocked=True)
    await scene.submit()
    scene.connection.blocked_by = "low on memory"
    await asyncio.sleep(0.95)
    scene.connection.blocked_by = ""
    await asyncio.sleep(0.3)
    assert scene.outcomes() == [""]
    await asyncio.sleep(0.5)
    assert scene.outcomes() == ["PublishTimeout"]


@on_a_loop
async def test_the_window_is_bounded_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more are written until half of them is confirmed; then there is room for that half."""
    monkeypatch.setattr(publisher_module, "WINDOW", 10)
    scene = Scene()
    for _ in range(10):
        await scene.submit()
    assert not scene.publisher.ready
    waiting = asyncio.create_task(scene.submit())
    scene.channel.confirm(4, True, True)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    scene.channel.confirm(5, False, True)
    await asyncio.wait_for(waiting, 1)
    for _ in range(4):
        await scene.submit()
    assert not scene.publisher.ready


@on_a_loop
async def test_the_window_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message may be bigger than it, alone."""
    monkeypatch.setattr(publisher_module, "WINDOW_BYTES", 1000)
    scene = Scene()
    await scene.submit(bytes(5000))
    assert not scene.publisher.ready
    scene.channel.confirm(1, False, True)
    for size in (400, 400, 400):
        await scene.submit(bytes(size))
    assert not scene.publisher.ready
    scene.connection.abort()
    await scene.submit(bytes(999))
    assert scene.publisher.ready


@on_a_loop
async def test_who_waits_for_room_gets_it_on_the_next_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the first is lost with everything that filled it."""
    monkeypatch.setattr(publisher_module, "WINDOW", 10)
    scene = Scene()
    for _ in range(10):
        await scene.submit()
    waiting = [asyncio.create_task(scene.publisher.publish("", "q", PLAIN, b"waits")) for _ in range(5)]
    await asyncio.sleep(0.01)
    scene.connection.abort()
    await asyncio.sleep(0.01)
    assert scene.outcomes() == ["Unconfirmed"] * 10
    scene.channel.confirm(5, True, True)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [None] * 5


@on_a_loop
async def test_all_who_wait_for_a_connection_learn_from_one_attempt() -> None:
    """A hundred retries at once are not a hundred attempts in a row, each with its own time limit."""
    attempts = 0

    async def refuse() -> Any:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0.05)
        raise ConnectionFailed("nobody answers")

    publisher = ConfirmedPublisher(refuse)
    for number in (1, 2):
        tries = [publisher.publish("", "q", PLAIN, b"") for _ in range(100)]
        errors = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(error) for error in errors] == [ConnectionFailed] * 100
        assert attempts == number


@on_a_loop
async def test_an_attempt_to_connect_is_not_given_up_with_whoever_waited_first() -> None:
    """A time limit may be shorter than a handshake: the others wait on, and closing ends it."""
    scene = Scene()
    first = asyncio.create_task(scene.publisher.channel())
    second = asyncio.create_task(scene.publisher.channel())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert len(scene.connections) == 1

    cancelled = asyncio.Event()

    async def wait() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    publisher = ConfirmedPublisher(wait)
    opening = asyncio.create_task(publisher.channel())
    await asyncio.sleep(0.01)
    await publisher.close()
    assert cancelled.is_set()
    await asyncio.gather(opening, return_exceptions=True)


@on_a_loop
async def test_a_publish_that_is_given_up_by_its_caller_still_has_its_tag() -> None:
    """The broker counts it, so the next confirm is of the next message."""
    scene = Scene()
    await scene.submit()
    publish = asyncio.create_task(scene.publisher.publish("", "q", PLAIN, b"cancelled"))
    await asyncio.sleep(0)
    publish.cancel()
    await asyncio.gather(publish, return_exceptions=True)
    await scene.submit()
    scene.channel.confirm(2, True, True)
    assert scene.outcomes() == ["Confirmed", ""]
    scene.channel.confirm(3, False, False)
    assert scene.outcomes() == ["Confirmed", "PublishRefused"]


@on_a_loop
async def test_a_message_that_was_not_taken_has_no_tag() -> None:
    """A name too long, a channel that has just closed: the broker does not count it, so neither do we."""
    scene = Scene()
    await scene.submit()
    scene.channel.fault = ConnectionLost("the channel is closed")
    with pytest.raises(ConnectionLost):
        await scene.publisher.publish("", "q", PLAIN, b"")
    scene.channel.fault = None
    await scene.submit()
    scene.channel.confirm(1, False, True)
    scene.channel.confirm(2, False, False)
    assert scene.outcomes() == ["Confirmed", "PublishRefused"]


@on_a_loop
async def test_nothing_is_published_on_a_channel_whose_count_is_not_known() -> None:
    """A fault in the middle of writing, out of memory say: a confirm could be of one message or of its neighbour."""
    scene = Scene()
    await scene.submit()
    scene.channel.fault = MemoryError()
    with pytest.raises(MemoryError):
        await scene.publisher.publish("", "q", PLAIN, b"")
    assert scene.outcomes() == ["Unconfirmed"]
    await asyncio.sleep(0)
    await scene.submit()
    assert len(scene.connections) == 2
