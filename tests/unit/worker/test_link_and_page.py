"""What goes between the two processes."""

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit import Cause, Reason
from workerkit.message import Incoming
from workerkit.settlement import Outcome, Verb
from workerkit.worker.link import (
    Aftermath,
    FrameReader,
    Kind,
    Page,
    Phase,
    frame,
    pack_aftermath,
    pack_cause,
    pack_delivery,
    pack_settled,
    unpack_aftermath,
    unpack_cause,
    unpack_delivery,
    unpack_settled,
)

text = st.text(st.characters(exclude_categories=["Cs"]))
names = text.filter(lambda value: len(value.encode()) <= 255)
causes = st.builds(
    Cause,
    reason=st.sampled_from(Reason),
    message=text,
    exception=text,
    traceback=text,
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
)
messages = st.builds(
    Incoming,
    queue=st.just("jobs"),
    exchange=names,
    routing_key=names,
    redelivered=st.booleans(),
    attempt=st.integers(1, 2**32 - 1),
    raw_properties=st.binary(),
    body=st.binary(),
)
sequence = st.integers(1, 2**64 - 1)


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=50)), max_size=8), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(frames: list[tuple[Kind, bytes]], data: st.DataObject) -> None:
    """A socket cuts where it likes, at every byte if it must."""
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=len(stream) + 1)))
    reader = FrameReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == frames


@given(sequence, messages)
def test_a_delivery_arrives_as_it_was(seq: int, message: Incoming) -> None:
    """Properties and body byte for byte."""
    assert unpack_delivery(pack_delivery(seq, message), "jobs") == (seq, message)


@given(sequence, messages, causes, st.none() | st.sampled_from(Verb))
def test_an_aftermath_arrives_as_it_was(seq: int, message: Incoming, cause: Cause, settled: Verb | None) -> None:
    """The story and the message."""
    aftermath = Aftermath(cause, settled)
    assert unpack_aftermath(pack_aftermath(seq, message, aftermath), "jobs") == (seq, message, aftermath)


@given(
    sequence,
    st.integers(0, 2**63),
    st.builds(
        Outcome,
        verb=st.sampled_from(Verb),
        delay=st.none() | st.floats(0, 1e6),
        cause=st.none() | causes,
    ),
)
def test_a_settlement_arrives_as_it_was(seq: int, duration: int, outcome: Outcome) -> None:
    """With its delay and its cause, if it has them."""
    assert unpack_settled(pack_settled(seq, duration, outcome)) == (seq, duration, outcome)


def test_an_acknowledgement_takes_seventeen_bytes() -> None:
    """It is sent for nearly every message."""
    assert len(pack_settled(1, 1, Outcome(Verb.ACK))) == 17


@given(causes)
def test_a_cause_arrives_as_it_was(cause: Cause) -> None:
    """The last words of a dying executor."""
    assert unpack_cause(pack_cause(cause)) == cause


@pytest.fixture
def pages() -> Any:
    """The same page, mapped by both sides."""
    ours, fd = Page.create()
    theirs = Page(fd)
    os.close(fd)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_the_page_says_what_runs_and_since_when(pages: tuple[Page, Page]) -> None:
    """Written by one side, read by the other."""
    ours, theirs = pages
    assert ours.running() is None
    theirs.begin(7, Phase.CALLBACK, 123)
    assert ours.running() == (7, Phase.CALLBACK, 123)
    theirs.begin(7, Phase.SHUTDOWN, 456)
    assert ours.running() == (7, Phase.SHUTDOWN, 456)
    theirs.end()
    assert ours.running() is None


def test_the_page_says_up_to_where_everything_is_void(pages: tuple[Page, Page]) -> None:
    """Written by the consumer, read by the executor."""
    ours, theirs = pages
    assert theirs.void == 0
    ours.void = 2**40
    assert theirs.void == 2**40


def test_the_page_outlives_the_side_that_wrote_it(pages: tuple[Page, Page]) -> None:
    """It is a flight recorder: the kernel keeps it when the writer is gone."""
    ours, theirs = pages
    child = os.fork()
    if child == 0:
        theirs.begin(9, Phase.CALLBACK, 1)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert ours.running() == (9, Phase.CALLBACK, 1)


def test_a_cause_without_particulars_is_short() -> None:
    """Omitted fields are the defaults on the other side."""
    assert msgspec.json.decode(pack_cause(Cause(Reason.EXIT, "x")))["reason"] == "exit"
