"""WorkerTest: what users test their workers with behaves as the real worker does."""

import asyncio
import contextvars
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from workerkit import (
    AlreadySettled,
    Cause,
    MessageAdapter,
    Reason,
    RejectMessage,
    RetryMessage,
    RetryPolicy,
    WorkerTask,
)
from workerkit.errors import TaskLoadError
from workerkit.testing import WorkerTest


def raising(error: BaseException) -> Callable[[MessageAdapter], None]:
    def act(_message: MessageAdapter) -> None:
        raise error

    return act


ACTIONS: dict[str, Callable[[MessageAdapter], object]] = {
    "nack": MessageAdapter.nack,
    "retry": lambda message: message.retry(2),
    "reject": lambda message: message.reject("no such user"),
    "release": MessageAdapter.release,
    "forget": lambda message: None,
    "raise": raising(KeyError("k")),
    "raise retry": raising(RetryMessage()),
    "raise reject": raising(RejectMessage("bad")),
    "exit": raising(SystemExit(3)),
    "memory": raising(MemoryError()),
    "interrupt": raising(KeyboardInterrupt()),
    "fail": lambda message: pytest.fail("the test says no"),
}


class Obedient(WorkerTask):
    """Does what each message says, and acknowledges the others."""

    def initialize(self) -> None:
        super().initialize()
        self.set_queue("orders")
        self.seen: list[tuple[str | None, int]] = []

    def callback(self, message: MessageAdapter) -> None:
        self.seen.append((message.message_id, message.attempt))
        if isinstance(message.data, str) and message.data in ACTIONS:
            ACTIONS[message.data](message)
            return
        self.logger.info("done", what=message.data)
        message.ack()


class ObedientCoroutine(Obedient):
    """The same, on an event loop."""

    async def callback(self, message: MessageAdapter) -> None:
        await asyncio.sleep(0)
        Obedient.callback(self, message)


POLICY = RetryPolicy(max_attempts=3, delays=(5.0, 30.0))


def test_an_acknowledged_message_is_done() -> None:
    """It is in `acked`, with what it was published with."""
    with WorkerTest(Obedient) as worker:
        worker.publish({"a": 1}, message_id="m1", correlation_id="c1", headers={"h": 1.5}, reply_to="answers")
        assert worker.run() == 1
        (record,) = worker.acked
    assert (record.data, record.message_id, record.correlation_id) == ({"a": 1}, "m1", "c1")
    assert (record.headers, record.attempt, record.cause, record.reason) == ({"h": 1.5}, 1, None, None)
    assert (record.properties.reply_to, record.properties.content_type) == ("answers", "application/json")
    assert (record.exchange, record.routing_key) == ("", "orders")
    assert (worker.ready, worker.delayed, worker.dead_letters) == ([], [], [])


def test_a_failing_message_is_retried_after_its_delays_and_then_kept() -> None:
    """The clock moves only when it is told to."""
    with WorkerTest(Obedient, retry=POLICY) as worker:
        worker.publish("raise", message_id="m1")
        worker.run()
        (waiting,) = worker.delayed
        assert (waiting.due, waiting.attempt, waiting.reason) == (5.0, 2, Reason.EXCEPTION)
        worker.advance(4.9)
        assert worker.run() == 0
        worker.advance(0.1)
        assert [record.attempt for record in worker.ready] == [2]
        assert worker.run() == 1
        assert worker.delayed[0].due == pytest.approx(35.0)
        assert worker.run_all() == 1
        (letter,) = worker.dead_letters
        assert worker.now == pytest.approx(35.0)
        assert worker.task.seen == [("m1", 1), ("m1", 2), ("m1", 3)]
    assert (letter.reason, letter.attempt, letter.data, letter.routing_key) == (
        Reason.EXCEPTION,
        3,
        "raise",
        "orders.dead",
    )
    assert letter.headers["workerkit-reason"] == "exception"
    assert letter.headers["workerkit-exception"] == "KeyError"
    assert letter.headers["workerkit-attempt"] == 3
    assert letter.headers["workerkit-queue"] == "orders"
    assert letter.headers["workerkit-worker"] == "Obedient"
    assert letter.headers["workerkit-routing-key"] == "orders"
    assert "KeyError" in letter.headers["workerkit-traceback"]


