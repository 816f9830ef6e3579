"""Several callbacks in one process: who is to blame when it dies, and what becomes of those that are not."""

import asyncio

import pytest
from pool_fakes import ASYNC, FakeChild, Stage, make_delivery, turn

from workerkit import Cause, Reason
from workerkit.headers import ALONE
from workerkit.settlement import ACK, RELEASE, Outcome, Verb
from workerkit.worker.child import Exit
from workerkit.worker.page import SLOTS, Phase

SIGKILL = Cause(Reason.SIGNAL, "killed by signal 9 (SIGKILL)", signal=9)
MEMORY = Cause(Reason.MEMORY, "out of memory", "MemoryError")
NACK = Outcome(Verb.NACK, cause=SIGKILL)
FAILED = Outcome(Verb.NACK, cause=Cause(Reason.EXCEPTION, "it failed"))


async def died_with(stage: Stage, *running: int, others: tuple[int, ...] = ()) -> FakeChild:
    """The replacement of an executor that ran these when it was killed, and had others waiting."""
    first = stage.ready(*running, *others, **ASYNC)
    first.begin(*running)
    first.die()
    return await stage.replacement(**ASYNC)


async def test_all_that_ran_are_suspects_and_none_is_settled() -> None:
    """shutdown() runs for each of them first, and nothing beside it."""
    stage = Stage()
    second = await died_with(stage, 1, 2, 3, others=(4,))
    assert [(tag, aftermath.cause, aftermath.settled) for tag, aftermath in second.aftermaths] == [
        (1, SIGKILL, None),
        (2, SIGKILL, None),
        (3, SIGKILL, None),
    ]
    assert second.delivered == []
    assert stage.settler.settled == []
    line = stage.events("executor.exit")[0]
    assert line["suspects"] == 3
    assert "message_id" not in line


async def test_each_suspect_runs_alone_one_after_the_other_before_anything_new() -> None:
    """And its run settles it as the attempt that it was, not as one more."""
    stage = Stage()
    second = await died_with(stage, 1, 2, others=(3, 4))
    stage.run(5)
    for tag in (1, 2):
        second.finish(tag, NACK)
    assert stage.settler.settled == []
    assert second.delivered == [1]
    second.begin(1)
    second.drain()
    assert second.delivered == [1], "nothing runs beside it"
    second.settle(1)
    second.end(1)
    second.drain()
    assert second.delivered == [1, 2]
    second.finish(2, FAILED)
    assert second.delivered == [1, 2, 3, 4, 5]
    assert stage.settler.settled == [(1, ACK), (2, FAILED)]
    assert stage.settler.alone == [], "an innocent one may run beside others the next time"


async def test_the_one_that_dies_alone_is_blamed_and_runs_alone_from_then_on() -> None:
    """Its attempt counts, with the cause of that death; the suspects after it are still to be tried."""
    stage = Stage()
    second = await died_with(stage, 1, 2, others=(3,))
    for tag in (1, 2):
        second.finish(tag, NACK)
    second.begin(1)
    second.die(Exit(code=None, signal=11))
    third = await stage.replacement(**ASYNC)
    ((tag, aftermath),) = third.aftermaths
    assert (tag, aftermath.cause.signal) == (1, 11)
    assert third.delivered == []
    nack = Outcome(Verb.NACK, cause=aftermath.cause)
    third.finish(1, nack)
    assert third.delivered == [2]
    third.finish(2)
    assert third.delivered == [2, 3]
    assert stage.settler.settled == [(1, nack), (2, ACK)]
    assert stage.settler.alone == [1]


async def test_what_shutdown_decides_for_a_suspect_holds_unless_it_is_a_failed_attempt() -> None:
    """``nack()`` is what it says of a message that killed; whether this one did is not known yet."""
    stage = Stage()
    reject = Outcome(Verb.REJECT, cause=Cause(Reason.REJECTED, "no"))
    second = await died_with(stage, 1, 2, 3, 4)
    second.finish(1, reject)
    second.finish(2, RELEASE)
    second.finish(3)
    second.finish(4, Outcome(Verb.RETRY, delay=3.0, cause=SIGKILL))
    assert stage.settler.settled == [(1, reject), (2, RELEASE), (3, ACK)]
    assert second.delivered == [4]


async def test_a_suspect_that_goes_on_in_its_shutdown_has_another_place_for_its_run() -> None:
    """What the executor writes about the one must not be taken for the other, nor the slot be given away."""
    stage = Stage()
    second = await died_with(stage, 1, 2)
    second.finish(2, NACK)
    place = second.places[1]
    second.begin(1, phase=Phase.SHUTDOWN)
    second.settle(1, NACK)
    second.drain()
    assert second.delivered == [2]
    second.finish(2)
    assert second.delivered == [2, 1]
    assert second.places[1] != place
    second.finish(1)
    stage.run(*range(3, SLOTS + 2))
    assert place[0] not in [second.places[tag][0] for tag in range(3, SLOTS + 2)]
    second.page.end(*place)
    stage.run(SLOTS + 2)
    assert second.places[SLOTS + 2][0] == place[0]
    assert stage.settler.settled == [(2, ACK), (1, ACK)]


