"""What operators' commands ask of RabbitMQ: what queues hold, and what they should be."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

from workerkit.brokers.administration import (
    Bound,
    Declared,
    DeclaredExchange,
    DeclaredQueue,
    QueueReport,
    QueueRole,
)
from workerkit.brokers.rabbitmq.amqp import Connection, QueueState
from workerkit.brokers.rabbitmq.browse import Browser
from workerkit.brokers.rabbitmq.connection import connect
from workerkit.brokers.rabbitmq.declare import declare
from workerkit.brokers.rabbitmq.topology import Queue, Topology, derive, main_queue_name
from workerkit.brokers.rabbitmq.versions import QueueTraits, ServerVersion
from workerkit.brokers.rabbitmq.wire import is_not_for_copies
from workerkit.envelope import replayed
from workerkit.errors import QueueNotFound
from workerkit.ports import Delivery
from workerkit.settings.model import BrokerSettings, QueueSettings, Settings


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
            f"queue {name!r} does not exist on the broker; `workerkit queues declare {main_queue_name(name)}` makes it"
        ) from None
    await channel.close()
    return state


class RabbitmqAdministration:
    """``Administration`` over RabbitMQ. Unacknowledged messages cannot be seen over AMQP.

    Args:
        settings: what is declared with which arguments.
        connection: for everything.
    """

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connected(cls, settings: Settings, command: str) -> AsyncIterator[Self]:
        """One for the length of a command. Raises as ``connect`` does."""
        async with session(settings.broker, command) as connection:
            yield cls(settings, connection)

    async def look(self, queue: str, delays: Sequence[float]) -> list[QueueReport]:
        topology = topology_of(self._settings, queue, self._connection.version, delays)
        reports = []
        for role, part in _in_reading_order(topology):
            try:
                state = await queue_state(self._connection, part.name)
            except QueueNotFound:
                state = None
            reports.append(
                QueueReport(
                    name=part.name,
                    role=role,
                    of=queue,
                    type=part.arguments["x-queue-type"],
                    arguments=part.arguments,
                    exists=state is not None,
                    ready=None if state is None else state.messages_ready,
                    unacked=None,
                    consumers=None if state is None else state.consumers,
                )
            )
        return reports

    async def declare(self, queue: str, delays: Sequence[float]) -> list[Declared]:
        topology = topology_of(self._settings, queue, self._connection.version, delays)
        await declare(self._connection, topology)
        declared: list[Declared] = [DeclaredExchange(name, made.type) for name, made in topology.exchanges.items()]
        for _, part in _in_reading_order(topology):
            declared.append(DeclaredQueue(part.name, part.arguments["x-queue-type"]))
            declared += [Bound(part.name, binding.exchange, binding.routing_key) for binding in part.bindings]
        return declared

    async def ready(self, queue: str) -> int:
        return (await queue_state(self._connection, queue)).messages_ready

    async def purge(self, queue: str) -> int:
        await queue_state(self._connection, queue)  # for its error, which says more
        channel = await self._connection.channel()
        purged = await channel.purge(queue)
        await channel.close()
        return purged

    def browse(self, queue: str, count: int) -> Browser:
        return Browser(self._connection, queue, count)

    def replayed(self, delivery: Delivery) -> bytes:
        return replayed(delivery.raw_properties, drop=is_not_for_copies)


def topology_of(settings: Settings, queue: str, version: ServerVersion, delays: Sequence[float]) -> Topology:
    """What ``queue`` needs on a server of this version, with these retry delays in seconds."""
    queue_settings = settings.queues.get(queue, QueueSettings())
    native = QueueTraits.of(queue_settings, version).native
    return derive(queue, queue_settings, settings.exchanges, delays, native=native)


def _in_reading_order(topology: Topology) -> list[tuple[QueueRole, Queue]]:
    """As people think of it; ``topology.queues`` is the order in which they must be made."""
    return [("queue", topology.queue), *(("retry", retry) for retry in topology.retries), ("dead", topology.dead)]
