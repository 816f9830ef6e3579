"""Makes outlines of Python and Markdown files."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workerkit import MessageAdapter, RejectMessage, WorkerTask
from workers.misbehaviour import MayMisbehave, misbehave_if_asked
from workers.results import ResultFolder

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*")
_FENCE = re.compile(r"\s{0,3}(```|~~~)")

Entry = tuple[int, str]
"""A line number, and what begins there."""


@dataclass(kw_only=True)
class OutlineJob(MayMisbehave):
    """The body of a message."""

    path: str


class OutlineWorker(WorkerTask):
    """The classes and functions of a Python file, or the headings of a Markdown file, with their lines.

    Body:      JSON {"path": str}; a relative path starts at the worker's working directory, the project's folder.
               The message_id names the result.
    Done:      ``$RESULTS_FOLDER/MESSAGE_ID.json`` (default ``var/outlines``) holds
               {"path": str, "outline": [[line, str], ...], "attempt": int}.
    Rejected:  there is no such file, its suffix is neither .py nor .md, it is not UTF-8 or not Python, or the
               message_id is missing or cannot name a file.
    Retried:   anything else that goes wrong, by the policy in ``config/workerkit.yaml``.
    """

    payload_type = OutlineJob  # a body that is not of this shape becomes a dead letter, untried

    def initialize(self) -> None:
        super().initialize()
        self.logger.set_main_logger("outline")
        self.results = ResultFolder(Path(os.environ.get("RESULTS_FOLDER", "var/outlines")))

    def callback(self, message: MessageAdapter) -> None:
        job: OutlineJob = message.data
        outline = outline_of(Path(job.path))
        misbehave_if_asked(job, message.attempt)
        result = {"path": job.path, "outline": outline, "attempt": message.attempt}
        self.results.write(message.message_id, result)
        self.logger.debug("outline.written", path=job.path, entries=len(outline))
        message.ack()


def outline_of(path: Path) -> list[Entry]:
    """The outline of one file.

    Raises:
        RejectMessage: it has none, and never will.
    """
    read = _READERS.get(path.suffix)
    if read is None:
        raise RejectMessage(f"neither .py nor .md: {path}")
    try:
        return list(read(path.read_text("utf-8")))
    except FileNotFoundError:
        raise RejectMessage(f"no such file: {path}") from None
    except (ValueError, SyntaxError) as error:  # not UTF-8, a NUL character, not Python
        raise RejectMessage(f"{path}: {error}") from error


def _python(text: str) -> Iterator[Entry]:
    yield from _definitions(ast.parse(text), "")


def _definitions(parent: ast.AST, prefix: str) -> Iterator[Entry]:
    """Depth first, so that names come in the order of the file."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "def"
            yield node.lineno, f"{kind} {prefix}{node.name}"
            yield from _definitions(node, f"{prefix}{node.name}.")
        else:
            yield from _definitions(node, prefix)


def _markdown(text: str) -> Iterator[Entry]:
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and (heading := _HEADING.fullmatch(line)):
            yield number, f"{heading[1]} {heading[2]}"


_READERS: dict[str, Callable[[str], Iterator[Entry]]] = {".py": _python, ".md": _markdown}
