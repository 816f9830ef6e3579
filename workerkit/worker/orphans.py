"""What callbacks start and leave behind: known, collected when it ends, ended with its executor.

A process whose parent has ended gets a new one: the nearest ancestor that asked for orphans. The consumer has asked, so
everything that its executors' callbacks have started stays below it, in whatever process group or session.

1. **Collecting.** An orphan that ends stays a zombie until its parent asks for its exit status. Nobody else will.
2. **Ending.** An orphan must not outlive its executor. Whose it is says a mark in its environment, which children
   inherit. One without a mark (started with an environment of its own) belongs to the last executor, provided that
   nothing else can have become the consumer's child: the first process of a container also adopts what has nothing to
   do with it, and a shell may have started something before it became the consumer. Such a one is only collected.

Where the system has none of this (no ``prctl``, no ``/proc``) there are no orphans to be seen, and nothing is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

MARK = "WORKERKIT_EXECUTOR"
"""The environment variable that says to which executor a process belongs."""
_PR_SET_CHILD_SUBREAPER = 36
_FIRST_PROCESS = 1


class Orphans:
    """The consumer's children that are not executors. It waits for these by process id only, so it takes away no exit
    status that ``subprocess`` is waiting for. All its methods belong to the thread of the event loop.

    For a consumer process only: inline, the user's own children are children of the same process.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._numbers = itertools.count(1)
        self._executors: dict[str, int] = {}  # the mark and the process id of each that lives
        self._only_ours = os.getpid() != _FIRST_PROCESS and not any(_children(os.getpid()))
        self._ended: set[int] = set()  # told to end, and not collected yet
        self._changed = asyncio.Event()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def new_mark(self) -> str:
        """What is to stand in ``MARK`` in the environment of the next executor."""
        return f"{os.getpid()}.{next(self._numbers)}"

    def on_started(self, mark: str, pid: int) -> None:
        """An executor lives: it is not an orphan, and what bears its mark may live as long."""
        self._executors[mark] = pid

    def on_gone(self, mark: str) -> None:
        """An executor has ended, and its exit status was taken: end what it left."""
        self._sweep(executor_pid=self._executors.pop(mark))

    def on_child(self) -> None:
        """A child ended (SIGCHLD). What it left is the consumer's now."""
        self._sweep()
        self._changed.set()

    async def finish(self, patience: float) -> None:
        """The last executor has ended: see that everything of theirs has, for at most ``patience`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._sweep():
                    self._changed.clear()
                    await self._changed.wait()

    def _sweep(self, **about: int) -> bool:
        """Collect every orphan that has ended, end every one that nobody is left for. True: some of these are left."""
        found: dict[int, str] = {}
        for pid in set(_children(os.getpid())) - set(self._executors.values()):
            if _collect(pid):
                self._ended.discard(pid)
            elif self._has_outlived(pid):
                found |= _end_tree(pid)
        if new := [f"{pid} {name}" for pid, name in found.items() if pid not in self._ended]:
            self._log.info("executor.orphans", **about, ended=new)
        self._ended.update(found)
        return bool(found)

    def _has_outlived(self, pid: int) -> bool:
        mark = _mark(pid)
        if mark.startswith(f"{os.getpid()}."):
            return mark not in self._executors
        return self._only_ours and not self._executors


def _children(pid: int) -> Iterator[int]:
    """The children of a process, zombies included; none when it is gone."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from map(int, path.read_text().split())


def _collect(pid: int) -> bool:
    """Take the exit status of a child that has ended. True: it had."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _mark(pid: int) -> str:
    """To which executor a process says it belongs; empty when it does not say so, or cannot be asked."""
    try:
        variables = os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes()).split("\0")
    except OSError:
        return ""
    return next((item.removeprefix(f"{MARK}=") for item in variables if item.startswith(f"{MARK}=")), "")


def _end_tree(pid: int) -> dict[int, str]:
    """Send SIGKILL to a process and all below it. Returns their ids and names; without those that may not be ended."""
    below = list(_children(pid))
    ended = {}
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        os.kill(pid, signal.SIGKILL)
        ended[pid] = name
    for child in below:
        ended |= _end_tree(child)
    return ended
