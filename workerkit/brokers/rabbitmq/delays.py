"""The queues in which delayed messages wait for theirs: which one it is, and that it is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from workerkit.brokers.rabbitmq.admin import queue_state
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.errors import PreconditionFailed
from workerkit.brokers.rabbitmq.topology import (
    EXPLICIT_RETRY_GRACE,
    Queue,
    explicit_retry_queue,
    nearest_declared,
    retry_queue,
    retry_queue_name,
)
from workerkit.brokers.rabbitmq.versions import QueueTraits
from workerkit.errors import ConfigurationError
from workerkit.retry import RetryPolicy
from workerkit.settings.model import QueueSettings, Settings, queues_of
from workerkit.settings.units import format_duration

_DECLARE_AGAIN = EXPLICIT_RETRY_GRACE / 4
"""Seconds. A queue for one delay expires when it is not declared for longer than its grace; a stream may be slow."""
_MOST = 1000
"""Waiting queues that are remembered; delays that somebody computes are many."""

log = logging.getLogger("workerkit.publishing")


class Delays:
    """Finds and declares waiting queues, and remembers for which it has done so lately.

    A delay of the retry policy shares the policy's queue; any other gets a queue that expires when it is not used.

    Args:
        settings: what waits where; None when that is not known: then no policy is either.
        connect: the connection to declare over.
    """

    def __init__(self, settings: Settings | None, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._settings = settings
        self._connect = connect
        self._known: dict[tuple[str, float], tuple[str, float]] = {}  # the queue to wait in, and until when that holds
        self._looking = asyncio.Lock()
        self._told: set[str] = set()

    def ready(self, queue: str, delay: float) -> bool:
        """Whether ``name`` may be asked; else ``prepare`` has to see to it first."""
        known = self._known.get((queue, delay))
        return known is not None and time.monotonic() < known[1]

    def name(self, queue: str, delay: float) -> str:
        """Where a message waits for ``queue``."""
        return self._known[queue, delay][0]

    async def prepare(self, queue: str, delay: float) -> None:
        """See that ``queue`` is there, and the one in which messages wait for it.

        Raises:
            QueueNotFound: there is no such queue; at the end of its delay a message would be lost.
            ConfigurationError: the waiting queue is not declared and may not be, or exists with other arguments.
            BrokerError: there is no connection.
        """
        async with self._looking:
            if self.ready(queue, delay):
                return  # somebody else has seen to it meanwhile
            connection = await self._connect()
            await queue_state(connection, queue)
            settings = QueueSettings() if self._settings is None else self._settings.queues.get(queue, QueueSettings())
            native = QueueTraits.of(settings, connection.version).native
            policy = () if self._settings is None or native else delays_of(self._settings, queue)
            if settings.declare:
                waiting = retry_queue(queue, delay) if delay in policy else explicit_retry_queue(queue, delay)
                await _declare(connection, waiting)
                name = waiting.name
            else:
                name = retry_queue_name(queue, self._nearest(queue, policy, delay))
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[queue, delay] = name, time.monotonic() + _DECLARE_AGAIN

    def forget(self) -> None:
        """Look again at the next use: something that was there may be gone."""
        self._known.clear()

    def _nearest(self, queue: str, policy: tuple[float, ...], delay: float) -> float:
        """The delay to use where no queue may be declared."""
        if not policy:
            raise ConfigurationError(
                f"a delay needs a waiting queue; {queue!r} has none, and `declare: false` forbids to make it"
            )
        nearest = nearest_declared(policy, delay)
        if nearest != delay and queue not in self._told:
            self._told.add(queue)
            log.warning(
                "queue %r has `declare: false`: a delay of %s becomes the nearest of its retry policy, %s",
                queue,
                format_duration(delay),
                format_duration(nearest),
            )
        return nearest


def delays_of(settings: Settings, queue: str) -> tuple[float, ...]:
    """The retry delays in seconds that the configuration alone gives ``queue``, shortest first.

    That is a guess: a task may have others. ``workerkit.operations.queues`` asks the tasks.
    """
    policies = [worker.retry for worker in settings.workers.values() if queue in queues_of(worker)]
    return tuple(sorted({float(delay) for policy in policies or [RetryPolicy()] for delay in policy.delays}))


async def _declare(connection: Connection, waiting: Queue) -> None:
    """On a channel of its own, as a refusal closes it."""
    channel = await connection.channel()
    try:
        await channel.declare_queue(waiting.name, waiting.arguments)
    except PreconditionFailed as error:
        raise ConfigurationError(f"queue {waiting.name!r}, which delays messages, exists already: {error}") from None
    await channel.close()
