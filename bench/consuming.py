"""Consuming: every client empties the same queue in every scene, in turn, with the order turned from round to round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.clients import Absent, Client, clients_of
from bench.run import Figures, RunFailed, Runner
from bench.samples import Sample
from bench.scenes import Scene
from workerkit.testing.rabbitmq import PrivateRabbitmq

RATE = "messages/s"
CPU = "CPU µs/message"
MEMORY = "peak MiB"

QUICK = 0.25
"""Share of the messages for a trial: enough to see that everything runs, not enough for a figure."""


@dataclass(frozen=True)
class Problem:
    """A run that gave no figures."""

    scene: str
    client: str
    round: int
    why: str

    def __str__(self) -> str:
        return f"{self.client}, round {self.round}: no figures: {self.why}"


@dataclass
class Outcome:
    """What a benchmark gave."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Clients that cannot be measured here, and why."""


def consume(
    node: PrivateRabbitmq,
    scenes: Sequence[Scene],
    names: Sequence[str],
    *,
    rounds: int,
    share: float,
    tell: Callable[[str], None],
) -> Outcome:
    """Measure all clients in all scenes.

    Args:
        node: the broker.
        scenes: one after the other.
        names: of the clients to measure where they belong; none: all. Within a round each runs once; the next round
            begins with the second of this one.
        rounds: of each scene.
        share: of the usual number of messages.
        tell: takes a line for each run.
    """
    outcome = Outcome()
    chosen = {scene: _present(clients_of(scene), names, outcome, tell) for scene in scenes}
    progress = _Progress(rounds * sum(map(len, chosen.values())))
    runner = Runner(node)
    for scene in scenes:
        order = chosen[scene]
        rates = {client.name: client.pace * scene.share for client in order}
        for number in range(1, rounds + 1):
            for client in order:
                where = f"{scene.name}: round {number}, {client.name}"
                try:
                    figures = runner.run(client, scene, round(share * scene.messages(rates[client.name])))
                except RunFailed as error:
                    outcome.problems.append(Problem(scene.name, client.name, number, str(error)))
                    tell(f"{progress.next()} {where}: NO FIGURES: {error}")
                    continue
                rates[client.name] = figures.rate
                values = _values(figures)
                outcome.samples += [Sample(scene.name, name, client.name, number, values[name]) for name in values]
                tell(f"{progress.next()} {where}: " + ", ".join(f"{values[name]:,.1f} {name}" for name in values))
            order.append(order.pop(0))
    return outcome


def _present(
    clients: Sequence[Client], names: Sequence[str], outcome: Outcome, tell: Callable[[str], None]
) -> list[Client]:
    """Those that are wanted and can be measured here; what cannot be is noted as absent."""
    present = []
    for client in clients:
        if names and client.name not in names:
            continue
        try:
            client.program()
            present.append(client)
        except Absent as error:
            if client.name not in outcome.absent:
                tell(f"{client.name} is left out: {error}")
            outcome.absent[client.name] = str(error)
    return present


def _values(figures: Figures) -> dict[str, float]:
    return {RATE: figures.rate, CPU: figures.processor_time * 1e6, MEMORY: figures.peak_memory / 2**20}


class _Progress:
    """How many runs there have been, and how long the rest will take at that pace."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()

    def next(self) -> str:
        self._done += 1
        left = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        return f"[{self._done}/{self._total}, {left / 60:.0f} min left]"
