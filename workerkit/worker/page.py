"""The shared page: memory that the consumer and one executor have mapped, and that outlives the executor.

It says at any moment, whatever state the executor is in, which deliveries it runs and since when, and which it has
acknowledged since the consumer looked last. The kernel keeps it when the executor dies, so the consumer reads it
afterwards as a flight recorder.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple

from workerkit.ports import Delivery


class Phase(IntEnum):
    """What an executor is doing with a delivery."""

    CALLBACK = 1
    SHUTDOWN = 2
    """``shutdown`` runs, in the dying executor or in its replacement."""


class Running(NamedTuple):
    """One delivery that an executor runs; since when in monotonic nanoseconds."""

    seq: int
    phase: Phase
    since_ns: int


_AWAKE, _BEAT, _STEP = range(3)
_FIRST = 512  # words: the slots begin with the second 4 KiB
_STATE, _SINCE, _DONE, _DURATION, _VOID = range(5)
_STRIDE = 8  # words: a slot is one cache line
SLOTS = 4096
"""Deliveries that one executor can have at a time."""


class Page:
    """64-bit words, each stored as one aligned 8-byte copy, so a reader never sees half of one, even when the writer is
    killed.

    Each delivery that is sent to an executor has a slot, which no other one gets before the consumer has let go of it.
    Acknowledging there costs no system call, unlike a frame, whose sending was measured to take half as long as all the
    rest of a short message; and there is no index that threads, or an exception out of a signal handler, could get
    wrong.
    """

    SIZE = 8 * (_FIRST + _STRIDE * SLOTS)

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.SIZE)
        self._words = memoryview(self._map).cast("Q")
        self._barrier = threading.Lock()

    @classmethod
    def create(cls) -> tuple[Page, int]:
        """A new page, and the file descriptor to hand to the other side."""
        fd = os.memfd_create("workerkit-page", os.MFD_CLOEXEC)
        os.ftruncate(fd, cls.SIZE)
        return cls(fd), fd

    # ---- written by the executor

    def begin(self, slot: int, seq: int, phase: int, now_ns: int) -> None:
        """It starts on ``seq``, or on its next phase. The state is written last: it is what makes the rest true."""
        words, base = self._words, _FIRST + slot * _STRIDE
        words[base + _SINCE] = now_ns
        words[base] = seq << 2 | phase

    def end(self, slot: int, seq: int) -> None:
        """It does nothing with ``seq`` any more, or has skipped it as void."""
        self._words[_FIRST + slot * _STRIDE] = seq << 2

    def acknowledge(self, slot: int, seq: int, duration_ns: int) -> None:
        """The task has acknowledged ``seq``."""
        words, base = self._words, _FIRST + slot * _STRIDE
        words[base + _DURATION] = duration_ns
        words[base + _DONE] = seq

    def must_wake(self) -> bool:
        """Whether the consumer has to be told that there is something new; it has not been told yet.

        Each side stores first and then reads what the other one stores, with a lock's memory barrier in between, so one
        of the two sees the other: either the consumer finds the acknowledgement or the executor finds it asleep.
        """
        with self._barrier:
            pass
        if self._words[_AWAKE]:
            return False
        self._words[_AWAKE] = 1
        return True

    def beat(self, now_ns: int) -> None:
        """The event loop of the executor has come round; 0 when it has none or ends."""
        self._words[_BEAT] = now_ns

    def step(self, seq: int) -> None:
        """The coroutine of ``seq`` has the event loop to itself; 0 when it gives it back."""
        self._words[_STEP] = seq

    def is_void(self, slot: int, seq: int) -> bool:
        """Whether ``seq`` must not be started any more."""
        return self._words[_FIRST + slot * _STRIDE + _VOID] >> 1 == seq

    def is_lost(self, slot: int, seq: int) -> bool:
        """Whether ``seq`` is the broker's again."""
        return self._words[_FIRST + slot * _STRIDE + _VOID] == seq << 1 | 1

    # ---- written by the consumer

    def void(self, slot: int, seq: int, *, lost: bool = False) -> None:
        """Have ``seq`` not started, should it not have been yet; or say that it is ``lost``, the broker's again."""
        self._words[_FIRST + slot * _STRIDE + _VOID] = seq << 1 | lost

    @property
    def last_beat(self) -> tuple[int, int]:
        """When the executor's event loop came round last, and which delivery has had it since; zeros for no loop."""
        return self._words[_BEAT], self._words[_STEP]

    def running(self, deliveries: Iterable[Delivery]) -> list[Running]:
        """What the executor runs of these, in their order."""
        words = self._words
        found = []
        for delivery in deliveries:
            base = _FIRST + delivery.slot * _STRIDE
            state = words[base]
            if state >> 2 == delivery.seq and state & 3:
                found.append(Running(delivery.seq, Phase(state & 3), words[base + _SINCE]))
        return found

    def has_begun(self, delivery: Delivery) -> bool:
        """Whether the executor has begun this one, and perhaps ended it."""
        return self._words[_FIRST + delivery.slot * _STRIDE] >> 2 == delivery.seq

    def is_over(self, delivery: Delivery) -> bool:
        """Whether the executor is done with this one, be it run or skipped: its slot will not be written any more."""
        return self._words[_FIRST + delivery.slot * _STRIDE] == delivery.seq << 2

    def acknowledged(self, inflight: Mapping[int, Delivery]) -> list[Delivery]:
        """What was acknowledged of these, which come in the order in which they are begun, with its duration set."""
        words = self._words
        words[_AWAKE] = 0
        with self._barrier:
            pass
        found = []
        for seq, delivery in inflight.items():
            base = _FIRST + delivery.slot * _STRIDE
            if words[base + _DONE] == seq:
                delivery.duration_ns = words[base + _DURATION]
                found.append(delivery)
            elif words[base] >> 2 != seq:
                break  # not begun, and so are all behind it
        return found

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._map.close()
