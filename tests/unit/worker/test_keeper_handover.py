"""Forwarding, taking back, handing back, ending: every delivery leaves the keeper exactly once."""

import asyncio

import pytest
from keeper_fakes import Stage

from workerkit import Cause, Reason
from workerkit.settlement import ACK, Outcome, Verb
from workerkit.worker import keeper as keeper_module
from workerkit.worker.child import Exit
from workerkit.worker.link import SLOTS, Kind, Phase

STOPPED = Exit(code=0, signal=None)


async def test_messages_wait_until_an_executor_is_ready() -> None:
    """They arrive in order, once."""
    stage = Stage()
    stage.forward(1, 2)
    assert stage.keeper.busy
    assert stage.executor.delivered == []
    stage.executor.ready()
    stage.forward(3)
    assert stage.executor.delivered == [1, 2, 3]
    assert [resolved.queues for resolved in stage.owner.resolved] == [{"jobs": 1}]


async def test_what_was_finished_meanwhile_is_acknowledged_together() -> None:
    """Acknowledgements of one batch share a frame; none of them waits for the next batch, nor for what runs."""
    stage = Stage()
    executor = stage.ready(1, 2, 3)
    for tag in (1, 2):
        executor.begin(tag)
        executor.settle(tag)
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
    stage.keeper.on_drained()  # it looked just then, for another reason
    executor.drain()  # and now reads the WAKE, with nothing in flight
    stage.forward(2)
    executor.begin(2)
    assert executor.page.acknowledge(2, 1)
    assert executor.page.must_wake()


async def test_acknowledgements_beyond_the_table_are_sent_as_frames() -> None:
    """One message that is never settled must not let another one's record be overwritten unseen."""
    stage = Stage()
    executor = stage.ready(*range(1, SLOTS + 3))
    for tag in range(2, SLOTS + 3):  # the first one's verb is called by a thread, later
        executor.begin(tag)
        executor.settle(tag)
    assert not executor.page.acknowledge(SLOTS + 2, 1)
    executor.drain()
    assert sorted(tag for tag, _ in stage.settler.settled) == list(range(2, SLOTS + 3))
    executor.settle(1)
    executor.drain()
    assert stage.settler.settled[-1] == (1, ACK)
    assert not stage.keeper.busy


async def test_lines_and_output_are_passed_on() -> None:
    """Log lines as they are, prints as events of their stream."""
    stage = Stage()
    stage.executor.say(Kind.LOG, b'{"event":"x"}\n')
    stage.keeper.on_output("stderr", "careful")
    assert stage.owner.lines == [b'{"event":"x"}\n']
    assert stage.events("careful")[0]["logger"] == "stderr"


async def test_recall_takes_back_what_was_not_started_and_leaves_the_running_one() -> None:
    """What the executor finds in its socket afterwards is void."""
    stage = Stage()
    executor = stage.ready(1, 2, 3)
    executor.finish(1)
    executor.begin(2)
    taken = await stage.keeper.recall()
    assert [delivery.tag for delivery in taken] == [3]
    executor.settle(2)
    executor.page.end()
    executor.drain()
    assert not executor.begin(3)
    assert stage.settler.settled == [(1, ACK), (2, ACK)]
    assert not stage.keeper.busy


async def test_recall_loses_no_settlement_that_is_under_way() -> None:
    """A message that finished during the recall is settled, not handed back."""
    stage = Stage()
    executor = stage.ready(1, 2)
    executor.begin(1)
    executor.settle(1)
    executor.page.end()
    taken = await stage.keeper.recall()
    assert [delivery.tag for delivery in taken] == [2]
    assert stage.settler.settled == [(1, ACK)]


async def test_recall_does_not_touch_what_is_forwarded_meanwhile() -> None:
    """Paused and resumed at once: the new message may be running already, so it is not handed back."""
    stage = Stage()
    executor = stage.ready(1)
    recall = asyncio.create_task(stage.keeper.recall())
    await asyncio.sleep(0)
    stage.forward(2)
    assert executor.begin(2), "it is not void"
    executor.page.end()
    assert [delivery.tag for delivery in await recall] == [1]
    executor.finish(2)
    assert stage.settler.settled == [(2, ACK)]


