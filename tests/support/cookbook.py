"""Runs a recipe of the cookbook as a reader would: types its commands, writes its files, compares what comes out.

In a recipe's ``README.md``

* a ``console`` block holds lines that begin with ``$``, which are typed into one shell, each with the output that must
  follow. A line of ``...`` stands for any number of lines, and ``...`` within a line for anything. A command must end
  with 0; one that does not is written with ``|| echo``.
* any other block whose first line is a comment with a file name (``# workers/resize.py``) is written to that file.

Blocks are taken in their order.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PATIENCE = 60.0
"""Seconds that one command may take."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)")
_END_OF_OUTPUT = "\x1eend"


@dataclass
class Command:
    """One line to type, and the output that must follow."""

    line: int
    text: str
    output: list[str] = field(default_factory=list)

    def matches(self, actual: str) -> bool:
        pattern = "".join(
            r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n" for line in self.output
        )
        return re.fullmatch(pattern, actual) is not None


@dataclass
class File:
    """One file to write."""

    path: str
    text: str


def steps(readme: str) -> Iterator[Command | File]:
    """The commands and files of a recipe, in order."""
    for block in _BLOCK.finditer(readme):
        language, text = block.groups()
        line = readme.count("\n", 0, block.start(2)) + 1
        if language == "console":
            yield from _commands(text, line)
        elif name := _FILE_NAME.match(text):
            yield File(name[1], text.partition("\n")[2])


def _commands(block: str, first_line: int) -> list[Command]:
    commands: list[Command] = []
    for number, line in enumerate(block.splitlines(), first_line):
        if line.startswith("$ "):
            commands.append(Command(number, line.removeprefix("$ ")))
        else:
            commands[-1].output.append(line.rstrip())
    return commands


def run_recipe(readme: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a recipe with ``folder`` as the working directory; every Supervisor that it starts is gone afterwards.

    Raises:
        AssertionError: a command failed, or printed something else; the text shows both.
    """
    supervisors: set[psutil.Process] = set()
    try:
        with Shell(folder, environment) as shell:
            for step in steps(readme.read_text()):
                if isinstance(step, File):
                    path = shell.folder / step.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(step.text)
                    continue
                status, output = shell.type(step.text)
                supervisors |= _supervisors(folder)
                where = f"{readme}:{step.line}: $ {step.text}"
                assert status == 0, f"{where}\nended with {status}:\n{output}"
                expected = "\n".join(step.output)
                assert step.matches(output), f"{where}\n--- expected\n{expected}\n--- printed\n{output}"
    finally:
        _end(supervisors)


class Shell:
    """One bash, into which commands are typed."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()
        self._bash.communicate()

    @property
    def folder(self) -> Path:
        """Its working directory."""
        return Path(os.readlink(f"/proc/{self._bash.pid}/cwd"))

    def type(self, command: str) -> tuple[int, str]:
        """Run one command. Returns its exit status and what it printed, without spaces at the ends of lines."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        print(f"eval {shlex.quote(command)} </dev/null; echo '{_END_OF_OUTPUT}' $?", file=self._bash.stdin, flush=True)
        killer = threading.Timer(PATIENCE, self._kill)
        killer.start()
        try:
            output = ""
            for line in self._bash.stdout:
                text, ended, status = line.rpartition(_END_OF_OUTPUT)
                if ended:
                    return int(status), output + text
                output += line.rstrip() + "\n"
        finally:
            killer.cancel()
        raise AssertionError(f"$ {command}\nwas not done within {PATIENCE:g} s, or ended the shell:\n{output}")

    def _kill(self) -> None:
        """End it with everything that it runs."""
        if self._bash.poll() is None:
            os.killpg(self._bash.pid, signal.SIGKILL)


def _supervisors(folder: Path) -> set[psutil.Process]:
    """What runs now of the daemons whose pid files stand below ``folder``."""
    found = set()
    for path in folder.glob("**/supervisor/run/supervisord.pid"):
        try:
            found.add(psutil.Process(int(path.read_text())))
        except (psutil.NoSuchProcess, FileNotFoundError, ValueError):
            continue  # it has just ended, or is just starting
    return found


def _end(supervisors: set[psutil.Process]) -> None:
    """Wait for those that the recipe has shut down, and end those that it has not."""
    for process in supervisors:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, left = psutil.wait_procs(supervisors, timeout=45)
    for process in left:
        process.kill()
    assert not left, f"Supervisor did not end: {left}"
