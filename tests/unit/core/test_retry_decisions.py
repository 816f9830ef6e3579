"""What becomes of a message after an attempt: one table."""

import math

import pytest

from workerkit import Cause, Reason, RetryPolicy
from workerkit.retry import decide
from workerkit.settlement import (
    ACK,
    RELEASE,
    Acknowledge,
    DeadLetter,
    Outcome,
    Release,
    RetryLater,
    Settlement,
    Verb,
)

POLICY = RetryPolicy(max_attempts=4, delays=(5.0, 30.0))
FAILED = Cause(Reason.EXCEPTION, "no")
BROKEN = Cause(Reason.UNDECODABLE, "not JSON")
DEFAULT = Cause(Reason.REJECTED, "nack() was called")


@pytest.mark.parametrize(
    ("outcome", "attempt", "expected"),
    [
        (ACK, 1, Acknowledge()),
        (ACK, 99, Acknowledge()),
        (RELEASE, 1, Release()),
        (RELEASE, 99, Release()),
        (Outcome(Verb.NACK, cause=FAILED), 1, RetryLater(5.0, 2, explicit=False)),
        (Outcome(Verb.NACK, cause=FAILED), 2, RetryLater(30.0, 3, explicit=False)),
        (Outcome(Verb.NACK, cause=FAILED), 3, RetryLater(30.0, 4, explicit=False)),
        (Outcome(Verb.NACK, cause=FAILED), 4, DeadLetter(FAILED)),
        (Outcome(Verb.NACK, cause=FAILED), 99, DeadLetter(FAILED)),
        (Outcome(Verb.NACK), 4, DeadLetter(DEFAULT)),
        (Outcome(Verb.RETRY, cause=FAILED), 1, RetryLater(5.0, 2, explicit=False)),
        (Outcome(Verb.RETRY, delay=0.5, cause=FAILED), 1, RetryLater(0.5, 2, explicit=True)),
        (Outcome(Verb.RETRY, delay=0.0, cause=FAILED), 1, RetryLater(0.0, 2, explicit=True)),
        (Outcome(Verb.RETRY, delay=0.5, cause=FAILED), 4, DeadLetter(FAILED)),
        (Outcome(Verb.REJECT, cause=FAILED), 1, DeadLetter(FAILED)),
        (Outcome(Verb.NACK, cause=BROKEN), 1, DeadLetter(BROKEN)),
        (Outcome(Verb.RETRY, delay=1.0, cause=BROKEN), 1, DeadLetter(BROKEN)),
    ],
)
def test_the_decision(outcome: Outcome, attempt: int, expected: Settlement) -> None:
    """The attempts are counted by us; what can never succeed is not retried."""
    assert decide(outcome, attempt, POLICY) == expected


def test_the_last_delay_repeats() -> None:
    """More attempts than delays: the last one is used for the rest."""
    assert [RetryPolicy(9, (1, 2)).delay(attempt) for attempt in (1, 2, 3, 8)] == [1, 2, 2, 2]


@pytest.mark.parametrize("delays", [(), (-1.0,), (math.inf,), (math.nan,), (1.0, 50 * 86_400.0)])
def test_a_policy_that_cannot_work_is_refused_where_it_is_written(delays: tuple[float, ...]) -> None:
    """No delays, or one that RabbitMQ cannot wait: the class does not even import."""
    with pytest.raises(ValueError, match="delay"):
        RetryPolicy(delays=delays)


def test_a_message_is_run_at_least_once() -> None:
    """max_attempts counts the first run."""
    with pytest.raises(ValueError, match="max_attempts must be at least 1"):
        RetryPolicy(max_attempts=0)
    assert decide(Outcome(Verb.NACK, cause=FAILED), 1, RetryPolicy(max_attempts=1)) == DeadLetter(FAILED)
