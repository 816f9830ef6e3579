"""What every Python client of the benchmark is told, and how it counts; standard library only.

``count()`` adds one to this process's own slot in a file that is mapped into memory; the harness adds the slots up. It
must not be called by two threads of one process.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os

URL = os.environ["BENCH_URL"]
PORT = int(os.environ["BENCH_PORT"])
QUEUE = os.environ["BENCH_QUEUE"]
QUEUE_TYPE = os.environ["BENCH_QUEUE_TYPE"]
PREFETCH = int(os.environ["BENCH_PREFETCH"])


def _map() -> memoryview:
    with open(os.environ["BENCH_COUNTS"], "r+b") as file:  # noqa: PTH123 - the fewest imports
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


_slots = _map()
_slot = 0
_next = itertools.count(1).__next__


def _take_slot() -> None:
    """The first slot says how many of the others are taken."""
    global _slot, _next  # noqa: PLW0603 - a function per message must be cheap
    with open(os.environ["BENCH_COUNTS"], "r+b") as file:  # noqa: PTH123
        fcntl.lockf(file, fcntl.LOCK_EX)
        _slot = _slots[0] = _slots[0] + 1
    _next = itertools.count(1).__next__


def count() -> None:
    """One more message has been through the callback."""
    _slots[_slot] = _next()


_take_slot()
os.register_at_fork(after_in_child=_take_slot)
