"""``prefetch_count: auto``: how many messages to take ahead, from how long callbacks take. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from workerkit.ports import Delivery

AHEAD = 0.1
"""Seconds of work that are taken ahead."""
MOST = 500
"""Messages. Beyond this nothing gets faster on a broker beside the worker; see docs/performance.md."""
MOST_BYTES = 16 * 1024 * 1024
"""Bytes of bodies."""
_GROWTH = 8
_SAMPLES = 16


class AutoWindow:
    """The window of each source of a worker.

    It holds back time, not messages: prefetch 1 is fair and slow, prefetch 500 is fast and hoards. It starts at one
    message per callback that can run at once, grows while callbacks are short, and shrinks at once when they get long.

    Args:
        slots: callbacks that can run at once.
    """

    def __init__(self, slots: int) -> None:
        self.window = slots
        self._slots = slots
        self._seconds = 0.0  # that a callback takes
        self._bytes = 0.0  # that a body has
        self._known = False

    def note(self, finished: Sequence[Delivery]) -> bool:
        """Learn from callbacks that have ended. True: the window is another one now."""
        sample = finished if len(finished) <= _SAMPLES else finished[-_SAMPLES:]
        seconds = sum([delivery.duration_ns for delivery in sample]) / (len(sample) * 1e9)
        size = sum([len(delivery.body) for delivery in sample]) / len(sample)
        return self._learn(seconds, size)

    def note_running(self, seconds: float) -> bool:
        """Learn from a callback that has been running for so long. True: the window is another one now."""
        return seconds > self._seconds and self._learn(seconds, self._bytes)

    @property
    def ahead(self) -> int:
        """Messages that run in about ``AHEAD`` seconds, one after the other; at least one."""
        return max(1, min(MOST, int(AHEAD / max(self._seconds, 1e-9)))) if self._known else 1

    def _learn(self, seconds: float, size: float) -> bool:
        # Up at once, down by and by: taking too much is unfair to others, taking too little only slow.
        self._seconds = max(seconds, self._seconds + (seconds - self._seconds) / 4) if self._known else seconds
        self._bytes = max(size, self._bytes + (size - self._bytes) / 4)
        self._known = True
        slots = self._slots
        wanted = AHEAD * slots / max(self._seconds, 1e-9)
        wanted = min(wanted, MOST, MOST_BYTES / max(self._bytes, 1.0), self.window * _GROWTH)
        target = max(slots, int(wanted))
        # Changing it costs the broker more than a message does.
        if target >= 2 * self.window or 2 * target <= self.window or (target == slots) != (self.window == slots):
            self.window = target
            return True
        return False
