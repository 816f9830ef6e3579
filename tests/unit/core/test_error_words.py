"""The errors: one tree, and the exit code that each ends a command with."""

import inspect
import re

import pytest

from workerkit import errors
from workerkit.errors import Difference, ExitCode, RejectMessage, RetryMessage, TopologyMismatch, WorkerkitError

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == errors.__name__
]


def test_every_error_is_a_workerkit_error_but_the_two_that_users_raise_to_decide() -> None:
    """`except WorkerkitError` catches what we raise, and does not swallow a callback's decision."""
    others = {kind for kind in CLASSES if not issubclass(kind, WorkerkitError)}
    assert others == {RetryMessage, RejectMessage}


def test_the_tree_in_the_documentation_is_the_tree_in_the_code() -> None:
    """Each name, its parent by indentation, and its exit code."""
    path: list[str] = []
    documented = 0
    for line in (inspect.getdoc(errors) or "").splitlines():
        found = re.match(r"([ │├└─]*)(\w+)(?:\s.*?(?:exit (\d+))?)?$", line)
        if found is None or found[2] not in {kind.__name__ for kind in CLASSES}:
            continue
        documented += 1
        depth, kind = len(found[1]) // 4 - 1, getattr(errors, found[2])
        path[depth:] = [found[2]]
        assert [parent.__name__ for parent in kind.__mro__[:-3]] == path[::-1]
        if found[3] is not None:
            assert kind.exit_code == int(found[3]), found[2]
    assert documented == len(CLASSES) - 2


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, WorkerkitError)])
def test_no_error_ends_a_command_with_success(kind: type[WorkerkitError]) -> None:
    """Exit code 0 means asked to stop or planned."""
    assert kind.exit_code is not ExitCode.OK


def test_a_mismatch_names_each_difference_and_what_to_do() -> None:
    """An operator at night reads one message, not two."""
    error = TopologyMismatch(
        [
            Difference("queue 'jobs'", "x-queue-type", "quorum", "classic"),
            Difference("queue 'jobs'", "x-max-length", "none", "10"),
        ]
    )
    assert str(error).splitlines()[1:3] == [
        "  queue 'jobs': x-queue-type should be quorum but is classic",
        "  queue 'jobs': x-max-length should be none but is 10",
    ]
    assert "Change the configuration to match" in str(error)
    assert len(error.differences) == 2


def test_a_decision_says_what_it_decides() -> None:
    """It is read in logs when it leaves a place that does not know it."""
    assert str(RetryMessage()) == "retry"
    assert str(RetryMessage(90)) == "retry in 90 s"
