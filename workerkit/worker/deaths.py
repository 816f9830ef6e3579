"""Why an executor died, from what it left behind, and which message is to blame. Pure functions."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the deliveries that ran have to do with a death, by number. All that had not begun is innocent.

    Attributes:
        blamed: the one that it died of.
        alone: nothing speaks against that one but that no other callback ran.
        suspects: nobody knows which of these it died of; each is to run alone.
        in_shutdown: their ``shutdown`` ran, so that will not run again.
        idle: nothing ran, and it was nobody's doing.
    """

    blamed: int | None = None
    alone: bool = False
    suspects: tuple[int, ...] = ()
    in_shutdown: tuple[int, ...] = ()
    idle: bool = False


def attribute(running: Sequence[Running], *, named: int | None = None, handing_back: bool = False) -> Verdict:
    """Say who is to blame.

    Args:
        running: what the page says that the executor ran.
        named: the delivery that the dying executor named itself, or for whose sake the consumer has ended it.
        handing_back: the consumer has ended it at the deadline of a stop, for nobody's sake.
    """
    in_callback = tuple(one.seq for one in running if one.phase is Phase.CALLBACK)
    in_shutdown = tuple(one.seq for one in running if one.phase is Phase.SHUTDOWN)
    if handing_back:
        return Verdict(in_shutdown=in_shutdown)
    if named is not None:
        # Its shutdown() may have begun since, or it may have ended in that instant: the others are still not to blame.
        return Verdict(named if named in in_callback else None, in_shutdown=in_shutdown)
    if len(in_callback) == 1:
        return Verdict(in_callback[0], alone=True, in_shutdown=in_shutdown)
    return Verdict(suspects=in_callback, in_shutdown=in_shutdown, idle=not running)
