"""The short cut past pika's frame objects, proven against pika's own decoding."""

import struct
from typing import Any

import pika
import pika.exceptions
import pika.frame
import pika.spec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workerkit.brokers.rabbitmq.frames import FrameSplitter

FRAME_MAX = 40  # of bodies here; small, so that a body takes several frames

short = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: len(text.encode()) < 256)
properties = st.builds(
    pika.BasicProperties,
    content_type=st.none() | short,
    headers=st.none() | st.dictionaries(short, st.integers(-(2**31), 2**31 - 1) | short, max_size=3),
    message_id=st.none() | short,
    delivery_mode=st.none() | st.integers(0, 255),
)
deliveries = st.tuples(
    st.builds(
        pika.spec.Basic.Deliver,
        consumer_tag=short,
        delivery_tag=st.integers(0, 2**64 - 1),
        redelivered=st.booleans(),
        exchange=short,
        routing_key=short,
    ),
    properties,
    st.binary(max_size=3 * FRAME_MAX),
)
methods = st.sampled_from(
    [
        pika.spec.Basic.Ack(7, multiple=True),
        pika.spec.Basic.Cancel("tag"),
        pika.spec.Basic.ConsumeOk("tag"),
        pika.spec.Channel.Close(404, "gone", 60, 20),
        pika.spec.Queue.DeclareOk("q", 1, 2),
    ]
)
returned = st.tuples(
    st.builds(pika.spec.Basic.Return, st.just(312), short, short, short), properties, st.binary(max_size=60)
)
contents = deliveries | returned


@st.composite
def alike(draw: st.DrawFn) -> list[tuple[Any, pika.BasicProperties, bytes]]:
    """What a busy queue gives: deliveries of one subscription that differ in tag, flag, properties and body."""
    tag, exchange, key = draw(st.tuples(short, short, short))
    bodies = draw(st.lists(st.binary(max_size=FRAME_MAX + 5), max_size=12))
    props = st.just(pika.BasicProperties()) | properties
    return [
        (pika.spec.Basic.Deliver(tag, number, draw(st.booleans()), exchange, key), draw(props), body)
        for number, body in enumerate(bodies, draw(st.integers(0, 2**60)))
    ]


def content_frames(channel: int, content: tuple[Any, pika.BasicProperties, bytes]) -> list[bytes]:
    """A method, its content header, and its body in frames of at most FRAME_MAX bytes."""
    method, props, body = content
    frames = [pika.frame.Method(channel, method).marshal(), pika.frame.Header(channel, len(body), props).marshal()]
    chunks = [body[start : start + FRAME_MAX] for start in range(0, len(body), FRAME_MAX)]
    return frames + [pika.frame.Body(channel, chunk).marshal() for chunk in chunks]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """What a broker may send: channels in any interleaving, each one's content whole and in order."""
    queues: list[list[bytes]] = []
    for channel in draw(st.lists(st.integers(1, 4), unique=True, min_size=1)):
        frames: list[bytes] = []
        for item in draw(st.lists(alike() | contents | methods, max_size=4)):
            if isinstance(item, list):
                frames += [frame for content in item for frame in content_frames(channel, content)]
            elif isinstance(item, tuple):
                frames += content_frames(channel, item)
            else:
                frames.append(pika.frame.Method(channel, item).marshal())
        queues.append(frames)
    queues.append([pika.frame.Heartbeat().marshal()] * draw(st.integers(0, 2)))
    stream = []
    while any(queues):
        stream.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    return b"".join(stream)


def by_pika(stream: bytes) -> list[tuple[Any, ...]]:
    """The events of a stream by pika's decoder and the rules of AMQP: deliveries where they end, other frames in turn.

    Frames that belong to a delivery are no events of their own.
    """
    events: list[tuple[Any, ...]] = []
    open_deliveries: dict[int, list[Any]] = {}
    while stream:
        used, frame = pika.frame.decode_frame(stream)
        raw, stream = stream[:used], stream[used:]
        channel = frame.channel_number
        current = open_deliveries.get(channel)
        if isinstance(frame, pika.frame.Method) and isinstance(frame.method, pika.spec.Basic.Deliver):
            open_deliveries[channel] = [frame.method, None, b""]
            continue
        if isinstance(frame, pika.frame.Header) and current is not None:
            current[1] = frame
        elif isinstance(frame, pika.frame.Body) and current is not None:
            current[2] += frame.fragment
        else:
            events.append(("frame", raw))
            continue
        if len(current[2]) == current[1].body_size:
            del open_deliveries[channel]
            deliver, header, body = current
            facts = (deliver.delivery_tag, deliver.redelivered, deliver.exchange, deliver.routing_key)
            events.append(("delivery", channel, *facts, header.properties, body))
    return events


