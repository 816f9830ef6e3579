"""The queues in which delayed messages wait for theirs: which one it is, and that it is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from workerkit.brokers.rabbitmq.admin import delays_of, queue_state, topology_of
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.errors import PreconditionFailed
from workerkit.brokers.rabbitmq.topology import (
    EXPLICIT_RETRY_GRACE,
    Queue,
    explicit_retry_queue,
    nearest_declared,
    retry_queue_name,
)
from workerkit.errors import ConfigurationError
from workerkit.settings.model import QueueSettings, Settings
from workerkit.settings.units import format_duration

_DECLARE_AGAIN = EXPLICIT_RETRY_GRACE / 4
"""Seconds. A queue for one delay expires when it is not declared for longer than its grace; a stream may be slow."""
_MOST = 1000
"""Waiting queues that are remembered; delays that somebody computes are many."""

log = logging.getLogger("workerkit.publishing")


@dataclass(frozen=True, slots=True)
class _Known:
    """A waiting queue that is there."""

    name: str
    until: float
    """By the monotonic clock; then it must be looked at again."""


class Delays:
    """Finds and declares waiting queues, and remembers for which it has done so lately.

    A delay of the retry policy shares the policy's queue; any other gets a queue that expires when it is not used.

    Args:
        settings: what waits where; None when that is not known: then no policy is either.
    """

    def __init__(self, settings: Settings | None) -> None:
        self._settings = settings
        self._known: dict[tuple[str, float], _Known] = {}
        self._looking = asyncio.Lock()
        self._told: set[str] = set()

    def name(self, queue: str, delay: float) -> str | None:
        """Where a message waits for ``queue``; None when ``prepare`` has to see to it first."""
        known = self._known.get((queue, delay))
        return None if known is None or time.monotonic() > known.until else known.name

    async def prepare(self, queue: str, delay: float, connect: Callable[[], Awaitable[Connection]]) -> None:
        """See that ``queue`` is there, and the one in which messages wait for it.

        Raises:
            QueueNotFound: there is no such queue; at the end of its delay a message would be lost.
            ConfigurationError: the waiting queue is not declared and may not be, or exists with other arguments.
            BrokerError: there is no connection.
        """
        async with self._looking:
            if self.name(queue, delay) is not None:
                return  # somebody else has seen to it meanwhile
            connection = await connect()
            await queue_state(connection, queue)
            waiting = self._waiting_queue(queue, delay, connection)
            if waiting.arguments:
                await _declare(connection, waiting)
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[queue, delay] = _Known(waiting.name, time.monotonic() + _DECLARE_AGAIN)

    def forget(self) -> None:
        """Look again at the next use: something that was there may be gone."""
        self._known.clear()

    def _waiting_queue(self, queue: str, delay: float, connection: Connection) -> Queue:
        """The queue to wait in. Without arguments: it is not to be declared."""
        if self._settings is None:
            return explicit_retry_queue(queue, delay)
        policy = {retry.name: retry for retry in topology_of(self._settings, queue, connection.version).retries}
        declared = [known for known in delays_of(self._settings, queue) if retry_queue_name(queue, known) in policy]
        if self._settings.queues.get(queue, QueueSettings()).declare:
            return policy.get(retry_queue_name(queue, delay)) or explicit_retry_queue(queue, delay)
        if not declared:
            raise ConfigurationError(
                f"a delay needs a waiting queue; {queue!r} has none, and `declare: false` forbids to make it"
            )
        nearest = nearest_declared(declared, delay)
        if nearest != delay and queue not in self._told:
            self._told.add(queue)
            log.warning(
                "queue %r has `declare: false`: a delay of %s becomes the nearest of its retry policy, %s",
                queue,
                format_duration(delay),
                format_duration(nearest),
            )
        return Queue(retry_queue_name(queue, nearest))


async def _declare(connection: Connection, waiting: Queue) -> None:
    """On a channel of its own, as a refusal closes it."""
    channel = await connection.channel()
    try:
        await channel.declare_queue(waiting.name, waiting.arguments)
    except PreconditionFailed as error:
        raise ConfigurationError(f"queue {waiting.name!r}, which delays messages, exists already: {error}") from None
    await channel.close()
