"""The seams of a worker: what it needs of a broker (each adapter in ``workerkit.brokers`` fills that), and what the
keeper of its executor reports to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workerkit.message import Incoming
from workerkit.settlement import Cause, RetryLater
from workerkit.worker.loading import Resolved


@dataclass(slots=True)
class Delivery(Incoming):
    """One hand-over of a message to this worker, with its settlement identity.

    Attributes:
        channel: number of the channel incarnation that delivered it. Tags mean nothing on any other.
        tag: the delivery tag.
        seq: number on the link to the executor; 0 until it is forwarded.
    """

    channel: int = 0
    tag: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a worker consumes, resolved from its task and its settings."""

    worker: str
    queue: str
    prefetch_count: int
    delays: tuple[float, ...]


class BrokerEvents(Protocol):
    """What the worker is told by the broker. Every call comes from the event loop."""

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        """Messages arrived."""

    def on_channel_lost(self) -> None:
        """The channel is gone: the broker has requeued all that it delivered, nothing of it can be settled."""

    def on_failed(self, error: BaseException) -> None:
        """An error inside the adapter: it may no longer consume."""


class Broker(Protocol):
    """A connection that consumes one queue and settles what it delivers.

    The adapter reconnects by itself and for ever; a settlement for a channel that is gone is dropped and logged.
    """

    async def start(self, subscription: Subscription, events: BrokerEvents) -> None:
        """Declare what the queue needs and consume it; waits for as long as no broker answers.

        Raises:
            AccessRefused: the credentials, the virtual host or a permission were refused.
            TopologyMismatch: something exists with other arguments.
        """

    async def pause(self) -> None:
        """Take no new messages; those delivered stay ours."""

    async def resume(self) -> None:
        """Take messages again."""

    def hold(self, hold: bool) -> None:
        """Leave what has been sent to us in the network for a moment, or go on reading."""

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge finished messages, in as few frames as are true."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give messages back; not an attempt."""

    def holds(self, delivery: Delivery) -> bool:
        """Whether this delivery can still be settled: its channel is there."""

    async def retry(self, delivery: Delivery, later: RetryLater) -> bool:
        """See that the message comes back after its delay, then settle this delivery.

        Waits until the broker has taken responsibility, for as long as it takes: the original stays ours meanwhile.
        False: its channel went meanwhile, so the message is the broker's again.
        """

    async def dead_letter(self, delivery: Delivery, cause: Cause) -> bool:
        """Keep the message in the dead-letter queue, then settle this delivery. Waits and answers as ``retry`` does."""

    async def close(self) -> None:
        """Flush what was settled and close in order. Harmless when nothing was started."""


class Owner(Protocol):
    """What the keeper of the executor reports to."""

    def on_ready(self, resolved: Resolved) -> None:
        """An executor is ready for messages."""

    def on_load_failed(self, text: str, trace: str, *, fatal: bool) -> None:
        """An executor could not load the task. Fatal: the first one, for a reason that trying again cannot mend."""

    def on_unstarted(self, deliveries: list[Delivery]) -> None:
        """These were not started and will not be."""

    def on_stalled(self) -> None:
        """No executor gets ready at present."""

    def on_congested(self, congested: bool) -> None:
        """The executor takes its messages more slowly than they come; or no longer."""

    def on_executor_lost(self) -> None:
        """The executor is gone and there can be no other one (``--inline``)."""

    def on_line(self, line: bytes) -> None:
        """A finished log line from the executor."""

    def on_change(self) -> None:
        """Something that somebody may be waiting for has happened."""
