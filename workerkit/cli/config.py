"""``workerkit config``: what the configuration comes to, where each value was written, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict

import click

from workerkit.cli.context import Context, json_option, pass_context, print_json
from workerkit.errors import ExitCode


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
    from workerkit.operations.configuration import shown_settings, with_origins

    loaded = context.loaded
    _warn(loaded.warnings)
    if origin:
        rows = with_origins(loaded)
        if as_json:
            print_json([asdict(row) for row in rows])
        else:
            print_table(("KEY", "VALUE", "ORIGIN"), [(row.key, cell(row.value), row.origin) for row in rows])
        return
    tree = shown_settings(loaded)
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
    from workerkit.operations import configuration

    found = configuration.check(context.config_path, os.environ)
    _warn(found.warnings)
    if as_json:
        print_json(asdict(found))
    elif found.problems:
        click.echo("\n".join(found.problems))
    else:
        click.echo(f"ok: {_count(found.workers, 'worker')}, {_count(found.queues, 'queue')}")
    if found.problems:
        click.get_current_context().exit(ExitCode.CONFIGURATION)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors and CI."""
    from workerkit.settings import json_schema

    print_json(json_schema())


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