async def test_a_suspect_whose_shutdown_dies_is_run_alone_all_the_same() -> None:
    """Its shutdown() is lost; that says nothing about its callback."""
    stage = Stage()
    second = await died_with(stage, 1, 2)
    second.begin(1, phase=Phase.SHUTDOWN)
    second.die(Exit(code=None, signal=11))
    third = await stage.replacement(**ASYNC)
    assert third.aftermaths == []
    assert third.delivered == [1]
    third.finish(1)
    third.finish(2)
    assert stage.settler.settled == [(1, ACK), (2, ACK)]


async def test_a_suspect_that_had_not_begun_alone_when_its_executor_was_killed_is_still_to_run_alone() -> None:
    """Killed from outside, between two callbacks."""
    stage = Stage()
    second = await died_with(stage, 1, 2, others=(3,))
    for tag in (1, 2):
        second.finish(tag, NACK)
    second.die()
    third = await stage.replacement(**ASYNC)
    assert third.delivered == [1]
    third.finish(1)
    assert third.delivered == [1, 2]
    third.finish(2)
    assert third.delivered == [1, 2, 3]


async def test_a_settlement_before_the_death_counts() -> None:
    """The message has its shutdown() and is not a suspect; the other one that ran is."""
    stage = Stage()
    first = stage.ready(1, 2, **ASYNC)
    first.begin(1, 2)
    first.settle(1)
    first.die()
    second = await stage.replacement(**ASYNC)
    assert [(tag, aftermath.settled) for tag, aftermath in second.aftermaths] == [(1, Verb.ACK), (2, None)]
    second.finish(2, NACK)
    assert second.delivered == [2]
    second.finish(2)
    assert stage.settler.settled == [(1, ACK), (2, ACK)]


async def test_the_only_one_that_runs_is_blamed_at_once() -> None:
    """It died alone, by chance: that is enough."""
    stage = Stage()
    second = await died_with(stage, 1, others=(2,))
    assert [tag for tag, _ in second.aftermaths] == [1]
    second.finish(1, NACK)
    assert second.delivered == [2]
    assert stage.settler.settled == [(1, NACK)]
    assert stage.settler.alone == [1]


async def test_one_that_the_dying_executor_names_is_blamed_and_the_others_run_again_uncounted() -> None:
    """sys.exit() in a coroutine: the process knows whose it was."""
    stage = Stage()
    first = stage.ready(1, 2, 3, 4, **ASYNC)
    first.begin(1, 2, 3)
    first.announce(MEMORY, 2)
    first.settle(2, Outcome(Verb.NACK, cause=MEMORY))
    first.die(Exit(code=70, signal=None))
    second = await stage.replacement(**ASYNC)
    assert second.aftermaths == []
    assert second.delivered == [1, 3, 4]
    assert stage.settler.settled == [(2, Outcome(Verb.NACK, cause=MEMORY))]
    assert stage.settler.alone == []


async def test_one_that_is_named_and_killed_before_its_shutdown_has_it_in_the_replacement() -> None:
    """It has said what it dies of."""
    stage = Stage()
    first = stage.ready(1, 2, **ASYNC)
    first.begin(1, 2)
    first.announce(MEMORY, 2)
    first.page.begin(*first.places[2], Phase.CALLBACK, 1)  # killed between the word and the deed
    first.die()
    second = await stage.replacement(**ASYNC)
    assert [(tag, aftermath.cause) for tag, aftermath in second.aftermaths] == [(2, MEMORY)]
    second.finish(2, Outcome(Verb.NACK, cause=MEMORY))
    assert second.delivered == [1]


async def test_a_copy_that_says_so_runs_alone_from_the_start() -> None:
    """It has killed before. What came before it finishes first, what came after it waits."""
    stage = Stage()
    executor = stage.ready(**ASYNC)
    alone = make_delivery(2, headers={ALONE: 1})
    stage.pool.run([make_delivery(1), alone, make_delivery(3)])
    assert executor.delivered == [1, 3]
    stage.run(4)
    executor.finish(1)
    executor.finish(3)
    assert executor.delivered == [1, 3, 2]
    executor.finish(2, FAILED)
    assert executor.delivered == [1, 3, 2, 4]
    assert stage.settler.alone == [2], "its next copy says it too"


async def test_what_is_to_run_alone_begins_when_all_before_it_are_lost() -> None:
    """Nothing will finish that it could wait for, and until it runs its executor takes nothing else."""
    stage = Stage()
    executor = stage.ready(**ASYNC, queues={"jobs": 1, "other": 1})
    stage.run(1, 2, receipt="A")
    stage.pool.run([make_delivery(3, headers={ALONE: 1}, receipt="B")])
    executor.finish(1)
    stage.pool.forget(["A"])
    assert executor.delivered == [1, 2, 3]


