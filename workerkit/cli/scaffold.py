"""``workerkit init`` and ``workerkit new worker``: the first files of a project and of a worker."""

from __future__ import annotations

from pathlib import Path

import click

from workerkit.cli.context import Context, pass_context
from workerkit.errors import ExitCode


class _BadName(click.ClickException):
    """An argument that cannot be used, said in one line."""

    exit_code = ExitCode.USAGE


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def init(directory: Path) -> None:
    """Make a new project in DIR, with one working example: the worker `hello`.

    DIR may exist and hold other files; what is there is never overwritten.
    """
    from workerkit.operations.paths import shown_path
    from workerkit.operations.scaffold import new_project

    root = directory.absolute()
    for path in new_project(root):
        click.echo(f"created {shown_path(path)}")
    enter = "" if root == Path.cwd() else f"  cd {shown_path(root)}\n"
    click.echo(
        f"\nNext:\n{enter}"
        "  pytest                                          test the worker, without RabbitMQ\n"
        "  workerkit queues declare                        create its queues on the broker\n"
        """  workerkit publish hello '{"name": "Ada"}'       send it a message\n"""
        "  workerkit run hello --limit 1                   run it for one message\n"
        "  workerkit new worker NAME                       add a worker"
    )


@click.group()
def new() -> None:
    """Add to a project."""


@new.command("worker")
@click.argument("name")
@pass_context
def worker(context: Context, name: str) -> None:
    """Add the worker NAME: workers/NAME.py, its entry in the YAML, and tests/test_NAME.py.

    NAME is lower-case letters, digits and underscores, such as `resize_images`.
    """
    from workerkit.operations.paths import shown_path
    from workerkit.operations.scaffold import is_worker_name, new_worker

    if not is_worker_name(name):
        raise _BadName(
            f"{name!r} cannot name a worker and its module: "
            "use lower-case letters, digits and _, a letter first, and no word of Python's own, like resize_images"
        )
    added = new_worker(context.loaded, name)
    click.echo(f"created {shown_path(added.module)}")
    click.echo(f"created {shown_path(added.test)}")
    click.echo(f"changed {shown_path(added.yaml)}")
    click.echo(
        "\nNext:\n"
        f"  edit {shown_path(added.module)}, where the work is done\n"
        f"  pytest {shown_path(added.test)}\n"
        "  workerkit config check\n"
        "  workerkit queues declare\n"
        "  workerkit supervisor generate"
    )
