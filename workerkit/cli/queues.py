"""``workerkit queues``: what the configured queues are, what they hold, and making them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from workerkit.cli.context import Context, dry_run_option, json_option, pass_context, print_json, yes_option

if TYPE_CHECKING:
    from workerkit.operations.queues import QueueReport, Unanswered, WantedQueues


@click.group()
def queues() -> None:
    """Look at, declare and empty queues."""


@queues.command("list")
@json_option
@pass_context
def list_(context: Context, *, as_json: bool) -> None:
    """List the configured queues with their retry and dead-letter queues. Asks each task, in a process of its own.

    Unacknowledged messages cannot be seen over AMQP; they are in RabbitMQ's management page.
    """
    from workerkit.operations.queues import list_queues, wanted_queues

    wanted = wanted_queues(context.loaded)
    _warn(wanted.unanswered)
    reports = asyncio.run(list_queues(context.loaded.settings, wanted))
    if as_json:
        print_json({"queues": [_row(report) for report in reports]})
        return
    if not reports:
        click.echo("no queues are configured")
        return
    _print_reports(reports)


@queues.command()
@click.argument("name")
@json_option
@pass_context
def show(context: Context, name: str, *, as_json: bool) -> None:
    """Show one queue: its arguments, its bindings, where its messages wait and end, what it holds."""
    from workerkit.cli.output import cell, print_table
    from workerkit.operations.queues import show_queue, wanted_queues

    wanted = wanted_queues(context.loaded)
    _warn(wanted.unanswered_for([name]))
    details = asyncio.run(show_queue(context.loaded.settings, wanted, name))
    bindings = [asdict(binding) for binding in details.bindings]
    if as_json:
        rows = [_row(report) | {"arguments": report.arguments} for report in details.queues]
        print_json({"name": name, "configured": details.configured, "bindings": bindings, "queues": rows})
        return
    if not details.configured:
        _note_unconfigured(name, wanted)
    _print_reports(details.queues)
    click.echo("\nbindings:" if bindings else "\nbindings: none but the default exchange's, by its name")
    if bindings:
        print_table(("EXCHANGE", "TYPE", "ROUTING KEY", "ARGUMENTS"), [list(map(cell, b.values())) for b in bindings])
    for report in details.queues:
        click.echo(f"\narguments of {report.name}:")
        print_table(
            ("ARGUMENT", "VALUE"), [(key, cell(value) or "''") for key, value in sorted(report.arguments.items())]
        )


@queues.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@pass_context
def declare(context: Context, names: tuple[str, ...]) -> None:
    """Declare queues with all they need: exchanges, bindings, retry queues, dead-letter queue.

    Without NAME: all that are configured, and all that the tasks name. Each task is asked, in a process of its own, for
    its queue and its retry delays. Declaring again is harmless. A queue that exists with other arguments is left as it
    is, and each difference is named.
    """
    from workerkit.operations.queues import (
        Bound,
        Declared,
        DeclaredExchange,
        DeclaredQueue,
        declare_queues,
        wanted_queues,
    )

    def say(declared: Declared) -> None:
        match declared:
            case DeclaredExchange(name, type_):
                click.echo(f"declared exchange {name} ({type_})")
            case DeclaredQueue(name, type_):
                click.echo(f"declared queue {name} ({type_})")
            case Bound(queue, exchange, routing_key):
                click.echo(f"bound queue {queue} to {exchange} by {routing_key!r}")

    wanted = wanted_queues(context.loaded)
    _warn(wanted.unanswered_for(names) if names else wanted.unanswered)
    for name in names:
        if name not in wanted.delays:
            _note_unconfigured(name, wanted)
    asyncio.run(declare_queues(context.loaded.settings, wanted, names, say))


@queues.command()
@click.argument("name")
@dry_run_option
@yes_option
@pass_context
def purge(context: Context, name: str, *, dry_run: bool, yes: bool) -> None:
    """Delete the ready messages of exactly the queue NAME.

    Those that a worker holds, that wait in retry queues or lie in the dead-letter queue stay.
    """
    from workerkit.cli.terminal import confirm
    from workerkit.operations.queues import count_ready, purge_queue

    settings = context.loaded.settings
    ready = asyncio.run(count_ready(settings, name))
    if dry_run:
        click.echo(f"would delete {_messages(ready)} from {name}")
        return
    confirm(f"Delete {_messages(ready)} from {name}?", yes=yes)
    click.echo(f"deleted {_messages(asyncio.run(purge_queue(settings, name)))} from {name}")


def _warn(unanswered: Iterable[Unanswered]) -> None:
    for worker in unanswered:
        click.echo(f"warning: {worker}", err=True)


def _note_unconfigured(name: str, wanted: WantedQueues) -> None:
    click.echo(f"note: queue {name!r} is not in the configuration{wanted.hint(name)}; it has defaults", err=True)


def _row(report: QueueReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if key != "arguments"}


def _print_reports(reports: Iterable[QueueReport]) -> None:
    from workerkit.cli.output import cell, print_table

    print_table(
        ("QUEUE", "ROLE", "TYPE", "READY", "UNACKED", "CONSUMERS"),
        [
            (
                report.name,
                report.role,
                report.type,
                cell(report.ready) if report.exists else "missing",
                cell(report.unacked),
                cell(report.consumers),
            )
            for report in reports
        ],
    )


def _messages(count: int) -> str:
    return f"{count} ready message{'' if count == 1 else 's'}"
