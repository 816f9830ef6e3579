"""Why an executor died, from what it left behind, and which message is to blame. Pure functions."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from workerkit.settlement import Cause, Reason
from workerkit.worker.child import Exit
from workerkit.worker.page import Phase, Running


def classify(status: Exit, *, oom_killed: bool) -> Cause:
    """The cause of a death that nobody announced.

    Args:
        status: how the process ended.
        oom_killed: the kernel's OOM killer was active in its memory cgroup during its life.
    """
    code, number, text = status.code, status.signal, status.crash_text
    if number is not None:
        name = next((known.name for known in signal.Signals if known == number), f"signal {number}")
        if oom_killed and number == signal.SIGKILL:
            return Cause(Reason.OOM, f"killed by the kernel's OOM killer (signal {number}, {name})", signal=number)
        return Cause(Reason.SIGNAL, f"killed by signal {number} ({name})", traceback=text, signal=number)
    if code is None:
        return Cause(Reason.EXIT, "the executor ended")
    return Cause(Reason.EXIT, f"the executor exited with code {code}", traceback=text, exit_code=code)


def timed_out(seconds: float, stacks: str, what: str) -> Cause:
    """The cause of a callback that the time limit ended."""
    return Cause(Reason.TIMEOUT, f"{what} ran longer than {seconds:g} s", traceback=stacks)


def attribute(running: Sequence[Running], *, named: int | None, handing_back: bool) -> list[int]:
    """The numbers of those that an executor may have died of; nobody knows of which, when they are several.

    All that had not begun is innocent.

    Args:
        running: what the page says that it ran.
        named: the delivery that the dying executor named itself, or for whose sake the consumer has ended it.
        handing_back: the consumer has ended it at the deadline of a stop, for nobody's sake.
    """
    in_callback = [] if handing_back else [one.seq for one in running if one.phase is Phase.CALLBACK]
    # Its shutdown() may have begun since, or it may have ended in that instant: the others are still not to blame.
    return in_callback if named is None else [seq for seq in in_callback if seq == named]
