"""Several queues in one pool: the choice is made each time that a callback can be started."""

import asyncio
from collections import Counter

import pytest
from pool_fakes import ASYNC, FakeChild, Stage, make_delivery, turn

from workerkit.headers import ALONE
from workerkit.settlement import ACK
from workerkit.worker import pool as pool_module
from workerkit.worker import selection
from workerkit.worker.selection import Selector, Strict, Weighted

WEIGHTS = {"high": 20, "low": 5}


class Clock:
    """What the pool tells a selector the time by, moved by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pool_module, "time", clock)
    monkeypatch.setattr(pool_module, "MOMENT", 0.001)
    return clock


def make_stage(selector: Selector, *, window: int = 100) -> Stage:
    stage = Stage()
    stage.pool.choose_by(selector, lambda _: window)
    return stage


async def until_delivered(child: FakeChild, tag: int) -> None:
    while tag not in child.delivered:  # noqa: ASYNC110 - a frame to a fake sets no event
        await asyncio.sleep(0)


async def test_an_executor_gets_one_message_for_each_callback_that_it_can_run() -> None:
    """What comes later, and matters more, must not wait behind it."""
    stage = make_stage(Weighted(WEIGHTS))
    executor = stage.ready(queues=WEIGHTS)
    stage.run(1, 2, 3, queue="low")
    assert executor.delivered == [1]
    stage.run(11, queue="high")
    executor.finish(1)
    assert executor.delivered == [1, 11]


async def test_several_callbacks_at_once_are_filled_one_by_one() -> None:
    """Each by a choice of its own."""
    stage = make_stage(Weighted({"high": 1, "low": 1}))
    executor = stage.ready(queues={"high": 1, "low": 1}, **ASYNC)
    stage.run(1, queue="low")
    stage.run(*range(11, 20), queue="high")
    assert executor.delivered == [1, 11, 12, 13, 14]
    stage.run(2, 3, queue="low")
    executor.begin(*executor.delivered)
    for tag in (11, 12, 13, 14):
        executor.settle(tag)
        executor.end(tag)
        executor.drain()
    assert executor.delivered[5:] == [2, 3, 15, 16]


async def test_the_message_says_which_queue_it_came_from() -> None:
    """By number on the link, by name in the executor."""
    stage = make_stage(Weighted(WEIGHTS))
    executor = stage.ready(queues=WEIGHTS, **ASYNC)
    stage.run(1, queue="low")
    stage.run(2, queue="high")
    executor.finish(1)
    executor.finish(2)
    assert stage.settler.settled == [(1, ACK), (2, ACK)]


async def test_shares_are_the_weights_over_several_executors() -> None:
    """Within 2 %."""
    stage = make_stage(Weighted(WEIGHTS))
    await stage.several(2, queues=WEIGHTS)
    stage.run(*range(1, 2001), queue="low")
    stage.run(*range(2001, 4001), queue="high")
    started: list[int] = []
    while len(started) < 2000:
        for child in stage.children:
            started.append(child.delivered[-1])
            child.finish(child.delivered[-1])
    counts = Counter(tag > 2000 for tag in started)
    assert counts[True] == pytest.approx(2000 * 20 / 25, rel=0.02)


async def test_strict_waits_a_moment_for_the_next_message_of_a_queue_that_has_just_been_given_room(
    clock: Clock,
) -> None:
    """Its window was full of what ran: what follows is on its way, however long ago the last one came."""
    stage = make_stage(Strict(WEIGHTS, None), window=1)
    executor = stage.ready(queues=WEIGHTS)
    stage.run(11, queue="high")
    stage.run(1, queue="low")
    clock.now += 1  # that callback takes long
    executor.finish(11)
    assert executor.delivered == [11]
    stage.run(12, queue="high")
    assert executor.delivered == [11, 12]
    executor.finish(12)
    clock.now += 1
    await until_delivered(executor, 1)


async def test_strict_does_not_wait_for_a_queue_that_had_room_all_the_time(clock: Clock) -> None:
    """It has sent what it had."""
    stage = make_stage(Strict(WEIGHTS, None))
    executor = stage.ready(queues=WEIGHTS)
    stage.run(11, queue="high")
    stage.run(1, queue="low")
    clock.now += 1
    executor.finish(11)
    assert executor.delivered == [11, 1]


async def test_strict_waits_longer_behind_messages_that_fill_their_window(clock: Clock) -> None:
    """There may be more of them; what came alone is followed by what came with it, or by nothing."""
    selector = Strict(WEIGHTS, None)
    for queue in WEIGHTS:
        selector.on_open(queue, 0.0)
    stage = make_stage(selector, window=2)
    executor = stage.ready(queues=WEIGHTS, **ASYNC)
    stage.run(1, queue="low")
    stage.run(11, queue="high")
    stage.run(2, queue="low")
    assert executor.delivered == [1, 11]
    clock.now += 2 * selection.MOMENT
    stage.pool.dispatch()
    assert executor.delivered == [1, 11, 2]
    stage.run(12, queue="high")
    stage.run(3, queue="low")
    clock.now += selection.DRY / 2
    stage.pool.dispatch()
    assert executor.delivered == [1, 11, 2, 12]
    clock.now += selection.DRY
    await until_delivered(executor, 3)


async def test_what_is_put_back_is_first_in_its_own_queue(clock: Clock) -> None:
    """And its queue is chosen as before."""
    stage = make_stage(Strict(WEIGHTS, None))
    executor = stage.ready(queues=WEIGHTS, **ASYNC)
    stage.run(1, 2, queue="low")
    stage.run(11, 12, queue="high")
    clock.now += 1
    await until_delivered(executor, 1)
    stage.run(13, 14, queue="high")
    executor.die()
    second = await stage.replacement(queues=WEIGHTS, **ASYNC)
    clock.now += 1
    await until_delivered(second, 1)
    assert second.delivered == [11, 12, 13, 14, 1]


async def test_a_message_that_must_run_alone_waits_until_nothing_runs_whatever_its_queue() -> None:
    """And what comes meanwhile waits for it."""
    stage = make_stage(Weighted(WEIGHTS))
    executor = stage.ready(queues=WEIGHTS, **ASYNC)
    stage.run(1, queue="low")
    stage.pool.run([make_delivery(11, headers={ALONE: 1}, queue="high")])
    stage.run(2, queue="low")
    assert executor.delivered == [1]
    executor.finish(1)
    assert executor.delivered == [1, 11]
    executor.finish(11)
    assert executor.delivered == [1, 11, 2]


async def test_a_strategy_that_fails_does_not_stop_the_work() -> None:
    """It is reported, and weights decide."""

    class Broken:
        def choose(self, waiting: object) -> str:
            raise ZeroDivisionError

    reports: list[str] = []
    stage = make_stage(selection.Custom(Broken(), WEIGHTS, reports.append))
    executor = stage.ready(queues=WEIGHTS)
    stage.run(1, 2, queue="low")
    executor.finish(1)
    assert executor.delivered == [1, 2]
    assert reports == ["ZeroDivisionError: "]


async def test_what_ends_during_a_recall_starts_nothing() -> None:
    """A stop would have to wait for a message that began after it was asked for, or end it in the middle."""
    stage = make_stage(Weighted({"jobs": 1}))
    executor = stage.ready(1, 2)
    executor.begin(1)
    recall = asyncio.create_task(stage.pool.recall())
    await turn()
    executor.settle(1)
    executor.end(1)
    executor.drain()
    assert [delivery.tag for delivery in await recall] == [2]
    assert executor.delivered == [1]
    stage.run(3)
    assert executor.delivered == [1, 3]
