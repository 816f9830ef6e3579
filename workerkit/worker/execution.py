"""The execution of one delivery: the callback, and everything that can come out of it.

No process, socket or clock is involved, so the same code runs in an executor and in a user's test. Everything from the
moment at which memory has run out imports nothing and formats no object of the user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import traceback
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType

from workerkit.errors import RejectMessage, RetryMessage, UndecodableBody
from workerkit.message import MessageAdapter
from workerkit.settlement import ACK, Cause, Outcome, Reason, Verb
from workerkit.task import WorkerTask

MAX_TEXT = 32_000
"""Characters of an exception's text that travel with a cause."""
MAX_TRACEBACK = 32_000
"""Characters of a traceback that travel with a cause; the end of it, where the error is."""
CANCELLED = "the callback ran longer than its limit and was cancelled"

Complete = Callable[[Awaitable[None]], object]
"""Runs what a coroutine function of the task's has to do to its end."""


def execute(
    task: WorkerTask, message: MessageAdapter, dying: Callable[[Cause], None], complete: Complete
) -> Cause | None:
    """Run a callback that is a plain function on one message and see it settled, whatever comes out.

    ``dying`` is called with the cause when ``shutdown`` is about to run in this dying interpreter; ``complete`` runs it
    when it is a coroutine function.

    Returns:
        The cause when this interpreter must end: it was asked to exit, interrupted, or ran out of memory. ``shutdown``
        has then run already.
    """
    helper = task.shutdown_helper
    helper.arm(message)
    try:
        task.callback(message)
    except BaseException as error:  # noqa: BLE001 - the message is settled before the process ends
        cause = _fail(task, message, error)
        if cause is not None:
            dying(cause)
            end_by(task, message, cause, complete)
            return cause
    else:
        if not message.settled:
            _returned_unsettled(task, message)
    finally:
        helper.disarm(message)
    return None


async def execute_async(
    task: WorkerTask, message: MessageAdapter, dying: Callable[[Cause], None], was_cancelled: Callable[[], bool]
) -> Cause | None:
    """As ``execute``, for a callback that is a coroutine function.

    ``was_cancelled`` says whether the worker has cancelled this callback; that is no doing of the callback's own.
    """
    helper = task.shutdown_helper
    helper.arm(message)
    try:
        result = task.callback(message)
        if inspect.isawaitable(result):
            await result
    except GeneratorExit:
        raise  # nobody waits for this coroutine any more: it is being thrown away
    except asyncio.CancelledError as error:  # or else the callback awaited what somebody else had cancelled
        _fail_attempt(task, message, error, timed_out=was_cancelled())
    except BaseException as error:  # noqa: BLE001 - the message is settled before the process ends
        cause = _fail(task, message, error)
        if cause is not None:
            dying(cause)
            await end_by_async(task, message, cause)
            return cause
    else:
        if not message.settled:
            _returned_unsettled(task, message)
    finally:
        helper.disarm(message)
    return None


def end_by(task: WorkerTask, message: MessageAdapter, cause: Cause, complete: Complete) -> None:
    """Run ``shutdown`` for a message whose callback died of ``cause``, and nack what it leaves unsettled."""
    with _ending(task, message, cause):
        result = task.shutdown(message, cause)
        if inspect.isawaitable(result):
            complete(result)


async def end_by_async(task: WorkerTask, message: MessageAdapter, cause: Cause) -> None:
    """As ``end_by``, on the loop that runs this. A ``shutdown`` that is cancelled has failed."""
    with _ending(task, message, cause):
        result = task.shutdown(message, cause)
        if inspect.isawaitable(result):
            await result


@contextlib.contextmanager
def _ending(task: WorkerTask, message: MessageAdapter, cause: Cause) -> Iterator[None]:
    message.blame(cause)
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - a message must be settled even if its shutdown() exits
        _try_log(task, "shutdown.failed", error)
    if not message.settled:
        message.nack()


def _fail(task: WorkerTask, message: MessageAdapter, error: BaseException) -> Cause | None:
    """Settle a message by what came out of its callback. What ends the interpreter settles nothing: it is returned."""
    if isinstance(error, Exception) and not isinstance(error, MemoryError):
        _fail_attempt(task, message, error)
        return None
    task.shutdown_helper.release()  # before anything else: what follows needs memory
    return exit_cause(error)


def _fail_attempt(task: WorkerTask, message: MessageAdapter, error: BaseException, *, timed_out: bool = False) -> None:
    """An ordinary exception: a failed attempt, or a decision that was raised instead of called."""
    if message.settled:
        _try_log(task, "callback.raised_after_settling", error)
    elif timed_out:
        cause = Cause(Reason.TIMEOUT, CANCELLED, traceback=_traceback(error))
        message.settle(Outcome(Verb.NACK, cause=cause))
    elif isinstance(error, RetryMessage):
        message.retry(getattr(error, "delay", None))  # a subclass may not have called our __init__
    elif isinstance(error, RejectMessage):
        message.settle(Outcome(Verb.REJECT, cause=Cause(Reason.REJECTED, _text(error))))
    elif isinstance(error, UndecodableBody):
        message.settle(Outcome(Verb.REJECT, cause=_exception_cause(error, Reason.UNDECODABLE)))
    else:
        message.settle(Outcome(Verb.NACK, cause=_exception_cause(error, Reason.EXCEPTION)))


def _returned_unsettled(task: WorkerTask, message: MessageAdapter) -> None:
    """A normal return without a verb: an acknowledgement with ``auto_ack``, else a bug in the worker."""
    if task.auto_ack:
        message.settle(ACK)
        return
    name = f"{type(task).__qualname__}.callback"
    code = getattr(inspect.unwrap(task.callback), "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else type(task).__module__
    text = f"{name} returned without settling the message ({where}): call message.ack() or set auto_ack"
    message.settle(Outcome(Verb.NACK, cause=Cause(Reason.UNSETTLED, text)))
    task.logger.error("callback.unsettled", where=where, hint=text)


def _exception_cause(error: BaseException, reason: Reason) -> Cause:
    return Cause(reason, _text(error), _type_name(error), _traceback(error))


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]


def exit_cause(error: BaseException) -> Cause:
    """The cause when this ends the interpreter."""
    brief = _brief_traceback(error.__traceback__)
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # those of the callback hold on to what filled the memory
        return Cause(Reason.MEMORY, "out of memory: MemoryError in the callback", "MemoryError", brief)
    if isinstance(error, SystemExit):
        code = error.code
        status = code if isinstance(code, int) else (0 if code is None else 1)
        text = f"the callback called sys.exit({status})"
        return Cause(Reason.EXIT, text, "SystemExit", brief, exit_code=status & 0xFF)
    if isinstance(error, KeyboardInterrupt):
        return Cause(Reason.SIGNAL, "interrupted by signal 2 (SIGINT)", "KeyboardInterrupt", brief, signal=2)
    return Cause(Reason.EXCEPTION, _text(error), _type_name(error), brief)


def _brief_traceback(trace: TracebackType | None) -> str:
    """Files, lines and functions only: the full formatter reads source files, which needs memory."""
    lines = []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return "\n".join(lines)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_TEXT]
    except Exception:  # noqa: BLE001 - a user's __str__ may do anything
        return "(its __str__ failed)"


def _try_log(task: WorkerTask, event: str, error: BaseException) -> None:
    with contextlib.suppress(Exception):  # the settlement matters more than the line about it
        task.logger.error(event, error=_type_name(error), where=_brief_traceback(error.__traceback__))
