"""Which messages the demonstration publishes, and what must become of each."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE = "done"

_SOUND = 160
"""Messages per worker that nothing is wrong with."""

# How many messages of each worker misbehave, in which way, and what must become of them.
_ALWAYS = (
    ("loop", 1, "timeout"),
    ("raise", 4, "exception"),
    ("exit", 2, "exit"),
    ("kill", 2, "signal 9"),
    ("segfault", 2, "signal 11"),
    ("memory", 2, "memory"),
)
_ONCE = (("raise", 6, DONE), ("kill", 3, DONE))
"""On the first attempt only."""
_NOT_JSON = 4
_NO_SUCH_FILE = 3

_READABLE_BY = {"digest": (".py", ".md", ".yaml", ".toml", ".sh", ".conf"), "outline": (".py", ".md")}
"""Suffixes, by worker."""
_FOLDERS = ("workerkit", "workers", "tests", "scripts", "config", "docs", "cookbook")


@dataclass(frozen=True, slots=True)
class Message:
    """One message to publish."""

    id: str
    worker: str
    body: bytes
    fate: str
    """``done``, or the reason with which it must become a dead letter; for a signal, with its number."""


def plan(repository: Path) -> list[Message]:
    """All messages, in the order in which they are published: the same on each run, as long as the files are.

    Args:
        repository: whose files are worked on.
    """
    files = [path for folder in _FOLDERS for path in sorted((repository / folder).rglob("*")) if path.is_file()]
    files += sorted(repository.glob("*.*"))
    messages = [message for worker in _READABLE_BY for message in _for_worker(worker, files)]
    random.Random(1).shuffle(messages)
    # What takes longest goes first, so that the end is not a wait for it.
    return sorted(messages, key=lambda message: message.fate != "timeout")


def fates(messages: Iterable[Message]) -> Counter[str]:
    """How many messages must end in which way."""
    return Counter(message.fate for message in messages)


def _for_worker(worker: str, files: list[Path]) -> Iterator[Message]:
    paths = itertools.cycle(path for path in files if path.suffix in _READABLE_BY[worker])

    def message(name: str, fate: str, **fields: Any) -> Message:
        job = {"path": str(next(paths)), **fields}
        return Message(f"{worker}-{name}", worker, json.dumps(job).encode(), fate)

    for number in range(_SOUND):
        yield message(f"{number:03d}", DONE)
    for way, count, fate in _ALWAYS:
        for number in range(count):
            yield message(f"{way}-{number}", fate, misbehave=way)
    for way, count, fate in _ONCE:
        for number in range(count):
            yield message(f"{way}-once-{number}", fate, misbehave=way, misbehave_attempts=1)
    for number in range(_NO_SUCH_FILE):
        yield message(f"missing-{number}", "rejected", path="no/such/file.py")
    for number in range(_NOT_JSON):
        yield Message(f"{worker}-not-json-{number}", worker, b"<job>not JSON</job>", "undecodable")
