"""``workerkit workers``: the workers that are configured, and those that Supervisor runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from workerkit.cli.context import Context, json_option, pass_context, print_json

if TYPE_CHECKING:
    from workerkit.settings import LoadedSettings, WorkerSettings
    from workerkit.supervision import Instance

_LIMITS = ("ttl", "prefetch_count", "callback_timeout", "memory_limit")


@click.command()
@json_option
@pass_context
def workers(context: Context, as_json: bool) -> None:
    """List the configured workers and, when Supervisor runs, their live instances.

    A `-` is left to the task; `workerkit config show --origin` asks it.
    """
    from workerkit.cli.output import cell, print_table
    from workerkit.operations.workers import list_workers

    found = list_workers(context.loaded)
    rows = [_configured(context.loaded, name, worker) for name, worker in found.configured.items()]
    if found.unreachable is not None:
        click.echo(f"note: {found.unreachable}", err=True)
    if as_json:
        live = [asdict(instance) for instance in found.instances]
        print_json({"workers": rows, "supervisor_running": found.unreachable is None, "instances": live})
        return
    if found.unreachable is None:
        for row in rows:
            row["running"] = found.running(row["name"])
    headers = list(rows[0]) if rows else []
    print_table([header.upper() for header in headers], [[cell(row[key]) for key in headers] for row in rows])
    if found.instances:
        click.echo()
        print_table(("INSTANCE", "STATE", "PID", "UPTIME", "DETAIL"), map(_row, found.instances))


def _configured(loaded: LoadedSettings, name: str, worker: WorkerSettings) -> dict[str, Any]:
    """What the YAML and the environment say about a worker."""
    from workerkit.settings import as_written
    from workerkit.settings.model import WorkerSettings, queues_of

    section, written = as_written(WorkerSettings, worker), loaded.written_worker_keys[name]
    limits = {key: section[key] if key in written else None for key in _LIMITS}
    queue = ", ".join(queues_of(worker)) or None
    return {"name": name, "task": worker.task, "queue": queue, "instances": worker.instances, **limits}


def _row(instance: Instance) -> tuple[str, ...]:
    running = instance.pid is not None
    return (
        f"{instance.group}:{instance.name}",
        instance.state,
        str(instance.pid) if running else "-",
        _uptime(instance.uptime),
        "" if running else instance.spawn_error or instance.description,
    )


def _uptime(seconds: int | None) -> str:
    """``0:04:31`` or ``3 days, 0:04:31``; ``-`` while there is no process."""
    from datetime import timedelta

    return "-" if seconds is None else str(timedelta(seconds=seconds))
