"""Staying able to act while dying: a reserve of memory and the message that is being worked on."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workerkit.message import MessageAdapter

MIB = 1024 * 1024


class ShutdownHelper:
    """Keeps memory back for ``WorkerTask.shutdown`` and knows whether a callback is running.

    1. ``reserve`` takes the memory before the first message.
    2. ``arm`` and ``disarm`` surround each callback.
    3. ``release`` gives the memory back in the moment it is needed.

    The reserve is an anonymous private mapping: it takes address space, no resident memory, and counts against
    RLIMIT_DATA and RLIMIT_AS. A shared mapping, Python's default, does not count against RLIMIT_DATA, so releasing it
    would free nothing there. Measured with memory filled by small objects: without a reserve the ``except MemoryError``
    block itself dies; with 4 MiB released, logging, imports and socket work succeed.
    """

    __slots__ = ("_reserve", "message")

    def __init__(self) -> None:
        self._reserve: mmap.mmap | None = None
        self.message: MessageAdapter | None = None
        """The message whose callback is running, None between callbacks."""

    @property
    def armed(self) -> bool:
        """Whether a callback is running."""
        return self.message is not None

    def reserve(self, multiplier: int) -> None:
        """Keep ``multiplier`` × 1 MiB back; 0 keeps nothing. Replaces an earlier reserve."""
        self.release()
        if multiplier > 0:
            self._reserve = mmap.mmap(-1, multiplier * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def arm(self, message: MessageAdapter) -> None:
        """A callback starts on ``message``: a death from here on is its death."""
        self.message = message

    def disarm(self) -> None:
        """The callback is over."""
        self.message = None

    def release(self) -> None:
        """Give the reserve back. Harmless when there is none."""
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
