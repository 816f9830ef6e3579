"""A running worker, from its start to its exit code, between a scripted broker and executors that work."""

import asyncio
import gc

import pytest
from consumer_fakes import Scene, until
from pool_fakes import ASYNC, turn

from workerkit import Cause, Reason
from workerkit.errors import AccessRefused, ConfigurationError, ExitCode, TaskLoadError
from workerkit.settlement import Outcome, RetryLater, Verb
from workerkit.worker import consumer as consumer_module
from workerkit.worker import seat as seat_module
from workerkit.worker import selection
from workerkit.worker.child import Exit
from workerkit.worker.link import Kind

STUCK = None


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seat_module, "RESTART_DELAYS", (0.0,))
    monkeypatch.setattr(consumer_module, "_CONFIRM_TIMEOUT", 0.05)
    monkeypatch.setattr(consumer_module, "_CLOSE_TIMEOUT", 0.5)


class TestStart:
    """Load the task, see that the queues are there, take."""

    async def test_nothing_is_asked_of_the_broker_before_the_task_has_said_what_it_wants(self) -> None:
        """Then the queues are started with what it resolved, and taken from."""
        async with Scene(queues={"a": 3, "b": 1}, delays=(7.0,), max_losses=4) as scene:
            scene.loads = False
            await turn()
            assert not scene.peer.started.is_set()
            scene.loads = True
            scene.child.send()
            await scene.consuming()
            plan = scene.peer.plan
            assert (plan.worker, plan.queues, plan.delays, plan.max_losses) == ("w", ("a", "b"), (7.0,), 4)
            assert sorted(scene.peer.takes) == [("a", 10), ("b", 10)]

    async def test_a_task_that_cannot_be_loaded_ends_the_worker_with_its_text(self) -> None:
        """The broker is closed all the same."""
        async with Scene() as scene:
            scene.loads = False
            scene.on_load = lambda child: child.fail(configuration=True)
            await until(lambda: scene.children)
            with pytest.raises(TaskLoadError, match="why"):
                await die_and_end(scene, Exit(code=78, signal=None))
            assert scene.peer.closed_with is not None

    @pytest.mark.parametrize("error", [AccessRefused("no"), ConfigurationError("no such queue")])
    async def test_what_the_broker_refuses_ends_the_worker(self, error: Exception) -> None:
        """With its error, and with the executor stopped."""
        scene = Scene()
        scene.peer.start_error = error
        async with scene:
            with pytest.raises(type(error)):
                await scene.end()
            assert scene.child.closed

    async def test_a_strategy_that_cannot_be_used_ends_the_worker_before_it_takes_anything(self) -> None:
        """It is an error of the configuration."""
        async with Scene(queues={"a": 1, "b": 1}, select="nowhere:Strategy") as scene:
            with pytest.raises(ConfigurationError, match="nowhere:Strategy"):
                await scene.end()
            assert not scene.peer.started.is_set()

    async def test_a_stop_while_the_task_loads_is_a_stop(self) -> None:
        """Exit 0, and the broker is not bothered."""
        async with Scene() as scene:
            scene.loads = False
            await until(lambda: scene.children)
            scene.consumer.stop_by_signal("SIGTERM")
            assert await scene.end() == ExitCode.OK
            assert not scene.peer.started.is_set()
            assert Kind.STOP in scene.child.kinds

    async def test_a_task_that_fails_to_load_in_a_stop_is_a_stop(self) -> None:
        """Nobody waits for it any more; nor is it an error that nobody has looked at."""
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))

        async def stop_while_it_loads() -> None:
            async with Scene() as scene:
                scene.loads = False
                await until(lambda: scene.children)
                scene.child.stuck_on = 0  # it imports, and cannot stop in the midst of that
                scene.consumer.stop_by_signal("SIGTERM")
                await until(lambda: Kind.STOP in scene.child.kinds)
                scene.child.fail(configuration=True)
                assert await die_and_end(scene, Exit(code=78, signal=None)) == ExitCode.OK

        await stop_while_it_loads()
        gc.collect()  # what nobody has looked at says so when it is collected
        assert errors == []

    async def test_a_stop_while_the_broker_is_away_is_a_stop(self) -> None:
        """It is waited for as long as it takes, but not then."""
        scene = Scene()
        scene.peer.may_start.clear()
        async with scene:
            await scene.peer.started.wait()
            scene.consumer.stop_by_signal("SIGTERM")
            assert await scene.end() == ExitCode.OK
            assert scene.peer.takes == []

    async def test_a_pause_before_the_start_holds(self) -> None:
        """An operator who pauses a worker that loads has paused it."""
        async with Scene() as scene:
            scene.consumer.pause()
            await scene.consuming()
            assert scene.peer.takes == []
            scene.consumer.resume()
            await until(lambda: scene.peer.window == {"jobs": 10})


