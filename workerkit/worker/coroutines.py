"""The execution of one delivery whose callback is a coroutine function. The rules are those of ``execution``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

from workerkit.message import MessageAdapter
from workerkit.settlement import Cause
from workerkit.task import WorkerTask
from workerkit.worker.execution import ending, fail, fail_attempt, fail_cancelled, returned_unsettled


def _never() -> bool:
    return False


async def execute(
    task: WorkerTask,
    message: MessageAdapter,
    dying: Callable[[Cause], None],
    was_cancelled: Callable[[], bool] = _never,
) -> Cause | None:
    """Run the callback on one message and see it settled, whatever comes out.

    Args:
        task: whose callback to run.
        message: what to run it on.
        dying: called with the cause when ``shutdown`` is about to run in this dying interpreter.
        was_cancelled: whether the worker has cancelled this callback; that is no doing of the callback's own.

    Returns:
        The cause when this interpreter must end. ``shutdown`` has then run already.
    """
    helper = task.shutdown_helper
    helper.arm(message)
    try:
        result = task.callback(message)
        if inspect.isawaitable(result):
            await result
    except GeneratorExit:
        raise  # nobody waits for this coroutine any more: it is being thrown away
    except asyncio.CancelledError as error:
        if was_cancelled():
            fail_cancelled(task, message, error)
        else:
            fail_attempt(task, message, error)  # the callback awaited what somebody else had cancelled
    except BaseException as error:  # noqa: BLE001 - the message is settled before the process ends
        cause = fail(task, message, error)
        if cause is not None:
            dying(cause)
            return await end_by(task, message, cause)
    else:
        if message.outcome is None:
            returned_unsettled(task, message)
    finally:
        helper.disarm(message)
    return None


async def end_by(task: WorkerTask, message: MessageAdapter, cause: Cause) -> Cause:
    """Run ``shutdown`` for a message whose callback died of ``cause``, and settle by default what it leaves unsettled.

    A ``shutdown`` that is cancelled has failed.
    """
    with ending(task, message, cause):
        result = task.shutdown(message, cause)
        if inspect.isawaitable(result):
            await result
    return cause
