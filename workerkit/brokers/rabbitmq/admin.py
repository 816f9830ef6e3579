"""What operators' commands ask of RabbitMQ: what queues hold, what they should be, the way back for dead letters."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Self

from workerkit.brokers.administration import Bound, Declared, DeclaredExchange, DeclaredQueue, QueueReport
from workerkit.brokers.rabbitmq.amqp import Connection, QueueState
from workerkit.brokers.rabbitmq.browse import Browser
from workerkit.brokers.rabbitmq.connection import connect
from workerkit.brokers.rabbitmq.declare import declare
from workerkit.brokers.rabbitmq.publisher import ConfirmedPublisher
from workerkit.brokers.rabbitmq.topology import Queue, Topology, derive, main_queue_name
from workerkit.brokers.rabbitmq.versions import ServerVersion
from workerkit.brokers.rabbitmq.wire import is_not_for_copies
from workerkit.envelope import replayed
from workerkit.errors import BrokerError, QueueNotFound
from workerkit.ports import Delivery
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
            f"queue {name!r} does not exist on the broker; `workerkit queues declare {main_queue_name(name)}` makes it"
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


def delays_of(settings: Settings, queue: str) -> tuple[float, ...]:
    """The retry delays in seconds that the configuration alone gives ``queue``, shortest first.

    That is a guess: a task may have others. ``workerkit.operations.queues`` asks the tasks.
    """
    policies = [worker.retry for worker in settings.workers.values() if queue in queues_of(worker)]
    return tuple(sorted({float(delay) for policy in policies or [RetryPolicy()] for delay in policy.delays}))


def topology_of(
    settings: Settings, queue: str, version: ServerVersion, delays: Sequence[float] | None = None
) -> Topology:
    """What ``queue`` needs on a server of this version. A queue without an entry has the defaults.

    Args:
        settings: with the queue's section.
        queue: that workers consume.
        version: of the server.
        delays: retry delays in seconds; None for those of ``delays_of``.
    """
    queue_settings = settings.queues.get(queue, QueueSettings())
    native = version.delays_retries and queue_settings.delayed_retry is not None
    delays = delays_of(settings, queue) if delays is None else delays
    return derive(queue, queue_settings, settings.exchanges, delays, native=native)


class RabbitmqAdministration:
    """``Administration`` over RabbitMQ. Unacknowledged messages cannot be seen over AMQP.

    Args:
        settings: where the broker is, and what is declared with which arguments.
        connection: for everything but the copies of a replay, which have a connection of their own.
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
        """See the protocol."""
        topology = self._topology(queue, delays)
        states = await queue_states(self._connection, [part.name for part in topology.queues])
        return [_report(topology, part, states[part.name]) for part in _in_reading_order(topology)]

    async def declare(self, queue: str, delays: Sequence[float]) -> list[Declared]:
        """See the protocol."""
        topology = self._topology(queue, delays)
        await declare(self._connection, topology)
        declared: list[Declared] = [DeclaredExchange(name, made.type) for name, made in topology.exchanges.items()]
        for part in _in_reading_order(topology):
            declared.append(DeclaredQueue(part.name, part.arguments["x-queue-type"]))
            declared += [Bound(part.name, binding.exchange, binding.routing_key) for binding in part.bindings]
        return declared

    async def ready(self, queue: str) -> int:
        """See the protocol."""
        return (await queue_state(self._connection, queue)).messages_ready

    async def purge(self, queue: str) -> int:
        """See the protocol."""
        await queue_state(self._connection, queue)  # for its error, which says more
        channel = await self._connection.channel()
        purged = await channel.purge(queue)
        await channel.close()
        return purged

    def browse(self, queue: str, count: int) -> Browser:
        """See the protocol."""
        return Browser(self._connection, queue, count)

    @asynccontextmanager
    async def replay(self, target: str) -> AsyncIterator[_Replaying]:
        """See the protocol."""
        await queue_state(self._connection, target)
        publisher = ConfirmedPublisher(partial(connect_for, self._settings.broker, "replay"))
        try:
            yield _Replaying(publisher, target)
        finally:
            await publisher.close()

    def _topology(self, queue: str, delays: Sequence[float]) -> Topology:
        return topology_of(self._settings, queue, self._connection.version, delays)


class _Replaying:
    """``Replaying`` into one queue, through the default exchange."""

    def __init__(self, publisher: ConfirmedPublisher, target: str) -> None:
        self._publisher = publisher
        self._target = target

    async def room(self) -> None:
        """See the protocol."""
        await self._publisher.room()

    def submit(self, delivery: Delivery, ended: Callable[[BrokerError | None], None]) -> None:
        """See the protocol."""
        properties = replayed(delivery.raw_properties, drop=is_not_for_copies)
        self._publisher.submit("", self._target, properties, delivery.body, ended)

    async def drain(self) -> None:
        """See the protocol."""
        await self._publisher.drain()


def _in_reading_order(topology: Topology) -> tuple[Queue, ...]:
    """As people think of it; ``topology.queues`` is the order in which they must be made."""
    return (topology.queue, *topology.retries, topology.dead)


def _report(topology: Topology, part: Queue, state: QueueState | None) -> QueueReport:
    return QueueReport(
        name=part.name,
        role="queue" if part is topology.queue else "dead" if part is topology.dead else "retry",
        of=topology.queue.name,
        type=part.arguments["x-queue-type"],
        arguments=part.arguments,
        exists=state is not None,
        ready=None if state is None else state.messages_ready,
        unacked=None,
        consumers=None if state is None else state.consumers,
    )
