"""A place for one executor in a worker: starts the next when one is gone, and sees to what a death leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from workerkit.envelope import is_alone
from workerkit.errors import ExitCode
from workerkit.ports import Delivery
from workerkit.settlement import Cause, Outcome, Verb
from workerkit.worker.child import Exit
from workerkit.worker.deaths import attribute
from workerkit.worker.life import Life
from workerkit.worker.link import Aftermath
from workerkit.worker.loading import Resolved
from workerkit.worker.page import Phase, Running
from workerkit.worker.settler import describe

if TYPE_CHECKING:
    from workerkit.worker.pool import Pool

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

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._log = pool.log
        self._settler = pool.settler
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # until the next start, or while an executor loads
        self._in_vain = 0  # executors in a row that came to nothing
        self._aftermaths: list[tuple[Delivery, Aftermath]] = []
        self._idle_death_before: Delivery | None = None  # what came next when an executor died that ran nothing
        self.alone: list[Delivery] = []
        """What is to run with nothing beside it."""
        self.life: Life | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes messages."""
        return self.life is not None and self.life.resolved is not None and not self.life.leaving

    @property
    def busy(self) -> bool:
        """Whether any delivery is here."""
        return bool(self._aftermaths or self.alone or (self.life is not None and self.life.holding.inflight))

    def open(self) -> None:
        """Start an executor."""
        try:
            self.life = Life(self, self._pool)
        except OSError as error:  # no process, no memory, no descriptors
            self._log.error("executor.not_started", error=str(error))
            self._in_vain += 1
            self._give_up_waiting()
            self._open_later()
        else:
            self._timer = self._loop.call_later(START_PATIENCE, self._on_slow_start, self.life.pid)

    def stop_waiting(self) -> None:
        """Neither start another executor nor care how long one loads."""
        if self._timer is not None:
            self._timer.cancel()

    def room(self, depth: int) -> int:
        """How many more deliveries it may be sent, when it should have at most ``depth``."""
        life = self.life
        if life is None or not self.ready or self.alone or self._aftermaths:
            return 0
        holding = life.holding
        if self._pool.concurrency > 1:
            first = next(iter(holding.inflight.values()), None)  # one that runs alone has no second
            if holding.aftermaths or (first is not None and first.alone):
                return 0
        return min(depth - len(holding.inflight), holding.room)

    def go_on(self) -> None:
        """Send what has to come before anything new."""
        life = self.life
        if life is None or not self.ready:
            return
        for delivery, aftermath in self._aftermaths:
            life.send_aftermath(delivery, aftermath)
        self._aftermaths.clear()
        if self.alone and not life.holding.inflight:
            life.send([self.alone.pop(0)])

    def give_up(self) -> list[Delivery]:
        """Settle by default what waits for its ``shutdown``; return what has not been started."""
        for delivery, aftermath in self._aftermaths:
            self._settle_by_default(delivery, aftermath)
        self._aftermaths.clear()
        unstarted, self.alone = self.alone, []
        return unstarted

    def forget(self, receipts: Collection[Any]) -> int:
        """Drop what is the broker's again and not started; returns how many."""
        kept = [delivery for delivery in self.alone if delivery.receipt not in receipts]
        dropped = len(self.alone) - len(kept)
        self.alone = kept
        for delivery, _ in self._aftermaths:
            delivery.lost = delivery.lost or delivery.receipt in receipts
        dropped += 0 if self.life is None else self.life.forget(receipts)
        self.go_on()  # what is to run alone may have waited for these
        return dropped

    # ---- what its executor says

    def on_ready(self, resolved: Resolved) -> None:
        """It has loaded the task."""
        self.stop_waiting()
        self._pool.on_ready(resolved)
        self.go_on()

    def on_acknowledged(self, finished: list[Delivery]) -> None:
        """The task has acknowledged these."""
        self._settler.acknowledge(finished)
        self.go_on()
        self._pool.on_finished(self, finished)

    def on_outcome(self, delivery: Delivery, outcome: Outcome, aftermath: Aftermath | None) -> None:
        """The task has decided about one, in its callback or, with ``aftermath``, in its ``shutdown``."""
        if aftermath is None:
            delivery.alone = is_alone(delivery.raw_properties)  # no longer, when it was only suspected
        elif aftermath.suspect and outcome.verb in (Verb.NACK, Verb.RETRY) and not delivery.lost:
            # A shutdown() says so by default; but is it to blame? The broker will see to it when it has it again.
            self.alone.append(delivery)
            self.go_on()
            return
        self._settler.settle(delivery, outcome)
        self.go_on()
        self._pool.on_finished(self, [delivery] if aftermath is None else [])

    def on_handed_back(self, deliveries: list[Delivery]) -> None:
        """These were taken back in the instant in which they were about to begin."""
        self._pool.consumer.on_unstarted(deliveries)
        self.go_on()

    # ---- its end

    def on_gone(self, status: Exit, cause: Cause, running: Sequence[Running]) -> None:
        """It is gone: see to what it leaves, and start the next one."""
        life, self.life = self.life, None
        assert life is not None
        self.stop_waiting()
        culprits = attribute(running, named=life.named, handing_back=life.handing_back)
        blamed = self._see_to(life, cause, running, culprits)
        long_life = life.resolved is not None and self._loop.time() - life.started > _SHORT_LIFE
        of_use = life.fruitful or life.leaving or blamed is not None or len(culprits) > 1
        self._in_vain = 0 if of_use or long_life else self._in_vain + 1
        # The shutdown() of these has died, or did not even begin.
        for seq, aftermath in life.holding.aftermaths.items():
            self._settle_by_default(life.holding.inflight.pop(seq), aftermath)
        left = list(life.holding.inflight.values())
        self.alone[:0] = [delivery for delivery in left if delivery.alone and not delivery.lost]
        planned = life.leaving or self._pool.ending
        if not (planned and status.code in (ExitCode.OK, ExitCode.CONFIGURATION)):
            self._log_exit(life, status, cause, culprits, blamed)
        self._pool.on_put_back([delivery for delivery in left if delivery.lost or not delivery.alone])
        if life.resolved is None:
            self._give_up_waiting()
        if self._pool.ending or self._pool.spec.inline:  # there will be no other one
            self._pool.consumer.on_unstarted(self.give_up())
        else:
            self._open_later()
        self._pool.on_gone()

    def _see_to(self, life: Life, cause: Cause, running: Sequence[Running], culprits: list[int]) -> Delivery | None:
        """Take out of its deliveries those that had to do with its death; returns the one to blame."""
        holding = life.holding
        died_in_shutdown = None
        for one in running:
            if one.phase is Phase.SHUTDOWN and one.seq in holding.inflight:
                died_in_shutdown = holding.inflight[one.seq]
                holding.aftermaths.setdefault(one.seq, Aftermath(cause))
        if len(culprits) == 1:
            blamed = self._take_for_shutdown(life, culprits[0], cause, suspect=False)
            if blamed is not None and life.named is None and self._pool.concurrency > 1:
                blamed.alone = True  # nothing else speaks against it but that it ran alone
            return blamed
        for seq in culprits:
            self._take_for_shutdown(life, seq, cause, suspect=True)
        if holding.inflight and not running and life.named is None and not life.handing_back:
            return self._see_to_idle_death(life, cause)
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
        self._aftermaths.append((delivery, Aftermath(cause, settled, suspect)))
        return delivery

    def _see_to_idle_death(self, life: Life, cause: Cause) -> Delivery | None:
        """No callback ran. When it happens twice in front of the same message, taking that message in is what kills."""
        first = next(iter(life.holding.inflight.values()))
        if self._idle_death_before is not first:
            self._idle_death_before = first
            return None
        del life.holding.inflight[first.seq]
        life.holding.aftermaths.pop(first.seq, None)
        self._settle_by_default(first, Aftermath(cause))
        return first

    def _settle_by_default(self, delivery: Delivery, aftermath: Aftermath) -> None:
        """What ``WorkerTask.shutdown`` would do, for a message whose ``shutdown`` cannot run."""
        if aftermath.suspect and not delivery.lost:
            self.alone.append(delivery)
        elif aftermath.settled is None:
            self._settler.settle(delivery, Outcome(Verb.NACK, cause=aftermath.cause))

    def _log_exit(self, life: Life, status: Exit, cause: Cause, culprits: list[int], blamed: Delivery | None) -> None:
        about: dict[str, Any] = {"executor_pid": life.pid, "code": status.code, "signal": status.signal}
        about |= {"reason": cause.reason.value, "cause": cause.message, **describe(blamed)}
        if len(culprits) > 1:
            about["suspects"] = len(culprits)
        if stack := cause.traceback or status.crash_text:
            about["stack"] = stack
        self._log.error("executor.exit", **about)

    def _open_later(self) -> None:
        delay = RESTART_DELAYS[min(self._in_vain, len(RESTART_DELAYS) - 1)]
        if delay:
            self._log.warning("executor.restart", in_seconds=delay, executors_in_vain=self._in_vain)
        self._timer = self._loop.call_later(delay, self.open)

    def _on_slow_start(self, pid: int) -> None:
        self._log.warning("executor.slow_start", executor_pid=pid, seconds=START_PATIENCE, note="initialize() goes on")
        self._give_up_waiting()

    def _give_up_waiting(self) -> None:
        """No executor here in good time: what waits for one of this seat must not wait any longer."""
        self._pool.on_put_back(self.give_up())
        self._pool.on_not_ready(self)
