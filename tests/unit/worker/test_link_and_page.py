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
from workerkit.outgoing import Outgoing
from workerkit.ports import Delivery
from workerkit.settlement import Outcome, Verb
from workerkit.worker.link import (
    Aftermath,
    Dying,
    FrameReader,
    Kind,
    aftermath_frame,
    deliver_frames,
    frame,
    json_frame,
    settled_frame,
    unpack_aftermath,
    unpack_delivery,
    unpack_settled,
)
from workerkit.worker.page import SLOTS, Page, Phase

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
    queue=st.sampled_from(["jobs", "urgent"]),
    exchange=names,
    routing_key=names,
    redelivered=st.booleans(),
    attempt=st.integers(1, 2**32 - 1),
    raw_properties=st.binary(),
    body=st.binary() | st.just(b"a big body" * 5000),
    seq=sequence,
    slot=st.integers(0, SLOTS - 1),
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


QUEUES = {"jobs": 0, "urgent": 1}


@given(st.lists(deliveries, max_size=5))
def test_deliveries_arrive_as_they_were(sent: list[Delivery]) -> None:
    """Properties and body byte for byte, however many share a write."""
    frames = FrameReader().feed(b"".join(deliver_frames(sent, QUEUES)))
    assert {kind for kind, *_ in frames} <= {Kind.DELIVER}
    arrived = [unpack_delivery(*where, list(QUEUES)) for _, *where in frames]
    assert arrived == [(delivery.seq, delivery.slot, facts(delivery)) for delivery in sent]


def test_big_bodies_are_sent_without_being_copied() -> None:
    """A megabyte goes from the broker's bytes to the socket as it is."""
    body = b"x" * 1_000_000
    delivery = Delivery("jobs", "", "k", False, 1, b"", body)
    assert deliver_frames([delivery], QUEUES)[1] is body


@given(deliveries, causes, st.none() | st.sampled_from(Verb))
def test_an_aftermath_arrives_as_it_was(delivery: Delivery, cause: Cause, settled: Verb | None) -> None:
    """The story and the message."""
    aftermath = Aftermath(cause, settled)
    ((kind, data, start, end),) = FrameReader().feed(aftermath_frame(delivery, aftermath, QUEUES))
    assert kind == Kind.AFTERMATH
    arrived = unpack_aftermath(data[start:end], list(QUEUES))
    assert arrived == (delivery.seq, delivery.slot, facts(delivery), aftermath)


outgoing = st.builds(
    Outgoing,
    exchange=names,
    routing_key=names,
    raw_properties=st.binary(),
    body=st.binary(),
    delay=st.none() | st.floats(0, 1e6),
)


@given(
    sequence,
    st.integers(0, 2**63),
    st.builds(
        Outcome,
        verb=st.sampled_from(Verb),
        delay=st.none() | st.floats(0, 1e6),
        cause=st.none() | causes,
        publish=st.lists(outgoing, max_size=3).map(tuple),
    ),
)
def test_a_settlement_arrives_as_it_was(seq: int, duration: int, outcome: Outcome) -> None:
    """With its delay, its cause and what is published with it, if it has them."""
    ((kind, *where),) = FrameReader().feed(settled_frame(seq, duration, outcome))
    assert kind == Kind.SETTLED
    assert unpack_settled(*where) == (seq, duration, outcome)


def test_a_queue_may_be_named_by_a_text_of_the_users_own_kind() -> None:
    """What publishing takes must not be refused on the way, when the callback is over."""

    class Name(str):
        __slots__ = ()

    outcome = Outcome(Verb.ACK, publish=(Outgoing("", Name("jobs"), b"", b"{}"),))
    ((_, *where),) = FrameReader().feed(settled_frame(1, 2, outcome))
    assert unpack_settled(*where) == (1, 2, outcome)


@given(causes, st.none() | sequence)
def test_the_account_of_a_death_arrives_as_it_was(cause: Cause, seq: int | None) -> None:
    """The last words of a dying executor, and whose doing it is."""
    ((kind, data, start, end),) = FrameReader().feed(json_frame(Kind.DYING, Dying(cause, seq)))
    assert kind == Kind.DYING
    assert msgspec.json.decode(data[start:end], type=Dying) == Dying(cause, seq)


@given(sequence)
def test_a_cancellation_arrives_as_it_was(seq: int) -> None:
    """Nothing but the number."""
    ((kind, data, start, end),) = FrameReader().feed(json_frame(Kind.CANCEL, seq))
    assert kind == Kind.CANCEL
    assert msgspec.json.decode(data[start:end], type=int) == seq


