"""Running callbacks one after the other, on the main thread."""

from __future__ import annotations

import os
from collections.abc import Sequence

from workerkit.errors import ExitCode
from workerkit.message import MessageAdapter
from workerkit.payload import body_decoder
from workerkit.settlement import Cause, Outcome
from workerkit.task import WorkerTask
from workerkit.worker import logs
from workerkit.worker.execution import Complete, end_by, execute
from workerkit.worker.link import Frame, Kind, unpack_aftermath, unpack_delivery
from workerkit.worker.uplink import LinkHandle, Uplink

_DELIVER = int(Kind.DELIVER)  # a plain number: an enum costs a tenth of a microsecond per message


class BlockingRunner:
    """Runs a callback that is a plain function: takes the frames in their order, one message at a time.

    ``queues`` are the worker's, in the order in which deliveries name them; ``complete`` is for a ``shutdown`` that is
    a coroutine function.
    """

    def __init__(self, task: WorkerTask, queues: Sequence[str], uplink: Uplink, complete: Complete) -> None:
        self._task = task
        self._queues = queues
        self._uplink = uplink
        self._complete = complete
        self._decode = body_decoder(task.payload_type)
        self.message: MessageAdapter | None = None
        """What is running now."""

    def run(self, frames: list[Frame]) -> Cause | None:
        """Work on these frames, and on what comes after them, until STOP. Returns what this process must die of."""
        while True:
            for kind, data, start, end in frames:
                if kind == _DELIVER:
                    death = self.deliver(data, start, end)
                    if death is not None:
                        return death
                elif kind == Kind.AFTERMATH:
                    self._aftermath(data[start:end])
                elif kind == Kind.STOP:
                    return None
            frames = self._uplink.receive()

    def deliver(self, data: bytes, start: int, end: int) -> Cause | None:
        """Run one delivery, given as a part of these bytes. Returns what this process must die of."""
        seq, slot, incoming = unpack_delivery(data, start, end, self._queues)
        uplink = self._uplink
        handle = LinkHandle(uplink, slot, seq)
        if not handle.begin():
            return None
        self.message = message = MessageAdapter(incoming, handle, self._decode)
        death = execute(self._task, message, handle.die, self._complete)
        if uplink.forked:
            os._exit(ExitCode.OK)  # a child of the callback came back from it: the next message is not its business
        self.message = None
        uplink.page.end(slot, seq)
        logs.clear_context()
        return death

    def _aftermath(self, payload: bytes) -> None:
        """Run ``shutdown`` for a message that ran when the executor before this one died."""
        seq, slot, incoming, aftermath = unpack_aftermath(payload, self._queues)
        handle = LinkHandle(self._uplink, slot, seq)
        handle.begin_shutdown()
        outcome = None if aftermath.settled is None else Outcome(aftermath.settled)
        self.message = MessageAdapter(incoming, handle, self._decode, outcome)
        end_by(self._task, self.message, aftermath.cause, self._complete)
        self.message = None
        self._uplink.page.end(slot, seq)
