"""What a worker costs when it does not work: its start, its recovery, its end, its memory, its idle CPU.

All workers run one callback at a time. workerkit logs warnings only; its project's module imports workerkit alone. The
queues are those that each framework declares: quorum queues with workerkit, pika and Taskiq, classic ones with Celery
and Dramatiq, which costs the latter less. Celery runs without mingle, which would add a second to its start.

* Start: from just before the process is made to the beginning of the first callback, for a message that waits in the
  queue. A message is delivered to a registered consumer only, so by then the worker is consuming.
* Recovery: SIGKILL to the process that runs a callback, on a queue that is never empty; the time until a callback
  begins in another process. What does not come back by itself is run under supervisord, as people do.
* Stop: from SIGTERM to an idle worker until the last of its processes has ended. It must end with 0.
* Memory: proportional set size (PSS) of all processes of a worker that has had messages and now has none. Of one worker
  in each round; of fifty at once in one round, as long as the machine has the memory.
* Idle CPU: of all processes of a worker in a minute without messages. One minute, the same for all, in one round.
* A backlog of one million messages: PSS of a workerkit pair that works on it, in one round.

    python -m bench.lifecycle [ROUNDS]      tries it with a private node
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from bench import loader
from bench.consuming import Problem
from bench.lifecycle_workers import CELERY_PREFORK, KINDS, MIB, WORKERKIT, Kind, Site, Worker, eventually
from bench.samples import Sample
from bench.venvs import python_of as own_python_of
from workerkit.testing.rabbitmq import PrivateRabbitmq

START = "exec to first callback"
STOP = "SIGTERM to exit, idle"
RECOVERY = "SIGKILL of the process that runs callbacks to the next callback"
MEMORY = "one idle worker, PSS"
IDLE_CPU = "one idle worker"
MANY = 50
_MANY_SCENE = f"{MANY} idle workers, PSS"
BACKLOG = 1_000_000
_BODY_SIZE = 100
_BACKLOG_SCENE = f"backlog of {BACKLOG:,} messages, {_BODY_SIZE} B, prefetch 500, PSS"

_WARM = 100
"""Callbacks after which a worker has loaded what it needs."""
_PAUSE = 0.005
"""Seconds of work in each callback of a worker that is killed: long enough that the signal meets it at work."""
_SUPPLY = 1000
"""Messages for it: they last until it is killed; what is left of them is for its successor."""
_AGE = 2.0
"""Seconds from the first callback to the kill. supervisord takes it for a failed start in the first second."""
_SETTLE = 1.0
"""Seconds from the last callback until a worker is taken for idle."""
_MINUTE = 60.0
_WAVE = 5
"""So many of the many start at once."""
_ROOM = 130 * MIB
"""Memory that must be available for each of the many: what the hungriest takes, and a reserve."""
_BACKLOG_PATIENCE = 600.0


class Incomplete(Exception):
    """Not every scene gave figures: a worker did not do what its scene takes for granted.

    Attributes:
        samples: of the scenes that did.
        problems: with the others.
    """

    def __init__(self, samples: list[Sample], problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{problem.scene}: {problem}" for problem in problems))
        self.samples = samples
        self.problems = problems


def measure(
    node: PrivateRabbitmq, python_of: Callable[[str], Path], rounds: int, tell: Callable[[str], None]
) -> list[Sample]:
    """Run all the scenes. Raises Incomplete, after the last, if one of them gave no figures."""
    notes = _Notes(tell)
    with tempfile.TemporaryDirectory(prefix="workerkit-bench-") as folder:
        sites: dict[Kind, Site] = {}
        for kind in KINDS:
            site = Site(kind, Path(folder) / str(len(sites)), node, python_of)
            with notes.attempt("trial", kind.client):  # fills the page cache and the folders of compiled modules
                _from_start_to_stop(site, 0)
                sites[kind] = site
        order = list(sites.values())
        for number in range(1, rounds + 1):
            for site in order:
                with notes.attempt(START, site.kind.client, number):
                    notes.add(*_from_start_to_stop(site, number))
                with notes.attempt(RECOVERY, site.kind.client, number):
                    notes.add(_recovery(site, number))
            order.append(order.pop(0))
        with notes.attempt(IDLE_CPU, "all clients"):
            notes.add(*_idle_cpu(sites.values()))
        for kind in (kind for kind in (WORKERKIT, CELERY_PREFORK) if kind in sites):
            with notes.attempt(_MANY_SCENE, kind.client):
                notes.add(*_many(sites[kind], tell))
        if WORKERKIT in sites:
            with notes.attempt(_BACKLOG_SCENE, WORKERKIT.client):
                notes.add(*_backlog(sites[WORKERKIT], BACKLOG, tell))
    if notes.problems:
        raise Incomplete(notes.samples, notes.problems)
    return notes.samples


class _Notes:
    """What the scenes gave, told as it comes."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.samples: list[Sample] = []
        self.problems: list[Problem] = []
        self._tell = tell

    def add(self, *samples: Sample) -> None:
        self.samples += samples
        for each in samples:
            self._tell(f"{each.scene}: round {each.round}, {each.client}: {each.value:,.3f} {each.figure}")

    @contextmanager
    def attempt(self, scene: str, client: str, number: int = 1) -> Iterator[None]:
        """One worker that fails must not cost the figures of the others."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            self.problems.append(Problem(scene, client, number, f"{type(error).__name__}: {error}"))
            self._tell(f"{scene}: {self.problems[-1]}")


def _from_start_to_stop(site: Site, number: int) -> list[Sample]:
    """Start a worker for waiting messages, look at it when it has none left, stop it."""
    site.prepare(_WARM)
    with site.start() as worker:
        first = site.wait_for(_WARM)[0]
        time.sleep(_SETTLE)
        memory = worker.pss()
        stop = worker.terminate()
    if left := site.ready():
        raise RuntimeError(f"{site.kind.client} has ended with {left} messages unacknowledged")
    client = site.kind.client
    return [
        Sample(START, "s", client, number, (first.at - worker.started) / 1e9),
        Sample(MEMORY, "MiB", client, number, memory),
        Sample(STOP, "s", client, number, stop),
    ]


def _recovery(site: Site, number: int) -> Sample:
    """Kill the process that runs the callbacks while one runs; the next may be of the same message or another."""
    site.prepare(_SUPPLY)
    with site.start(pause=_PAUSE, supervised=True):
        site.wait_for(1)
        time.sleep(_AGE)
        victim = site.begun()[-1].pid
        killed = time.monotonic_ns()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: site.begun()[-1].pid != victim, f"{site.kind.client} recovers", site.tail)
        successor = next(callback for callback in site.begun() if callback.pid != victim)
    return Sample(RECOVERY, "s", site.kind.client, number, (successor.at - killed) / 1e9)


def _idle_cpu(sites: Iterable[Site]) -> list[Sample]:
    """The same minute for all of them."""
    with ExitStack() as running:
        workers = {}
        for site in sites:
            site.prepare(_WARM)
            workers[site] = running.enter_context(site.start())
            site.wait_for(_WARM)
        time.sleep(5 * _SETTLE)
        before = {site: worker.processor_time() for site, worker in workers.items()}
        time.sleep(_MINUTE)
        used = {site: worker.processor_time() - before[site] for site, worker in workers.items()}
    figure = "ms of CPU per minute"
    return [Sample(IDLE_CPU, figure, site.kind.client, 1, 1000 * seconds) for site, seconds in used.items()]


def _many(site: Site, tell: Callable[[str], None], count: int = MANY) -> list[Sample]:
    """So many workers of one kind, each of which has had messages and now has none."""
    available = psutil.virtual_memory().available
    if available < count * _ROOM:
        tell(f"{_MANY_SCENE}, {site.kind.client}: skipped, only {available / MIB:,.0f} MiB are available")
        return []
    site.prepare(count)
    workers: list[Worker] = []
    with ExitStack() as running:
        while len(workers) < count:
            wave = range(len(workers), min(count, len(workers) + _WAVE))
            workers += [running.enter_context(site.start(pause=10 * _PAUSE, number=number)) for number in wave]
            site.wait_for_consumers(len(workers))
        site.publish(20 * count)  # now that all are there to share them
        site.wait_for(21 * count)
        at_work = len({callback.pid for callback in site.begun()})
        if at_work != count:
            raise RuntimeError(f"of {count} workers of {site.kind.client}, only {at_work} had messages")
        time.sleep(5 * _SETTLE)
        memory = sum(worker.pss() for worker in workers)
    return [Sample(_MANY_SCENE, "MiB", site.kind.client, 1, memory)]


def _backlog(site: Site, messages: int, tell: Callable[[str], None]) -> list[Sample]:
    """A worker on a long queue, its memory looked at after the first hundredth and then after every twentieth."""
    site.prepare(0)
    site.load(messages, _BODY_SIZE)
    memory = []
    with site.start(task="silent") as worker, site.channel() as channel:
        deadline = time.monotonic() + _BACKLOG_PATIENCE
        for hundredths in (1, *range(5, 101, 5)):
            while loader.ready_count(channel, site.queue) > messages - messages * hundredths // 100:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"after {_BACKLOG_PATIENCE:g} s, not {hundredths} % are done\n{site.tail()}")
                time.sleep(0.05)
            memory.append(worker.pss())
        seconds = (time.monotonic_ns() - worker.started) / 1e9
        worker.terminate()
    if left := site.ready():
        raise RuntimeError(f"{left} messages of the backlog were not acknowledged")
    tell(f"{messages:,} messages in {seconds:.1f} s; MiB: " + " ".join(f"{each:.1f}" for each in memory))
    found = {"after 1 %": memory[0], "at most": max(memory), "at the end": memory[-1]}
    return [Sample(f"{_BACKLOG_SCENE} {when}", "MiB", site.kind.client, 1, value) for when, value in found.items()]


if __name__ == "__main__":
    with PrivateRabbitmq() as private_node:
        measure(private_node, own_python_of, int((sys.argv[1:] or ["1"])[0]), print)
