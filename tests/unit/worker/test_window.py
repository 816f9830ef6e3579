"""``prefetch_count: auto``: how much is taken ahead."""

import random

import pytest
from pool_fakes import make_delivery

from workerkit.ports import Delivery
from workerkit.worker.window import MOST, MOST_BYTES, AutoWindow

MS = 1_000_000


def callbacks(*milliseconds: float, size: int = 10) -> list[Delivery]:
    return [make_delivery(body=bytes(size), duration_ns=int(each * MS)) for each in milliseconds]


def settled_at(window: AutoWindow, milliseconds: float, size: int = 10) -> int:
    for _ in range(50):
        window.note(callbacks(*[milliseconds] * 10, size=size))
    return window.window


@pytest.mark.parametrize("slots", [1, 4, 200])
def test_it_starts_at_one_for_each_callback_that_can_run(slots: int) -> None:
    """Nothing is known yet: taking more could be hoarding."""
    assert AutoWindow(slots).window == slots


def test_it_grows_by_no_more_than_eight_times_at_once() -> None:
    """One short callback says little about the next."""
    window = AutoWindow(1)
    seen = [window.window]
    while window.note(callbacks(0.01)):
        seen.append(window.window)
    assert seen == [1, 8, 64, MOST]


@pytest.mark.parametrize(("milliseconds", "expected"), [(0.01, MOST), (1, 100), (10, 10), (100, 1), (3000, 1)])
def test_it_is_what_runs_in_a_tenth_of_a_second(milliseconds: float, expected: int) -> None:
    """At least one, at most 500; within a factor of two, since each change costs the broker something."""
    assert expected / 2 <= settled_at(AutoWindow(1), milliseconds) <= expected * 2


def test_a_little_more_than_one_each_is_worth_a_change() -> None:
    """And so is one each again: between them lies whether anything waits behind a callback."""
    window = AutoWindow(10)
    assert settled_at(window, 66) == 15
    assert window.note(callbacks(100))
    assert window.window == 10


def test_several_callbacks_at_once_take_so_much_more() -> None:
    """20 that take 10 ms each do 200 messages in 100 ms."""
    assert 100 <= settled_at(AutoWindow(20), 10) <= 400
    assert settled_at(AutoWindow(20), 5000) == 20, "and never less than one each"


def test_one_long_callback_shrinks_it_at_once() -> None:
    """The next may be as long, and somebody else could have what waits for it."""
    window = AutoWindow(1)
    settled_at(window, 0.1)
    assert window.note(callbacks(2000))
    assert window.window == 1
    window = AutoWindow(1)
    settled_at(window, 1)
    assert window.note_running(0.5), "also while it is still running"
    assert window.window == 1


def test_a_running_callback_that_is_no_longer_than_others_says_nothing() -> None:
    """It may be about to end."""
    window = AutoWindow(1)
    before = settled_at(window, 10)
    for _ in range(20):
        assert not window.note_running(0.001)
    assert window.window == before


def test_it_grows_again_after_a_long_one_but_not_at_the_first_short_one() -> None:
    """One in ten that is long is enough to keep it small."""
    window = AutoWindow(1)
    settled_at(window, 1)
    window.note(callbacks(2000))
    assert not window.note(callbacks(1))
    for _ in range(30):
        window.note(callbacks(1))
    assert window.window >= 50


def test_big_bodies_keep_it_below_sixteen_megabytes() -> None:
    """Whatever lies ahead lies in memory, twice."""
    for size in (100_000, 1_000_000):
        assert settled_at(AutoWindow(1), 0.1, size) * size <= MOST_BYTES
    assert settled_at(AutoWindow(1), 0.1, 2 * MOST_BYTES) == 1


def test_one_big_body_counts_at_once() -> None:
    """Bodies come in kinds: the next may be as big."""
    window = AutoWindow(1)
    settled_at(window, 0.1)
    assert window.note(callbacks(0.1, size=MOST_BYTES // 4))
    assert window.window <= 4


def test_it_does_not_flap_when_durations_scatter() -> None:
    """Each change is a call of the broker: durations from half to twice the mean must not cause a stream of them."""
    random.seed(7)
    window = AutoWindow(1)
    settled_at(window, 1)
    changes = sum(window.note(callbacks(*[random.uniform(0.5, 2) for _ in range(10)])) for _ in range(1000))
    assert changes <= 5


@pytest.mark.parametrize(("milliseconds", "ahead"), [(0.001, MOST), (1, 100), (500, 1)])
def test_what_an_executor_has_ahead_follows_the_same_time(milliseconds: float, ahead: int) -> None:
    """One callback after the other, for about 100 ms; one while nothing is known."""
    window = AutoWindow(4)
    assert window.ahead == 1
    settled_at(window, milliseconds)
    assert window.ahead == pytest.approx(ahead, abs=1)
