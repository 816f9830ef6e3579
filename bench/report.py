"""The arithmetic and the tables of the report: spreads over the rounds, ratios round by round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.clients import WORKERKIT
from bench.samples import Sample


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of several rounds."""

    low: float
    median: float
    high: float


class Results:
    """Samples, looked up by what they measure."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._rounds: dict[tuple[str, str, str], dict[int, float]] = {}
        for sample in samples:
            of_client = self._rounds.setdefault((sample.scene, sample.figure, sample.client), {})
            of_client[sample.round] = sample.value

    def scenes(self) -> list[str]:
        """In the order in which they were measured, as are the others."""
        return list(dict.fromkeys(scene for scene, _, _ in self._rounds))

    def figures(self, scene: str) -> list[str]:
        return list(dict.fromkeys(figure for where, figure, _ in self._rounds if where == scene))

    def clients(self, scene: str) -> list[str]:
        return list(dict.fromkeys(client for where, _, client in self._rounds if where == scene))

    def spread(self, scene: str, figure: str, client: str) -> Spread | None:
        """Over the rounds; None without a sample."""
        rounds = self._rounds.get((scene, figure, client))
        if not rounds:
            return None
        values = rounds.values()
        return Spread(min(values), statistics.median(values), max(values))

    def ratio(self, scene: str, figure: str, ours: str, theirs: str) -> float | None:
        """The median of ours ÷ theirs in each round that has both; None if none has."""
        our_rounds = self._rounds.get((scene, figure, ours), {})
        their_rounds = self._rounds.get((scene, figure, theirs), {})
        ratios = [our_rounds[number] / their_rounds[number] for number in our_rounds if their_rounds.get(number)]
        return statistics.median(ratios) if ratios else None


def more_is_better(figure: str) -> bool:
    """True for rates; times, shares of a processor and memory are costs."""
    return figure.endswith("/s")


def scene_table(results: Results, scene: str, missing: Mapping[str, str]) -> str:
    """One row a client: the spread of each figure, and workerkit's share of it.

    Args:
        results: of this scene and others.
        scene: which one.
        missing: clients that may have no figures at all, and the word that then stands for them.
    """
    figures = results.figures(scene)
    header = ["client"]
    for figure in figures:
        header += [f"{figure} ({'more' if more_is_better(figure) else 'less'} is better)", "workerkit ÷ it"]
    rows = []
    clients = results.clients(scene)
    for client in clients:
        row = [client]
        for figure in figures:
            row += [
                spread_text(results.spread(scene, figure, client)),
                ratio_text(results.ratio(scene, figure, WORKERKIT, client)),
            ]
        rows.append(row)
    rows += [[client, *[word, "–"] * len(figures)] for client, word in missing.items() if client not in clients]
    return markdown(header, rows)


def spread_text(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    low, median, high = (number(value) for value in (spread.low, spread.median, spread.high))
    return median if low == median == high else f"{low} / **{median}** / {high}"


def ratio_text(ratio: float | None) -> str:
    return "–" if ratio is None else f"{number(ratio)} ×"


def number(value: float) -> str:
    """Three significant digits at least: 8,137 · 84.1 · 5.93 · 0.212."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, aligned so that it can be read as plain text, too: words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])
