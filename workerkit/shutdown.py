"""Staying able to act while dying: a reserve of memory and the messages that are being worked on."""

from __future__ import annotations

import mmap
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workerkit.message import MessageAdapter

MIB = 1024 * 1024


class ShutdownHelper:
    """Keeps memory back for ``WorkerTask.shutdown``, and knows which callbacks are running.

    The reserve is an anonymous private mapping: it takes address space, no resident memory, and counts against
    RLIMIT_DATA and RLIMIT_AS. A shared mapping, Python's default, does not count against RLIMIT_DATA, so releasing it
    would free nothing there. Measured with memory filled by small objects: without a reserve the ``except MemoryError``
    block itself dies; with 4 MiB released, logging, imports and socket work succeed.
    """

    __slots__ = ("_armed", "_reserve")

    def __init__(self) -> None:
        self._reserve: mmap.mmap | None = None
        self._armed: dict[MessageAdapter, None] = {}

    @property
    def messages(self) -> Collection[MessageAdapter]:
        """The messages whose callbacks are running, in the order in which they began; a live view."""
        return self._armed.keys()

    def reserve(self, multiplier: int) -> None:
        """Before the first message: keep ``multiplier`` × 1 MiB back, in place of an earlier reserve; 0 for nothing."""
        self.release()
        if multiplier > 0:
            self._reserve = mmap.mmap(-1, multiplier * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def arm(self, message: MessageAdapter) -> None:
        """A callback starts on ``message``: a death from here on may be its death."""
        self._armed[message] = None

    def disarm(self, message: MessageAdapter) -> None:
        """The callback on ``message`` is over."""
        self._armed.pop(message, None)

    def release(self) -> None:
        """Give the reserve back, in the moment it is needed. Harmless when there is none."""
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
