"""Which acknowledgements may share a frame: never one that covers an unfinished message."""

from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from workerkit.brokers.rabbitmq import unacked as unacked_module
from workerkit.brokers.rabbitmq.unacked import Unacked

steps = st.lists(
    st.integers(0, 5) | st.lists(st.integers(1, 40), max_size=8) | st.sampled_from(["all", "skip"]), max_size=20
)


@given(steps, st.sampled_from([0, 3, 10_000]))
def test_a_broker_that_obeys_the_frames_settles_exactly_what_was_asked(steps: list[Any], most_ahead: int) -> None:
    """Against a model of RabbitMQ: numbers are arrivals, lists are tags to settle, known or not."""
    with patch.object(unacked_module, "_MOST_AHEAD", most_ahead):
        compare(steps)


def compare(steps: list[Any]) -> None:
    unacked = Unacked()
    broker: set[int] = set()
    last = 0
    for step in steps:
        if isinstance(step, int):
            for _ in range(step):
                last += 1
                unacked.add(last, last)
                broker.add(last)
            continue
        if step == "skip":
            last += 1  # rejected by pika itself: it never arrives
            continue
        frames = unacked.settle_all() if step == "all" else unacked.settle(step)
        expected = set() if step == "all" else broker - set(step)
        for tag, multiple in frames:
            assert tag in broker, "a wrong tag closes the channel"
            broker -= {known for known in broker if known <= tag} if multiple else {tag}
        assert broker == expected
        assert len(unacked) == len(broker)


@given(st.integers(1, 100))
def test_finished_messages_without_a_gap_share_one_frame(count: int) -> None:
    """In whatever order they finished within the batch."""
    unacked = Unacked()
    unacked.add(1, count)
    assert unacked.settle(reversed(range(1, count + 1))) == [(count, count > 1)]


def test_an_unfinished_message_is_never_covered() -> None:
    """2 still runs: 1 may be settled with `multiple` only up to itself, 3 and 4 one by one."""
    unacked = Unacked()
    unacked.add(1, 4)
    assert unacked.settle([1, 3, 4]) == [(1, False), (3, False), (4, False)]
    assert unacked.settle([2]) == [(2, False)]


def test_a_tag_is_settled_once() -> None:
    """A second time there is nothing to send, and a tag that was never delivered is none of ours."""
    unacked = Unacked()
    unacked.add(1, 1)
    assert unacked.settle([1, 1, 9]) == [(1, False)]
    assert unacked.settle([1]) == []


def test_a_message_that_runs_for_long_costs_nothing_for_each_that_is_settled_meanwhile() -> None:
    """Nor does its own end, for which all of them would be looked through at once."""
    unacked = Unacked()
    for first in range(1, 100_001, 100):
        unacked.add(first, first + 99)
        unacked.settle(range(max(2, first), first + 100))
    assert len(unacked) == 1
    assert len(unacked._ahead) + len(unacked._late) <= unacked_module._MOST_AHEAD + 100
    assert unacked.settle([1]) == [(1, False)]
    assert len(unacked) == 0
