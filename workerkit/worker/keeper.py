"""Keeps one executor alive, and knows at any moment which message it runs, which it finished, which it never began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from workerkit.errors import ExitCode
from workerkit.settlement import Cause, Outcome, Verb
from workerkit.worker import cgroup
from workerkit.worker.child import Events, Executor, Exit
from workerkit.worker.clock import SHUTDOWN_TIMEOUT, Clock
from workerkit.worker.deaths import classify, timed_out
from workerkit.worker.link import (
    Aftermath,
    Frame,
    Kind,
    Phase,
    Running,
    deliver_frames,
    frame,
    pack_aftermath,
    pack_json,
    unpack_cause,
    unpack_settled,
)
from workerkit.worker.loading import Resolved, Spec
from workerkit.worker.ports import Delivery, Owner
from workerkit.worker.settler import Settler, describe

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

EXIT_TIMEOUT = 3.0
"""Seconds an executor gets to end by itself once it was told to, or has said that it will."""
RECALL_GRACE = 0.02
"""Seconds between voiding unstarted deliveries and reading which one runs.

The executor stores "I run it" before it loads "is it void"; a store is visible to other cores within nanoseconds.
"""
RESTART_DELAYS = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the next start after so many executors in a row that came to nothing: not ready, or gone within
``_SHORT_LIFE`` without having settled or died of a message."""
_SHORT_LIFE = 10.0
START_PATIENCE = 30.0
"""Seconds for which messages wait for an executor that loads. It may go on loading, but without them."""


