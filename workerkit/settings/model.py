"""What an operator can write in ``config/workerkit.yaml``, declared once.

The types here are the reference: the validator, the JSON Schema, ``workerkit config show`` and docs/configuration.md
are made from them. What a task decides too is declared in ``workerkit.task_settings``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workerkit.declared import Count, Duration, Period, settings_of
from workerkit.task_settings import TaskSettings


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping in the YAML: unknown keys are errors."""


class BrokerSettings(_Section, frozen=True):
    """Where RabbitMQ is."""

    url: str | list[str] = "amqp://guest:guest@localhost:5672/%2F"
    """One AMQP URL, or several that are tried in turn. ``amqps://`` verifies the certificate and the host name;
    ``memory://`` is a broker inside the worker, for tries and tests."""
    heartbeat: Duration = 10.0
    """Time between heartbeats; the peer is given up after about two of them are missed. 0: none."""
    connection_timeout: Period = 10.0
    """How long one connection attempt may take, from TCP to the opened virtual host."""


class ExchangeSettings(_Section, frozen=True):
    """An exchange to declare."""

    type: str = "direct"
    """``direct``, ``topic``, ``fanout``, ``headers``, or one of a plugin."""
    durable: bool = True
    """Whether it outlives a restart of the broker."""
    arguments: dict[str, Any] = {}
    """Further ``x-`` arguments of the exchange."""


class BindingSettings(_Section, frozen=True):
    """How messages of an exchange come to the queue."""

    exchange: str
    """One that is listed under ``exchanges``, or an ``amq.…`` of the broker's own."""
    routing_key: str = ""
    """Which of its messages; a pattern for topic exchanges."""
    arguments: dict[str, Any] = {}
    """What a headers exchange matches by."""


class DelayedRetrySettings(_Section, frozen=True):
    """Native delayed retry of quorum queues, used on RabbitMQ 4.3 and later; older servers get retry queues."""

    min: Period
    """Delay of the first retry; the broker multiplies it by the number of failures."""
    max: Duration
    """The longest delay that this may come to."""


class QueueSettings(_Section, frozen=True):
    """A queue to declare. One that is not listed has these defaults."""

    type: Literal["quorum", "classic"] = "quorum"
    """Quorum queues are replicated, and count how often a message was returned."""
    bindings: list[BindingSettings] = []
    """Exchanges that it gets messages from, besides those sent to it by name."""
    arguments: dict[str, Any] = {}
    """Further ``x-`` arguments of the queue."""
    delayed_retry: DelayedRetrySettings | None = None
    """Let RabbitMQ 4.3 and later delay the retries itself."""
    declare: bool = True
    """False: never declare, only check that it exists (for least-privilege users)."""


class _WorkerSection(_Section, frozen=True):
    task: str
    """``module:Class``, imported from the project root."""
    instances: Count = 1
    """How many of it Supervisor keeps alive."""
    environment: dict[str, str] = {}
    """Environment variables of its processes."""


if TYPE_CHECKING:

    class WorkerSettings(TaskSettings, _WorkerSection, frozen=True):
        """As below, for type checkers, which do not see the fields of a ``defstruct``."""

else:
    WorkerSettings = msgspec.defstruct(
        "WorkerSettings",
        settings_of(TaskSettings),
        bases=(_WorkerSection,),
        namespace={"__doc__": "One worker. Keys that are absent keep what the task's class says."},
        module=__name__,
        frozen=True,
    )


def queues_of(worker: WorkerSettings) -> tuple[str, ...]:
    """The queues that the YAML gives a worker; none when only its task names them."""
    return tuple(worker.queues) or ((worker.queue,) if worker.queue else ())


class SupervisorSettings(_Section, frozen=True):
    """How Supervisor runs the workers."""

    stopwaitsecs: Annotated[int, Meta(ge=3)] = 30
    """Seconds Supervisor waits before it kills; a worker's own deadline is three seconds shorter."""
    user: str | None = None
    """The user that the workers run as, when Supervisor is started by root."""
    environment: dict[str, str] = {}
    """Environment variables of all workers."""


class LoggingSettings(_Section, frozen=True):
    """What workers write to stdout."""

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The least important lines that are written."""
    format: Literal["auto", "json", "console"] = "auto"
    """``auto``: console on a terminal, JSON otherwise."""


class Settings(_Section, frozen=True):
    """The whole file."""

    broker: BrokerSettings = BrokerSettings()
    """Where RabbitMQ is."""
    exchanges: dict[str, ExchangeSettings] = {}
    """Exchanges to declare, by name."""
    queues: dict[str, QueueSettings] = {}
    """Queues to declare, by name; each comes with its retry queues and its dead-letter queue."""
    workers: dict[str, WorkerSettings] = {}
    """The workers, by name."""
    supervisor: SupervisorSettings = SupervisorSettings()
    """How Supervisor runs them."""
    logging: LoggingSettings = LoggingSettings()
    """What they write to stdout."""
