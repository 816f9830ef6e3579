"""Handing out, taking back, handing back, ending: every delivery leaves the pool exactly once."""

import asyncio

import pytest
from pool_fakes import ASYNC, STOPPED, Stage, turn

from workerkit import Cause, Reason
from workerkit.headers import ALONE
from workerkit.settlement import ACK, Outcome, Verb
from workerkit.worker import life as life_module
from workerkit.worker import pool as pool_module
from workerkit.worker import seat as seat_module
from workerkit.worker.child import Exit
from workerkit.worker.link import Kind
from workerkit.worker.page import SLOTS, Phase


async def test_messages_wait_until_an_executor_is_ready() -> None:
    """They arrive in order, once."""
    stage = Stage()
    stage.run(1, 2)
    assert stage.pool.busy
    assert stage.child.delivered == []
    stage.child.ready()
    await turn()
    stage.run(3)
    assert stage.child.delivered == [1, 2, 3]
    assert [resolved.queues for resolved in stage.owner.resolved] == [{"jobs": 1}]


async def test_what_was_finished_meanwhile_is_acknowledged_together() -> None:
    """Acknowledgements of one batch share a frame; none of them waits for the next batch, nor for what runs."""
    stage = Stage()
    executor = stage.ready(1, 2, 3)
    for tag in (1, 2):
        executor.begin(tag)
        executor.settle(tag)
        executor.end(tag)
    executor.begin(3)
    assert stage.settler.batches == []
    executor.drain()
    assert stage.settler.batches == [[1, 2]]


async def test_a_late_wake_up_does_not_leave_the_next_acknowledgement_lying() -> None:
    """The batch before took along what it was sent for: the executor must wake the consumer again all the same."""
    stage = Stage()
    executor = stage.ready(1)
    executor.begin(1)
    executor.settle(1)
    stage.pool._seats[0].life.on_frames([])  # type: ignore[union-attr]  # it looked just then, for another reason
    executor.drain()  # and now reads the WAKE, with nothing in flight
    stage.run(2)
    executor.begin(2)
    executor.page.acknowledge(*executor.places[2], 1)
    assert executor.page.must_wake()


async def test_lines_and_output_are_passed_on() -> None:
    """Log lines as they are, prints as events of their stream."""
    stage = Stage()
    stage.child.say(life_module.frame(Kind.LOG, b'{"event":"x"}\n'))
    stage.pool._seats[0].life.on_output("stderr", "careful")  # type: ignore[union-attr]
    assert stage.owner.lines == [b'{"event":"x"}\n']
    assert stage.events("careful")[0]["logger"] == "stderr"


class TestSlots:
    """A slot of the page is given to another message only when the executor cannot write to it any more."""

    async def test_an_executor_gets_no_more_than_it_has_slots(self) -> None:
        """What is beyond them waits, in order, and follows when there is room."""
        stage = Stage()
        executor = stage.ready(*range(1, SLOTS + 3))
        assert len(executor.delivered) == SLOTS
        assert len({slot for slot, _ in executor.places.values()}) == SLOTS
        for tag in (1, 2):
            executor.finish(tag)
        assert executor.delivered[SLOTS:] == [SLOTS + 1, SLOTS + 2]
        assert not executor.page.is_void(*executor.places[SLOTS + 1])

    async def test_a_slot_is_not_given_away_while_an_acknowledged_callback_goes_on(self) -> None:
        """Its state says that it runs: that must still be true of the message that it names."""
        stage = Stage()
        executor = stage.ready(*range(1, SLOTS + 1))
        executor.begin(1)
        executor.settle(1)
        executor.drain()
        stage.run(SLOTS + 1)
        assert SLOTS + 1 not in executor.delivered
        executor.end(1)
        executor.finish(2)
        assert SLOTS + 1 in executor.delivered
        assert executor.places[SLOTS + 1][0] in (executor.places[1][0], executor.places[2][0])

    async def test_a_slot_is_not_given_away_while_its_void_message_lies_unread_in_the_socket(self) -> None:
        """The executor will pass it over, and write so into that slot."""
        stage = Stage()
        executor = stage.ready(*range(1, SLOTS + 1))
        slots = {tag: slot for tag, (slot, _) in executor.places.items()}
        assert len(await stage.pool.recall()) == SLOTS
        stage.run(*range(SLOTS + 1, SLOTS + 4))
        assert len(executor.delivered) == SLOTS, "all slots are taken"
        assert not executor.begin(1)
        assert not executor.begin(2)
        stage.pool.dispatch()
        assert executor.delivered[SLOTS:] == [SLOTS + 1, SLOTS + 2]
        assert {executor.places[tag][0] for tag in (SLOTS + 1, SLOTS + 2)} == {slots[1], slots[2]}

    async def test_a_message_that_comes_again_to_the_same_executor_has_a_place_of_its_own(self) -> None:
        """What it finds of the first time is void; what it writes about that says nothing about the second."""
        stage = Stage()
        executor = stage.ready(1)
        (delivery,) = await stage.pool.recall()
        before = executor.places[1]
        stage.pool.on_put_back([delivery])
        assert executor.delivered == [1, 1]
        assert executor.places[1] != before
        executor.page.end(*before)
        executor.finish(1)
        stage.run(*range(2, SLOTS + 2))
        assert len(set(executor.delivered)) == SLOTS + 1
        assert stage.settler.settled == [(1, ACK)]


