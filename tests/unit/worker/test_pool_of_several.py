"""Several executors behind one broker: each dies for itself and is replaced while the others go on."""

import asyncio
import time

import pytest
from pool_fakes import STOPPED, FakeChild, Stage, turn

from workerkit.settlement import ACK
from workerkit.worker import life as life_module
from workerkit.worker import pool as pool_module
from workerkit.worker import seat as seat_module
from workerkit.worker.child import Exit
from workerkit.worker.link import Kind

TWO = {"executors": 2}


@pytest.fixture(autouse=True)
def _looks_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_module, "_LOOK_OFTEN", 0.01)
    monkeypatch.setattr(pool_module, "_BEHIND", 0.01)
    monkeypatch.setattr(seat_module, "RESTART_DELAYS", (0.0,))


async def until_delivered(child: FakeChild, *tags: int) -> None:
    while not set(tags) <= set(child.delivered):  # noqa: ASYNC110 - a frame to a fake sets no event
        await asyncio.sleep(0)


async def until_stopped(stage: Stage) -> FakeChild:
    """The executor that is told to stop next."""
    while True:
        for child in stage.children:
            if not child.closed and Kind.STOP in child.kinds:
                return child
        await asyncio.sleep(0)


async def test_the_others_are_started_when_the_first_has_said_how_many() -> None:
    """Messages that came before are shared among those that are ready."""
    stage = Stage()
    assert len(stage.children) == 1
    stage.child.ready(executors=3)
    assert len(stage.children) == 3
    stage.children[1].ready(executors=3)
    await turn()
    stage.run(1, 2, 3)
    assert [child.delivered for child in stage.children] == [[1], [2], []]


async def test_messages_go_to_idle_executors_first() -> None:
    """One each, and what is beyond that waits until somebody has room."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.run(1, 2, 3)
    assert (first.delivered, second.delivered) == ([1], [2])
    second.finish(2)
    assert second.delivered == [2, 3]


async def test_each_has_as_much_ahead_as_it_should() -> None:
    """Short callbacks must not wait for the way back and forth; none hoards what another could run."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.pool.ahead = lambda: 4
    stage.run(1, 2, 3, 4)
    assert (first.delivered, second.delivered) == ([1, 2], [3, 4])
    stage.run(5, 6, 7, 8, 9, 10)
    assert len(first.delivered) == len(second.delivered) == 4


async def test_a_death_touches_only_its_own_messages() -> None:
    """The one that ran is blamed, what waited behind it runs elsewhere at once; the others go on."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.pool.ahead = lambda: 2
    stage.run(1, 2, 3, 4)
    first.begin(1)
    second.finish(3)
    first.die()
    assert second.delivered == [3, 4, 2]
    third = await stage.replacement(**TWO)
    assert [tag for tag, _ in third.aftermaths] == [1]
    assert second.aftermaths == []
    second.finish(4)
    second.finish(2)
    assert stage.settler.settled == [(3, ACK), (4, ACK), (2, ACK)]


async def test_what_waits_behind_a_long_callback_moves_to_an_idle_executor() -> None:
    """In order, and void where it was."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.pool.ahead = lambda: 3
    stage.run(1, 2, 3, 4)
    assert (first.delivered, second.delivered) == ([1, 2], [3, 4])
    first.begin(1, now_ns=1)
    second.finish(3)
    second.finish(4)
    await until_delivered(second, 2)
    assert not first.begin(2)
    second.finish(2)
    assert sorted(stage.settler.settled) == [(2, ACK), (3, ACK), (4, ACK)]


async def test_it_moves_to_one_that_could_begin_it_at_once_beside_what_it_runs() -> None:
    """With several callbacks at once an executor need not be idle for that."""
    stage = Stage()
    resolved = {"concurrency": 2, "asynchronous": True}
    first, second = await stage.several(2, **resolved)
    stage.pool.ahead = lambda: 3
    stage.run(1, 2, 3, 4, 5, 6)
    assert (first.delivered, second.delivered) == ([1, 2, 3], [4, 5, 6])
    first.begin(1, 2, now_ns=1)
    second.begin(4, now_ns=time.monotonic_ns())
    for tag in (5, 6):
        second.finish(tag)
    await until_delivered(second, 3)