@pytest.mark.parametrize("cls", [Obedient, ObedientCoroutine])
@pytest.mark.parametrize(
    ("data", "reason", "attempts", "now"),
    [
        ("nack", Reason.NACKED, 3, 35.0),
        ("retry", Reason.NACKED, 3, 4.0),
        ("reject", Reason.REJECTED, 1, 0.0),
        ("raise retry", Reason.NACKED, 3, 35.0),
        ("raise reject", Reason.REJECTED, 1, 0.0),
        ("forget", Reason.UNSETTLED, 3, 35.0),
        ("exit", Reason.EXIT, 3, 35.0),
        ("memory", Reason.MEMORY, 3, 35.0),
        ("interrupt", Reason.SIGNAL, 3, 35.0),
    ],
)
def test_every_end_of_a_callback_has_its_reason_its_attempts_and_its_delays(
    data: str, reason: Reason, attempts: int, now: float, cls: type[Obedient]
) -> None:
    """As with a real broker: the same `decide`, the same headers."""
    with WorkerTest(cls, retry=POLICY) as worker:
        worker.publish(data)
        assert worker.run_all() == attempts
        (letter,) = worker.dead_letters
    assert (letter.reason, letter.attempt, worker.now) == (reason, attempts, now)


def test_a_body_that_is_not_json_is_dead_at_once() -> None:
    """The raw bytes are kept."""
    with WorkerTest(Obedient) as worker:
        worker.publish(body=b"{")
        assert worker.run_all() == 1
        assert (worker.dead_letters[0].reason, worker.dead_letters[0].body) == (Reason.UNDECODABLE, b"{")


def test_a_released_message_is_first_in_the_queue_and_has_lost_no_attempt() -> None:
    """It is not run again in the same run: a worker that always releases would never stop."""
    with WorkerTest(Obedient) as worker:
        worker.publish("release", message_id="m1")
        worker.publish("fine", message_id="m2")
        worker.publish("release", message_id="m3")
        assert worker.run() == 3
        assert [(record.message_id, record.attempt, record.redelivered) for record in worker.ready] == [
            ("m1", 1, True),
            ("m3", 1, True),
        ]
        worker.publish("fine", message_id="m4")
        assert worker.run_all() == 3
        assert [message for message, _ in worker.task.seen] == ["m1", "m2", "m3", "m1", "m3", "m4"]


def test_what_is_released_again_and_again_waits_longer_each_time() -> None:
    """The first time it goes back to where it was; nothing of it is an attempt, and only the test moves the clock."""
    with WorkerTest(Obedient) as worker:
        worker.publish("release", message_id="m1")
        assert (worker.run(), worker.run()) == (1, 1)
        waits = []
        for _ in range(8):
            (waiting,) = worker.delayed
            assert worker.ready == []
            assert (waiting.attempt, waiting.cause) == (1, None)
            waits.append(waiting.due - worker.now)
            assert worker.run_all() == 0
            worker.advance(waits[-1])
            assert worker.run() == 1
        assert waits == [1, 2, 4, 8, 16, 32, 64, 64]
        assert worker.task.seen == [("m1", 1)] * 10


def test_several_queues_are_worked_on_by_their_weights() -> None:
    """As a worker does: by share while all have messages, each queue in its order."""
    order: list[str] = []

    class Noting(WorkerTask):
        def callback(self, message: MessageAdapter) -> None:
            order.append(str(message.message_id))
            message.ack()

    with WorkerTest(Noting, queues={"urgent": 2, "bulk": 1}) as worker:
        for number in range(6):
            worker.publish(1, message_id=f"u{number}", queue="urgent")
            worker.publish(1, message_id=f"b{number}", queue="bulk")
        worker.run()
    assert sorted(order[:9]) == ["b0", "b1", "b2", "u0", "u1", "u2", "u3", "u4", "u5"]
    assert [name for name in order if name[0] == "b"] == [f"b{number}" for number in range(6)]


