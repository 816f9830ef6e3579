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

_HEADERS_BIT = 13
_DELIVERY_MODE_BIT = 12

# (name, flag bit, kind) in wire order; kinds: s short string, t table, o octet, q 64-bit timestamp.
_FIELDS = (
    ("content_type", 15, "s"),
    ("content_encoding", 14, "s"),
    ("headers", _HEADERS_BIT, "t"),
    ("delivery_mode", _DELIVERY_MODE_BIT, "o"),
    ("priority", 11, "o"),
    ("correlation_id", 10, "s"),
    ("reply_to", 9, "s"),
    ("expiration", 8, "s"),
    ("message_id", 7, "s"),
    ("timestamp", 6, "q"),
    ("type", 5, "s"),
    ("user_id", 4, "s"),
    ("app_id", 3, "s"),
    ("cluster_id", 2, "s"),
)
_BITS = {name: bit for name, bit, _ in _FIELDS}
_IDS = ("correlation_id", "message_id")

_FIXED = {
    b"t": struct.Struct(">?"),
    b"b": struct.Struct(">b"),
    b"B": struct.Struct(">B"),
    b"s": struct.Struct(">h"),
    b"U": struct.Struct(">h"),
    b"u": struct.Struct(">H"),
    b"I": struct.Struct(">i"),
    b"i": struct.Struct(">I"),
    b"l": struct.Struct(">q"),
    b"L": struct.Struct(">q"),
    b"f": struct.Struct(">f"),
    b"d": struct.Struct(">d"),
}
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_DECIMAL = struct.Struct(">Bi")
MAX_NESTING = 32
"""Tables and arrays nested deeper than this are refused: nobody sends them in good faith."""


