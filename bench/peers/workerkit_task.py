"""workerkit: the task of the project that the harness makes."""

from __future__ import annotations

from common import count

from workerkit import MessageAdapter, WorkerTask


class Noop(WorkerTask):
    def callback(self, message: MessageAdapter) -> None:
        message.ack()
        count()
