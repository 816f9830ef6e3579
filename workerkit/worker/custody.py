"""Where each delivery is, from its arrival until it is settled: waiting for an executor, or with one.

Plain bookkeeping over the deliveries and the page: no event loop, no clock, no input or output.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from workerkit.ports import Delivery
from workerkit.settlement import Verb
from workerkit.worker.link import Aftermath
from workerkit.worker.page import SLOTS, Page, Running

_SWEEP_AT = 64


class Waiting:
    """Deliveries that no executor has yet, by queue, in the broker's order."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[Delivery]] = {}
        self.aside: list[Delivery] = []
        """Not to be given to an executor: somebody is about to ``take_all``."""

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def add(self, deliveries: Sequence[Delivery]) -> None:
        """They arrived, all from one queue."""
        self.queues.setdefault(deliveries[0].queue, deque()).extend(deliveries)

    def put_back(self, deliveries: Iterable[Delivery]) -> None:
        """An executor had them and has not begun them: they are next again."""
        for delivery in sorted(deliveries, key=lambda delivery: delivery.seq, reverse=True):
            self.queues.setdefault(delivery.queue, deque()).appendleft(delivery)

    def take(self, queue: str, most: int) -> list[Delivery]:
        """The next ones of a queue."""
        waiting = self.queues[queue]
        return [waiting.popleft() for _ in range(min(most, len(waiting)))]

    def take_all(self) -> list[Delivery]:
        """All of them, and what is aside."""
        taken = self.aside + [delivery for waiting in self.queues.values() for delivery in waiting]
        self.queues.clear()
        self.aside = []
        return taken

    def forget(self, receipts: Collection[Any]) -> int:
        """Drop those that are the broker's again; returns how many."""
        before = len(self) + len(self.aside)
        self.aside = [one for one in self.aside if one.receipt not in receipts]
        for queue, waiting in self.queues.items():
            self.queues[queue] = deque(one for one in waiting if one.receipt not in receipts)
        return before - len(self) - len(self.aside)


class Holding:
    """What one executor has, from its start to its exit.

    Each delivery has a slot of the page, which is free again when the executor cannot write to it any more: when it has
    run the delivery to its end, or has passed it over.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._free = list(range(SLOTS))
        self._over: dict[int, Delivery] = {}  # taken out, but the executor may still write to their slots
        self.inflight: dict[int, Delivery] = {}
        """By number, in the order in which the executor gets them; all that is not settled."""
        self.aftermaths: dict[int, Aftermath] = {}
        """Those of them that get their ``shutdown`` and no callback."""
        self.verbs: dict[int, Verb] = {}
        """How those were settled whose callback may not have returned yet."""
        self.taken_in = 0
        """How many it has had for their callback."""

    @property
    def room(self) -> int:
        """How many more it can have."""
        if len(self._free) < SLOTS // 2:
            self.sweep()
        return len(self._free)

    def add(self, deliveries: Sequence[Delivery], first: int) -> None:
        """The executor gets these, numbered from ``first``."""
        free, inflight = self._free, self.inflight
        seq = first
        for delivery in deliveries:
            delivery.seq = seq
            delivery.slot = free.pop()
            inflight[seq] = delivery
            seq += 1
        self.taken_in += len(deliveries)

    def add_aftermath(self, delivery: Delivery, aftermath: Aftermath, seq: int) -> None:
        """The executor gets this one to run ``shutdown`` for it."""
        self.add([delivery], seq)
        self.taken_in -= 1
        self.aftermaths[seq] = aftermath

    def settled(self, seq: int, verb: Verb) -> Delivery | None:
        """Take out a delivery that the task has settled; None for one that is not here any more."""
        delivery = self.inflight.pop(seq, None)
        if delivery is not None:
            # A suspect is to run again when its shutdown() has: then it gets another number and another slot.
            has_run = self.aftermaths.pop(seq, None) is None
            self._let_go(delivery if has_run else copy.copy(delivery), verb)
        return delivery

    def acknowledged(self) -> list[Delivery]:
        """Take out what was acknowledged since the last time."""
        found = self._page.acknowledged(self.inflight)
        inflight, aftermaths, free, is_over = self.inflight, self.aftermaths, self._free, self._page.is_over
        for delivery in found:
            del inflight[delivery.seq]
            if aftermaths:
                aftermaths.pop(delivery.seq, None)
            if is_over(delivery):
                free.append(delivery.slot)
            else:
                self._let_go(delivery, Verb.ACK)
        return found

    def running(self) -> list[Running]:
        """What the executor runs, be it settled already or not."""
        return self._page.running([*self._over.values(), *self.inflight.values()])

    def void(self, receipts: Collection[Any] | None = None) -> None:
        """Have nothing started that has not been; with ``receipts``, only what is lost; what runs can see that."""
        for seq, delivery in self.inflight.items():
            if receipts is None:
                if not self._page.has_begun(delivery):  # the task may have released one that has: something else
                    self._page.void(delivery.slot, seq)
            elif delivery.receipt in receipts:
                delivery.lost = True
                self._page.void(delivery.slot, seq, lost=True)

    def unstarted(self) -> list[Delivery]:
        """What is void and has not begun; when it was made so some time before, it never will."""
        kept = self._running_inflight() | self.aftermaths.keys()
        is_void = self._page.is_void
        return [one for seq, one in self.inflight.items() if seq not in kept and is_void(one.slot, seq)]

    def take_out(self, deliveries: Sequence[Delivery]) -> None:
        """These are void, and somebody else's from now on."""
        for delivery in deliveries:
            del self.inflight[delivery.seq]
            self._over[delivery.seq] = copy.copy(delivery)  # it will get another number and another slot
        self.taken_in -= len(deliveries)

    def sweep(self) -> None:
        """Free the slots of which the executor has let go."""
        over = [delivery for delivery in self._over.values() if self._page.is_over(delivery)]
        for delivery in over:
            del self._over[delivery.seq]
            self.verbs.pop(delivery.seq, None)
            self._free.append(delivery.slot)

    def _let_go(self, delivery: Delivery, verb: Verb) -> None:
        if self._page.is_over(delivery):
            self._free.append(delivery.slot)
            return
        if len(self._over) >= _SWEEP_AT:
            self.sweep()
        self._over[delivery.seq] = delivery
        self.verbs[delivery.seq] = verb

    @property
    def behind(self) -> bool:
        """Whether something waits here for what runs."""
        return len(self.inflight) > len(self._running_inflight())

    def _running_inflight(self) -> set[int]:
        return {one.seq for one in self._page.running(self.inflight.values())}

    def find(self, seq: int) -> Delivery | None:
        """A delivery that the executor may be running."""
        return self.inflight.get(seq) or self._over.get(seq)