async def test_all_stacks_are_asked_for_at_once() -> None:
    """One that is slow to answer must not use up the time of the others."""
    stage = Stage()
    children = await stage.several(3)
    for child in children:
        child.answer_stacks.clear()
    asking = asyncio.create_task(stage.pool.stacks())
    for child in children:
        await child.stacks_asked.wait()
    for child in children:
        child.answer_stacks.set()
    assert len(await asking) == 3


async def test_the_owner_hears_of_what_waits_while_all_are_busy() -> None:
    """Then somebody else may have it; also what came when all were busy for long."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.run(1, 2)
    first.begin(1, now_ns=1)
    second.begin(2, now_ns=1)
    await asyncio.sleep(0.05)
    assert not stage.owner.waiting.is_set()
    stage.run(3)
    await asyncio.wait_for(stage.owner.waiting.wait(), 4)


async def test_one_that_cannot_load_leaves_the_work_to_the_others() -> None:
    """Nothing goes back and nothing is stalled as long as one is ready."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.run(1, 2)
    first.begin(1)
    second.begin(2)
    first.die()
    failing = await stage.next_child()
    stage.run(3)
    failing.die(Exit(code=75, signal=None))
    assert stage.owner.stalled == 0
    assert stage.owner.unstarted == []
    second.settle(2)
    second.end(2)
    second.drain()
    assert second.delivered == [2, 3]


async def test_when_none_is_ready_everything_goes_back() -> None:
    """Others should have it."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.run(1, 2, 3)
    first.die()
    second.die()
    await turn()
    stage.child.die(Exit(code=75, signal=None))
    assert sorted(stage.owner.unstarted) == [1, 2, 3]
    assert stage.owner.stalled == 1


async def test_recall_asks_all_of_them() -> None:
    """What runs goes on, everywhere."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.pool.ahead = lambda: 2
    stage.run(1, 2, 3, 4, 5)
    first.begin(1)
    assert sorted(delivery.tag for delivery in await stage.pool.recall()) == [2, 3, 4, 5]
    assert not second.begin(3)
    assert stage.pool.busy
    first.settle(1)
    first.drain()
    assert not stage.pool.busy


async def test_end_waits_for_all_of_them() -> None:
    """Each is told to stop."""
    stage = Stage()
    first, second = await stage.several(2)
    ending = asyncio.create_task(stage.pool.end(3.0))
    await turn()
    first.die(STOPPED)
    await turn()
    assert not ending.done()
    second.die(STOPPED)
    await ending
    assert [Kind.STOP in child.kinds for child in (first, second)] == [True, True]


async def test_stacks_are_those_of_each() -> None:
    """One line per executor."""
    stage = Stage()
    await stage.several(2)
    assert [about["executor_pid"] for about in await stage.pool.stacks()] == [4711, 4712]