async def test_recall_asks_the_replacement_too_when_the_executor_dies_meanwhile() -> None:
    """The replacement was given the unstarted messages: they are void there before they count as taken back."""
    stage = Stage()
    first = stage.ready(1)
    recall = asyncio.create_task(stage.keeper.recall())
    await asyncio.sleep(0)
    first.die()
    second = await stage.replacement()
    assert second.delivered == [1]
    assert [delivery.tag for delivery in await recall] == [1]
    assert not second.begin(1)


async def test_recall_without_an_executor_takes_what_waits() -> None:
    """Between two executors everything is unstarted."""
    stage = Stage()
    stage.ready(1, 2).die()
    assert [delivery.tag for delivery in await stage.keeper.recall()] == [1, 2]
    assert not stage.keeper.busy


async def test_forget_drops_what_was_not_started_and_counts_it() -> None:
    """The channel is gone: the broker has them back. The one that runs is settled later, as stale."""
    stage = Stage()
    executor = stage.ready(1, 2, 3)
    executor.begin(1)
    assert stage.keeper.forget() == 2
    executor.settle(1)
    executor.drain()
    assert stage.settler.settled == [(1, ACK)]
    assert not executor.begin(2)


async def test_a_settlement_of_a_forgotten_message_is_dropped_and_logged() -> None:
    """It had begun in the instant in which its channel went: nothing may be sent for it."""
    stage = Stage()
    executor = stage.ready(1)
    stage.keeper.forget()
    executor.page.begin(1, Phase.CALLBACK, 1)
    executor.settle(1)
    executor.drain()
    assert stage.settler.settled == []
    assert len(stage.events("settle.dropped")) == 1


async def test_recall_leaves_a_message_whose_shutdown_was_asked_for() -> None:
    """Its attempt is over: taking it back as unstarted would forget that."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.executor.die()
    second = await stage.replacement()
    assert [delivery.tag for delivery in await stage.keeper.recall()] == [2]
    second.finish(1, Outcome(Verb.NACK, cause=Cause(Reason.SIGNAL, "x")))
    assert [tag for tag, _ in stage.settler.settled] == [1]


async def test_at_the_deadline_the_running_message_goes_back_unblamed() -> None:
    """We ended it, not the message: it is not an attempt."""
    stage = Stage()
    executor = stage.ready(1, 2)
    executor.begin(1)
    stage.keeper.hand_back()
    assert executor.killed
    executor.die()
    assert stage.owner.unstarted == [1, 2]
    assert stage.settler.settled == []
    assert not stage.keeper.busy


async def test_at_the_deadline_a_message_that_has_killed_is_settled_by_the_default() -> None:
    """Its attempt did fail: handing it back uncounted would let it kill again."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.executor.die()
    second = await stage.replacement()
    second.begin(1, Phase.SHUTDOWN)
    stage.keeper.hand_back()
    second.die()
    assert [(tag, outcome.verb) for tag, outcome in stage.settler.settled] == [(1, Verb.NACK)]
    assert stage.owner.unstarted == [2]


async def test_at_the_deadline_between_two_executors_nothing_is_left_behind() -> None:
    """There is nobody to kill: the dead one's message is settled, the others go back at once."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.executor.die()
    stage.keeper.hand_back()
    assert [tag for tag, _ in stage.settler.settled] == [1]
    assert stage.owner.unstarted == [2]
    assert not stage.keeper.busy


async def test_end_asks_the_executor_to_stop_and_starts_no_other() -> None:
    """STOP first; it ends by itself."""
    stage = Stage()
    executor = stage.ready()
    ending = asyncio.create_task(stage.keeper.end(3.0))
    await asyncio.sleep(0)
    assert executor.sent[-1][0] == Kind.STOP
    assert not executor.killed
    executor.die(STOPPED)
    await ending
    assert stage.keeper._executor is None
    assert stage.events("executor.exit") == []


async def test_an_executor_that_does_not_stop_is_killed() -> None:
    """An atexit handler that hangs must not hold up the worker."""
    stage = Stage()
    executor = stage.ready()
    killed = asyncio.Event()
    executor.kill = killed.set  # type: ignore[method-assign]
    ending = asyncio.create_task(stage.keeper.end(0.0))
    await killed.wait()
    executor.die()
    await ending


async def test_an_executor_that_cannot_load_gives_its_messages_back_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other workers have the messages meanwhile; the owner is told to stop taking any."""
    monkeypatch.setattr(keeper_module, "RESTART_DELAYS", (0.0,))
    stage = Stage()
    stage.ready(1).die()
    failing = await stage.next_executor()
    failing.fail(configuration=False)
    failing.die(Exit(code=75, signal=None))
    assert stage.owner.failures == [("why", False)]
    assert (stage.owner.unstarted, stage.owner.stalled) == ([1], 1)
    await stage.replacement()
    stage.forward(2)
    assert stage.executor.delivered == [2]


