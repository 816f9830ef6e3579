"""How results are shown: tables for people that stay lines for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from workerkit.cli.context import console

_UNBOUNDED = 100_000
"""Columns. Where nobody looks, a row is one line, however long: for grep, awk and diff."""


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns under their headers; on a terminal, cells are folded to its width."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    if not out.is_terminal:
        out.width = _UNBOUNDED
    table = Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a cell like [5s, 30s] is not markup
    with out.capture() as captured:
        out.print(table, soft_wrap=False)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())  # the columns' padding would travel into every copy and paste


def cell(value: object) -> str:
    """One value of the configuration as a table shows it; ``-`` for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(cell, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {cell(item)}' for key, item in value.items())}}}"
    return str(value)
