"""What becomes of a message after an attempt: one table."""

import math

import pytest

from workerkit import Cause, Properties, Reason, RetryPolicy, headers
from workerkit.message import Incoming
from workerkit.properties import encode
from workerkit.retry import LONGEST_RELEASE, decide
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
DEFAULT = Cause(Reason.NACKED, "nack() was called")


def message(attempt: int, releases: int = 0, *, redelivered: bool = False) -> Incoming:
    raw = encode(Properties(headers={headers.RELEASES: releases} if releases else {}))
    return Incoming("jobs", "", "jobs", redelivered, attempt, raw, b"{}")


@pytest.mark.parametrize(
    ("outcome", "attempt", "expected"),
    [
        (ACK, 1, Acknowledge()),
        (ACK, 99, Acknowledge()),
        (RELEASE, 1, Release(releases=1)),
        (RELEASE, 99, Release(releases=1)),
        (Outcome(Verb.NACK, cause=FAILED), 1, RetryLater(5.0, 2, explicit=False, cause=FAILED)),
        (Outcome(Verb.NACK, cause=FAILED), 2, RetryLater(30.0, 3, explicit=False, cause=FAILED)),
        (Outcome(Verb.NACK, cause=FAILED), 3, RetryLater(30.0, 4, explicit=False, cause=FAILED)),
        (Outcome(Verb.NACK, cause=FAILED), 4, DeadLetter(FAILED)),
        (Outcome(Verb.NACK, cause=FAILED), 99, DeadLetter(FAILED)),
        (Outcome(Verb.NACK), 4, DeadLetter(DEFAULT)),
        (Outcome(Verb.RETRY, cause=FAILED), 1, RetryLater(5.0, 2, explicit=False, cause=FAILED)),
        (Outcome(Verb.RETRY, delay=0.5, cause=FAILED), 1, RetryLater(0.5, 2, explicit=True, cause=FAILED)),
        (Outcome(Verb.RETRY, delay=0.0, cause=FAILED), 1, RetryLater(0.0, 2, explicit=True, cause=FAILED)),
        (Outcome(Verb.RETRY, delay=0.5, cause=FAILED), 4, DeadLetter(FAILED)),
        (Outcome(Verb.REJECT, cause=FAILED), 1, DeadLetter(FAILED)),
        (Outcome(Verb.NACK, cause=BROKEN), 1, DeadLetter(BROKEN)),
        (Outcome(Verb.RETRY, delay=1.0, cause=BROKEN), 1, DeadLetter(BROKEN)),
    ],
)
def test_the_decision(outcome: Outcome, attempt: int, expected: Settlement) -> None:
    """The attempts are counted by us; what can never succeed is not retried."""
    assert decide(outcome, message(attempt), POLICY) == expected


def test_a_message_that_is_released_again_and_again_waits_longer_each_time() -> None:
    """Once it goes back where it was; what may have been released before waits, up to a bound."""
    later = [decide(RELEASE, message(1, releases), POLICY) for releases in (1, 2, 3, 20, 9999)]
    assert later == [
        Release(2.0, 2),
        Release(4.0, 3),
        Release(8.0, 4),
        Release(LONGEST_RELEASE, 21),
        Release(LONGEST_RELEASE, 10_000),
    ]
    assert decide(RELEASE, message(1, redelivered=True), POLICY) == Release(1.0, 1)


def test_the_next_attempt_of_what_killed_a_process_alone_is_alone() -> None:
    """Of a retry only: a dead letter has none."""
    nacked = Outcome(Verb.NACK, cause=FAILED)
    assert decide(nacked, message(1), POLICY, alone=True) == RetryLater(5.0, 2, False, FAILED, alone=True)
    assert decide(nacked, message(4), POLICY, alone=True) == DeadLetter(FAILED)


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
    assert decide(Outcome(Verb.NACK, cause=FAILED), message(1), RetryPolicy(max_attempts=1)) == DeadLetter(FAILED)
