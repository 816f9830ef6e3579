"""Declaring a topology, and saying in full how the broker differs from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.errors import PreconditionFailed
from workerkit.errors import AccessRefused, ConfigurationError, Difference, QueueNotFound, TopologyMismatch
from workerkit.topology import Queue, Topology

_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<object>\w+ '.*') in vhost .*: received (?P<rest>.*)"
)
_CURRENT_VALUE = re.compile(r"but current is (?P<value>.*?)(?:'? of type '(?P<type>\w+)')?$")
_MAX_DIFFERENCES = 20


async def declare(connection: Connection, topology: Topology) -> None:
    """Declare exchanges, queues and bindings; declaring twice is harmless.

    Raises:
        TopologyMismatch: something exists with other arguments; each difference is named, nothing was changed.
        AccessRefused: the user may not configure it.
    """
    channel = await connection.channel()
    for name, exchange in topology.exchanges.items():
        try:
            await channel.declare_exchange(name, exchange.type, durable=exchange.durable, arguments=exchange.arguments)
        except PreconditionFailed as error:
            raise TopologyMismatch([_difference(str(error), f"exchange {name!r}")]) from None
    for queue in topology.queues:
        try:
            await channel.declare_queue(queue.name, queue.arguments)
            for binding in queue.bindings:
                await channel.bind(queue.name, binding.exchange, binding.routing_key, binding.arguments)
        except PreconditionFailed as error:
            raise TopologyMismatch(await _differences(connection, queue, str(error))) from None
        except QueueNotFound as error:  # 404 in a bind: the exchange
            raise ConfigurationError(f"queue {queue.name!r} cannot be bound: {error}") from None
        except AccessRefused as error:
            raise AccessRefused(
                f"the user may not declare queue {queue.name!r}: {error}. Grant configure permission, or declare it "
                f"with another user (`workerkit queues declare`) and set `declare: false`"
            ) from None
    await channel.close()


async def check(connection: Connection, topology: Topology) -> None:
    """Only look whether every queue is there, for users without configure permission.

    Raises:
        ConfigurationError: a queue is missing.
    """
    for queue in topology.queues:
        channel = await connection.channel()
        try:
            await channel.check_queue(queue.name)
        except QueueNotFound:
            raise ConfigurationError(
                f"queue {queue.name!r} does not exist and `declare: false` forbids to make it: run "
                f"`workerkit queues declare` as a user with configure permission"
            ) from None
        await channel.close()


async def _differences(connection: Connection, queue: Queue, first: str) -> list[Difference]:
    """The broker names one difference per refusal: take its value for that one, ask again, until it agrees.

    The queue exists, so no question can create it.
    """
    arguments = dict(queue.arguments)
    differences: list[Difference] = []
    refusal = first
    while len(differences) < _MAX_DIFFERENCES:
        difference = _difference(refusal, f"queue {queue.name!r}")
        differences.append(difference)
        if not difference.argument.startswith("x-") or not _adopt(arguments, refusal, difference.argument):
            return differences
        channel = await connection.channel()
        try:
            await channel.declare_queue(queue.name, arguments)
        except PreconditionFailed as error:
            refusal = str(error)
        else:
            await channel.close()
            return differences
    return differences


def _difference(refusal: str, fallback: str) -> Difference:
    match = _INEQUIVALENT.search(refusal)
    if match is None:
        return Difference(fallback, "its arguments", "as configured", refusal)
    wanted, _, _ = match["rest"].partition(" but current is ")
    current = _CURRENT_VALUE.search(match["rest"])
    return Difference(match["object"], match["argument"], _bare(wanted), _bare(current["value"] if current else "?"))


def _bare(value: str) -> str:
    value = re.sub(r"^the value ", "", value)
    value = re.sub(r" of type '\w+'$", "", value)
    return value.strip("'")


def _adopt(arguments: dict[str, Any], refusal: str, argument: str) -> bool:
    """Put the broker's value of one argument into ``arguments``. False when the text does not say it."""
    match = _INEQUIVALENT.search(refusal)
    current = _CURRENT_VALUE.search(match["rest"]) if match else None
    if current is None:
        return False
    value = _bare(current["value"])
    before: Mapping[str, Any] = dict(arguments)
    if value == "none":
        arguments.pop(argument, None)
    elif current["type"] in ("signedint", "long", "short", "byte", "unsignedint") or value.lstrip("-").isdigit():
        arguments[argument] = int(value)
    elif current["type"] == "bool":
        arguments[argument] = value == "true"
    else:
        arguments[argument] = value
    return before != arguments
