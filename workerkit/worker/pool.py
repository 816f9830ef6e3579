"""The executors of a worker: hands out what waits, takes back what was not started, replaces them one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from workerkit.envelope import is_alone
from workerkit.ports import Delivery
from workerkit.worker import memory
from workerkit.worker.child import Child, ChildEvents
from workerkit.worker.custody import Waiting
from workerkit.worker.life import Life
from workerkit.worker.loading import Resolved, Spec
from workerkit.worker.page import SLOTS
from workerkit.worker.seat import Seat
from workerkit.worker.selection import MOMENT, Selector
from workerkit.worker.settler import Settler

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from workerkit.worker.consumer import Consumer

RECALL_GRACE = 0.02
"""Seconds between voiding unstarted deliveries and reading which ones run.

The executor stores "I run it" before it loads "is it void"; a store is visible to other cores within nanoseconds.
"""
_BEHIND = 0.1
"""Seconds that a callback runs before what waits behind it in its executor is given to another one."""
_MEMORY_INTERVAL = 0.5
"""Seconds between looks at the memory of an executor that works."""


class Pool:
    """As many executors as the task asks for.

    Every delivery handed to ``run`` leaves again exactly once: through the settler, by the consumer's ``on_unstarted``,
    in the return value of ``recall``, or by ``forget``.
    """

    def __init__(
        self,
        spec: Spec,
        start_child: Callable[[ChildEvents], Child],
        settler: Settler,
        consumer: Consumer,
        log: FilteringBoundLogger,
    ) -> None:
        self.spec = spec
        self.start_child = start_child
        self.settler = settler
        self.consumer = consumer
        self.log = log
        self.ending = False
        """No other executor is to be started."""
        self.ahead: Callable[[], int] = lambda: 1
        """Messages that an executor should have when there are several."""
        self.concurrency = 1
        """Callbacks that each executor runs at once."""
        self._loop = asyncio.get_running_loop()
        self._seats = [Seat(self)]
        self._loaded = False  # an executor has, once
        self._max_messages: int | None = None
        self._recycle_memory: int | None = None
        self._selector: Selector | None = None
        self._window: Callable[[str], int] = lambda _: 0
        self._waiting = Waiting()
        self._recalls = 0  # under way
        self._last_number = 0
        self._gone = asyncio.Event()
        self._choosing: asyncio.TimerHandle | None = None
        self._moving: asyncio.Task[None] | None = None
        self._outdated: set[Life] = set()
        self._memory_seen = 0.0

    @property
    def _lives(self) -> list[Life]:
        return [seat.life for seat in self._seats if seat.life is not None]

    # ---- what the consumer asks for

    def open(self) -> None:
        """Start the first executor. The others follow when it has said how many there should be."""
        self._seats[0].open()

    def choose_by(self, selector: Selector, window: Callable[[str], int]) -> None:
        """Take from several queues, as ``selector`` says, which have these windows."""
        self._selector, self._window = selector, window

    @property
    def busy(self) -> bool:
        """Whether any delivery is still here."""
        return bool(self._waiting or self._waiting.aside) or any(seat.busy for seat in self._seats)

    def run(self, deliveries: list[Delivery]) -> None:
        """Have messages of one queue worked on."""
        if self.concurrency > 1:
            for delivery in deliveries:
                delivery.alone = is_alone(delivery.raw_properties)
        self._waiting.add(deliveries)
        if self._selector is not None:
            queue = deliveries[0].queue
            here = sum(one.queue == queue for life in self._lives for one in life.holding.inflight.values())
            full = here + len(self._waiting.queues[queue]) >= self._window(queue)
            self._selector.on_arrival(queue, time.monotonic(), full=full)
        self.dispatch()

    async def recall(self) -> list[Delivery]:
        """Take back every delivery that was not started; those that run go on."""
        lives = self._lives
        for life in lives:
            life.holding.void()
        self._recalls += 1
        try:
            await asyncio.sleep(RECALL_GRACE)
        finally:
            self._recalls -= 1
        unstarted = self._waiting.take_all()
        for seat in self._seats:
            unstarted += seat.alone
            seat.alone = []
            if seat.life in lives:
                unstarted += seat.life.take_unstarted()
        self.consumer.on_change()
        return unstarted

    def forget(self, receipts: Collection[Any]) -> int:
        """These are the broker's again: drop what was not started, and count it. What runs settles in vain."""
        dropped = self._waiting.forget(receipts) + sum(seat.forget(receipts) for seat in self._seats)
        self.consumer.on_change()
        self.dispatch()
        return dropped

    async def stacks(self) -> list[dict[str, Any]]:
        """For each executor the stack of every thread and what it runs, as keys for a log line."""
        lives = self._lives
        missing = [{"note": "the executor is being replaced"}] * (len(self._seats) - len(lives))
        return [*await asyncio.gather(*[life.stacks() for life in lives]), *missing]

    def reload(self) -> None:
        """Replace every executor by a new one, which loads the task anew; one at a time."""
        self._outdated = set(self._lives)
        self._replace_next()

    def hand_back(self) -> None:
        """End the executors now, for good; the messages that they run are released, not blamed."""
        self._end_all()
        unstarted = self._waiting.take_all()
        for seat in self._seats:
            unstarted += seat.give_up()
            if seat.life is not None:
                seat.life.hand_back()
        self.consumer.on_unstarted(unstarted)

    async def end(self, patience: float) -> None:
        """Let the executors end, within ``patience`` seconds, and see that they do. No other one is started."""
        self._end_all()
        for life in self._lives:
            life.leave()
            life.kill_after(patience)
        while self._lives:
            self._gone.clear()
            await self._gone.wait()

    def _end_all(self) -> None:
        self.ending = True
        for timer in (self._choosing, self._moving):
            if timer is not None:
                timer.cancel()
        for seat in self._seats:
            seat.stop_waiting()

    # ---- handing out

    def dispatch(self) -> None:
        """Send what waits to executors that have room for it."""
        depth = self.concurrency  # of several queues, nothing is chosen before it can begin
        if self._selector is None:
            depth = SLOTS if len(self._seats) == 1 else max(depth, self.ahead())
        while self._waiting:
            seat, room = self._roomiest(depth)
            queue = self._choose() if room > 0 else None
            if queue is None:
                for life in self._lives:
                    life.watch()
                return
            share = -(-len(self._waiting) // len(self._seats)) if self._selector is None else 1
            self._send(seat, queue, min(room, share))

    def _choose(self) -> str | None:
        """The queue whose message is next; None: none at this moment."""
        waiting = {queue: len(deliveries) for queue, deliveries in self._waiting.queues.items() if deliveries}
        if self._selector is None:
            return next(iter(waiting))
        queue = self._selector.choose(waiting, time.monotonic())
        if queue is None:
            if self._choosing is not None:
                self._choosing.cancel()
            self._choosing = self._loop.call_later(MOMENT, self.dispatch)
        return queue

    def _send(self, seat: Seat, queue: str, most: int) -> None:
        deliveries = self._waiting.take(queue, most)
        if self.concurrency > 1 and any(delivery.alone for delivery in deliveries):
            seat.alone.extend(delivery for delivery in deliveries if delivery.alone)
            deliveries = [delivery for delivery in deliveries if not delivery.alone]
        if deliveries and seat.life is not None:
            seat.life.send(deliveries)
        seat.go_on()
        self._see_to_full(seat)

    def _roomiest(self, depth: int) -> tuple[Seat, int]:
        return max(((seat, self._room(seat, depth)) for seat in self._seats), key=itemgetter(1))

    def _room(self, seat: Seat, depth: int) -> int:
        room = seat.room(depth)
        if room > 0 and (most := self._most_messages) is not None and seat.life is not None:
            return min(room, most - seat.life.holding.taken_in)
        return room

    # ---- replacing

    @property
    def _may_replace(self) -> bool:
        """Whether an executor may leave: one at a time, while all others work, and not when all end."""
        return all(seat.ready for seat in self._seats) and not (self.ending or self.spec.inline)

    @property
    def _most_messages(self) -> int | None:
        """How many messages an executor may have; no limit while one is being replaced."""
        return self._max_messages if self._max_messages is not None and self._may_replace else None

    def _see_to_full(self, seat: Seat) -> None:
        """Its executor has had all that it should: it ends after that."""
        most, life = self._most_messages, seat.life
        if most is None or life is None or seat.alone or life.holding.taken_in < most:
            return
        self.log.info("executor.replaced", executor_pid=life.pid, why=f"it had {life.holding.taken_in} messages")
        life.leave()

    def _see_to_memory(self, seat: Seat) -> None:
        limit, life, now = self._recycle_memory, seat.life, self._loop.time()
        if limit is None or life is None or now - self._memory_seen < _MEMORY_INTERVAL or not self._may_replace:
            return
        self._memory_seen = now
        used = memory.resident(life.pid)
        if used > limit and self._moving is None:
            self._replace(seat, life, f"its memory is {used >> 20} MiB")

    def _replace_next(self) -> None:
        for seat in self._seats:
            if seat.life in self._outdated and self._moving is None and self._may_replace:
                self._outdated.discard(seat.life)
                self._replace(seat, seat.life, "a reload was asked for")

    def _replace(self, seat: Seat, life: Life, why: str) -> None:
        self.log.info("executor.replaced", executor_pid=life.pid, why=why)
        life.leaving = True
        self._moving = self._loop.create_task(self._move(seat, life))

    async def _move(self, seat: Seat, life: Life) -> None:
        """Give what an executor has not started to others, and let it end if it is to leave."""
        if seat.life is life:  # it may have died before this began, or meanwhile
            life.holding.void()
            await asyncio.sleep(RECALL_GRACE)
        if seat.life is life:
            unstarted = life.take_unstarted()
            if life.leaving:
                life.leave()
            seat.go_on()  # what is to run alone may have waited for these
            self.on_put_back(unstarted)
        self._moving = None
        self._replace_next()

    # ---- from the seats

    def number(self, count: int) -> int:
        """The first of so many new numbers for deliveries."""
        first = self._last_number + 1
        self._last_number += count
        return first

    def on_ready(self, resolved: Resolved) -> None:
        """An executor is ready for messages."""
        first, self._loaded = not self._loaded, True
        self.concurrency = resolved.concurrency
        self._max_messages, self._recycle_memory = resolved.max_messages, resolved.recycle_memory
        self.consumer.on_ready(resolved)
        if first and not self.ending:
            others = [Seat(self) for _ in range(0 if self.spec.inline else resolved.executors - 1)]
            self._seats += others
            for other in others:
                other.open()
        self._loop.call_soon(self._on_more_room)

    def _on_more_room(self) -> None:
        self._replace_next()
        for seat in self._seats:
            self._see_to_full(seat)
        self.dispatch()

    def on_not_ready(self, seat: Seat) -> None:
        """Its executor did not start, or does not load in time: without any, other workers should have the messages."""
        if not any(other.ready for other in self._seats if other is not seat):
            self.consumer.on_unstarted(self._waiting.take_all())
            self.consumer.on_stalled()

    def on_load_failed(self, text: str, trace: str, *, mendable: bool) -> None:
        """An executor could not load the task. It is tried again if it did before, or if the reason may pass."""
        fatal = not (self._loaded or mendable)
        self.ending = self.ending or fatal
        self.consumer.on_load_failed(text, trace, fatal=fatal)

    def on_finished(self, seat: Seat, finished: list[Delivery]) -> None:
        """The callbacks of these have ended, or a ``shutdown`` has."""
        if finished:
            self.consumer.on_finished(finished)
            if self._selector is not None:
                now, slots = time.monotonic(), self.concurrency * len(self._seats)
                for queue in {delivery.queue for delivery in finished}:
                    if self._window(queue) <= slots:  # it could not send the next one before
                        self._selector.on_open(queue, now)
        self._see_to_memory(seat)
        self._see_to_full(seat)
        if not self._recalls:  # a recall is about to take what waits
            self.dispatch()
        self.consumer.on_change()

    def on_put_back(self, deliveries: list[Delivery]) -> None:
        """An executor had these and has not settled them: they are next again; in a stop they go back."""
        back = [delivery for delivery in deliveries if self.ending or delivery.lost]
        kept = [delivery for delivery in deliveries if not (self.ending or delivery.lost)]
        self.consumer.on_unstarted(back)
        if self._recalls:
            self._waiting.aside += kept
        else:
            self._waiting.put_back(kept)
            self.dispatch()

    def on_look(self, seat: Seat, life: Life, seconds: float) -> bool:
        """A callback has been running for so long: can what waits behind it go elsewhere? True: something waits."""
        behind = life.holding.behind
        if not (behind or self._waiting):
            return False
        if seconds > _BEHIND:
            elsewhere = any(other.room(self.concurrency) > 0 for other in self._seats if other is not seat)
            if behind and elsewhere and self._moving is None:
                self._moving = self._loop.create_task(self._move(seat, life))
            elif not elsewhere:
                self.consumer.on_waiting(seconds)
        return True

    def on_gone(self) -> None:
        """An executor is gone."""
        self._gone.set()
        if self.spec.inline and not self.ending:
            self.consumer.on_executor_lost()
        self.consumer.on_change()
