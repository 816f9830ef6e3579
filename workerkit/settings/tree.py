"""The configuration while it is being read: plain values, where each was written, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from typing import Final, NamedTuple

from workerkit.errors import ConfigurationError
from workerkit.settings.secrets import redact_text

KeyPath = tuple[str | int, ...]
"""``("workers", "thumbnail", "retry", "delays", 0)``; names may hold dots, so this is never a joined string."""

_MOST_PROBLEMS: Final = 50
"""More lines than this do not help anybody."""


class Broken(Enum):
    """Stands where a value cannot be used and a problem has been reported, so that it is reported once."""

    BROKEN = "broken"


BROKEN: Final = Broken.BROKEN


class Origin(NamedTuple):
    """Where a value was written, for people: ``config/workerkit.yaml:14``, ``environment AMQP_URL``."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Problem(NamedTuple):
    """One thing that is wrong: ``config/workerkit.yaml:12: workers.thumbnail.ttl: '5x' is not a duration: …``."""

    origin: Origin
    path: KeyPath
    text: str

    def __str__(self) -> str:
        parts = (str(self.origin), dotted(self.path), redact_text(self.text))
        return ": ".join(part for part in parts if part)


@dataclass(slots=True)
class ConfigTree:
    """Values, origins and problems, gathered by reading, overriding, converting and checking in turn."""

    root: Origin
    data: dict[str, object] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: KeyPath) -> Origin:
        """Where ``path`` was written, or the nearest thing around it that was written."""
        for length in range(len(path), 0, -1):
            if found := self.origins.get(path[:length]):
                return found
        return self.root

    def report(self, path: KeyPath, text: str, origin: Origin | None = None) -> None:
        """Keep a problem with ``path``; everything else goes on, so that one run shows them all."""
        self.problems.append(Problem(origin or self.origin(path), path, text))

    def forget(self, path: KeyPath) -> None:
        """Drop the origins and problems of what was written at ``path``: something else takes its place."""
        self.origins = {known: at for known, at in self.origins.items() if known[: len(path)] != path}
        self.problems = [problem for problem in self.problems if problem.path[: len(path)] != path]

    def put(self, path: KeyPath, value: object, origin: Origin) -> None:
        """Set one value, creating the sections above it."""
        section = self.data
        for key in path[:-1]:
            child = section.get(str(key))
            if child is None:
                child = section[str(key)] = {}
            if not isinstance(child, dict):
                return  # not a mapping: conversion reports that, with its line
            section = child
        section[str(path[-1])] = value
        self.origins[path] = origin

    def raise_problems(self) -> None:
        """Raise one ConfigurationError with a line for each problem, in the order of the file; or do nothing."""
        if not self.problems:
            return
        # The environment's problems have no line and come after the file's. Sorting is stable and the texts unique.
        ordered = sorted(self.problems, key=lambda problem: (problem.origin.line is None, problem.origin.line or 0))
        lines = list(dict.fromkeys(map(str, ordered)))
        if len(lines) > _MOST_PROBLEMS:
            lines = [*lines[:_MOST_PROBLEMS], f"… and {len(lines) - _MOST_PROBLEMS} more"]
        raise ConfigurationError("\n".join(lines))


def dotted(path: KeyPath) -> str:
    """``workers.thumbnail.retry.delays[0]``, on one line whatever the names hold."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            name = key if key.isprintable() else repr(key)[1:-1]
            text += f".{name}" if text else name
    return text


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`` (did you mean `prefetch_count`?)`` with the nearest of ``known``, or nothing when none is near."""
    near = get_close_matches(wrong, list(known), n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""
