"""What operators' commands need of a broker. Each adapter fills it; ``workerkit.operations.brokers`` chooses one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from workerkit.ports import Delivery

QueueRole = Literal["queue", "retry", "dead"]


@dataclass(frozen=True, slots=True)
class QueueReport:
    """One queue of the broker: what it is derived to be, and what it holds.

    Attributes:
        name: as the broker knows it.
        role: ``queue`` is the one that workers consume, ``retry`` one in which messages wait for it, ``dead`` the one
            that keeps its dead letters.
        of: the queue that workers consume.
        type: such as ``quorum``.
        arguments: what it is, or would be, declared with.
        exists: whether the broker has it. What follows is None where it does not, or where the broker does not tell.
        ready: messages that wait for a consumer.
        unacked: messages that consumers hold.
        consumers: how many consume it.
    """

    name: str
    role: QueueRole
    of: str
    type: str
    arguments: Mapping[str, Any]
    exists: bool
    ready: int | None
    unacked: int | None
    consumers: int | None


@dataclass(frozen=True, slots=True)
class DeclaredExchange:
    """An exchange is there as it is configured."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class DeclaredQueue:
    """A queue is there as it is configured."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Bound:
    """A queue is bound to an exchange."""

    queue: str
    exchange: str
    routing_key: str


Declared = DeclaredExchange | DeclaredQueue | Bound


class Administration(Protocol):
    """A connection to the broker for the length of one command. Every method raises BrokerError when it is gone."""

    async def look(self, queue: str, delays: Sequence[float]) -> list[QueueReport]:
        """A task queue with its retry queues, for these delays in seconds, and its dead-letter queue, in this order."""

    async def declare(self, queue: str, delays: Sequence[float]) -> list[Declared]:
        """Make sure that a task queue is there with all it needs; doing it again is harmless.

        Raises:
            TopologyMismatch: something exists with other arguments and was left as it is; the rest is there now.
            ConfigurationError: the broker takes no queue with such arguments.
            AccessRefused: the user may not.
        """

    async def ready(self, queue: str) -> int:
        """How many messages of exactly this queue wait for a consumer.

        Raises:
            QueueNotFound: there is no such queue; the text says what makes it.
        """

    async def purge(self, queue: str) -> int:
        """Delete the ready messages of exactly this queue; returns how many.

        Raises:
            QueueNotFound: there is no such queue.
        """

    def browse(self, queue: str, count: int) -> AbstractAsyncContextManager[Browsing]:
        """Look at up to ``count`` messages of a queue. What was not removed is there again afterwards."""

    def replayed(self, delivery: Delivery) -> bytes:
        """Properties of a dead letter's copy that is a first attempt, without the story of its death.

        Raises:
            ValueError: it cannot be copied; the text says why.
        """


class Browsing(Protocol):
    """The messages of a queue in the broker's order. Whatever breaks, none that is merely looked at is lost."""

    async def next(self) -> Delivery | None:
        """The next message, or None after the last. Raises BrokerError when the queue is gone."""

    def ack(self, delivery: Delivery) -> None:
        """Take this message out for good. Raises BrokerError when it is the broker's again."""
