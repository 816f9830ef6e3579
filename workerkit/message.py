"""One delivery as the user's callback sees it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Unpack

from workerkit import headers
from workerkit.errors import AlreadySettled
from workerkit.outgoing import MessageOptions, Outgoing, compose
from workerkit.properties import Properties, decode, decode_headers
from workerkit.settlement import ACK, RELEASE, Cause, Outcome, Reason, Verb, check_delay


@dataclass(slots=True)
class Incoming:
    """The facts of one delivery, as they came over the wire.

    ``attempt`` is the 1-based number of this run, ``raw_properties`` are AMQP's property flags and list, undecoded, and
    ``redelivered`` is the broker's hint, which is never used to count.
    """

    queue: str
    exchange: str
    routing_key: str
    redelivered: bool
    attempt: int
    raw_properties: bytes
    body: bytes


class Handle(Protocol):
    """How a message reaches whoever gave it out."""

    def settle(self, outcome: Outcome) -> None:
        """Take what was decided, once."""

    @property
    def lost(self) -> bool:
        """Whether the message is the broker's again."""


_UNSET: Any = object()
_TRACE_CONTEXT = ("traceparent", "tracestate", "baggage")
"""Headers that say which trace a message belongs to (W3C)."""
_LONGEST_ID = 255
"""Bytes of a message id that AMQP can carry."""


class MessageAdapter:
    """A message with the verbs that settle it; each message takes exactly one verb, once.

    A second verb raises ``AlreadySettled`` and changes nothing on the wire. Headers and properties are decoded when
    they are first asked for, ``data`` likewise.
    """

    __slots__ = (
        "_blame",
        "_data",
        "_decode_body",
        "_handle",
        "_headers",
        "_incoming",
        "_outcome",
        "_properties",
        "_published",
    )

    def __init__(
        self,
        incoming: Incoming,
        handle: Handle,
        decode_body: Callable[[bytes, str | None, str | None], Any],
        outcome: Outcome | None = None,
    ) -> None:
        self._incoming = incoming
        self._handle = handle
        self._decode_body = decode_body
        self._outcome = outcome
        self._properties: Properties | None = None
        self._headers: dict[str, Any] | None = None
        self._data: Any = _UNSET
        self._blame: Cause | None = None
        self._published: list[Outgoing] | None = None

    @property
    def body(self) -> bytes:
        """The payload as it was published."""
        return self._incoming.body

    @property
    def data(self) -> Any:
        """The body decoded by ``content_type``: JSON (also when none is given), text or bytes. Of the task's
        ``payload_type``, where that is set.

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
        """RabbitMQ's hint that somebody may have seen this message before; ``attempt`` is the count to rely on."""
        return self._incoming.redelivered

    @property
    def attempt(self) -> int:
        """1-based number of this run; attempts that ended in the death of the process are counted."""
        return self._incoming.attempt

    @property
    def age(self) -> float | None:
        """Seconds since it was published, by the clocks of two machines; None when no timestamp says so."""
        published_at = self.properties.timestamp
        return None if published_at is None else max(0.0, time.time() - published_at)

    @property
    def lost(self) -> bool:
        """Whether the message is the broker's again, because the connection that brought it is gone.

        Somebody else may be working on it, and no verb reaches the broker any more: a long callback can stop here.
        """
        return self._handle.lost

    @property
    def settled(self) -> bool:
        """Whether a verb was called."""
        return self._outcome is not None

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

    def publish(self, queue: str | None, data: Any = None, **options: Unpack[MessageOptions]) -> None:
        """Publish a message together with the acknowledgement of this one.

        It is kept back until then. With ``ack`` the worker publishes all that was given here, waits until the broker
        has confirmed every one, and only then acknowledges this message; what cannot be routed, or is refused, makes
        the attempt fail. With any other verb, an exception or a death nothing is published.

        Args:
            queue: the name of the queue it is for; None when an ``exchange`` routes it.
            data: the body as JSON: anything msgspec encodes.
            options: as for ``Publisher.publish``. Unless given, ``message_id`` is this message's with ``/1``, ``/2`` …
                for the first, second … publish here, so that what another attempt publishes once more can be
                recognised (random when this message has none), ``correlation_id`` is this message's, or else its id,
                and so are the headers ``traceparent``, ``tracestate`` and ``baggage``.

        Raises:
            AlreadySettled: a verb was called before.
            TypeError: a value has the wrong type, or ``data`` cannot be written as JSON.
            ValueError: a value cannot be sent, or two exclude each other, or this message's own properties are broken.
        """
        if self._outcome is not None:
            raise _too_late("publish", self._outcome)
        published = self._published or []
        cause_id = self.message_id
        if options.get("message_id") is None and cause_id is not None:
            message_id = f"{cause_id}/{len(published) + 1}"
            if len(message_id.encode()) > _LONGEST_ID:  # a message that has passed itself on a hundred times, say
                message_id = uuid.uuid5(uuid.NAMESPACE_OID, message_id).hex
            options["message_id"] = message_id
        options["correlation_id"] = options.get("correlation_id") or self.correlation_id or cause_id
        trace = {name: self.headers[name] for name in _TRACE_CONTEXT if name in self.headers}
        options["headers"] = {**trace, **(options.get("headers") or {})}
        self._published = [*published, compose(queue, data, **options)]

    def blame(self, cause: Cause) -> None:
        """From here on ``nack`` and ``retry`` give ``cause`` as their reason: the callback died of it."""
        self._blame = cause

    def settle(self, outcome: Outcome) -> None:
        """Settle with a full outcome; the verbs above call this.

        Raises:
            AlreadySettled: a verb was called before; nothing is sent.
        """
        if self._outcome is not None:
            raise _too_late(outcome.verb.name.lower(), self._outcome)
        if self._published is not None and outcome.verb is Verb.ACK:
            outcome = replace(outcome, publish=tuple(self._published))
        self._handle.settle(outcome)  # first: what cannot be sent has not settled anything
        self._outcome = outcome

    def __repr__(self) -> str:
        state = self._outcome.verb.name.lower() if self._outcome else "unsettled"
        return f"<MessageAdapter queue={self.queue!r} attempt={self.attempt} {len(self.body)} bytes, {state}>"


def _too_late(verb: str, settled: Outcome) -> AlreadySettled:
    first = settled.verb.name.lower()
    return AlreadySettled(f"{verb}() was called on a message that was settled with {first}(); nothing was sent")
