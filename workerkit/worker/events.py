"""What each part of a worker tells the one above it: an executor its seat, a seat the pool, the pool the consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from workerkit.ports import Delivery
from workerkit.settlement import Outcome
from workerkit.worker.link import Aftermath
from workerkit.worker.loading import Resolved

if TYPE_CHECKING:
    from workerkit.worker.life import End, Life
    from workerkit.worker.seat import Seat


class LifeEvents(Protocol):
    """What the seat of an executor is told by it."""

    def on_ready(self, life: Life, resolved: Resolved) -> None:
        """It has loaded the task."""

    def on_load_failed(self, life: Life, text: str, trace: str, *, mendable: bool) -> None:
        """It could not load the task; ``mendable``: for a reason that may pass."""

    def on_acknowledged(self, life: Life, finished: list[Delivery]) -> None:
        """The task has acknowledged these."""

    def on_outcome(self, life: Life, delivery: Delivery, outcome: Outcome, aftermath: Aftermath | None) -> None:
        """The task has decided about one, in its callback or, with ``aftermath``, in its ``shutdown``."""

    def on_handed_back(self, deliveries: list[Delivery]) -> None:
        """These were taken back in the instant in which they were about to begin."""

    def on_look(self, life: Life, seconds: float) -> bool:
        """A look at its page: a callback has been running for so long. True: something waits for it to end."""

    def on_congested(self, congested: bool) -> None:
        """An executor takes its messages more slowly than they come; or no longer."""

    def on_line(self, line: bytes) -> None:
        """A finished log line."""

    def on_gone(self, life: Life, end: End) -> None:
        """It is gone."""


class SeatEvents(Protocol):
    """What the pool is told by one of its seats."""

    ending: bool
    """No other executor is to be started."""

    def number(self, count: int) -> int:
        """The first of so many new numbers for deliveries."""

    def on_ready(self, seat: Seat, resolved: Resolved) -> None:
        """Its executor is ready for messages."""

    def on_not_ready(self, seat: Seat) -> None:
        """Its executor did not start, or does not load the task in time."""

    def on_load_failed(self, text: str, trace: str, *, mendable: bool) -> None:
        """Its executor could not load the task."""

    def on_finished(self, seat: Seat, finished: list[Delivery]) -> None:
        """The callbacks of these have ended; they are settled."""

    def on_put_back(self, deliveries: list[Delivery]) -> None:
        """These are to run in another executor: that which had them is gone and it was not their doing."""

    def on_unstarted(self, deliveries: list[Delivery]) -> None:
        """These were not started and will not be."""

    def on_look(self, seat: Seat, seconds: float) -> bool:
        """A callback has been running for so long. True: something waits for it to end."""

    def on_congested(self, congested: bool) -> None:
        """An executor takes its messages more slowly than they come; or no longer."""

    def on_line(self, line: bytes) -> None:
        """A finished log line."""

    def on_gone(self, seat: Seat) -> None:
        """Its executor is gone."""


class PoolEvents(Protocol):
    """What the consumer is told."""

    def on_ready(self, resolved: Resolved) -> None:
        """An executor is ready for messages."""

    def on_load_failed(self, text: str, trace: str, *, fatal: bool) -> None:
        """An executor could not load the task. Fatal: the first one, for a reason that trying again cannot mend."""

    def on_unstarted(self, deliveries: list[Delivery]) -> None:
        """These were not started and will not be."""

    def on_finished(self, finished: list[Delivery]) -> None:
        """The callbacks of these have ended; they are settled."""

    def on_waiting(self, seconds: float) -> None:
        """Deliveries wait here while every executor is busy, one with a callback that has been running for so long."""

    def on_stalled(self) -> None:
        """No executor gets ready at present."""

    def on_congested(self, congested: bool) -> None:
        """An executor takes its messages more slowly than they come; or no longer."""

    def on_executor_lost(self) -> None:
        """The executor is gone and there can be no other one (``--inline``)."""

    def on_line(self, line: bytes) -> None:
        """A finished log line from an executor."""

    def on_change(self) -> None:
        """Something that somebody may be waiting for has happened."""
