"""Dead letters: what they say of their end, which of them are meant, and the way back."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.browse import Browser
from workerkit.brokers.rabbitmq.publisher import Publisher
from workerkit.brokers.rabbitmq.stream import Failure, Stream
from workerkit.properties import Properties, decode
from workerkit.worker import copies
from workerkit.worker.ports import Delivery

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
            return Properties(headers={"workerkit-message": f"its properties cannot be read: {error}"})

    @property
    def id(self) -> str | None:
        return self.properties.message_id

    @property
    def reason(self) -> str:
        """The value of ``workerkit-reason``; the broker's ``rejected``, ``expired``, ``maxlen``, ``delivery_limit``."""
        return self._said("reason") or str(self._death.get("reason") or UNKNOWN)

    @property
    def exception(self) -> str | None:
        return self._said("exception")

    @property
    def message(self) -> str | None:
        """One line on what happened."""
        if self._said("message") is None and self._death:
            return f"dead-lettered by RabbitMQ from queue {self._death.get('queue')!r}"
        return self._said("message")

    @property
    def traceback(self) -> str | None:
        return self._said("traceback")

    @property
    def attempt(self) -> int | None:
        """Number of the run that was the last."""
        value = self.properties.headers.get("workerkit-attempt")
        return value if isinstance(value, int) else None

    @property
    def failed_at(self) -> str | None:
        """ISO 8601, UTC."""
        time = self._death.get("time")
        broker_time = time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(time, datetime) else None
        return self._said("failed-at") or broker_time

    @property
    def fingerprint(self) -> bytes:
        """Tells this message from others, and stays the same however often the broker hands it out."""
        text = repr((self.id, self.failed_at, self.properties.timestamp)).encode()
        return hashlib.blake2b(text + self.delivery.body, digest_size=16).digest()

    def _said(self, name: str) -> str | None:
        value = self.properties.headers.get(f"{copies.PREFIX}{name}")
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
            (not self.ids or letter.id in self.ids)
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


@dataclass
class Result:
    """What became of the selected messages."""

    done: int = 0
    skipped: list[str] = field(default_factory=list)
    """Those that could not be copied, each with its reason. They are still in the queue."""
    found: set[str | None] = field(default_factory=set)
    """The ids of all that were selected."""
    failure: Failure | None = None
    interrupted: bool = False


T = TypeVar("T")


async def read(
    connection: Connection, queue: str, count: int, select: Select, keep: Callable[[DeadLetter], T]
) -> list[T]:
    """What ``keep`` makes of each that is selected among the first ``count`` messages; all stay in the queue.

    Raises:
        BrokerError: the connection or the queue is gone.
    """
    async with Browser(connection, queue, count) as browser:
        return [keep(letter) async for letter in _selected(browser, select)]


async def replay(
    connection: Connection,
    queue: str,
    count: int,
    select: Select,
    *,
    publisher: Publisher,
    target: str,
    progress: Callable[[], None],
) -> Result:
    """Publish the selected messages to ``target``, each as a first attempt, and take it out once the broker has that.

    Ends at the first that fails. A message may be in both queues when it is cut off in between, and is never in none.

    Args:
        connection: for reading; the publisher should have its own.
        queue: the dead-letter queue.
        count: how many of its messages to look at.
        select: which of those.
        publisher: for the copies.
        target: the queue they go to; must exist.
        progress: called after each.

    Raises:
        BrokerError: the dead letters cannot be read any more.
    """
    result = Result()
    stream = Stream(publisher)
    async with Browser(connection, queue, count) as browser:

        def take_out(delivery: Delivery) -> None:
            browser.ack(delivery)
            progress()

        try:
            async for letter in _selected(browser, select):
                result.found.add(letter.id)
                try:
                    properties = copies.replayed(letter.delivery.raw_properties)
                except ValueError as error:
                    result.skipped.append(f"number {letter.number} (id {letter.id or '-'}): {error}")
                    continue
                delivery = letter.delivery
                confirmed = partial(take_out, delivery)
                if not await stream.send(letter.number, target, properties, delivery.body, confirmed):
                    break
        except asyncio.CancelledError:
            result.interrupted = True
        finally:
            await publisher.drain()  # what is on its way is confirmed, or will be there twice
    result.done, result.failure = stream.confirmed, stream.failure
    return result


async def drop(connection: Connection, queue: str, count: int, select: Select, progress: Callable[[], None]) -> Result:
    """Delete the selected messages. Arguments and errors are those of ``replay``."""
    result = Result()
    async with Browser(connection, queue, count) as browser:
        try:
            async for letter in _selected(browser, select):
                browser.ack(letter.delivery)
                result.found.add(letter.id)
                result.done += 1
                progress()
        except asyncio.CancelledError:
            result.interrupted = True
    return result


async def _selected(browser: Browser, select: Select) -> AsyncIterator[DeadLetter]:
    number = selected = 0
    while (select.limit is None or selected < select.limit) and (delivery := await browser.next()):
        number += 1
        letter = DeadLetter(number, delivery)
        if select(letter):
            selected += 1
            yield letter
