"""Why an executor died, from its exit status."""

import pytest

from workerkit import Cause, Reason
from workerkit.worker.child import Exit
from workerkit.worker.deaths import classify, timed_out

DEATHS = {Reason.TIMEOUT, Reason.MEMORY, Reason.EXIT, Reason.SIGNAL, Reason.OOM}


@pytest.mark.parametrize(
    ("status", "oom_killed", "cause"),
    [
        (
            Exit(code=None, signal=9),
            False,
            Cause(Reason.SIGNAL, "killed by signal 9 (SIGKILL)", signal=9),
        ),
        (
            Exit(code=None, signal=9),
            True,
            Cause(Reason.OOM, "killed by the kernel's OOM killer (signal 9, SIGKILL)", signal=9),
        ),
        (
            Exit(code=None, signal=11, crash_text="Fatal Python error"),
            True,
            Cause(Reason.SIGNAL, "killed by signal 11 (SIGSEGV)", traceback="Fatal Python error", signal=11),
        ),
        (Exit(code=None, signal=63), False, Cause(Reason.SIGNAL, "killed by signal 63 (signal 63)", signal=63)),
        (Exit(code=0, signal=None), False, Cause(Reason.EXIT, "the executor exited with code 0", exit_code=0)),
        (
            Exit(code=3, signal=None, crash_text="text"),
            True,
            Cause(Reason.EXIT, "the executor exited with code 3", traceback="text", exit_code=3),
        ),
        (Exit(code=None, signal=None), False, Cause(Reason.EXIT, "the executor ended")),
    ],
)
def test_the_cause_of_a_death_that_nobody_announced(status: Exit, oom_killed: bool, cause: Cause) -> None:
    """Only SIGKILL can be the OOM killer's."""
    assert classify(status, oom_killed=oom_killed) == cause
    assert cause.reason in DEATHS


def test_a_time_limit_says_what_ran_how_long_and_where() -> None:
    """The stacks are the traceback."""
    assert timed_out(1.5, "stacks", "the callback") == Cause(
        Reason.TIMEOUT, "the callback ran longer than 1.5 s", traceback="stacks"
    )