class TestRecall:
    """Taking back what was not started, before a pause, a stop, or because somebody else could run it."""

    async def test_it_leaves_the_running_one(self) -> None:
        """What the executor finds in its socket afterwards is void."""
        stage = Stage()
        executor = stage.ready(1, 2, 3)
        executor.finish(1)
        executor.begin(2)
        taken = await stage.pool.recall()
        assert [delivery.tag for delivery in taken] == [3]
        executor.settle(2)
        executor.end(2)
        executor.drain()
        assert not executor.begin(3)
        assert stage.settler.settled == [(1, ACK), (2, ACK)]
        assert not stage.pool.busy

    async def test_it_loses_no_settlement_that_is_under_way(self) -> None:
        """A message that finished during the recall is settled, not handed back."""
        stage = Stage()
        executor = stage.ready(1, 2, 3)
        executor.begin(1)
        executor.settle(1)
        executor.end(1)
        executor.begin(2)
        executor.settle(2, Outcome(Verb.RELEASE))
        executor.end(2)
        taken = await stage.pool.recall()
        assert [delivery.tag for delivery in taken] == [3]
        assert stage.settler.settled == [(2, Outcome(Verb.RELEASE)), (1, ACK)]

    async def test_it_does_not_touch_what_comes_meanwhile(self) -> None:
        """Paused and resumed at once: the new message may be running already, so it is not handed back."""
        stage = Stage()
        executor = stage.ready(1)
        recall = asyncio.create_task(stage.pool.recall())
        await asyncio.sleep(0)
        stage.run(2)
        assert executor.begin(2), "it is not void"
        executor.end(2)
        assert [delivery.tag for delivery in await recall] == [1]
        executor.finish(2)
        assert stage.settler.settled == [(2, ACK)]

    async def test_it_has_what_an_executor_leaves_that_dies_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The replacement must not be given messages that are being taken back."""
        monkeypatch.setattr(pool_module, "RECALL_GRACE", 0.5)  # on a loaded machine a replacement may take long
        stage = Stage()
        first = stage.ready(1)
        recall = asyncio.create_task(stage.pool.recall())
        await asyncio.sleep(0)
        first.die()
        second = await stage.replacement()
        assert second.delivered == []
        assert stage.pool.busy
        assert [delivery.tag for delivery in await recall] == [1]
        assert not stage.pool.busy

    async def test_a_message_that_is_lost_during_it_is_not_taken_back(self) -> None:
        """The executor that had it died, and then its source was lost: it is the broker's already."""
        stage = Stage()
        first = stage.ready(1)
        recall = asyncio.create_task(stage.pool.recall())
        await asyncio.sleep(0)
        first.die()
        assert stage.pool.forget([None]) == 1
        assert await recall == []

    async def test_without_an_executor_it_takes_what_waits(self) -> None:
        """Between two executors everything is unstarted."""
        stage = Stage()
        stage.ready(1, 2).die()
        assert [delivery.tag for delivery in await stage.pool.recall()] == [1, 2]
        assert not stage.pool.busy

    async def test_it_leaves_a_message_whose_shutdown_was_asked_for(self) -> None:
        """Its attempt is over: taking it back as unstarted would forget that."""
        stage = Stage()
        stage.ready(1, 2).begin(1)
        stage.child.die()
        second = await stage.replacement()
        assert [delivery.tag for delivery in await stage.pool.recall()] == [2]
        second.finish(1, Outcome(Verb.NACK, cause=Cause(Reason.SIGNAL, "x")))
        assert [tag for tag, _ in stage.settler.settled] == [1]

    async def test_one_that_began_in_that_instant_says_so_and_goes_back_once(self) -> None:
        """The executor's word comes before it is taken out: it is handed back, and not a release by the task."""
        stage = Stage()
        executor = stage.ready(1)
        recall = asyncio.create_task(stage.pool.recall())
        await asyncio.sleep(0)
        assert not executor.begin(1, just_now=True)
        assert await recall == []
        assert stage.owner.unstarted == [1]
        assert stage.settler.settled == []
        assert not stage.pool.busy

    async def test_a_release_by_the_task_is_a_release_also_when_a_recall_came_while_it_ran(self) -> None:
        """It had begun, so it was not handed back: its releases count, or it would come back at once for ever."""
        stage = Stage()
        executor = stage.ready(1)
        executor.begin(1)
        assert await stage.pool.recall() == []
        executor.settle(1, Outcome(Verb.RELEASE))
        executor.end(1)
        executor.drain()
        assert stage.settler.settled == [(1, Outcome(Verb.RELEASE))]
        assert stage.owner.unstarted == []