class Queued(WorkerTask):
    """Notes which queue each message came from."""

    def initialize(self) -> None:
        super().initialize()
        self.set_queues({"low": 1, "high": 9})
        self.seen: list[str] = []

    def callback(self, message: MessageAdapter) -> None:
        self.seen.append(message.queue)
        if message.data == "fail":
            raise KeyError("k")
        message.ack()


def test_several_queues_with_a_strict_order_and_retries_of_each() -> None:
    """The highest weight first. A retry and a dead letter belong to the queue of their message."""
    with WorkerTest(Queued, select="strict", retry=POLICY) as worker:
        worker.publish(1)
        worker.publish(2, queue="high")
        worker.publish("fail", queue="low")
        worker.publish("fail", queue="high")
        worker.run()
        assert worker.task.seen == ["high", "high", "low", "low"]
        assert [record.queue for record in worker.delayed] == ["high", "low"]
        worker.run_all()
        assert [record.queue for record in worker.dead_letters] == ["high.dead", "low.dead"]
        assert [record.headers["workerkit-queue"] for record in worker.dead_letters] == ["high", "low"]
        with pytest.raises(ValueError, match="the worker does not consume 'other'; it consumes low, high"):
            worker.publish(3, queue="other")


class AlwaysWrong:
    def __init__(self, weights: dict[str, int]) -> None:
        pass

    def choose(self, waiting: dict[str, int]) -> str:
        return "nowhere"


def test_a_strategy_that_fails_fails_the_test() -> None:
    """A worker would go on with another one."""
    with WorkerTest(Queued, select=f"{__name__}:AlwaysWrong") as worker:
        worker.publish(1)
        with pytest.raises(AssertionError, match="it chose 'nowhere', which has nothing waiting"):
            worker.run()


def test_a_message_may_be_published_with_a_delay() -> None:
    """It is ready when its time comes, and then for its first attempt."""
    with WorkerTest(Obedient) as worker:
        worker.publish("fine", message_id="m1", delay=60)
        assert worker.run() == 0
        assert worker.delayed[0].due == 60
        assert worker.run_all() == 1
        assert (worker.now, worker.acked[0].attempt) == (60, 1)


word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="unsaid")


class Looping(WorkerTask):
    """Coroutines throughout; what `initialize` starts on the loop is there in the callbacks."""

    async def initialize(self) -> None:
        WorkerTask.initialize(self)
        self.jobs: asyncio.Queue[MessageAdapter] = asyncio.Queue()
        self.done: list[str] = []
        self.background = asyncio.create_task(self.work())

    async def work(self) -> None:
        try:
            while True:
                message = await self.jobs.get()
                message.ack()
                self.jobs.task_done()
        finally:
            self.done.append("ended")

    async def callback(self, message: MessageAdapter) -> None:
        self.done.append(word.get())
        word.set("said")
        await self.jobs.put(message)
        await self.jobs.join()
        if message.data == "exit":
            raise SystemExit(2)

    async def shutdown(self, message: MessageAdapter, cause: Cause) -> None:
        await asyncio.sleep(0)
        self.done.append(cause.reason.value)


def test_coroutines_share_a_loop_for_as_long_as_their_task_lives() -> None:
    """Nothing of one message's context is there for the next one; after a death the loop is another one."""
    with WorkerTest(Looping) as worker:
        first = worker.task
        for data in (1, 2, "exit", 3):
            worker.publish(data)
        assert worker.run() == 4
        assert len(worker.acked) == 4
        assert first.done == ["unsaid", "unsaid", "unsaid", "exit", "ended"]
        second = worker.task
        assert second is not first
    assert second.done == ["unsaid", "ended"]


class Passing(WorkerTask):
    """Passes each message on: to the next of its own queues, and to somebody else's."""

    def initialize(self) -> None:
        super().initialize()
        self.set_queues({"first": 1, "second": 1})

    def callback(self, message: MessageAdapter) -> None:
        if message.queue == "first":
            message.publish("second", {"step": 2}, headers={"h": 1}, delay=5)
            message.publish(None, "news", exchange="events", routing_key="a.b")
            message.publish("elsewhere", "x")
        if message.data == "fail":
            raise KeyError("k")
        message.ack()


