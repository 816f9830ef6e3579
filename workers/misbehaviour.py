"""Ways for a callback to go wrong, on request. For ``make demo`` and for experiments: leave it out of real workers.

A body with ``"misbehave": "kill"`` makes its callback kill its own process on every attempt; with
``"misbehave_attempts": 1`` on the first one only. What becomes of such a message in the end is the ``workerkit-reason``
of a dead letter, in brackets below.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Literal

Way = Literal[
    "raise",  # an ordinary exception [exception]
    "exit",  # sys.exit [exit]
    "kill",  # SIGKILL to its own process, which then cannot do anything any more [signal]
    "segfault",  # a crash in C code [signal]
    "memory",  # more small objects than memory_limit allows [memory]
    "loop",  # never returns; callback_timeout ends it [timeout]
]


@dataclass(kw_only=True)
class MayMisbehave:
    """The fields that a body may have besides those of its worker."""

    misbehave: Way | None = None
    misbehave_attempts: int | None = None
    """On the first so many attempts; None for all."""


def misbehave_if_asked(job: MayMisbehave, attempt: int) -> None:
    """Do what ``job`` asks for, if it asks for anything on attempt number ``attempt``."""
    if job.misbehave is None or (job.misbehave_attempts is not None and attempt > job.misbehave_attempts):
        return
    match job.misbehave:
        case "raise":
            raise RuntimeError("the message asked for an exception")
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "memory":
            hoard: list[bytes] = []
            while True:
                hoard.append(bytes(400))
        case "loop":
            while True:
                time.sleep(0.01)