class TestLoss:
    """Messages that are the broker's again."""

    async def test_what_was_not_started_is_dropped_and_counted(self) -> None:
        """The broker has them back. The one that runs is settled later, in vain."""
        stage = Stage()
        executor = stage.ready(1, 2, 3)
        executor.begin(1)
        assert stage.pool.forget([None]) == 2
        executor.settle(1)
        executor.drain()
        assert stage.settler.settled == [(1, ACK)]
        assert not executor.begin(2)

    async def test_what_had_finished_when_it_was_lost_is_settled_and_not_counted(self) -> None:
        """It ran: a limit on the number of messages must not count it as one that did not."""
        stage = Stage()
        executor = stage.ready(1, 2)
        executor.begin(1)
        executor.settle(1)
        executor.end(1)
        assert stage.pool.forget([None]) == 1
        assert stage.settler.settled == [(1, ACK)]

    async def test_nothing_is_sent_for_a_message_that_began_in_the_instant_in_which_it_was_lost(self) -> None:
        """It is not here any more."""
        stage = Stage()
        executor = stage.ready(1)
        stage.pool.forget([None])
        executor.page.begin(*executor.places[1], Phase.CALLBACK, 1)
        executor.settle(1)
        executor.end(1)
        executor.drain()
        assert stage.settler.settled == []
        assert stage.owner.unstarted == []

    async def test_losing_one_source_touches_nothing_of_another(self) -> None:
        """Neither what waits nor what is in flight nor what runs; the callback of a lost message can see it."""
        stage = Stage()
        executor = stage.ready()
        stage.run(1, 2, receipt="a")
        stage.run(3, 4, receipt="b")
        executor.begin(1)
        assert stage.pool.forget(["a"]) == 1
        assert executor.is_lost(1)
        assert not executor.is_lost(3)
        assert not executor.begin(2)
        executor.end(1)
        for tag in (3, 4):
            executor.finish(tag)
        assert stage.settler.settled == [(3, ACK), (4, ACK)]

    async def test_what_waits_for_an_executor_is_dropped_by_source(self) -> None:
        """Between two executors."""
        stage = Stage()
        stage.run(1, receipt="a")
        stage.run(2, receipt="b")
        assert stage.pool.forget(["a"]) == 1
        stage.child.ready()
        await turn()
        assert stage.child.delivered == [2]

    async def test_by_default_a_callback_may_finish_whose_message_is_lost(self) -> None:
        """It may be nearly done; ``message.lost`` tells it."""
        stage = Stage()
        executor = stage.ready(1)
        executor.begin(1)
        stage.pool.forget([None])
        assert not executor.killed.is_set()
        assert executor.is_lost(1)

    async def test_with_on_lost_end_the_executor_ends_and_the_message_is_blamed_as_lost(self) -> None:
        """Another worker has it by now: two must not work on it. What it had not started is run by the next one."""
        stage = Stage()
        executor = stage.ready(on_lost="end")
        stage.run(1, receipt="a")
        stage.run(2, receipt="b")
        executor.begin(1)
        stage.pool.forget(["a"])
        assert executor.killed.is_set()
        executor.die()
        second = await stage.replacement(on_lost="end")
        ((tag, aftermath),) = second.aftermaths
        assert (tag, aftermath.cause.reason) == (1, Reason.LOST)
        assert second.delivered == [2]

    async def test_with_on_lost_end_nothing_happens_to_a_callback_of_another_source(self) -> None:
        """Its message is still ours."""
        stage = Stage()
        executor = stage.ready(on_lost="end")
        stage.run(1, receipt="a")
        stage.run(2, receipt="b")
        executor.begin(1)
        stage.pool.forget(["b"])
        assert not executor.killed.is_set()


