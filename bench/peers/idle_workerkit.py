"""workerkit's task, copied into a project. It imports workerkit, and what Python has loaded at its start anyway."""

import os
import time

from workerkit import MessageAdapter, WorkerTask

_ledger = os.open(os.environ["BENCH_LEDGER"], os.O_WRONLY | os.O_APPEND)
_pause = float(os.environ["BENCH_PAUSE"])


class Noting(WorkerTask):
    """As ``idle_ledger``."""

    def callback(self, message: MessageAdapter) -> None:
        os.write(_ledger, b"%d %d\n" % (time.monotonic_ns(), os.getpid()))
        time.sleep(_pause)
        message.ack()


class Silent(WorkerTask):
    """Does nothing."""

    def callback(self, message: MessageAdapter) -> None:
        message.ack()


class Computing(WorkerTask):
    """Computes for 5 ms: of processor time, so that waiting for a processor does not count as work."""

    def callback(self, message: MessageAdapter) -> None:
        os.write(_ledger, b"%d %d\n" % (time.monotonic_ns(), os.getpid()))
        until = time.process_time_ns() + 5_000_000
        while time.process_time_ns() < until:
            pass
        message.ack()
