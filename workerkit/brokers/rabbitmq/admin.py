"""What operators' commands ask of RabbitMQ: which queues there are, what they hold, what they should be."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from workerkit.brokers.rabbitmq.amqp import Connection, QueueState
from workerkit.brokers.rabbitmq.connection import connect
from workerkit.brokers.rabbitmq.topology import Topology, derive
from workerkit.brokers.rabbitmq.versions import ServerVersion
from workerkit.envelope import DEAD_SUFFIX
from workerkit.errors import QueueNotFound
from workerkit.retry import RetryPolicy
from workerkit.settings.model import BrokerSettings, QueueSettings, Settings, queues_of


async def connect_for(settings: BrokerSettings, command: str) -> Connection:
    """Connect under a name that leads from the management page to this process. Raises as ``connect`` does."""
    return await connect(settings, f"workerkit {command} {socket.gethostname()}.{os.getpid()}")


@asynccontextmanager
async def session(settings: BrokerSettings, command: str) -> AsyncIterator[Connection]:
    """A connection for the length of one command."""
    connection = await connect_for(settings, command)
    try:
        yield connection
    finally:
        await connection.close()


async def queue_state(connection: Connection, name: str) -> QueueState:
    """What the broker says of one queue.

    Raises:
        QueueNotFound: it does not exist; the text says what makes it.
    """
    channel = await connection.channel()
    try:
        state = await channel.check_queue(name)
    except QueueNotFound:
        raise QueueNotFound(
            f"queue {name!r} does not exist on the broker; `workerkit queues declare {_main_queue(name)}` makes it"
        ) from None
    await channel.close()
    return state


async def queue_states(connection: Connection, names: Iterable[str]) -> dict[str, QueueState | None]:
    """The state of each queue; None for one that does not exist."""
    states: dict[str, QueueState | None] = {}
    for name in names:
        try:
            states[name] = await queue_state(connection, name)
        except QueueNotFound:
            states[name] = None
    return states


async def purge(connection: Connection, name: str) -> int:
    """Delete the ready messages of exactly this queue; returns how many.

    Raises:
        QueueNotFound: there is no such queue.
    """
    await queue_state(connection, name)  # for its error, which says more
    channel = await connection.channel()
    purged = await channel.purge(name)
    await channel.close()
    return purged


def delays_of(settings: Settings, queue: str) -> tuple[float, ...]:
    """The retry delays in seconds of all workers that the configuration sends to ``queue``, shortest first.

    A worker without a ``retry`` section, and a queue without a worker, count with the default policy.
    """
    policies = [worker.retry for worker in settings.workers.values() if queue in queues_of(worker)]
    return tuple(sorted({float(delay) for policy in policies or [RetryPolicy()] for delay in policy.delays}))


def topology_of(settings: Settings, queue: str, version: ServerVersion) -> Topology:
    """What ``queue`` needs on a server of this version. A queue without an entry has the defaults."""
    queue_settings = settings.queues.get(queue, QueueSettings())
    native = version.delays_retries and queue_settings.delayed_retry is not None
    return derive(queue, queue_settings, settings.exchanges, delays_of(settings, queue), native=native)


def _main_queue(name: str) -> str:
    return name.removesuffix(DEAD_SUFFIX).partition(".retry.")[0]
