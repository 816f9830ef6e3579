"""The consumer process of a worker: between the broker and the executors, on one event loop.

It never imports the user's task, so nothing a task does can block its heartbeats or take it down.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any

from workerkit.errors import ExitCode, TaskLoadError
from workerkit.ports import Broker, Delivery, Plan
from workerkit.retry import RetryPolicy
from workerkit.worker.child import Child, ChildEvents
from workerkit.worker.intake import Intake
from workerkit.worker.life import EXIT_TIMEOUT
from workerkit.worker.loading import Resolved, Spec
from workerkit.worker.logs import ConsumerLog
from workerkit.worker.pool import Pool
from workerkit.worker.selection import make_selector
from workerkit.worker.settler import Settler

_TELL_TIMEOUT = 2.0
"""Seconds a broker gets to confirm that it sends no more; a frozen one must not hold up a stop."""
_CONFIRM_TIMEOUT = 1.0
"""Seconds past the deadline for retries and dead letters that wait for their confirmation."""
_CLOSE_TIMEOUT = 1.5
"""Seconds past the deadline for the broker to say that it has every settlement; the worker's own deadline is earlier
than Supervisor's by more than this and the one before together."""
_UNHURRIED = 30.0
"""Seconds for that in a stop without a deadline."""
_HAND_BACK_AFTER = 0.2
"""Seconds that a callback runs before what waits for it is given back, if somebody else could take it."""
_ASK_AGAIN = 0.5
"""Seconds between questions whether somebody could."""


