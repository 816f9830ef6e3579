"""``workerkit supervisor``: Supervisor's files from the YAML."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workerkit.cli.context import Context, pass_context
from workerkit.cli.output import shown_path
from workerkit.errors import ConfigurationError

if TYPE_CHECKING:
    from workerkit.settings import LoadedSettings

_ENVIRONMENT_PAIR = re.compile(r"""^([-+ ]\s*)([A-Za-z_][A-Za-z0-9_]*)=(["']).*?(,?)$""")
"""A line of a diff that sets one variable of a worker."""


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
    from workerkit.supervision import differences, write

    loaded = context.loaded
    folder = loaded.project_root / "supervisor"
    files = _render(loaded, folder)
    if check:
        diff = differences(files, folder)
        click.echo(_hide_secrets(diff), nl=False)
        click.get_current_context().exit(1 if diff else 0)
    try:
        changed = write(files, folder)
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: cannot be written: {error.strerror}") from error
    for path in changed:
        click.echo(f"wrote {shown_path(path)}")
    if not changed:
        click.echo(f"{shown_path(folder)}: nothing to change")
    _say_next(folder / "supervisord.conf")


def _render(loaded: LoadedSettings, folder: Path) -> dict[str, str]:
    from workerkit.supervision import render

    if (folder / "__init__.py").exists():
        raise ConfigurationError(
            f"{shown_path(folder / '__init__.py')}: makes this folder a Python package that hides the installed "
            "`supervisor`: remove it"
        )
    return render(
        loaded.settings,
        project_root=loaded.project_root,
        config_path=loaded.path,
        # -P: nothing that lies in the project's folder, where the workers run, takes the place of an installed module.
        command=[sys.executable, "-P", "-m", "workerkit"],
        overrides=folder / "templates",
    )


def _say_next(conf: Path) -> None:
    shown = shown_path(conf)
    click.echo(
        f"\nStart Supervisor:         supervisord -c {shown}\n"
        f"Start the workers:        supervisorctl -c {shown} start workers:*\n"
        f"Take over what changed:   supervisorctl -c {shown} update"
    )


def _hide_secrets(diff: str) -> str:
    """A diff goes to terminals and CI logs; the files it is about may be read by their owner only."""
    from workerkit.settings import redact_text
    from workerkit.settings.secrets import MASK, is_secret

    def hide(line: str) -> str:
        pair = _ENVIRONMENT_PAIR.match(line)
        if pair and is_secret(pair[2]):
            return f"{pair[1]}{pair[2]}={pair[3]}{MASK}{pair[3]}{pair[4]}"
        return redact_text(line)

    return "".join(f"{hide(line)}\n" for line in diff.splitlines())