async def die_and_end(scene: Scene, status: Exit) -> int:
    if not scene.child.closed:  # it may have been told to stop, and have done so
        scene.child.die(status)
    return await scene.end()


class TestWork:
    """Messages, and what the broker says about them."""

    async def test_what_comes_is_run_and_acknowledged(self) -> None:
        """One line about each, when the broker has it."""
        async with Scene() as scene:
            await scene.consuming()
            scene.peer.answers = False
            scene.peer.deliver(1, 2)
            await until(lambda: scene.peer.acked == [1, 2])
            assert scene.events("message.settled") == []
            scene.peer.answer()
            assert [line["delivery_tag"] for line in scene.events("message.settled")] == [1, 2]

    async def test_a_failed_attempt_is_retried_by_the_policy_of_the_task(self) -> None:
        """Attempts and delays are what it resolved."""
        cause = Cause(Reason.EXCEPTION, "no")
        scene = Scene(max_attempts=3, delays=(7.0, 8.0))
        scene.outcomes[1] = Outcome(Verb.NACK, cause=cause)
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, attempt=2)
            await until(lambda: scene.peer.settled)
            assert scene.peer.settled == [(1, RetryLater(8.0, 3, explicit=False, cause=cause))]

    async def test_what_could_not_be_published_with_an_acknowledgement_is_a_failed_attempt(self) -> None:
        """The message is still ours, and is settled once more."""
        cause = Cause(Reason.EXCEPTION, "no such queue")
        async with Scene() as scene:
            await scene.consuming()
            scene.peer.answers = False
            scene.peer.deliver(1)
            await until(lambda: scene.peer.acked)
            scene.peer.answers = True
            scene.peer.refuse_to_publish(cause)
            ((_, _), (tag, settlement)) = scene.peer.settled
            assert isinstance(settlement, RetryLater)
            assert (tag, settlement.attempt, settlement.cause) == (1, 2, cause)
            await until(lambda: scene.events("message.settled"))
            assert [line["outcome"] for line in scene.events("message.settled")] == ["retried"]

    async def test_what_was_lost_and_not_started_does_not_run(self) -> None:
        """What runs settles in vain, which is a line and nothing else."""
        scene = Scene()
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.answers = False
            scene.peer.deliver(1, 2, receipt="a")
            scene.peer.deliver(3, receipt="b")
            await until(lambda: scene.begun == [1])
            scene.peer.lose(["a"])
            assert scene.child.is_lost(1)
            scene.child.go_on()
            await until(lambda: scene.peer.acked == [1, 3])
            assert scene.begun == [1, 3]
            scene.peer.drop()
            assert len(scene.events("settle.dropped")) == 1
            scene.consumer.stop_by_signal("SIGTERM")
            assert await scene.end() == ExitCode.OK

    async def test_nothing_more_is_read_while_the_executor_does_not_keep_up(self) -> None:
        """And then it is again."""
        async with Scene() as scene:
            await scene.consuming()
            scene.child._events.on_congested(True)
            scene.child._events.on_congested(False)
            assert scene.peer.holds == [True, False]

    async def test_two_queues_are_both_worked_on(self) -> None:
        """Each has a window of its own."""
        async with Scene(queues={"a": 1, "b": 1}) as scene:
            await scene.consuming()
            scene.peer.deliver(1, 2, queue="a")
            scene.peer.deliver(3, queue="b")
            await until(lambda: len(scene.peer.acked) == 3)

    async def test_a_fixed_window_is_shared_by_the_executors(self) -> None:
        """Each has its part of it ahead, so that it need not ask for each message."""
        scene = Scene(executors=2, prefetch_count=10)
        scene.outcomes = dict.fromkeys(range(1, 11), STUCK)
        async with scene:
            await scene.consuming()
            await until(lambda: all(seat.ready for seat in scene.consumer._pool._seats))
            scene.peer.deliver(*range(1, 11))
            assert [len(child.delivered) for child in scene.children] == [5, 5]

    @pytest.mark.parametrize(("prefetch", "begun"), [(1, [11]), (2, [11, 1])])
    async def test_strict_waits_for_the_next_message_of_a_window_that_was_full(
        self, prefetch: int, begun: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With room for one, it can only be sent when the one before has ended; with more, it would be here."""
        monkeypatch.setattr(selection, "DRY", 0.2)
        scene = Scene(queues={"high": 2, "low": 1}, select="strict", prefetch_count=prefetch)
        scene.outcomes[11] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(11, queue="high")
            scene.peer.deliver(1, queue="low")
            await asyncio.sleep(0.25)
            scene.child.go_on()
            await turn()
            assert scene.begun == begun
            await until(lambda: len(scene.peer.acked) == 2)

    async def test_stacks_are_logged_for_each_executor(self) -> None:
        """What USR1 asks for."""
        async with Scene(executors=2) as scene:
            await scene.consuming()
            scene.consumer.log_stacks()
            await until(lambda: len(scene.events("worker.stacks")) == 2)

    async def test_a_reload_replaces_the_executor_and_not_the_worker(self) -> None:
        """Which goes on consuming."""
        async with Scene() as scene:
            await scene.consuming()
            scene.consumer.reload()
            await until(lambda: len(scene.children) == 2)
            scene.peer.deliver(1)
            await until(lambda: scene.peer.acked == [1])
            assert scene.peer.takes == [("jobs", 10)]


class TestPause:
    """Finish what runs, start no other, hand back what was not started."""

    async def test_a_pause_hands_back_what_was_not_started(self) -> None:
        """The broker has been told to send no more before that, so that it does not come back."""
        scene = Scene()
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2, 3)
            await until(lambda: scene.begun == [1])
            scene.peer.may_answer_take.clear()
            scene.consumer.pause()
            await until(lambda: scene.peer.window == {"jobs": 0})
            scene.peer.deliver(4)
            assert scene.peer.handed_back == [4]
            scene.peer.may_answer_take.set()
            await until(lambda: scene.peer.handed_back == [4, 2, 3])
            scene.child.go_on()
            assert scene.peer.acked == [1]
            scene.consumer.resume()
            await until(lambda: scene.peer.window == {"jobs": 10})
            scene.peer.deliver(5)
            await until(lambda: scene.peer.acked == [1, 5])

    async def test_pauses_and_resumes_in_a_row_end_as_the_last_one_says(self) -> None:
        """However slowly the broker answers; calls for one queue come one after the other."""
        async with Scene() as scene:
            await scene.consuming()
            scene.peer.may_answer_take.clear()
            for _ in range(3):
                scene.consumer.pause()
                scene.consumer.resume()
                await turn()
                assert scene.peer.taking <= 1
            scene.consumer.pause()
            scene.peer.may_answer_take.set()
            await until(lambda: scene.peer.window == {"jobs": 0} and not scene.peer.taking)
            await turn()
            assert scene.peer.window == {"jobs": 0}
            scene.peer.deliver(1)
            assert scene.peer.handed_back == [1]

    async def test_a_worker_that_goes_on_at_once_keeps_what_it_has(self) -> None:
        """Handing back would only cost the broker."""
        scene = Scene()
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2)
            scene.peer.may_answer_take.clear()
            scene.consumer.pause()
            await turn()
            scene.consumer.resume()
            scene.peer.may_answer_take.set()
            await until(lambda: scene.peer.window == {"jobs": 10} and not scene.peer.taking)
            await asyncio.sleep(0.03)
            assert scene.peer.handed_back == []

    async def test_a_paused_worker_stops_when_it_is_asked_to(self) -> None:
        """Exit 0."""
        async with Scene() as scene:
            await scene.consuming()
            scene.consumer.pause()
            scene.consumer.stop_by_signal("SIGTERM")
            assert await scene.end() == ExitCode.OK


class TestStop:
    """Let what runs finish, hand back the rest, see that the broker has it, end."""

    async def test_what_runs_is_finished_and_the_rest_handed_back(self) -> None:
        """Then the executor ends, then the broker is closed."""
        scene = Scene()
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2, 3)
            await until(lambda: scene.begun == [1])
            scene.consumer.stop_by_signal("SIGTERM")
            await until(lambda: scene.peer.handed_back == [2, 3])
            assert scene.peer.closed_with is None
            scene.child.go_on()
            assert await scene.end() == ExitCode.OK
            assert scene.peer.acked == [1]
            assert scene.events("worker.exit")[0]["reason"] == "SIGTERM"

    async def test_it_waits_until_the_broker_has_every_settlement(self) -> None:
        """What is acknowledged then does not come back."""
        async with Scene() as scene:
            await scene.consuming()
            scene.peer.answers = False
            scene.peer.deliver(1)
            await until(lambda: scene.peer.acked == [1])
            scene.consumer.stop_by_signal("SIGTERM")
            await asyncio.sleep(0.05)
            assert scene.peer.closed_with is None
            scene.peer.answer()
            assert await scene.end() == ExitCode.OK

    async def test_settlements_without_an_answer_are_waited_for_until_the_deadline(self) -> None:
        """A broker that is frozen must not keep the worker for ever."""
        async with Scene(grace=0.1) as scene:
            await scene.consuming()
            scene.peer.answers = False
            scene.peer.deliver(1)
            await until(lambda: scene.peer.acked == [1])
            scene.consumer.stop_by_signal("SIGTERM")
            assert await scene.end() == ExitCode.OK
            assert scene.peer.closed_with == 0.5

    async def test_at_the_deadline_the_running_message_is_handed_back_with_its_stack_in_the_log(self) -> None:
        """Its executor is ended; that is no failed attempt."""
        scene = Scene(grace=0.05)
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1)
            await until(lambda: scene.begun == [1])
            scene.consumer.stop_by_signal("SIGTERM")
            assert await scene.end() == ExitCode.OK
            assert scene.peer.handed_back == [1]
            assert scene.child.killed.is_set()
            line = scene.events("worker.deadline")[0]
            assert (line["message_id"], line["stack"]) == ("m1", "the stacks")

    async def test_past_the_deadline_the_broker_gets_a_moment_to_have_what_was_handed_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or the copies that wait for their confirmation."""
        monkeypatch.setattr(consumer_module, "_CONFIRM_TIMEOUT", 60.0)
        scene = Scene(grace=0.02)
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.answers = False
            scene.peer.deliver(1)
            await until(lambda: scene.begun == [1])
            scene.consumer.stop_by_signal("SIGTERM")
            await until(lambda: scene.peer.handed_back == [1])
            await asyncio.sleep(0.05)
            assert scene.peer.closed_with is None
            scene.peer.answer()
            assert await scene.end() == ExitCode.OK

    async def test_a_second_signal_makes_the_deadline_now(self) -> None:
        """Who asks twice does not want to wait."""
        scene = Scene(grace=1000.0)
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1)
            await until(lambda: scene.begun == [1])
            scene.consumer.stop_by_signal("SIGTERM")
            await turn()
            scene.consumer.stop_by_signal("SIGINT")
            assert await scene.end() == ExitCode.OK
            assert scene.peer.handed_back == [1]
            assert scene.events("worker.exit")[0]["reason"] == "SIGTERM"

    async def test_a_broker_that_does_not_say_that_it_sends_no_more_does_not_hold_up_a_stop(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it still sends is handed back."""
        monkeypatch.setattr(consumer_module, "_TELL_TIMEOUT", 0.02)
        async with Scene() as scene:
            await scene.consuming()
            scene.peer.may_answer_take.clear()
            scene.consumer.stop_by_signal("SIGTERM")
            scene.peer.deliver(1)
            assert await scene.end() == ExitCode.OK
            assert scene.peer.handed_back == [1]

    async def test_it_waits_until_the_broker_sends_no_more(self) -> None:
        """What is on its way when a connection is closed would come back as lost."""
        async with Scene() as scene:
            await scene.consuming()
            scene.peer.may_answer_take.clear()
            scene.consumer.stop_by_signal("SIGTERM")
            await asyncio.sleep(0.05)
            assert scene.peer.closed_with is None
            scene.peer.may_answer_take.set()
            assert await scene.end() == ExitCode.OK

    async def test_the_ttl_is_a_planned_end(self) -> None:
        """Of the worker's process, however long the task took to load."""
        async with Scene(ttl=0.05) as scene:
            assert await scene.end() == ExitCode.OK
            assert scene.events("worker.stopping")[0]["reason"] == "ttl"

    async def test_a_planned_end_does_not_wait_for_ever_for_a_copy_that_cannot_be_published(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the dead letters' queue is gone, say: the worker would neither work nor end. They go back instead."""
        monkeypatch.setattr(consumer_module, "_UNHURRIED", 0.1)
        async with Scene(limit=1) as scene:
            await scene.consuming()
            scene.peer.answers = False
            scene.peer.deliver(1)
            assert await scene.end() == ExitCode.OK
            assert scene.peer.closed_with is not None

    async def test_the_time_that_the_task_takes_to_load_is_part_of_the_ttl(self) -> None:
        """A process is as old as it is."""
        scene = Scene(ttl=1000.0)
        scene.consumer._started -= 1000.0
        async with scene:
            assert await scene.end() == ExitCode.OK

    @pytest.mark.parametrize("batches", [[(1, 2, 3, 4, 5)], [(1,), (2, 3), (4, 5)]])
    async def test_a_limit_is_exact(self, batches: list[tuple[int, ...]]) -> None:
        """So many are started, whatever comes; no window asks for more; the rest goes back, and the worker ends."""
        async with Scene(limit=3) as scene:
            await scene.consuming()
            assert scene.peer.takes == [("jobs", 3)]
            for batch in batches:
                scene.peer.deliver(*batch)
            assert await scene.end() == ExitCode.OK
            assert scene.begun == scene.peer.acked == [1, 2, 3]
            assert scene.peer.handed_back == [4, 5]
            assert scene.events("worker.stopping")[0]["reason"] == "limit"

    async def test_what_counts_against_a_limit_is_run(self) -> None:
        """It is not handed back because the worker ends: that many were asked for."""
        scene = Scene(limit=3)
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2, 3)
            await until(lambda: scene.events("worker.stopping"))
            await asyncio.sleep(0.05)  # a recall would have had the time
            scene.child.go_on()
            assert await scene.end() == ExitCode.OK
            assert scene.begun == [1, 2, 3]

    async def test_what_was_lost_before_it_ran_does_not_count_against_a_limit(self) -> None:
        """It will come again, here or elsewhere."""
        scene = Scene(limit=3)
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2)
            await until(lambda: scene.begun == [1])
            scene.peer.lose([None])
            scene.peer.deliver(3, 4, 5, receipt="b")
            scene.child.go_on()
            assert await scene.end() == ExitCode.OK
            assert scene.begun == [1, 3, 4]
            assert scene.peer.handed_back == [5]


