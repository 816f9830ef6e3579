"""The seams of a worker: what it needs of a broker, and what it is told by one.

An adapter in ``workerkit.brokers`` fills ``Broker``; which one is chosen by the scheme of the URL, in ``wiring``.
Nothing here is any broker's own. A *source* is one queue that is consumed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workerkit.message import Incoming
from workerkit.settlement import Cause, Settlement


@dataclass(slots=True)
class Delivery(Incoming):
    """One hand-over of a message to this worker.

    Attributes:
        receipt: by which the adapter knows it again, and may name it in ``on_lost``. Deliveries that can only be lost
            together (those of one AMQP channel, say) may share one.
        tag: the adapter's number of this hand-over, for log lines.
        seq: the worker's number of it, rising in the order in which executors get them; 0 until one does.
        slot: its place in the page of the executor that has it.
        duration_ns: how long its callback took, once it is over.
        alone: no other callback may run beside it in its process.
        lost: it is the broker's again while its callback runs, or ran.
    """

    receipt: Any = None
    tag: int = 0
    seq: int = 0
    slot: int = 0
    duration_ns: int = 0
    alone: bool = False
    lost: bool = False


Settled = tuple[Delivery, Settlement]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker consumes, resolved from its task and its settings.

    Attributes:
        worker: its name, which dead letters tell.
        queues: its sources.
        delays: of its retry policy, in seconds.
        max_losses: how often a message may lose its whole worker before it is a dead letter with reason ``lost``; kept
            by adapters whose queues count that.
        max_attempts: of its retry policy: where a queue counts losses as attempts, those beyond it can only be losses.
    """

    worker: str
    queues: tuple[str, ...]
    delays: tuple[float, ...]
    max_losses: int = 10
    max_attempts: int = 5


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What differs between brokers, and between queues of one.

    Attributes:
        longest_delay: seconds for which a message can be made to wait.
        largest_body: bytes of the biggest message; None when nothing is known to limit it.
        lease: seconds after which an unsettled delivery is given to somebody else unless it is renewed; None for no
            such limit.
        ordered: the queue's meaning depends on its order, so no more than one message is taken ahead.
        counts_losses: the broker knows how often a message has lost its whole worker.
        shared: another process can consume the same queue.
    """

    longest_delay: float
    largest_body: int | None = None
    lease: float | None = None
    ordered: bool = False
    counts_losses: bool = False
    shared: bool = True


class BrokerEvents(Protocol):
    """What the worker is told by the broker. Every call comes from the event loop."""

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        """Messages arrived, all from one source, in its order."""

    def on_settled(self, settled: Sequence[Settled]) -> None:
        """The broker has these settlements. The moment at which log lines are written and counters move."""

    def on_dropped(self, deliveries: Sequence[Delivery], why: str) -> None:
        """These were settled too late, or could not be: each is the broker's again."""

    def on_unpublished(self, delivery: Delivery, cause: Cause) -> None:
        """What was to be published with the acknowledgement was not taken. The delivery is still to be settled."""

    def on_lost(self, receipts: Collection[Any]) -> None:
        """Every unsettled delivery with one of these receipts is the broker's again, and cannot be settled any more."""

    def on_failed(self, error: BaseException) -> None:
        """An error inside the adapter: it may no longer consume."""


class Broker(Protocol):
    """Sources to consume and a way to settle what they deliver.

    The adapter reconnects by itself and for ever, and takes again what it was last told to ``take``. Each delivery that
    is handed to ``settle`` is answered exactly once: by ``on_settled``, ``on_dropped`` or ``on_unpublished``.
    """

    async def start(self, plan: Plan, events: BrokerEvents) -> None:
        """Connect and see that the queues are there; waits for as long as no broker answers. Takes nothing yet.

        Raises:
            AccessRefused: the credentials, the virtual host or a permission were refused.
            ConfigurationError: a queue is missing, or TopologyMismatch: something exists with other arguments.
        """

    def capabilities(self, queue: str) -> Capabilities:
        """Of one source, once started."""

    async def take(self, queue: str, window: int) -> None:
        """Have at most about ``window`` unsettled deliveries of this source from now on.

        0: no more. When that returns, none is on its way any more, or the source is not there at present. Those that
        were delivered stay ours. Calls for one source come one after the other. A loss of connection is not an error.
        """

    async def wanted_elsewhere(self, queue: str) -> bool:
        """Whether another consumer could take what is given back to this queue now. False when that is not known."""

    def hold(self, hold: bool) -> None:
        """Leave what has been sent to us in the network for a moment, or go on reading."""

    def settle(self, batch: Sequence[Settled]) -> None:
        """Settle deliveries, in as few calls as are true.

        Until the broker has taken responsibility for what a settlement publishes (a copy for a retry, a dead letter,
        what goes with an acknowledgement), the original stays ours, for as long as it takes.
        """

    async def close(self, patience: float) -> None:
        """End in order. Harmless when nothing was started.

        What waits for a confirmation gets it within ``patience`` seconds or is given back. Returns when the broker has
        answered that it holds all settlements, or after ``patience``; what is uncertain then is logged with its ids.
        """
