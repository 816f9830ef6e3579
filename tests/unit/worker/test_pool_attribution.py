"""Whose fault the death of an executor was, and what becomes of every message that it had."""

import pytest
from pool_fakes import Stage, turn

from workerkit import Cause, Reason
from workerkit.settlement import ACK, Outcome, Verb
from workerkit.worker import seat as seat_module
from workerkit.worker.child import Exit
from workerkit.worker.link import Aftermath
from workerkit.worker.page import Phase

SIGKILL = Cause(Reason.SIGNAL, "killed by signal 9 (SIGKILL)", signal=9)
MEMORY = Cause(Reason.MEMORY, "out of memory", "MemoryError")
NACK = Outcome(Verb.NACK, cause=SIGKILL)


async def test_the_message_that_ran_is_blamed_and_the_others_are_handed_on_in_order() -> None:
    """Finished ones stay finished, unstarted ones follow after the dead one's shutdown(), nobody else is settled."""
    stage = Stage()
    first = stage.ready(1, 2, 3, 4)
    first.finish(1)
    first.begin(2)
    first.die()
    stage.run(5)
    second = await stage.replacement()
    assert stage.settler.settled == [(1, ACK)]
    assert second.aftermaths == [(2, Aftermath(SIGKILL, None))]
    assert second.delivered == [3, 4, 5]
    assert stage.owner.unstarted == []
    assert stage.events("executor.exit")[0]["message_id"] == "m2"


async def test_the_replacement_settles_the_message_that_killed_its_predecessor() -> None:
    """shutdown() decides there, and nothing is settled before it did."""
    stage = Stage()
    stage.ready(1).begin(1)
    stage.child.die()
    second = await stage.replacement()
    assert stage.settler.settled == []
    assert stage.pool.busy
    second.finish(1, NACK)
    assert stage.settler.settled == [(1, NACK)]
    assert not stage.pool.busy


async def test_a_settlement_in_the_last_bytes_of_the_dead_executor_counts() -> None:
    """What it had sent before it died is read before anybody is blamed; the next message had begun."""
    stage = Stage()
    first = stage.ready(1, 2)
    first.begin(1)
    first.settle(1)
    first.end(1)
    first.begin(2)
    first.die()
    second = await stage.replacement()
    assert stage.settler.settled == [(1, ACK)]
    assert [tag for tag, _ in second.aftermaths] == [2]


async def test_a_death_after_the_settlement_runs_shutdown_and_changes_nothing() -> None:
    """ack() and then os._exit(): shutdown() is told how it was settled, and the message is not handed out again."""
    stage = Stage()
    first = stage.ready(1, 2)
    first.begin(1)
    first.settle(1)
    first.die(Exit(code=3, signal=None))
    second = await stage.replacement()
    ((tag, aftermath),) = second.aftermaths
    assert (tag, aftermath.settled, aftermath.cause.exit_code) == (1, Verb.ACK, 3)
    assert stage.events("executor.exit")[0]["message_id"] == "m1"
    assert second.delivered == [2]
    second.begin(1, phase=Phase.SHUTDOWN)
    second.end(1)
    second.finish(2)
    assert stage.settler.settled == [(1, ACK), (2, ACK)]
    assert not stage.pool.busy, "a message that is settled must not hold up a stop"


async def test_a_settled_message_is_not_run_again_when_the_replacement_dies_too() -> None:
    """Its shutdown() is lost, the message is not: it was acknowledged."""
    stage = Stage()
    first = stage.ready(1)
    first.begin(1)
    first.settle(1)
    first.die()
    (await stage.replacement()).die()
    third = await stage.replacement()
    assert third.delivered == []
    assert third.aftermaths == []
    assert stage.settler.settled == [(1, ACK)]


async def test_a_death_in_the_shutdown_of_a_settled_message_settles_nothing() -> None:
    """It was acknowledged before its executor died."""
    stage = Stage()
    first = stage.ready(1)
    first.begin(1)
    first.settle(1)
    first.die()
    second = await stage.replacement()
    second.begin(1, phase=Phase.SHUTDOWN)
    second.die()
    assert stage.settler.settled == [(1, ACK)]
    assert (await stage.replacement()).aftermaths == []


async def test_a_death_in_shutdown_is_settled_by_the_default_with_the_first_cause() -> None:
    """The replacement died of shutdown() itself: no third try, and the reason is what killed the callback."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.child.die()
    second = await stage.replacement()
    second.begin(1, phase=Phase.SHUTDOWN)
    second.die(Exit(code=None, signal=11))
    assert stage.settler.settled == [(1, NACK)]
    assert stage.events("executor.exit")[1]["message_id"] == "m1"
    third = await stage.replacement()
    assert third.aftermaths == []
    assert third.delivered == [2]


async def test_a_replacement_that_dies_before_it_began_the_shutdown_does_not_run_the_callback_again() -> None:
    """The attempt is over and counts: a second run of it would be an attempt that nobody counts."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.child.die()
    (await stage.replacement()).die(Exit(code=None, signal=11))
    assert stage.settler.settled == [(1, NACK)]
    third = await stage.replacement()
    assert third.delivered == [2]
    assert third.aftermaths == []