class TestTrouble:
    """What can go wrong meanwhile, and the exit code that says so."""

    async def test_without_an_executor_nothing_is_taken_until_there_is_one(self) -> None:
        """Others have the messages meanwhile."""
        scene = Scene()
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2)
            await until(lambda: scene.begun == [1])
            scene.loads = False
            scene.on_load = lambda child: child.die(Exit(code=75, signal=None))
            scene.child.die()
            await until(lambda: scene.peer.window == {"jobs": 0})
            await until(lambda: scene.peer.handed_back == [2])
            scene.loads = True
            await until(lambda: scene.peer.window == {"jobs": 10})
            scene.peer.deliver(3)
            await until(lambda: scene.peer.acked == [3])

    async def test_a_paused_worker_stays_paused_when_its_executor_comes_back(self) -> None:
        """One reason less is not none."""
        async with Scene() as scene:
            await scene.consuming()
            scene.consumer.pause()
            scene.loads = False
            scene.on_load = lambda child: child.die(Exit(code=75, signal=None))
            scene.child.die()
            await until(lambda: "stalled" in scene.consumer._intake.reasons)
            scene.loads = True
            await until(lambda: "stalled" not in scene.consumer._intake.reasons)
            await turn()
            assert scene.peer.window == {"jobs": 0}
            scene.consumer.resume()
            await until(lambda: scene.peer.window == {"jobs": 10})

    async def test_settings_that_are_others_after_a_restart_of_the_executor_restart_the_worker(self) -> None:
        """Exit 75: a deploy has changed the task, and the queues are consumed as before."""
        async with Scene() as scene:
            await scene.consuming()
            scene.resolved["queues"] = {"other": 1}
            scene.child.die()
            assert await scene.end() == ExitCode.TEMPORARY
            assert len(scene.events("worker.changed")) == 1

    async def test_in_a_stop_other_settings_are_none_of_its_business(self) -> None:
        """It was asked to end: exit 0."""
        scene = Scene()
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1)
            await until(lambda: scene.begun == [1])
            scene.consumer.stop_by_signal("SIGTERM")
            scene.resolved["ttl"] = 1000.0
            scene.child.die()
            assert await scene.end() == ExitCode.OK
            assert [tag for tag, _ in scene.peer.settled] == [1]

    async def test_an_error_in_the_adapter_ends_the_worker(self) -> None:
        """Exit 70, in order: what runs is finished and the rest handed back."""
        scene = Scene()
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2)
            await until(lambda: scene.begun == [1])
            scene.peer.events.on_failed(RuntimeError("a bug"))
            await until(lambda: scene.peer.handed_back == [2])
            scene.child.go_on()
            assert await scene.end() == ExitCode.INTERNAL
            assert scene.peer.acked == [1]
            assert len(scene.events("worker.failed")) == 1

    async def test_an_error_while_the_broker_is_told_ends_the_worker(self) -> None:
        """What it hands out is not known any more: nobody would notice that nothing is consumed."""
        scene = Scene()
        scene.peer.take_error = RuntimeError("a bug")
        async with scene:
            assert await scene.end() == ExitCode.INTERNAL

    async def test_the_end_of_the_inline_executor_is_the_end_of_the_worker(self) -> None:
        """Exit 75: there is no other main thread."""
        async with Scene(spec={"inline": True}) as scene:
            await scene.consuming()
            scene.child.die()
            assert await scene.end() == ExitCode.TEMPORARY

    async def test_an_error_of_ours_ends_the_worker_though_a_settlement_is_never_answered(self) -> None:
        """What was lost with the error may be what the drain waits for; nobody would come with a second signal."""
        async with Scene(grace=0.1) as scene:
            await scene.consuming()
            scene.peer.answers = False
            scene.peer.deliver(1)
            await until(lambda: scene.peer.settled)
            scene.peer.events.on_failed(RuntimeError("a bug"))
            assert await scene.end() == ExitCode.INTERNAL