async def test_what_is_to_run_alone_begins_when_all_before_it_are_handed_back() -> None:
    """In the instant in which they were about to begin."""
    stage = Stage()
    executor = stage.ready(1, 2, **ASYNC)
    executor.finish(1)
    recall = asyncio.create_task(stage.pool.recall())
    await turn()
    executor.page.begin(*executor.places[2], Phase.CALLBACK, 1)  # and before its second look at the page
    await recall
    stage.pool.run([make_delivery(3, headers={ALONE: 1})])
    executor.begin(2, just_now=True)
    executor.drain()
    assert stage.owner.unstarted == [2]
    assert executor.delivered == [1, 2, 3]


async def test_inline_nobody_waits_for_the_shutdown_of_what_ran() -> None:
    """There is no other executor in which it could run, and a stop would wait for ever."""
    stage = Stage(inline=True)
    executor = stage.ready(1, 2, **ASYNC)
    executor.begin(1, 2)
    executor.die()
    assert not stage.pool.busy
    assert sorted(stage.owner.unstarted) == [1, 2]


async def test_one_callback_at_a_time_needs_no_rule_about_running_alone() -> None:
    """The header changes nothing there, and the order stays."""
    stage = Stage()
    executor = stage.ready()
    stage.pool.run([make_delivery(1, headers={ALONE: 1}), make_delivery(2)])
    assert executor.delivered == [1, 2]


async def test_suspects_run_alone_in_another_executor_when_their_own_does_not_get_ready() -> None:
    """They need not go back to the broker, which knows nothing of it."""
    stage = Stage()
    first, second = await stage.several(2, **ASYNC)
    stage.run(1, 2, 3, 4)
    first.begin(*first.delivered)
    suspects = set(first.delivered)
    first.die()
    (await stage.next_child()).die(Exit(code=75, signal=None))
    before = list(second.delivered)
    for tag in before:
        second.finish(tag)
    assert len(second.delivered) == len(before) + 1, "one at a time"
    second.finish(second.delivered[-1])
    assert set(second.delivered) - set(before) == suspects
    assert stage.owner.unstarted == []
    assert stage.owner.stalled == 0


@pytest.mark.parametrize(
    "when", ["before its shutdown", "during its shutdown", "before its run", "before its shutdown dies"]
)
async def test_a_suspect_that_is_lost_does_not_run_again(when: str) -> None:
    """The broker has it, and gives it to somebody else."""
    stage = Stage()
    first = stage.ready(**ASYNC)
    stage.run(1, receipt="a")
    stage.run(2, receipt="b")
    first.begin(1, 2)
    first.die()
    if when == "before its shutdown":
        stage.pool.forget(["a"])
    second = await stage.replacement(**ASYNC)
    second.finish(2, NACK)
    if when == "during its shutdown":
        second.begin(1, phase=Phase.SHUTDOWN)
        stage.pool.forget(["a"])
    if when == "before its shutdown dies":
        stage.pool.forget(["a"])
        second.begin(1, phase=Phase.SHUTDOWN)
        second.die()
        second = await stage.replacement(**ASYNC)
    else:
        second.finish(1, NACK)
    assert second.delivered == [2]
    if when == "before its run":
        assert stage.pool.forget(["a"]) == 1
    else:
        assert stage.settler.settled == [(1, NACK)], "which the broker's adapter drops"
    second.finish(2)
    assert second.delivered == [2]
    assert not stage.pool.busy


async def test_a_lost_message_that_ran_beside_the_named_one_does_not_run_again() -> None:
    """Neither here nor counted as settled: it is handed back, which the adapter drops."""
    stage = Stage()
    first = stage.ready(**ASYNC)
    stage.run(1, receipt="a")
    stage.run(2, receipt="b")
    first.begin(1, 2)
    stage.pool.forget(["a"])
    first.announce(MEMORY, 2)
    first.die()
    second = await stage.replacement(**ASYNC)
    assert second.delivered == []
    assert stage.owner.unstarted == [1]
    assert not stage.pool.busy


async def test_at_the_deadline_suspects_go_back_uncounted() -> None:
    """Wherever they are: waiting for their shutdown(), in it, or for their run; nothing stays behind."""
    stage = Stage()
    second = await died_with(stage, 1, 2, 3)
    second.finish(1, NACK)
    second.begin(2, phase=Phase.SHUTDOWN)
    stage.pool.hand_back()
    second.die()
    assert sorted(stage.owner.unstarted) == [1, 2, 3]
    assert stage.settler.settled == []
    assert not stage.pool.busy


async def test_suspects_go_back_when_no_executor_gets_ready() -> None:
    """Uncounted: nobody has shown that it was them."""
    stage = Stage()
    first = stage.ready(1, 2, **ASYNC)
    first.begin(1, 2)
    first.die()
    await stage.next_child()
    stage.child.die(Exit(code=1, signal=None))
    assert sorted(stage.owner.unstarted) == [1, 2]
    assert stage.settler.settled == []
    assert stage.owner.stalled == 1
    assert not stage.pool.busy


async def test_deaths_of_suspects_do_not_slow_down_the_next_start() -> None:
    """They are deaths of messages, of which there are so many and no more."""
    stage = Stage()
    stage.ready(1, 2, **ASYNC).die()  # an idle death, which comes to nothing
    second = await stage.replacement(**ASYNC)
    second.begin(1, 2)
    second.die()
    assert stage.events("executor.restart") == []
