"""The arithmetic of the benchmark's report: spreads, ratios round by round, verdicts."""

import pytest

from bench.clients import AT_500, PIKA_AT_1, WORKERKIT, clients_of
from bench.consuming import Outcome, Problem
from bench.document import Part, tables
from bench.report import Results, Spread, markdown, more_is_better, number, ratio_text, scene_table, spread_text
from bench.run import window
from bench.samples import Sample
from bench.scenes import ASYNC, DEFAULTS, SCENES
from bench.targets import TARGETS, target_table

RATE = "messages/s"
BASE = SCENES[0].name


def samples(client, *values, scene="s", figure=RATE):
    return [Sample(scene, figure, client, turn, value) for turn, value in enumerate(values, 1)]


def test_a_spread_is_the_lowest_the_median_and_the_highest_of_the_rounds():
    results = Results(samples("pika", 30, 10, 20, 50))
    assert results.spread("s", RATE, "pika") == Spread(10, 25, 50)


def test_what_was_not_measured_has_no_spread_and_no_ratio():
    results = Results(samples("workerkit", 1))
    assert results.spread("s", RATE, "pika") is None
    assert results.ratio("s", RATE, "workerkit", "pika") is None


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    """Not the ratio of the medians, which would be 20 / 20 here."""
    results = Results([*samples("workerkit", 10, 20, 90), *samples("pika", 20, 10, 30)])
    assert results.ratio("s", RATE, "workerkit", "pika") == 2


def test_a_round_in_which_one_of_the_two_failed_does_not_count_for_their_ratio():
    workerkit = [Sample("s", RATE, "workerkit", turn, 10) for turn in (1, 3)]
    pika = [Sample("s", RATE, "pika", turn, value) for turn, value in ((2, 1), (3, 5))]
    assert Results([*workerkit, *pika]).ratio("s", RATE, "workerkit", "pika") == 2


def test_scenes_figures_and_clients_keep_the_order_in_which_they_were_measured():
    results = Results([*samples("b", 1, scene="z"), *samples("a", 1, scene="z"), *samples("a", 1, scene="y")])
    assert results.scenes() == ["z", "y"]
    assert results.clients("z") == ["b", "a"]
    assert results.figures("z") == [RATE]


@pytest.mark.parametrize(("figure", "more"), [(RATE, True), ("CPU µs/message", False), ("s", False), ("MiB", False)])
def test_more_is_better_of_rates_only(figure, more):
    assert more_is_better(figure) is more


def rows(table):
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
    return {first: others for first, *others in lines if first and "-" not in first}


def test_a_client_without_any_figure_stands_in_the_table_all_the_same():
    results = Results([*samples("workerkit", 9), *samples("pika", 3)])
    table = rows(scene_table(results, "s", {"C": "absent", "celery": "failed", "pika": "failed"}))
    assert table["pika"] == ["3.00", "3.00 ×"]
    assert table["celery"] == ["failed", "–"]
    assert table["C"] == ["absent", "–"]


def test_a_figure_that_one_client_lacks_is_a_dash():
    results = Results([*samples("workerkit", 9), *samples("pika", 3), *samples("workerkit", 1, figure="MiB")])
    assert rows(scene_table(results, "s", {}))["pika"] == ["3.00", "3.00 ×", "–", "–"]


@pytest.mark.parametrize(
    ("value", "text"), [(8137.4, "8,137"), (84.13, "84.1"), (5.934, "5.93"), (0.2123, "0.212"), (0.0123, "0.0123")]
)
def test_numbers_have_three_digits_at_least(value, text):
    assert number(value) == text


def test_a_spread_of_one_value_is_that_value():
    assert spread_text(Spread(2, 2, 2)) == "2.00"
    assert spread_text(Spread(1, 2, 3)) == "1.00 / **2.00** / 3.00"
    assert ratio_text(12.34) == "12.3 ×"


def test_a_table_is_aligned():
    lines = markdown(["client", "n"], [["a", "1,000"], ["longer name", "2"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def verdict(text, *given):
    results = Results([sample for some in given for sample in some])
    [row] = [row for row in target_table(results).splitlines() if row.startswith(f"| {text}")]
    return row.strip("| ").rpartition("| ")[2].strip()


def test_a_target_is_reached_at_its_bound_and_not_below():
    text = "the same against C librabbitmq, ack each"
    peer = samples("C librabbitmq, ack each", 100, scene=BASE)
    assert verdict(text, samples("workerkit", 100, scene=BASE), peer) == "reached"
    assert verdict(text, samples("workerkit", 99.9, scene=BASE), peer) == "**not reached**"
    assert verdict(text, samples("workerkit", 100, scene=BASE)) == "not measured"


def test_a_cost_is_within_its_target_up_to_the_bound():
    text = "PSS of an idle pair"
    scene = "one idle worker, PSS"
    assert verdict(text, samples("workerkit", 40, 45, 60, scene=scene, figure="MiB")) == "reached"
    assert verdict(text, samples("workerkit", 40, 45.1, 60, scene=scene, figure="MiB")) == "**not reached**"


def test_every_target_is_not_measured_where_there_are_no_samples():
    assert {target.verdict(target.measured(Results([]))) for target in TARGETS} == {"not measured"}


def test_what_failed_and_what_is_absent_is_named():
    problem = Problem("another scene", "pika", 2, "it ended\nwith a traceback")
    outcome = Outcome(samples("workerkit", 1), [problem], {"C": "no compiler"})
    text = tables([Part("Consuming", "A note.", outcome)])
    assert "* C is absent: no compiler" in text
    assert "### Another scene" in text
    assert "* pika, round 2: no figures: it ended\n" in text


def test_a_run_is_measured_while_rabbitmq_keeps_the_prefetch_window_full():
    assert window(100_000, SCENES[0]) == (5_000, 95_000)
    assert window(3_000, SCENES[0]) == (500, 2_500)


def test_a_run_too_short_for_that_is_measured_from_its_first_message_on():
    assert window(400, SCENES[0]) == (1, 400)


def test_with_default_settings_the_time_to_get_going_counts():
    """And nobody is measured while it has fewer messages than the one that takes most ahead."""
    assert window(100_000, DEFAULTS) == (1, 95_000)
    assert window(3_000, DEFAULTS) == (1, 2_500)
    assert window(600, DEFAULTS) == (1, 300)


def test_each_scene_has_its_clients_and_workerkit_is_among_them():
    assert all(WORKERKIT in {client.name for client in clients_of(scene)} for scene in SCENES)
    assert {AT_500, PIKA_AT_1} < {client.name for client in clients_of(DEFAULTS)}
    assert "Celery prefork" not in {client.name for client in clients_of(ASYNC)}
