"""AMQP properties: written, read, copied, and never an error but ValueError."""

import calendar
import contextlib
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pika
import pika.data
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workerkit.properties import MAX_NESTING, Properties, decode, decode_headers, decode_ids, encode, rewrite

text = st.text(st.characters(exclude_categories=["Cs"]))
short = text.filter(lambda value: len(value.encode()) <= 255)
int64 = st.integers(-(2**63), 2**63 - 1)
moments = st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=0)
)
decimals = st.builds(
    lambda unscaled, scale: Decimal(unscaled).scaleb(-scale), st.integers(-(2**31), 2**31 - 1), st.integers(0, 255)
)
# What pika decodes wrongly (floats, to integers) is left out of the comparison with it, not of the round trip.
shared_scalars = st.none() | st.booleans() | int64 | text | moments
scalars = shared_scalars | st.floats(allow_nan=False) | st.binary() | decimals


def tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    nested = st.recursive(
        values, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(short, inner, max_size=4), max_leaves=8
    )
    return st.dictionaries(short, nested, max_size=6)


def properties(headers: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Properties]:
    maybe = st.none() | short
    octet = st.none() | st.integers(0, 255)
    return st.builds(
        Properties,
        content_type=maybe,
        content_encoding=maybe,
        headers=headers,
        delivery_mode=octet,
        priority=octet,
        correlation_id=maybe,
        reply_to=maybe,
        expiration=maybe,
        message_id=maybe,
        timestamp=st.none() | st.integers(0, 2**64 - 1),
        type=maybe,
        user_id=maybe,
        app_id=maybe,
        cluster_id=maybe,
    )


def table_bytes(*entries: bytes) -> bytes:
    """Raw properties that hold a header table of these entries alone."""
    table = b"".join(entries)
    return b"\x20\x00" + struct.pack(">I", len(table)) + table


@given(properties(tables(st.integers(0, 9))))
def test_the_ids_alone_are_what_a_full_decoding_gives(original: Properties) -> None:
    """Every log line about a message asks for them, and for nothing else."""
    assert decode_ids(encode(original)) == (original.message_id, original.correlation_id)


@given(st.binary(max_size=40))
def test_the_ids_of_broken_properties_are_a_value_error_and_nothing_else(raw: bytes) -> None:
    """As with a full decoding, which reads further."""
    try:
        ids = decode_ids(raw)
    except ValueError:
        return
    try:
        whole = decode(raw)
    except ValueError:
        return
    assert ids == (whole.message_id, whole.correlation_id)


@given(properties(tables(scalars)))
def test_what_is_encoded_is_decoded_again(original: Properties) -> None:
    """decode is the inverse of encode, for all fourteen properties and every type a header can have."""
    raw = encode(original)
    assert decode(raw) == original
    assert decode_headers(raw) == original.headers


@given(properties(tables(shared_scalars)))
def test_pika_reads_what_we_write(original: Properties) -> None:
    """Other clients see the properties that were meant: pika's own decoder agrees."""
    theirs = pika.BasicProperties().decode(encode(original))
    for name in Properties.__slots__:
        assert getattr(theirs, name) == (
            getattr(original, name) or (None if name == "headers" else getattr(original, name))
        )


@given(tables(shared_scalars | st.binary() | decimals))
def test_we_read_what_pika_writes(headers: dict[str, Any]) -> None:
    """Every type that pika can write comes out as the value that went in."""
    pieces: list[bytes] = []
    try:
        pika.data.encode_table(pieces, headers)
    except (struct.error, ArithmeticError):  # a decimal that pika rounds or cannot write
        return
    assert decode_headers(b"\x20\x00" + b"".join(pieces)) == pika.data.decode_table(b"".join(pieces), 0)[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"t\x01", True),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xff", -1),
        (b"U\xff\xff", -1),
        (b"u\xff\xff", 65535),
        (b"I\xff\xff\xff\xff", -1),
        (b"i\xff\xff\xff\xff", 2**32 - 1),
        (b"l" + b"\xff" * 8, -1),
        (b"L" + b"\xff" * 8, -1),
        (b"f" + struct.pack(">f", 1.5), 1.5),
        (b"d" + struct.pack(">d", 0.1), 0.1),
        (b"D\x02" + struct.pack(">i", -12345), Decimal("-123.45")),
        (b"S\x00\x00\x00\x02\xc3\xa9", "é"),
        (b"S\x00\x00\x00\x01\xff", b"\xff"),
        (b"x\x00\x00\x00\x01a", b"a"),
        (b"T" + struct.pack(">Q", 0), datetime(1970, 1, 1, tzinfo=UTC)),
        (b"T" + b"\xff" * 8, 2**64 - 1),
        (b"V", None),
        (b"A\x00\x00\x00\x03Vt\x00", [None, False]),
        (b"F\x00\x00\x00\x03\x01kV", {"k": None}),
    ],
)
def test_every_field_type_that_rabbitmq_sends_is_read(field: bytes, value: object) -> None:
    """The types are those of RabbitMQ's errata, not those of the specification."""
    found = decode_headers(table_bytes(b"\x01k" + field))
    assert found == {"k": value}
    assert type(found["k"]) is type(value)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x20\x00\xff\xff\xff\xff")
