"""The settings of a worker, each declared once: name, type, bounds, unit, default and meaning.

From this come the attributes of ``WorkerTask``, the keys below ``workers`` in the YAML, their checks, the JSON Schema,
``run --set``, ``config show --origin``, what an executor answers, and docs/configuration.md.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from workerkit.declared import Count, Period, Size, settings_of
from workerkit.retry import RetryPolicy

Weight = Annotated[int, Meta(ge=1, le=1000)]
Weights = Annotated[dict[str, Weight], Meta(title="a mapping from queues to weights")]
_Select = Annotated[
    str,
    Meta(
        pattern=r"^(weighted|strict|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)$",
        title="`weighted`, `strict` or `package.module:Strategy`",
    ),
]


class _OneQueue:
    queue: str | None = None
    """The queue to consume; ``set_queue`` in ``initialize`` says the same."""


class ResolvedSettings:
    """The settings that reach the consumer as they are."""

    queues: Weights = {}  # noqa: RUF012 - a setting: assigned as a whole, and copied for each task
    """Several queues with their weights, in place of ``queue``: one of weight 20 gets four times the share of one of 5
    while both have messages. ``set_queues`` in ``initialize`` says the same."""
    select: _Select = "weighted"
    """Which queue the next message is taken from: ``weighted`` by share, ``strict`` from the highest weight that has
    one, or a class of yours."""
    starve_after: Period | None = 60.0
    """Under ``strict``, a message that has waited in the worker for so long goes before higher ones, once; null: never.
    """
    executors: Annotated[int, Meta(ge=1, le=64)] = 1
    """Processes that run callbacks, per instance."""
    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Callbacks at once per executor; more than one needs ``async def callback``."""
    prefetch_count: Annotated[int, Meta(ge=1, le=65535)] | Literal["auto"] = "auto"
    """Messages the broker hands out ahead of their acknowledgement. ``auto``: as many as run in about 100 ms."""
    ttl: Period | None = None
    """How long one worker process may live. It ends between messages; Supervisor starts the next."""
    callback_timeout: Period | None = None
    """How long one callback may run before it is ended and the attempt counted as failed."""
    memory_limit: Size | None = None
    """Data memory (RLIMIT_DATA) of a process that runs callbacks; without one, 90 % of the cgroup's limit."""
    max_messages: Count | None = None
    """An executor is replaced after so many messages, between two of them; the connection stays."""
    recycle_memory: Size | None = None
    """An executor is replaced when its resident memory is above this, between two messages; the connection stays."""
    auto_ack: bool = False
    """Acknowledge on a normal return of the callback, instead of requiring ``message.ack()``."""
    spare_memory_multiplier: Annotated[int, Meta(ge=0)] = 16
    """MiB kept back for ``shutdown``; read by ``initialize``. It takes address space, no resident memory."""
    max_losses: Annotated[int, Meta(ge=1, le=500)] = 10
    """A message that has taken its whole worker along more often than this is a dead letter; counted on quorum queues.
    """
    on_lost: Literal["continue", "end"] = "continue"
    """What happens to a callback whose message became the broker's again: it may finish, or it is ended."""


class TaskSettings(ResolvedSettings, _OneQueue):
    """All settings that a task's class, the YAML, ``initialize`` and the command line can give."""

    retry: RetryPolicy = RetryPolicy()
    """How often and how long apart a failing message is tried."""


SETTING_NAMES: Final = tuple(setting.name for setting in settings_of(TaskSettings))