class Consumer:
    """One running worker.

    1. Has an executor started, learns what the task wants, consumes its queues.
    2. Hands deliveries on, up to the limit and not while there is a reason not to.
    3. On a signal, at the end of its TTL or at its limit: drains, hands back, ends.

    Args:
        spec: what its executors are told.
        grace: seconds from the signal to stop until the running callbacks are ended.
        limit: messages to work on before a planned end; None for no limit.
        start_child: starts an executor.
        log: for its own lines and those of the executors.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        grace: float,
        limit: int | None = None,
        broker: Broker,
        start_child: Callable[[ChildEvents], Child],
        log: ConsumerLog,
    ) -> None:
        self._spec = spec
        self._broker = broker
        self._grace = grace
        self._limit_left = limit
        self._log = log.logger
        self._started = asyncio.get_running_loop().time()
        self._changed = asyncio.Event()
        self._resolved: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
        self._stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # why
        self._stop_signals = 0
        self._deadline = math.inf
        self._ask_elsewhere_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_line = log.write_line
        self._settler = Settler(broker, log, self._changed.set)
        self.on_settled = self._settler.on_settled
        self.on_dropped = self._settler.on_dropped
        self.on_unpublished = self._settler.on_unpublished
        self._intake = Intake(broker, limit, self.on_failed, self._log)
        self.on_finished = self._intake.note
        self.on_change = self._changed.set
        self._pool = Pool(spec, start_child, self._settler, self, self._log)
        self.exit_code = ExitCode.OK

    # ---- a run, top to bottom

    async def run(self) -> None:
        """Work until asked to stop, then drain.

        Raises:
            TaskLoadError: the task cannot be used.
            ConfigurationError: what was configured cannot be consumed or selected by.
            AccessRefused: the broker refused; one that is away is waited for.
        """
        try:
            self._pool.open()
            await self._start_or_stop()
            reason = await self._stop
            self._log.info("worker.stopping", reason=reason)
            await self._drain(reason)
        finally:
            # Close to the deadline there are not many seconds left for the executors to end by themselves.
            await self._pool.end(max(0.5, min(EXIT_TIMEOUT, self._left)))
            self._intake.close()
            hurried = self._deadline < math.inf
            await self._broker.close(self._left + _CLOSE_TIMEOUT if hurried else _UNHURRIED)
        self._log.info("worker.exit", reason=reason, code=int(self.exit_code))

    async def _start_or_stop(self) -> None:
        start: asyncio.Future[Any] = asyncio.create_task(self._start())
        try:
            await asyncio.wait([start, self._stop], return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
        finally:
            start.cancel()
            await asyncio.wait([start])

    async def _start(self) -> None:
        resolved = await asyncio.shield(self._resolved)
        self._settler.policy = RetryPolicy(resolved.max_attempts, resolved.delays)
        if resolved.ttl is not None:
            asyncio.get_running_loop().call_at(self._started + resolved.ttl, self.stop, "ttl")
        queues, prefetch = tuple(resolved.queues), resolved.prefetch_count
        selector = None
        if len(queues) > 1:
            report, root = partial(self._on_select_failed, resolved.select), self._spec.project_root
            selector = make_selector(resolved.select, resolved.queues, resolved.starve_after, report, root)
            self._pool.choose_by(selector, self._intake.window)
        plan = Plan(self._spec.worker, queues, resolved.delays, resolved.max_losses, resolved.max_attempts)
        await self._broker.start(plan, self)
        fixed = prefetch if isinstance(prefetch, int) else None
        self._intake.open(queues, fixed, resolved.executors * resolved.concurrency, selector)
        auto, each = self._intake.auto, max(1, (fixed or 0) // resolved.executors)
        self._pool.ahead = (lambda: each) if auto is None else (lambda: auto.ahead)
        await self._intake.settle_down(_UNHURRIED)
        names: dict[str, Any] = {"queues": resolved.queues} if selector else {"queue": queues[0]}
        self._log.info("worker.consuming", **names, prefetch_count=prefetch)

    def _on_select_failed(self, select: str, text: str) -> None:
        self._log.error("select.failed", select=select, error=text, note="going on with `weighted`")

    def stop(self, reason: str) -> None:
        """Begin to stop and let the running callbacks finish."""
        if not self._stop.done():
            self._stop.set_result(reason)
            self._intake.refuse("stopping")
        self._changed.set()

    def stop_by_signal(self, name: str) -> None:
        """As ``stop``, but with a deadline; a second signal makes the deadline now."""
        self._stop_signals += 1
        self._deadline = time.monotonic() + (self._grace if self._stop_signals == 1 else 0.0)
        self.stop(name)

    async def _drain(self, reason: str) -> None:
        # At once nothing more starts; it goes back when the broker sends nothing in its place.
        unstarted = await self._pool.recall() if reason != "limit" else []
        await self._intake.settle_down(min(_TELL_TIMEOUT, self._left))
        self.on_unstarted(unstarted)
        if await self._until_idle():
            return
        for stacks in await self._pool.stacks():
            self._log.warning("worker.deadline", **stacks)
        self._pool.hand_back()
        self._deadline = time.monotonic() + _CONFIRM_TIMEOUT
        await self._until_idle()

    @property
    def _left(self) -> float:
        """Seconds until the deadline; without one, for ever."""
        return max(0.0, self._deadline - time.monotonic())

    async def _until_idle(self) -> bool:
        """Wait until everything that was started is settled. False when the deadline came first."""
        while self._pool.busy or self._settler.busy:
            if self._deadline == math.inf and not self._pool.busy:
                self._deadline = time.monotonic() + _UNHURRIED  # a dead-letter queue that is gone stays gone, say
            if not self._left:
                return False
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._left)
        return True

    # ---- signals

    def pause(self) -> None:
        """Finish the running messages, start no other, hand back what was not started."""
        if "paused" not in self._intake.reasons and not self._stop.done():
            self._log.info("worker.paused")
            self._intake.refuse("paused")
            self._in_background(self._give_back_unstarted())

    def resume(self) -> None:
        """Take messages again after ``pause``."""
        if "paused" in self._intake.reasons and not self._stop.done():
            self._log.info("worker.resumed")
            self._intake.allow("paused")

    def reload(self) -> None:
        """Replace the executors, one at a time, by such that load the task anew."""
        if not self._stop.done():
            self._log.info("worker.reloading")
            self._pool.reload()

    def log_stacks(self) -> None:
        """Log the stack of every thread of each executor, and what it works on."""
        self._in_background(self._log_stacks())

    async def _log_stacks(self) -> None:
        for stacks in await self._pool.stacks():
            self._log.info("worker.stacks", **stacks)

    async def _give_back_unstarted(self) -> None:
        await self._intake.settle_down(_UNHURRIED)
        if self._intake.reasons:
            self.on_unstarted(await self._pool.recall())

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
        # What was lost with the error may be what a drain would wait for.
        self._deadline = min(self._deadline, time.monotonic() + self._grace)
        self.stop("an error inside workerkit")

    # ---- from the broker

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        """Messages arrived. What comes while there is a reason not to take it, or over the limit, goes back."""
        if self._intake.reasons:
            self._settler.hand_back(deliveries)
            return
        if self._limit_left is not None:
            self._settler.hand_back(deliveries[self._limit_left :])
            deliveries = deliveries[: self._limit_left]
            self._limit_left -= len(deliveries)
        self._pool.run(deliveries)
        if self._limit_left == 0:
            self.stop("limit")

    def on_lost(self, receipts: Collection[Any]) -> None:
        self._uncount(self._pool.forget(receipts))

    # ---- from the executors

    def on_ready(self, resolved: Resolved) -> None:
        """An executor is ready for messages."""
        if not self._resolved.done():
            self._resolved.set_result(resolved)
        elif not resolved.same_as(self._resolved.result()) and not self._stop.done():
            self._log.warning("worker.changed", note="the task's settings are other ones now; restarting")
            self.exit_code = ExitCode.TEMPORARY
            self.stop("the task's settings changed")
        self._intake.allow("stalled")

    def on_load_failed(self, text: str, trace: str, *, fatal: bool) -> None:
        """An executor could not load the task: the end of a start, a nuisance in a worker that ran (a deploy, say)."""
        if fatal and not self._resolved.done() and not self._stop.done():
            self._resolved.set_exception(TaskLoadError(text))
        else:
            self._log.error("executor.not_ready", cause=text, **({"stack": trace} if trace else {}))

    def on_stalled(self) -> None:
        """No executor gets ready: let other workers have the messages until one does."""
        self._intake.refuse("stalled")

    def on_congested(self, congested: bool) -> None:
        """Read no further ahead of an executor than its link holds."""
        self._broker.hold(congested)

    def on_executor_lost(self) -> None:
        """The inline executor ended, and with it this worker."""
        self.exit_code = ExitCode.TEMPORARY
        self.stop("the inline executor ended")

    def on_unstarted(self, deliveries: list[Delivery]) -> None:
        """Hand messages back that nobody has started."""
        self._uncount(len(deliveries))
        self._settler.hand_back(deliveries)

    def on_waiting(self, seconds: float) -> None:
        """What waits for long callbacks should run elsewhere, if there is somebody."""
        if self._intake.auto is None or self._intake.reasons:
            return
        self._intake.note_running(seconds)
        if seconds > _HAND_BACK_AFTER and time.monotonic() > self._ask_elsewhere_at:
            self._ask_elsewhere_at = math.inf  # one question at a time, however long a broker takes for its answer
            self._in_background(self._share())

    async def _share(self) -> None:
        """Give back what others could take: the window is small by now, so nothing comes back in its place."""
        queues = self._resolved.result().queues
        wanted = [queue for queue in queues if await self._broker.wanted_elsewhere(queue)]
        self._ask_elsewhere_at = time.monotonic() + _ASK_AGAIN
        if wanted and not self._intake.reasons:
            await self._intake.settle_down(_TELL_TIMEOUT)
            unstarted = await self._pool.recall()
            # Not a suspect: that it must run alone is known only here.
            self.on_unstarted([one for one in unstarted if one.queue in wanted and not one.alone])
            self._pool.on_put_back([one for one in unstarted if one.queue not in wanted or one.alone])

    def _uncount(self, unstarted: int) -> None:
        if self._limit_left is not None:
            self._limit_left += unstarted
