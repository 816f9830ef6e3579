"""A message on its way to a broker: what a publisher says, checked and encoded before anything is sent."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec

from workerkit.properties import Properties, encode
from workerkit.settlement import check_delay

PROPERTIES_LIMIT = 100_000
"""Bytes of encoded properties. A content header must fit one frame, 131,072 bytes by default; a bigger one makes
RabbitMQ close the whole connection (501 FRAME_ERROR), and copies need room for headers of their own."""

_PERSISTENT = 2
_RESERVED_PREFIXES = ("workerkit-", "x-")
_RESERVED_NAMES = ("CC", "BCC")
_TEXT_LIMIT = 255


@dataclass(slots=True)  # not frozen, which would make each take three times as long to make
class Outgoing:
    """A message to publish, encoded."""

    exchange: str  # empty for the default exchange, which routes by the name of the queue
    routing_key: str
    raw_properties: bytes
    body: bytes
    delay: float | None = None  # seconds until it comes to the queue; only through the default exchange


def compose(
    queue: str | None,
    data: Any = None,
    *,
    body: bytes | None = None,
    exchange: str = "",
    routing_key: str | None = None,
    delay: float | None = None,
    headers: Mapping[str, Any] | None = None,
    message_id: str | None = None,
    correlation_id: str | None = None,
    content_type: str | None = None,
    priority: int | None = None,
    type: str | None = None,  # noqa: A002 - the property's name
    app_id: str | None = None,
    reply_to: str | None = None,
    expiration: float | None = None,
    timestamp: int | None = None,
) -> Outgoing:
    """Make a persistent message, for a queue or for an exchange.

    Args:
        queue: the name of the queue it is for; None when an exchange routes it.
        data: the body as JSON: anything msgspec encodes, such as dicts, dataclasses, Structs, dates.
        body: the raw bytes of the body instead of ``data``.
        exchange: the exchange it is for, instead of a queue.
        routing_key: for the exchange.
        delay: seconds until it comes to the queue; at most 49 days.
        headers: by name; names that begin with ``x-`` or ``workerkit-`` are not for publishers.
        message_id: a random UUID unless given. A repeat of the same message should have the same.
        correlation_id: what the message belongs to.
        content_type: ``application/json`` for ``data`` unless given; none for ``body`` unless given.
        priority: 0 to 255, for queues that have priorities.
        type: what kind of message it is.
        app_id: the program that published it.
        reply_to: a queue for answers.
        expiration: seconds after which the broker drops it, should it still wait in its queue.
        timestamp: whole seconds since 1970 (UTC); now unless given.

    Raises:
        TypeError: a value has the wrong type, or ``data`` cannot be written as JSON.
        ValueError: a value cannot be sent, or two of them exclude each other.
    """
    exchange, key = _target(queue, exchange, routing_key)
    delay = None if delay is None else check_delay(delay) or None
    if delay is not None and exchange:
        raise ValueError("a delay needs a queue: an exchange passes messages on at once")
    if delay is not None and expiration is not None:
        raise ValueError("a message with a delay cannot expire: it would end the delay")
    expires = None if expiration is None else str(math.ceil(check_delay(expiration, "an expiration") * 1000))
    payload, content_type = encode_body(data, body, content_type)
    texts = {
        "content_type": content_type,
        "correlation_id": correlation_id,
        "message_id": uuid.uuid4().hex if message_id is None else message_id,
        "type": type,
        "app_id": app_id,
        "reply_to": reply_to,
    }
    for name, value in texts.items():
        _check_text(name, value)
    _check_whole_number("priority", priority, 255)
    _check_whole_number("timestamp", timestamp, 2**63 - 1)
    for name in headers or ():
        check_header_name(name)
    try:
        raw_properties = encode(
            Properties(
                **texts,
                headers=dict(headers or {}),
                delivery_mode=_PERSISTENT,
                priority=priority,
                expiration=expires,
                timestamp=int(time.time()) if timestamp is None else timestamp,
            )
        )
    except RecursionError:
        raise ValueError("the headers are nested too deeply") from None
    except AttributeError as error:  # a name inside a nested header
        raise TypeError(f"the names in a header must be text: {error}") from None
    if len(raw_properties) > PROPERTIES_LIMIT:
        raise ValueError(f"the headers take {len(raw_properties)} bytes; {PROPERTIES_LIMIT} fit into a message")
    return Outgoing(exchange, key, raw_properties, payload, delay)


def encode_body(data: Any, body: bytes | None, content_type: str | None) -> tuple[bytes, str | None]:
    """The bytes of a body, given as one of ``data`` and ``body``, and its content type.

    Raises:
        TypeError: both are given, ``body`` is not bytes, or ``data`` cannot be written as JSON.
    """
    if body is None:
        try:
            return msgspec.json.encode(data), content_type or "application/json"
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise TypeError(f"the data cannot be written as JSON: {error}") from None
    if data is not None:
        raise TypeError("a message has data or a body, not both")
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(f"a body must be bytes, not {body.__class__.__name__}; give text and numbers as data")
    return bytes(body), content_type


def check_header_name(name: str) -> None:
    """Raises ValueError for a name that means something to RabbitMQ or workerkit, TypeError for one that is no text."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a header must be text, not {name!r}")
    if name.lower().startswith(_RESERVED_PREFIXES) or name in _RESERVED_NAMES:
        raise ValueError(f"header {name!r} has a meaning of its own to RabbitMQ or workerkit and cannot be set")


def _target(queue: str | None, exchange: str, routing_key: str | None) -> tuple[str, str]:
    """Exchange and routing key."""
    _check_text("the name of a queue", queue, least=1)
    _check_text("the name of an exchange", exchange)
    _check_text("a routing key", routing_key)
    if queue is not None:
        if exchange or routing_key is not None:
            raise ValueError("a message is for a queue, or for an exchange with a routing key, not for both")
        return "", queue
    if not exchange and not routing_key:
        raise ValueError("a message needs a queue, or an exchange")
    return exchange, routing_key or ""


def _check_text(what: str, text: str | None, least: int = 0) -> None:
    """Whether it fits into a short string of AMQP."""
    if text is None:
        return
    if not isinstance(text, str):
        raise TypeError(f"{what} must be text, not {text!r}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} cannot be written as UTF-8: {text!r}") from None
    if not least <= size <= _TEXT_LIMIT:
        raise ValueError(f"{what} has {least} to {_TEXT_LIMIT} bytes, not {size}")


def _check_whole_number(what: str, number: int | None, most: int) -> None:
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} must be a whole number, not {number!r}")
    if not 0 <= number <= most:
        raise ValueError(f"{what} must be from 0 to {most}, not {number}")


class MessageOptions(TypedDict, total=False):
    """What ``compose`` takes by name, for those that pass it on."""

    body: bytes | None
    exchange: str
    routing_key: str | None
    delay: float | None
    headers: Mapping[str, Any] | None
    message_id: str | None
    correlation_id: str | None
    content_type: str | None
    priority: int | None
    type: str | None
    app_id: str | None
    reply_to: str | None
    expiration: float | None
    timestamp: int | None
