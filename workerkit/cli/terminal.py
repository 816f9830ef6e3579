"""Asking, progress, and texts of others made harmless to print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from workerkit.cli.context import console

if TYPE_CHECKING:
    from rich.progress import Progress

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended in the middle: 128 and the number of SIGINT."""


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed.

    Raises:
        click.UsageError: there is nobody to ask and ``--yes`` was not given.
        click.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask on: add --yes.")
    click.confirm(question, abort=True, err=True)


def printable(text: str, *, lines: bool = False) -> str:
    """``text`` without characters that a terminal obeys: a message must not move the cursor of who looks at it.

    Args:
        text: of a message.
        lines: keep line breaks and tabs.
    """
    keep = "\n\t" if lines else ""
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress display on stderr; it shows nothing where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as progress:
        yield progress
