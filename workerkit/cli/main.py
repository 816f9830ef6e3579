"""``workerkit``: the commands, and the one place that turns errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

import click

from workerkit.cli.context import DEFAULT_CONFIG, Context
from workerkit.errors import ExitCode, WorkerkitError

_COMMANDS = {
    "init": "workerkit.cli.scaffold:init",
    "new": "workerkit.cli.scaffold:new",
    "run": "workerkit.cli.run:run",
    "workers": "workerkit.cli.workers:workers",
    "publish": "workerkit.cli.publish:publish",
    "queues": "workerkit.cli.queues:queues",
    "dead": "workerkit.cli.dead:dead",
    "supervisor": "workerkit.cli.supervisor:supervisor",
    "config": "workerkit.cli.config:config",
}


class _LazyGroup(click.Group):
    """Imports a command's module when the command is used: a worker must not pay for the tables of ``dead list``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=None,
    envvar="WORKERKIT_CONFIG",
    help=f"The configuration file.  [default: {DEFAULT_CONFIG}]",
)
@click.version_option(version("workerkit"), prog_name="workerkit")
@click.pass_context
def cli(ctx: click.Context, config_path: Path | None) -> None:
    """RabbitMQ workers that do not lose messages and say why anything died."""
    ctx.obj = Context(config_path or DEFAULT_CONFIG)


def main() -> None:
    """Entry point of the ``workerkit`` command."""
    try:
        result = cli.main(standalone_mode=False, prog_name="workerkit")
    except click.exceptions.Abort:
        click.echo("aborted", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE if error.exit_code == 2 else error.exit_code)
    except WorkerkitError as error:
        from workerkit.settings import redact_text

        click.echo(f"workerkit: {redact_text(str(error))}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output is gone (`workerkit … | head`): leave quietly, also when Python flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    sys.exit(result if isinstance(result, int) else 0)
