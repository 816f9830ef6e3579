"""``workerkit supervisor``: Supervisor's files from the YAML."""

from __future__ import annotations

import click

from workerkit.cli.context import Context, pass_context


@click.group()
def supervisor() -> None:
    """Supervisor's files."""


@supervisor.command()
@click.option("--check", is_flag=True, help="Write nothing; print how the files differ, and exit 1 if so.")
@pass_context
def generate(context: Context, check: bool) -> None:
    """Write supervisor/supervisord.conf and supervisor/conf.d/workers.conf from the YAML.

    Templates of the same names in supervisor/templates/ take the place of the packaged ones.
    """
    from workerkit.operations import supervisor as operations
    from workerkit.operations.paths import shown_path

    if check:
        diff = operations.compare(context.loaded)
        click.echo(diff, nl=False)
        click.get_current_context().exit(1 if diff else 0)
    generated = operations.generate(context.loaded)
    for path in generated.changed:
        click.echo(f"wrote {shown_path(path)}")
    if not generated.changed:
        click.echo(f"{shown_path(generated.folder)}: nothing to change")
    _say_next(shown_path(generated.conf))


def _say_next(conf: str) -> None:
    click.echo(
        f"\nStart Supervisor:         supervisord -c {conf}\n"
        f"Start the workers:        supervisorctl -c {conf} start workers:*\n"
        f"Take over what changed:   supervisorctl -c {conf} update"
    )
