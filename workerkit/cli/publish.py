"""``workerkit publish``: one message, or one per line."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click

from workerkit.cli.context import Context, json_option, pass_context, print_json
from workerkit.errors import BadData
from workerkit.outgoing import Outgoing, check_header_name, compose

if TYPE_CHECKING:
    from workerkit.operations.publishing import Published
    from workerkit.settings import Settings

_CHUNK = 64 * 1024
_UUID_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
M = TypeVar("M", bound=Outgoing)
_Source = io.FileIO | io.BytesIO


@dataclass(slots=True, kw_only=True)
class Line(Outgoing):
    """A message, and the number of the line of the input that it is."""

    number: int


@dataclass(frozen=True)
class _Letterhead:
    """What all messages of one command have in common."""

    queue: str
    delay: float | None
    headers: dict[str, str]
    content_type: str | None
    correlation_id: str | None

    def message(self, body: bytes, message_id: str) -> Outgoing:
        """A persistent message. Raises ValueError."""
        return compose(
            self.queue,
            body=body,
            delay=self.delay,
            content_type=self.content_type or _content_type(body),
            headers=self.headers,
            correlation_id=self.correlation_id,
            message_id=message_id,
            app_id="workerkit",
        )

    def messages(self, lines: list[tuple[int, bytes]]) -> Iterator[Line]:
        """A message of each numbered line, with an id of its own. The rest of the properties is encoded only once."""
        around: dict[str, tuple[bytes, bytes]] = {}  # the properties of a content type, before and after the id
        ids = _random_ids(len(lines))
        for (number, line), message_id in zip(lines, ids, strict=True):
            content_type = self.content_type or _content_type(line)
            if content_type not in around:
                properties = self.message(line, message_id).raw_properties
                before, _, after = properties.rpartition(message_id.encode())
                around[content_type] = before, after
            before, after = around[content_type]
            yield Line("", self.queue, before + message_id.encode() + after, line, self.delay, number=number)


def _parse_headers(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for written in values:
        name, equals, value = written.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{written!r} is not NAME=VALUE")
        try:
            check_header_name(name)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        headers[name] = value
    return headers


def _parse_delay(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    from workerkit.settings import parse_duration
    from workerkit.settlement import MAX_DELAY

    if value is None:
        return None
    try:
        delay = parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not 0 < delay <= MAX_DELAY:
        raise click.BadParameter("a delay is more than 0 and at most 49d")
    return float(delay)


@click.command()
@click.argument("queue")
@click.argument("body", required=False)
@click.option("--lines", is_flag=True, help="One message per line of the input; blank lines are skipped.")
@click.option("--header", "headers", metavar="K=V", multiple=True, callback=_parse_headers, help="May be repeated.")
@click.option("--delay", metavar="DURATION", callback=_parse_delay, help="Deliver after this time, like 10s or 5m.")
@click.option("--content-type", metavar="TYPE", help="Default: JSON, text or bytes, by looking at the body.")
@click.option("--message-id", metavar="ID", help="Default: a random UUID.")
@click.option("--correlation-id", metavar="ID")
@json_option
@pass_context
def publish(
    context: Context,
    queue: str,
    body: str | None,
    *,
    lines: bool,
    headers: dict[str, str],
    delay: float | None,
    content_type: str | None,
    message_id: str | None,
    correlation_id: str | None,
    as_json: bool,
) -> int:
    """Publish to QUEUE and wait until RabbitMQ has it on disk.

    \b
    BODY    the message itself, or
    @FILE   the contents of a file, or
    -       standard input; also when there is no BODY and standard input is not a terminal.
    """
    if lines and message_id:
        raise click.UsageError("--message-id names one message: it cannot be used with --lines")
    letterhead = _Letterhead(queue, delay, headers, content_type, correlation_id)
    message_id = message_id or str(uuid.uuid4())
    try:
        letterhead.message(b"", message_id)  # so that what does not fit is said before anything is read or connected
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    settings = context.loaded.settings
    with _open(body) as source:
        if lines:
            return _publish_lines(settings, letterhead, source, as_json=as_json)
        content = source.read()
    if not content and body is None:
        raise click.UsageError("standard input is empty; for a message without a body, write '' as BODY")
    return _publish_one(settings, letterhead, content, message_id, as_json=as_json)


def _publish_one(settings: Settings, letterhead: _Letterhead, body: bytes, message_id: str, *, as_json: bool) -> int:
    async def one() -> AsyncIterator[list[Outgoing]]:
        yield [letterhead.message(body, message_id)]

    published = asyncio.run(_send(settings, letterhead.queue, one(), lambda _count: None))
    if published.failure is not None:
        raise published.failure.error
    if published.interrupted and not published.confirmed:
        raise click.Abort
    if as_json:
        print_json({"queue": letterhead.queue, "published": 1, "message_id": message_id})
    else:
        click.echo(f"published 1 message to {letterhead.queue} (id {message_id}){_later(letterhead.delay)}")
    return 0


def _publish_lines(settings: Settings, letterhead: _Letterhead, source: _Source, *, as_json: bool) -> int:
    from workerkit.cli.terminal import INTERRUPTED, progress_bar

    async def messages() -> AsyncIterator[Iterator[Line]]:
        async for lines in _lines(source):
            yield letterhead.messages(lines)

    queue = letterhead.queue
    with progress_bar() as progress:
        task = progress.add_task(f"publishing to {queue}", total=None)
        published = asyncio.run(_send(settings, queue, messages(), partial(progress.advance, task)))
    if published.failure is not None:
        raise _at_line(published)
    if published.interrupted:
        click.echo(f"interrupted: {_count(published.confirmed)} confirmed", err=True)
        return INTERRUPTED
    if as_json:
        print_json({"queue": queue, "published": published.confirmed})
    else:
        click.echo(f"published {_count(published.confirmed)} to {queue}{_later(letterhead.delay)}")
    return 0


async def _send(
    settings: Settings, queue: str, messages: AsyncIterator[Iterable[M]], on_confirmed: Callable[[int], None]
) -> Published[M]:
    from workerkit.operations.publishing import publish_all

    return await publish_all(
        settings,
        queue,
        messages,
        on_confirmed=on_confirmed,
        on_blocked=lambda reason: click.echo(f"RabbitMQ does not read from publishers: {reason}", err=True),
    )


def _at_line(published: Published[Line]) -> BaseException:
    """The error with the number of its line and how far it went, so that the rest can be published again."""
    failure = published.failure
    assert failure is not None
    confirmed = f"{_count(published.confirmed)} confirmed"
    after = published.confirmed - failure.index
    where = f", {after} of them after that line" if after else ", all before it"
    failure.error.args = (
        f"line {failure.message.number}: {failure.error} ({confirmed}{where if published.confirmed else ''})",
    )
    return failure.error


def _open(body: str | None) -> _Source:
    """Where the body, or the lines, come from.

    Unbuffered: what is there is read at once, and closing does not wait for a thread that still reads.
    """
    if body is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError("there is no BODY: write it as an argument, as @FILE, or pipe it in")
        return _standard_input()
    if body == "-":
        return _standard_input()
    if body.startswith("@"):
        try:
            return io.FileIO(body[1:])
        except OSError as error:
            raise BadData(f"cannot read {body[1:]}: {error.strerror}") from None
    return io.BytesIO(os.fsencode(body))


def _standard_input() -> _Source:
    try:
        descriptor = sys.stdin.fileno()
        os.set_blocking(descriptor, True)  # some programs leave it otherwise, and then an empty pipe looks like its end
        return io.FileIO(descriptor, closefd=False)
    except (AttributeError, OSError):  # closed, or not a real one
        return io.BytesIO(sys.stdin.buffer.read() if sys.stdin else b"")


async def _lines(source: _Source) -> AsyncIterator[list[tuple[int, bytes]]]:
    """The lines that are not blank, with their numbers, as soon as they are there and as many as there are."""
    number = 0
    started: list[bytes] = []  # of a line that is longer than what was read at once
    while chunk := await _read(source):
        first, *others = chunk.split(b"\n")
        started.append(first)
        if not others:
            continue
        whole = [b"".join(started), *others[:-1]]
        yield _not_blank(number, whole)
        number += len(whole)
        started = [others[-1]]
    yield _not_blank(number, [b"".join(started)])


def _not_blank(number: int, lines: list[bytes]) -> list[tuple[int, bytes]]:
    return [
        (place, line.removesuffix(b"\r")) for place, line in enumerate(lines, number + 1) if line and not line.isspace()
    ]


async def _read(source: _Source) -> bytes:
    """What there is to read, in a thread that nobody waits for: a pipe may stay silent, and Ctrl-C must work."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def finish(chunk: bytes, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(chunk)
        else:
            done.set_exception(BadData(f"the input cannot be read: {error}"))

    def read() -> None:
        chunk, failed = b"", None
        try:
            chunk = source.read(_CHUNK)
        except (OSError, ValueError) as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: interrupted meanwhile
            loop.call_soon_threadsafe(finish, chunk, failed)

    threading.Thread(target=read, name="input", daemon=True).start()
    return await done


def _random_ids(count: int) -> Iterator[str]:
    """Random UUIDs (version 4), for which the system is asked only once."""
    digits = os.urandom(16 * count).hex()
    for start in range(0, len(digits), 32):
        random = digits[start : start + 32]
        variant = _UUID_VARIANT[random[16]]
        yield f"{random[:8]}-{random[8:12]}-4{random[13:16]}-{variant}{random[17:20]}-{random[20:]}"


def _content_type(body: bytes) -> str:
    import msgspec

    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    else:
        return "application/json"
    try:
        body.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain"


def _count(messages: int) -> str:
    return f"{messages} message{'' if messages == 1 else 's'}"


def _later(delay: float | None) -> str:
    from workerkit.settings import format_duration

    return "" if delay is None else f", to arrive in {format_duration(delay)}"
