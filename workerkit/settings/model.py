"""What an operator can write in ``config/workerkit.yaml``, declared once.

The types here are the reference: the validator, the JSON Schema and ``workerkit config show`` are made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class Duration(float):
    """Seconds. Written with a unit (``500ms``, ``30s``, ``5m``, ``1h``, ``2d``); a bare number is seconds."""

    __slots__ = ()


class Size(int):
    """Bytes. Written with a unit (``512MiB``, ``1GiB``, ``64KiB``, ``100MB``); a bare number is bytes."""

    __slots__ = ()


Count = Annotated[int, Meta(ge=1)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping in the YAML: unknown keys are errors."""


class BrokerSettings(_Section, frozen=True):
    url: str | list[str] = "amqp://guest:guest@localhost:5672/%2F"
    """One AMQP URL, or several that are tried in turn. ``amqps://`` verifies the certificate and the host name."""
    heartbeat: Duration = Duration(10)
    """Seconds between heartbeats; the peer is given up after about two of them are missed."""
    connection_timeout: Duration = Duration(10)
    """Seconds one connection attempt may take, from TCP to the opened virtual host."""


class ExchangeSettings(_Section, frozen=True):
    type: str = "direct"
    durable: bool = True
    arguments: dict[str, Any] = {}


class BindingSettings(_Section, frozen=True):
    exchange: str
    routing_key: str = ""
    arguments: dict[str, Any] = {}


class DelayedRetrySettings(_Section, frozen=True):
    """Native delayed retry of quorum queues, used on RabbitMQ 4.3 and later; older servers get retry queues."""

    min: Duration
    """Delay of the first retry; the broker multiplies it by the number of failures."""
    max: Duration


class QueueSettings(_Section, frozen=True):
    type: Literal["quorum", "classic"] = "quorum"
    bindings: list[BindingSettings] = []
    arguments: dict[str, Any] = {}
    """Further ``x-`` arguments of the queue."""
    delayed_retry: DelayedRetrySettings | None = None
    declare: bool = True
    """False: never declare, only check that it exists (for least-privilege users)."""


class RetrySettings(_Section, frozen=True):
    max_attempts: Count = 5
    """Runs of one message, the first included."""
    delays: Annotated[tuple[Duration, ...], Meta(min_length=1)] = (Duration(5), Duration(30), Duration(300))
    """Delay after the first, second, … failed attempt; the last one repeats."""


class WorkerSettings(_Section, frozen=True):
    """One worker. Keys that are absent keep what the task's class says."""

    task: str
    """``module:Class``, imported from the project root."""
    queue: str | None = None
    instances: Count = 1
    ttl: Duration | None = None
    """How long one worker process may live; it ends between messages and Supervisor starts the next."""
    prefetch_count: Annotated[int, Meta(ge=1, le=65535)] | None = None
    callback_timeout: Duration | None = None
    """How long one callback may run before its executor is ended and the attempt counted."""
    memory_limit: Size | None = None
    """Data memory of the executor (RLIMIT_DATA)."""
    auto_ack: bool | None = None
    """Acknowledge on a normal return instead of requiring ``message.ack()``."""
    spare_memory_multiplier: Annotated[int, Meta(ge=0)] | None = None
    """MiB of address space kept back for ``shutdown()``."""
    retry: RetrySettings | None = None
    environment: dict[str, str] = {}


class SupervisorSettings(_Section, frozen=True):
    stopwaitsecs: Annotated[int, Meta(ge=3)] = 30
    """Seconds Supervisor waits before it kills; a worker's own deadline is three seconds shorter."""
    user: str | None = None
    environment: dict[str, str] = {}


class LoggingSettings(_Section, frozen=True):
    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """``auto``: console on a terminal, JSON otherwise."""


class Settings(_Section, frozen=True):
    """The whole file."""

    broker: BrokerSettings = BrokerSettings()
    exchanges: dict[str, ExchangeSettings] = {}
    queues: dict[str, QueueSettings] = {}
    workers: dict[str, WorkerSettings] = {}
    supervisor: SupervisorSettings = SupervisorSettings()
    logging: LoggingSettings = LoggingSettings()