@example(b"\x20\x00\x00\x00\x00\x04\x01kA\x00")
def test_broken_properties_are_a_value_error_and_nothing_else(raw: bytes) -> None:
    """Whatever bytes a publisher sends, reading and copying them ends in a result or in ValueError."""
    for read in (decode, decode_headers, lambda data: rewrite(data, drop=lambda _: False, add={"a": 1})):
        with contextlib.suppress(ValueError):
            read(raw)


@given(properties(tables(scalars)), st.data())
def test_properties_that_are_cut_off_or_changed_are_a_value_error_and_nothing_else(
    original: Properties, data: st.DataObject
) -> None:
    """The same for bytes that are nearly right, which reach deeper into the decoder than random ones."""
    raw = bytearray(encode(original))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    for read in (decode, decode_headers, lambda data: rewrite(data, drop=lambda _: False, add={"a": 1})):
        with contextlib.suppress(ValueError):
            read(bytes(raw))


def test_a_table_nested_too_deeply_is_refused_before_the_stack_ends() -> None:
    """A few kilobytes of nesting must not become a RecursionError."""
    value = b"V"
    for _ in range(3000):
        value = b"A" + struct.pack(">I", len(value)) + value
    with pytest.raises(ValueError, match=f"nested more than {MAX_NESTING} levels"):
        decode_headers(table_bytes(b"\x01k" + value))


@pytest.mark.parametrize(
    "wrong",
    [
        Properties(message_id="ä" * 128),
        Properties(priority=256),
        Properties(timestamp=-1),
        Properties(delivery_mode="2"),  # type: ignore[arg-type]
        Properties(headers={"k": object()}),
        Properties(headers={"k": 2**63}),
        Properties(headers={"k": Decimal("1e40")}),
        Properties(headers={"k": Decimal("1e-3000000")}),
        Properties(headers={"k": "\udcff"}),
        Properties(headers={"k" * 256: 1}),
    ],
)
def test_a_value_that_does_not_fit_is_a_value_error(wrong: Properties) -> None:
    """Nothing is truncated or guessed: what cannot be sent is refused."""
    with pytest.raises(ValueError):
        encode(wrong)


@given(properties(tables(scalars)), st.data())
def test_a_rewritten_copy_keeps_every_other_header_byte_for_byte(original: Properties, data: st.DataObject) -> None:
    """Dropped and replaced headers go, the rest stays as it came: the bytes of each kept entry are in the copy."""
    names = sorted(original.headers)
    dropped = set(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else set()
    added = data.draw(st.dictionaries(short, text | int64, max_size=3))
    copy = rewrite(encode(original), drop=dropped.__contains__, add=added, without=("expiration", "user_id"))
    kept = {name: value for name, value in original.headers.items() if name not in dropped and name not in added}
    assert encode(Properties(headers=kept))[6:] == copy_table(copy)[: len(encode(Properties(headers=kept))[6:])]
    assert decode_headers(copy) == kept | added
    expected = decode(encode(original))
    expected.headers, expected.delivery_mode = kept | added, 2
    expected.expiration = expected.user_id = None
    assert decode(copy) == expected


def copy_table(raw: bytes) -> bytes:
    """The entries of the header table, found without the code under test: by pika's walk over the properties."""
    flags = struct.unpack_from(">H", raw)[0]
    offset = 2
    for bit in (15, 14):
        if flags >> bit & 1:
            offset += 1 + raw[offset]
    size = struct.unpack_from(">I", raw, offset)[0]
    return raw[offset + 4 : offset + 4 + size]


def test_field_types_that_we_never_write_survive_a_copy() -> None:
    """A float stays a float and a short stays a short: copying decodes nothing."""
    entries = [
        b"\x01f" + b"f" + struct.pack(">f", 0.1),
        b"\x01s" + b"s" + struct.pack(">h", -3),
        b"\x01F" + b"F" + struct.pack(">I", 4) + b"\x01kB\xff",
        b"\x01x" + b"x" + struct.pack(">I", 2) + b"\x00\xff",
        b"\x01S" + b"S" + struct.pack(">I", 1) + b"\xff",
    ]
    copy = rewrite(table_bytes(b"\x05x-oldV", *entries), drop=lambda name: name == "x-old", add={})
    assert copy_table(copy) == b"".join(entries)


def test_a_timestamp_property_is_whole_seconds_in_utc() -> None:
    """The meaning that RabbitMQ and pika give it."""
    moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
    raw = encode(Properties(timestamp=calendar.timegm(moment.timetuple())))
    assert pika.BasicProperties().decode(raw).timestamp == moment.timestamp()
