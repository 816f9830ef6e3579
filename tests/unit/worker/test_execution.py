"""One callback, and everything that can come out of it."""

import asyncio
import functools
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import structlog
from support.handles import RecordingHandle

from workerkit import (
    AlreadySettled,
    Cause,
    MessageAdapter,
    Properties,
    Reason,
    RejectMessage,
    RetryMessage,
    UndecodableBody,
    WorkerTask,
)
from workerkit.message import Incoming
from workerkit.payload import body_decoder
from workerkit.properties import encode
from workerkit.settlement import ACK, Outcome, Verb
from workerkit.worker.execution import MAX_TEXT, MAX_TRACEBACK, end_by, end_by_async, execute, execute_async
from workerkit.worker.link import Dying, FrameReader, Kind, json_frame


def as_coroutine(worker: WorkerTask) -> WorkerTask:
    """The same task with a callback and a shutdown that are coroutine functions."""
    cls = type(worker)

    @functools.wraps(cls.callback)
    async def callback(self: WorkerTask, message: MessageAdapter) -> None:
        await asyncio.sleep(0)
        cls.callback(self, message)

    async def shutdown(self: WorkerTask, message: MessageAdapter, cause: Cause) -> None:
        await asyncio.sleep(0)
        cls.shutdown(self, message, cause)

    worker.__class__ = type(cls.__qualname__, (cls,), {"callback": callback, "shutdown": shutdown})
    worker.__class__.__qualname__ = cls.__qualname__
    return worker


class Scene:
    """One message, the task that gets it, and what came of it.

    Args:
        body: of the message.
        coroutines: run the task's functions as coroutines.
    """

    def __init__(self, body: bytes = b"{}", *, coroutines: bool = False) -> None:
        self._coroutines = coroutines
        self.sent: list[Outcome] = []
        self.dying: list[Cause] = []
        incoming = Incoming("jobs", "", "jobs", False, 1, encode(Properties()), body)
        self.message = MessageAdapter(incoming, RecordingHandle(self.sent), body_decoder())

    def again(self, body: bytes = b"{}") -> "Scene":
        """Another message, run in the same way."""
        return Scene(body, coroutines=self._coroutines)

    def run(self, task: WorkerTask, dying: Callable[[Cause], None] | None = None) -> Cause | None:
        dying = dying or self.dying.append
        if self._coroutines:
            return asyncio.run(execute_async(as_coroutine(task), self.message, dying, lambda: False))
        return execute(task, self.message, dying, asyncio.run)

    def end_by(self, task: WorkerTask, cause: Cause) -> None:
        if self._coroutines:
            asyncio.run(end_by_async(as_coroutine(task), self.message, cause))
        else:
            end_by(task, self.message, cause, asyncio.run)

    @property
    def cause(self) -> Cause:
        (outcome,) = self.sent
        assert outcome.cause is not None
        return outcome.cause


def task(callback: Callable[[MessageAdapter], None], **attributes: Any) -> WorkerTask:
    """A task whose callback is this function."""
    members = {"callback": lambda self, message: callback(message), **attributes}
    return type("Task", (WorkerTask,), members)()


def raising(error: BaseException) -> Callable[[MessageAdapter], None]:
    def callback(_message: MessageAdapter) -> None:
        raise error

    return callback


def sent_over_the_link(cause: Cause) -> Cause:
    ((_, data, start, end),) = FrameReader().feed(json_frame(Kind.DYING, Dying(cause)))
    return msgspec.json.decode(data[start:end], type=Dying).cause


@pytest.fixture(params=[False, True], ids=["function", "coroutine"])
def scene(request: pytest.FixtureRequest) -> Scene:
    """Each rule holds for both kinds of callback."""
    return Scene(coroutines=request.param)


@pytest.fixture(autouse=True)
def logs() -> Any:
    with structlog.testing.capture_logs() as entries:
        yield entries


def test_a_callback_that_acknowledges_is_done(scene: Scene) -> None:
    """The usual way; the helper is armed during the callback and disarmed after it."""
    armed = []
    worker = task(lambda message: (armed.extend(worker.shutdown_helper.messages), message.ack()))
    assert scene.run(worker) is None
    assert scene.sent == [ACK]
    assert armed == [scene.message]
    assert not worker.shutdown_helper.messages


class Forgetful(WorkerTask):
    def callback(self, message: MessageAdapter) -> None:
        pass


def test_a_return_without_a_verb_is_an_error_with_file_and_line(scene: Scene, logs: list[Any]) -> None:
    """A bug in the worker: said at ERROR where to look, and a failed attempt."""
    assert scene.run(Forgetful()) is None
    line = Forgetful.callback.__code__.co_firstlineno
    assert scene.sent[0].verb is Verb.NACK
    assert scene.cause.reason is Reason.UNSETTLED
    assert f"{__file__}:{line}" in scene.cause.message
    assert "call message.ack() or set auto_ack" in scene.cause.message
    (entry,) = logs
    assert (entry["event"], entry["log_level"], entry["where"]) == ("callback.unsettled", "error", f"{__file__}:{line}")


