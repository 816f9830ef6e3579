"""``workerkit publish --lines``: lines cut out of what was read, and a message of each."""

import asyncio
import io
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.cli.publish import _Letterhead, _lines, _random_ids
from workerkit.properties import decode


class Chunks(io.BytesIO):
    """A pipe whose reads end where a test says."""

    def __init__(self, chunks):
        super().__init__()
        self._chunks = list(chunks)

    def read(self, _size):
        return self._chunks.pop(0) if self._chunks else b""


@given(st.lists(st.text(alphabet="a \r\n\t", min_size=1, max_size=9).map(str.encode), max_size=6))
def test_the_lines_do_not_depend_on_how_they_are_read(chunks):
    """Numbered from 1 with the blank ones, which are left out; without line ends of either kind."""

    async def read():
        return [line for lines in [lines async for lines in _lines(Chunks(chunks))] for line in lines]

    whole = b"".join(chunks)
    expected = [(number, line.removesuffix(b"\r")) for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()]
    assert asyncio.run(read()) == expected


@pytest.mark.parametrize("content_type", [None, "text/x"])
def test_a_line_has_the_properties_of_a_message_of_its_own(content_type):
    """Each its id; the content type is that of the line, whatever the one before it was."""
    letterhead = _Letterhead("q", None, {"tenant": "acme", "größe": "1"}, content_type, "c-1")
    lines = [(3, b'{"n": 1}'), (4, b"text"), (6, b"\xff"), (7, b"[]"), (8, b"more text")]
    messages = list(letterhead.messages(lines))
    assert [(message.number, message.body) for message in messages] == lines
    properties = [decode(message.raw_properties) for message in messages]
    alone = [decode(letterhead.message(line, "id").raw_properties) for _, line in lines]
    assert [replace(got, message_id=None, timestamp=0) for got in properties] == [
        replace(got, message_id=None, timestamp=0) for got in alone
    ]
    assert len({got.message_id for got in properties}) == len(lines)
    assert all(abs(got.timestamp - other.timestamp) < 60 for got, other in zip(properties, alone, strict=True))


def test_ids_are_random_uuids():
    """As RFC 9562 wants version 4, and as many as are asked for."""
    ids = list(_random_ids(2000))
    assert len(set(ids)) == 2000
    for text in ids:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
    assert {text[19] for text in ids} == set("89ab")
