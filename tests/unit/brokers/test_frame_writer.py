"""The frames of a publish that are put together by hand, proven against those that pika makes of it."""

import asyncio
from types import SimpleNamespace

import pika
import pika.connection
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.loops import on_a_loop

from workerkit.brokers.rabbitmq.frame_writer import WRITE_SIZE, FrameWriter

BODY_MAX = 40  # bytes of a body frame here; small, so that a body takes several
NUMBER = 7

names = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: len(name.encode()) <= 255)
tables = st.dictionaries(names, st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | names, max_size=3)
properties = st.builds(
    pika.BasicProperties,
    content_type=st.none() | names,
    headers=st.none() | tables,
    delivery_mode=st.none() | st.integers(0, 255),
    correlation_id=st.none() | names,
    message_id=st.none() | names,
    timestamp=st.none() | st.integers(0, 2**63),
)
publishes = st.tuples(names, names, properties, st.binary(max_size=3 * BODY_MAX + 1))


class Connection:
    """As much of a connection as a publish passes through, ours or pika's way, and what it wrote."""

    def __init__(self, body_max: int) -> None:
        self._body_max_length = body_max
        self.written: list[bytes] = []
        self.frames = 0

    def write(self, data: bytes, frames: int) -> None:
        self.written.append(data)
        self.frames += frames

    def _output_marshaled_frames(self, frames: list[bytes]) -> None:
        self.written += frames


def channel(number: int = NUMBER, body_max: int = BODY_MAX) -> SimpleNamespace:
    return SimpleNamespace(channel_number=number, connection=Connection(body_max), is_open=True)


def by_pika(channel: SimpleNamespace, exchange: str, key: str, props: pika.BasicProperties, body: bytes) -> list[bytes]:
    """The frames that pika makes of it."""
    connection = Connection(channel.connection._body_max_length)
    method = pika.spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
    pika.connection.Connection._send_message(connection, channel.channel_number, method, (props, body))
    return connection.written


@given(st.lists(publishes, max_size=6), st.integers(1, 65535), st.integers(1, BODY_MAX))
def test_every_byte_is_what_pika_writes(messages, number, body_max):
    """Names in any script, any properties, bodies from none to several frames, one publish or some in a row."""
    pika_channel = channel(number, body_max)

    async def publish() -> None:
        writer = FrameWriter(pika_channel.connection, pika_channel)
        for exchange, key, props, body in messages:
            writer.publish(exchange, key, b"".join(props.encode()), body)
        await asyncio.sleep(0)

    asyncio.run(publish())
    expected = [frame for message in messages for frame in by_pika(pika_channel, *message)]
    assert b"".join(pika_channel.connection.written) == b"".join(expected)
    assert pika_channel.connection.frames == len(expected)


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_body_at_the_edge_of_a_frame(frames, over):
    """With the size that brokers negotiate: no empty frame after a full one."""
    pika_channel = channel(1, 131064)
    body = bytes(131064 * frames + over)

    async def publish() -> None:
        FrameWriter(pika_channel.connection, pika_channel).publish("", "q", b"\0\0", body)
        await asyncio.sleep(0)

    asyncio.run(publish())
    expected = by_pika(pika_channel, "", "q", pika.BasicProperties(), body)
    assert b"".join(pika_channel.connection.written) == b"".join(expected)
    assert pika_channel.connection.frames == len(expected)


@on_a_loop
async def test_publishes_of_one_turn_are_one_write():
    """And nothing is written before the turn is over."""
    pika_channel = channel()
    writer = FrameWriter(pika_channel.connection, pika_channel)
    for turn in (1, 2):
        for _ in range(10):
            writer.publish("", "q", b"\0\0", b"body")
        assert len(pika_channel.connection.written) == turn - 1
        await asyncio.sleep(0)
        assert len(pika_channel.connection.written) == turn


@on_a_loop
async def test_one_write_is_never_much_more_than_a_socket_takes():
    """However much is published in one turn, and however big a message is."""
    pika_channel = channel(body_max=1000)
    writer = FrameWriter(pika_channel.connection, pika_channel)
    for size in [300] * 2000 + [10 * WRITE_SIZE] + [900] * 200:
        writer.publish("", "q", b"\0\0", bytes(size))
    await asyncio.sleep(0)
    sizes = [len(data) for data in pika_channel.connection.written]
    assert max(sizes) < WRITE_SIZE + 2000


@on_a_loop
async def test_a_name_that_is_too_long_takes_nothing():
    """What was published before and after it is complete."""
    pika_channel = channel()
    writer = FrameWriter(pika_channel.connection, pika_channel)
    writer.publish("", "q", b"\0\0", b"1")
    for exchange, key in [("", "ä" * 128), ("x" * 256, "")]:
        with pytest.raises(ValueError, match="at most 255 bytes, not 256"):
            writer.publish(exchange, key, b"\0\0", b"refused")
    writer.publish("", "q", b"\0\0", b"2")
    await asyncio.sleep(0)
    expected = [
        frame for body in (b"1", b"2") for frame in by_pika(pika_channel, "", "q", pika.BasicProperties(), body)
    ]
    assert b"".join(pika_channel.connection.written) == b"".join(expected)


@pytest.mark.parametrize("size", [1, 2 * WRITE_SIZE])
@on_a_loop
async def test_nothing_is_written_on_a_closed_channel(size):
    """The broker would close the whole connection over it."""
    pika_channel = channel()
    writer = FrameWriter(pika_channel.connection, pika_channel)
    writer.publish("", "q", b"\0\0", b"before")
    pika_channel.is_open = False
    writer.publish("", "q", b"\0\0", bytes(size))
    await asyncio.sleep(0)
    assert pika_channel.connection.written == []


@on_a_loop
async def test_nothing_is_written_after_a_stop():
    """Not even what was taken before it: the caller may be sending that again."""
    pika_channel = channel()
    writer = FrameWriter(pika_channel.connection, pika_channel)
    writer.publish("", "q", b"\0\0", b"before")
    writer.stop()
    await asyncio.sleep(0)
    assert pika_channel.connection.written == []
