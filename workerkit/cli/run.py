"""``workerkit run``: one worker instance. What Supervisor starts."""

from __future__ import annotations

import click

from workerkit.cli.context import Context, pass_context


@click.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option("--inline", is_flag=True, help="One process, for debuggers: consumer and executor on two threads.")
@pass_context
def run(context: Context, name: str, limit: int | None, inline: bool) -> int:
    """Run one instance of worker NAME until it is told to stop.

    \b
    Signals: TERM, INT, QUIT  finish the running message, hand back the rest, end; again: at once
             USR2, CONT       pause, resume
             USR1             log every thread's stack and the current message
    """
    from workerkit.worker.signals import Signals

    with Signals() as signals:  # before all that takes time
        loaded = context.loaded
        from workerkit.wiring import run_worker

        return run_worker(loaded, name, limit=limit, inline=inline, signals=signals)
