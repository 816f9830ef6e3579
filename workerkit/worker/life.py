"""One executor, from its start to its exit: what it has, what it says, what its time limits are.

Each executor has a ``Life`` of its own, so nothing in it is ever reset for the next one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from workerkit.ports import Delivery
from workerkit.settlement import Cause, Outcome, Reason, Verb
from workerkit.worker import memory
from workerkit.worker.child import Exit
from workerkit.worker.custody import Holding
from workerkit.worker.deaths import classify, timed_out
from workerkit.worker.link import (
    Aftermath,
    Dying,
    Frame,
    Kind,
    aftermath_frame,
    deliver_frames,
    frame,
    json_frame,
    unpack_settled,
)
from workerkit.worker.loading import Resolved
from workerkit.worker.page import Phase, Running
from workerkit.worker.settler import describe

if TYPE_CHECKING:
    from workerkit.worker.pool import Pool
    from workerkit.worker.seat import Seat

EXIT_TIMEOUT = 3.0
"""Seconds an executor gets to end by itself once it was told to, or has said that it will."""
SHUTDOWN_TIMEOUT = 10.0
"""Seconds that ``WorkerTask.shutdown`` may run."""
CANCEL_TIMEOUT = 5.0
"""Seconds that a coroutine gets to end once it is cancelled."""
BLOCKED_AFTER = 1.0
"""Seconds for which a coroutine may keep the event loop to itself before it is named in the log."""
_LOOK_OFTEN, _LOOK_SELDOM = 0.1, 5.0
"""Seconds between looks at the page: while something waits behind what runs, and at most, while anything is there."""


class Life:
    """One executor, in a seat of the pool.

    Raises:
        OSError: no process could be started.
    """

    def __init__(self, seat: Seat, pool: Pool) -> None:
        self._seat = seat
        self._pool = pool
        self._log = pool.log
        self._loop = asyncio.get_running_loop()
        self._oom_kills = memory.oom_kills()
        self._child = pool.start_child(self)
        self._timer: asyncio.TimerHandle | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._numbers: dict[str, int] = {}  # of the worker's queues, on the link
        self._callback_timeout = math.inf
        self._cause: Cause | None = None  # what it dies of, as far as that is known
        self._cancelled: dict[int, tuple[float, Cause]] = {}  # when these coroutines must have ended, and why
        self._blocking_named = 0
        self.on_congested = pool.consumer.on_congested
        self.started = self._loop.time()
        self.resolved: Resolved | None = None
        self.fruitful = False
        """It has settled something."""
        self.leaving = False
        """It gets nothing more, and ends when it has done what it has."""
        self.handing_back = False
        """It was ended for nobody's sake."""
        self.named: int | None = None
        """The delivery for whose sake it was ended, or that it named itself when it died."""
        self.pid = self._child.pid
        self.holding = Holding(self._child.page)
        self._child.send(json_frame(Kind.HELLO, pool.spec))
        self._log.debug("executor.started", executor_pid=self.pid)

    # ---- what the pool asks for

    def send(self, deliveries: Sequence[Delivery]) -> None:
        """Have these run, in order."""
        self.holding.add(deliveries, self._pool.number(len(deliveries)))
        self._child.send(*deliver_frames(deliveries, self._numbers))
        self.watch()

    def send_aftermath(self, delivery: Delivery, aftermath: Aftermath) -> None:
        """Have ``shutdown`` run for a message that ran when another executor died."""
        self.holding.add_aftermath(delivery, aftermath, self._pool.number(1))
        self._child.send(aftermath_frame(delivery, aftermath, self._numbers))
        if aftermath.settled is not None:
            self.holding.settled(delivery.seq, aftermath.settled)  # nothing more will be said of it
        self.watch()

    def leave(self) -> None:
        """Let it do what it has, and end."""
        self.leaving = True
        self._child.send(frame(Kind.STOP))  # it heeds the first one
        self.watch()

    def kill_after(self, patience: float) -> None:
        """End it unless it has ended by itself by then."""
        when = self._loop.time() + patience
        if self._killer is None or self._killer.when() > when:
            if self._killer is not None:
                self._killer.cancel()
            self._killer = self._loop.call_at(when, self._child.kill)

    def hand_back(self) -> None:
        """End it now, for nobody's sake: what it runs is not to blame."""
        self.handing_back = True
        self._child.kill()

    def take_unstarted(self, receipts: Collection[Any] | None = None) -> list[Delivery]:
        """Take back what was not started; ``holding.void`` was called long enough ago that it never will be.

        Args:
            receipts: take only what is lost with these.
        """
        # Which ones run is read before the link is drained: what was finished earlier is then among the frames.
        unstarted = [one for one in self.holding.unstarted() if receipts is None or one.receipt in receipts]
        self._child.drain()
        unstarted = [one for one in unstarted if one.seq in self.holding.inflight]
        self.holding.take_out(unstarted)
        return unstarted

    def forget(self, receipts: Collection[Any]) -> int:
        """Drop what is the broker's again and not started; tell the others that they are. Returns how many it dropped.

        What begins in this very instant settles in vain, and is dropped by the broker's adapter then.
        """
        self.holding.void(receipts)
        unstarted = self.take_unstarted(receipts)
        if self.resolved is not None and self.resolved.on_lost == "end":
            cause = Cause(Reason.LOST, "the message became the broker's again while its callback ran")
            for one in self.holding.running():
                delivery = self.holding.inflight.get(one.seq)
                lost = delivery is not None and delivery.lost and one.phase is Phase.CALLBACK
                if lost and not self._cancel(one, cause):
                    self._end_for(one.seq, cause)
        return len(unstarted)

    async def stacks(self) -> dict[str, Any]:
        """The stack of every thread and what it runs, as keys for a log line."""
        running = [describe(self.holding.find(one.seq)) for one in self.holding.running()]
        about: dict[str, Any] = running[0] if len(running) == 1 else {"messages": running}
        if not running:
            about = {"note": "no message is being worked on"}
        return {"executor_pid": self.pid, **about, "stack": await self._child.stacks()}

    # ---- what the executor says

    def on_frames(self, frames: list[Frame]) -> None:
        """Take these frames, then hand over together what was acknowledged since the last time."""
        for kind, data, start, end in frames:
            if kind == Kind.SETTLED:
                self._on_settled(*unpack_settled(data, start, end))
            elif kind == Kind.LOG:
                self._pool.consumer.on_line(data[start:end])
            elif kind == Kind.READY:
                self._on_ready(msgspec.json.decode(data[start:end], type=Resolved))
            elif kind == Kind.DYING:
                dying = msgspec.json.decode(data[start:end], type=Dying)
                self.named = dying.seq if self.named is None else self.named
                self._cause = self._cause or dying.cause
                self.kill_after(SHUTDOWN_TIMEOUT + EXIT_TIMEOUT)
            elif kind == Kind.FAILED:
                failure = msgspec.json.decode(data[start:end])
                mendable = not failure["configuration"]
                self._pool.on_load_failed(failure["text"], failure["traceback"], mendable=mendable)
        if finished := self.holding.acknowledged():
            self.fruitful = True
            self._seat.on_acknowledged(finished)

    def on_output(self, stream: str, line: str) -> None:
        """What the user's code prints becomes a log line."""
        self._log.info(line, logger=stream)

    def _on_ready(self, resolved: Resolved) -> None:
        self.resolved = resolved
        self._numbers = {queue: number for number, queue in enumerate(resolved.queues)}
        if resolved.callback_timeout is not None and not self._pool.spec.inline:  # debugging takes hours
            self._callback_timeout = resolved.callback_timeout
        self._seat.on_ready(resolved)

    def _on_settled(self, seq: int, duration_ns: int, outcome: Outcome) -> None:
        aftermath = self.holding.aftermaths.get(seq)
        delivery = self.holding.settled(seq, outcome.verb)
        if delivery is None:
            return  # it began in the instant in which it was taken away
        self.fruitful = True
        delivery.duration_ns = duration_ns
        if outcome.verb is Verb.RELEASE and aftermath is None and self._child.page.is_void(delivery.slot, seq):
            self._seat.on_handed_back([delivery])
            return
        cancelled = self._cancelled.pop(seq, None)
        if cancelled is not None and outcome.cause is not None and outcome.cause.reason is Reason.TIMEOUT:
            outcome = Outcome(outcome.verb, cause=replace(cancelled[1], traceback=outcome.cause.traceback))
        self._seat.on_outcome(delivery, outcome, aftermath)

    # ---- its end

    def on_exit(self, status: Exit) -> None:
        """It is gone: say why, and what it ran."""
        running = self.holding.running()
        for timer in (self._timer, self._killer):
            if timer is not None:
                timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        self._child.close()
        cause = self._cause or classify(status, oom_killed=memory.oom_kills() > self._oom_kills)
        self._seat.on_gone(status, cause, running)

    # ---- its time limits

    def watch(self) -> None:
        """Look at its page soon: it has been given something, or something waits for what it has."""
        if self._asking is not None:
            return
        if self._timer is None or self._timer.when() - self._loop.time() > _LOOK_OFTEN:
            self._look_in(_LOOK_OFTEN)

    def _look_in(self, seconds: float | None) -> None:
        """Look then; None: not before it is asked for. There is one timer: a second one would outlive the executor."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """See whether something runs too long. Stands still while there is nothing to do."""
        self._timer = None
        # Should a processor with weaker rules than x86 ever let a wake-up get lost (see Page.must_wake), it ends here.
        self._child.drain()  # what this hands over may ask for a look of its own
        running = self.holding.running()
        if not (self.holding.inflight or running):
            if self.leaving:
                self.kill_after(EXIT_TIMEOUT)  # a thread or an atexit handler may hang
            return
        now_ns = time.monotonic_ns()
        stuck = [one for one in running if self._left(one, now_ns) <= 0 and not self._cancel(one)]
        if stuck:
            self._look_in(None)
            self._asking = self._loop.create_task(self._end(stuck[0]))
            return
        self._look_at_loop(running, now_ns)
        self._look_in(self._next_look(running, now_ns))

    def _left(self, one: Running, now_ns: int) -> float:
        """Seconds that are left of its time."""
        if one.seq in self._cancelled:
            return self._cancelled[one.seq][0] - self._loop.time()
        limit = SHUTDOWN_TIMEOUT if one.phase is Phase.SHUTDOWN else self._callback_timeout
        return limit - (now_ns - one.since_ns) / 1e9

    def _next_look(self, running: Sequence[Running], now_ns: int) -> float:
        # No longer than the limit: then a look sees each callback before its time is up, and the next is in time.
        most = min([_LOOK_SELDOM, self._callback_timeout, *(self._left(one, now_ns) for one in running)])
        oldest = max([now_ns - one.since_ns for one in running], default=0) / 1e9
        if self._pool.on_look(self._seat, self, oldest) or self.leaving:  # somebody waits for it
            return min(_LOOK_OFTEN, most)
        return min(most, BLOCKED_AFTER) if self.resolved is not None and self.resolved.asynchronous else most

    def _cancel(self, one: Running, cause: Cause | None = None) -> bool:
        """Have a coroutine cancelled. False: it is none, or that was tried already."""
        assert self.resolved is not None
        cancellable = self.resolved.asynchronous and one.phase is Phase.CALLBACK and not self._pool.spec.inline
        if not cancellable or one.seq in self._cancelled:
            return False
        cause = cause or timed_out(self._callback_timeout, "", "the callback")
        self._cancelled[one.seq] = self._loop.time() + CANCEL_TIMEOUT, cause
        self._child.send(json_frame(Kind.CANCEL, one.seq))
        return True

    async def _end(self, one: Running) -> None:
        """First the stacks, which say where it hangs; then the end."""
        stacks = await self._child.stacks()
        self._asking = None
        if one in self.holding.running():
            if one.seq in self._cancelled:
                cause = replace(self._cancelled[one.seq][1], traceback=stacks)
            elif one.phase is Phase.SHUTDOWN:
                cause = timed_out(SHUTDOWN_TIMEOUT, stacks, "shutdown()")
            else:
                cause = timed_out(self._callback_timeout, stacks, "the callback")
            delivery = self.holding.find(one.seq)
            self._log.error("callback.timeout", cause=cause.message, stack=stacks, **describe(delivery))
            # What its shutdown() is about is the death before.
            self._end_for(one.seq, None if one.phase is Phase.SHUTDOWN else cause)
        self.watch()

    def _end_for(self, seq: int, cause: Cause | None) -> None:
        self.named, self._cause = seq, cause or self._cause
        self._child.kill()

    def _look_at_loop(self, running: Sequence[Running], now_ns: int) -> None:
        """Name the coroutine that does not give the event loop back."""
        beat, seq = self._child.page.last_beat
        if not beat or not running or not seq or (now_ns - beat) / 1e9 < BLOCKED_AFTER or self._blocking_named == beat:
            return
        self._blocking_named = beat  # once for each time
        self._asking = self._loop.create_task(self._name_blocking(seq, (now_ns - beat) / 1e9))

    async def _name_blocking(self, seq: int, seconds: float) -> None:
        stacks = await self._child.stacks()
        self._asking = None
        self._log.warning(
            "callback.blocks_loop",
            seconds=round(seconds, 1),
            note="the other callbacks of this executor wait for it; is there an await missing?",
            stack=stacks,
            **describe(self.holding.find(seq)),
        )
