"""``workerkit queues``: what the configured queues are, what they hold, and making them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from workerkit.cli.context import Context, dry_run_option, json_option, pass_context, print_json, yes_option
from workerkit.errors import QueueNotFound, TopologyMismatch

if TYPE_CHECKING:
    from workerkit.brokers.rabbitmq.amqp import QueueState
    from workerkit.brokers.rabbitmq.topology import Queue, Topology
    from workerkit.settings import Settings


@click.group()
def queues() -> None:
    """Look at, declare and empty queues."""


@queues.command("list")
@json_option
@pass_context
def list_(context: Context, *, as_json: bool) -> None:
    """List the configured queues with their retry and dead-letter queues.

    Unacknowledged messages cannot be seen over AMQP; they are in RabbitMQ's management page.
    """
    settings = context.loaded.settings
    _note_left_out(settings)
    topologies, states = asyncio.run(_look(settings, _configured(settings)))
    rows = [
        _row(topology, queue, states[queue.name])
        for topology in topologies
        for queue in (topology.queue, *topology.retries, topology.dead)
    ]
    if as_json:
        print_json({"queues": rows})
        return
    if not rows:
        click.echo("no queues are configured")
        return
    _print_rows(rows)


@queues.command()
@click.argument("name")
@json_option
@pass_context
def show(context: Context, name: str, *, as_json: bool) -> None:
    """Show one queue: its arguments, its bindings, where its messages wait and end, what it holds."""
    from workerkit.cli.output import cell, print_table

    settings = context.loaded.settings
    configured = name in _configured(settings)
    (topology,), states = asyncio.run(_look(settings, [name]))
    if states[name] is None and not configured:
        raise QueueNotFound(f"queue {name!r} is neither in the configuration nor on the broker{_near(name, settings)}")
    parts = (topology.queue, *topology.retries, topology.dead)
    bindings = [
        {
            "exchange": binding.exchange,
            "type": settings.exchanges[binding.exchange].type if binding.exchange in settings.exchanges else None,
            "routing_key": binding.routing_key,
            "arguments": binding.arguments,
        }
        for binding in topology.queue.bindings
    ]
    if as_json:
        derived = [_row(topology, queue, states[queue.name]) | {"arguments": queue.arguments} for queue in parts]
        print_json({"name": name, "configured": configured, "bindings": bindings, "queues": derived})
        return
    if not configured:
        _note_unconfigured(name, settings)
    _print_rows([_row(topology, queue, states[queue.name]) for queue in parts])
    click.echo("\nbindings:" if bindings else "\nbindings: none but the default exchange's, by its name")
    if bindings:
        print_table(("EXCHANGE", "TYPE", "ROUTING KEY", "ARGUMENTS"), [list(map(cell, b.values())) for b in bindings])
    for queue in parts:
        click.echo(f"\narguments of {queue.name}:")
        print_table(
            ("ARGUMENT", "VALUE"), [(key, cell(value) or "''") for key, value in sorted(queue.arguments.items())]
        )


@queues.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@pass_context
def declare(context: Context, names: tuple[str, ...]) -> None:
    """Declare queues with all they need: exchanges, bindings, retry queues, dead-letter queue.

    Without NAME: all that are configured. Declaring again is harmless. A queue that exists with other arguments is
    left as it is, and each difference is named.
    """
    settings = context.loaded.settings
    configured = _configured(settings)
    if not names:
        _note_left_out(settings)
    for name in names:
        if name not in configured:
            _note_unconfigured(name, settings)
    asyncio.run(_declare(settings, list(dict.fromkeys(names or configured))))


@queues.command()
@click.argument("name")
@dry_run_option
@yes_option
@pass_context
def purge(context: Context, name: str, *, dry_run: bool, yes: bool) -> None:
    """Delete the ready messages of exactly the queue NAME.

    Those that a worker holds, that wait in retry queues or lie in the dead-letter queue stay.
    """
    from workerkit.brokers.rabbitmq import admin
    from workerkit.cli.terminal import confirm

    broker = context.loaded.settings.broker

    async def count() -> int:
        async with admin.session(broker, "purge") as connection:
            return (await admin.queue_state(connection, name)).messages_ready

    async def delete() -> int:
        async with admin.session(broker, "purge") as connection:
            return await admin.purge(connection, name)

    ready = asyncio.run(count())
    if dry_run:
        click.echo(f"would delete {_messages(ready)} from {name}")
        return
    confirm(f"Delete {_messages(ready)} from {name}?", yes=yes)
    click.echo(f"deleted {_messages(asyncio.run(delete()))} from {name}")


async def _look(settings: Settings, names: list[str]) -> tuple[list[Topology], dict[str, QueueState | None]]:
    from workerkit.brokers.rabbitmq import admin

    async with admin.session(settings.broker, "queues") as connection:
        topologies = [admin.topology_of(settings, name, connection.version) for name in names]
        every = [queue.name for topology in topologies for queue in topology.queues]
        return topologies, await admin.queue_states(connection, every)


async def _declare(settings: Settings, names: list[str]) -> None:
    """Declare one after the other; one that does not fit does not keep the others from being declared."""
    from workerkit.brokers.rabbitmq import admin
    from workerkit.brokers.rabbitmq.declare import declare as declare_topology

    differences = []
    async with admin.session(settings.broker, "declare") as connection:
        for name in names:
            topology = admin.topology_of(settings, name, connection.version)
            try:
                await declare_topology(connection, topology)
            except TopologyMismatch as mismatch:
                differences += mismatch.differences
                continue
            for exchange, settings_of in topology.exchanges.items():
                click.echo(f"declared exchange {exchange} ({settings_of.type})")
            for queue in (topology.queue, *topology.retries, topology.dead):
                click.echo(f"declared queue {queue.name} ({queue.arguments['x-queue-type']})")
                for binding in queue.bindings:
                    click.echo(f"bound queue {queue.name} to {binding.exchange} by {binding.routing_key!r}")
    if differences:
        raise TopologyMismatch(differences)


def _configured(settings: Settings) -> list[str]:
    """The queues of the configuration, in its order."""
    from workerkit.settings.model import queues_of

    consumed = [queue for worker in settings.workers.values() for queue in queues_of(worker)]
    return list(dict.fromkeys([*settings.queues, *consumed]))


def _note_left_out(settings: Settings) -> None:
    """Say on stderr whose queue is not among the configured ones, since only the task names it."""
    from workerkit.settings.model import queues_of

    for name, worker in settings.workers.items():
        if not queues_of(worker):
            click.echo(f"note: worker {name!r} is left out: its queue is named by its task, not here", err=True)


def _note_unconfigured(name: str, settings: Settings) -> None:
    click.echo(f"note: queue {name!r} is not in the configuration{_near(name, settings)}; it has defaults", err=True)


def _near(name: str, settings: Settings) -> str:
    from workerkit.settings.tree import did_you_mean

    return did_you_mean(name, _configured(settings))


def _row(topology: Topology, queue: Queue, state: QueueState | None) -> dict[str, Any]:
    role = {topology.queue.name: "queue", topology.dead.name: "dead"}.get(queue.name, "retry")
    return {
        "name": queue.name,
        "role": role,
        "of": topology.queue.name,
        "type": queue.arguments["x-queue-type"],
        "exists": state is not None,
        "ready": state and state.messages_ready,
        "unacked": None,
        "consumers": state and state.consumers,
    }


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from workerkit.cli.output import cell, print_table

    print_table(
        ("QUEUE", "ROLE", "TYPE", "READY", "UNACKED", "CONSUMERS"),
        [
            (
                row["name"],
                row["role"],
                row["type"],
                cell(row["ready"]) if row["exists"] else "missing",
                cell(row["unacked"]),
                cell(row["consumers"]),
            )
            for row in rows
        ],
    )


def _messages(count: int) -> str:
    return f"{count} ready message{'' if count == 1 else 's'}"
