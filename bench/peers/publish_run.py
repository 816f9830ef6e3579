"""What the publishers have in common: their arguments, their messages, how long they publish, what they report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator


class Run:
    """One run. Arguments of the script: URL QUEUE SECONDS BODY_SIZE."""

    def __init__(self) -> None:
        self.url, self.queue, seconds, size = sys.argv[1:]
        self.body = b'"' + b"x" * (int(size) - 2) + b'"'
        self._seconds = float(seconds)
        self._started = 0.0
        self._cpu = 0.0

    def numbers(self) -> Iterator[int]:
        """Count until the time is over. The first number starts the clock, so connect before."""
        self._cpu = time.process_time()
        self._started = time.monotonic()
        end = self._started + self._seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            yield number

    def report(self, confirmed: int) -> None:
        """Say how many messages the broker has confirmed. Call it as soon as nothing is in flight."""
        seconds = time.monotonic() - self._started
        cpu = time.process_time() - self._cpu
        print(json.dumps({"confirmed": confirmed, "seconds": seconds, "cpu": cpu}))
