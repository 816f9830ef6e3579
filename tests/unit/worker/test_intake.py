"""What may be taken now, and how the broker is told."""

import asyncio

import pytest
from consumer_fakes import Peer, until
from pool_fakes import make_delivery, make_log, turn

from workerkit.ports import Delivery
from workerkit.worker.intake import Intake
from workerkit.worker.selection import Selector

SHORT = [make_delivery(duration_ns=10_000)] * 10
LONG = [make_delivery(duration_ns=5_000_000_000)]


class Scene(Selector):
    """An intake that has begun to take, and what it tells."""

    def __init__(
        self,
        *queues: str,
        fixed: int | None = None,
        slots: int = 1,
        most: int | None = None,
        ordered: bool = False,
    ) -> None:
        self.peer = Peer(ordered=ordered)
        self.opened: list[str] = []
        self.failures: list[BaseException] = []
        log, self.logs = make_log()
        self.intake = Intake(self.peer, most, self.failures.append, log)
        self.intake.open(queues or ("jobs",), fixed, slots, self)

    def on_open(self, queue: str, now: float) -> None:
        self.opened.append(queue)

    async def settled(self) -> dict[str, int]:
        """What the broker was told last, when it has been told everything."""
        await self.intake.settle_down(5.0)
        return self.peer.window

    def note(self, finished: list[Delivery], times: int = 10) -> None:
        for _ in range(times):
            self.intake.note(finished)


async def test_each_queue_is_taken_from_with_the_window_that_is_set() -> None:
    """And is said to be open when the broker has answered."""
    scene = Scene("a", "b", fixed=20)
    assert scene.opened == []
    assert await scene.settled() == {"a": 20, "b": 20}
    assert scene.opened == ["a", "b"]


async def test_nothing_is_taken_while_there_is_a_reason() -> None:
    """Each must go before it is again, in whatever order; the broker hears of the first and of the last."""
    scene = Scene(fixed=20)
    await scene.settled()
    for reason in ("paused", "stalled"):
        scene.intake.refuse(reason)
    assert await scene.settled() == {"jobs": 0}
    scene.intake.allow("paused")
    assert await scene.settled() == {"jobs": 0}
    scene.intake.allow("stalled")
    assert await scene.settled() == {"jobs": 20}
    assert scene.peer.takes == [("jobs", 20), ("jobs", 0), ("jobs", 20)]
    assert scene.opened == ["jobs", "jobs"], "a queue that is closed is not open"


async def test_what_changes_while_the_broker_is_told_follows_and_what_changed_back_does_not() -> None:
    """Calls for one queue come one after the other, and the last one says what holds."""
    scene = Scene(fixed=20)
    await scene.settled()
    scene.peer.may_answer_take.clear()
    for present in (True, False, True, False, True):
        (scene.intake.refuse if present else scene.intake.allow)("paused")
        await turn()
        assert scene.peer.taking == 1
    scene.intake.allow("paused")
    scene.peer.may_answer_take.set()
    assert await scene.settled() == {"jobs": 20}
    assert scene.peer.takes == [("jobs", 20), ("jobs", 0), ("jobs", 20)]


async def test_one_slow_queue_does_not_hold_up_another() -> None:
    """Each has a call of its own under way."""
    scene = Scene("a", "b", fixed=20)
    scene.peer.may_answer_take.clear()
    await until(lambda: scene.peer.taking == 2)


async def test_waiting_for_the_broker_has_an_end() -> None:
    """A frozen one must not hold up a stop."""
    scene = Scene(fixed=20)
    scene.peer.may_answer_take.clear()
    await scene.intake.settle_down(0.01)
    scene.intake.close()
    await turn()
    assert scene.peer.takes == [("jobs", 20)]


async def test_an_error_of_the_broker_is_reported() -> None:
    """Nobody else would notice that nothing is consumed."""
    scene = Scene(fixed=20)
    scene.peer.take_error = RuntimeError("a bug")
    await until(lambda: scene.failures)
    assert scene.failures == [scene.peer.take_error]


class TestAuto:
    """``prefetch_count: auto``."""

    async def test_it_begins_with_one_for_each_callback_that_can_run_and_grows(self) -> None:
        """As the durations say."""
        scene = Scene(slots=3)
        assert await scene.settled() == {"jobs": 3}
        scene.note(SHORT)
        assert await scene.settled() == {"jobs": 500}
        scene.intake.note_running(2.0)
        assert await scene.settled() == {"jobs": 3}

    async def test_what_it_decided_is_logged_when_it_changes_much(self) -> None:
        """Not at each step, and not the number of callbacks that it starts with."""
        scene = Scene()
        await scene.settled()
        assert scene.logs == []
        scene.note(SHORT)
        scene.note(LONG)
        assert [line["prefetch_count"] for line in scene.logs if line["event"] == "worker.prefetch"] == [8, 64, 500, 1]

    async def test_a_queue_whose_order_counts_keeps_one(self) -> None:
        """However short the callbacks: what is given back would come out of its order."""
        scene = Scene(ordered=True)
        scene.note(SHORT)
        assert await scene.settled() == {"jobs": 1}

    async def test_of_several_queues_each_has_as_much_waiting_as_can_run(self) -> None:
        """Or one that has messages could not be chosen because all that it sent is running."""
        scene = Scene("a", "b", slots=3)
        assert await scene.settled() == {"a": 6, "b": 6}
        scene.note(LONG)
        assert await scene.settled() == {"a": 6, "b": 6}

    async def test_a_window_that_is_set_is_kept_whatever_the_order(self) -> None:
        """Who sets it has decided."""
        assert await Scene(ordered=True, fixed=7).settled() == {"jobs": 7}

    async def test_no_window_is_wider_than_the_limit(self) -> None:
        """What is beyond it would only go back."""
        scene = Scene(most=5)
        scene.note(SHORT)
        assert await scene.settled() == {"jobs": 5}
        assert await Scene(most=5, fixed=20).settled() == {"jobs": 5}

    async def test_a_window_that_changes_while_nothing_is_taken_holds_afterwards(self) -> None:
        """What was running then has said how long callbacks take."""
        scene = Scene()
        await scene.settled()
        scene.intake.refuse("paused")
        scene.note(SHORT)
        assert await scene.settled() == {"jobs": 0}
        scene.intake.allow("paused")
        assert await scene.settled() == {"jobs": 500}


async def test_a_closed_intake_tells_the_broker_nothing_more() -> None:
    """It is closed too."""
    scene = Scene(fixed=20)
    scene.intake.close()
    await asyncio.sleep(0)
    assert scene.peer.takes == []


@pytest.mark.parametrize("fixed", [1, 65535])
async def test_any_number_may_be_set(fixed: int) -> None:
    """The broker's own limit is the adapter's business."""
    assert await Scene(fixed=fixed).settled() == {"jobs": fixed}
