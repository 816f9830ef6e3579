"""What happens to a message after an attempt: one pure function of the attempt number and the policy."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from workerkit import headers
from workerkit.declared import DURATION, Count
from workerkit.message import Incoming
from workerkit.properties import header_number
from workerkit.settlement import (
    ACKNOWLEDGE,
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

LONGEST_RELEASE = 64.0
"""Seconds that a message waits, at most, which is released again and again."""

_Delay = Annotated[float, Meta(ge=0, le=MAX_DELAY, extra_json_schema={"unit": DURATION})]


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


def decide(outcome: Outcome, message: Incoming, policy: RetryPolicy, *, alone: bool = False) -> Settlement:
    """Turn what was decided about one attempt into what the broker is told.

    The only place that knows when the attempts are used up.

    Args:
        outcome: what the task said, or what befell it.
        message: the delivery that it was said of.
        policy: how often and how long apart failing messages are tried.
        alone: it died while it ran alone in its process, and must do so from now on.
    """
    if outcome.verb is Verb.ACK:
        return Acknowledge(outcome.publish) if outcome.publish else ACKNOWLEDGE
    if outcome.verb is Verb.RELEASE:
        return _release(message)
    cause = outcome.cause or Cause(Reason.NACKED, "nack() was called")
    # A body that cannot be decoded will not be decodable later: retrying what can never succeed only hides it.
    if outcome.verb is Verb.REJECT or cause.reason is Reason.UNDECODABLE or message.attempt >= policy.max_attempts:
        return DeadLetter(cause)
    explicit = outcome.delay is not None
    delay = policy.delay(message.attempt) if outcome.delay is None else outcome.delay
    return RetryLater(delay, message.attempt + 1, explicit, cause, alone)


def _release(message: Incoming) -> Release:
    """The first time at once. What may have been released before waits longer each time: nobody can use it now, and
    a worker that does nothing but put it back would keep itself and the broker busy.

    ``redelivered`` is only a hint, but when it is false nobody has had this message before.
    """
    before = header_number(message.raw_properties, headers.RELEASES)
    if before == 0 and not message.redelivered:
        return Release(releases=1)
    doubled = min(before, 10)  # the number comes from a header, and a float ends at 1,024
    return Release(min(2.0**doubled, LONGEST_RELEASE), before + 1)
