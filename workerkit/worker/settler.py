"""From what the task said to what the broker is told, and one log line about it when the broker has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workerkit.ports import Broker, Delivery, Settled
from workerkit.properties import decode_ids
from workerkit.retry import RetryPolicy, decide
from workerkit.settlement import (
    ACKNOWLEDGE,
    HAND_BACK,
    Acknowledge,
    Cause,
    DeadLetter,
    Outcome,
    Release,
    RetryLater,
    Settlement,
    Verb,
)
from workerkit.worker.logs import ConsumerLog


class Settler:
    """Hands settlements to the broker and writes a line for each when it is told that the broker has it.

    Args:
        broker: settles on the wire.
        log: one line per settled message goes here, bodies never.
        changed: called when the broker has answered.
    """

    def __init__(self, broker: Broker, log: ConsumerLog, changed: Callable[[], None]) -> None:
        self._broker = broker
        self._log = log.logger
        self._write_events = log.write_events
        self._log_each = log.logger.is_enabled_for(20)
        self._changed = changed
        self._unanswered = 0
        self.policy = RetryPolicy()

    @property
    def busy(self) -> bool:
        """Whether the broker has not answered for all."""
        return self._unanswered > 0

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Decide what an outcome means for this attempt and see to it."""
        settlement = decide(outcome, delivery, self.policy, alone=delivery.alone)
        self._unanswered += 1
        self._broker.settle([(delivery, settlement)])

    def acknowledge(self, finished: Sequence[Delivery]) -> None:
        """Acknowledge messages, in as few frames as are true."""
        self._unanswered += len(finished)
        self._broker.settle([(delivery, ACKNOWLEDGE) for delivery in finished])

    def hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Give messages back that nobody has started."""
        if deliveries:
            self._unanswered += len(deliveries)
            self._broker.settle([(delivery, HAND_BACK) for delivery in deliveries])

    # ---- what the broker answers

    def on_settled(self, settled: Sequence[Settled]) -> None:
        """The broker has these."""
        self._unanswered -= len(settled)
        acked = [delivery for delivery, settlement in settled if type(settlement) is Acknowledge]
        if acked and self._log_each:
            events = [
                {"outcome": "acked", **describe(delivery), "duration_ms": round(delivery.duration_ns / 1e6, 3)}
                for delivery in acked
            ]
            self._write_events("info", "message.settled", events)
        if len(acked) < len(settled):
            for delivery, settlement in settled:
                self._write(delivery, settlement)
        self._changed()

    def on_dropped(self, deliveries: Sequence[Delivery], why: str) -> None:
        """These were settled in vain: they are the broker's again."""
        self._unanswered -= len(deliveries)
        about = describe(deliveries[0]) if len(deliveries) == 1 else {"messages": len(deliveries)}
        self._log.warning("settle.dropped", why=why, **about)
        self._changed()

    def on_unpublished(self, delivery: Delivery, cause: Cause) -> None:
        """What was to be published with an acknowledgement was not taken: the attempt has failed."""
        self._unanswered -= 1
        self.settle(delivery, Outcome(Verb.NACK, cause=cause))

    def _write(self, delivery: Delivery, settlement: Settlement) -> None:
        match settlement:
            case Release(releases=releases, delay=delay) if releases:
                about: dict[str, Any] = {"delay": delay} if delay else {}
                level, outcome = self._log.info, "released"
            case RetryLater(delay=delay, cause=cause):
                level, outcome = self._log.warning, "retried"
                about = {"delay": delay, **_explain(cause)}
            case DeadLetter(cause=cause):
                level, outcome, about = self._log.error, "dead-lettered", _explain(cause)
            case _:
                return  # acknowledged, which has its line, or handed back without having been started
        duration_ms = round(delivery.duration_ns / 1e6, 3)
        level("message.settled", outcome=outcome, **describe(delivery), duration_ms=duration_ms, **about)


def _explain(cause: Cause) -> dict[str, Any]:
    about: dict[str, Any] = {"reason": cause.reason.value, "cause": cause.message}
    if cause.exception:
        about["exc_type"] = cause.exception
    if cause.traceback:
        about["stack"] = cause.traceback
    return about


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
