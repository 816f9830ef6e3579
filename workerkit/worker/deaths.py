"""Saying why an executor died, from what it left behind."""

from __future__ import annotations

import signal

from workerkit.settlement import Cause, Reason
from workerkit.worker.child import Exit


def classify(status: Exit, *, oom_killed: bool) -> Cause:
    """The cause of a death that nobody announced.

    Args:
        status: how the process ended.
        oom_killed: the kernel's OOM killer was active in its memory cgroup during its life.
    """
    if status.signal is not None:
        name = _signal_name(status.signal)
        if oom_killed and status.signal == signal.SIGKILL:
            return Cause(
                Reason.OOM,
                f"killed by the kernel's OOM killer (signal {status.signal}, {name})",
                signal=status.signal,
            )
        return Cause(
            Reason.SIGNAL,
            f"killed by signal {status.signal} ({name})",
            traceback=status.crash_text,
            signal=status.signal,
        )
    if status.code is None:
        return Cause(Reason.EXIT, "the executor ended")
    return Cause(
        Reason.EXIT,
        f"the executor exited with code {status.code}",
        traceback=status.crash_text,
        exit_code=status.code,
    )


def timed_out(seconds: float, stacks: str, what: str) -> Cause:
    """The cause of a callback that the time limit ended."""
    return Cause(Reason.TIMEOUT, f"{what} ran longer than {seconds:g} s", traceback=stacks)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