class Keeper:
    """Starts executors, forwards deliveries, attributes deaths.

    Every delivery handed to ``forward`` leaves again exactly once: through the settler, or in the return value of
    ``recall`` or ``forget``.
    """

    def __init__(
        self,
        spec: Spec,
        start: Callable[[Events], Executor],
        settler: Settler,
        owner: Owner,
        log: FilteringBoundLogger,
    ) -> None:
        self._spec = spec
        self._start = start
        self._settler = settler
        self._owner = owner
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._executor: Executor | None = None
        self._ready = False
        self._was_ready = False  # some executor was: what fails to load now did load before, so it is tried again
        self._ending = False
        self._seq = 0
        self._waiting: list[Delivery] = []
        self._inflight: dict[int, Delivery] = {}
        self._last_settled: Delivery | None = None
        self._last_verb = Verb.ACK
        self._forgotten: list[
            int
        ] = []  # the next in turn, which may have begun in the instant in which its channel went
        self._aftermaths: list[tuple[Delivery, Aftermath]] = []
        self._deaths: dict[int, Cause] = {}  # of deliveries whose shutdown() is running or about to
        self._announced: Cause | None = None  # why the present executor is about to be gone
        self._handing_back = False
        self._condemned: int | None = None  # the delivery for whose sake we end the present executor
        self._fruitless, self._fruitful = 0, False  # executors in a row that came to nothing; did the present one?
        self._started = 0.0
        self._idle_death_before: int | None = None  # the delivery that came next when an idle executor died
        self._oom_kills = 0
        self._gone = asyncio.Event()
        self._clock = Clock(lambda: bool(self._inflight), self._on_overdue)
        self._restart: asyncio.TimerHandle | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle

    # ---- what the consumer asks for

    def start(self) -> None:
        """Start an executor."""
        self._restart = self._announced = self._condemned = None
        self._ready = self._handing_back = self._fruitful = False
        self._oom_kills = cgroup.oom_kills()
        self._started = self._loop.time()
        self._gone.clear()
        self._executor = self._start(self)
        self._executor.send(frame(Kind.HELLO, pack_json(self._spec)))
        self._patience = self._loop.call_later(START_PATIENCE, self._on_slow_start, self._executor.pid)
        self._log.debug("executor.started", executor_pid=self._executor.pid)

    @property
    def busy(self) -> bool:
        """Whether any delivery is still here."""
        return bool(self._inflight or self._waiting or self._aftermaths)

    def forward(self, deliveries: list[Delivery]) -> None:
        """Have messages worked on, in order, by this executor or the next."""
        for delivery in deliveries:
            self._seq += 1
            delivery.seq = self._seq
        if self._ready:
            self._send(deliveries)
        else:
            self._waiting += deliveries

    async def recall(self) -> list[Delivery]:
        """Take back every delivery that was not started; the running one goes on."""
        void = self._seq
        while self._executor is not None and self._executor.page.void < void:  # again, should it be replaced meanwhile
            self._executor.page.void = void
            await asyncio.sleep(RECALL_GRACE)
        return self._take_unstarted(void)

    def forget(self) -> int:
        """The channel is gone: drop what was not started, and count it. The settlement of what runs will be stale."""
        if self._executor is not None:
            self._executor.page.void = self._seq
        forgotten = self._take_unstarted(self._seq)
        self._forgotten = [delivery.seq for delivery in forgotten[:1]]
        return len(forgotten)

    async def stacks(self) -> dict[str, Any]:
        """The stack of every thread of the executor and the message it runs, as keys for a log line."""
        executor = self._executor
        if executor is None:
            return {"note": "the executor is being replaced"}
        running = executor.page.running()
        about = describe(self._inflight.get(running[0])) if running else {"note": "no message is being worked on"}
        return {"executor_pid": executor.pid, **about, "stack": await executor.stacks()}

    def hand_back(self) -> None:
        """End the executor now, for good; the message it runs is released, not blamed."""
        self._handing_back = self._ending = True
        if self._restart is not None:
            self._restart.cancel()
        for delivery, aftermath in self._aftermaths:
            self._settle_by_default(delivery, aftermath)
        self._aftermaths.clear()
        unstarted, self._waiting = self._waiting, []
        self._owner.on_unstarted(unstarted)
        if self._executor is not None:
            self._executor.kill()

    async def end(self, patience: float) -> None:
        """Let the executor end, within ``patience`` seconds, and see that it does. No other one is started."""
        self._ending = True
        if self._restart is not None:
            self._restart.cancel()
        if self._executor is not None:
            self._executor.send(frame(Kind.STOP))
            killer = self._loop.call_later(patience, self._executor.kill)
            await self._gone.wait()
            killer.cancel()

    # ---- what the executor says

    def on_frames(self, frames: list[Frame]) -> None:
        """Take the frames of one read."""
        for kind, data, start, end in frames:
            if kind == Kind.SETTLED:
                seq, duration_ns, outcome = unpack_settled(data, start, end)
                if seq in self._inflight:
                    self._settler.settle(self._take(seq, outcome.verb), outcome, duration_ns)
                else:
                    self._log_dropped(outcome.verb)
            elif kind != Kind.WAKE:
                self._on_event(kind, data[start:end])
        self._owner.on_change()

    def on_drained(self) -> None:
        """Acknowledge together what was finished since the last time."""
        executor, inflight = self._executor, self._inflight
        assert executor is not None
        if found := executor.page.acknowledged(inflight):
            self._settler.acknowledge([(self._take(seq, Verb.ACK), duration_ns) for seq, duration_ns in found])
            executor.page.know(next(iter(inflight), self._seq + 1) - 1)
            self._owner.on_change()
        if self._forgotten and executor.page.acknowledged(self._forgotten):
            self._log_dropped(Verb.ACK)
            self._forgotten = []

    def _log_dropped(self, verb: Verb) -> None:
        self._log.warning("settle.dropped", why="its channel is gone", outcome=verb.name.lower())

    def _take(self, seq: int, verb: Verb) -> Delivery:
        """Take out a delivery that was settled."""
        delivery = self._inflight.pop(seq)
        self._deaths.pop(seq, None)
        if self._last_settled is None or seq > self._last_settled.seq:
            self._last_settled, self._last_verb = delivery, verb
        self._fruitful = True
        return delivery

    def _on_event(self, kind: int, payload: bytes) -> None:
        if kind == Kind.LOG:
            self._owner.on_line(payload)
        elif kind == Kind.READY:
            self._on_ready(msgspec.json.decode(payload, type=Resolved))
        elif kind == Kind.DYING:
            self._announced = unpack_cause(payload)
            if self._executor is not None:
                self._killer = self._loop.call_later(SHUTDOWN_TIMEOUT + EXIT_TIMEOUT, self._executor.kill)
        elif kind == Kind.FAILED:
            failure = msgspec.json.decode(payload)
            fatal = bool(failure["configuration"]) and not self._was_ready
            self._ending = self._ending or fatal
            self._owner.on_load_failed(failure["text"], failure["traceback"], fatal=fatal)

    def on_output(self, stream: str, line: str) -> None:
        """What the user's code prints becomes a log line."""
        self._log.info(line, logger=stream)

    def _on_ready(self, resolved: Resolved) -> None:
        self._ready = self._was_ready = True
        self._patience.cancel()
        self._clock.callback_timeout = None if self._spec.inline else resolved.callback_timeout  # debugging takes hours
        self._owner.on_ready(resolved)
        assert self._executor is not None
        for delivery, aftermath in self._aftermaths:
            if aftermath.settled is None:
                self._inflight[delivery.seq] = delivery
                self._deaths[delivery.seq] = aftermath.cause
            self._executor.send(frame(Kind.AFTERMATH, pack_aftermath(delivery, aftermath)))
            self._clock.watch(self._executor)
        self._aftermaths.clear()
        waiting, self._waiting = self._waiting, []
        self._send(waiting)

    def _send(self, deliveries: list[Delivery]) -> None:
        assert self._executor is not None
        for delivery in deliveries:
            self._inflight[delivery.seq] = delivery
        if deliveries:
            self._executor.page.know(next(iter(self._inflight)) - 1)
            self._executor.send(*deliver_frames(deliveries))
            self._clock.watch(self._executor)

    def _take_unstarted(self, void: int) -> list[Delivery]:
        """Take out what was not started of the deliveries up to number ``void``."""
        # Which one runs is read before the link is drained: what it finished earlier is then among the frames.
        running = None
        if self._executor is not None:
            running = self._executor.page.running()
            self._executor.drain()
        started = {seq for seq in self._inflight if seq in self._deaths or (running and seq == running[0])}
        here = [*self._inflight.values(), *self._waiting]
        unstarted = [delivery for delivery in here if delivery.seq <= void and delivery.seq not in started]
        self._inflight = {seq: delivery for seq, delivery in self._inflight.items() if seq > void or seq in started}
        self._waiting = [delivery for delivery in self._waiting if delivery.seq > void]
        self._owner.on_change()
        return unstarted

    # ---- the end of an executor

    def on_exit(self, status: Exit) -> None:
        """It is gone: blame the message it ran, keep what it did not start, start the next one."""
        assert self._executor is not None
        running = self._executor.page.running()
        pid = self._executor.pid
        self._clock.stop()
        if self._killer is not None:
            self._killer.cancel()
        self._patience.cancel()
        self._executor.close()
        self._executor = None
        self._gone.set()
        was_ready, self._ready = self._ready, False
        cause = self._announced or classify(status, oom_killed=cgroup.oom_kills() > self._oom_kills)
        blamed = self._attribute(running, cause) if was_ready else None
        long_life = was_ready and self._loop.time() - self._started > _SHORT_LIFE
        self._fruitless = 0 if self._fruitful or blamed or long_life else self._fruitless + 1
        for seq in [seq for seq in self._inflight if seq in self._deaths]:  # their shutdown() did not even begin
            self._settle_by_default(self._inflight.pop(seq), Aftermath(self._deaths[seq], None))
        self._waiting = sorted(self._inflight.values(), key=lambda delivery: delivery.seq) + self._waiting
        self._inflight = {}
        if not (self._ending and status.code in (ExitCode.OK, ExitCode.CONFIGURATION)):
            self._log_exit(status, cause, pid, blamed)
        if self._handing_back:
            self._owner.on_unstarted(self._waiting)
            self._waiting = []
        if not was_ready:
            self._not_ready()
        if not self._ending:
            self._start_next()
        self._owner.on_change()

    def _attribute(self, running: Running | None, cause: Cause) -> Delivery | None:
        """Decide which delivery the executor died on, and what becomes of it."""
        if self._condemned is not None and (running is None or running[0] != self._condemned):
            return None  # its time was up in the instant in which it ended; the next one is not to blame
        if running is None:
            return self._attribute_idle_death(cause)
        seq, phase, _ = running
        delivery = self._inflight.get(seq)
        if self._handing_back and phase is Phase.CALLBACK:
            return None  # ended at the deadline: it goes back with the unstarted ones
        if delivery is not None:
            del self._inflight[seq]
            if phase is Phase.SHUTDOWN:
                self._settle_by_default(delivery, Aftermath(self._deaths.get(seq, cause), None))
            else:
                self._aftermaths.append((delivery, Aftermath(cause, None)))
            return delivery
        if self._last_settled is not None and self._last_settled.seq == seq and phase is Phase.CALLBACK:
            delivery = self._last_settled  # it died after it had settled, before the callback returned
            self._aftermaths.append((delivery, Aftermath(cause, self._last_verb)))
        return delivery

    def _attribute_idle_death(self, cause: Cause) -> Delivery | None:
        """No callback ran. When it happens twice in front of the same message, taking that message in is what kills."""
        if not self._inflight or self._handing_back:
            return None
        first = min(self._inflight)
        if self._idle_death_before != first:
            self._idle_death_before = first
            return None
        delivery = self._inflight.pop(first)
        self._settle_by_default(delivery, Aftermath(cause, None))
        return delivery

    def _settle_by_default(self, delivery: Delivery, aftermath: Aftermath) -> None:
        """What ``WorkerTask.shutdown`` would do, for a message whose ``shutdown`` cannot run."""
        self._deaths.pop(delivery.seq, None)
        if aftermath.settled is None:
            self._settler.settle(delivery, Outcome(Verb.NACK, cause=aftermath.cause), 0)

    def _log_exit(self, status: Exit, cause: Cause, pid: int, blamed: Delivery | None) -> None:
        about: dict[str, Any] = {"executor_pid": pid, "code": status.code, "signal": status.signal}
        about |= {"reason": cause.reason.value, "cause": cause.message, **describe(blamed)}
        if cause.traceback or status.crash_text:
            about["stack"] = cause.traceback or status.crash_text
        self._log.error("executor.exit", **about)

    def _on_slow_start(self, pid: int) -> None:
        self._log.warning("executor.slow_start", executor_pid=pid, seconds=START_PATIENCE, note="initialize() goes on")
        self._not_ready()

    def _not_ready(self) -> None:
        """It did not start, or not load the task in time: others should have its messages."""
        for delivery, aftermath in self._aftermaths:
            self._settle_by_default(delivery, aftermath)
        self._aftermaths.clear()
        unstarted, self._waiting = self._waiting, []
        self._owner.on_unstarted(unstarted)
        self._owner.on_stalled()

    def _start_next(self) -> None:
        if self._spec.inline:
            self._owner.on_executor_lost()
            return
        delay = RESTART_DELAYS[min(self._fruitless, len(RESTART_DELAYS) - 1)]
        if delay:
            self._log.warning("executor.restart", in_seconds=delay, executors_in_vain=self._fruitless)
        self._restart = self._loop.call_later(delay, self._try_start)

    def _try_start(self) -> None:
        try:
            self.start()
        except OSError as error:  # no process, no memory, no descriptors
            self._log.error("executor.not_started", error=str(error))
            self._fruitless += 1
            self._not_ready()
            self._start_next()

    # ---- the end of what runs too long

    def _on_overdue(self, running: Running, limit: float, stacks: str) -> None:
        seq, phase, _ = running
        cause = timed_out(limit, stacks, "shutdown()" if phase is Phase.SHUTDOWN else "the callback")
        if phase is Phase.CALLBACK:
            self._announced = cause
        self._condemned = seq
        self._log.error("callback.timeout", cause=cause.message, stack=stacks, **describe(self._inflight.get(seq)))
        assert self._executor is not None
        self._executor.kill()
