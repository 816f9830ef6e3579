"""The accounts of the demonstration: what became of each message, from what the workers have left behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demonstration.plan import DONE, Message, fates
from workerkit.brokers.rabbitmq import admin
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.browse import Browser
from workerkit.brokers.rabbitmq.delays import delays_of
from workerkit.brokers.rabbitmq.topology import Topology
from workerkit.operations.letters import DeadLetter
from workerkit.settings import Settings

_LONGEST_EXAMPLE = 54
"""Characters; the table fits 80 columns."""


class WorkerLogs:
    """What the workers have logged so far: one JSON object per line, read as the files grow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: Counter[Path] = Counter()
        self.runs: Counter[tuple[str, int]] = Counter()
        """How often each attempt of each message was settled."""
        self.retried = 0
        """Failed attempts that another one follows."""
        self.executors_lost = 0

    def read(self) -> None:
        """Take in what is new."""
        for path in self._folder.glob("*_[0-9][0-9].log"):
            with path.open("rb") as stream:
                stream.seek(self._offsets[path])
                for line in stream:
                    if not line.endswith(b"\n"):
                        break  # the rest of it is still being written
                    self._offsets[path] += len(line)
                    if line.startswith(b"{"):
                        self._take(json.loads(line))

    def _take(self, line: Mapping[str, Any]) -> None:
        if line["event"] == "executor.exit":
            self.executors_lost += 1
        elif line["event"] == "message.settled" and line["outcome"] != "released":
            self.runs[line["message_id"], line["attempt"]] += 1
            self.retried += line["outcome"] == "retried"


@dataclass(frozen=True, slots=True)
class Dead:
    """One dead letter."""

    id: str
    reason: str
    """For a signal, with its number."""
    story: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where messages stand in the broker's queues."""

    dead: int
    unfinished: int
    """Ready, or waiting for a retry."""


async def look(connection: Connection, topologies: Iterable[Topology]) -> Waiting:
    """Count what is in the queues."""
    dead = unfinished = 0
    for topology in topologies:
        for queue in topology.queues:
            ready = (await admin.queue_state(connection, queue.name)).messages_ready
            if queue is topology.dead:
                dead += ready
            else:
                unfinished += ready
    return Waiting(dead, unfinished)


@dataclass(frozen=True)
class Report:
    """All that the table says, and whether it is what was planned."""

    messages: list[Message]
    """Published, each confirmed by RabbitMQ."""
    done: dict[str, int]
    """Attempt at which it succeeded, by message id: one entry per result file."""
    dead: list[Dead]
    unfinished: set[str]
    """Ids of those that still stand in a queue."""
    logs: WorkerLogs
    instances: int
    worker_starts: int

    @property
    def lost(self) -> set[str]:
        """Ids of messages of which nothing is left: no result, no dead letter, no place in a queue."""
        return {m.id for m in self.messages} - self.done.keys() - {d.id for d in self.dead} - self.unfinished

    @property
    def repeats(self) -> int:
        """Runs of an attempt that had been run before."""
        return sum(count - 1 for count in self.logs.runs.values())

    @property
    def restarts(self) -> int:
        """How often Supervisor had to start a worker again."""
        return self.worker_starts - self.instances

    def problems(self) -> list[str]:
        """What is not as planned, one line each."""
        found = []
        if self.lost:
            found.append(f"{len(self.lost)} messages are lost: {', '.join(sorted(self.lost)[:10])}")
        if self.unfinished:
            found.append(f"{len(self.unfinished)} messages are still in their queues")
        if self.restarts:
            found.append(f"Supervisor restarted worker processes {self.restarts} times")
        planned = fates(self.messages)
        actual = Counter({DONE: len(self.done)}) + Counter(letter.reason for letter in self.dead)
        found += [
            f"{fate}: {actual[fate]} messages, planned were {planned[fate]}"
            for fate in sorted(planned.keys() | actual.keys())
            if actual[fate] != planned[fate]
        ]
        return found


async def close_accounts(
    connection: Connection,
    topologies: Iterable[Topology],
    messages: list[Message],
    result_folders: Iterable[Path],
    *,
    logs: WorkerLogs,
    instances: int,
    worker_starts: int,
) -> Report:
    """Read every result, dead letter and log line. The workers must have been stopped."""
    logs.read()
    dead: list[Dead] = []
    unfinished: set[str] = set()
    for topology in topologies:
        for queue in topology.queues:
            ready = (await admin.queue_state(connection, queue.name)).messages_ready
            if ready:
                async with Browser(connection, queue.name, ready) as browser:
                    while delivery := await browser.next():
                        letter = _dead(DeadLetter(0, delivery))
                        if queue.name == topology.dead.name:
                            dead.append(letter)
                        else:
                            unfinished.add(letter.id)
    done = {path.stem: json.loads(path.read_bytes())["attempt"] for path in result_files(result_folders)}
    return Report(messages, done, dead, unfinished, logs, instances, worker_starts)


def result_files(folders: Iterable[Path]) -> list[Path]:
    """The results so far. What is half written has another name."""
    return [path for folder in folders for path in folder.glob("[!.]*.json")]


def topologies_of(settings: Settings, connection: Connection) -> list[Topology]:
    """The queues of each worker."""
    names = [str(worker.queue) for worker in settings.workers.values()]
    return [admin.topology_of(settings, name, connection.version, delays_of(settings, name)) for name in names]


def print_report(console: Console, report: Report) -> None:
    """Print the table."""
    table = Table("", "", "", box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[1].justify = "right"
    late = sum(attempt > 1 for attempt in report.done.values())
    table.add_row("published", str(len(report.messages)), "each confirmed by RabbitMQ")
    table.add_row("done", str(len(report.done)), f"{late} of them after a failed attempt")
    table.add_row("dead-lettered", str(len(report.dead)), "kept with the reason:")
    examples = {letter.reason: letter.story for letter in report.dead}
    for reason, count in Counter(letter.reason for letter in report.dead).most_common():
        table.add_row(f"  {reason}", str(count), _short(examples[reason]))
    if report.unfinished:
        table.add_row("unfinished", str(len(report.unfinished)), "still in their queues")
    table.add_row("lost", str(len(report.lost)), style="bold red" if report.lost else "bold green")
    table.add_row("")
    table.add_row("retried", str(report.logs.retried), "failed attempts that another one followed")
    table.add_row("repeats", str(report.repeats), "attempts that ran twice")
    table.add_row("executors replaced", str(report.logs.executors_lost), "processes in which a callback died")
    table.add_row("workers restarted", str(report.restarts), "by Supervisor")
    console.print(table)


def _dead(letter: DeadLetter) -> Dead:
    headers = letter.properties.headers
    reason = f"signal {headers['workerkit-signal']}" if "workerkit-signal" in headers else letter.reason
    kind = (letter.exception or "").rpartition(".")[2]
    story = ": ".join(text for text in (kind, letter.message) if text)
    return Dead(str(letter.message_id), reason, story)


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _LONGEST_EXAMPLE else f"{line[: _LONGEST_EXAMPLE - 1]}…"
