"""One message as it stands in a queue in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workerkit.payload import body_decoder
from workerkit.properties import Properties, decode, decode_headers
from workerkit.settlement import Cause, Reason

_decode_body = body_decoder()


@dataclass(frozen=True, slots=True)
class Record:
    """One message as it stands in the broker, waiting or finished.

    Attributes:
        queue: the queue that it is in, or was in last; empty for what was published to an exchange.
        body: the payload.
        raw_properties: AMQP property flags and list, undecoded.
        exchange: where it was published to; a retry or a dead letter goes through the default exchange, ``""``.
        routing_key: with which key.
        attempt: 1-based number of the run that comes next, or that was the last.
        redelivered: it was handed out before.
        losses: how often it has lost the worker that had it.
        delay: for what a callback published, the seconds that it was asked to wait.
        due: for a delayed message, when it becomes ready, in seconds on the broker's clock.
        cause: for a dead letter or a delayed retry, why its last attempt failed.
    """

    queue: str
    body: bytes
    raw_properties: bytes = field(repr=False)
    exchange: str
    routing_key: str
    attempt: int
    redelivered: bool = False
    losses: int = 0
    delay: float | None = None
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