class TestReplacing:
    """By ``max_messages``, ``recycle_memory`` or a reload: one at a time, between two messages."""

    async def test_after_max_messages_an_executor_does_what_it_has_and_ends(self) -> None:
        """It gets exactly so many; what comes then waits for its replacement, and nothing is blamed or logged."""
        stage = Stage()
        executor = stage.ready(1, 2, 3, max_messages=2)
        assert executor.delivered == [1, 2]
        assert executor.kinds[-1] == Kind.STOP
        for tag in (1, 2):
            executor.finish(tag)
        executor.die(STOPPED)
        second = await stage.replacement(max_messages=2)
        assert second.delivered == [3]
        assert Kind.STOP not in second.kinds
        assert stage.events("executor.exit") == []
        assert len(stage.events("executor.replaced")) == 1
        assert stage.owner.unstarted == []

    async def test_what_was_taken_back_does_not_count(self) -> None:
        """It had not run."""
        stage = Stage()
        executor = stage.ready(1, 2, max_messages=3)
        await stage.pool.recall()
        stage.run(3, 4)
        assert Kind.STOP not in executor.kinds
        stage.run(5)
        assert executor.kinds[-1] == Kind.STOP

    async def test_two_are_not_replaced_at_the_same_time(self) -> None:
        """The second goes on beyond its number until the first has its replacement, and is replaced then."""
        stage = Stage()
        first, second = await stage.several(2, max_messages=1)
        stage.run(1, 2)
        assert Kind.STOP in first.kinds
        assert (second.delivered, Kind.STOP in second.kinds) == ([2], False)
        stage.run(3)
        second.finish(2)
        second.finish(3)
        first.finish(1)
        first.die(STOPPED)
        await stage.replacement(executors=2, max_messages=1)
        assert Kind.STOP in second.kinds
        assert stage.settler.settled == [(2, ACK), (3, ACK), (1, ACK)]

    async def test_a_reload_replaces_all_of_them_one_after_the_other(self) -> None:
        """The next only when the one before has its replacement; what is not started runs elsewhere meanwhile."""
        stage = Stage()
        first, second = await stage.several(2)
        stage.pool.ahead = lambda: 2
        stage.run(1, 2, 3, 4)
        first.begin(1)
        second.begin(3)
        stage.pool.reload()
        assert await until_stopped(stage) is first
        second.settle(3)
        second.end(3)
        second.drain()
        assert second.delivered == [3, 4, 2]
        second.begin(4)
        await asyncio.sleep(0.03)
        assert Kind.STOP not in second.kinds
        first.settle(1)
        first.end(1)
        first.die(STOPPED)
        third = await stage.replacement(**TWO)
        assert await until_stopped(stage) is second
        second.settle(4)
        second.end(4)
        await until_delivered(third, 2)
        second.die(STOPPED)
        fourth = await stage.replacement(**TWO)
        third.finish(2)
        await asyncio.sleep(0.03)
        assert [Kind.STOP in child.kinds for child in (third, fourth)] == [False, False]
        assert sorted(stage.settler.settled) == [(1, ACK), (2, ACK), (3, ACK), (4, ACK)]
        assert stage.events("executor.exit") == []

    async def test_a_death_at_the_moment_of_a_reload_does_not_keep_the_next_ones_from_being_replaced(self) -> None:
        """The page is closed when its messages were to be moved."""
        stage = Stage()
        first = stage.ready(1)
        stage.pool.reload()
        first.die()
        second = await stage.replacement()
        stage.pool.reload()
        await asyncio.sleep(0.1)
        assert Kind.STOP in second.kinds

    async def test_a_reload_is_not_forgotten_while_messages_are_moved(self) -> None:
        """Only one thing is moved at a time, and the reload follows."""
        stage = Stage()
        first, second = await stage.several(2)
        stage.pool.ahead = lambda: 2
        stage.run(1, 2)
        stage.run(3)
        first.begin(1, now_ns=1)
        second.finish(2)
        while stage.pool._moving is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        stage.pool.reload()
        assert await until_stopped(stage) in (first, second)

    async def test_reloads_do_not_slow_down_the_next_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are asked for, however short the lives that they end."""
        monkeypatch.setattr(seat_module, "RESTART_DELAYS", (0.0, 60.0))
        stage = Stage()
        stage.ready()
        for _ in range(3):
            stage.pool.reload()
            (await until_stopped(stage)).die(STOPPED)
            await stage.replacement()
        assert stage.events("executor.restart") == []

    async def test_one_whose_memory_has_grown_is_replaced_between_two_messages(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it had not started goes elsewhere; an other one that is small stays."""
        used = {4711: 100, 4712: 500}
        monkeypatch.setattr(pool_module.memory, "resident", used.__getitem__)
        monkeypatch.setattr(pool_module, "_MEMORY_INTERVAL", 0.0)
        stage = Stage()
        first, second = await stage.several(2, recycle_memory=300)
        stage.run(1, 2)
        first.finish(1)
        assert stage.pool._moving is None
        second.finish(2)
        assert await until_stopped(stage) is second
        assert Kind.STOP not in first.kinds


async def test_a_page_is_looked_at_in_time_though_its_callback_began_long_ago() -> None:
    """A message that comes to wait behind it does not wait for the look of seconds later."""
    stage = Stage()
    first, second = await stage.several(2)
    stage.pool.ahead = lambda: 2
    stage.run(1, 2)
    first.begin(1, now_ns=time.monotonic_ns())
    second.begin(2, now_ns=time.monotonic_ns())
    await asyncio.sleep(0.03)  # their looks are seconds away by now
    stage.run(3)
    assert 3 in first.delivered
    second.settle(2)
    second.end(2)
    second.drain()
    await asyncio.wait_for(until_delivered(second, 3), 5)