async def test_a_replacement_that_never_gets_ready_leaves_the_default() -> None:
    """No shutdown() can run: the message is nacked, the unstarted ones go back to the broker."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.child.die()
    await stage.next_child()
    stage.child.die(Exit(code=1, signal=None))
    assert stage.settler.settled == [(1, NACK)]
    assert stage.owner.unstarted == [2]
    assert stage.owner.stalled == 1


async def test_a_dying_executor_that_settles_in_its_own_shutdown_leaves_nothing_to_do() -> None:
    """MemoryError: it announced the cause, ran shutdown() and settled; its exit blames nobody again."""
    stage = Stage()
    first = stage.ready(1, 2)
    first.begin(1)
    first.announce(MEMORY, 1)
    first.settle(1, Outcome(Verb.NACK, cause=MEMORY))
    first.die(Exit(code=70, signal=None))
    second = await stage.replacement()
    assert stage.settler.settled == [(1, Outcome(Verb.NACK, cause=MEMORY))]
    assert second.aftermaths == []
    assert second.delivered == [2]


async def test_a_dying_executor_that_is_killed_in_its_own_shutdown_is_settled_with_the_announced_cause() -> None:
    """The default settlement, with what the executor said it was dying of, not the signal that ended it."""
    stage = Stage()
    first = stage.ready(1)
    first.begin(1)
    first.announce(MEMORY, 1)
    first.die()
    assert stage.settler.settled == [(1, Outcome(Verb.NACK, cause=MEMORY))]


async def test_out_of_memory_outside_a_callback_is_the_cause_of_the_message_that_it_came_before() -> None:
    """The executor says what it dies of and names no message; the second time, the next message is what kills."""
    stage = Stage()
    stage.ready(1).announce(MEMORY, None)
    stage.child.die(Exit(code=70, signal=None))
    second = await stage.replacement()
    second.announce(MEMORY, None)
    second.die(Exit(code=70, signal=None))
    assert stage.settler.settled == [(1, Outcome(Verb.NACK, cause=MEMORY))]


async def test_one_idle_death_blames_nobody() -> None:
    """Killed between two callbacks, from outside: everything it had not begun is handed on."""
    stage = Stage()
    stage.ready(1, 2).die()
    second = await stage.replacement()
    assert second.delivered == [1, 2]
    assert stage.settler.settled == []


async def test_two_idle_deaths_before_the_same_message_blame_it() -> None:
    """Taking that message in is what kills: a body too big for the limit would otherwise kill for ever."""
    stage = Stage()
    stage.ready(1, 2).die()
    (await stage.replacement()).die()
    assert stage.settler.settled == [(1, NACK)]
    assert (await stage.replacement()).delivered == [2]


async def test_idle_deaths_before_different_messages_blame_nobody() -> None:
    """Between them a message was worked on, so the first one did not kill."""
    stage = Stage()
    stage.ready(1, 2).die()
    second = await stage.replacement()
    second.finish(1)
    second.die()
    assert stage.settler.settled == [(1, ACK)]
    assert (await stage.replacement()).delivered == [2]


async def test_an_idle_death_before_a_message_that_went_back_does_not_count_against_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its source was lost in between: the message that comes first now has seen one death."""
    monkeypatch.setattr(seat_module, "RESTART_DELAYS", (0.0,))
    stage = Stage()
    stage.ready(1).die()
    await stage.replacement()
    assert stage.pool.forget([None]) == 1
    stage.run(2)
    stage.child.die()
    assert stage.settler.settled == []
    assert (await stage.replacement()).delivered == [2]


async def test_an_idle_death_with_nothing_to_do_blames_nobody() -> None:
    """And a new executor is there for the next message."""
    stage = Stage()
    stage.ready().die()
    await stage.replacement()
    stage.run(1)
    assert stage.child.delivered == [1]


async def test_a_callback_that_began_in_the_instant_in_which_it_was_taken_away_is_not_blamed() -> None:
    """It is somebody else's by now: its shutdown() would settle what is no longer here."""
    stage = Stage()
    executor = stage.ready(1)
    assert [delivery.tag for delivery in await stage.pool.recall()] == [1]
    executor.page.begin(*executor.places[1], Phase.CALLBACK, 1)
    executor.die()
    second = await stage.replacement()
    assert second.aftermaths == []
    assert stage.settler.settled == []
    assert not stage.pool.busy


@pytest.mark.parametrize(("kills", "reason"), [(0, Reason.SIGNAL), (1, Reason.OOM)])
async def test_sigkill_is_the_oom_killers_when_the_cgroup_says_so(
    kills: int, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of the memory cgroup went up during the life of that executor, whatever it was before."""
    count = 5
    monkeypatch.setattr("workerkit.worker.memory.oom_kills", lambda: count)
    stage = Stage()
    stage.ready(1).begin(1)
    count += kills
    stage.child.die()
    ((_, aftermath),) = (await stage.replacement()).aftermaths
    assert aftermath.cause.reason is reason


async def test_what_shutdown_decides_for_the_dead_message_is_what_counts() -> None:
    """It may reject, or release: that is settled as it says."""
    stage = Stage()
    stage.ready(1).begin(1)
    stage.child.die()
    second = await stage.replacement()
    release = Outcome(Verb.RELEASE)
    await stage.pool.recall()  # which must not make the release look like that of one that never began
    second.finish(1, release)
    await turn()
    assert stage.settler.settled == [(1, release)]
    assert stage.owner.unstarted == []
