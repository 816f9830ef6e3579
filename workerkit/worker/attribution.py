"""Who is to blame for the death of an executor: one pure function of what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workerkit.worker.page import Phase, Running


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the deliveries that ran have to do with it, by number. All that had not begun is innocent.

    Attributes:
        blamed: the one that it died of.
        suspects: nobody knows which of these it died of; each is to run alone.
        in_shutdown: their ``shutdown`` ran, so that will not run again.
        idle: nothing ran, and it was nobody's doing.
    """

    blamed: int | None = None
    suspects: tuple[int, ...] = ()
    in_shutdown: tuple[int, ...] = ()
    idle: bool = False


def attribute(
    running: Sequence[Running], *, ended_for: int | None = None, named: int | None = None, handing_back: bool = False
) -> Verdict:
    """Say who is to blame.

    Args:
        running: what the page says that the executor ran.
        ended_for: the delivery for whose sake the consumer has ended it.
        named: the delivery that the dying executor named itself.
        handing_back: the consumer has ended it at the deadline of a stop, for nobody's sake.
    """
    in_callback = tuple(one.seq for one in running if one.phase is Phase.CALLBACK)
    in_shutdown = tuple(one.seq for one in running if one.phase is Phase.SHUTDOWN)
    if handing_back:
        return Verdict(in_shutdown=in_shutdown)
    if ended_for is not None:
        # Should it have ended in the instant in which its time was up, the others are still not to blame.
        return Verdict(ended_for if ended_for in in_callback else None, in_shutdown=in_shutdown)
    if named is not None:
        # It has said so before its shutdown() began.
        return Verdict(named if named in in_callback else None, in_shutdown=in_shutdown)
    if len(in_callback) == 1:
        return Verdict(in_callback[0], in_shutdown=in_shutdown)
    return Verdict(suspects=in_callback, in_shutdown=in_shutdown, idle=not running)
