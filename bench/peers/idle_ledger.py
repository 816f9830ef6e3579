"""The ledger in which every callback of the life-cycle scenes notes when it began and in which process.

A line is written by one ``write`` to a file that is open for appending, so it stands even if the process is killed
right after it. ``BENCH_PAUSE`` is how long a callback then works, in seconds.
"""

from __future__ import annotations

import os
import time

_ledger = os.open(os.environ["BENCH_LEDGER"], os.O_WRONLY | os.O_APPEND)
_pause = float(os.environ["BENCH_PAUSE"])


def note() -> None:
    os.write(_ledger, b"%d %d\n" % (time.monotonic_ns(), os.getpid()))
    time.sleep(_pause)
