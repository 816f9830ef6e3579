"""What goes between the two processes."""

import dataclasses
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
    SLOTS,
    Aftermath,
    FrameReader,
    Kind,
    Page,
    Phase,
    deliver_frames,
    frame,
    pack_aftermath,
    pack_cause,
    settled_frame,
    unpack_aftermath,
    unpack_cause,
    unpack_delivery,
    unpack_settled,
)
from workerkit.worker.ports import Delivery

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
sequence = st.integers(1, 2**64 - 1)
deliveries = st.builds(
    Delivery,
    queue=st.just("jobs"),
    exchange=names,
    routing_key=names,
    redelivered=st.booleans(),
    attempt=st.integers(1, 2**32 - 1),
    raw_properties=st.binary(),
    body=st.binary() | st.just(b"a big body" * 5000),
    seq=sequence,
)


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=50)), max_size=8), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(frames: list[tuple[Kind, bytes]], data: st.DataObject) -> None:
    """A socket cuts where it likes, at every byte if it must."""
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=len(stream) + 1)))
    reader = FrameReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += [(kind, whole[first:last]) for kind, whole, first, last in reader.feed(stream[start:end])]
    assert found == frames


def facts(message: Incoming) -> Incoming:
    """What the executor needs to know of a delivery."""
    return Incoming(**{field.name: getattr(message, field.name) for field in dataclasses.fields(Incoming)})


@given(st.lists(deliveries, max_size=5))
def test_deliveries_arrive_as_they_were(sent: list[Delivery]) -> None:
    """Properties and body byte for byte, however many share a write."""
    frames = FrameReader().feed(b"".join(deliver_frames(sent)))
    assert {kind for kind, *_ in frames} <= {Kind.DELIVER}
    arrived = [unpack_delivery(*where, "jobs") for _, *where in frames]
    assert arrived == [(delivery.seq, facts(delivery)) for delivery in sent]


def test_big_bodies_are_sent_without_being_copied() -> None:
    """A megabyte goes from the broker's bytes to the socket as it is."""
    body = b"x" * 1_000_000
    delivery = Delivery("jobs", "", "k", False, 1, b"", body)
    assert deliver_frames([delivery])[1] is body


@given(deliveries, causes, st.none() | st.sampled_from(Verb))
def test_an_aftermath_arrives_as_it_was(delivery: Delivery, cause: Cause, settled: Verb | None) -> None:
    """The story and the message."""
    aftermath = Aftermath(cause, settled)
    assert unpack_aftermath(pack_aftermath(delivery, aftermath), "jobs") == (delivery.seq, facts(delivery), aftermath)


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
    ((kind, *where),) = FrameReader().feed(settled_frame(seq, duration, outcome))
    assert kind == Kind.SETTLED
    assert unpack_settled(*where) == (seq, duration, outcome)


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


def test_the_page_says_what_was_acknowledged(pages: tuple[Page, Page]) -> None:
    """Only of what is asked for, and only up to what was begun last: a slot keeps its number for ever."""
    ours, theirs = pages
    theirs.begin(3, Phase.CALLBACK, 1)
    assert theirs.acknowledge(1, 10)
    assert theirs.acknowledge(3, 30)
    assert ours.acknowledged([1, 2, 3, 4]) == [(1, 10), (3, 30)]
    assert ours.acknowledged([2, 4]) == []


def test_a_slot_is_used_again_only_when_the_consumer_needs_it_no_more(pages: tuple[Page, Page]) -> None:
    """Otherwise an acknowledgement would be overwritten before it was seen."""
    ours, theirs = pages
    assert theirs.acknowledge(SLOTS, 1)
    assert not theirs.acknowledge(SLOTS + 1, 1)
    ours.know(1)
    assert theirs.acknowledge(SLOTS + 1, 1)


def test_the_consumer_is_woken_once_until_it_has_looked(pages: tuple[Page, Page]) -> None:
    """A wake-up is a system call, and the first one is enough."""
    ours, theirs = pages
    assert theirs.must_wake()
    assert not theirs.must_wake()
    ours.acknowledged([])
    assert theirs.must_wake()


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
