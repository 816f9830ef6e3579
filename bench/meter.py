"""Looks at a client from outside: messages counted, processor time and memory of all its processes."""

from __future__ import annotations

import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_SLOTS = mmap.PAGESIZE // 8
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


class Counts:
    """The file in which the processes of one client count their messages; ``bench/peers/common.py`` writes it."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8 * _SLOTS))
        with path.open("rb") as file:
            self._slots = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("Q")

    def total(self) -> int:
        """Messages so far."""
        taken = self._slots[0]
        return sum(self._slots[1 : taken + 1])


def processes(root: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield root
    with suppress(OSError):
        for task in Path(f"/proc/{root}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from processes(int(child))


def processor_time(root: int) -> float:
    """User and system time of a process and all its descendants, in seconds.

    Living processes to the nanosecond, their ended threads included. Descendants that have ended are in what their
    parent keeps of them, in ticks of 10 ms.
    """
    total = 0.0
    for pid in processes(root):
        with suppress(OSError):
            total += time.clock_gettime_ns(_clock_of(pid)) / 1e9
            # After the name, which may hold anything: cutime and cstime are the fields 16 and 17.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[13]) + int(fields[14])) * _TICK
    return total


def _clock_of(pid: int) -> int:
    """The processor-time clock of another process, as clock_getcpuclockid(3) makes it."""
    return (~pid << 3) | 2


def memory(root: int) -> int:
    """Proportional set size of a process and all its descendants, in bytes."""
    total = 0
    for pid in processes(root):
        with suppress(OSError):
            found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
            total += int(found[1]) * 1024 if found else 0
    return total
