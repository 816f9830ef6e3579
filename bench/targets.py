"""What the project wants to reach, and whether the samples show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import executors
from bench.clients import AT_500, LOG_LINE_ON, PIKA, PIKA_AT_1, WORKERKIT
from bench.consuming import CPU, RATE
from bench.lifecycle import BACKLOG, MEMORY, RECOVERY, START
from bench.report import Results, markdown, number
from bench.scenes import SCENES

# As bench/publishing.py and bench/lifecycle.py name what they measure.
PUBLISHING = "publishing with confirms, quorum, 100 B"
BACKLOG_SCENE = f"backlog of {BACKLOG:,} messages, 100 B, prefetch 500, PSS"

_SCENES = {scene.key: scene.name for scene in SCENES}
_FLAT = 1.1


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        text: what is measured.
        bound: what it has to be.
        at_least: or at most.
        unit: of both.
        measured: the value in the samples; None if it was not measured.
    """

    text: str
    bound: float
    at_least: bool
    unit: str
    measured: Callable[[Results], float | None]

    def verdict(self, value: float | None) -> str:
        """In words."""
        if value is None:
            return "not measured"
        reached = value >= self.bound if self.at_least else value <= self.bound
        return "reached" if reached else "**not reached**"


def _times(
    text: str, bound: float, scene: str, figure: str, theirs: str, *, ours: str = WORKERKIT, at_least: bool = True
) -> Target:
    return Target(text, bound, at_least, " ×", lambda results: results.ratio(scene, figure, ours, theirs))


def _at_most(text: str, bound: float, unit: str, scene: str, figure: str) -> Target:
    def measured(results: Results) -> float | None:
        spread = results.spread(scene, figure, WORKERKIT)
        return spread.median if spread else None

    return Target(text, bound, at_least=False, unit=f" {unit}", measured=measured)


def _growth(results: Results) -> float | None:
    begin = results.spread(f"{BACKLOG_SCENE} after 1 %", "MiB", WORKERKIT)
    most = results.spread(f"{BACKLOG_SCENE} at most", "MiB", WORKERKIT)
    return most.median / begin.median if begin and most else None


_BASE = _SCENES["base"]
_DEFAULTS = _SCENES["defaults"]
_ASYNC = _SCENES["async"]
_ASYNC_1000 = _SCENES["async-1000"]
_MOST = "20,000 messages/s is the most"

TARGETS = (
    _times(f"throughput, {_BASE}, against {PIKA}", 4, _BASE, RATE, PIKA),
    _times("the same against C librabbitmq, ack each", 1, _BASE, RATE, "C librabbitmq, ack each"),
    *(
        _times(f"the same against {peer}", 15, _BASE, RATE, peer)
        for peer in ("Celery solo", "Celery prefork", "Dramatiq", "Taskiq", "FastStream")
    ),
    _times(f"CPU per message, all processes, against {PIKA}", 0.25, _BASE, CPU, PIKA, at_least=False),
    _times(
        f"throughput with the log line on, against {PIKA} without logging",
        2,
        _BASE,
        RATE,
        PIKA,
        ours=LOG_LINE_ON,
    ),
    _times(f"throughput at prefetch 1, against {PIKA}", 1, _SCENES["prefetch-1"], RATE, PIKA),
    _times(f"throughput of 1 MB bodies, against {PIKA}", 1.5, _SCENES["1MB"], RATE, PIKA),
    _times(f"throughput, {_DEFAULTS}, against workerkit at prefetch 500", 0.8, _DEFAULTS, RATE, AT_500),
    _times(f"the same against {PIKA_AT_1}", 15, _DEFAULTS, RATE, PIKA_AT_1),
    *(
        _times(f"throughput, {scene}, against {peer}{note}", bound, scene, RATE, peer)
        for scene, note in ((_ASYNC, f" ({_MOST})"), (_ASYNC_1000, ""))
        for peer, bound in (("Taskiq", 4), ("FastStream", 4), ("aio-pika", 2))
    ),
    _times(
        "executors: 4, against four instances: memory",
        0.65,
        executors.SCENE,
        executors.MEMORY,
        executors.FOUR,
        at_least=False,
    ),
    _times("the same: throughput", 1, executors.SCENE, executors.RATE, executors.FOUR),
    _times("the same: CPU per message", 1, executors.SCENE, executors.CPU, executors.FOUR, at_least=False),
    _times(f"publishing with confirms, against {PIKA}", 8, PUBLISHING, RATE, PIKA),
    _at_most("executor SIGKILL to the next callback", 0.3, "s", RECOVERY, "s"),
    _at_most("exec to the first callback", 0.5, "s", START, "s"),
    _at_most("PSS of an idle pair", 45, "MiB", MEMORY, "MiB"),
    Target("backlog of a million: most memory ÷ memory after 1 %", _FLAT, at_least=False, unit=" ×", measured=_growth),
)


def target_table(results: Results) -> str:
    """Every target, what was measured, and whether that is enough."""
    rows = []
    for target in TARGETS:
        value = target.measured(results)
        bound = f"{'≥' if target.at_least else '≤'} {target.bound:g}{target.unit}"
        measured = "–" if value is None else f"{number(value)}{target.unit}"
        rows.append([target.text, bound, measured, target.verdict(value)])
    return markdown(["figure", "target", "measured", "verdict"], rows)
