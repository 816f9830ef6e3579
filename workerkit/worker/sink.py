"""Writing log lines to a descriptor that may be full, slow or closed, without ever blocking or dying of it."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

MAX_QUEUED_BYTES = 8 * 1024 * 1024
"""Lines that a slow reader has not taken yet; what comes on top is dropped and counted."""


class LineSink:
    """Takes lines from any thread and writes them from one of its own.

    The descriptor is never set non-blocking: that flag belongs to the open file, which the shell, Supervisor or other
    processes share. A thread that blocks in ``write`` harms nobody.

    Args:
        fd: where to write.
        dropped_line: makes the line that is written when writing works again, from the number of lines dropped and
            the reason.
    """

    def __init__(self, fd: int, dropped_line: Callable[[int, str], bytes]) -> None:
        self._fd = fd
        self._dropped_line = dropped_line
        self._lines: list[bytes] = []
        self._queued = 0
        self._dropped = 0
        self._why = ""
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, *lines: bytes) -> None:
        """Queue lines, newlines included. Returns at once, always."""
        with self._wake:
            for line in lines:
                if self._queued + len(line) > MAX_QUEUED_BYTES:
                    self._drop(1, "the reader of the log is too slow")
                else:
                    self._lines.append(line)
                    self._queued += len(line)
            self._wake.notify()

    def close(self, timeout: float = 1.0) -> None:
        """Write what is queued, for at most ``timeout`` seconds; a blocked writer is left behind."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)

    def _drop(self, count: int, why: str) -> None:
        self._dropped += count
        self._why = why

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._lines or self._closing)
                if not self._lines:
                    return
                count, dropped = len(self._lines), self._dropped
                announcement = self._dropped_line(dropped, self._why) if dropped else b""
                chunk = announcement + b"".join(self._lines)
                self._lines.clear()
                self._queued = self._dropped = 0
            why = self._write_all(chunk)
            if why:
                with self._wake:
                    self._drop(count + dropped, why)

    def _write_all(self, chunk: bytes) -> str:
        """Write the chunk; return why it could not be written, or nothing."""
        view = memoryview(chunk)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody else made the shared file non-blocking
                select.select([], [self._fd], [], 1.0)
            except OSError as error:  # EPIPE, ENOSPC, EIO, EBADF
                time.sleep(0.1)  # in this thread only: a full disk must not become a busy loop
                return f"writing failed: {error.strerror}"
        return ""


def ensure_standard_descriptors() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed.

    Otherwise the next socket gets the number 1, and log lines are written into the broker's connection.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
