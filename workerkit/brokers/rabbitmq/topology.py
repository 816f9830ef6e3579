"""Which objects a queue needs on the broker: derived from the settings, declared elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workerkit.envelope import DEAD_SUFFIX, dead_queue_name, is_dead_queue_name
from workerkit.settings.model import BindingSettings, ExchangeSettings, QueueSettings
from workerkit.settings.units import format_duration
from workerkit.settlement import MAX_DELAY

EXPLICIT_RETRY_GRACE = 600.0
"""Seconds for which a retry queue made for one explicit delay outlives that delay, unless it is used again."""

_RETRY_INFIX = ".retry."
_NO_DELIVERY_LIMIT = 1_000_000
"""Returns of one message that never happen. Without a limit of its own, a queue may have the broker's, of 20."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue with its arguments and bindings."""

    name: str
    arguments: Mapping[str, Any]
    bindings: tuple[BindingSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that one task queue needs, in the order in which it must be declared."""

    queue: Queue
    dead: Queue
    retries: tuple[Queue, ...]
    exchanges: Mapping[str, ExchangeSettings]

    @property
    def queues(self) -> tuple[Queue, ...]:
        """The targets of dead letters and retries first: a message must never find them missing."""
        return (self.dead, self.queue, *self.retries)


def retry_queue_name(queue: str, delay: float) -> str:
    """Where messages of ``queue`` wait for ``delay`` seconds."""
    return f"{queue}{_RETRY_INFIX}{format_duration(delay)}"


def main_queue_name(name: str) -> str:
    """The queue that workers consume, from its dead-letter queue's name, one of its retry queues', or its own."""
    if is_dead_queue_name(name):
        return name.removesuffix(DEAD_SUFFIX)
    return name.rpartition(_RETRY_INFIX)[0] or name


def derive(
    name: str,
    settings: QueueSettings,
    exchanges: Mapping[str, ExchangeSettings],
    delays: Iterable[float],
    *,
    native: bool,
) -> Topology:
    """Derive the objects of the task queue ``name``.

    Args:
        name: the queue that workers consume.
        settings: its section of the configuration.
        exchanges: all configured exchanges; those that bindings name are declared with the queue.
        delays: retry delays of all workers that consume it, in seconds.
        native: the broker delays retries by itself (quorum queue with ``delayed_retry``, RabbitMQ 4.3 and later).
    """
    arguments: dict[str, Any] = {"x-queue-type": settings.type, **settings.arguments}
    if native and settings.delayed_retry is not None:
        arguments |= {
            "x-delayed-retry-type": "failed",
            "x-delayed-retry-min": _milliseconds(settings.delayed_retry.min),
            "x-delayed-retry-max": _milliseconds(settings.delayed_retry.max),
            # Failures are counted by the broker here; the default limit of 20 would drop a message without a trace.
            "x-delivery-limit": _NO_DELIVERY_LIMIT,
        }
    return Topology(
        queue=Queue(name, arguments, tuple(settings.bindings)),
        dead=Queue(
            dead_queue_name(name),
            # Looking at dead letters hands them out and takes them back, and each such return counts towards the
            # delivery limit on most versions: with the default of 20 (RabbitMQ 4.0), looking twenty times drops them.
            {"x-queue-type": "quorum", "x-delivery-limit": _NO_DELIVERY_LIMIT},
        ),
        retries=() if native else tuple(retry_queue(name, delay) for delay in sorted(set(delays))),
        exchanges={
            binding.exchange: exchanges[binding.exchange]
            for binding in settings.bindings
            if binding.exchange in exchanges
        },
    )


def retry_queue(queue: str, delay: float) -> Queue:
    """A queue without consumers whose messages go back to ``queue`` when their time is up.

    Always a quorum queue that dead-letters at least once: the default strategy re-publishes without confirms
    (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering), and a retry must not be lost on its way back.
    """
    return Queue(
        retry_queue_name(queue, delay),
        {
            "x-queue-type": "quorum",
            "x-message-ttl": _milliseconds(delay),
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": queue,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def nearest_declared(declared: Iterable[float], delay: float) -> float:
    """Of the delays that have a queue, one at least, the one to use where none may be made; of two, the longer."""
    return min(declared, key=lambda known: (abs(known - delay), -known))


def explicit_retry_queue(queue: str, delay: float) -> Queue:
    """A retry queue for a delay that no policy names; it disappears when it has not been declared for a while.

    The delay is rounded up to two significant digits: with jitter in it, every message would get a queue of its own.

    ``x-expires`` counts from the last declaration, and drops messages that still wait: so it is declared before every
    publish, and outlives the delay.
    """
    delay = _two_digits(delay)
    base = retry_queue(queue, delay)
    expires = _milliseconds(min(2 * delay, MAX_DELAY) + EXPLICIT_RETRY_GRACE)
    return Queue(f"{base.name}.once", {**base.arguments, "x-expires": expires})


def _two_digits(seconds: float) -> float:
    """Rounded up, to whole milliseconds at least: 0.7 stays, 123.4 becomes 130."""
    milliseconds = _milliseconds(seconds)
    step: int = 10 ** max(0, len(str(milliseconds)) - 2)
    return min(-(-milliseconds // step) * step / 1000, MAX_DELAY)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
