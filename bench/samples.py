"""What a benchmark measures: one figure of one client in one round."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured value.

    Attributes:
        scene: what was measured under which conditions, for example ``quorum, prefetch 500, 100 B``.
        figure: the quantity, for example ``messages/s``.
        client: whose value it is; ``workerkit`` is what the others are compared with.
        round: 1-based; ratios are taken round by round.
        value: in the unit that ``figure`` names.
    """

    scene: str
    figure: str
    client: str
    round: int
    value: float
