"""``workerkit dead``: what died, why, and bringing it back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from workerkit.cli.context import Context, dry_run_option, json_option, pass_context, print_json, yes_option

if TYPE_CHECKING:
    from workerkit.operations.dead_letters import Moved, Progress
    from workerkit.operations.letters import DeadLetter, Details, Matching, Select, Summary
    from workerkit.settings import Settings

_id_option = click.option("--id", "ids", metavar="ID", multiple=True, help="Only this message id. May be repeated.")
_reason_option = click.option(
    "--reason", "reasons", metavar="REASON", multiple=True, help="Only this reason. May be repeated."
)
_limit_option = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N, the first ones.")


@click.group()
def dead() -> None:
    """Look at dead letters, replay them, drop them. QUEUE is the queue they died in, or its dead-letter queue."""


@dead.command("list")
@click.argument("queue")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="Read N at most.")
@json_option
@pass_context
def list_(context: Context, queue: str, *, limit: int, as_json: bool) -> None:
    """List the dead letters of QUEUE, and count them by reason. They stay where they are."""
    from workerkit.operations.dead_letters import read
    from workerkit.operations.letters import Matching, details, summary

    keep: Callable[[DeadLetter], Summary] = details if as_json else summary
    found = asyncio.run(read(context.loaded.settings, queue, Matching(limit=limit), keep))
    reasons = Counter(letter.reason for letter in found.letters)
    if as_json:
        messages = [asdict(letter) for letter in found.letters]
        print_json({"queue": found.queue, "ready": found.ready, "messages": messages, "reasons": dict(reasons)})
        return
    if not found.letters:
        click.echo(f"no dead letters in {found.queue}")
        return
    _print_letters(found.letters)
    click.echo(f"\n{len(found.letters)} of {found.ready} dead letters: {_by_reason(reasons)}")


@dead.command()
@click.argument("queue")
@click.argument("number", required=False, type=click.IntRange(min=1))
@click.option("--id", "message_id", metavar="ID", help="By message id instead of by number.")
@json_option
@pass_context
def show(context: Context, queue: str, number: int | None, message_id: str | None, *, as_json: bool) -> None:
    """Show one dead letter of QUEUE in full, by its NUMBER in the list or by its id."""
    from workerkit.operations import dead_letters

    if (number is None) == (message_id is None):
        raise click.UsageError("which one? Give its NUMBER in `dead list`, or --id")
    letter = asyncio.run(dead_letters.show(context.loaded.settings, queue, number=number, message_id=message_id))
    if as_json:
        print_json(asdict(letter))
    else:
        _print_letter(letter)


@dead.command()
@click.argument("queue")
@_id_option
@_reason_option
@_limit_option
@click.option("--to", "target", metavar="QUEUE", help="Where to.  [default: the queue they died in]")
@dry_run_option
@pass_context
def replay(
    context: Context,
    queue: str,
    *,
    ids: tuple[str, ...],
    reasons: tuple[str, ...],
    limit: int | None,
    target: str | None,
    dry_run: bool,
) -> int:
    """Put dead letters back into the queue they died in, each as a first attempt.

    A dead letter is removed once RabbitMQ has confirmed its copy. Without options: all that are there at the start.
    """
    from workerkit.operations import dead_letters
    from workerkit.operations.letters import Matching

    settings = context.loaded.settings
    select = Matching(ids=ids, reasons=reasons, limit=limit)
    target = target or dead_letters.died_in(queue)
    if dry_run:
        return _dry_run(settings, queue, select, f"would replay {{}} to {target}")
    return _act(partial(dead_letters.replay, settings, queue, select, target), queue, "replayed")


@dead.command()
@click.argument("queue")
@_id_option
@_reason_option
@_limit_option
@dry_run_option
@yes_option
@pass_context
def drop(
    context: Context,
    queue: str,
    *,
    ids: tuple[str, ...],
    reasons: tuple[str, ...],
    limit: int | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Delete dead letters. Without options: all that are there at the start."""
    from workerkit.cli.terminal import confirm
    from workerkit.operations import dead_letters
    from workerkit.operations.letters import Exactly, Matching

    settings = context.loaded.settings
    select: Select
    select = matching = Matching(ids=ids, reasons=reasons, limit=limit)
    if dry_run:
        return _dry_run(settings, queue, matching, "would drop {}")
    if not yes:
        # They are given back while the question waits, and what dies meanwhile was not asked about.
        found = asyncio.run(dead_letters.read(settings, queue, matching, lambda letter: letter.fingerprint))
        if found.error is not None:
            raise found.error
        if not found.letters:
            click.echo(f"nothing to drop: {found.ready} dead letters in {found.queue}, none of them selected")
            return 0
        confirm(f"Delete {_letters(len(found.letters))} of {found.ready} in {found.queue} for good?", yes=False)
        select = Exactly(found.letters)
    return _act(partial(dead_letters.drop, settings, queue, select), queue, "dropped")