class TestTheDeadline:
    """The stop that waits no longer."""

    async def test_the_running_message_goes_back_unblamed(self) -> None:
        """We ended it, not the message: it is not an attempt."""
        stage = Stage()
        executor = stage.ready(1, 2)
        executor.begin(1)
        stage.pool.hand_back()
        assert executor.killed.is_set()
        executor.die()
        assert stage.owner.unstarted == [1, 2]
        assert stage.settler.settled == []
        assert not stage.pool.busy

    async def test_a_message_that_has_killed_is_settled_by_the_default(self) -> None:
        """Its attempt did fail: handing it back uncounted would let it kill again."""
        stage = Stage()
        stage.ready(1, 2).begin(1)
        stage.child.die()
        second = await stage.replacement()
        second.begin(1, phase=Phase.SHUTDOWN)
        stage.pool.hand_back()
        second.die()
        assert [(tag, outcome.verb) for tag, outcome in stage.settler.settled] == [(1, Verb.NACK)]
        assert stage.owner.unstarted == [2]

    async def test_between_two_executors_nothing_is_left_behind(self) -> None:
        """There is nobody to kill: the dead one's message is settled, the others go back at once."""
        stage = Stage()
        stage.ready(1, 2).begin(1)
        stage.child.die()
        stage.pool.hand_back()
        assert [tag for tag, _ in stage.settler.settled] == [1]
        assert stage.owner.unstarted == [2]
        assert not stage.pool.busy

    async def test_what_an_executor_dies_of_while_all_end_is_settled_by_the_default(self) -> None:
        """No other one will run its shutdown()."""
        stage = Stage()
        executor = stage.ready(1, 2)
        executor.begin(1)
        ending = asyncio.create_task(stage.pool.end(3.0))
        await turn()
        executor.die()
        await ending
        assert [(tag, outcome.verb) for tag, outcome in stage.settler.settled] == [(1, Verb.NACK)]
        assert stage.owner.unstarted == [2]
        assert not stage.pool.busy