def test_what_is_published_with_an_acknowledgement_is_noted_and_goes_to_a_queue_of_the_worker() -> None:
    """Ids and delays as on the wire; other queues and exchanges are somebody else's."""
    with WorkerTest(Passing) as worker:
        worker.publish({"step": 1}, message_id="m", correlation_id="c")
        assert worker.run() == 1
        own, exchange, other = worker.published
        assert (own.queue, own.exchange, own.data, own.delay) == ("second", "", {"step": 2}, 5)
        assert (own.headers, own.message_id, own.correlation_id) == ({"h": 1}, "m/1", "c")
        assert (exchange.queue, exchange.exchange, exchange.routing_key) == ("", "events", "a.b")
        assert (exchange.data, exchange.delay, exchange.message_id) == ("news", None, "m/2")
        assert (other.queue, other.data) == ("elsewhere", "x")
        assert [(record.queue, record.due) for record in worker.delayed] == [("second", 5)]
        assert worker.run_all() == 1
        assert [(record.queue, record.attempt) for record in worker.acked] == [("first", 1), ("second", 1)]


def test_nothing_is_published_by_an_attempt_that_fails() -> None:
    """Only with the acknowledgement."""
    with WorkerTest(Passing, retry=RetryPolicy(max_attempts=1)) as worker:
        worker.publish("fail")
        worker.run_all()
        assert worker.published == []
        assert worker.dead_letters[0].reason is Reason.EXCEPTION


class Peeking(WorkerTask):
    """Notes how many messages are still in the queue while it works."""

    worker: Any
    left: list[int]

    def callback(self, message: MessageAdapter) -> None:
        message.ack()
        self.left.append(len(self.worker.ready))


def test_the_prefetch_count_is_how_many_leave_the_queue_at_once() -> None:
    """The queue is as long as the broker would say."""
    for prefetch_count, expected in ((1, [3, 2, 1, 0]), (3, [1, 1, 1, 0])):
        Peeking.left = []
        with WorkerTest(Peeking, prefetch_count=prefetch_count) as worker:
            Peeking.worker = worker
            for number in range(4):
                worker.publish(number)
            worker.run()
        assert Peeking.left == expected


def test_retries_join_the_end_of_the_queue_in_the_order_of_their_times() -> None:
    """Equal times keep the order of their failures."""
    with WorkerTest(Obedient, retry=POLICY) as worker:
        for message_id, data in (("m1", "nack"), ("m2", "retry"), ("m3", "nack")):
            worker.publish(data, message_id=message_id)
        worker.run()
        assert [(record.message_id, record.due) for record in worker.delayed] == [("m2", 2.0), ("m1", 5.0), ("m3", 5.0)]
        worker.publish("fine", message_id="m4")
        worker.advance(5)
        assert [record.message_id for record in worker.ready] == ["m4", "m2", "m1", "m3"]


@pytest.mark.parametrize("cls", [Obedient, ObedientCoroutine])
def test_after_a_death_a_new_task_takes_over_what_was_not_started(cls: type[Obedient]) -> None:
    """shutdown() ran in the old one; the others are worked on in order by the new one, which was initialized."""
    told: list[Cause] = []

    class Task(cls):  # type: ignore[valid-type, misc]
        def shutdown(self, message: MessageAdapter, cause: Cause) -> None:
            told.append(cause)
            super().shutdown(message, cause)

    with WorkerTest(Task, prefetch_count=3) as worker:
        first = worker.task
        for message_id, data in (("m1", "exit"), ("m2", "fine"), ("m3", "fine")):
            worker.publish(data, message_id=message_id)
        worker.run()
        assert worker.task is not first
        assert (first.seen, worker.task.seen) == ([("m1", 1)], [("m2", 1), ("m3", 1)])
        assert told == worker.deaths
        assert [entry["event"] for entry in worker.logs] == ["callback.died", "done", "done"]
        assert worker.delayed[0].cause == told[0]


@pytest.mark.parametrize("cls", [Obedient, ObedientCoroutine])
def test_a_failure_of_the_test_itself_reaches_the_test(cls: type[Obedient]) -> None:
    """pytest.fail in a callback is not a death of the worker; its message is as if the worker had gone away."""
    with WorkerTest(cls) as worker:
        worker.publish("fail", message_id="m1")
        with pytest.raises(pytest.fail.Exception, match="the test says no"):
            worker.run()
        assert [(record.message_id, record.redelivered) for record in worker.ready] == [("m1", True)]
        assert worker.deaths == []