@dataclass(slots=True)
class Properties:
    """The fourteen properties of AMQP 0-9-1, with RabbitMQ's names and meanings.

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


def decode(raw: bytes) -> Properties:
    """Read the property flags and the property list of a content header frame.

    Raises:
        ValueError: the bytes are cut off, nested too deeply or hold an unknown field type.
    """
    properties = Properties()
    try:
        for name, kind, start, end in _fields(raw):
            if kind == "s":
                value: Any = _text(raw[start + 1 : end])
            elif kind == "t":
                value = _table(raw, start, end, 0)
            elif kind == "o":
                value = raw[start]
            else:
                value = _U64.unpack_from(raw, start)[0]
            setattr(properties, name, value)
    except (struct.error, IndexError) as error:
        raise ValueError(f"message properties are cut off: {error}") from error
    return properties


def decode_headers(raw: bytes) -> dict[str, Any]:
    """Read the header table alone. Raises ValueError as ``decode`` does."""
    try:
        for name, _, start, end in _fields(raw):
            if name == "headers":
                return _table(raw, start, end, 0)
    except (struct.error, IndexError) as error:
        raise ValueError(f"message headers are cut off: {error}") from error
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
    ids: dict[str, str] = {}
    try:
        offset = 2
        for name, kind in _fields_up_to_ids(_U16.unpack_from(raw)[0]):
            if kind == "s":
                end = offset + 1 + raw[offset]
                if name in _IDS:
                    if end > len(raw):
                        raise ValueError(f"message properties are cut off in {name}")
                    ids[name] = _text(raw[offset + 1 : end])
                offset = end
            elif kind == "t":
                offset += 4 + _U32.unpack_from(raw, offset)[0]
            else:
                offset += 1
    except (struct.error, IndexError) as error:
        raise ValueError(f"message properties are cut off: {error}") from error
    return ids.get("message_id"), ids.get("correlation_id")


@cache
def _fields_up_to_ids(flags: int) -> list[tuple[str, str]]:
    """Name and kind of the properties that are present, up to the last of the two ids."""
    present = [(name, kind) for name, bit, kind in _FIELDS if flags >> bit & 1]
    wanted = [index for index, (name, _) in enumerate(present) if name in _IDS]
    return present[: wanted[-1] + 1] if wanted else []


def encode(properties: Properties) -> bytes:
    """Write the property flags and list.

    Raises:
        ValueError: a value does not fit its field (a short string over 255 bytes, a header of a foreign type).
    """
    flags = 0
    pieces = []
    for name, bit, kind in _FIELDS:
        value = getattr(properties, name)
        if value is None or (kind == "t" and not value):
            continue
        flags |= 1 << bit
        try:
            if kind == "s":
                pieces.append(_short(value))
            elif kind == "t":
                pieces.append(_encode_table(value))
            elif kind == "o":
                pieces.append(bytes((value,)))
            else:
                pieces.append(_U64.pack(value))
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
    flags = 1 << _HEADERS_BIT | 1 << _DELIVERY_MODE_BIT
    kept: dict[str, bytes] = {}
    table = b""
    try:
        for name, _, start, end in _fields(raw):
            if name == "headers":
                table = b"".join(
                    raw[entry_start:entry_end]
                    for key, entry_start, entry_end in _entries(raw, start + 4, end)
                    if key not in add and not drop(key)
                )
            elif name not in without:
                kept[name] = raw[start:end]
    except (struct.error, IndexError) as error:
        raise ValueError(f"message properties are cut off: {error}") from error
    table += _encode_entries(add)
    kept["headers"] = _U32.pack(len(table)) + table
    kept["delivery_mode"] = b"\x02"
    for name in kept:
        flags |= 1 << _BITS[name]
    return _U16.pack(flags) + b"".join(kept[name] for name, _, _ in _FIELDS if name in kept)


def _fields(raw: bytes) -> list[tuple[str, str, int, int]]:
    """Where each property that is present starts and ends."""
    flags = _U16.unpack_from(raw)[0]
    if flags & 1:
        raise ValueError("message properties use a second flag word, which AMQP 0-9-1 does not define")
    offset = 2
    found = []
    for name, bit, kind in _FIELDS:
        if not flags >> bit & 1:
            continue
        if kind == "s":
            end = offset + 1 + raw[offset]
        elif kind == "t":
            end = offset + 4 + _U32.unpack_from(raw, offset)[0]
        else:
            end = offset + (1 if kind == "o" else 8)
        if end > len(raw):
            raise ValueError(f"message properties are cut off in {name}")
        found.append((name, kind, offset, end))
        offset = end
    return found


def _entries(raw: bytes, offset: int, end: int) -> list[tuple[str, int, int]]:
    """The key of each entry of a table, and where the whole entry starts and ends."""
    entries = []
    while offset < end:
        key_end = offset + 1 + raw[offset]
        value_end = _skip(raw, key_end)
        if value_end > end:
            raise ValueError("a header runs over the end of its table")
        entries.append((_text(raw[offset + 1 : key_end]), offset, value_end))
        offset = value_end
    return entries


def _skip(raw: bytes, offset: int) -> int:
    kind = raw[offset : offset + 1]
    offset += 1
    if kind in _FIXED:
        return offset + _FIXED[kind].size
    if kind in (b"S", b"x", b"A", b"F"):
        return offset + 4 + int(_U32.unpack_from(raw, offset)[0])
    if kind == b"T":
        return offset + 8
    if kind == b"D":
        return offset + 5
    if kind == b"V":
        return offset
    raise ValueError(f"unknown field type {kind!r} in the message headers")


def _table(raw: bytes, start: int, end: int, depth: int) -> dict[str, Any]:
    result = {}
    for key, entry_start, entry_end in _entries(raw, start + 4, end):
        value_start = entry_start + 1 + raw[entry_start]
        result[key] = _value(raw, value_start, entry_end, depth)
    return result


def _value(raw: bytes, offset: int, end: int, depth: int) -> Any:  # noqa: C901 - one branch per AMQP type
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
        return _FIXED[kind].unpack_from(raw, offset)[0]
    if kind == b"x":
        return raw[offset + 4 : end]
    if kind == b"F":
        return _table(raw, offset, end, depth + 1)
    if kind == b"A":
        items = []
        offset += 4
        while offset < end:
            item_end = _skip(raw, offset)
            if item_end > end:
                raise ValueError("an array in the message headers runs over its end")
            items.append(_value(raw, offset, item_end, depth + 1))
            offset = item_end
        return items
    if kind == b"T":
        seconds = _U64.unpack_from(raw, offset)[0]
        try:
            return datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError):
            return seconds  # after the year 9999: a number is all that can be said
    if kind == b"D":
        scale, unscaled = _DECIMAL.unpack_from(raw, offset)
        return Decimal(unscaled).scaleb(-scale)
    return None  # V; _skip has refused everything unknown


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _short(value: str) -> bytes:
    encoded = value.encode()
    if len(encoded) > 255:
        raise ValueError(f"an AMQP short string holds 255 bytes, not {len(encoded)}: {value[:40]!r}…")
    return bytes((len(encoded),)) + encoded


def _encode_entries(table: Mapping[str, Any]) -> bytes:
    return b"".join(_short(key) + _encode_value(value) for key, value in table.items())


def _encode_table(table: Mapping[str, Any]) -> bytes:
    body = _encode_entries(table)
    return _U32.pack(len(body)) + body


def _encode_value(value: Any) -> bytes:  # noqa: C901 - one branch per AMQP type
    if isinstance(value, str):
        encoded = value.encode()
        return b"S" + _U32.pack(len(encoded)) + encoded
    if isinstance(value, bool):
        return b"t" + bytes((value,))
    if isinstance(value, int):
        return b"l" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"x" + _U32.pack(len(value)) + value
    if value is None:
        return b"V"
    if isinstance(value, Mapping):
        return b"F" + _encode_table(value)
    if isinstance(value, list | tuple):
        body = b"".join(_encode_value(item) for item in value)
        return b"A" + _U32.pack(len(body)) + body
    if isinstance(value, datetime):
        return b"T" + _U64.pack(int(value.timestamp()))
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        scale = -min(int(exponent), 0)
        return b"D" + _DECIMAL.pack(scale, int(value.scaleb(scale)))
    raise TypeError(f"a header cannot hold {type(value).__name__}")