def by_us(stream: bytes, cuts: list[int]) -> tuple[list[tuple[Any, ...]], FrameSplitter]:
    splitter = FrameSplitter()
    events: list[tuple[Any, ...]] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        for item in splitter.feed(stream[start:end]):
            if isinstance(item, bytes):
                events.append(("frame", item))
                continue
            channel, batch = item
            for delivery in batch:
                props = pika.BasicProperties()
                props.decode(delivery.raw_properties)
                facts = (delivery.tag, delivery.redelivered, delivery.exchange, delivery.routing_key)
                events.append(("delivery", channel, *facts, props, delivery.body))
    return events, splitter


@settings(max_examples=100)
@given(streams(), st.data())
def test_it_finds_what_pika_finds_however_the_stream_is_cut(stream: bytes, data: st.DataObject) -> None:
    """The same deliveries and the same other frames, in the same order, for any stream and any reads."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=20)))
    events, _ = by_us(stream, cuts)
    assert events == by_pika(stream)


@settings(max_examples=20)
@given(streams())
def test_it_finds_what_pika_finds_byte_by_byte(stream: bytes) -> None:
    """The worst reads there are."""
    events, _ = by_us(stream, list(range(1, len(stream))))
    assert events == by_pika(stream)


@given(streams())
def test_pikas_counters_stay_right(stream: bytes) -> None:
    """Each frame is counted once: those recognised here, and those left to pika."""
    events, splitter = by_us(stream, [])
    total, rest = 0, stream
    while rest:
        used, _ = pika.frame.decode_frame(rest)
        total, rest = total + 1, rest[used:]
    assert splitter.frames + sum(kind == "frame" for kind, *_ in events) == total


class OneWay(FrameSplitter):
    """Reads everything frame by frame."""

    def _take_alike(self, _shape: Any, _buffer: bytes, offset: int, _found: Any) -> int:
        return offset


def taken(splitter: FrameSplitter, stream: bytes, cuts: list[int]) -> list[Any]:
    """What comes out, with the batches laid end to end."""
    out: list[Any] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        for item in splitter.feed(stream[start:end]):
            out += [item] if isinstance(item, bytes) else [(item[0], delivery) for delivery in item[1]]
    return out


@settings(max_examples=300)
@given(alike(), st.data())
def test_both_ways_through_a_stream_agree_on_wrong_bytes(
    contents: list[tuple[Any, pika.BasicProperties, bytes]], data: st.DataObject
) -> None:
    """The quick way checks what the other one checks: it reads past no wrong byte and counts no frame twice."""
    stream = bytearray(b"".join(frame for content in contents for frame in content_frames(1, content)))
    for _ in range(data.draw(st.integers(0, 2)) if stream else 0):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=3)))
    both, one = FrameSplitter(), OneWay()
    assert taken(both, bytes(stream), cuts) == taken(one, bytes(stream), cuts)
    assert both.frames == one.frames


def test_a_body_frame_cut_off_by_the_read_that_has_a_wrong_end_makes_pika_fail() -> None:
    """It is handed on as it came."""
    splitter = FrameSplitter()
    deliver = (pika.spec.Basic.Deliver("t", 1, False, "", "k"), pika.BasicProperties(), b"0123456789")
    stream = b"".join(content_frames(1, deliver))
    splitter.feed(stream[:-5])
    (broken,) = splitter.feed(stream[-5:-1] + b"\0")
    with pytest.raises(pika.exceptions.InvalidFrameError):
        pika.frame.decode_frame(broken)


def header_frame(kind: int, size: int, properties: bytes) -> bytes:
    payload = struct.pack(">HHQ", kind, 0, size) + properties
    return struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce"


@pytest.mark.parametrize("first", [True, False], ids=["frame by frame", "among messages alike"])
@pytest.mark.parametrize(
    ("header", "body"),
    [
        (header_frame(60, 0, b"\0\0"), pika.frame.Body(1, b"").marshal()),
        (header_frame(50, 1, b"\0\0"), pika.frame.Body(1, b"x").marshal()),
        (header_frame(60, 1, b""), pika.frame.Body(1, b"x").marshal()),
    ],
    ids=["a body frame after an empty body", "content of another class", "no property flags"],
)
def test_content_that_is_not_as_it_should_be_is_left_to_pika(header: bytes, body: bytes, first: bool) -> None:
    """pika ends the connection over it, on both ways."""
    splitter = FrameSplitter()
    deliver = pika.frame.Method(1, pika.spec.Basic.Deliver("t", 1, False, "", "k")).marshal()
    if not first:
        splitter.feed(deliver + header_frame(60, 1, b"\0\0") + pika.frame.Body(1, b"x").marshal())
    found = splitter.feed(deliver + header + body)
    assert body in found


def test_a_delivery_says_where_it_came_from() -> None:
    """The queue and the channel incarnation, on both ways, so that it can be settled on no other."""
    splitter = FrameSplitter()
    splitter.sources[3] = ("jobs", 7)
    content = [(pika.spec.Basic.Deliver("t", tag, False, "", "k"), pika.BasicProperties(), b"x") for tag in (1, 2, 3)]
    (batch,) = splitter.feed(b"".join(frame for one in content for frame in content_frames(3, one)))
    assert [(d.queue, d.receipt, d.tag) for d in batch[1]] == [("jobs", 7, 1), ("jobs", 7, 2), ("jobs", 7, 3)]


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_raises_nothing_here(reads: list[bytes]) -> None:
    """pika fails on it, in its own way, which closes the connection."""
    splitter = FrameSplitter()
    for data in reads:
        splitter.feed(data)


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack(">HH", 60, 60),
        struct.pack(">HH", 60, 60) + b"\xff",
        struct.pack(">HHB", 60, 60, 0) + b"\0" * 9,
        struct.pack(">HHB", 60, 60, 0) + b"\0" * 9 + b"\x05",
    ],
)
def test_a_delivery_shorter_than_its_fields_is_left_to_pika(payload: bytes) -> None:
    """Whole, as it came."""
    frame = struct.pack(">BHI", 1, 1, len(payload)) + payload + b"\xce"
    assert FrameSplitter().feed(frame) == [frame]


def test_a_content_header_shorter_than_its_fields_is_left_to_pika() -> None:
    """After a delivery that was good."""
    deliver = pika.frame.Method(1, pika.spec.Basic.Deliver("t", 1, False, "", "k")).marshal()
    header = struct.pack(">BHI", 2, 1, 2) + b"\0\x3c" + b"\xce"
    assert FrameSplitter().feed(deliver + header) == [header]


def test_content_without_a_delivery_is_left_to_pika() -> None:
    """A header where a body was due, and a body that nobody announced."""
    body = pika.frame.Body(1, b"x").marshal()
    assert FrameSplitter().feed(body) == [body]
    deliver = pika.frame.Method(1, pika.spec.Basic.Deliver("t", 1, False, "", "k")).marshal()
    assert FrameSplitter().feed(deliver + body) == [body]


def test_a_frame_without_its_end_is_left_to_pika() -> None:
    """The marker is another byte."""
    frame = bytearray(pika.frame.Heartbeat().marshal())
    frame[-1] = 0
    assert FrameSplitter().feed(bytes(frame)) == [bytes(frame)]


def test_the_protocol_header_of_a_broker_that_refuses_ours_is_handed_on_at_once() -> None:
    """It has the form of no frame: its length would be read as megabytes to wait for."""
    assert FrameSplitter().feed(b"AMQP\x00\x01\x00\x00") == [b"AMQP\x00\x01\x00\x00"]
