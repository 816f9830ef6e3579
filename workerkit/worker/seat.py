"""A place for one executor in a worker: starts the next when one is gone, and sees to what a death leaves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workerkit.envelope import is_alone
from workerkit.errors import ExitCode
from workerkit.ports import Delivery
from workerkit.settlement import Cause, Outcome, Verb
from workerkit.worker.child import Child, ChildEvents
from workerkit.worker.events import SeatEvents
from workerkit.worker.life import End, Life
from workerkit.worker.link import Aftermath
from workerkit.worker.loading import Resolved, Spec
from workerkit.worker.settler import Settler, describe

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

RESTART_DELAYS = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the next start after so many executors in a row that came to nothing: not ready, or gone within
``_SHORT_LIFE`` without having settled or died of a message."""
_SHORT_LIFE = 10.0
START_PATIENCE = 30.0
"""Seconds for which messages wait for an executor that loads. It may go on loading, but without them."""


class Seat:
    """One executor after the other.

    What belongs to a death runs before anything new: first ``shutdown`` for each message that ran, then, one at a time
    and with nothing beside it, each message that may have been the cause.
    """

    def __init__(
        self,
        spec: Spec,
        start: Callable[[ChildEvents], Child],
        settler: Settler,
        events: SeatEvents,
        log: FilteringBoundLogger,
    ) -> None:
        self._spec = spec
        self._start = start
        self._settler = settler
        self._events = events
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._restart: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._in_vain = 0  # executors in a row that came to nothing
        self._aftermaths: deque[tuple[Delivery, Aftermath, bool]] = deque()  # and whether it is a suspect
        self._suspected: set[int] = set()  # numbers of suspects whose shutdown() is running
        self._idle_death_before: Delivery | None = None  # what came next when an executor died that ran nothing
        self.on_congested = events.on_congested
        self.on_line = events.on_line
        self.alone: deque[Delivery] = deque()
        """What is to run with nothing beside it."""
        self.life: Life | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes messages."""
        return self.life is not None and self.life.resolved is not None and not self.life.leaving

    @property
    def idle(self) -> bool:
        """Whether it would begin at once what it is sent."""
        life = self.life
        return life is not None and life.resolved is not None and self.room(life.resolved.concurrency) > 0

    @property
    def busy(self) -> bool:
        """Whether any delivery is here."""
        return bool(self._aftermaths or self.alone or (self.life is not None and self.life.holding.inflight))

    def open(self) -> None:
        """Start an executor."""
        self._restart = None
        try:
            self.life = Life(self._spec, self._start, self, self._log)
        except OSError as error:  # no process, no memory, no descriptors
            self._log.error("executor.not_started", error=str(error))
            self._in_vain += 1
            self._give_up_waiting()
            self._open_later()
        else:
            self._patience = self._loop.call_later(START_PATIENCE, self._on_slow_start, self.life.pid)

    def close(self) -> None:
        """Start no other one."""
        if self._restart is not None:
            self._restart.cancel()

    def room(self, depth: int) -> int:
        """How many more deliveries it may be sent, when it should have at most ``depth``."""
        life = self.life
        if life is None or life.resolved is None or life.leaving or self.alone or self._aftermaths:
            return 0
        if life.resolved.concurrency > 1 and (life.holding.aftermaths or self._runs_alone(life)):
            return 0
        return min(depth - len(life.holding.inflight), life.holding.room)

    def send(self, deliveries: Sequence[Delivery]) -> None:
        """Have these run."""
        assert self.life is not None
        self.life.send(deliveries, self._events.number(len(deliveries)))

    def go_on(self) -> None:
        """Send what has to come before anything new."""
        life = self.life
        if life is None or life.resolved is None or life.leaving:
            return
        while self._aftermaths:
            delivery, aftermath, suspect = self._aftermaths.popleft()
            seq = self._events.number(1)
            if suspect:
                self._suspected.add(seq)
            life.send_aftermath(delivery, aftermath, seq)
        if self.alone and not life.holding.inflight:
            self.send([self.alone.popleft()])

    def give_up(self) -> list[Delivery]:
        """Settle by default what waits for its ``shutdown``; return what has not been started."""
        while self._aftermaths:
            delivery, aftermath, suspect = self._aftermaths.popleft()
            self._settle_by_default(delivery, aftermath, suspect=suspect)
        unstarted = list(self.alone)
        self.alone.clear()
        return unstarted

    def forget(self, receipts: Any, *, end_running: bool) -> int:
        """Drop what is the broker's again and not started; returns how many."""
        kept = [delivery for delivery in self.alone if delivery.receipt not in receipts]
        dropped = len(self.alone) - len(kept)
        self.alone = deque(kept)
        for delivery, _, _ in self._aftermaths:
            delivery.lost = delivery.lost or delivery.receipt in receipts
        dropped += 0 if self.life is None else self.life.forget(receipts, end_running=end_running)
        self.go_on()  # what is to run alone may have waited for these
        return dropped

    def _runs_alone(self, life: Life) -> bool:
        first = next(iter(life.holding.inflight.values()), None)  # with nothing beside it: there is no second
        return first is not None and first.alone

    # ---- what its executor says

    def on_ready(self, life: Life, resolved: Resolved) -> None:  # noqa: ARG002 - LifeEvents' signature
        """It is ready for messages."""
        self._stop_waiting()
        self._events.on_ready(self, resolved)
        self.go_on()

    def on_load_failed(self, life: Life, text: str, trace: str, *, mendable: bool) -> None:  # noqa: ARG002
        """It could not load the task."""
        self._events.on_load_failed(text, trace, mendable=mendable)

    def on_acknowledged(self, life: Life, finished: list[Delivery]) -> None:  # noqa: ARG002
        """The task has acknowledged these."""
        self._settler.acknowledge(finished)
        if self._suspected:
            self._suspected -= {delivery.seq for delivery in finished}
        if self.alone:
            self.go_on()
        self._events.on_finished(self, finished)

    def on_outcome(self, life: Life, delivery: Delivery, outcome: Outcome, aftermath: Aftermath | None) -> None:  # noqa: ARG002
        """The task has decided about one."""
        if delivery.seq in self._suspected:
            self._suspected.discard(delivery.seq)
            # A shutdown() says so by default; but is it to blame? The broker will see to it when it has it again.
            if outcome.verb in (Verb.NACK, Verb.RETRY) and not delivery.lost:
                self.alone.append(delivery)
                self.go_on()
                return
        if aftermath is None:
            delivery.alone = is_alone(delivery.raw_properties)  # no longer, when it was only suspected
        self._settler.settle(delivery, outcome)
        if self.alone:
            self.go_on()
        self._events.on_finished(self, [delivery] if aftermath is None else [])

    def on_handed_back(self, deliveries: list[Delivery]) -> None:
        """These were taken back in the instant in which they were about to begin."""
        self._events.on_unstarted(deliveries)
        self.go_on()

    def on_look(self, life: Life, seconds: float) -> bool:  # noqa: ARG002
        """A callback has been running for so long."""
        return self._events.on_look(self, seconds)

    # ---- its end

    def on_gone(self, life: Life, end: End) -> None:
        """See to what it leaves, and start the next one."""
        self._stop_waiting()
        self.life = None
        blamed = self._see_to(life, end) if end.was_ready else None
        long_life = end.was_ready and self._loop.time() - life.started > _SHORT_LIFE
        of_use = life.fruitful or life.leaving or blamed is not None or bool(end.verdict.suspects)
        self._in_vain = 0 if of_use or long_life else self._in_vain + 1
        # The shutdown() of these did not even begin.
        for seq, aftermath in life.holding.aftermaths.items():
            delivery = life.holding.inflight.pop(seq)
            self._settle_by_default(delivery, aftermath, suspect=seq in self._suspected)
        self._suspected.clear()
        left = list(life.holding.inflight.values())
        self.alone.extendleft(delivery for delivery in left if delivery.alone and not delivery.lost)  # one at most
        planned = life.leaving or self._events.ending
        if not (planned and end.status.code in (ExitCode.OK, ExitCode.CONFIGURATION)):
            self._log_exit(life, end, blamed)
        self._events.on_put_back([delivery for delivery in left if delivery.lost or not delivery.alone])
        if not end.was_ready:
            self._give_up_waiting()
        if self._events.ending or self._spec.inline:  # there will be no other one
            self._events.on_unstarted(self.give_up())
        else:
            self._open_later()
        self._events.on_gone(self)

    def _see_to(self, life: Life, end: End) -> Delivery | None:
        """Take out of its deliveries those that had to do with its death; returns the one to blame."""
        holding, verdict = life.holding, end.verdict
        assert life.resolved is not None
        several = life.resolved.concurrency > 1
        died_in_shutdown = None
        for seq in verdict.in_shutdown:
            delivery = holding.inflight.pop(seq, None)
            aftermath = holding.aftermaths.pop(seq, Aftermath(end.cause))
            if delivery is not None:
                died_in_shutdown = delivery
                self._settle_by_default(delivery, aftermath, suspect=seq in self._suspected)
        for seq in verdict.suspects:
            self._take_for_shutdown(life, seq, end.cause, suspect=True)
        if verdict.blamed is not None:
            blamed = self._take_for_shutdown(life, verdict.blamed, end.cause, suspect=False)
            if blamed is not None and several and not end.explained:
                blamed.alone = True
            return blamed
        if verdict.idle and holding.inflight:
            return self._see_to_idle_death(life, end.cause)
        return died_in_shutdown

    def _take_for_shutdown(self, life: Life, seq: int, cause: Cause, *, suspect: bool) -> Delivery | None:
        delivery = life.holding.find(seq)
        unsettled = life.holding.inflight.pop(seq, None) is not None
        # One that had settled died before its callback returned: it has its shutdown, and stays settled.
        settled = None if unsettled else life.holding.verbs.get(seq)
        if delivery is None or not (unsettled or settled):
            return None  # it began in the instant in which it was taken away
        suspect = suspect and unsettled
        delivery.alone = delivery.alone or suspect
        self._aftermaths.append((delivery, Aftermath(cause, settled), suspect))
        return delivery

    def _see_to_idle_death(self, life: Life, cause: Cause) -> Delivery | None:
        """No callback ran. When it happens twice in front of the same message, taking that message in is what kills."""
        first = next(iter(life.holding.inflight.values()))
        if self._idle_death_before is not first:
            self._idle_death_before = first
            return None
        del life.holding.inflight[first.seq]
        life.holding.aftermaths.pop(first.seq, None)
        self._settle_by_default(first, Aftermath(cause), suspect=False)
        return first

    def _settle_by_default(self, delivery: Delivery, aftermath: Aftermath, *, suspect: bool) -> None:
        """What ``WorkerTask.shutdown`` would do, for a message whose ``shutdown`` cannot run."""
        if suspect and not delivery.lost:
            self.alone.append(delivery)
        elif aftermath.settled is None:
            self._settler.settle(delivery, Outcome(Verb.NACK, cause=aftermath.cause))

    def _log_exit(self, life: Life, end: End, blamed: Delivery | None) -> None:
        status, cause = end.status, end.cause
        about: dict[str, Any] = {"executor_pid": life.pid, "code": status.code, "signal": status.signal}
        about |= {"reason": cause.reason.value, "cause": cause.message, **describe(blamed)}
        if end.verdict.suspects:
            about["suspects"] = len(end.verdict.suspects)
        if cause.traceback or status.crash_text:
            about["stack"] = cause.traceback or status.crash_text
        self._log.error("executor.exit", **about)

    def _open_later(self) -> None:
        if self._spec.inline:
            return
        delay = RESTART_DELAYS[min(self._in_vain, len(RESTART_DELAYS) - 1)]
        if delay:
            self._log.warning("executor.restart", in_seconds=delay, executors_in_vain=self._in_vain)
        self._restart = self._loop.call_later(delay, self.open)

    def _on_slow_start(self, pid: int) -> None:
        self._log.warning("executor.slow_start", executor_pid=pid, seconds=START_PATIENCE, note="initialize() goes on")
        self._give_up_waiting()

    def _give_up_waiting(self) -> None:
        """No executor here in good time: what waits for one of this seat must not wait any longer."""
        self._events.on_put_back(self.give_up())
        self._events.on_not_ready(self)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
