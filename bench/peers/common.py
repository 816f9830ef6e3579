"""What every Python client of the benchmark is told, and how it counts; standard library only.

``count()`` adds one to this process's own slot in a file that is mapped into memory; the harness adds the slots up.
Where threads of one process count, each calls ``count_in_thread()``.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import threading

URL = os.environ["BENCH_URL"]
PORT = int(os.environ["BENCH_PORT"])
QUEUE = os.environ["BENCH_QUEUE"]
QUEUE_TYPE = os.environ["BENCH_QUEUE_TYPE"]
PREFETCH = int(os.environ["BENCH_PREFETCH"] or 0)
"""0: whatever the client does when it is told nothing; then nothing else is set either."""
PAUSE = float(os.environ["BENCH_PAUSE"])
"""Seconds for which a callback that is a coroutine sleeps."""


def _map() -> memoryview:
    with open(os.environ["BENCH_COUNTS"], "r+b") as file:  # noqa: PTH123 - the fewest imports
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


_slots = _map()
_slot = 0
_next = itertools.count(1).__next__


_of_thread = threading.local()
_slot_lock = threading.Lock()


def _new_slot() -> int:
    """The first slot says how many of the others are taken."""
    with _slot_lock, open(os.environ["BENCH_COUNTS"], "r+b") as file:  # noqa: PTH123
        fcntl.lockf(file, fcntl.LOCK_EX)  # the lock of a file is the process's
        _slots[0] += 1
        return _slots[0]


def _take_slot() -> None:
    global _slot, _next  # noqa: PLW0603 - a function per message must be cheap
    _slot = _new_slot()
    _next = itertools.count(1).__next__


def count() -> None:
    """One more message has been through the callback."""
    _slots[_slot] = _next()


def count_in_thread() -> None:
    """The same, in one of several threads."""
    try:
        slot, following = _of_thread.slot
    except AttributeError:
        slot, following = _of_thread.slot = _new_slot(), itertools.count(1).__next__
    _slots[slot] = following()


_take_slot()
os.register_at_fork(after_in_child=_take_slot)
