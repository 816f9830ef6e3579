"""``workerkit workers``: the workers that are configured, and those that Supervisor runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from workerkit.cli.context import Context, json_option, pass_context, print_json
from workerkit.errors import ControlError

if TYPE_CHECKING:
    from workerkit.settings import LoadedSettings
    from workerkit.supervision import Instance

_LIMITS = ("ttl", "prefetch_count", "callback_timeout", "memory_limit")
_GROUP = "workers"
"""Of the generated files. A project's own programs are in Supervisor too, and are no workers."""


@click.command()
@json_option
@pass_context
def workers(context: Context, as_json: bool) -> None:
    """List the configured workers and, when Supervisor runs, their live instances.

    A `-` is left to the task; `workerkit config show --origin` asks it.
    """
    from workerkit.cli.output import cell, print_table

    loaded = context.loaded
    configured = _configured(loaded)
    instances, note = _live(loaded)
    if note:
        click.echo(f"note: {note}", err=True)
    if as_json:
        live = [asdict(instance) for instance in instances]
        print_json({"workers": configured, "supervisor_running": not note, "instances": live})
        return
    if not note:
        for worker in configured:
            worker["running"] = sum(i.worker == worker["name"] and i.state == "RUNNING" for i in instances)
    headers = list(configured[0]) if configured else []
    print_table([header.upper() for header in headers], [[cell(row[key]) for key in headers] for row in configured])
    if instances:
        click.echo()
        print_table(("INSTANCE", "STATE", "PID", "UPTIME", "DETAIL"), map(_row, instances))


def _configured(loaded: LoadedSettings) -> list[dict[str, Any]]:
    """What the YAML and the environment say about each worker."""
    from workerkit.settings import as_written
    from workerkit.settings.model import WorkerSettings, queues_of

    rows = []
    for name, worker in loaded.settings.workers.items():
        section = as_written(WorkerSettings, worker)
        written = loaded.written_worker_keys[name]
        limits = {key: section[key] if key in written else None for key in _LIMITS}
        queue = ", ".join(queues_of(worker)) or None
        rows.append({"name": name, "task": worker.task, "queue": queue, "instances": worker.instances, **limits})
    return rows


def _live(loaded: LoadedSettings) -> tuple[Sequence[Instance], str]:
    """The instances that Supervisor looks after, or why it cannot be asked."""
    from workerkit.supervision import SupervisorControl, socket_path

    try:
        instances = SupervisorControl(socket_path(loaded.project_root)).instances()
    except ControlError as error:
        return [], str(error)
    return [instance for instance in instances if instance.group == _GROUP], ""


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
