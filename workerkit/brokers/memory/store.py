"""Task queues in memory with their delays and dead letters, under the rules of the real ones.

No connection, no thread, no event loop. A store whose clock stands still makes tests of workers run in milliseconds and
end the same way each time; with a real clock it is what the adapter beside it consumes.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Protocol

from workerkit import envelope, headers
from workerkit.brokers.memory.record import Record
from workerkit.errors import PublishFailed
from workerkit.outgoing import Outgoing
from workerkit.ports import Delivery
from workerkit.properties import header_number
from workerkit.settlement import Acknowledge, Cause, DeadLetter, Release, RetryLater, Settlement


class Consumer(Protocol):
    """Whoever takes messages of a queue as they come."""

    @property
    def room(self) -> int:
        """How many more it would take now."""

    def wake(self) -> None:
        """There may be something to receive. Called from any thread, with the store locked: it only takes a note."""


_Entry = tuple[int, Record]
"""A message with its place: places rise in the order in which messages joined, and what is given back keeps its own."""


@dataclass(slots=True)
class _Queue:
    single_active: bool = False
    ready: list[_Entry] = field(default_factory=list)
    """A heap."""
    returned: list[_Entry] = field(default_factory=list)
    """Given back, and not to be handed out before ``redeliver``."""
    delayed: list[tuple[float, int, Record]] = field(default_factory=list)
    """A heap by due time; equal times keep their order."""
    consumers: list[Consumer] = field(default_factory=list)


class MemoryStore:
    """Queues, each with its dead letters, and a clock.

    The rules are those of the wire: copies carry the headers they carry there, what is delayed joins the end of its
    queue when it is due, what is given back goes to where it was. Safe for use by several threads.

    Args:
        clock: seconds; None for a clock that stands still and is moved by ``advance``.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._moved = 0.0
        self._queues: dict[str, _Queue] = {}
        self._unacked: dict[int, _Entry] = {}
        self._tags = itertools.count(1)
        self._places = itertools.count(1)
        self._lock = threading.RLock()

    @property
    def now(self) -> float:
        """Seconds on this store's clock."""
        return self._moved if self._clock is None else self._clock()

    # ---- what is where

    def declare(self, queue: str, *, single_active: bool = False) -> None:
        """See that a queue and the queue of its dead letters are there.

        With ``single_active``, only the consumer that came first gets messages, as long as it is there.
        """
        with self._lock:
            self._queues.setdefault(queue, _Queue()).single_active |= single_active
            self._queues.setdefault(envelope.dead_queue_name(queue), _Queue())

    def ready(self, *queues: str) -> list[Record]:
        """Messages that can be received now or after ``redeliver``, in the order of their places."""
        with self._lock:
            self._bring_due()
            states = [self._queues[queue] for queue in queues]
            found = (entry for state in states for entry in (*state.ready, *state.returned))
            return [record for _, record in sorted(found, key=itemgetter(0))]

    def delayed(self, *queues: str) -> list[Record]:
        """Messages that wait for their time, the next one first."""
        with self._lock:
            self._bring_due()
            found = (entry for queue in queues for entry in self._queues[queue].delayed)
            return [record for _, _, record in sorted(found, key=itemgetter(0, 1))]

    def next_due(self, queue: str) -> float | None:
        """When the next delayed message of a queue becomes ready, on the store's clock; None when there is none."""
        with self._lock:
            delayed = self._queues[queue].delayed
            return delayed[0][0] if delayed else None

    # ---- messages coming in

    def publish(self, outgoing: Outgoing) -> None:
        """Put a message into the queue that its routing key names; there are no exchanges here but the default one.

        Raises:
            PublishFailed: there is no such queue.
        """
        with self._lock:
            self._check_route(outgoing)
            self.put(outgoing.routing_key, outgoing)

    def put(self, queue: str, outgoing: Outgoing) -> None:
        """Put a message into a queue, whatever it was addressed to."""
        with self._lock:
            record = Record(
                queue,
                outgoing.body,
                outgoing.raw_properties,
                outgoing.exchange,
                outgoing.routing_key,
                envelope.attempt_of(outgoing.raw_properties),
                losses=header_number(outgoing.raw_properties, headers.LOSSES),
            )
            self._add(record, outgoing.delay or 0.0)

    # ---- messages going out

    def subscribe(self, queue: str, consumer: Consumer) -> None:
        """Have a consumer woken when there may be something for it."""
        with self._lock:
            if consumer not in (consumers := self._queues[queue].consumers):
                consumers.append(consumer)
            self._wake(queue)

    def unsubscribe(self, queue: str, consumer: Consumer) -> None:
        """Wake it no more. What it holds stays its own."""
        with self._lock:
            if consumer in (consumers := self._queues[queue].consumers):
                consumers.remove(consumer)
            self._wake(queue)  # it may have been in another one's way

    def others_with_room(self, queue: str, consumer: Consumer) -> bool:
        """Whether another consumer would be given a message of this queue now."""
        with self._lock:
            state = self._queues[queue]
            candidates = state.consumers[:1] if state.single_active else state.consumers
            return any(other is not consumer and other.room > 0 for other in candidates)

    def has_other_consumers(self, queue: str, consumer: Consumer) -> bool:
        """Whether somebody else consumes this queue."""
        with self._lock:
            return any(other is not consumer for other in self._queues[queue].consumers)

    def receive(self, queue: str, most: int, consumer: Consumer | None = None) -> list[Delivery]:
        """Hand out up to ``most`` ready messages, the first ones first.

        A ``consumer`` gets no more than its share of what is ready, so that all who have room have work.
        """
        with self._lock:
            self._bring_due()
            state = self._queues[queue]
            if consumer is not None:
                most = min(most, self._share(state, consumer))
            deliveries = [self._hand_out(heapq.heappop(state.ready)) for _ in range(min(most, len(state.ready)))]
            if deliveries and state.ready:
                self._wake(queue)
            return deliveries

    def losses(self, delivery: Delivery) -> int:
        """How often a message that is handed out had lost its worker before."""
        return self._unacked[delivery.tag][1].losses

    def redeliver(self, queue: str) -> None:
        """Let what was given back be received again, from where it was."""
        with self._lock:
            state = self._queues[queue]
            for entry in state.returned:
                heapq.heappush(state.ready, entry)
            state.returned.clear()

    def requeue(self, deliveries: Iterable[Delivery], *, lost: bool) -> None:
        """Take back what was handed out and not settled; ``lost`` with its consumer, which counts, or given back."""
        with self._lock:
            for delivery in deliveries:
                place, record = self._unacked.pop(delivery.tag)
                self._give_back(place, replace(record, losses=record.losses + lost))

    def settle(self, delivery: Delivery, settlement: Settlement, worker: str) -> Record:
        """Settle what was handed out; all of it, or nothing when that raises.

        Returns:
            The message as it was. ``worker`` is what a dead letter tells of.

        Raises:
            KeyError: it is settled already, or was requeued.
            PublishFailed: what was to be published with an acknowledgement has no queue.
        """
        with self._lock:
            place, record = self._unacked[delivery.tag]
            if isinstance(settlement, Acknowledge):
                for outgoing in settlement.publish:
                    self._check_route(outgoing)
            del self._unacked[delivery.tag]
            match settlement:
                case Acknowledge(publish=publish):
                    for outgoing in publish:
                        self.put(outgoing.routing_key, outgoing)
                case Release(delay=0):
                    self._give_back(place, record)
                case Release(delay=delay):
                    copy = envelope.released_copy(delivery, settlement, losses=record.losses)
                    self._add(_copy(record, record.queue, copy), delay)
                case RetryLater(delay=delay, cause=cause):
                    copy = envelope.retry_copy(delivery, settlement, losses=record.losses)
                    self._add(_copy(record, record.queue, copy, cause), delay)
                case DeadLetter(cause=cause):
                    story = envelope.dead_letter(delivery, cause, worker)
                    self._add(_copy(record, envelope.dead_queue_name(record.queue), story, cause), 0.0)
            return record

    # ---- time

    def advance(self, seconds: float) -> None:
        """Move a clock on that stands still. What becomes due joins the end of its queue, in the order of the times.

        Raises:
            ValueError: clocks do not run backwards.
        """
        if not seconds >= 0:
            raise ValueError(f"a clock moves on by 0 seconds or more, not by {seconds!r}")
        self.advance_to(self._moved + seconds)

    def advance_to(self, moment: float) -> None:
        """As ``advance``, to a moment on the store's clock."""
        with self._lock:
            self._moved = moment
            self._bring_due()

    # ---- inside

    def _check_route(self, outgoing: Outgoing) -> None:
        if outgoing.exchange:
            raise PublishFailed(f"there is no exchange {outgoing.exchange!r} in memory: publish to a queue")
        if outgoing.routing_key not in self._queues:
            raise PublishFailed(f"there is no queue {outgoing.routing_key!r}: nothing declares or consumes it")

    def _add(self, record: Record, delay: float) -> None:
        """Put a message at the end of its queue, or let it wait for its time."""
        state = self._queues[record.queue]
        if delay > 0:
            due = self.now + delay
            heapq.heappush(state.delayed, (due, next(self._places), replace(record, due=due)))
        else:
            heapq.heappush(state.ready, (next(self._places), record))
        self._wake(record.queue)

    def _give_back(self, place: int, record: Record) -> None:
        self._queues[record.queue].returned.append((place, replace(record, redelivered=True)))
        self._wake(record.queue)

    def _bring_due(self) -> None:
        now = self.now
        for state in self._queues.values():
            while state.delayed and state.delayed[0][0] <= now:
                record = heapq.heappop(state.delayed)[2]
                heapq.heappush(state.ready, (next(self._places), replace(record, due=None, cause=None)))

    def _hand_out(self, entry: _Entry) -> Delivery:
        record = entry[1]
        tag = next(self._tags)
        self._unacked[tag] = entry
        return Delivery(
            queue=record.queue,
            exchange=record.exchange,
            routing_key=record.routing_key,
            redelivered=record.redelivered,
            attempt=record.attempt,
            raw_properties=record.raw_properties,
            body=record.body,
            tag=tag,
        )

    def _share(self, state: _Queue, consumer: Consumer) -> int:
        if state.single_active:
            return len(state.ready) if state.consumers[0] is consumer else 0
        with_room = sum(other.room > 0 for other in state.consumers)
        return -(-len(state.ready) // max(1, with_room))

    def _wake(self, queue: str) -> None:
        for consumer in self._queues[queue].consumers:
            consumer.wake()


def _copy(record: Record, queue: str, raw_properties: bytes, cause: Cause | None = None) -> Record:
    """The message as its copy has it, which goes through the default exchange and was handed out to nobody."""
    attempt = envelope.attempt_of(raw_properties)
    return Record(queue, record.body, raw_properties, "", queue, attempt, losses=record.losses, cause=cause)
