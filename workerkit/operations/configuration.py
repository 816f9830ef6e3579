"""The configuration: what it comes to, where each value was written, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workerkit.declared import settings_of
from workerkit.errors import ConfigurationError
from workerkit.retry import RetryPolicy
from workerkit.settings import LoadedSettings, Settings, as_written, load, redact, redact_text
from workerkit.settings.tree import dotted
from workerkit.task_settings import ResolvedSettings

if TYPE_CHECKING:
    from workerkit.worker.loading import Resolved

_OPERATORS = ("task", "instances", "environment")
"""Keys of a worker that no task decides."""


def shown_settings(loaded: LoadedSettings) -> object:
    """The settings as a tree of plain values, as one would write them: defaults filled in, secrets hidden.

    What is left to the tasks is not among them.
    """
    tree = as_written(Settings, loaded.settings)
    workers = {name: _decided_by_operator(loaded, name, worker) for name, worker in tree["workers"].items()}
    return redact({**_without_none(tree), "workers": workers})


@dataclass(frozen=True, slots=True)
class Row:
    """One key of the configuration.

    Attributes:
        key: dotted, such as ``workers.thumbnail.ttl``.
        value: as one would write it, secrets hidden.
        origin: who decided it: a file and line, a variable, ``default``, ``class attribute``, ``initialize()``.
    """

    key: str
    value: Any
    origin: str


def with_origins(loaded: LoadedSettings) -> list[Row]:
    """Each key of the configuration, with what the tasks decided in place of what the YAML says. Asks every task.

    A worker whose task cannot be asked has, behind all others, a row without a value that says why.
    """
    from workerkit.operations.answers import ask_tasks, one_line
    from workerkit.worker.probe import NotLoaded

    tree = as_written(Settings, loaded.settings)
    origins = dict(loaded.origins)
    notes: dict[str, str] = {}
    for name, answer in ask_tasks(loaded).items():
        worker = tree["workers"][name]
        if isinstance(answer, NotLoaded):
            tree["workers"][name] = _decided_by_operator(loaded, name, worker)
            notes[name] = redact_text(one_line(answer.text))
        else:
            values, where = _decided(loaded, name, answer)
            tree["workers"][name] = worker | values
            origins |= where
    rows = [Row(key, value, origins[key]) for key, value in _leaves(redact(tree))]
    return rows + [Row(f"workers.{name}", None, f"not known: {note}") for name, note in notes.items()]


@dataclass(frozen=True, slots=True)
class Check:
    """What is wrong with a configuration.

    Attributes:
        problems: one line each, with file and line where they are known, secrets hidden.
        warnings: what works and will be regretted, one line each.
        workers: how many there are.
        queues: how many are configured or named by tasks.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    workers: int
    queues: int


def check(path: Path, environ: Mapping[str, str]) -> Check:
    """Read the YAML, then load and initialize every task. Connects to no broker. Arguments are those of ``load``."""
    from workerkit.operations.answers import ask_tasks, one_line
    from workerkit.worker.probe import NotLoaded

    try:
        loaded = load(path, environ)
    except ConfigurationError as error:
        return Check(tuple(redact_text(line) for line in str(error).splitlines()), (), 0, 0)
    problems, queues = [], set(loaded.settings.queues)
    answers = ask_tasks(loaded)
    for name, answer in answers.items():
        if isinstance(answer, NotLoaded):
            problems.append(redact_text(f"{loaded.origins[f'workers.{name}.task']}: {one_line(answer.text)}"))
        else:
            queues.update(answer.queues)
    return Check(tuple(problems), loaded.warnings, len(answers), len(queues))


def _decided(loaded: LoadedSettings, name: str, task: Resolved) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of one worker that count, as one would write them, and the origin of each by dotted key."""
    retry = RetryPolicy(task.max_attempts, task.delays)
    values = {key: as_written(tp, getattr(task, key)) for key, tp, _ in settings_of(ResolvedSettings)}
    values |= {"queue": None, "retry": as_written(RetryPolicy, retry)}
    if task.origins["queues"] == "default":  # one queue, named as such
        values |= {"queue": next(iter(task.queues)), "queues": {}}

    def origin(setting: str, key: str) -> str:
        said = task.origins[setting]
        if said == "configuration":  # that has a file and a line
            return loaded.origins.get(key, "default")
        return "class attribute" if said == "class" else said

    where = {
        key: origin(setting, key)
        for setting, value in values.items()
        for key, _ in _leaves(value, ("workers", name, setting))
    }
    # The YAML may give one half of `retry` and leave the other to the class, which the task reports as one setting.
    for part in ("max_attempts", "delays"):
        key = f"workers.{name}.retry.{part}"
        if task.origins["retry"] == "configuration" and not _is_written(loaded, name, part):
            unchanged = getattr(task, part) == getattr(RetryPolicy(), part)
            where[key] = "default" if unchanged else "class attribute"
    if task.memory_limit is not None and task.origins["memory_limit"] == "default":
        where[f"workers.{name}.memory_limit"] = "default (90 % of the memory cgroup on this machine)"
    return values, where


def _without_none(tree: Any) -> Any:
    """The tree without the keys that nobody set."""
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    return tree


def _decided_by_operator(loaded: LoadedSettings, name: str, worker: dict[str, Any]) -> dict[str, Any]:
    """A worker's settings without those that nobody wrote, which are left to its task."""
    # A written null says something: it switches a limit of the class off.
    written = loaded.written_worker_keys[name]
    kept = {key: value for key, value in worker.items() if key in written or key in _OPERATORS}
    if "retry" in kept:  # half of it may be written, and the other half be the class's
        kept["retry"] = {part: value for part, value in kept["retry"].items() if _is_written(loaded, name, part)}
    return kept


def _is_written(loaded: LoadedSettings, worker: str, part: str) -> bool:
    return loaded.origins.get(f"workers.{worker}.retry.{part}", "default") != "default"


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is not a mapping; a list is one value, as in ``LoadedSettings.origins``."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    else:
        yield dotted(path), tree
