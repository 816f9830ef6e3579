"""The words for how one delivery ends.

Two vocabularies with a pure function between them (``retry.decide``): an ``Outcome`` is what the task said or what
befell it, a ``Settlement`` is what the broker is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workerkit.outgoing import Outgoing

MAX_DELAY = 49 * 86_400.0
"""Seconds. RabbitMQ refuses a TTL that does not fit 32 bits of milliseconds, which is 49.7 days."""


def check_delay(delay: float, what: str = "a delay") -> float:
    """Seconds for which a message can be made to wait, as a plain float. Raises ValueError, whose text names ``what``.

    Plain, because it travels: a Decimal or a numpy number would be refused on the way.
    """
    try:
        seconds = float(delay)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if isinstance(delay, bool | str) or not 0 <= seconds <= MAX_DELAY:
        raise ValueError(f"{what} is a number of seconds from 0 to {MAX_DELAY:.0f} (49 days), not {delay!r}")
    return seconds


class Verb(IntEnum):
    """What was decided about one delivery. The numbers travel over the link."""

    ACK = 1  # done
    NACK = 2  # this attempt failed: retry policy, then dead letter
    RETRY = 3  # as NACK, with a delay of its own
    REJECT = 4  # straight to the dead letters
    RELEASE = 5  # put it back; not an attempt


class Reason(StrEnum):
    """Why an attempt failed; the value of the header ``workerkit-reason`` on a dead letter."""

    EXCEPTION = "exception"
    REJECTED = "rejected"
    UNDECODABLE = "undecodable"
    UNSETTLED = "unsettled"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    EXIT = "exit"
    SIGNAL = "signal"
    OOM = "oom"
    NACKED = "nacked"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an attempt failed, in the terms of whoever has to find out.

    Attributes:
        reason: the class of cause.
        message: one line for people, for example ``killed by signal 9 (SIGKILL)``.
        exception: dotted name of the exception's type; empty when there was none.
        traceback: the traceback, of Python or of faulthandler; empty when there is none.
        exit_code: of the executor that exited, else None.
        signal: number of the signal that ended the executor, else None.
    """

    reason: Reason
    message: str
    exception: str = ""
    traceback: str = ""
    exit_code: int | None = None
    signal: int | None = None

    def __post_init__(self) -> None:
        # Texts of a user's exception may be of a subclass of str, or hold surrogates, which no encoding carries. The
        # cause must reach the dead letter: an error on its way would leave the message unsettled.
        for name in ("message", "exception", "traceback"):
            text = getattr(self, name)
            if type(text) is not str or not text.isascii():
                object.__setattr__(self, name, text.encode("utf-8", "backslashreplace").decode())


@dataclass(frozen=True, slots=True)
class Outcome:
    """One verb with its particulars."""

    verb: Verb
    delay: float | None = None  # seconds until the next attempt, for RETRY; None takes it from the policy
    cause: Cause | None = None  # for everything but ACK and RELEASE
    publish: tuple[Outgoing, ...] = ()  # with an ACK


ACK = Outcome(Verb.ACK)
RELEASE = Outcome(Verb.RELEASE)


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell the broker that the message is done, once it has confirmed what is published with that."""

    publish: tuple[Outgoing, ...] = ()


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Bring the message back in ``delay`` seconds, as the attempt of that number."""

    delay: float
    attempt: int
    explicit: bool  # the delay was asked for by the task, not taken from the policy
    cause: Cause  # of the failure before
    alone: bool = False  # it must not share a process with another one: it has killed one when it ran alone


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Keep the message in the dead-letter queue with its cause."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Release:
    """Give the message back; not an attempt."""

    delay: float = 0.0  # seconds until it may be delivered again; 0 puts it back where it was
    releases: int = 0  # how often the task has released it, this time included; 0 when nobody has started it


Settlement = Acknowledge | RetryLater | DeadLetter | Release

ACKNOWLEDGE = Acknowledge()
HAND_BACK = Release()