class TestEndAndStart:
    """The executor's own comings and goings."""

    async def test_end_asks_the_executor_to_stop_and_starts_no_other(self) -> None:
        """STOP first; it ends by itself."""
        stage = Stage()
        executor = stage.ready()
        ending = asyncio.create_task(stage.pool.end(3.0))
        await turn()
        assert executor.kinds[-1] == Kind.STOP
        assert not executor.killed.is_set()
        executor.die(STOPPED)
        await ending
        assert len(stage.children) == 1
        assert stage.events("executor.exit") == []

    async def test_an_executor_that_does_not_stop_is_killed(self) -> None:
        """An atexit handler that hangs must not hold up the worker."""
        stage = Stage()
        executor = stage.ready()
        ending = asyncio.create_task(stage.pool.end(0.0))
        await executor.killed.wait()
        executor.die()
        await ending

    async def test_one_that_cannot_load_gives_its_messages_back_and_is_tried_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Other workers have the messages meanwhile; the owner is told to stop taking any."""
        monkeypatch.setattr(seat_module, "RESTART_DELAYS", (0.0,))
        stage = Stage()
        stage.ready(1).die()
        failing = await stage.next_child()
        failing.fail(configuration=False)
        failing.die(Exit(code=75, signal=None))
        assert stage.owner.failures == [("why", False)]
        assert (stage.owner.unstarted, stage.owner.stalled) == ([1], 1)
        await stage.replacement()
        stage.run(2)
        assert stage.child.delivered == [2]

    async def test_a_task_that_is_configured_wrongly_is_not_tried_again(self) -> None:
        """It would fail in the same way each time: the worker ends and says why."""
        stage = Stage()
        stage.child.fail(configuration=True)
        stage.child.die(Exit(code=78, signal=None))
        assert stage.owner.failures == [("why", True)]
        await turn()
        assert len(stage.children) == 1
        assert stage.events("executor.exit") == []

    async def test_a_task_that_stops_loading_while_the_worker_runs_is_tried_again(self) -> None:
        """A deploy replaces files one by one: what did load before will load again."""
        stage = Stage()
        stage.ready().die()
        failing = await stage.next_child()
        failing.fail(configuration=True)
        failing.die(Exit(code=78, signal=None))
        assert stage.owner.failures == [("why", False)]
        assert stage.events("executor.restart") != []
        await asyncio.wait_for(stage.pool.end(3.0), 5)

    async def test_a_process_that_cannot_be_started_is_tried_again_and_its_messages_go_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No memory or no descriptors: messages must not wait here for as long as that lasts."""
        monkeypatch.setattr(seat_module, "RESTART_DELAYS", (0.0,))
        stage = Stage()
        stage.start_errors = [OSError("no processes"), OSError("no processes")]
        stage.ready(1).die()
        await stage.replacement()
        assert len(stage.events("executor.not_started")) == 2
        assert stage.owner.unstarted == [1]
        assert stage.owner.stalled == 2

    async def test_inline_there_is_no_other_executor(self) -> None:
        """The main thread ended: the worker ends with it."""
        stage = Stage(inline=True)
        stage.ready().die()
        await turn()
        assert stage.owner.lost == 1
        assert len(stage.children) == 1

    async def test_inline_there_is_one_executor_whatever_is_configured(self) -> None:
        """There is one main thread, and it is not replaced."""
        stage = Stage(inline=True)
        executor = stage.ready(1, 2, executors=3, max_messages=1)
        await turn()
        assert len(stage.children) == 1
        assert executor.delivered == [1, 2]
        assert Kind.STOP not in executor.kinds

    async def test_stacks_name_the_message_that_runs(self) -> None:
        """What an operator asks for with USR1."""
        stage = Stage()
        executor = stage.ready(1)
        (about,) = await stage.pool.stacks()
        assert about["note"] == "no message is being worked on"
        executor.begin(1)
        (about,) = await stage.pool.stacks()
        assert (about["message_id"], about["stack"], about["executor_pid"]) == ("m1", "the stacks", 4711)
        executor.die()
        assert await stage.pool.stacks() == [{"note": "the executor is being replaced"}]

    async def test_a_start_that_takes_too_long_keeps_no_messages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An initialize() that hangs holds neither what waits nor what its predecessor died of."""
        monkeypatch.setattr(seat_module, "START_PATIENCE", 0.01)
        stage = Stage()
        executor = stage.ready(1, 2)
        executor.begin(1)
        executor.die()
        await stage.next_child()
        while stage.pool.busy:  # noqa: ASYNC110 - the pool offers no event for it
            await asyncio.sleep(0)
        assert stage.owner.unstarted == [2]
        assert [tag for tag, _ in stage.settler.settled] == [1]
        assert stage.owner.stalled == 1

    async def test_executors_that_come_to_nothing_are_started_more_and_more_slowly(self) -> None:
        """A thread that ends the process a moment after the start would make a loop of new processes otherwise."""
        stage = Stage()
        stage.ready()
        stage.child.die(Exit(code=1, signal=None))
        await stage.replacement()
        assert stage.events("executor.restart") == []
        stage.child.die(Exit(code=1, signal=None))
        assert stage.events("executor.restart")[0]["in_seconds"] == 0.5
        await stage.pool.end(0.0)


async def test_nothing_begins_beside_a_message_that_must_run_alone() -> None:
    """It has killed a process in an attempt before: what would run with it would die with it."""
    stage = Stage()
    executor = stage.ready(1, **ASYNC)
    stage.run(2, headers={ALONE: 1})
    stage.run(3)
    assert executor.delivered == [1]
    executor.finish(1)
    stage.run(4)
    assert executor.delivered == [1, 2]
    executor.finish(2)
    assert executor.delivered == [1, 2, 3, 4]
