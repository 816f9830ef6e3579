"""Which of several queues gives the next message."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from workerkit.errors import ConfigurationError
from workerkit.worker.selection import DRY, Selector, Strict, Weighted, make_selector

WEIGHTS = {"bulk": 1, "urgent": 20, "mail": 5}
ALL = dict.fromkeys(WEIGHTS, 9)


class LastOne:
    """A user's strategy."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self.order = sorted(weights)

    def choose(self, waiting: Mapping[str, int]) -> str:
        return max(waiting)


class Broken(LastOne):
    def choose(self, waiting: Mapping[str, int]) -> str:
        raise ZeroDivisionError("a bug")


class Stubborn(LastOne):
    def choose(self, waiting: Mapping[str, int]) -> str:
        return "urgent"


class Unusable:
    def __init__(self, weights: Mapping[str, int]) -> None:
        raise RuntimeError("no")


def make(name: str, reports: list[str] | None = None) -> Selector:
    report: Any = (reports if reports is not None else []).append
    return make_selector(f"{__name__}:{name}", WEIGHTS, None, report)


def chosen(selector: Selector, times: int, waiting: Mapping[str, int] = ALL) -> Counter[str | None]:
    return Counter(selector.choose(waiting, 100.0) for _ in range(times))


class TestWeighted:
    """Shares in proportion to the weights."""

    def test_shares_are_the_weights_while_all_have_messages(self) -> None:
        """Within 2 % over 10,000."""
        counts = chosen(Weighted(WEIGHTS), 10_000)
        for queue, weight in WEIGHTS.items():
            assert counts[queue] == pytest.approx(10_000 * weight / 26, rel=0.02)

    def test_they_are_so_also_over_short_stretches(self) -> None:
        """Not 20 of one and then 5 of another: each 26 turns have their share."""
        selector = Weighted(WEIGHTS)
        for _ in range(20):
            assert chosen(selector, 26) == pytest.approx({"urgent": 20, "mail": 5, "bulk": 1}, abs=1)

    def test_shares_hold_though_a_queue_has_nothing_here_now_and_then(self) -> None:
        """Its window is small and the next message is on its way: that is not the same as having none."""
        selector = Weighted(WEIGHTS)
        without = {queue: 9 for queue in WEIGHTS if queue != "urgent"}
        counts: Counter[str | None] = Counter()
        for turn in range(10_000):
            counts[selector.choose(without if turn % 6 == 0 else ALL, 100.0)] += 1
        for queue, weight in WEIGHTS.items():
            assert counts[queue] == pytest.approx(10_000 * weight / 26, rel=0.02)

    def test_a_queue_that_was_empty_does_not_catch_up_for_long(self) -> None:
        """It gets its share from now on, and no more than a few turns of the past."""
        selector = Weighted({"a": 1, "b": 1})
        chosen(selector, 5000, {"a": 1})
        assert chosen(selector, 1000, {"a": 1, "b": 1})["b"] <= 500 + 64

    def test_an_empty_queue_takes_no_turn(self) -> None:
        """The others share what it leaves."""
        counts = chosen(Weighted(WEIGHTS), 600, {"mail": 1, "bulk": 1})
        assert counts == pytest.approx({"mail": 500, "bulk": 100}, abs=1)


def strict(starve_after: float | None = None) -> Strict:
    """A selector whose queues have been consumed for long."""
    selector = Strict(WEIGHTS, starve_after)
    for queue in WEIGHTS:
        selector.on_open(queue, 0.0)
    return selector


