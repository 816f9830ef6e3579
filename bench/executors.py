"""One workerkit instance with ``executors: 4``, beside four instances with one executor each.

All settings but ``executors`` are the defaults. A callback computes for 5 ms of processor time, then acknowledges. On
fewer than four processors the callbacks share them, in the one case as in the other.

* The rate is that of the callbacks from the moment at which each of the four executors has begun ten, until a tenth of
  the messages is left: in between all four have work.
* CPU is the user and system time of all processes, their start included, for each message.
* Memory is proportional set size (PSS) of all processes, a second after the last message.
* The four instances are in one session, as the one is: Linux shares processors out among sessions first.

    python -m bench.executors [ROUNDS]      tries it with a private node
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench.lifecycle_workers import WORKERKIT, Begun, Site
from bench.samples import Sample
from bench.venvs import python_of as own_python_of
from workerkit.testing.rabbitmq import PrivateRabbitmq

SCENE = "executors: 4, callbacks of 5 ms of processor time"
RATE = "messages/s"
CPU = "CPU ms/message"
MEMORY = "MiB"
ONE = WORKERKIT.client
"""The instance that has four executors."""
FOUR = "four instances"
_EXECUTORS = 4
_MESSAGES = 1500
_WARM = 10
_SETTLE = 1.0


def measure(
    node: PrivateRabbitmq, python_of: Callable[[str], Path], rounds: int, tell: Callable[[str], None]
) -> list[Sample]:
    """Measure both in turn, ``rounds`` times. Raises RuntimeError if a message is missing."""
    samples = []
    with tempfile.TemporaryDirectory(prefix="workerkit-bench-") as folder:
        site = Site(WORKERKIT, Path(folder) / "site", node, python_of)
        clients = [(ONE, "pool", 1), (FOUR, "computing", _EXECUTORS)]
        for number in range(1, rounds + 1):
            for client, task, instances in clients:
                values = _run(site, task, instances)
                samples += [Sample(SCENE, figure, client, number, value) for figure, value in values.items()]
                told = ", ".join(f"{value:,.2f} {figure}" for figure, value in values.items())
                tell(f"{SCENE}: round {number}, {client}: {told}")
            clients.reverse()
    return samples


def _run(site: Site, task: str, instances: int) -> dict[str, float]:
    site.prepare(_MESSAGES)
    with site.start(task=task, instances=instances) as worker:
        begun = site.wait_for(_MESSAGES)
        time.sleep(_SETTLE)
        memory, used = worker.pss(), worker.processor_time()
        worker.terminate()
    if (left := site.ready()) or len(begun) != _MESSAGES:
        raise RuntimeError(f"{len(begun)} callbacks for {_MESSAGES} messages, of which {left} are ready again")
    return {RATE: _rate(begun), CPU: 1000 * used / _MESSAGES, MEMORY: memory}


def _rate(begun: list[Begun]) -> float:
    """Callbacks a second while all executors work."""
    had: Counter[int] = Counter()
    first = 0
    while sum(count >= _WARM for count in had.values()) < _EXECUTORS:
        had[begun[first].pid] += 1
        first += 1
        if first == len(begun):
            raise RuntimeError(f"not all of {_EXECUTORS} executors had {_WARM} messages: {had}")
    last = len(begun) - len(begun) // 10
    return (last - first) / (begun[last].at - begun[first].at) * 1e9


if __name__ == "__main__":
    with PrivateRabbitmq() as private_node:
        measure(private_node, own_python_of, int((sys.argv[1:] or ["1"])[0]), print)