async def test_a_task_that_is_configured_wrongly_is_not_tried_again() -> None:
    """It would fail in the same way each time: the worker ends and says why."""
    stage = Stage()
    stage.executor.fail(configuration=True)
    stage.executor.die(Exit(code=78, signal=None))
    assert stage.owner.failures == [("why", True)]
    assert stage.keeper._restart is None


async def test_a_task_that_stops_loading_while_the_worker_runs_is_tried_again() -> None:
    """A deploy replaces files one by one: what did load before will load again."""
    stage = Stage()
    stage.ready().die()
    failing = await stage.next_executor()
    failing.fail(configuration=True)
    failing.die(Exit(code=78, signal=None))
    assert stage.owner.failures == [("why", False)]
    assert stage.keeper._restart is not None
    await asyncio.wait_for(stage.keeper.end(3.0), 1)


async def test_a_process_that_cannot_be_started_is_tried_again_and_its_messages_go_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No memory or no descriptors: messages must not wait here for as long as that lasts."""
    monkeypatch.setattr(keeper_module, "RESTART_DELAYS", (0.0,))
    stage = Stage()
    stage.start_errors = [OSError("no processes"), OSError("no processes")]
    stage.ready(1).die()
    await stage.replacement()
    assert len(stage.events("executor.not_started")) == 2
    assert stage.owner.unstarted == [1]
    assert stage.owner.stalled == 2


async def test_inline_there_is_no_other_executor() -> None:
    """The main thread ended: the worker ends with it."""
    stage = Stage(inline=True)
    stage.ready().die()
    assert stage.owner.lost == 1
    assert stage.keeper._restart is None


async def test_stacks_name_the_message_that_runs() -> None:
    """What an operator asks for with USR1."""
    stage = Stage()
    executor = stage.ready(1)
    assert (await stage.keeper.stacks())["note"] == "no message is being worked on"
    executor.begin(1)
    about = await stage.keeper.stacks()
    assert (about["message_id"], about["stack"], about["executor_pid"]) == ("m1", "the stacks", 4711)
    executor.die()
    assert await stage.keeper.stacks() == {"note": "the executor is being replaced"}


async def test_a_start_that_takes_too_long_keeps_no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An initialize() that hangs, or loads for minutes, holds neither what waits nor what its predecessor died of."""
    monkeypatch.setattr(keeper_module, "START_PATIENCE", 0.01)
    stage = Stage()
    executor = stage.ready(1, 2)
    executor.page.begin(1, Phase.CALLBACK, 0)
    executor.die(Exit(code=None, signal=9))
    await stage.next_executor()
    while stage.keeper.busy:  # noqa: ASYNC110 - the keeper offers no event for it
        await asyncio.sleep(0)
    assert stage.owner.unstarted == [2]
    assert stage.owner.stalled == 1


async def test_executors_that_come_to_nothing_are_started_more_and_more_slowly() -> None:
    """A thread that ends the process a moment after the start would make a loop of new processes otherwise."""
    stage = Stage()
    stage.ready()
    stage.executor.die(Exit(code=1, signal=None))
    await stage.replacement()
    assert stage.events("executor.restart") == []
    stage.executor.die(Exit(code=1, signal=None))
    assert stage.events("executor.restart")[0]["in_seconds"] == 0.5
    await stage.keeper.end(0.0)
