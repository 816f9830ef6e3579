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
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil

from bench import loader
from bench.lifecycle_workers import CELERY_PREFORK, KINDS, MIB, WORKERKIT, Site, Worker, eventually
from bench.samples import Sample
from bench.venvs import python_of as own_python_of
from workerkit.testing.rabbitmq import PrivateRabbitmq

LOWER_IS_BETTER = frozenset({"s", "MiB", "ms of CPU per minute"})

START = "exec to first callback"
STOP = "SIGTERM to exit, idle"
RECOVERY = "SIGKILL of the process that runs callbacks to the next callback"
MEMORY = "one idle worker, PSS"
IDLE_CPU = "one idle worker"

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
MANY = 50
_WAVE = 5
"""So many of the many start at once."""
_ROOM = 130 * MIB
"""Memory that must be available for each of the many: what the hungriest takes, and a reserve."""
BACKLOG = 1_000_000
_BODY_SIZE = 100
_BACKLOG_PATIENCE = 600.0


def measure(
    node: PrivateRabbitmq, python_of: Callable[[str], Path], rounds: int, tell: Callable[[str], None]
) -> list[Sample]:
    """Run all the scenes. Raises RuntimeError if a worker does not do what its scene takes for granted."""
    with tempfile.TemporaryDirectory(prefix="workerkit-bench-") as folder:
        sites = [Site(kind, Path(folder) / str(number), node, python_of) for number, kind in enumerate(KINDS)]
        for site in sites:  # once unmeasured, for the compiled modules and the page cache
            _from_start_to_stop(site, 1)
        samples = _rounds(sites, rounds, tell)
        samples += _idle_cpu(sites, tell)
        crowded = [site for site in sites if site.kind in (WORKERKIT, CELERY_PREFORK)]
        for site in crowded:
            samples += _many(site, MANY, tell)
        workerkit = next(site for site in sites if site.kind is WORKERKIT)
        samples += _backlog(workerkit, BACKLOG, tell)
    return samples


def _rounds(sites: list[Site], rounds: int, tell: Callable[[str], None]) -> list[Sample]:
    samples = []
    order = list(sites)
    for number in range(1, rounds + 1):
        for site in order:
            measured = [*_from_start_to_stop(site, number), _recovery(site, number)]
            tell(f"round {number}, {site.kind.client}: " + _in_words(measured))
            samples += measured
        order.append(order.pop(0))
    return samples


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


def _idle_cpu(sites: list[Site], tell: Callable[[str], None]) -> list[Sample]:
    with ExitStack() as running:
        workers = {}
        for site in sites:
            site.prepare(_WARM)
            workers[site] = running.enter_context(site.start())
            site.wait_for(_WARM)
        tell(f"{len(workers)} idle workers for a minute")
        time.sleep(5 * _SETTLE)
        before = {site: worker.processor_time() for site, worker in workers.items()}
        time.sleep(_MINUTE)
        used = {site: worker.processor_time() - before[site] for site, worker in workers.items()}
    samples = [
        Sample(IDLE_CPU, "ms of CPU per minute", site.kind.client, 1, 1000 * seconds) for site, seconds in used.items()
    ]
    for sample in samples:
        tell(f"{sample.client}: {_in_words([sample])}")
    return samples


def _many(site: Site, count: int, tell: Callable[[str], None]) -> list[Sample]:
    """So many workers of one kind, each of which has had messages and now has none."""
    available = psutil.virtual_memory().available
    if available < count * _ROOM:
        tell(f"{count} idle workers, {site.kind.client}: skipped, only {available / MIB:,.0f} MiB are available")
        return []
    site.prepare(0)
    workers: list[Worker] = []
    with ExitStack() as running:
        while len(workers) < count:
            wave = range(len(workers), min(count, len(workers) + _WAVE))
            workers += [running.enter_context(site.start(pause=10 * _PAUSE, number=number)) for number in wave]
            site.wait_for_consumers(len(workers))
        site.publish(20 * count)
        site.wait_for(20 * count)
        at_work = len({callback.pid for callback in site.begun()})
        if at_work != count:
            raise RuntimeError(f"of {count} workers of {site.kind.client}, only {at_work} had messages")
        time.sleep(5 * _SETTLE)
        memory = sum(worker.pss() for worker in workers)
    sample = Sample(f"{count} idle workers, PSS", "MiB", site.kind.client, 1, memory)
    tell(f"{site.kind.client}: {_in_words([sample])}")
    return [sample]


def _backlog(site: Site, messages: int, tell: Callable[[str], None]) -> list[Sample]:
    """A worker on a long queue, its memory looked at after the first hundredth and then after every twentieth."""
    site.prepare(0)
    tell(f"loading {messages:,} messages")
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
    scene = f"backlog of {messages:,} messages, {_BODY_SIZE} B, prefetch 500, PSS"
    found = {"after 1 %": memory[0], "at most": max(memory), "at the end": memory[-1]}
    return [Sample(f"{scene} {when}", "MiB", site.kind.client, 1, value) for when, value in found.items()]


def _in_words(samples: list[Sample]) -> str:
    return ", ".join(f"{sample.scene} {sample.value:,.3f} {sample.figure}" for sample in samples)


if __name__ == "__main__":
    with PrivateRabbitmq() as private_node:
        measure(private_node, own_python_of, int((sys.argv[1:] or ["1"])[0]), print)