class TestStrict:
    """The highest weight first."""

    def test_a_lower_queue_waits_while_a_higher_one_has_messages(self) -> None:
        """However many wait there."""
        selector = strict()
        assert chosen(selector, 100) == {"urgent": 100}
        assert selector.choose({"mail": 1, "bulk": 500}, 100.0) == "mail"
        assert selector.choose({"bulk": 500}, 100.0) == "bulk"

    def test_a_lower_one_waits_while_the_next_of_a_higher_one_may_be_on_its_way(self) -> None:
        """For some milliseconds after that queue has sent something: then it counts as empty."""
        selector = strict()
        selector.on_open("urgent", 100.0)
        assert selector.choose({"mail": 1}, 100.0 + DRY / 2) is None
        selector.on_arrival("urgent", 200.0)
        assert selector.choose({"mail": 1}, 200.0 + DRY / 2) is None
        assert selector.choose({"urgent": 1, "mail": 1}, 200.0 + DRY / 2) == "urgent"
        assert selector.choose({"mail": 1}, 200.0 + DRY * 2) == "mail"

    def test_nothing_lower_starts_before_every_higher_queue_is_consumed(self) -> None:
        """Until then nobody knows whether it has messages."""
        selector = Strict(WEIGHTS, None)
        selector.on_open("mail", 100.0)
        assert selector.choose({"mail": 1}, 100.0 + 2 * DRY) is None
        selector.on_open("urgent", 200.0)
        assert selector.choose({"mail": 1}, 200.0 + 2 * DRY) == "mail"

    def test_what_is_lower_is_not_waited_for(self) -> None:
        """Only a higher one can be in its way."""
        selector = strict()
        selector.on_open("bulk", 100.0)
        assert selector.choose({"mail": 1}, 100.0) == "mail"

    def test_one_that_has_waited_too_long_gets_one_turn(self) -> None:
        """And then waits again."""
        selector = strict(starve_after=60.0)
        for queue in WEIGHTS:
            selector.on_arrival(queue, 100.0)
        assert selector.choose(ALL, 159.0) == "urgent"
        turns = [selector.choose(ALL, 161.0) for _ in range(4)]
        assert sorted(turns[:2], key=str) == ["bulk", "mail"]
        assert turns[2:] == ["urgent", "urgent"]

    def test_the_time_counts_from_when_it_has_messages(self) -> None:
        """A quiet worker has not served a queue for long, and none of its messages has waited."""
        selector = strict(starve_after=60.0)
        for queue in WEIGHTS:
            selector.on_open(queue, 100.0)
        for now in (1000.0, 2000.0):
            for queue in WEIGHTS:
                selector.on_arrival(queue, now)
            assert [selector.choose(dict.fromkeys(queues, 1), now + 2 * DRY) for queues in (ALL, ("mail", "bulk"))] == [
                "urgent",
                "mail",
            ]
            assert selector.choose({"bulk": 1}, now + 2 * DRY) == "bulk"

    def test_what_was_given_back_has_not_waited(self) -> None:
        """What comes after it has a time of its own."""
        selector = strict(starve_after=60.0)
        selector.on_arrival("bulk", 100.0)
        assert selector.choose({"urgent": 1}, 110.0) == "urgent"
        selector.on_arrival("bulk", 1000.0)
        assert selector.choose({"urgent": 1, "bulk": 1}, 1001.0) == "urgent"

    def test_a_message_that_has_its_turn_is_not_what_the_next_has_waited(self) -> None:
        """Each has a time of its own."""
        selector = strict(starve_after=60.0)
        selector.on_arrival("bulk", 100.0)
        assert selector.choose({"urgent": 1, "bulk": 2}, 161.0) == "bulk"
        assert selector.choose({"urgent": 1, "bulk": 1}, 220.0) == "urgent"
        assert selector.choose({"urgent": 1, "bulk": 1}, 222.0) == "bulk"

    def test_one_that_has_waited_too_long_is_not_held_back(self) -> None:
        """Nor is it by a higher one whose next message may be on its way."""
        selector = strict(starve_after=60.0)
        selector.on_arrival("mail", 100.0)
        selector.on_arrival("urgent", 200.0)
        assert selector.choose({"mail": 1}, 200.0) == "mail"


class TestCustom:
    """A strategy of the user's own."""

    def test_it_decides(self) -> None:
        """Among what has messages."""
        reports: list[str] = []
        assert chosen(make("LastOne", reports), 5) == {"urgent": 5}
        assert reports == []

    @pytest.mark.parametrize(("name", "report"), [("Broken", "ZeroDivisionError: a bug"), ("Stubborn", "'urgent'")])
    def test_one_that_fails_is_reported_once_and_replaced_by_weighted(self, name: str, report: str) -> None:
        """It raised, or chose a queue that has nothing: the worker goes on."""
        reports: list[str] = []
        selector = make(name, reports)
        counts = chosen(selector, 60, {"mail": 1, "bulk": 1})
        assert counts == pytest.approx({"mail": 50, "bulk": 10}, abs=1)
        (text,) = reports
        assert report in text

    @pytest.mark.parametrize("name", ["Missing", "Unusable"])
    def test_one_that_cannot_be_made_is_an_error_of_the_configuration(self, name: str) -> None:
        """Found at the start, with the name that was given."""
        with pytest.raises(ConfigurationError, match=name):
            make(name)


@pytest.mark.parametrize(("select", "kind"), [("weighted", Weighted), ("strict", Strict)])
def test_the_ones_with_a_name_are_found_by_it(select: str, kind: type) -> None:
    """What ``select`` may be."""
    assert isinstance(make_selector(select, WEIGHTS, None, print), kind)
