"""Time limits: what runs too long is found, asked for its stacks and ended, and nothing else is."""

import asyncio
import gc
import time
from unittest.mock import Mock

import pytest
from keeper_fakes import FakeExecutor, Stage

from workerkit import Cause, Reason
from workerkit.settlement import ACK
from workerkit.worker import clock as clock_module
from workerkit.worker import keeper as keeper_module
from workerkit.worker.clock import Clock
from workerkit.worker.link import Phase, Running

LONG_AGO = 1  # nanoseconds after the machine's start


async def killed(executor: FakeExecutor) -> None:
    """Wait until the keeper ends this executor."""
    event = asyncio.Event()
    executor.kill = event.set  # type: ignore[method-assign]
    await event.wait()


async def test_a_callback_over_its_limit_is_ended_and_its_message_blamed_with_the_stacks() -> None:
    """The reason is the time limit, not the signal that we ended it with."""
    stage = Stage()
    executor = stage.ready(1, 2, callback_timeout=0.01)
    executor.begin(1, now_ns=LONG_AGO)
    await killed(executor)
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
    executor.page.end()
    executor.drain()
    executor.answer_stacks.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not executor.killed
    assert stage.settler.settled == [(1, ACK)]


async def test_the_message_after_the_late_one_is_not_blamed_for_it() -> None:
    """The kill reaches the executor when the next callback has just begun: that one is run again, uncounted."""
    stage = Stage()
    executor = stage.ready(1, 2, callback_timeout=0.01)
    executor.begin(1, now_ns=LONG_AGO)
    await killed(executor)
    executor.finish(1)
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
    second.begin(1, Phase.SHUTDOWN, time.monotonic_ns())
    second.finish(1)
    stage.forward(2)
    second.begin(2, now_ns=LONG_AGO)
    await killed(second)
    assert stage.events("callback.timeout")[0]["message_id"] == "m2"


async def test_a_shutdown_over_its_limit_is_ended_and_settled_with_the_first_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """shutdown() has a limit of its own, also where callbacks have none."""
    monkeypatch.setattr(clock_module, "_LONGEST_TICK", 0.01)
    stage = Stage()
    stage.ready(1).begin(1)
    stage.executor.die()
    second = await stage.replacement()
    second.begin(1, Phase.SHUTDOWN, LONG_AGO)
    await killed(second)
    second.die()
    ((tag, outcome),) = stage.settler.settled
    assert tag == 1
    assert outcome.cause is not None
    assert outcome.cause.reason is Reason.SIGNAL
    assert stage.events("callback.timeout")[0]["cause"] == "shutdown() ran longer than 10 s"


async def test_the_shutdown_of_a_settled_message_has_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to settle, and still it must not keep the executor for ever."""
    monkeypatch.setattr(clock_module, "_LONGEST_TICK", 0.01)
    stage = Stage()
    executor = stage.ready(1)
    executor.begin(1)
    executor.settle(1)
    executor.die()
    second = await stage.replacement()
    second.begin(1, Phase.SHUTDOWN, LONG_AGO)
    await killed(second)


async def test_an_executor_that_announced_its_end_and_does_not_come_to_it_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After shutdown() a thread or an atexit handler may hang."""
    monkeypatch.setattr(keeper_module, "SHUTDOWN_TIMEOUT", 0.0)
    monkeypatch.setattr(keeper_module, "EXIT_TIMEOUT", 0.0)
    stage = Stage()
    executor = stage.ready(1)
    executor.begin(1)
    event = asyncio.Event()
    executor.kill = event.set  # type: ignore[method-assign]
    executor.announce(Cause(Reason.EXIT, "the callback called sys.exit(0)", exit_code=0), 1)
    await event.wait()


class TestTicks:
    """When the clock looks next, seen through the timers that it sets."""

    @staticmethod
    def make(monkeypatch: pytest.MonkeyPatch, *, work: bool = True) -> tuple[Clock, FakeExecutor, list[float]]:
        found: list[Running] = []
        clock = Clock(lambda: work, lambda running, limit, stacks: found.append(running))
        delays: list[float] = []
        original = clock._look_later

        def look_later(executor: FakeExecutor, delay: float) -> None:
            delays.append(delay)
            original(executor, delay)  # type: ignore[arg-type]

        monkeypatch.setattr(clock, "_look_later", look_later)
        return clock, FakeExecutor(Mock()), delays

    async def test_it_ticks_no_slower_than_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Otherwise a callback of one second could run for five before anybody looks."""
        clock, executor, delays = self.make(monkeypatch)
        clock.watch(executor)  # type: ignore[arg-type]
        clock.stop()
        clock.callback_timeout = 0.5
        clock.watch(executor)  # type: ignore[arg-type]
        clock.stop()
        assert delays == [5.0, 0.5]

    async def test_it_looks_again_exactly_when_the_time_is_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not a tick later."""
        monkeypatch.setattr(clock_module.time, "monotonic", lambda: 100.0)
        clock, executor, delays = self.make(monkeypatch)
        clock.callback_timeout = 4.0
        executor.begin(1, now_ns=99 * 10**9)
        clock._look(executor)  # type: ignore[arg-type]
        clock.stop()
        assert delays == [3.0]

    async def test_it_stands_still_while_there_is_nothing_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An idle worker wakes up for nothing."""
        clock, executor, delays = self.make(monkeypatch, work=False)
        clock._look(executor)  # type: ignore[arg-type]
        assert delays == []

    async def test_it_has_one_timer_however_often_it_is_told_to_watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each batch of messages says watch."""
        clock, executor, delays = self.make(monkeypatch)
        for _ in range(3):
            clock.watch(executor)  # type: ignore[arg-type]
        clock.stop()
        assert len(delays) == 1