def test_with_auto_ack_a_normal_return_is_an_acknowledgement(scene: Scene) -> None:
    """And a verb that was called stands."""
    scene.run(task(lambda _: None, auto_ack=True))
    assert scene.sent == [ACK]
    other = scene.again()
    other.run(task(lambda message: message.reject("no"), auto_ack=True))
    assert [outcome.verb for outcome in other.sent] == [Verb.REJECT]


def test_an_exception_is_a_failed_attempt_with_its_story(scene: Scene) -> None:
    """Type, text and traceback, which ends at the line that raised."""
    assert scene.run(task(raising(FileNotFoundError("a.png")))) is None
    assert scene.sent[0].verb is Verb.NACK
    assert (scene.cause.reason, scene.cause.message) == (Reason.EXCEPTION, "a.png")
    assert scene.cause.exception == "FileNotFoundError"
    assert scene.cause.traceback.endswith("FileNotFoundError: a.png\n")
    assert "raise error" in scene.cause.traceback
    assert scene.dying == []


def test_an_exception_of_a_library_is_named_with_its_module(scene: Scene) -> None:
    """Two libraries may have the same name for different things."""
    scene.run(task(raising(msgspec.ValidationError("x"))))
    assert scene.cause.exception == "msgspec.ValidationError"


def test_a_huge_exception_is_cut(scene: Scene) -> None:
    """An SQL statement of a megabyte in an error must not travel whole."""
    scene.run(task(raising(ValueError("x" * 1_000_000))))
    assert len(scene.cause.message) <= MAX_TEXT
    assert len(scene.cause.traceback) <= MAX_TRACEBACK


def test_retry_message_raised_is_retry_called(scene: Scene) -> None:
    """With its delay."""
    scene.run(task(raising(RetryMessage(2.5))))
    assert [(outcome.verb, outcome.delay) for outcome in scene.sent] == [(Verb.RETRY, 2.5)]


def test_reject_message_raised_is_reject_called(scene: Scene) -> None:
    """With its reason."""
    scene.run(task(raising(RejectMessage("no such user"))))
    assert scene.sent == [Outcome(Verb.REJECT, cause=Cause(Reason.REJECTED, "no such user"))]


def test_a_body_that_cannot_be_decoded_goes_straight_to_the_dead_letters(scene: Scene) -> None:
    """It will not be decodable later: no retries."""
    scene = scene.again(b"{")
    scene.run(task(lambda message: message.data))
    assert scene.sent[0].verb is Verb.REJECT
    assert scene.cause.reason is Reason.UNDECODABLE
    assert scene.cause.exception == f"workerkit.errors.{UndecodableBody.__name__}"


@pytest.mark.parametrize("error", [ValueError("late"), RetryMessage(), RejectMessage("late"), UndecodableBody("late")])
def test_an_exception_after_the_verb_changes_nothing_and_is_logged(
    error: Exception, scene: Scene, logs: list[Any]
) -> None:
    """The settlement is on the wire already."""

    def callback(message: MessageAdapter) -> None:
        message.ack()
        raise error

    assert scene.run(task(callback)) is None
    assert scene.sent == [ACK]
    assert logs[0]["event"] == "callback.raised_after_settling"


def test_a_second_verb_in_the_callback_is_logged_and_the_first_one_stands(scene: Scene, logs: list[Any]) -> None:
    """AlreadySettled leaves the callback as any exception does."""
    scene.run(task(lambda message: (message.ack(), message.nack())))
    assert scene.sent == [ACK]
    assert logs[0]["error"] == f"workerkit.errors.{AlreadySettled.__name__}"


class Unusual(BaseException):
    """Neither an error nor an exit."""