@pytest.fixture
def pages() -> Any:
    """The same page, mapped by both sides."""
    ours, fd = Page.create()
    theirs = Page(fd)
    os.close(fd)
    yield ours, theirs
    ours.close()
    theirs.close()


Pages = tuple[Page, Page]


def delivery(seq: int, slot: int) -> Delivery:
    return Delivery("jobs", "", "jobs", False, 1, b"", b"", seq=seq, slot=slot)


def test_the_page_says_what_runs_and_since_when(pages: Pages) -> None:
    """Written by one side, read by the other; several at a time."""
    ours, theirs = pages
    first, second, third = sent = [delivery(7, 0), delivery(8, SLOTS - 1), delivery(9, 1)]
    assert ours.running(sent) == []
    theirs.begin(second.slot, 8, Phase.CALLBACK, 123)
    theirs.begin(first.slot, 7, Phase.CALLBACK, 124)
    assert ours.running(sent) == [(7, Phase.CALLBACK, 124), (8, Phase.CALLBACK, 123)]
    theirs.begin(first.slot, 7, Phase.SHUTDOWN, 456)
    theirs.end(second.slot, 8)
    assert ours.running(sent) == [(7, Phase.SHUTDOWN, 456)]
    assert [ours.is_over(one) for one in (first, second, third)] == [False, True, False]


def test_a_slot_that_somebody_else_has_now_says_nothing_about_the_one_before(pages: Pages) -> None:
    """The number of the delivery is in every word."""
    ours, theirs = pages
    before, now = delivery(7, 3), delivery(8, 3)
    theirs.begin(3, 7, Phase.CALLBACK, 1)
    theirs.acknowledge(3, 7, 5)
    ours.void(3, 7, lost=True)
    theirs.end(3, 7)
    assert ours.running([now]) == []
    assert not ours.is_over(now)
    assert not theirs.is_void(3, 8)
    assert not theirs.is_lost(3, 8)
    assert ours.acknowledged({8: now}) == []
    theirs.begin(3, 8, Phase.CALLBACK, 2)
    assert ours.running([before, now]) == [(8, Phase.CALLBACK, 2)]
    assert ours.acknowledged({8: now}) == []


def test_the_page_says_what_is_void_and_what_is_lost(pages: Pages) -> None:
    """Written by the consumer, read by the executor; what is lost is void too."""
    ours, theirs = pages
    ours.void(1, 2**40)
    assert (theirs.is_void(1, 2**40), theirs.is_lost(1, 2**40)) == (True, False)
    ours.void(1, 2**40, lost=True)
    assert (theirs.is_void(1, 2**40), theirs.is_lost(1, 2**40)) == (True, True)
    assert not theirs.is_void(1, 2**40 + 1)
    assert not theirs.is_void(2, 2**40)


def test_the_page_says_what_was_acknowledged(pages: Pages) -> None:
    """With how long it took; up to the first that has not begun, since what is behind it has not either."""
    ours, theirs = pages
    sent = {seq: delivery(seq, 10 * seq) for seq in (1, 2, 3, 4, 5)}
    for seq in (1, 2, 3):
        theirs.begin(10 * seq, seq, Phase.CALLBACK, 1)
    theirs.acknowledge(10, 1, 100)
    theirs.acknowledge(30, 3, 300)
    theirs.acknowledge(50, 5, 500)
    assert [(one.seq, one.duration_ns) for one in ours.acknowledged(sent)] == [(1, 100), (3, 300)]
    del sent[4]
    assert [one.seq for one in ours.acknowledged({2: sent[2]})] == []


def test_the_consumer_is_woken_once_until_it_has_looked(pages: Pages) -> None:
    """A wake-up is a system call, and the first one is enough."""
    ours, theirs = pages
    assert theirs.must_wake()
    assert not theirs.must_wake()
    ours.acknowledged({})
    assert theirs.must_wake()


def test_the_page_says_whose_step_the_event_loop_is_in(pages: Pages) -> None:
    """And when the loop came round last."""
    ours, theirs = pages
    assert ours.last_beat == (0, 0)
    theirs.beat(123)
    theirs.step(7)
    assert ours.last_beat == (123, 7)
    theirs.step(0)
    assert ours.last_beat == (123, 0)


def test_the_page_outlives_the_side_that_wrote_it(pages: Pages) -> None:
    """It is a flight recorder: the kernel keeps it when the writer is gone."""
    ours, theirs = pages
    child = os.fork()
    if child == 0:
        theirs.begin(4, 9, Phase.CALLBACK, 1)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert ours.running([delivery(9, 4)]) == [(9, Phase.CALLBACK, 1)]
