"""One delivery as the user's callback sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workerkit import headers
from workerkit.errors import AlreadySettled
from workerkit.properties import Properties, decode, decode_headers
from workerkit.settlement import ACK, RELEASE, Cause, Outcome, Reason, Verb, check_delay


@dataclass(slots=True)
class Incoming:
    """The facts of one delivery, as they came over the wire.

    Attributes:
        queue: name of the queue that delivered it.
        exchange: the exchange it was published to.
        routing_key: the key it was published with.
        redelivered: the broker's hint; never used to count.
        attempt: 1-based number of this run.
        raw_properties: AMQP property flags and list, undecoded.
        body: the payload.
    """

    queue: str
    exchange: str
    routing_key: str
    redelivered: bool
    attempt: int
    raw_properties: bytes
    body: bytes


_UNSET: Any = object()


class MessageAdapter:
    """A message with the verbs that settle it; each message takes exactly one verb, once.

    A second verb raises ``AlreadySettled`` and changes nothing on the wire. Headers and properties are decoded when
    they are first asked for, ``data`` likewise.
    """

    __slots__ = ("_blame", "_data", "_decode_body", "_headers", "_incoming", "_outcome", "_properties", "_settle")

    def __init__(
        self,
        incoming: Incoming,
        settle: Callable[[Outcome], None],
        decode_body: Callable[[bytes, str | None, str | None], Any],
        outcome: Outcome | None = None,
    ) -> None:
        self._incoming = incoming
        self._settle = settle
        self._decode_body = decode_body
        self._outcome = outcome
        self._properties: Properties | None = None
        self._headers: dict[str, Any] | None = None
        self._data: Any = _UNSET
        self._blame: Cause | None = None

    @property
    def body(self) -> bytes:
        """The payload as it was published."""
        return self._incoming.body

    @property
    def data(self) -> Any:
        """The body decoded by ``content_type``: JSON (also when none is given), text or bytes.

        With ``payload_type`` set on the task, an instance of that type.

        Raises:
            UndecodableBody: it is not what the content type says, or not of the payload type.
        """
        if self._data is _UNSET:
            properties = self.properties
            self._data = self._decode_body(self.body, properties.content_type, properties.content_encoding)
        return self._data

    @property
    def properties(self) -> Properties:
        """All fourteen AMQP properties. Raises ValueError when the publisher sent broken ones."""
        if self._properties is None:
            self._properties = decode(self._incoming.raw_properties)
        return self._properties

    @property
    def headers(self) -> dict[str, Any]:
        """The header table, empty when there is none."""
        if self._headers is None:
            self._headers = decode_headers(self._incoming.raw_properties)
        return self._headers

    @property
    def message_id(self) -> str | None:
        """The publisher's id of this message."""
        return self.properties.message_id

    @property
    def correlation_id(self) -> str | None:
        """The publisher's id of what this message belongs to."""
        return self.properties.correlation_id

    @property
    def queue(self) -> str:
        """The queue that delivered it."""
        return self._incoming.queue

    @property
    def exchange(self) -> str:
        """The exchange it was first published to; a retry does not change it."""
        return str(self.headers.get(headers.EXCHANGE, self._incoming.exchange))

    @property
    def routing_key(self) -> str:
        """The routing key it was first published with; a retry does not change it."""
        return str(self.headers.get(headers.ROUTING_KEY, self._incoming.routing_key))

    @property
    def redelivered(self) -> bool:
        """RabbitMQ's hint that somebody may have seen this message before.

        It is true for messages that nobody looked at and false for copies; ``attempt`` is the count to rely on.
        """
        return self._incoming.redelivered

    @property
    def attempt(self) -> int:
        """1-based number of this run; attempts that ended in the death of the process are counted."""
        return self._incoming.attempt

    @property
    def settled(self) -> bool:
        """Whether a verb was called."""
        return self._outcome is not None

    @property
    def outcome(self) -> Outcome | None:
        """What was decided, None while nothing was."""
        return self._outcome

    def ack(self) -> None:
        """The work is done and durable."""
        self.settle(ACK)

    def nack(self) -> None:
        """This attempt failed: tried again by the retry policy, then kept as a dead letter."""
        self.settle(Outcome(Verb.NACK, cause=self._blame or Cause(Reason.NACKED, "nack() was called")))

    def retry(self, delay: float | None = None) -> None:
        """As ``nack``, coming back after ``delay`` seconds; None takes the delay from the retry policy.

        Raises:
            ValueError: the delay is negative or more than 49 days.
        """
        delay = None if delay is None else check_delay(delay)
        cause = self._blame or Cause(Reason.NACKED, "retry() was called")
        self.settle(Outcome(Verb.RETRY, delay=delay, cause=cause))

    def reject(self, reason: str) -> None:
        """This message can never succeed: straight to the dead letters, with ``reason``."""
        self.settle(Outcome(Verb.REJECT, cause=Cause(Reason.REJECTED, str(reason))))

    def release(self) -> None:
        """Put it back in the queue for another worker; not an attempt."""
        self.settle(RELEASE)

    def blame(self, cause: Cause) -> None:
        """From here on ``nack`` and ``retry`` give ``cause`` as their reason: the callback died of it."""
        self._blame = cause

    def settle(self, outcome: Outcome) -> None:
        """Settle with a full outcome; the verbs above call this.

        Raises:
            AlreadySettled: a verb was called before; nothing is sent.
        """
        if self._outcome is not None:
            raise AlreadySettled(
                f"{outcome.verb.name.lower()}() was called on a message that was settled with "
                f"{self._outcome.verb.name.lower()}(); nothing was sent"
            )
        self._settle(outcome)  # first: what cannot be sent has not settled anything
        self._outcome = outcome

    def __repr__(self) -> str:
        state = self._outcome.verb.name.lower() if self._outcome else "unsettled"
        return f"<MessageAdapter queue={self.queue!r} attempt={self.attempt} {len(self.body)} bytes, {state}>"
