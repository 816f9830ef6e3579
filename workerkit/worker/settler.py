"""From what the task said to what the broker is told, and one log line about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workerkit.properties import decode_ids
from workerkit.retry import RetryPolicy, decide
from workerkit.settlement import Acknowledge, Cause, DeadLetter, Outcome, Release, RetryLater
from workerkit.worker.ports import Broker, Delivery

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


WriteEvents = Callable[[str, str, list[dict[str, Any]]], None]


class Settler:
    """Settles deliveries: acknowledgements in batches, retries and dead letters as publishes that must be confirmed.

    Args:
        broker: settles on the wire.
        log: one line per settled message goes here, bodies never.
        write_events: takes many events of one level and name at once: one for each acknowledged message.
        changed: called when something that was under way is done.
        failed: called when an error of ours left a message unsettled; only a restart hands it back.
    """

    def __init__(
        self,
        broker: Broker,
        log: FilteringBoundLogger,
        write_events: WriteEvents,
        changed: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._broker = broker
        self._log = log
        self._write_events = write_events
        self._log_each = log.is_enabled_for(20)
        self._changed = changed
        self._failed = failed
        self._publishing: set[asyncio.Task[None]] = set()
        self.policy = RetryPolicy()

    @property
    def busy(self) -> bool:
        """Whether retries or dead letters still wait for the broker's confirmation."""
        return bool(self._publishing)

    def settle(self, delivery: Delivery, outcome: Outcome, duration_ns: int) -> None:
        """Decide what an outcome means for this attempt and see to it."""
        settlement = decide(outcome, delivery.attempt, self.policy)
        match settlement:
            case Acknowledge():
                self.acknowledge([(delivery, duration_ns)])
            case Release():
                if self._broker.holds(delivery):
                    self._write("info", "released", delivery, duration_ns)
                self.release([delivery])
            case RetryLater() | DeadLetter():
                task = asyncio.create_task(self._publish(delivery, settlement, outcome.cause, duration_ns))
                self._publishing.add(task)
                task.add_done_callback(self._done)

    def acknowledge(self, finished: list[tuple[Delivery, int]]) -> None:
        """Acknowledge messages, in as few frames as are true. Each comes with its duration in nanoseconds."""
        self._broker.ack([delivery for delivery, _ in finished])
        if self._log_each:
            events = [
                {"outcome": "acked", **describe(delivery), "duration_ms": round(duration_ns / 1e6, 3)}
                for delivery, duration_ns in finished
                if self._broker.holds(delivery)
            ]
            self._write_events("info", "message.settled", events)

    def release(self, deliveries: list[Delivery]) -> None:
        """Give messages back that were not started, or that the task released."""
        if deliveries:
            self._broker.release(deliveries)

    def abandon(self) -> None:
        """Stop waiting for confirmations: the adapter hands the originals back, so nothing is lost."""
        for task in self._publishing:
            task.cancel()

    async def _publish(
        self, delivery: Delivery, settlement: RetryLater | DeadLetter, cause: Cause | None, duration_ns: int
    ) -> None:
        about: dict[str, Any] = {}
        if cause is not None:
            about = {"reason": cause.reason.value, "cause": cause.message}
            if cause.exception:
                about["exc_type"] = cause.exception
            if cause.traceback:
                about["stack"] = cause.traceback
        if isinstance(settlement, RetryLater):
            if await self._broker.retry(delivery, settlement):
                self._write("warning", "retried", delivery, duration_ns, delay=settlement.delay, **about)
        elif await self._broker.dead_letter(delivery, settlement.cause):
            self._write("error", "dead-lettered", delivery, duration_ns, **about)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._publishing.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)
        self._changed()

    def _write(self, level: str, outcome: str, delivery: Delivery, duration_ns: int, **about: Any) -> None:
        getattr(self._log, level)(
            "message.settled",
            outcome=outcome,
            **describe(delivery),
            duration_ms=round(duration_ns / 1e6, 3),
            **about,
        )


def describe(delivery: Delivery | None) -> dict[str, Any]:
    """The keys by which a log line names a message."""
    if delivery is None:
        return {}
    about: dict[str, Any] = {
        "queue": delivery.queue,
        "delivery_tag": delivery.tag,
        "attempt": delivery.attempt,
        "redelivered": delivery.redelivered,
    }
    try:
        message_id, correlation_id = decode_ids(delivery.raw_properties)
    except ValueError:
        return about  # the publisher's fault, and no reason to lose the line
    if message_id is not None:
        about["message_id"] = message_id
    if correlation_id is not None:
        about["correlation_id"] = correlation_id
    return about
