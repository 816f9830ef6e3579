"""Declaring a topology, and saying in full how the broker differs from it."""

from __future__ import annotations

import re
from typing import Any

from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.errors import PreconditionFailed
from workerkit.brokers.rabbitmq.topology import Queue, Topology
from workerkit.errors import AccessRefused, ConfigurationError, Difference, QueueNotFound, TopologyMismatch

# Its answer has room for 255 bytes: of a long name, the values did not fit.
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)'"
    r"(?: for (?P<object>\w+ '.*?') in vhost '.*?': received (?P<wanted>.*) but current is (?P<actual>.*))?",
    re.DOTALL,
)
# RabbitMQ says `the value '5' of type 'signedint'` when the other side has none, and a bare `'5'` when both have one.
_VALUE = re.compile(r"(?:the value )?'(?P<value>.*?)'(?: of type '(?P<type>\w+)')?", re.DOTALL)
_INTEGERS = frozenset({"byte", "unsignedbyte", "short", "unsignedshort", "signedint", "unsignedint", "long"})


async def declare(connection: Connection, topology: Topology) -> None:
    """Declare exchanges, queues and bindings; declaring twice is harmless.

    Raises:
        TopologyMismatch: something exists with other arguments; each difference is named, and what differs is left
            as it is.
        ConfigurationError: the broker takes no queue with such arguments, or an exchange to bind to is missing.
        AccessRefused: the user may not configure it.
    """
    channel = await connection.channel()
    differences: list[Difference] = []
    for name, exchange in topology.exchanges.items():
        try:
            await channel.declare_exchange(name, exchange.type, durable=exchange.durable, arguments=exchange.arguments)
        except PreconditionFailed as error:
            differences.append(_inequivalent(error, f"exchange {name!r}")[0])
            channel = await connection.channel()
    for queue in topology.queues:
        try:
            await channel.declare_queue(queue.name, queue.arguments)
            for binding in queue.bindings:
                await channel.bind(queue.name, binding.exchange, binding.routing_key, binding.arguments)
        except PreconditionFailed as error:
            differences += await _differences(connection, queue, error)
            channel = await connection.channel()
        except QueueNotFound as error:  # 404 in a bind: the exchange
            raise ConfigurationError(f"queue {queue.name!r} cannot be bound: {error}") from None
        except AccessRefused as error:
            raise AccessRefused(
                f"the user may not declare queue {queue.name!r}: {error}. Grant configure permission, or declare it "
                f"with another user (`workerkit queues declare`) and set `declare: false`"
            ) from None
    await channel.close()
    if differences:
        raise TopologyMismatch(differences)


async def check(connection: Connection, topology: Topology) -> None:
    """Only look whether every queue is there, for users without configure permission.

    Raises:
        ConfigurationError: a queue is missing.
    """
    channel = await connection.channel()
    for queue in topology.queues:
        try:
            await channel.check_queue(queue.name)
        except QueueNotFound:
            raise ConfigurationError(
                f"queue {queue.name!r} does not exist and `declare: false` forbids to make it: run "
                f"`workerkit queues declare` as a user with configure permission"
            ) from None
    await channel.close()


async def _differences(connection: Connection, queue: Queue, refusal: PreconditionFailed) -> list[Difference]:
    """The broker names one difference per refusal: take its value for that one, ask again, until it agrees.

    The queue exists, so no question can create it.
    """
    arguments = dict(queue.arguments)
    flags = {"durable": True, "auto_delete": False}
    differences: dict[str, Difference] = {}
    while True:
        try:
            difference, actual = _inequivalent(refusal, f"queue {queue.name!r}")
        except ConfigurationError:
            if differences:  # now it refuses the mixture: what is known has to do
                break
            raise
        if difference.argument in differences:  # what the broker says of it is not what it wants to hear
            break
        differences[difference.argument] = difference
        if not _adopt(arguments, flags, difference.argument, actual):
            break
        channel = await connection.channel()
        try:
            await channel.declare_queue(queue.name, arguments, **flags)
        except PreconditionFailed as error:
            refusal = error
        else:
            await channel.close()
            break
    return list(differences.values())


def _inequivalent(refusal: PreconditionFailed, name: str) -> tuple[Difference, str]:
    """The difference that a refusal names, and the broker's value as it writes it; empty where it does not say.

    Raises:
        ConfigurationError: the refusal is not about a difference: nothing exists that could differ.
    """
    match = _INEQUIVALENT.search(str(refusal))
    if match is None:
        raise ConfigurationError(f"RabbitMQ does not take the arguments of {name}: {refusal}")
    if match["object"] is None:
        return Difference(name, match["argument"], "as configured", "different"), ""
    difference = Difference(match["object"], match["argument"], _shown(match["wanted"]), _shown(match["actual"]))
    return difference, match["actual"]


def _shown(value: str) -> str:
    match = _VALUE.fullmatch(value)
    return value if match is None else match["value"] or "''"


def _adopt(arguments: dict[str, Any], flags: dict[str, bool], argument: str, actual: str) -> bool:
    """Put the broker's value of one argument in place of ours. False when that cannot be done."""
    if actual == "none":
        return arguments.pop(argument, None) is not None
    current = _VALUE.fullmatch(actual)
    if current is None:
        return False
    value = current["value"]
    if argument in flags:
        flags[argument] = value == "true"
    elif not argument.startswith("x-"):
        return False
    elif current["type"] in _INTEGERS or (current["type"] is None and isinstance(arguments.get(argument), int)):
        arguments[argument] = int(value)
    elif current["type"] == "bool":
        arguments[argument] = value == "true"
    else:
        arguments[argument] = value
    return True