@pytest.mark.parametrize(
    ("error", "reason", "text", "exit_code", "signal"),
    [
        (SystemExit(3), Reason.EXIT, "the callback called sys.exit(3)", 3, None),
        (SystemExit(None), Reason.EXIT, "the callback called sys.exit(0)", 0, None),
        (SystemExit("bye"), Reason.EXIT, "the callback called sys.exit(1)", 1, None),
        (SystemExit(-1), Reason.EXIT, "the callback called sys.exit(-1)", 255, None),
        (SystemExit(2**70 + 7), Reason.EXIT, f"the callback called sys.exit({2**70 + 7})", 7, None),
        (KeyboardInterrupt(), Reason.SIGNAL, "interrupted by signal 2 (SIGINT)", None, 2),
        (MemoryError(), Reason.MEMORY, "out of memory: MemoryError in the callback", None, None),
        (Unusual("x"), Reason.EXCEPTION, "x", None, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_ends_the_interpreter_runs_shutdown_and_nacks(
    error: BaseException, reason: Reason, text: str, exit_code: int | None, signal: int | None, scene: Scene
) -> None:
    """The cause is announced first, then shutdown() runs, then the executor is told to end."""
    order: list[str] = []

    def shutdown(self: WorkerTask, message: MessageAdapter, cause: Cause) -> None:
        order.append("shutdown")
        WorkerTask.shutdown(self, message, cause)

    worker = task(raising(error), shutdown=shutdown)
    worker.shutdown_helper.reserve(1)
    cause = scene.run(worker, lambda cause: order.append(cause.reason.value))
    assert cause is not None
    assert (cause.reason, cause.message, cause.exit_code, cause.signal) == (reason, text, exit_code, signal)
    assert order == [reason.value, "shutdown"]
    assert scene.sent == [Outcome(Verb.NACK, cause=cause)]
    assert worker.shutdown_helper._reserve is None, "the spare memory was given back"
    assert not worker.shutdown_helper.messages
    assert re.search(rf"{re.escape(__file__)}:\d+ in callback", cause.traceback)
    assert sent_over_the_link(cause) == cause


def test_what_filled_the_memory_is_let_go_before_shutdown_runs(scene: Scene) -> None:
    """The frames of the failed callback hold on to it otherwise."""

    class Hoard:
        alive = 0

        def __init__(self) -> None:
            Hoard.alive += 1

        def __del__(self) -> None:
            Hoard.alive -= 1

    def callback(_message: MessageAdapter) -> None:
        hoard = Hoard()
        assert hoard.alive
        raise MemoryError

    seen = []
    scene.run(task(callback, shutdown=lambda self, message, cause: seen.append(Hoard.alive)))
    assert seen == [0]
    assert scene.sent[0].verb is Verb.NACK


def test_a_death_after_the_verb_runs_shutdown_with_a_settled_message(scene: Scene) -> None:
    """The default shutdown() logs and leaves it."""

    def callback(message: MessageAdapter) -> None:
        message.ack()
        raise SystemExit

    assert scene.run(task(callback)) is not None
    assert scene.sent == [ACK]


@pytest.mark.parametrize(
    ("settle", "verb"),
    [
        (lambda message: message.ack(), Verb.ACK),
        (lambda message: message.reject("fatal"), Verb.REJECT),
        (lambda message: message.retry(1), Verb.RETRY),
        (lambda message: None, Verb.NACK),
    ],
    ids=["ack", "reject", "retry", "nothing"],
)
def test_shutdown_settles_as_it_likes_and_by_nack_when_it_does_not(
    settle: Callable[[MessageAdapter], None], verb: Verb, scene: Scene
) -> None:
    """An override decides; one that forgets has the message nacked for the death."""
    cause = Cause(Reason.SIGNAL, "killed by signal 9 (SIGKILL)", signal=9)
    worker = task(lambda _: None, shutdown=lambda self, message, cause: settle(message))
    scene.end_by(worker, cause)
    assert [outcome.verb for outcome in scene.sent] == [verb]
    if verb in (Verb.NACK, Verb.RETRY):
        assert scene.cause is cause


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), MemoryError(), KeyboardInterrupt()])
def test_a_shutdown_that_fails_leaves_the_message_nacked_and_says_so(
    error: BaseException, scene: Scene, logs: list[Any]
) -> None:
    """Even one that exits."""

    def shutdown(self: WorkerTask, message: MessageAdapter, cause: Cause) -> None:
        raise error

    cause = Cause(Reason.MEMORY, "out of memory")
    scene.end_by(task(lambda _: None, shutdown=shutdown), cause)
    assert scene.sent == [Outcome(Verb.NACK, cause=cause)]
    assert logs[0]["event"] == "shutdown.failed"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def test_an_exception_that_cannot_be_printed_is_still_a_failed_attempt(scene: Scene) -> None:
    """A user's __str__ may do anything."""
    assert scene.run(task(raising(Unprintable()))) is None
    assert scene.cause.message == "(its __str__ failed)"
    assert scene.cause.exception == f"{__name__}.Unprintable"


def test_a_reason_that_cannot_be_printed_is_still_a_rejection(scene: Scene) -> None:
    """RejectMessage takes whatever it is given."""
    assert scene.run(task(raising(RejectMessage(Unprintable())))) is None  # type: ignore[arg-type]
    assert scene.sent[0].verb is Verb.REJECT


def test_a_text_that_no_encoding_carries_reaches_the_consumer(scene: Scene) -> None:
    """File names come with surrogates; an error about one must not end the executor."""
    scene.run(task(raising(OSError("cannot read \udcff.png"))))
    assert scene.cause.message == "cannot read \\udcff.png"
    assert sent_over_the_link(scene.cause) == scene.cause


def test_a_log_that_fails_does_not_cost_the_settlement(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line about a failed shutdown() is worth less than the message."""
    worker = task(raising(SystemExit()), shutdown=lambda self, message, cause: 1 / 0)

    def fail(*_args: Any, **_keys: Any) -> None:
        raise OSError

    monkeypatch.setattr(worker, "logger", type("Logger", (), {"error": fail})())
    assert scene.run(worker) is not None
    assert scene.sent[0].verb is Verb.NACK
