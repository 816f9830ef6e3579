"""One dead letter: what it says of its end, whether it is meant, what is shown of it."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, Protocol

from workerkit import headers
from workerkit.ports import Delivery
from workerkit.properties import Properties, decode

UNKNOWN = "unknown"
"""The reason of a message that nothing says anything about: somebody published it here."""


class DeadLetter:
    """One message of a dead-letter queue.

    What workerkit wrote comes first; what the broker wrote (``x-death``), when a policy dead-lettered it, is second.

    Args:
        number: 1-based place in the queue.
        delivery: as it came.
    """

    def __init__(self, number: int, delivery: Delivery) -> None:
        self.number = number
        self.delivery = delivery

    @cached_property
    def properties(self) -> Properties:
        """Decoded; empty when they cannot be read."""
        try:
            return decode(self.delivery.raw_properties)
        except ValueError as error:
            return Properties(headers={headers.MESSAGE: f"its properties cannot be read: {error}"})

    @property
    def message_id(self) -> str | None:
        return self.properties.message_id

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.delivery.body)

    @property
    def reason(self) -> str:
        """The value of ``workerkit-reason``; the broker's ``rejected``, ``expired``, ``maxlen``, ``delivery_limit``."""
        return self._said(headers.REASON) or str(self._death.get("reason") or UNKNOWN)

    @property
    def exception(self) -> str | None:
        return self._said(headers.EXCEPTION)

    @property
    def message(self) -> str | None:
        """One line on what happened."""
        if self._said(headers.MESSAGE) is None and self._death:
            return f"dead-lettered by RabbitMQ from queue {self._death.get('queue')!r}"
        return self._said(headers.MESSAGE)

    @property
    def traceback(self) -> str | None:
        return self._said(headers.TRACEBACK)

    @property
    def attempt(self) -> int | None:
        """Number of the run that was the last."""
        value = self.properties.headers.get(headers.ATTEMPT)
        return value if isinstance(value, int) else None

    @property
    def failed_at(self) -> str | None:
        """ISO 8601, UTC."""
        time = self._death.get("time")
        broker_time = time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(time, datetime) else None
        return self._said(headers.FAILED_AT) or broker_time

    @property
    def fingerprint(self) -> bytes:
        """Tells this message from others, and stays the same however often the broker hands it out."""
        text = repr((self.message_id, self.failed_at, self.properties.timestamp)).encode()
        return hashlib.blake2b(text + self.delivery.body, digest_size=16).digest()

    def _said(self, name: str) -> str | None:
        value = self.properties.headers.get(name)
        return None if value is None else str(value)

    @cached_property
    def _death(self) -> dict[str, Any]:
        """The broker's latest entry."""
        deaths = self.properties.headers.get("x-death")
        latest = deaths[0] if isinstance(deaths, list) and deaths else None
        return latest if isinstance(latest, dict) else {}


class Select(Protocol):
    """Which dead letters are meant."""

    @property
    def limit(self) -> int | None:
        """How many at most; None for all."""

    def __call__(self, letter: DeadLetter) -> bool:
        """Whether this one is. Asked once for each."""


@dataclass(frozen=True)
class Matching:
    """Selects what fits everything that is given.

    Attributes:
        ids: message ids; empty for any.
        reasons: empty for any.
        numbers: places in the queue; empty for any.
        limit: how many at most; None for all.
    """

    ids: Collection[str] = ()
    reasons: Collection[str] = ()
    numbers: Collection[int] = ()
    limit: int | None = None

    def __call__(self, letter: DeadLetter) -> bool:
        return (
            (not self.ids or letter.message_id in self.ids)
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.numbers or letter.number in self.numbers)
        )


class Exactly:
    """Selects the messages that were selected before, and nothing that came after."""

    def __init__(self, fingerprints: Collection[bytes]) -> None:
        self._expected = Counter(fingerprints)
        self.limit: int | None = len(fingerprints)

    def __call__(self, letter: DeadLetter) -> bool:
        fingerprint = letter.fingerprint
        if self._expected[fingerprint] == 0:
            return False
        self._expected[fingerprint] -= 1
        return True


@dataclass(frozen=True, slots=True)
class Summary:
    """A dead letter in one line.

    Attributes:
        number: 1-based place in the queue.
        message_id: None if it has none.
        reason: why it died.
        exception: the type that the callback raised.
        message: one line on what happened.
        attempt: number of the run that was the last.
        failed_at: ISO 8601, UTC.
        size: bytes of the body.
    """

    number: int
    message_id: str | None
    reason: str
    exception: str | None
    message: str | None
    attempt: int | None
    failed_at: str | None
    size: int


@dataclass(frozen=True, slots=True)
class Details(Summary):
    """A dead letter in full.

    Attributes:
        properties: AMQP properties that are set, headers not among them.
        headers: without the traceback.
        body: as text, or in base64.
        body_encoding: which of the two.
        traceback: of the exception.
    """

    properties: dict[str, Any]
    headers: dict[str, Any]
    body: str
    body_encoding: Literal["utf-8", "base64"]
    traceback: str | None


def summary(letter: DeadLetter) -> Summary:
    """What a list shows of a dead letter."""
    return Summary(**_summarised(letter))


def details(letter: DeadLetter) -> Details:
    """All that there is to show of a dead letter."""
    properties = asdict(letter.properties)
    others = {key: value for key, value in properties.pop("headers").items() if key != headers.TRACEBACK}
    encoding: Literal["utf-8", "base64"] = "utf-8"
    try:
        body = letter.delivery.body.decode()
    except UnicodeDecodeError:
        encoding, body = "base64", base64.b64encode(letter.delivery.body).decode()
    return Details(
        **_summarised(letter),
        properties={key: value for key, value in properties.items() if value is not None},
        headers=others,
        body=body,
        body_encoding=encoding,
        traceback=letter.traceback,
    )


def _summarised(letter: DeadLetter) -> dict[str, Any]:
    return {field.name: getattr(letter, field.name) for field in fields(Summary)}
