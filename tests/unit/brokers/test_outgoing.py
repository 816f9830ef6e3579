"""The frames of a publish that are put together by hand, proven against those that pika makes of it."""

import asyncio
import logging
from types import SimpleNamespace

import pika
import pika.connection
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.loops import on_a_loop

from workerkit.brokers.rabbitmq.outgoing import WRITE_SIZE, Outgoing, open_outgoing

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
    """As much of pika's as a publish passes through, and what it wrote."""

    def __init__(self, body_max: int) -> None:
        self._body_max_length = body_max
        self.written: list[bytes] = []

    def _output_marshaled_frames(self, frames: list[bytes]) -> None:
        self.written += frames


def channel(number: int = NUMBER, body_max: int = BODY_MAX) -> SimpleNamespace:
    return SimpleNamespace(channel_number=number, connection=Connection(body_max), is_open=True)


def as_pika(channel: SimpleNamespace, exchange: str, key: str, props: pika.BasicProperties, body: bytes) -> bytes:
    connection = Connection(channel.connection._body_max_length)
    method = pika.spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
    pika.connection.Connection._send_message(connection, channel.channel_number, method, (props, body))
    return b"".join(connection.written)


@given(st.lists(publishes, max_size=6), st.integers(1, 65535), st.integers(1, BODY_MAX))
def test_every_byte_is_what_pika_writes(messages, number, body_max):
    """Names in any script, any properties, bodies from none to several frames, one publish or some in a row."""
    pika_channel = channel(number, body_max)

    async def publish() -> None:
        outgoing = Outgoing(pika_channel)
        for exchange, key, props, body in messages:
            outgoing.publish(exchange, key, b"".join(props.encode()), body)
        await asyncio.sleep(0)

    asyncio.run(publish())
    expected = b"".join(as_pika(pika_channel, *message) for message in messages)
    assert b"".join(pika_channel.connection.written) == expected


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_body_at_the_edge_of_a_frame(frames, over):
    """With the size that brokers negotiate: no empty frame after a full one."""
    pika_channel = channel(1, 131064)
    body = bytes(131064 * frames + over)

    async def publish() -> None:
        Outgoing(pika_channel).publish("", "q", b"\0\0", body)
        await asyncio.sleep(0)

    asyncio.run(publish())
    assert b"".join(pika_channel.connection.written) == as_pika(pika_channel, "", "q", pika.BasicProperties(), body)


@on_a_loop
async def test_publishes_of_one_turn_are_one_write():
    """And nothing is written before the turn is over."""
    pika_channel = channel()
    outgoing = Outgoing(pika_channel)
    for turn in (1, 2):
        for _ in range(10):
            outgoing.publish("", "q", b"\0\0", b"body")
        assert len(pika_channel.connection.written) == turn - 1
        await asyncio.sleep(0)
        assert len(pika_channel.connection.written) == turn


@on_a_loop
async def test_one_write_is_never_much_more_than_a_socket_takes():
    """However much is published in one turn, and however big a message is."""
    pika_channel = channel(body_max=1000)
    outgoing = Outgoing(pika_channel)
    for size in [300] * 2000 + [10 * WRITE_SIZE] + [900] * 200:
        outgoing.publish("", "q", b"\0\0", bytes(size))
    await asyncio.sleep(0)
    sizes = [len(data) for data in pika_channel.connection.written]
    assert max(sizes) < WRITE_SIZE + 2000


@on_a_loop
async def test_a_name_that_is_too_long_takes_nothing():
    """What was published before and after it is complete."""
    pika_channel = channel()
    outgoing = Outgoing(pika_channel)
    outgoing.publish("", "q", b"\0\0", b"1")
    for exchange, key in [("", "ä" * 128), ("x" * 256, "")]:
        with pytest.raises(ValueError, match="at most 255 bytes, not 256"):
            outgoing.publish(exchange, key, b"\0\0", b"refused")
    outgoing.publish("", "q", b"\0\0", b"2")
    await asyncio.sleep(0)
    expected = [as_pika(pika_channel, "", "q", pika.BasicProperties(), body) for body in (b"1", b"2")]
    assert b"".join(pika_channel.connection.written) == b"".join(expected)


@pytest.mark.parametrize("size", [1, 2 * WRITE_SIZE])
@on_a_loop
async def test_nothing_is_written_on_a_closed_channel(size):
    """The broker would close the whole connection over it."""
    pika_channel = channel()
    outgoing = Outgoing(pika_channel)
    outgoing.publish("", "q", b"\0\0", b"before")
    pika_channel.is_open = False
    outgoing.publish("", "q", b"\0\0", bytes(size))
    await asyncio.sleep(0)
    assert pika_channel.connection.written == []


@pytest.mark.parametrize("missing", ["_output_marshaled_frames", "_body_max_length"])
@on_a_loop
async def test_another_pika_is_used_as_it_is_and_that_is_said(caplog, missing):
    """No short cut without both of the things that it needs."""
    pika_channel = channel()
    assert open_outgoing(pika_channel) is not None
    assert caplog.records == []
    setattr(pika_channel.connection, missing, None)
    assert open_outgoing(pika_channel) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
