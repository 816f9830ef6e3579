"""workerkit: the tasks of the project that the harness makes."""

from __future__ import annotations

import asyncio

from common import PAUSE, count

from workerkit import MessageAdapter, WorkerTask


class Noop(WorkerTask):
    def callback(self, message: MessageAdapter) -> None:
        message.ack()
        count()


class Sleeping(WorkerTask):
    async def callback(self, message: MessageAdapter) -> None:
        await asyncio.sleep(PAUSE)
        message.ack()
        count()
