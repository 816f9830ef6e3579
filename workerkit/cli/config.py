"""``workerkit config``: what the configuration comes to, where each value was written, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from workerkit.cli.context import Context, json_option, pass_context, print_json
from workerkit.errors import ConfigurationError, ExitCode
from workerkit.settings.tree import dotted

if TYPE_CHECKING:
    from workerkit.settings import LoadedSettings
    from workerkit.worker.loading import Resolved
    from workerkit.worker.probe import NotLoaded

    Answers = dict[str, Resolved | NotLoaded]

_ORIGIN_WORDS = {
    "default": "default",
    "class": "class attribute",
    "initialize()": "initialize()",
    "command line": "command line",
}
"""What a task says about its settings, in the table's words; ``configuration`` has a file and a line instead."""
_OPERATORS = ("task", "instances", "environment")
"""Keys of a worker that no task decides."""


@click.group()
def config() -> None:
    """Show the configuration, find its mistakes, print its schema."""


@config.command()
@click.option("--origin", is_flag=True, help="One row per key, with where its value comes from. Starts each task.")
@json_option
@pass_context
def show(context: Context, origin: bool, as_json: bool) -> None:
    """Print the resolved configuration as YAML, secrets hidden.

    With --origin also what the tasks decide: each is loaded and initialized in a process of its own, without a broker.
    Later wins: class attributes, YAML, environment, initialize(), `workerkit run --set`.
    """
    import yaml

    from workerkit.cli.output import cell, print_table
    from workerkit.settings import redact

    loaded = context.loaded
    _warn(loaded)
    if origin:
        rows = list(_origin_rows(loaded, _ask_tasks(loaded)))
        if as_json:
            print_json([row._asdict() for row in rows])
        else:
            print_table(("KEY", "VALUE", "ORIGIN"), [(row.key, cell(row.value), row.origin) for row in rows])
        return
    tree = redact(_without_undecided(loaded))
    if as_json:
        print_json(tree)
    else:
        click.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000), nl=False)


@config.command()
@json_option
@pass_context
def check(context: Context, as_json: bool) -> None:
    """Find what is wrong: read the YAML, then load and initialize every task. Connects to no broker.

    One line per problem, and exit code 78; or `ok` with what there is.
    """
    from workerkit.settings import redact_text
    from workerkit.worker.probe import NotLoaded

    loaded, answers, problems = None, {}, []
    try:
        loaded = context.loaded
    except ConfigurationError as error:
        problems = str(error).splitlines()
    else:
        _warn(loaded)
        answers = _ask_tasks(loaded)
        problems = [
            f"{loaded.origins[f'workers.{name}.task']}: {answer.text}"
            for name, answer in answers.items()
            if isinstance(answer, NotLoaded)
        ]
    problems = [redact_text(_one_line(problem)) for problem in problems]
    queues = set(loaded.settings.queues if loaded else ())
    queues |= {queue for answer in answers.values() if not isinstance(answer, NotLoaded) for queue in answer.queues}
    if as_json:
        warnings = loaded.warnings if loaded else ()
        print_json({"problems": problems, "warnings": warnings, "workers": len(answers), "queues": len(queues)})
    elif problems:
        click.echo("\n".join(problems))
    else:
        click.echo(f"ok: {_count(len(answers), 'worker')}, {_count(len(queues), 'queue')}")
    if problems:
        click.get_current_context().exit(ExitCode.CONFIGURATION)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors and CI."""
    from workerkit.settings import json_schema

    print_json(json_schema())


class _Row(NamedTuple):
    key: str
    value: Any
    origin: str


def _origin_rows(loaded: LoadedSettings, answers: Answers) -> Iterator[_Row]:
    """Each key of the configuration, with what the tasks decided in place of what the YAML says."""
    from workerkit.settings import Settings, as_written, redact, redact_text
    from workerkit.worker.probe import NotLoaded

    tree = as_written(Settings, loaded.settings)
    origins = dict(loaded.origins)
    notes: dict[str, str] = {}
    for name, answer in answers.items():
        worker = tree["workers"][name]
        if isinstance(answer, NotLoaded):
            tree["workers"][name] = _decided_by_operator(loaded, name, worker)
            notes[name] = redact_text(_one_line(answer.text))
        else:
            values, where = _decided(loaded, name, answer)
            tree["workers"][name] = worker | values
            origins |= where
    for key, value in _leaves(redact(tree)):
        yield _Row(key, value, origins[key])
    for name, note in notes.items():
        yield _Row(f"workers.{name}", None, f"not known: {note}")


def _decided(loaded: LoadedSettings, name: str, task: Resolved) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of one worker that count, as one would write them, and the origin of each by dotted key."""
    from workerkit.declared import settings_of
    from workerkit.retry import RetryPolicy
    from workerkit.settings import as_written
    from workerkit.task_settings import ResolvedSettings

    retry = RetryPolicy(task.max_attempts, task.delays)
    values = {key: as_written(tp, getattr(task, key)) for key, tp, _ in settings_of(ResolvedSettings)}
    values |= {"queue": None, "retry": as_written(RetryPolicy, retry)}
    if task.origins["queues"] == "default":  # one queue, named as such
        values |= {"queue": next(iter(task.queues)), "queues": {}}

    def origin(setting: str, key: str) -> str:
        said = task.origins[setting]
        return loaded.origins.get(key, "default") if said == "configuration" else _ORIGIN_WORDS[said]

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
            where[key] = _ORIGIN_WORDS["default" if unchanged else "class"]
    if task.memory_limit is not None and task.origins["memory_limit"] == "default":
        where[f"workers.{name}.memory_limit"] = "default (90 % of the memory cgroup on this machine)"
    return values, where


def _ask_tasks(loaded: LoadedSettings) -> Answers:
    """Load and initialize every task, in processes like the workers' own."""
    from workerkit.wiring import worker_spec
    from workerkit.worker.probe import Question, resolve

    workers = loaded.settings.workers
    questions = [Question(worker_spec(loaded, name), worker.environment) for name, worker in workers.items()]
    return dict(zip(workers, resolve(questions), strict=True))


def _warn(loaded: LoadedSettings) -> None:
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)


def _without_none(tree: Any) -> Any:
    """The tree without the keys that nobody set."""
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    return tree


def _without_undecided(loaded: LoadedSettings) -> Any:
    """The settings without what they leave to the tasks: keys of workers that nobody wrote."""
    from workerkit.settings import Settings, as_written

    tree = as_written(Settings, loaded.settings)
    workers = {name: _decided_by_operator(loaded, name, worker) for name, worker in tree["workers"].items()}
    return {**_without_none(tree), "workers": workers}


def _decided_by_operator(loaded: LoadedSettings, name: str, worker: dict[str, Any]) -> dict[str, Any]:
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


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
