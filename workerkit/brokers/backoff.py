"""How long to wait before the next try."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Backoff:
    """A growing, jittered delay as a value: ``delay()`` for now, ``next()`` for after that, start anew on success.

    Attributes:
        seconds: the delay before jitter.
        cap: the longest delay.
    """

    seconds: float = 0.1
    cap: float = 1.0

    def delay(self) -> float:
        """Seconds to wait: between half and all of it, so that a fleet does not come back in one instant."""
        return self.seconds * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret

    def next(self) -> Backoff:
        """After one more failure."""
        return replace(self, seconds=min(self.seconds * 2, self.cap))
