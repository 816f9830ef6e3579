"""What a user subclasses."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from types import MappingProxyType
from typing import Any

from workerkit.log import TaskLogger
from workerkit.message import MessageAdapter
from workerkit.retry import RetryPolicy
from workerkit.settlement import Cause
from workerkit.shutdown import ShutdownHelper


class WorkerTask:
    """One kind of work: subclass it, implement ``callback``, list it in the YAML.

    The attributes below are settings. Each can be set as a class attribute, in the YAML, or in ``initialize``; the
    later of these wins, and the command line wins over all. ``initialize``, ``callback`` and ``shutdown`` may be
    ``async def``.
    """

    queue: str | None = None
    """The queue to consume; ``set_queue`` in ``initialize`` says the same."""
    queues: Mapping[str, int] = MappingProxyType({})
    """Several queues with weights, instead of ``queue``."""
    concurrency: int = 1
    """Callbacks at once per executor; above 1 needs ``async def callback``."""
    prefetch_count: int = 1
    """Messages the broker hands out ahead of their acknowledgement."""
    ttl: float | None = None
    """Seconds one worker process may live. It ends between messages; Supervisor starts the next."""
    callback_timeout: float | None = None
    """Seconds one callback may run before its process is ended and the attempt counted as failed."""
    memory_limit: int | None = None
    """Bytes of data memory (RLIMIT_DATA) of the process that runs the callback; None: 90 % of the cgroup's limit."""
    auto_ack: bool = False
    """Acknowledge on a normal return of the callback, instead of requiring ``message.ack()``."""
    retry: RetryPolicy = RetryPolicy()
    """How often and how long apart a failing message is tried."""
    payload_type: Any = None
    """The type of ``message.data``, anything msgspec decodes into; None accepts any JSON."""
    spare_memory_multiplier: int = 16
    """MiB kept back for ``shutdown``; read by ``initialize``. It takes address space, no resident memory."""

    def __init__(self) -> None:
        self.logger = TaskLogger()
        self.shutdown_helper = ShutdownHelper()

    def initialize(self) -> Awaitable[None] | None:
        """Prepare this worker process: called once, before the first message.

        Overrides call ``super().initialize()`` first, then set the queue and open what the callback needs.
        """
        self.shutdown_helper.reserve(self.spare_memory_multiplier)
        return None

    def set_queue(self, name: str) -> None:
        """Consume the queue ``name``."""
        self.queue = name

    def callback(self, message: MessageAdapter) -> Awaitable[None] | None:
        """Work on one message and settle it, ``message.ack()`` at its end being the usual way.

        An exception that leaves the callback is a failed attempt. ``RetryMessage`` and ``RejectMessage`` may be raised
        instead of calling the verb. Returning without settling is reported as a bug and counts as a failed attempt,
        unless ``auto_ack`` is set.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement callback(message)")

    def shutdown(self, message: MessageAdapter, cause: Cause) -> Awaitable[None] | None:
        """Called once for each message whose callback was ended by the death of its process.

        Where the dying interpreter can still run (``SystemExit``, ``MemoryError``, ``KeyboardInterrupt``) it runs
        there, after the spare memory was released; for a killed process, its replacement runs it before it takes new
        work. Overrides may settle the message in any way; one that does not settle has it nacked.
        """
        self.logger.critical("callback.died", reason=cause.reason.value, cause=cause.message)
        if not message.settled:
            message.nack()
        return None
