"""The consumer process of a worker: between the broker and the executor, on one event loop.

It never imports the user's code, so nothing a user writes can block its heartbeats or take it down.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workerkit.errors import ExitCode, TaskLoadError
from workerkit.retry import RetryPolicy
from workerkit.worker.child import Events, Executor
from workerkit.worker.keeper import EXIT_TIMEOUT, Keeper
from workerkit.worker.loading import Resolved, Spec
from workerkit.worker.ports import Broker, Delivery, Subscription
from workerkit.worker.settler import Settler, WriteEvents

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_PAUSE_TIMEOUT = 2.0
"""Seconds a broker gets to confirm that it sends no more; a frozen one must not hold up a stop."""
_CONFIRM_TIMEOUT = 1.0
"""Seconds past the deadline for retries and dead letters that wait for their confirmation."""


@dataclass(frozen=True, slots=True)
class Options:
    """How one run of a worker differs from another.

    Attributes:
        grace: seconds from the signal to stop until the running callback is ended.
        limit: messages to work on before a planned end; None for no limit.
    """

    grace: float
    limit: int | None = None


class Consumer:
    """One running worker.

    1. Has an executor started, learns what the task wants, consumes that queue.
    2. Hands deliveries on, up to the limit and not while paused.
    3. On a signal, at the end of its TTL or at its limit: drains, hands back, ends.
    """

    def __init__(
        self,
        spec: Spec,
        options: Options,
        *,
        broker: Broker,
        start_executor: Callable[[Events], Executor],
        log: FilteringBoundLogger,
        write_line: Callable[[bytes], None],
        write_events: WriteEvents,
    ) -> None:
        self._spec = spec
        self._broker = broker
        self._options = options
        self._log = log
        self._started = time.monotonic()
        self._changed = asyncio.Event()
        self._settler = Settler(broker, log, write_events, self._changed.set, self.on_failed)
        self._keeper = Keeper(spec, start_executor, self._settler, self, log)
        self._resolved: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
        self._limit_left = options.limit
        self._stalled = False
        self._paused = False
        self._stop = asyncio.Event()
        self._stop_reason = ""
        self._stop_signals = 0
        self._deadline: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_line = write_line
        self.exit_code = ExitCode.OK

    # ---- a run, top to bottom

    async def run(self) -> None:
        """Work until asked to stop, then drain.

        Raises:
            TaskLoadError: the task cannot be used.
            AccessRefused: the broker refused; one that is away is waited for.
            TopologyMismatch: something exists on the broker with other arguments.
        """
        try:
            self._keeper.start()
            await self._start_or_stop()
            await self._stop.wait()
            self._log.info("worker.stopping", reason=self._stop_reason)
            await self._drain()
        finally:
            await self._keeper.end(self._exit_patience())
            await self._broker.close()
        self._log.info("worker.exit", reason=self._stop_reason, code=int(self.exit_code))

    async def _start_or_stop(self) -> None:
        start = asyncio.create_task(self._start())
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
        finally:
            start.cancel()
            stop.cancel()
            await asyncio.wait({start, stop})

    async def _start(self) -> None:
        resolved = await self._resolved
        self._settler.policy = RetryPolicy(resolved.max_attempts, resolved.delays)
        if resolved.ttl is not None:
            left = max(0.0, self._started + resolved.ttl - time.monotonic())
            asyncio.get_running_loop().call_later(left, self.stop, "ttl")
        queue = next(iter(resolved.queues))
        prefetch = 1 if resolved.prefetch_count == "auto" else resolved.prefetch_count
        prefetch = min(prefetch, self._limit_left or prefetch)
        await self._broker.start(Subscription(self._spec.worker, queue, prefetch, resolved.delays), self)
        self._log.info("worker.consuming", queue=queue, prefetch_count=prefetch)

    def stop(self, reason: str) -> None:
        """Begin to stop and let the running callback finish."""
        if not self._stop.is_set():
            self._stop_reason = reason
            self._stop.set()
        self._changed.set()

    def stop_by_signal(self, name: str) -> None:
        """As ``stop``, but with a deadline; a second signal makes the deadline now."""
        self._stop_signals += 1
        self._deadline = time.monotonic() + (self._options.grace if self._stop_signals == 1 else 0.0)
        self.stop(name)

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._broker.pause(), _PAUSE_TIMEOUT)
        if self._stop_reason != "limit":
            self.on_unstarted(await self._keeper.recall())
        if await self._until_idle():
            return
        self._log.warning("worker.deadline", **await self._keeper.stacks())
        self._keeper.hand_back()
        self._deadline = time.monotonic() + _CONFIRM_TIMEOUT
        if not await self._until_idle():
            self._settler.abandon()

    def _exit_patience(self) -> float:
        """Seconds for the executor to end by itself; close to the deadline there is not much left of them."""
        if self._deadline is None:
            return EXIT_TIMEOUT
        return max(0.5, min(EXIT_TIMEOUT, self._deadline - time.monotonic()))

    async def _until_idle(self) -> bool:
        """Wait until everything that was started is settled. False when the deadline came first."""
        while self._keeper.busy or self._settler.busy:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return True

    # ---- signals

    def pause(self) -> None:
        """Finish the running message, start no other, hand back what was not started."""
        if not self._paused and not self._stop.is_set():
            self._paused = True
            self._log.info("worker.paused")
            self._in_background(self._stop_taking())

    def resume(self) -> None:
        """Take messages again after ``pause``."""
        if self._paused and not self._stop.is_set():
            self._paused = False
            self._log.info("worker.resumed")
            if not self._stalled:
                self._in_background(self._broker.resume())

    def log_stacks(self) -> None:
        """Log the stack of every thread of the executor, and the message it works on."""
        self._in_background(self._log_stacks())

    async def _log_stacks(self) -> None:
        self._log.info("worker.stacks", **await self._keeper.stacks())

    async def _stop_taking(self) -> None:
        await self._broker.pause()
        self.on_unstarted(await self._keeper.recall())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.on_failed(error)

    def on_failed(self, error: BaseException) -> None:
        """An error of ours: end, so that the broker has everything back and Supervisor starts a sound worker."""
        self._log.critical("worker.failed", cause="an error inside workerkit", exc_info=error)
        self.exit_code = ExitCode.INTERNAL
        self.stop("an error inside workerkit")

    # ---- from the broker

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        """Messages arrived. What comes after a stop, in a pause or over the limit goes back."""
        if self._stop.is_set() or self._paused or self._stalled:
            self._settler.release(deliveries)
            return
        if self._limit_left is not None:
            self._settler.release(deliveries[self._limit_left :])
            deliveries = deliveries[: self._limit_left]
            self._limit_left -= len(deliveries)
        self._keeper.forward(deliveries)
        if self._limit_left == 0:
            self.stop("limit")

    def on_channel_lost(self) -> None:
        """All that was delivered is the broker's again."""
        self._uncount(self._keeper.forget())

    # ---- from the keeper of the executor

    def on_ready(self, resolved: Resolved) -> None:
        """An executor is ready for messages."""
        if not self._resolved.done():
            self._resolved.set_result(resolved)
        elif not resolved.same_as(self._resolved.result()):
            self._log.warning("worker.changed", note="the task's settings are other ones now; restarting")
            self.exit_code = ExitCode.TEMPORARY
            self.stop("the task's settings changed")
        if self._stalled:
            self._stalled = False
            if not self._paused and not self._stop.is_set():
                self._in_background(self._broker.resume())

    def on_load_failed(self, text: str, trace: str, *, fatal: bool) -> None:
        """An executor could not load the task: the end of a start, a nuisance in a worker that ran (a deploy, say)."""
        if fatal and not self._resolved.done():
            self._resolved.set_exception(TaskLoadError(text))
        else:
            self._log.error("executor.not_ready", cause=text, **({"stack": trace} if trace else {}))

    def on_stalled(self) -> None:
        """No executor gets ready: let other workers have the messages until one does."""
        if not self._stalled:
            self._stalled = True
            self._in_background(self._broker.pause())

    def on_congested(self, congested: bool) -> None:
        """Read no further ahead of the executor than its link holds."""
        self._broker.hold(congested)

    def on_executor_lost(self) -> None:
        """The inline executor ended, and with it this worker."""
        self.exit_code = ExitCode.TEMPORARY
        self.stop("the inline executor ended")

    def on_unstarted(self, deliveries: list[Delivery]) -> None:
        """Hand messages back that nobody has started."""
        self._uncount(len(deliveries))
        self._settler.release(deliveries)

    def on_change(self) -> None:
        """Something happened that a drain may be waiting for."""
        self._changed.set()

    def _uncount(self, unstarted: int) -> None:
        if self._limit_left is not None:
            self._limit_left += unstarted
