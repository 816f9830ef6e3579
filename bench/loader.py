"""Fills a queue quickly: frames made beforehand, written to a plain socket, without confirms."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pika
from pika import frame, spec

_CHANNEL = 1
_FRAME_MAX = 131_072  # what RabbitMQ offers, and everybody takes
_ROOM = _FRAME_MAX - 8  # of a body frame
_BLOCK = 1 << 20  # bytes written at once
_PATIENCE = 60.0

# Task ids, however they are spelled. Copies of one message need ids of their own, of the same length.
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}")
_DIGITS = 12


class LoadFailed(Exception):
    """The queue could not be filled; ``str(error)`` says why."""


def payload(size: int) -> bytes:
    """The JSON object of ``size`` bytes that every client gets."""
    empty = json.dumps({"text": ""}).encode()
    return json.dumps({"text": "x" * (size - len(empty))}).encode()


def bare(size: int, queue: str) -> bytes:
    """The frames of one message that is the payload alone."""
    properties = pika.BasicProperties("application/json", delivery_mode=2, message_id="0" * 32)
    return _frames(queue, properties, payload(size))


def enveloped(channel: pika.channel.Channel, queue: str, size: int, command: list[str], **surroundings: Any) -> bytes:
    """The frames of one message in a framework's envelope: the framework itself publishes it, and it is taken back.

    Args:
        channel: to take it back with.
        queue: to which ``command`` publishes.
        size: of the payload, which ``command`` reads from its standard input.
        command: publishes one message.
        surroundings: its ``env`` and ``cwd``.

    Raises:
        LoadFailed: it published nothing.
    """
    ended = subprocess.run(
        command, input=payload(size), capture_output=True, timeout=_PATIENCE, check=False, **surroundings
    )
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is not None:
            properties.delivery_mode = 2
            return _frames(queue, properties, body)
        time.sleep(0.02)
    output = (ended.stdout + ended.stderr).decode("utf-8", "replace")
    raise LoadFailed(f"{' '.join(command)} ended with {ended.returncode} and published nothing:\n{output[-2000:]}")


def _frames(queue: str, properties: pika.BasicProperties, body: bytes) -> bytes:
    frames = [
        frame.Method(_CHANNEL, spec.Basic.Publish(exchange="", routing_key=queue)),
        frame.Header(_CHANNEL, len(body), properties),
        *(frame.Body(_CHANNEL, body[start : start + _ROOM]) for start in range(0, len(body), _ROOM)),
    ]
    return b"".join(each.marshal() for each in frames)


def load(port: int, channel: pika.channel.Channel, queue: str, message: bytes, count: int) -> None:
    """Publish ``count`` messages like ``message`` and wait until all are ready.

    Raises:
        LoadFailed: they are not.
    """
    with socket.create_connection(("127.0.0.1", port), _PATIENCE) as connection:
        connection.sendall(_opening())
        for block in _blocks(message, count):
            connection.sendall(block)
        deadline = time.monotonic() + _PATIENCE
        while (ready := ready_count(channel, queue)) != count:
            if time.monotonic() > deadline:
                raise LoadFailed(f"{ready} of {count} messages are ready {_PATIENCE:g} s after they were published")
            time.sleep(0.02)


def ready_count(channel: pika.channel.Channel, queue: str) -> int:
    """How many messages are ready."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def _opening() -> bytes:
    """Our side of the handshake; the answers are known beforehand, so nobody waits for them."""
    methods = [
        (0, spec.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US")),
        (0, spec.Connection.TuneOk(2047, _FRAME_MAX, 0)),
        (0, spec.Connection.Open("/")),
        (_CHANNEL, spec.Channel.Open()),
    ]
    return b"".join([frame.ProtocolHeader().marshal(), *(frame.Method(*each).marshal() for each in methods)])


def _blocks(message: bytes, count: int) -> Iterator[bytes]:
    """``count`` copies, each with ids of its own, in blocks."""
    ids = set(_ID.findall(message))
    waiting: list[bytes] = []
    per_block = max(1, _BLOCK // len(message))
    for number in range(1, count + 1):
        copy = message
        digits = b"%012x" % number
        for each in ids:
            copy = copy.replace(each, each[:-_DIGITS] + digits)
        waiting.append(copy)
        if len(waiting) == per_block or number == count:
            yield b"".join(waiting)
            waiting.clear()
