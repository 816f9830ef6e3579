"""What a user subclasses."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from workerkit.log import TaskLogger
from workerkit.message import MessageAdapter
from workerkit.settlement import Cause
from workerkit.shutdown import ShutdownHelper
from workerkit.task_settings import TaskSettings


class WorkerTask(TaskSettings):
    """One kind of work: subclass it, implement ``callback``, list it in the YAML.

    The attributes that it inherits are its settings; durations are seconds, sizes bytes. Each can be set as a class
    attribute, in the YAML, or in ``initialize``; the later of these wins, and the command line wins over all.
    ``initialize``, ``callback`` and ``shutdown`` may be ``async def``.
    """

    payload_type: Any = None
    """The type of ``message.data``, anything msgspec decodes into; None accepts any JSON."""

    def __init__(self) -> None:
        self.queues = dict(self.queues)
        self.logger = TaskLogger()
        self.shutdown_helper = ShutdownHelper()

    def initialize(self) -> Awaitable[None] | None:
        """Prepare this worker process: called once, before the first message.

        Overrides call ``super().initialize()`` first, then set the queue and open what the callback needs.
        """
        self.shutdown_helper.reserve(self.spare_memory_multiplier)
        return None

    def set_queue(self, name: str) -> None:
        """Consume the queue ``name``, and no other."""
        self.queue, self.queues = name, {}

    def set_queues(self, weights: Mapping[str, int]) -> None:
        """Consume several queues, each with its weight from 1 to 1000."""
        self.queue, self.queues = None, dict(weights)

    def callback(self, message: MessageAdapter) -> Awaitable[None] | None:
        """Work on one message and settle it, ``message.ack()`` at its end being the usual way.

        An exception that leaves the callback is a failed attempt. ``RetryMessage`` and ``RejectMessage`` may be raised
        instead of calling the verb. Returning without settling is reported as a bug and counts as a failed attempt,
        unless ``auto_ack`` is set.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement callback(message)")

    def shutdown(self, message: MessageAdapter, cause: Cause) -> Awaitable[None] | None:
        """Called for each message whose callback was ended by the death of its process.

        Where the dying interpreter can still run (``SystemExit``, ``MemoryError``, ``KeyboardInterrupt``) it runs
        there, after the spare memory was released; for a killed process, its replacement runs it before it takes new
        work. Overrides may settle the message in any way; one that does not settle has it nacked.

        When several callbacks ran, it is called for each of their messages, though only one of them was the cause. What
        is nacked or retried here is then no attempt: it runs again, alone; should it die again, ``shutdown`` is called
        once more.
        """
        self.logger.critical("callback.died", reason=cause.reason.value, cause=cause.message)
        if not message.settled:
            message.nack()
        return None
