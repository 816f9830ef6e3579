"""``workerkit run``: one worker instance. What Supervisor starts."""

from __future__ import annotations

import click

from workerkit.cli.context import Context, pass_context
from workerkit.errors import ConfigurationError


class _SettingOption(click.Option):
    """Its help names the settings, which are imported when somebody asks."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from workerkit.task_settings import SETTING_NAMES

        self.help = (
            "A setting of this instance, over all other places: ttl=10s, retry.max_attempts=3. Can be given again. "
            f"There are {', '.join(SETTING_NAMES)}."
        )
        return super().get_help_record(ctx)


@click.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option("--inline", is_flag=True, help="One process, for debuggers: consumer and executor on two threads.")
@click.option(
    "--set",
    "assignments",
    cls=_SettingOption,
    multiple=True,
    metavar="KEY=VALUE",
)
@pass_context
def run(context: Context, name: str, limit: int | None, inline: bool, assignments: tuple[str, ...]) -> int:
    """Run one instance of worker NAME until it is told to stop.

    \b
    Signals: TERM, INT, QUIT  finish the running message, hand back the rest, end; again: at once
             USR2, CONT       pause, resume
             HUP              replace the executors, one at a time
             USR1             log every thread's stack and the current messages
    """
    from workerkit.worker.signals import Signals

    with Signals() as signals:  # before all that takes time
        loaded = context.loaded
        from workerkit.settings.command_line import parse_overrides
        from workerkit.wiring import run_worker

        try:
            overrides = parse_overrides(assignments, name) if assignments else {}
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from None
        return run_worker(loaded, name, limit=limit, inline=inline, overrides=overrides, signals=signals)
