"""``workerkit dead``: what died, why, and bringing it back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from workerkit.cli.context import Context, dry_run_option, json_option, pass_context, print_json, yes_option
from workerkit.envelope import DEAD_SUFFIX, dead_queue_name
from workerkit.errors import BadData
from workerkit.headers import TRACEBACK

if TYPE_CHECKING:
    from workerkit.brokers.rabbitmq.amqp import Connection
    from workerkit.brokers.rabbitmq.deadletters import DeadLetter, Matching, Result, Select
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
    from workerkit.brokers.rabbitmq.deadletters import Matching

    keep = _full if as_json else _summary
    ready, letters = asyncio.run(_read(context.loaded.settings, queue, Matching(limit=limit), keep))
    reasons = Counter(letter["reason"] for letter in letters)
    if as_json:
        print_json({"queue": _dead_queue(queue), "ready": ready, "messages": letters, "reasons": dict(reasons)})
        return
    if not letters:
        click.echo(f"no dead letters in {_dead_queue(queue)}")
        return
    _print_letters(letters)
    click.echo(f"\n{len(letters)} of {ready} dead letters: {_by_reason(reasons)}")


@dead.command()
@click.argument("queue")
@click.argument("number", required=False, type=click.IntRange(min=1))
@click.option("--id", "message_id", metavar="ID", help="By message id instead of by number.")
@json_option
@pass_context
def show(context: Context, queue: str, number: int | None, message_id: str | None, *, as_json: bool) -> None:
    """Show one dead letter of QUEUE in full, by its NUMBER in the list or by its id."""
    from workerkit.brokers.rabbitmq.deadletters import Matching

    if (number is None) == (message_id is None):
        raise click.UsageError("which one? Give its NUMBER in `dead list`, or --id")
    if message_id is not None:
        select = Matching(ids=[message_id], limit=1)
    else:
        assert number is not None
        select = Matching(numbers=[number], limit=1)
    ready, letters = asyncio.run(_read(context.loaded.settings, queue, select, _full))
    if not letters:
        wanted = f"the id {message_id!r}" if message_id is not None else f"number {number}"
        raise BadData(f"none of the {ready} dead letters in {_dead_queue(queue)} has {wanted}")
    if as_json:
        print_json(letters[0])
    else:
        _print_letter(letters[0])


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
    from workerkit.brokers.rabbitmq.deadletters import Matching

    settings = context.loaded.settings
    select = Matching(ids=ids, reasons=reasons, limit=limit)
    target = target or _dead_queue(queue).removesuffix(DEAD_SUFFIX)
    if dry_run:
        return _dry_run(settings, queue, select, f"would replay {{}} to {target}")
    return _act(settings, queue, select, "replayed", partial(_replay, settings=settings, target=target))


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
    from workerkit.brokers.rabbitmq.deadletters import Exactly, Matching
    from workerkit.cli.terminal import confirm

    settings = context.loaded.settings
    select = Matching(ids=ids, reasons=reasons, limit=limit)
    if dry_run:
        return _dry_run(settings, queue, select, "would drop {}")
    if yes:
        return _act(settings, queue, select, "dropped", _drop)
    # They are given back while the question waits, and what dies meanwhile was not asked about.
    ready, chosen = asyncio.run(_read(settings, queue, select, lambda letter: (letter.id, letter.fingerprint)))
    _check_found(select, {message_id for message_id, _ in chosen}, queue)
    if not chosen:
        click.echo(f"nothing to drop: {ready} dead letters in {_dead_queue(queue)}, none of them selected")
        return 0
    confirm(f"Delete {_letters(len(chosen))} of {ready} in {_dead_queue(queue)} for good?", yes=False)
    exactly = Exactly([fingerprint for _, fingerprint in chosen])
    return _act(settings, queue, exactly, "dropped", _drop)


# ---- running


async def _read(
    settings: Settings, queue: str, select: Select, keep: Callable[[DeadLetter], Any]
) -> tuple[int, list[Any]]:
    """How many dead letters there are, and what ``keep`` makes of those selected."""
    from workerkit.brokers.rabbitmq import admin, deadletters

    name = _dead_queue(queue)
    async with admin.session(settings.broker, "dead") as connection:
        ready = (await admin.queue_state(connection, name)).messages_ready
        return ready, await deadletters.read(connection, name, ready, select, keep)


_Operation = Callable[["Connection", str, int, "Select", Callable[[], None]], Awaitable["Result"]]


async def _replay(
    connection: Connection,
    queue: str,
    ready: int,
    select: Select,
    progress: Callable[[], None],
    *,
    settings: Settings,
    target: str,
) -> Result:
    from workerkit.brokers.rabbitmq import admin, deadletters
    from workerkit.brokers.rabbitmq.publisher import Publisher

    await admin.queue_state(connection, target)
    publisher = Publisher(partial(admin.connect_for, settings.broker, "replay"))
    try:
        return await deadletters.replay(
            connection, queue, ready, select, publisher=publisher, target=target, progress=progress
        )
    finally:
        await publisher.close()


async def _drop(connection: Connection, queue: str, ready: int, select: Select, progress: Callable[[], None]) -> Result:
    from workerkit.brokers.rabbitmq import deadletters

    return await deadletters.drop(connection, queue, ready, select, progress)


def _act(settings: Settings, queue: str, select: Select, verb: str, operation: _Operation) -> int:
    """Run an operation on the selected dead letters and say what came of it, also when it ended early."""
    from workerkit.brokers.rabbitmq import admin
    from workerkit.cli.terminal import INTERRUPTED, progress_bar

    name = _dead_queue(queue)

    async def run() -> tuple[int, Result]:
        async with admin.session(settings.broker, "dead") as connection:
            ready = (await admin.queue_state(connection, name)).messages_ready
            progress.update(task, total=ready if select.limit is None else min(ready, select.limit))
            return ready, await operation(connection, name, ready, select, lambda: progress.advance(task))

    with progress_bar() as progress:
        task = progress.add_task(name, total=None)
        ready, result = asyncio.run(run())
    for skipped in result.skipped:
        click.echo(f"not {verb}, {skipped}", err=True)
    click.echo(f"{'interrupted: ' if result.interrupted else ''}{verb} {result.done}, left {ready - result.done}")
    if result.failure is not None:
        error = result.failure.error
        error.args = (f"number {result.failure.number}: {error}",)
        raise error
    if result.interrupted:
        return INTERRUPTED
    _check_found(select, result.found, queue)
    return 0


def _dry_run(settings: Settings, queue: str, select: Matching, text: str) -> int:
    ready, letters = asyncio.run(_read(settings, queue, select, _summary))
    if letters:
        _print_letters(letters)
        click.echo()
    click.echo(f"{text.format(_letters(len(letters)))}, leave {ready - len(letters)}")
    _check_found(select, {letter["message_id"] for letter in letters}, queue)
    return 0


def _check_found(select: Select, found: set[str | None], queue: str) -> None:
    """An id that somebody typed and that is not there is an error; the others were dealt with. Raises BadData."""
    missing = [wanted for wanted in getattr(select, "ids", ()) if wanted not in found]
    if missing and select.limit is None:
        raise BadData(f"no dead letter in {_dead_queue(queue)} has the id {', '.join(map(repr, missing))}")


# ---- showing


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "number": letter.number,
        "message_id": letter.id,
        "reason": letter.reason,
        "exception": letter.exception,
        "message": letter.message,
        "attempt": letter.attempt,
        "failed_at": letter.failed_at,
        "size": len(letter.delivery.body),
    }


def _full(letter: DeadLetter) -> dict[str, Any]:
    properties = asdict(letter.properties)
    headers = {key: value for key, value in properties.pop("headers").items() if key != TRACEBACK}
    try:
        body = {"body": letter.delivery.body.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        import base64

        body = {"body": base64.b64encode(letter.delivery.body).decode(), "body_encoding": "base64"}
    return _summary(letter) | {
        "properties": {key: value for key, value in properties.items() if value is not None},
        "headers": headers,
        **body,
        "traceback": letter.traceback,
    }


def _print_letters(letters: list[dict[str, Any]]) -> None:
    from workerkit.cli.output import cell, print_table
    from workerkit.cli.terminal import printable
    from workerkit.settings import format_size

    def row(letter: dict[str, Any]) -> list[str]:
        what = ": ".join(text for text in (letter["exception"], letter["message"]) if text)
        shown = (letter["number"], letter["message_id"], letter["reason"], _short(what) or None)
        cells = (*shown, letter["attempt"], letter["failed_at"], format_size(letter["size"]))
        return [printable(cell(value)) for value in cells]

    print_table(("#", "MESSAGE ID", "REASON", "ERROR", "ATTEMPT", "FAILED AT", "SIZE"), map(row, letters))


def _print_letter(letter: dict[str, Any]) -> None:
    from workerkit.cli.terminal import printable

    for name in ("number", "message_id", "reason", "exception", "message", "attempt", "failed_at", "size"):
        if letter[name] is not None:
            click.echo(f"{name.replace('_', ' ')}: {printable(str(letter[name]))}")
    for title in ("properties", "headers"):
        click.echo(f"\n{title}:")
        for key, value in letter[title].items():
            click.echo(f"  {printable(key)}: {printable(str(value))}")
    click.echo(f"\nbody{'' if letter['body_encoding'] == 'utf-8' else ' (base64)'}:")
    click.echo(printable(_pretty(letter["body"]), lines=True))
    if letter["traceback"]:
        click.echo("\ntraceback:")
        click.echo(printable(letter["traceback"].rstrip(), lines=True))


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


def _dead_queue(queue: str) -> str:
    return queue if queue.endswith(DEAD_SUFFIX) else dead_queue_name(queue)