def test_settings_count_as_in_the_yaml() -> None:
    """Over the class, under initialize()."""

    class Silent(WorkerTask):
        queue = "from-class"

        def initialize(self) -> None:
            super().initialize()
            self.prefetch_count = 5

        def callback(self, message: MessageAdapter) -> None:
            pass

    with WorkerTest(Silent, auto_ack=True, prefetch_count=9, queue="from-settings") as worker:
        worker.publish(None)
        worker.run()
        assert [record.routing_key for record in worker.acked] == ["from-settings"]
        assert worker.task.prefetch_count == 5
    with pytest.raises(TypeError, match="no setting of a worker: prefetch; there are queue, queues, select"):
        WorkerTest(Silent, prefetch=9)


class Order(msgspec.Struct):
    id: int


class Typed(WorkerTask):
    payload_type = Order

    def callback(self, message: MessageAdapter) -> None:
        assert isinstance(message.data, Order)
        message.ack()


def test_a_task_with_a_payload_type_gets_that_type_and_records_stay_plain() -> None:
    """A queue named by nobody is called `test`."""
    with WorkerTest(Typed) as worker:
        worker.publish(Order(1))
        worker.publish({"id": "one"})
        worker.run()
        assert [record.data for record in worker.acked] == [{"id": 1}]
        assert worker.dead_letters[0].reason is Reason.UNDECODABLE
        assert worker.task.queue == "test"


def test_a_message_can_arrive_for_its_last_attempt() -> None:
    """With the header that counts."""
    with WorkerTest(Obedient, retry=POLICY) as worker:
        worker.publish("raise", headers={"workerkit-attempt": 3})
        worker.run()
        assert worker.dead_letters[0].attempt == 3


def test_a_task_that_a_worker_would_refuse_is_refused() -> None:
    """With the same text."""

    class Empty(WorkerTask):
        pass

    with pytest.raises(TaskLoadError, match=r"Empty does not implement callback"):
        WorkerTest(Empty)
    with (
        pytest.raises(TaskLoadError, match="prefetch_count must be a whole number from 1 to 65535 or `auto`, not 0"),
        WorkerTest(Obedient, prefetch_count=0),
    ):
        pass


def test_what_initialize_raises_reaches_the_test() -> None:
    """And logs of later tests are not captured by a worker that never started."""

    class Broken(Obedient):
        def initialize(self) -> None:
            raise ConnectionError("database")

    with pytest.raises(ConnectionError, match="database"), WorkerTest(Broken):
        pass


def test_a_second_verb_raises_in_the_callback() -> None:
    """The first one stands."""
    caught: list[Exception] = []

    class Task(Obedient):
        def callback(self, message: MessageAdapter) -> None:
            message.ack()
            try:
                message.nack()
            except AlreadySettled as error:
                caught.append(error)

    with WorkerTest(Task) as worker:
        worker.publish(1)
        worker.run_all()
        assert len(worker.acked) == len(caught) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"data": 1, "body": b"1"}, TypeError),
        ({"data": 1, "no_such_property": 1}, TypeError),
        ({"data": 1, "headers": {"k": object()}}, ValueError),
        ({"data": 1, "message_id": "x" * 256}, ValueError),
    ],
)
def test_what_cannot_be_published_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    """As a broker or a client library would."""
    with WorkerTest(Obedient) as worker:
        with pytest.raises(error):
            worker.publish(**arguments)
        assert worker.ready == []


def test_the_clock_does_not_run_backwards() -> None:
    """Nor to where nobody can say."""
    with WorkerTest(Obedient) as worker:
        for seconds in (-1, float("nan")):
            with pytest.raises(ValueError, match="a clock moves on"):
                worker.advance(seconds)


def test_importing_it_imports_no_broker() -> None:
    """Tests of workers need no pika, and start fast."""
    code = (
        "import sys, workerkit.testing; print([name for name in sys.modules if 'pika' in name or 'rabbitmq' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr
