"""AMQP 0-9-1 message properties, kept as the bytes that came in until somebody asks.

Two reasons for a codec of our own, small as it is. Properties are decoded per message, and most workers never look at
them. And a retried message must keep its headers exactly: pika 1.4 decodes a float header to an integer and cannot
encode one at all, so a copy that goes through it is not the same message. ``rewrite`` edits the raw table instead.

Wire format: https://www.rabbitmq.com/amqp-0-9-1-errata (field types as RabbitMQ really uses them).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

MAX_NESTING = 32
"""Tables and arrays nested deeper than this are refused: nobody sends them in good faith."""

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_PERSISTENT = b"\x02"
_TYPES = "t:? b:b B:B s:h U:h u:H I:i i:I l:q L:q f:f d:d T:Q D:Bi V:"
"""The types of header values that have one length, with the layout of each as ``struct`` writes it."""
_FIXED = {name.encode(): struct.Struct(f">{layout}") for name, _, layout in (t.partition(":") for t in _TYPES.split())}
_SIZED = (b"S", b"x", b"A", b"F")
"""Those that begin with their length in bytes: texts, bytes, arrays and tables."""


@dataclass(slots=True)
class Properties:
    """The fourteen properties of AMQP 0-9-1, in the order of the wire, with RabbitMQ's names and meanings.

    ``timestamp`` is in whole seconds since 1970 (UTC), ``expiration`` a string of milliseconds, ``delivery_mode`` 2
    for a message that survives a broker restart.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None


# Kinds: s a short string, t a table, B an octet, Q 64 bits.
_KINDS = {"headers": "t", "delivery_mode": "B", "priority": "B", "timestamp": "Q"}
_NUMBERS = {kind: struct.Struct(f">{kind}") for kind in "BQ"}
_NAMES = tuple(Properties.__slots__)
_FIELDS = [(name, 1 << bit, _KINDS.get(name, "s")) for name, bit in zip(_NAMES, range(15, 1, -1), strict=True)]


def decode(raw: bytes) -> Properties:
    """Read the property flags and the property list of a content header frame.

    Raises:
        ValueError: the bytes are cut off, nested too deeply or hold an unknown field type.
    """
    properties = Properties()
    for name, kind, start, end in _fields(raw):
        if kind == "s":
            value: Any = _text(raw[start + 1 : end])
        elif kind == "t":
            value = _table(raw, start, end, 0)
        else:
            value = _NUMBERS[kind].unpack_from(raw, start)[0]
        setattr(properties, name, value)
    return properties


def decode_headers(raw: bytes) -> dict[str, Any]:
    """Read the header table alone. Raises ValueError as ``decode`` does, for what it reads."""
    for name, _, start, end in _fields(raw, "headers"):
        if name == "headers":
            return _table(raw, start, end, 0)
    return {}


def header_number(raw: bytes, name: str) -> int:
    """A header that is a count; 0 when it holds anything else, or is absent, which costs next to nothing."""
    if name.encode() not in raw:
        return 0
    try:
        value = decode_headers(raw).get(name, 0)
    except ValueError:
        return 0
    return value if type(value) is int and 0 < value < 2**31 else 0


def decode_ids(raw: bytes) -> tuple[str | None, str | None]:
    """Read message_id and correlation_id alone: every log line about a message names them.

    Raises:
        ValueError: the bytes are cut off, as far as they are read.
    """
    message_id = correlation_id = None
    for name, _, start, end in _fields(raw, "correlation_id", "message_id"):
        if name == "message_id":
            message_id = _text(raw[start + 1 : end])
        elif name == "correlation_id":
            correlation_id = _text(raw[start + 1 : end])
    return message_id, correlation_id


def encode(properties: Properties) -> bytes:
    """Write the property flags and list.

    Raises:
        ValueError: a value does not fit its field (a short string over 255 bytes, a header of a foreign type).
    """
    flags = 0
    pieces = []
    for name, flag, kind in _FIELDS:
        value = getattr(properties, name)
        if value is None or (kind == "t" and not value):
            continue
        flags |= flag
        try:
            if kind == "s":
                pieces.append(_short(value))
            elif kind == "t":
                pieces.append(_long(_encode_entries(value)))
            else:
                pieces.append(_NUMBERS[kind].pack(value))
        except (struct.error, TypeError, ArithmeticError) as error:
            raise ValueError(f"{name} cannot be {value!r}: {error}") from error
    return _U16.pack(flags) + b"".join(pieces)


def rewrite(
    raw: bytes,
    *,
    drop: Callable[[str], bool],
    add: Mapping[str, str | int],
    without: tuple[str, ...] = (),
) -> bytes:
    """Copy properties for a republished message: every kept header stays as it came, byte for byte.

    Args:
        raw: the properties of the original.
        drop: true for the name of a header that the copy must not carry.
        add: headers of ours; they replace headers of the same name.
        without: names of other properties that the copy must not carry.

    Returns:
        New properties, always with ``delivery_mode`` 2: a copy must survive what the original survived.

    Raises:
        ValueError: the original's are cut off or hold an unknown field type.
    """
    kept = {name: raw[start:end] for name, _, start, end in _fields(raw) if name not in without}
    table = kept.get("headers", b"")
    entries = [
        table[start:end] for key, start, _, end in _entries(table, 4, len(table)) if key not in add and not drop(key)
    ]
    kept["headers"] = _long(b"".join(entries) + _encode_entries(add))
    kept["delivery_mode"] = _PERSISTENT
    flags = sum(flag for name, flag, _ in _FIELDS if name in kept)
    return _U16.pack(flags) + b"".join(kept[name] for name, _, _ in _FIELDS if name in kept)


@cache
def _present(flags: int, wanted: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name and kind of the properties that are there, up to the last of those that are wanted."""
    if flags & 1:
        raise ValueError("message properties use a second flag word, which AMQP 0-9-1 does not define")
    present = [(name, kind) for name, flag, kind in _FIELDS if flags & flag]
    while present and present[-1][0] not in wanted:
        present.pop()
    return present


def _fields(raw: bytes, *wanted: str) -> list[tuple[str, str, int, int]]:
    """Name and kind of each property that is there, up to the last wanted one, and where it starts and ends."""
    found = []
    try:
        offset = 2
        for name, kind in _present(_U16.unpack_from(raw)[0], wanted or _NAMES):
            if kind == "s":
                end = offset + 1 + raw[offset]
            elif kind == "t":
                end = offset + 4 + _U32.unpack_from(raw, offset)[0]
            else:
                end = offset + _NUMBERS[kind].size
            found.append((name, kind, offset, end))
            offset = end
    except (struct.error, IndexError) as error:
        raise ValueError(f"message properties are cut off: {error}") from error
    if offset > len(raw):
        raise ValueError(f"message properties are cut off in {name}")
    return found


def _entries(raw: bytes, offset: int, end: int, *, named: bool = True) -> list[tuple[str, int, int, int]]:
    """The entries of a table, or of an array, whose entries have no names.

    Returns the name of each, where it starts, where its value starts, and where both end.
    """
    found = []
    while offset < end:
        value = offset + 1 + raw[offset] if named else offset
        value_end = _end_of_value(raw, value)
        if value_end > end:
            raise ValueError("a header runs over the end of its table")
        found.append((_text(raw[offset + 1 : value]), offset, value, value_end))
        offset = value_end
    return found


def _end_of_value(raw: bytes, offset: int) -> int:
    """Where the value at ``offset`` ends; beyond the end of ``raw`` when it is cut off."""
    kind = raw[offset : offset + 1]
    if kind in _FIXED:
        return offset + 1 + _FIXED[kind].size
    if kind in _SIZED:
        return offset + 5 + int.from_bytes(raw[offset + 1 : offset + 5])
    raise ValueError(f"unknown field type {kind!r} in the message headers")


def _table(raw: bytes, start: int, end: int, depth: int) -> dict[str, Any]:
    return {key: _value(raw, value, stop, depth) for key, _, value, stop in _entries(raw, start + 4, end)}


def _value(raw: bytes, offset: int, end: int, depth: int) -> Any:
    if depth > MAX_NESTING:
        raise ValueError(f"message headers are nested more than {MAX_NESTING} levels deep")
    kind = raw[offset : offset + 1]
    offset += 1
    if kind == b"S":
        text = raw[offset + 4 : end]
        try:
            return text.decode()
        except UnicodeDecodeError:
            return text
    if kind in _FIXED:
        numbers = _FIXED[kind].unpack_from(raw, offset)
        return _MADE[kind](*numbers) if kind in _MADE else numbers[0]
    if kind == b"F":
        return _table(raw, offset, end, depth + 1)
    if kind == b"A":
        items = _entries(raw, offset + 4, end, named=False)
        return [_value(raw, start, stop, depth + 1) for _, _, start, stop in items]
    return raw[offset + 4 : end]


def _moment(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds  # after the year 9999: a number is all that can be said


_MADE: dict[bytes, Callable[..., Any]] = {
    b"T": _moment,
    b"D": lambda scale, unscaled: Decimal(unscaled).scaleb(-scale),
    b"V": lambda: None,
}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _short(value: str) -> bytes:
    encoded = value.encode()
    if len(encoded) > 255:
        raise ValueError(f"an AMQP short string holds 255 bytes, not {len(encoded)}: {value[:40]!r}…")
    return bytes((len(encoded),)) + encoded


def _long(content: bytes) -> bytes:
    return _U32.pack(len(content)) + content


def _encode_entries(table: Mapping[str, Any]) -> bytes:
    return b"".join(_short(key) + _encode_value(value) for key, value in table.items())


def _encode_value(value: Any) -> bytes:  # noqa: C901 - one branch per AMQP type
    if isinstance(value, str):
        return b"S" + _long(value.encode())
    if isinstance(value, bool):
        return b"t" + bytes((value,))
    if isinstance(value, int):
        return b"l" + _FIXED[b"l"].pack(value)
    if isinstance(value, float):
        return b"d" + _FIXED[b"d"].pack(value)
    if isinstance(value, bytes):
        return b"x" + _long(value)
    if value is None:
        return b"V"
    if isinstance(value, Mapping):
        return b"F" + _long(_encode_entries(value))
    if isinstance(value, list | tuple):
        return b"A" + _long(b"".join(map(_encode_value, value)))
    if isinstance(value, datetime):
        return b"T" + _FIXED[b"T"].pack(int(value.timestamp()))
    if isinstance(value, Decimal):
        scale = -min(int(value.as_tuple().exponent), 0)
        return b"D" + _FIXED[b"D"].pack(scale, int(value.scaleb(scale)))
    raise TypeError(f"a header cannot hold {type(value).__name__}")
