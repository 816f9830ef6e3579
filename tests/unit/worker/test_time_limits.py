"""Time limits: what runs too long is found, asked for its stacks and ended, and nothing else is."""

import asyncio
import gc
import time

import pytest
from pool_fakes import ASYNC, FakeChild, Stage, turn

from workerkit import Cause, Reason
from workerkit.settlement import ACK, Outcome, Verb
from workerkit.worker import life as life_module
from workerkit.worker.life import Life
from workerkit.worker.page import Phase

LONG_AGO = 1  # nanoseconds after the machine's start
TIMED_OUT = Outcome(Verb.NACK, cause=Cause(Reason.TIMEOUT, "cancelled", traceback="the coroutine's"))


@pytest.fixture(autouse=True)
def _looks_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_module, "_LOOK_OFTEN", 0.01)


async def until(happened: list[int]) -> None:
    while not happened:  # noqa: ASYNC110 - a frame to a fake sets no event
        await asyncio.sleep(0)


async def test_a_callback_over_its_limit_is_ended_and_its_message_blamed_with_the_stacks() -> None:
    """The reason is the time limit, not the signal that we ended it with."""
    stage = Stage()
    executor = stage.ready(1, 2, callback_timeout=0.01)
    executor.begin(1, now_ns=LONG_AGO)
    await executor.killed.wait()
    executor.die()
    second = await stage.replacement()
    ((tag, aftermath),) = second.aftermaths
    assert (tag, aftermath.cause.reason, aftermath.cause.traceback) == (1, Reason.TIMEOUT, "the stacks")
    assert second.delivered == [2]
    assert len(stage.events("callback.timeout")) == 1


async def test_a_callback_that_ends_while_its_stacks_are_read_lives_on() -> None:
    """It was late and came to an end after all: it is settled as it said."""
    stage = Stage()
    executor = stage.ready(1, callback_timeout=0.01)
    executor.answer_stacks.clear()
    executor.begin(1, now_ns=LONG_AGO)
    await executor.stacks_asked.wait()
    executor.settle(1)
    executor.end(1)
    executor.drain()
    executor.answer_stacks.set()
    await turn()
    assert not executor.killed.is_set()
    assert stage.settler.settled == [(1, ACK)]


async def test_the_message_after_the_late_one_is_not_blamed_for_it() -> None:
    """The kill reaches the executor when the next callback has just begun: that one is run again, uncounted."""
    stage = Stage()
    executor = stage.ready(1, 2, callback_timeout=0.01)
    executor.begin(1, now_ns=LONG_AGO)
    await executor.killed.wait()
    executor.settle(1)
    executor.end(1)
    executor.begin(2)
    executor.die()
    second = await stage.replacement()
    assert second.aftermaths == []
    assert second.delivered == [2]
    assert stage.settler.settled == [(1, ACK)]


async def test_an_executor_that_dies_while_its_stacks_are_read_is_not_asked_again() -> None:
    """Its own death is the cause, its page is not read again, and its successor is watched as usual."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    stage = Stage()
    executor = stage.ready(1, callback_timeout=0.01)
    executor.answer_stacks.clear()
    executor.begin(1, now_ns=LONG_AGO)
    await executor.stacks_asked.wait()
    executor.die()
    executor.answer_stacks.set()
    second = await stage.replacement(callback_timeout=0.01)
    gc.collect()  # a task that failed says so when it is collected
    assert errors == []
    assert second.aftermaths[0][1].cause.reason is Reason.SIGNAL
    second.begin(1, phase=Phase.SHUTDOWN, now_ns=time.monotonic_ns())
    second.finish(1)
    stage.run(2)
    second.begin(2, now_ns=LONG_AGO)
    await second.killed.wait()
    assert stage.events("callback.timeout")[0]["message_id"] == "m2"


async def test_a_shutdown_over_its_limit_is_ended_and_settled_with_the_first_cause() -> None:
    """shutdown() has a limit of its own, also where callbacks have none."""
    stage = Stage()
    stage.ready(1).begin(1)
    stage.child.die()
    second = await stage.replacement()
    second.begin(1, phase=Phase.SHUTDOWN, now_ns=LONG_AGO)
    await second.killed.wait()
    second.die()
    ((tag, outcome),) = stage.settler.settled
    assert tag == 1
    assert outcome.cause is not None
    assert outcome.cause.reason is Reason.SIGNAL
    assert stage.events("callback.timeout")[0]["cause"] == "shutdown() ran longer than 10 s"


async def test_the_shutdown_of_a_settled_message_has_a_limit_too() -> None:
    """Nothing is left to settle, and still it must not keep the executor for ever."""
    stage = Stage()
    executor = stage.ready(1)
    executor.begin(1)
    executor.settle(1)
    executor.die()
    second = await stage.replacement()
    second.begin(1, phase=Phase.SHUTDOWN, now_ns=LONG_AGO)
    await second.killed.wait()


async def test_what_goes_on_after_its_acknowledgement_has_a_limit_too() -> None:
    """The next message waits for it."""
    stage = Stage()
    executor = stage.ready(1, callback_timeout=0.01)
    executor.begin(1, now_ns=LONG_AGO)
    executor.settle(1)
    executor.drain()
    await executor.killed.wait()
    assert stage.settler.settled == [(1, ACK)]


async def test_an_executor_that_announced_its_end_and_does_not_come_to_it_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After shutdown() a thread or an atexit handler may hang."""
    monkeypatch.setattr(life_module, "SHUTDOWN_TIMEOUT", 0.0)
    monkeypatch.setattr(life_module, "EXIT_TIMEOUT", 0.0)
    stage = Stage()
    executor = stage.ready(1)
    executor.begin(1)
    executor.announce(Cause(Reason.EXIT, "the callback called sys.exit(0)", exit_code=0), 1)
    await executor.killed.wait()


