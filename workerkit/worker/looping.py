"""Running callbacks that are coroutines, several at once, on the event loop of the main thread."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import msgspec

from workerkit.errors import ExitCode
from workerkit.message import MessageAdapter
from workerkit.payload import body_decoder
from workerkit.settlement import Cause, Outcome
from workerkit.task import WorkerTask
from workerkit.worker.execution import end_by_async, execute_async, exit_cause
from workerkit.worker.link import Dying, Frame, Kind, json_frame, unpack_aftermath, unpack_delivery
from workerkit.worker.steps import Steps, Turn
from workerkit.worker.uplink import Uplink, exit_code

_BEAT = 0.25
"""Seconds between two signs of life of the event loop."""
_turn: ContextVar[Turn | None] = ContextVar("workerkit-turn", default=None)
"""Whose code runs: set in the task of each callback, and so in all that the callback starts."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop's where that is installed, else of asyncio's own."""
    with contextlib.suppress(ImportError):
        loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
        return loop
    return asyncio.new_event_loop()


class LoopRunner:
    """Starts the callback of each delivery as soon as one of the callback slots is free, in the order of the frames.

    When one callback ends the interpreter, all others stand still from that moment on: none of their code runs any
    more, neither while ``shutdown`` does nor when the interpreter is taken apart.

    ``queues`` are the worker's, in the order in which deliveries name them; ``concurrency`` callbacks run at once.
    """

    def __init__(
        self,
        task: WorkerTask,
        queues: Sequence[str],
        concurrency: int,
        uplink: Uplink,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._task = task
        self._queues = queues
        self._concurrency = concurrency
        self._uplink = uplink
        self._loop = loop
        self._decode = body_decoder(task.payload_type)
        self._context = copy_context()
        self._waiting: deque[Frame] = deque()
        self._running: dict[int, Turn] = {}
        self._in_aftermath = False
        self._stopped = False
        self._dying: Cause | None = None
        self._death: Cause | None = None
        self._error: BaseException | None = None

    @property
    def message(self) -> MessageAdapter | None:
        """The message to which the running code belongs."""
        turn = _turn.get()
        return None if turn is None else turn.message

    def run(self, frames: list[Frame]) -> Cause | None:
        """Work on these frames, and on what comes after them, until STOP. Returns what this process must die of.

        Raises:
            SystemExit: the consumer is gone.
            MemoryError: outside of any callback.
        """
        loop = self._loop
        self._uplink.wake_from(loop)
        loop.set_task_factory(self._new_task)
        loop.add_reader(self._uplink.fileno(), self._on_readable)
        self._beat()
        try:
            self._take(frames)
            while not (self._stopped or self._death or self._error):
                loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:  # asyncio keeps everything else in its task
            self._die_outside(error)
        finally:
            loop.remove_reader(self._uplink.fileno())
            self._uplink.page.beat(0)
            if not self._stopped:
                self._abandon()
        if self._error is not None:
            raise self._error
        return self._death

    # ---- messages in

    def _on_readable(self) -> None:
        try:
            self._take(self._uplink.receive())
        except BaseException as error:  # noqa: BLE001 - asyncio would log it and go on
            self._give_up(error)

    def _take(self, frames: list[Frame]) -> None:
        for frame in frames:
            kind, data, start, end = frame
            if kind == Kind.CANCEL:
                self._start_waiting()  # it may be for one that came in the same read
                self._cancel(msgspec.json.decode(data[start:end], type=int))
            else:
                self._waiting.append(frame)
        self._start_waiting()

    def _cancel(self, seq: int) -> None:
        turn = self._running.get(seq)
        if turn is not None and turn.task is not None:
            turn.cancelled = True
            self._loop.call_soon(turn.task.cancel)  # behind its first step: what has not begun cannot settle anything

    def _start_waiting(self) -> None:
        """Start what there is room for. STOP and AFTERMATH wait until nothing runs."""
        waiting, running = self._waiting, self._running
        while waiting and len(running) < self._concurrency and not self._in_aftermath and not self._dying:
            kind, data, start, end = waiting[0]
            if kind != Kind.DELIVER and running:
                return
            waiting.popleft()
            if kind == Kind.DELIVER:
                self._start(data, start, end)
            elif kind == Kind.AFTERMATH:
                self._start_aftermath(data[start:end])
            elif kind == Kind.STOP:
                self._stopped = True
                self._loop.stop()
                return

    def _start(self, data: bytes, start: int, end: int) -> None:
        seq, slot, incoming = unpack_delivery(data, start, end, self._queues)
        turn = Turn(self._uplink, slot, seq)
        if not turn.begin():
            return
        turn.message = message = MessageAdapter(incoming, turn, self._decode)
        self._begin(turn, execute_async(self._task, message, partial(self._die, turn), lambda: turn.cancelled))

    def _start_aftermath(self, payload: bytes) -> None:
        seq, slot, incoming, aftermath = unpack_aftermath(payload, self._queues)
        turn = Turn(self._uplink, slot, seq)
        turn.begin_shutdown()
        outcome = None if aftermath.settled is None else Outcome(aftermath.settled)
        turn.message = message = MessageAdapter(incoming, turn, self._decode, outcome)
        self._in_aftermath = True
        self._begin(turn, end_by_async(self._task, message, aftermath.cause))

    def _begin(self, turn: Turn, execution: Coroutine[Any, Any, Cause | None]) -> None:
        self._running[turn.seq] = turn
        work = Steps(self._work(turn, execution), turn)
        # In a context of its own: this may be called from the task of a message that is over.
        turn.task = asyncio.Task(work, loop=self._loop, name=f"delivery-{turn.seq}", context=self._context.copy())

    async def _work(self, turn: Turn, execution: Coroutine[Any, Any, Cause | None]) -> None:
        _turn.set(turn)
        try:
            death = await execution
            if self._uplink.forked:
                os._exit(ExitCode.OK)  # a child of the callback came back from it: the rest is not its business
            self._uplink.page.end(turn.slot, turn.seq)
            if death is not None:
                self._death = death
                self._loop.stop()
                return
            del self._running[turn.seq]
            self._in_aftermath = False
            self._start_waiting()
        except Exception as error:  # noqa: BLE001 - an error of ours: asyncio would keep it for nobody
            self._give_up(error)

    # ---- the loop

    def _new_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """A task that a callback starts belongs to its message."""
        context = options.get("context")
        turn = _turn.get() if context is None else context.get(_turn)
        if turn is not None and asyncio.iscoroutine(coroutine):
            coroutine = Steps(coroutine, turn)
        return asyncio.Task(coroutine, loop=loop, **options)

    def _beat(self) -> None:
        if self._uplink.forked:
            os._exit(ExitCode.OK)  # a child came back to a loop that is not its own
        self._uplink.page.beat(time.monotonic_ns())
        self._loop.call_later(_BEAT, self._beat)

    def _give_up(self, error: BaseException) -> None:
        self._error = error
        self._loop.stop()

    # ---- the end

    def _die_outside(self, error: BaseException) -> None:
        """The interpreter ends by what no callback raised itself: a task that one has started, or a signal."""
        if self._uplink.forked:
            os._exit(exit_code(exit_cause(error)))
        self._task.shutdown_helper.release()
        self._death = cause = self._dying or exit_cause(error)
        turn = next((turn for turn in self._running.values() if turn.exits), None)
        if turn is None:
            if self._dying is None:
                self._uplink.send(json_frame(Kind.DYING, Dying(cause)))
            return
        if self._dying is None:
            self._die(turn, cause)
            turn.frozen = True
            successor = Turn(self._uplink, turn.slot, turn.seq)  # whose tasks are not
            successor.message = turn.message

            async def end() -> None:
                _turn.set(successor)
                await end_by_async(self._task, successor.message, cause)

            with contextlib.suppress(BaseException):
                self._loop.run_until_complete(end())
        if not turn.message.settled:  # shutdown() has ended the interpreter once more, from a task that it started
            turn.message.nack()

    def _die(self, turn: Turn, cause: Cause) -> None:
        """From here on nothing is started, and all others stand still."""
        turn.die(cause)
        self._dying = cause
        for other in self._running.values():
            other.frozen = other is not turn

    def _abandon(self) -> None:
        """Keep what stands still for ever: taking it apart would run its ``finally`` blocks."""
        for task in asyncio.all_tasks(self._loop):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))
