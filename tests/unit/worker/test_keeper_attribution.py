"""Whose fault the death of an executor was, and what becomes of every message that it had."""

import pytest
from keeper_fakes import Stage

from workerkit import Cause, Reason
from workerkit.settlement import ACK, Outcome, Verb
from workerkit.worker.child import Exit
from workerkit.worker.link import Aftermath, Phase

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
    stage.forward(5)
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
    stage.executor.die()
    second = await stage.replacement()
    assert stage.settler.settled == []
    assert stage.keeper.busy
    second.finish(1, NACK)
    assert stage.settler.settled == [(1, NACK)]
    assert not stage.keeper.busy


async def test_a_settlement_in_the_last_bytes_of_the_dead_executor_counts() -> None:
    """What it had sent before it died is read before anybody is blamed; the next message had begun."""
    stage = Stage()
    first = stage.ready(1, 2)
    first.begin(1)
    first.settle(1)
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
    assert second.delivered == [2]
    second.begin(1, Phase.SHUTDOWN)
    second.page.end()
    second.finish(2)
    assert stage.settler.settled == [(1, ACK), (2, ACK)]
    assert not stage.keeper.busy, "a message that is settled must not hold up a stop"


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


async def test_a_death_in_shutdown_is_settled_by_the_default_with_the_first_cause() -> None:
    """The replacement died of shutdown() itself: no third try, and the reason is what killed the callback."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.executor.die()
    second = await stage.replacement()
    second.begin(1, Phase.SHUTDOWN)
    second.die(Exit(code=None, signal=11))
    assert stage.settler.settled == [(1, NACK)]
    third = await stage.replacement()
    assert third.aftermaths == []
    assert third.delivered == [2]


async def test_a_replacement_that_dies_before_it_began_the_shutdown_does_not_run_the_callback_again() -> None:
    """The attempt is over and counts: a second run of it would be an attempt that nobody counts."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.executor.die()
    (await stage.replacement()).die(Exit(code=None, signal=11))
    assert stage.settler.settled == [(1, NACK)]
    third = await stage.replacement()
    assert third.delivered == [2]
    assert third.aftermaths == []


async def test_a_replacement_that_never_gets_ready_leaves_the_default() -> None:
    """No shutdown() can run: the message is nacked, the unstarted ones go back to the broker."""
    stage = Stage()
    stage.ready(1, 2).begin(1)
    stage.executor.die()
    await stage.next_executor()
    stage.executor.die(Exit(code=1, signal=None))
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


async def test_an_idle_death_before_a_message_that_went_back_does_not_count_against_the_next() -> None:
    """The channel was lost in between: the message that comes first now has seen one death."""
    stage = Stage()
    stage.ready(1).die()
    await stage.replacement()
    assert stage.keeper.forget() == 1
    stage.forward(2)
    stage.executor.die()
    assert stage.settler.settled == []
    assert (await stage.replacement()).delivered == [2]


async def test_an_idle_death_with_nothing_to_do_blames_nobody() -> None:
    """And a new executor is there for the next message."""
    stage = Stage()
    stage.ready().die()
    await stage.replacement()
    stage.forward(1)
    assert stage.executor.delivered == [1]


@pytest.mark.parametrize(("kills", "reason"), [(0, Reason.SIGNAL), (1, Reason.OOM)])
async def test_sigkill_is_the_oom_killers_when_the_cgroup_says_so(
    kills: int, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of the memory cgroup went up during the life of that executor, whatever it was before."""
    count = 5
    monkeypatch.setattr("workerkit.worker.cgroup.oom_kills", lambda: count)
    stage = Stage()
    stage.ready(1).begin(1)
    count += kills
    stage.executor.die()
    ((_, aftermath),) = (await stage.replacement()).aftermaths
    assert aftermath.cause.reason is reason