class TestSharing:
    """What waits behind a long callback goes to somebody who could run it now."""

    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(consumer_module, "_HAND_BACK_AFTER", 0.0)
        monkeypatch.setattr(consumer_module, "_ASK_AGAIN", 0.0)

    async def test_it_is_given_back_when_another_consumer_has_room(self) -> None:
        """The window is small by then, so that nothing comes in its place."""
        scene = Scene(prefetch_count="auto")
        async with scene:
            await scene.consuming()
            for tag in range(10, 60, 5):
                scene.peer.deliver(*range(tag, tag + 5))
                await until(lambda: not scene.peer.unanswered)
            await until(lambda: scene.peer.window["jobs"] > 8)
            scene.outcomes[1] = STUCK
            scene.peer.deliver(1, 2, 3)
            await until(lambda: scene.begun[-1] == 1)
            await asyncio.sleep(0.15)
            assert scene.peer.handed_back == []
            scene.peer.wanted = {"jobs"}
            await until(lambda: scene.peer.handed_back == [2, 3])
            assert scene.peer.window == {"jobs": 1}
            scene.child.go_on()
            assert 1 in scene.peer.acked

    async def test_what_nobody_else_could_take_stays(self) -> None:
        """Of two queues, only the messages of the one that is wanted go; the others run here as before."""
        scene = Scene(prefetch_count="auto", queues={"a": 1, "b": 1})
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.wanted = {"b"}
            scene.peer.deliver(1, 2, queue="a")
            scene.peer.deliver(3, queue="b")
            await until(lambda: scene.peer.handed_back == [3])
            scene.child.go_on()
            await until(lambda: scene.peer.acked == [1, 2])

    async def test_a_broker_that_is_slow_to_answer_is_asked_once(self) -> None:
        """Else the questions would pile up before it, ten in a second and each about every queue."""
        scene = Scene(prefetch_count="auto")
        scene.outcomes[1] = STUCK
        asked: list[str] = []
        answer = asyncio.Event()

        async def wanted_elsewhere(queue: str) -> bool:
            asked.append(queue)
            await answer.wait()
            return True

        scene.peer.wanted_elsewhere = wanted_elsewhere  # type: ignore[method-assign]
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2)
            await until(lambda: asked)
            await asyncio.sleep(0.35)
            assert asked == ["jobs"]
            answer.set()
            await until(lambda: scene.peer.handed_back == [2])

    async def test_a_suspect_stays(self) -> None:
        """That it must run alone is known only here."""
        scene = Scene(prefetch_count="auto", **ASYNC)
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.deliver(1, 2)
            await until(lambda: scene.begun == [1])
            scene.child.begin(2)
            scene.child.kill()
            await until(lambda: scene.begun == [1, 1])
            scene.peer.wanted = {"jobs"}
            scene.peer.deliver(3)
            await until(lambda: scene.peer.handed_back == [3])
            scene.child.go_on()
            await until(lambda: scene.peer.acked == [1, 2])

    async def test_a_fixed_window_is_left_alone(self) -> None:
        """Who sets it has decided."""
        scene = Scene(prefetch_count=10)
        scene.outcomes[1] = STUCK
        async with scene:
            await scene.consuming()
            scene.peer.wanted = {"jobs"}
            scene.peer.deliver(1, 2)
            await asyncio.sleep(0.25)
            assert scene.peer.handed_back == []
