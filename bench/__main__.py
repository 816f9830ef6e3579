"""``make bench``: measures workerkit beside other clients and writes ``docs/benchmarks.md``."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click

from bench import executors, lifecycle, publishing
from bench.clients import CLIENTS
from bench.consuming import QUICK, Outcome, Problem, consume
from bench.document import Part, document, tables
from bench.machine import facts
from bench.samples import Sample
from bench.scenes import SCENES
from bench.venvs import python_of
from workerkit.testing.rabbitmq import PrivateRabbitmq

_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_ROUNDS = 5
_CONSUMING_NOTE = """\
What each client does while it empties a queue that was full before it started. The first scene is the base; the next
five change one thing about it each. The others are about what a client does when it is told nothing, and about
callbacks that are coroutines."""
_OTHERS: dict[str, tuple[str, ModuleType]] = {
    "publishing": ("Publishing", publishing),
    "executors": ("Several executors", executors),
    "lifecycle": ("Start, recovery, memory", lifecycle),
}


@click.command()
@click.option("--rounds", default=_ROUNDS, show_default=True, help="Of each scene; the page needs 5.")
@click.option(
    "--scene",
    "scenes",
    multiple=True,
    type=click.Choice([*(scene.key for scene in SCENES), *_OTHERS]),
    help="Only these.",
)
@click.option(
    "--client", "clients", multiple=True, type=click.Choice([client.name for client in CLIENTS]), help="Only these."
)
@click.option("--quick", is_flag=True, help="One short round, to see that everything runs; its figures mean little.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the raw samples to this file.")
def main(rounds: int, scenes: tuple[str, ...], clients: tuple[str, ...], quick: bool, json_file: Path | None) -> None:
    """Measure workerkit beside other clients, against one private RabbitMQ on this machine.

    A complete run of at least five rounds writes docs/benchmarks.md. Anything else only shows its tables.
    """
    if quick:
        rounds = 1
    complete = rounds >= _ROUNDS and not scenes and not clients
    with PrivateRabbitmq() as node:
        about = facts(node)
        for name, fact in about.items():
            _tell(f"{name}: {fact}")
        parts = []
        if chosen := [scene for scene in SCENES if not scenes or scene.key in scenes]:
            outcome = consume(node, chosen, clients, rounds=rounds, share=QUICK if quick else 1.0, tell=_tell)
            parts.append(Part("Consuming", _CONSUMING_NOTE, outcome))
        for key, (heading, module) in _OTHERS.items():
            if key in scenes or not (scenes or clients):
                parts.append(Part(heading, _note(module), _others(heading, module.measure, node, rounds)))
    if json_file:
        _write_json(json_file, parts, about)
    print(f"\n{tables(parts)}")
    if complete:
        command = shlex.join(["make", "bench", *([] if rounds == _ROUNDS else [f"ARGS=--rounds {rounds}"])])
        _PAGE.write_text(document(parts, about, command, rounds), "utf-8")
        print(f"written: {_PAGE.relative_to(Path.cwd())}")
    if any(part.outcome.problems for part in parts):
        raise SystemExit(1)


def _others(heading: str, measure: Callable[..., list[Sample]], node: PrivateRabbitmq, rounds: int) -> Outcome:
    try:
        return Outcome(measure(node, python_of, rounds, _tell))
    except lifecycle.Incomplete as error:
        return Outcome(error.samples, error.problems)
    except Exception as error:  # noqa: BLE001 - half an hour of other figures must not be lost
        _tell(f"{heading}: NO FIGURES: {error}")
        return Outcome(problems=[Problem(heading, "all clients", 1, f"{type(error).__name__}: {error}")])


def _note(module: ModuleType) -> str:
    """What a module says about its method, without the line on how it is tried alone."""
    return inspect.cleandoc(module.__doc__ or "").partition("\n\n    python -m")[0]


def _write_json(path: Path, parts: list[Part], about: dict[str, str]) -> None:
    path.write_text(
        json.dumps(
            {
                "facts": about,
                "samples": [dataclasses.asdict(sample) for part in parts for sample in part.outcome.samples],
                "absent": {client: why for part in parts for client, why in part.outcome.absent.items()},
                "problems": [dataclasses.asdict(problem) for part in parts for problem in part.outcome.problems],
            },
            indent=1,
        ),
        "utf-8",
    )


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(prog_name="make bench ARGS=")
