"""What happens to a message after an attempt: one pure function of the attempt number and the policy."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from workerkit.declared import DURATION, Count
from workerkit.settlement import (
    MAX_DELAY,
    Acknowledge,
    Cause,
    DeadLetter,
    Outcome,
    Reason,
    Release,
    RetryLater,
    Settlement,
    Verb,
    check_delay,
)

_Delay = Annotated[float, Meta(ge=0, le=MAX_DELAY, extra={"unit": DURATION})]


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how long apart a failing message is tried."""

    max_attempts: Count = 5
    """Runs of one message, the first included."""
    delays: Annotated[tuple[_Delay, ...], Meta(min_length=1)] = (5.0, 30.0, 300.0)
    """Delay after the first, second, … failed attempt; the last one repeats."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if not self.delays:
            raise ValueError("delays must hold at least one number of seconds")
        for delay in self.delays:
            check_delay(delay)

    def delay(self, attempt: int) -> float:
        """Seconds to wait after attempt number ``attempt`` (1-based) has failed."""
        return self.delays[min(attempt, len(self.delays)) - 1]


def decide(outcome: Outcome, attempt: int, policy: RetryPolicy) -> Settlement:
    """Turn what was decided about attempt number ``attempt`` into what the broker is told.

    The only place that knows when the attempts are used up.
    """
    if outcome.verb is Verb.ACK:
        return Acknowledge()
    if outcome.verb is Verb.RELEASE:
        return Release()
    cause = outcome.cause or Cause(Reason.REJECTED, "nack() was called")
    # A body that cannot be decoded will not be decodable later: retrying what can never succeed only hides it.
    if outcome.verb is Verb.REJECT or cause.reason is Reason.UNDECODABLE or attempt >= policy.max_attempts:
        return DeadLetter(cause)
    if outcome.delay is not None:
        return RetryLater(outcome.delay, attempt + 1, explicit=True)
    return RetryLater(policy.delay(attempt), attempt + 1, explicit=False)