# ---- running


def _act(action: Callable[[Progress], Coroutine[Any, Any, Moved]], queue: str, verb: str) -> int:
    """Run an operation on the selected dead letters and say what came of it, also when it ended early."""
    from workerkit.cli.terminal import INTERRUPTED, progress_bar
    from workerkit.operations.dead_letters import dead_queue_of

    with progress_bar() as progress:
        task = progress.add_task(dead_queue_of(queue), total=None)
        moved = asyncio.run(action(lambda done, total: progress.update(task, completed=done, total=total)))
    for skipped in moved.skipped:
        click.echo(f"not {verb}, {skipped}", err=True)
    click.echo(f"{'interrupted: ' if moved.interrupted else ''}{verb} {moved.done}, left {moved.ready - moved.done}")
    if moved.error is not None:
        raise moved.error
    return INTERRUPTED if moved.interrupted else 0


def _dry_run(settings: Settings, queue: str, select: Matching, text: str) -> int:
    from workerkit.operations.dead_letters import read
    from workerkit.operations.letters import summary

    found = asyncio.run(read(settings, queue, select, summary))
    if found.letters:
        _print_letters(found.letters)
        click.echo()
    click.echo(f"{text.format(_letters(len(found.letters)))}, leave {found.ready - len(found.letters)}")
    if found.error is not None:
        raise found.error
    return 0


# ---- showing


def _print_letters(letters: Iterable[Summary]) -> None:
    from workerkit.cli.output import cell, print_table
    from workerkit.cli.terminal import printable
    from workerkit.settings import format_size

    def row(letter: Summary) -> list[str]:
        what = ": ".join(text for text in (letter.exception, letter.message) if text)
        shown = (letter.number, letter.message_id, letter.reason, _short(what) or None)
        cells = (*shown, letter.attempt, letter.failed_at, format_size(letter.size))
        return [printable(cell(value)) for value in cells]

    print_table(("#", "MESSAGE ID", "REASON", "ERROR", "ATTEMPT", "FAILED AT", "SIZE"), map(row, letters))


def _print_letter(letter: Details) -> None:
    from workerkit.cli.terminal import printable

    for name in ("number", "message_id", "reason", "exception", "message", "attempt", "failed_at", "size"):
        if (value := getattr(letter, name)) is not None:
            click.echo(f"{name.replace('_', ' ')}: {printable(str(value))}")
    for title, table in (("properties", letter.properties), ("headers", letter.headers)):
        click.echo(f"\n{title}:")
        for key, value in table.items():
            click.echo(f"  {printable(key)}: {printable(str(value))}")
    click.echo(f"\nbody{'' if letter.body_encoding == 'utf-8' else ' (base64)'}:")
    click.echo(printable(_pretty(letter.body), lines=True))
    if letter.traceback:
        click.echo("\ntraceback:")
        click.echo(printable(letter.traceback.rstrip(), lines=True))


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body


def _short(text: str) -> str:
    first = text.partition("\n")[0]
    return first if len(first) <= 80 else f"{first[:79]}…"


def _by_reason(reasons: Counter[str]) -> str:
    from workerkit.cli.terminal import printable

    return ", ".join(f"{printable(reason)} {count}" for reason, count in reasons.most_common())


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"
