"""A broker in memory: one task queue with its retries and dead letters, under the rules of the real one.

It has no connection, no thread and no event loop, and its clock moves only when it is told to. So a test of a worker
runs in milliseconds and ends the same way each time.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from workerkit.payload import body_decoder
from workerkit.properties import Properties, decode, decode_headers
from workerkit.retry import RetryPolicy, decide
from workerkit.settlement import Acknowledge, Cause, DeadLetter, Outcome, Reason, Release, RetryLater
from workerkit.envelope import dead_queue_name
from workerkit.worker import copies
from workerkit.worker.ports import Delivery

_decode_body = body_decoder()


@dataclass(frozen=True, slots=True)
class Record:
    """One message as it stands in the broker, waiting or finished.

    Attributes:
        body: the payload.
        raw_properties: AMQP property flags and list, undecoded.
        exchange: where it was published to; a retry or a dead letter goes through the default exchange, ``""``.
        routing_key: with which key.
        attempt: 1-based number of the run that comes next, or that was the last.
        redelivered: it was handed out before.
        due: for a delayed message, when it becomes ready, in seconds on the broker's clock.
        cause: for a dead letter or a delayed message, why its last attempt failed.
    """

    body: bytes
    raw_properties: bytes = field(repr=False)
    exchange: str
    routing_key: str
    attempt: int
    redelivered: bool = False
    due: float | None = None
    cause: Cause | None = None

    @property
    def reason(self) -> Reason | None:
        """The class of ``cause``."""
        return None if self.cause is None else self.cause.reason

    @property
    def properties(self) -> Properties:
        """All fourteen AMQP properties. Raises ValueError when they are broken."""
        return decode(self.raw_properties)

    @property
    def headers(self) -> dict[str, Any]:
        """The header table, with the ``workerkit-*`` headers that a copy carries on the wire."""
        return decode_headers(self.raw_properties)

    @property
    def message_id(self) -> str | None:
        """The publisher's id of this message."""
        return self.properties.message_id

    @property
    def correlation_id(self) -> str | None:
        """The publisher's id of what this message belongs to."""
        return self.properties.correlation_id

    @property
    def data(self) -> Any:
        """The body decoded by its content type, into plain values whatever the task's ``payload_type``.

        Raises:
            UndecodableBody: it is not what the content type says.
        """
        properties = self.properties
        return _decode_body(self.body, properties.content_type, properties.content_encoding)


class MemoryBroker:
    """A queue, its retry queues and its dead-letter queue.

    The rules are those of ``brokers.rabbitmq``: ``retry.decide`` says what an outcome means, copies carry the headers
    they carry on the wire, a retry joins the end of the queue when it is due, and what is released goes back to where
    it was without counting as an attempt.

    Args:
        queue: its name.
        worker: name of the worker that consumes it, for the headers of dead letters.
        prefetch_count: deliveries handed out ahead of their settlement.
        policy: how often and how long apart failing messages are tried.
    """

    def __init__(self, queue: str, *, worker: str, prefetch_count: int, policy: RetryPolicy) -> None:
        self._queue = queue
        self._worker = worker
        self._prefetch_count = prefetch_count
        self._policy = policy
        self._waiting: deque[Record] = deque()
        self._released: dict[int, Record] = {}
        self._delayed: list[tuple[float, int, Record]] = []
        self._unacked: dict[int, Record] = {}
        self._tag = 0
        self._retries = 0
        self.now = 0.0
        """Seconds that this broker's clock has been moved on."""
        self.acked: list[Record] = []
        """Acknowledged messages, in the order of their acknowledgements."""
        self.dead_letters: list[Record] = []
        """Messages in the dead-letter queue, oldest first."""

    @property
    def ready(self) -> list[Record]:
        """Messages that can be delivered now, the next one first."""
        return [*self._released_in_order(), *self._waiting]

    @property
    def delayed(self) -> list[Record]:
        """Messages that wait for their retry, the next one first."""
        return [record for _, _, record in sorted(self._delayed, key=lambda entry: entry[:2])]

    def publish(
        self, raw_properties: bytes, body: bytes, *, exchange: str = "", routing_key: str | None = None
    ) -> None:
        """Put a message at the end of the queue."""
        attempt = copies.attempt_of(raw_properties, native=False)
        key = self._queue if routing_key is None else routing_key
        self._waiting.append(Record(body, raw_properties, exchange, key, attempt))

    def receive(self) -> list[Delivery]:
        """Hand out ready messages, as far as the prefetch count allows; an empty list when there are none.

        What was released is not among them until ``redeliver`` is called.
        """
        deliveries = []
        while self._waiting and len(self._unacked) < self._prefetch_count:
            record = self._waiting.popleft()
            self._tag += 1
            self._unacked[self._tag] = record
            deliveries.append(
                Delivery(
                    queue=self._queue,
                    exchange=record.exchange,
                    routing_key=record.routing_key,
                    redelivered=record.redelivered,
                    attempt=record.attempt,
                    raw_properties=record.raw_properties,
                    body=record.body,
                    channel=1,
                    tag=self._tag,
                )
            )
        return deliveries

    def redeliver(self) -> None:
        """Let released and requeued messages be received again, at the front of the queue."""
        self._waiting.extendleft(reversed(self._released_in_order()))
        self._released.clear()

    def requeue(self) -> None:
        """Take back what was handed out and not settled, as a broker does when its consumer goes away."""
        self._released |= {tag: replace(record, redelivered=True) for tag, record in self._unacked.items()}
        self._unacked.clear()

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle what was handed out, as ``retry.decide`` says.

        Raises:
            KeyError: this delivery is settled already.
        """
        record = self._unacked.pop(delivery.tag)
        match decide(outcome, delivery.attempt, self._policy):
            case Acknowledge():
                self.acked.append(record)
            case Release():
                self._released[delivery.tag] = replace(record, redelivered=True)
            case RetryLater(delay=delay, attempt=attempt):
                due = self.now + delay
                copy = copies.retry_copy(delivery, attempt)
                self._retries += 1  # equal times keep the order of their failures
                record = Record(delivery.body, copy, "", self._queue, attempt, due=due, cause=outcome.cause)
                heapq.heappush(self._delayed, (due, self._retries, record))
            case DeadLetter(cause=cause):
                story = copies.dead_letter(delivery, cause, self._worker)
                key = dead_queue_name(self._queue)
                self.dead_letters.append(Record(delivery.body, story, "", key, delivery.attempt, cause=cause))

    def advance(self, seconds: float) -> None:
        """Move the clock on. Retries that become due join the end of the queue, in the order of their times.

        Raises:
            ValueError: clocks do not run backwards.
        """
        if not seconds >= 0:
            raise ValueError(f"a clock moves on by 0 seconds or more, not by {seconds!r}")
        self._set_clock(self.now + seconds)

    def advance_to_next_retry(self) -> bool:
        """Move the clock on to the next retry that is due. Returns False when there is none."""
        if not self._delayed:
            return False
        self._set_clock(self._delayed[0][0])
        return True

    def _set_clock(self, now: float) -> None:
        self.now = now
        while self._delayed and self._delayed[0][0] <= now:
            record = heapq.heappop(self._delayed)[2]
            self._waiting.append(replace(record, due=None, cause=None))

    def _released_in_order(self) -> list[Record]:
        """A broker puts messages back where they were: in the order in which it had delivered them."""
        return [self._released[tag] for tag in sorted(self._released)]
