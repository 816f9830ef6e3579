"""What only a callback that is a coroutine can do; the rules for both kinds are in test_execution."""

import asyncio
from typing import Any

import pytest
import structlog
from support.handles import RecordingHandle

from workerkit import Cause, MessageAdapter, Properties, Reason, WorkerTask
from workerkit.message import Incoming
from workerkit.payload import body_decoder
from workerkit.properties import encode
from workerkit.settlement import ACK, Outcome, Verb
from workerkit.worker.execution import CANCELLED, execute, execute_async


@pytest.fixture
def sent() -> list[Outcome]:
    return []


@pytest.fixture
def message(sent: list[Outcome]) -> MessageAdapter:
    incoming = Incoming("jobs", "", "jobs", False, 1, encode(Properties()), b"{}")
    return MessageAdapter(incoming, RecordingHandle(sent), body_decoder())


@pytest.fixture(autouse=True)
def logs() -> Any:
    with structlog.testing.capture_logs() as entries:
        yield entries


class Waits(WorkerTask):
    """Until it is cancelled, having acknowledged before or not."""

    acknowledges = False

    async def callback(self, message: MessageAdapter) -> None:
        if self.acknowledges:
            message.ack()
        await asyncio.Event().wait()


def no_death(_cause: Cause) -> None:
    raise AssertionError("nothing dies here")


async def cancelled(task: WorkerTask, message: MessageAdapter, *, by_the_worker: bool) -> Cause | None:
    execution = asyncio.ensure_future(execute_async(task, message, no_death, lambda: by_the_worker))
    await asyncio.sleep(0)
    execution.cancel()
    return await execution


async def test_cancelled_by_the_worker_it_has_timed_out(message: MessageAdapter, sent: list[Outcome]) -> None:
    """With the place where it waited, and no exception: that is the worker's doing."""
    assert await cancelled(Waits(), message, by_the_worker=True) is None
    (outcome,) = sent
    assert outcome.verb is Verb.NACK
    assert outcome.cause is not None
    assert (outcome.cause.reason, outcome.cause.message) == (Reason.TIMEOUT, CANCELLED)
    assert outcome.cause.exception == ""
    assert "await asyncio.Event().wait()" in outcome.cause.traceback


async def test_cancelled_by_somebody_else_it_is_a_failed_attempt(message: MessageAdapter, sent: list[Outcome]) -> None:
    """As any exception; it is no death, though it is a BaseException."""
    assert await cancelled(Waits(), message, by_the_worker=False) is None
    assert sent[0].cause is not None
    assert sent[0].cause.reason is Reason.EXCEPTION
    assert sent[0].cause.exception == "asyncio.exceptions.CancelledError"


@pytest.mark.parametrize("by_the_worker", [True, False])
async def test_a_cancellation_after_the_verb_changes_nothing_and_is_logged(
    by_the_worker: bool, message: MessageAdapter, sent: list[Outcome], logs: list[Any]
) -> None:
    """The settlement is on the wire already."""
    task = Waits()
    task.acknowledges = True
    assert await cancelled(task, message, by_the_worker=by_the_worker) is None
    assert sent == [ACK]
    assert logs[0]["event"] == "callback.raised_after_settling"


async def test_what_is_thrown_away_settles_nothing(message: MessageAdapter, sent: list[Outcome]) -> None:
    """An event loop that is closed under a callback is not the death of its message."""
    task = Waits()
    execution = execute_async(task, message, no_death, lambda: False)
    execution.send(None)
    assert task.shutdown_helper.messages
    execution.close()
    assert sent == []
    assert not task.shutdown_helper.messages


async def test_several_callbacks_are_armed_at_once(sent: list[Outcome]) -> None:
    """Each by itself."""
    task = Waits()
    messages = [
        MessageAdapter(Incoming("jobs", "", "jobs", False, 1, b"\0\0", b""), RecordingHandle(sent), body_decoder())
        for _ in range(3)
    ]
    executions = [asyncio.ensure_future(execute_async(task, message, no_death, lambda: True)) for message in messages]
    await asyncio.sleep(0)
    assert list(task.shutdown_helper.messages) == messages
    executions[1].cancel()
    await executions[1]
    assert list(task.shutdown_helper.messages) == [messages[0], messages[2]]
    for one in executions:
        one.cancel()
    await asyncio.gather(*executions)
    assert not task.shutdown_helper.messages


def test_a_shutdown_that_is_a_coroutine_runs_after_a_plain_callback(
    message: MessageAdapter, sent: list[Outcome]
) -> None:
    """To its end, before the interpreter's."""

    class Task(WorkerTask):
        def callback(self, message: MessageAdapter) -> None:
            raise SystemExit(1)

        async def shutdown(self, message: MessageAdapter, cause: Cause) -> None:
            await asyncio.sleep(0)
            message.reject("gone")

    assert execute(Task(), message, lambda _: None, asyncio.run) is not None
    assert [outcome.verb for outcome in sent] == [Verb.REJECT]
