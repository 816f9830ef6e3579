"""A consumer over the broker in memory: what its queues look like afterwards."""

import time
from collections.abc import Callable

import pytest
from consumer_fakes import Scene, until
from pool_fakes import ASYNC

from workerkit import Cause, Properties, Reason
from workerkit.brokers.memory.broker import MemoryBroker
from workerkit.brokers.memory.store import MemoryStore
from workerkit.errors import ExitCode
from workerkit.outgoing import Outgoing
from workerkit.properties import encode
from workerkit.settlement import RELEASE, Outcome, Verb
from workerkit.worker import seat as seat_module
from workerkit.worker import selection

FAILED = Outcome(Verb.NACK, cause=Cause(Reason.EXCEPTION, "no"))
STUCK = None


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seat_module, "RESTART_DELAYS", (0.0,))


class World:
    """A store, with a broker on it for each worker."""

    def __init__(self, *queues: str) -> None:
        self.store = MemoryStore(time.monotonic)
        for queue in queues:
            self.store.declare(queue)

    def publish(self, queue: str, *tags: int) -> None:
        for tag in tags:
            self.store.publish(Outgoing("", queue, encode(Properties(message_id=f"m{tag}")), b"%d" % tag, None))

    def ready(self, queue: str) -> list[int]:
        return [int(record.body) for record in self.store.ready(queue)]

    def empty(self, *queues: str) -> Callable[[], bool]:
        """Whether nothing is left, neither ready nor in anybody's hands."""
        return lambda: not (self.store.ready(*queues) or self.store.delayed(*queues) or self.store._unacked)


async def test_everything_is_worked_off_in_its_order() -> None:
    """More than a window of it."""
    world = World("jobs")
    world.publish("jobs", *range(1, 101))
    async with Scene(MemoryBroker(world.store)) as scene:
        await until(world.empty("jobs"))
        assert scene.begun == list(range(1, 101))


async def test_a_message_that_fails_has_all_its_attempts_and_is_a_dead_letter_then() -> None:
    """With the cause of the last one."""
    world = World("jobs")
    world.publish("jobs", 1)
    scene = Scene(MemoryBroker(world.store), max_attempts=3, delays=(0.001,))
    scene.outcomes[1] = FAILED
    async with scene:
        await until(lambda: world.ready("jobs.dead"))
        assert scene.begun == [1, 1, 1]
        (record,) = world.store.ready("jobs.dead")
        assert (record.reason, record.attempt) == (Reason.EXCEPTION, 3)


async def test_a_message_that_kills_its_executor_every_time_is_a_dead_letter_in_the_end() -> None:
    """Each death counts as an attempt; the others are worked off."""
    world = World("jobs")
    world.publish("jobs", 1, 2)
    scene = Scene(MemoryBroker(world.store), max_attempts=2, delays=(0.001,))
    scene.outcomes[1] = STUCK
    async with scene:
        for deaths in (1, 2):
            await until(lambda: scene.children and scene.child.stuck_on == 1)
            scene.child.kill()
            await until(lambda deaths=deaths: len(scene.children) == deaths + 1)
        await until(lambda: world.ready("jobs.dead"))
        await until(world.empty("jobs"))
        assert world.store.ready("jobs.dead")[0].reason is Reason.SIGNAL
        assert scene.begun.count(2) == 1


async def test_after_a_stop_everything_is_back_in_its_place() -> None:
    """What ran is done, what did not is first in the queue again, and has not lost an attempt."""
    world = World("jobs")
    world.publish("jobs", 1, 2, 3, 4)
    scene = Scene(MemoryBroker(world.store))
    scene.outcomes[1] = STUCK
    async with scene:
        await until(lambda: scene.begun == [1])
        scene.consumer.stop_by_signal("SIGTERM")
        await until(lambda: world.ready("jobs") == [2, 3, 4])
        scene.child.go_on()
        assert await scene.end() == ExitCode.OK
    assert world.ready("jobs") == [2, 3, 4]
    assert {record.attempt for record in world.store.ready("jobs")} == {1}
    assert not world.store._unacked


async def test_a_limit_leaves_the_rest_where_it_was() -> None:
    """In its order."""
    world = World("jobs")
    world.publish("jobs", *range(1, 8))
    async with Scene(MemoryBroker(world.store), limit=3) as scene:
        assert await scene.end() == ExitCode.OK
        assert scene.begun == [1, 2, 3]
    assert world.ready("jobs") == [4, 5, 6, 7]


async def test_a_lost_source_is_worked_off_all_the_same() -> None:
    """What was not started comes again; the one that ran does too, and is the only one that runs twice."""
    world = World("jobs")
    world.publish("jobs", 1, 2, 3)
    broker = MemoryBroker(world.store)
    scene = Scene(broker)
    scene.outcomes[1] = STUCK
    async with scene:
        await until(lambda: scene.begun == [1])
        broker.lose("jobs")
        scene.outcomes.clear()
        scene.child.go_on()
        await until(world.empty("jobs"))
        assert sorted(scene.begun) == [1, 1, 2, 3]


async def test_strict_runs_nothing_of_a_lower_queue_while_a_higher_one_has_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the window of the higher one is small and what follows is on its way."""
    monkeypatch.setattr(selection, "DRY", 0.5)  # on a loaded machine a turn of the loop may take long
    world = World("high", "low")
    world.publish("low", *range(1, 31))
    world.publish("high", *range(101, 151))
    queues = {"high": 2, "low": 1}
    async with Scene(MemoryBroker(world.store), queues=queues, select="strict", prefetch_count=2) as scene:
        await until(world.empty("high", "low"))
        assert scene.begun == [*range(101, 151), *range(1, 31)]


async def test_weights_are_shares_while_all_queues_have_messages() -> None:
    """Within 2 %, through windows that are small."""
    weights = {"a": 20, "b": 5, "c": 1}
    world = World(*weights)
    for number, queue in enumerate(weights, 1):
        world.publish(queue, *range(number * 10_000, number * 10_000 + 2000))
    async with Scene(MemoryBroker(world.store), queues=weights, prefetch_count=20) as scene:
        await until(lambda: len(scene.begun) >= 2000)
        begun = scene.begun[100:2000]
        for number, (queue, weight) in enumerate(weights.items(), 1):
            share = sum(tag // 10_000 == number for tag in begun) / len(begun)
            assert share == pytest.approx(weight / 26, rel=0.02, abs=1 / 1000), queue


async def test_a_message_that_its_task_releases_comes_back_after_a_while() -> None:
    """The others go first."""
    world = World("jobs")
    world.publish("jobs", 1, 2)
    scene = Scene(MemoryBroker(world.store))
    scene.outcomes[1] = RELEASE
    async with scene:
        await until(lambda: scene.begun.count(1) == 2)
        assert 2 in scene.begun
        await until(lambda: world.store.delayed("jobs"))


async def test_several_executors_with_several_callbacks_each_work_off_everything_once() -> None:
    """Two processes of five coroutines."""
    world = World("jobs")
    world.publish("jobs", *range(1, 301))
    async with Scene(MemoryBroker(world.store), executors=2, prefetch_count="auto", **ASYNC) as scene:
        await until(world.empty("jobs"))
        assert sorted(scene.begun) == list(range(1, 301))
        assert all(child.begun for child in scene.children)