async def test_a_stop_does_not_give_it_the_time_that_it_would_have_otherwise() -> None:
    """The deadline is Supervisor's."""
    stage = Stage()
    executor = stage.ready(1)
    executor.begin(1)
    executor.announce(Cause(Reason.EXIT, "the callback called sys.exit(0)", exit_code=0), 1)
    executor.page.begin(*executor.places[1], Phase.SHUTDOWN, time.monotonic_ns())
    ending = asyncio.create_task(stage.pool.end(0.0))
    await executor.killed.wait()
    executor.die()
    await ending


async def test_an_executor_that_has_had_all_its_messages_and_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise its replacement never comes; one that still works is waited for."""
    monkeypatch.setattr(life_module, "EXIT_TIMEOUT", 0.0)
    stage = Stage()
    executor = stage.ready(1, max_messages=1)
    executor.begin(1)
    await asyncio.sleep(0.05)
    assert not executor.killed.is_set()
    executor.settle(1)
    executor.end(1)
    executor.drain()
    await executor.killed.wait()


async def test_inline_nothing_is_too_late() -> None:
    """Debugging takes hours."""
    stage = Stage(inline=True)
    executor = stage.ready(1, callback_timeout=0.01)
    executor.begin(1, now_ns=LONG_AGO)
    await asyncio.sleep(0.05)
    assert not executor.stacks_asked.is_set()
    assert executor.cancelled == []


class TestCoroutines:
    """A coroutine is asked to end, and only when that does not help is its executor ended."""

    async def test_one_over_its_limit_is_cancelled_once_and_settled_as_timed_out(self) -> None:
        """The reason says what the limit was; the traceback is that of the coroutine. Nothing else is touched."""
        stage = Stage()
        executor = stage.ready(1, 2, callback_timeout=0.01, **ASYNC)
        executor.begin(1, now_ns=LONG_AGO)
        executor.begin(2, now_ns=time.monotonic_ns() + 10**12)
        await until(executor.cancelled)
        await asyncio.sleep(0.05)
        assert executor.cancelled == [1]
        executor.settle(1, TIMED_OUT)
        executor.end(1)
        executor.drain()
        ((tag, outcome),) = stage.settler.settled
        assert outcome.cause is not None
        assert (tag, outcome.cause.reason, outcome.cause.traceback) == (1, Reason.TIMEOUT, "the coroutine's")
        assert outcome.cause.message == "the callback ran longer than 0.01 s"
        assert not executor.killed.is_set()

    async def test_one_that_does_not_end_is_ended_with_its_executor_and_blamed_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The others that ran are not suspects: they run again, uncounted."""
        monkeypatch.setattr(life_module, "CANCEL_TIMEOUT", 0.01)
        stage = Stage()
        executor = stage.ready(1, 2, 3, callback_timeout=0.01, **ASYNC)
        executor.begin(1, now_ns=LONG_AGO)
        executor.begin(2, now_ns=time.monotonic_ns() + 10**12)
        await executor.killed.wait()
        assert executor.cancelled == [1]
        executor.die()
        second = await stage.replacement(callback_timeout=0.01, **ASYNC)
        ((tag, aftermath),) = second.aftermaths
        assert (tag, aftermath.cause.reason, aftermath.cause.traceback) == (1, Reason.TIMEOUT, "the stacks")
        assert second.delivered == []
        second.finish(1, Outcome(Verb.NACK, cause=aftermath.cause))
        assert second.delivered == [2, 3]
        assert stage.settler.alone == []

    async def test_one_whose_message_is_lost_is_cancelled_under_on_lost_end(self) -> None:
        """As for its time limit, so that its ``finally`` blocks run; the others go on."""
        stage = Stage()
        executor = stage.ready(on_lost="end", **ASYNC)
        stage.run(1, receipt="a")
        stage.run(2, receipt="b")
        executor.begin(1, 2)
        stage.pool.forget(["a"])
        assert executor.cancelled == [1]
        assert not executor.killed.is_set()
        executor.settle(1, TIMED_OUT)
        executor.drain()
        ((tag, outcome),) = stage.settler.settled
        assert outcome.cause is not None
        assert (tag, outcome.cause.reason) == (1, Reason.LOST)

    async def test_one_that_keeps_the_loop_to_itself_is_named_once_with_its_stack(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The others wait for it; a missing await is the usual cause."""
        monkeypatch.setattr(life_module, "BLOCKED_AFTER", 0.0)
        stage = Stage()
        executor = stage.ready(1, 2, **ASYNC)
        executor.begin(1, 2, now_ns=time.monotonic_ns())
        executor.page.beat(time.monotonic_ns())
        executor.page.step(executor.places[2][1])
        await executor.stacks_asked.wait()
        await asyncio.sleep(0.05)
        (line,) = stage.events("callback.blocks_loop")
        assert (line["message_id"], line["stack"]) == ("m2", "the stacks")

    async def test_nobody_is_named_while_the_loop_comes_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long the callbacks take."""
        monkeypatch.setattr(life_module, "BLOCKED_AFTER", 60.0)
        stage = Stage()
        executor = stage.ready(1, **ASYNC)
        executor.begin(1, now_ns=LONG_AGO)
        executor.page.beat(time.monotonic_ns())
        executor.page.step(executor.places[1][1])
        await asyncio.sleep(0.05)
        assert stage.events("callback.blocks_loop") == []
        assert not executor.stacks_asked.is_set()


class TestLooks:
    """When a page is looked at next."""

    @staticmethod
    def at_work(**resolved: object) -> tuple[Stage, FakeChild, Life]:
        stage = Stage()
        executor = stage.ready(1, **resolved)
        executor.begin(1, now_ns=time.monotonic_ns())
        life = stage.pool._seats[0].life
        assert life is not None
        return stage, executor, life

    @staticmethod
    def next_look(life: Life) -> float | None:
        """Seconds until then; None for never."""
        life._look()
        return None if life._timer is None else life._timer.when() - asyncio.get_running_loop().time()

    async def test_it_is_no_later_than_the_limit(self) -> None:
        """Otherwise a callback of one second could run for five before anybody looks."""
        _, _, life = self.at_work()
        assert self.next_look(life) == pytest.approx(5.0, abs=0.4)
        _, _, life = self.at_work(callback_timeout=0.5)
        assert self.next_look(life) == pytest.approx(0.5, abs=0.4)

    async def test_it_is_when_the_time_of_the_running_one_is_up(self) -> None:
        """Not a tick later."""
        _, executor, life = self.at_work(callback_timeout=4.0)
        executor.begin(1, now_ns=time.monotonic_ns() - 10**9)
        assert self.next_look(life) == pytest.approx(3.0, abs=0.4)

    async def test_there_is_one_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that nobody knows of would come when the executor is gone, and its page with it."""
        stage = Stage()
        first, _second = await stage.several(2)
        stage.run(1, 2, 3)
        life = stage.pool._seats[0].life
        assert life is not None
        loop = asyncio.get_running_loop()
        timers = [life._timer]
        call_later = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda *about: timers.append(call_later(*about)) or timers[-1])
        first.begin(1)
        first.settle(1)
        first.end(1)
        life._look()  # finds room for the third message, which asks for a look
        assert first.delivered == [1, 3]
        assert [timer for timer in timers[1:] if timer is not None and not timer.cancelled()] == [life._timer]

    async def test_there_is_none_while_the_stacks_of_a_late_callback_are_read(self) -> None:
        """A second one would have it ended twice, whatever was handed over just before."""
        _, executor, life = self.at_work(callback_timeout=0.5)
        executor.answer_stacks.clear()
        executor.begin(1, now_ns=LONG_AGO)
        drain = executor.drain

        def hand_over() -> bool:
            life.watch()
            return drain()

        executor.drain = hand_over  # type: ignore[method-assign]  # what arrives has it sent something more
        assert self.next_look(life) is None
        executor.answer_stacks.set()

    async def test_there_is_none_while_there_is_nothing_to_do(self) -> None:
        """An idle worker wakes up for nothing."""
        _, executor, life = self.at_work()
        executor.settle(1)
        executor.end(1)
        assert self.next_look(life) is None

    async def test_it_is_soon_again_when_something_comes_to_wait_behind_a_long_callback(self) -> None:
        """Or it would be seconds until what waits is given to somebody else."""
        stage, _, life = self.at_work()
        assert self.next_look(life) == pytest.approx(5.0, abs=0.4)
        stage.run(2)
        assert life._timer is not None
        assert life._timer.when() - asyncio.get_running_loop().time() < 0.1

    async def test_there_is_one_timer_however_often_something_comes(self) -> None:
        """Each batch of messages asks for a look."""
        stage, _, life = self.at_work()
        timer = life._timer
        stage.run(2)
        stage.run(3)
        assert life._timer is timer
