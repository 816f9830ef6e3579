"""Looking at the messages of a queue, one after the other, and taking out only those that are asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Self

from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.errors import BrokerError, ConnectionLost
from workerkit.ports import Delivery

PREFETCH = 500
"""Messages one subscription may hold. Their bodies wait in memory."""
_PAUSE = 0.3
"""Seconds without a delivery after which we ask whether there are any."""
_PATIENCE = 20
"""Pauses in a row after which we believe that the rest is kept from us, say by another consumer that is exclusive."""


class Browser:
    """Fills ``Browsing``, as an async context.

    What ``ack`` was not called for goes back at the end of the context; where the process or the connection dies
    before, the broker takes it back. So nothing that is merely looked at can be lost.

    A subscription gets no more than its prefetch until something is acknowledged. When everything it may hold is held,
    another one is added beside it: any number of messages can be passed over.

    Args:
        connection: where a channel is opened.
        queue: must exist.
        count: how many messages to hand out at most. Those ready when the caller started: what comes back into the
            queue while it is browsed is not handed out without end.
    """

    def __init__(self, connection: Connection, queue: str, count: int) -> None:
        self._connection = connection
        self._queue = queue
        self._left = count
        self._prefetch = max(1, min(count, PREFETCH))
        self._tags: list[str] = []
        self._buffer: deque[Delivery] = deque()
        self._held: set[int] = set()
        self._ended: BrokerError | None = None
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._channel = await self._connection.channel()
        self._channel.on_cancel(lambda: self._end(ConnectionLost(f"queue {self._queue!r} was deleted meanwhile")))
        self._channel.closed.add_done_callback(lambda closed: self._end(closed.result()))
        await self._channel.qos(self._prefetch)
        return self

    async def __aexit__(self, *_error: object) -> None:
        with contextlib.suppress(BrokerError):  # the broker takes back all by itself then
            for tag in self._tags:
                await self._channel.cancel(tag)
            if self._held:
                # Closing would give back as well, but from RabbitMQ 4.3 that counts as a failed delivery and this not.
                self._channel.nack([(max(self._held), True)])
            await self._channel.close()

    async def next(self) -> Delivery | None:
        if self._left == 0:
            return None
        pauses = 0
        while not self._buffer:
            if self._ended is not None:
                raise self._ended
            if len(self._held) >= len(self._tags) * self._prefetch:
                await self._subscribe()
            if not await self._woken():
                pauses += 1
                state = await self._channel.check_queue(self._queue)
                if not self._buffer and (state.messages_ready == 0 or pauses == _PATIENCE):
                    return None
        self._left -= 1
        return self._buffer.popleft()

    def ack(self, delivery: Delivery) -> None:
        self._channel.ack([(delivery.tag, False)])
        self._held.discard(delivery.tag)

    async def _subscribe(self) -> None:
        tag = f"{self._connection.name} {len(self._tags):06}"
        self._tags.append(tag)
        await self._channel.consume(self._queue, tag, self._on_deliveries)

    async def _woken(self) -> bool:
        self._wake.clear()
        if self._buffer or self._ended is not None:
            return True
        try:
            await asyncio.wait_for(self._wake.wait(), _PAUSE)
        except TimeoutError:
            return False
        return True

    def _on_deliveries(self, batch: list[Delivery]) -> None:
        self._held.update(delivery.tag for delivery in batch)
        self._buffer.extend(batch)
        self._wake.set()

    def _end(self, reason: BrokerError) -> None:
        self._ended = self._ended or reason
        self._wake.set()
