"""Publishing with confirms: every publish ends confirmed, returned, nacked or timed out, never in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from workerkit.brokers.rabbitmq.amqp import Channel, Connection
from workerkit.errors import BrokerError, PublishFailed

PUBLISH_TIMEOUT = 10.0
"""Seconds the broker gets to take responsibility for one message."""


@dataclass(slots=True)
class _Pending:
    exchange: str
    routing_key: str
    body: bytes
    done: asyncio.Future[None]
    returned: str = ""


class Publisher:
    """Publishes over a connection of its own, many messages in flight.

    The connection is opened by the first publish and again after it was lost. It is never the one that consumes: a
    broker under a memory alarm stops reading from connections that publish, and acknowledgements must get through.

    Args:
        connect: opens the connection.
        wait_while_blocked: wait for as long as the broker blocks publishers, instead of giving up.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *, wait_while_blocked: bool = False) -> None:
        self._connect = connect
        self._wait_while_blocked = wait_while_blocked
        self._opening = asyncio.Lock()
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._next_tag = 1
        self._pending: dict[int, _Pending] = {}

    async def publish(self, exchange: str, routing_key: str, properties: bytes, body: bytes) -> None:
        """Publish one message and wait until the broker has it.

        Args:
            exchange: name; empty for the default exchange, which routes by queue name.
            routing_key: at most 255 bytes.
            properties: encoded AMQP properties.
            body: the payload.

        Raises:
            PublishFailed: no queue matched, the broker refused, or no confirm came in time.
            BrokerError: there is no connection.
        """
        channel = await self.channel()
        pending = _Pending(exchange, routing_key, body, asyncio.get_running_loop().create_future())
        tag = self._next_tag
        self._next_tag += 1
        self._pending[tag] = pending
        try:
            channel.publish(exchange, routing_key, properties, body)
            await self._confirmed(pending)
        finally:
            if self._channel is channel:
                self._pending.pop(tag, None)

    async def _confirmed(self, pending: _Pending) -> None:
        while not (await asyncio.wait({pending.done}, timeout=PUBLISH_TIMEOUT))[0]:
            connection = self._connection
            blocked = connection is not None and connection.blocked_by
            if blocked and self._wait_while_blocked:
                continue
            if connection is not None:
                # What is not sent yet must not be published beside what the caller sends next. What the broker's
                # machine has taken in already may be: a publish without a confirm is neither done nor undone.
                connection.abort()
            why = f", as the broker blocks publishers ({blocked})" if blocked else ""
            raise PublishFailed(f"no confirm within {PUBLISH_TIMEOUT:g} s{why}; the message may still arrive")
        pending.done.result()

    async def channel(self) -> Channel:
        """The channel it publishes on, opened if need be; also for declarations that belong to a publish."""
        async with self._opening:
            if self._channel is not None and self._channel.is_open:
                return self._channel
            if self._connection is None or not self._connection.is_open:
                self._connection = await self._connect()
            channel = await self._connection.channel()
            self._fail_pending(PublishFailed("the connection was lost before the confirm"))
            self._next_tag = 1
            self._channel = channel
            channel.closed.add_done_callback(lambda closed: self._on_closed(channel, closed.result()))
            channel.on_return(self._on_return)
            await channel.confirm_select(self._on_confirm)
            return channel

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            await self._connection.close()

    def _on_confirm(self, tag: int, multiple: bool, positive: bool) -> None:
        tags = [known for known in self._pending if known <= tag] if multiple else [tag]
        for known in tags:
            pending = self._pending.pop(known, None)
            if pending is None or pending.done.done():
                continue
            if pending.returned:
                target = f"exchange {pending.exchange!r}, routing key {pending.routing_key!r}"
                pending.done.set_exception(PublishFailed(f"no queue took the message ({target}): {pending.returned}"))
            elif positive:
                pending.done.set_result(None)
            else:
                pending.done.set_exception(PublishFailed("the broker refused the message (nack); is the queue full?"))

    def _on_return(self, exchange: str, routing_key: str, body: bytes, reason: str) -> None:
        """A return names no tag. It comes before the confirm, in order, so it is the oldest such message."""
        for pending in self._pending.values():
            key = (pending.exchange, pending.routing_key, pending.body)
            if not pending.returned and key == (exchange, routing_key, body):
                pending.returned = reason
                return

    def _on_closed(self, channel: Channel, reason: BrokerError) -> None:
        if self._channel is channel:
            self._fail_pending(PublishFailed(f"the connection was lost before the confirm: {reason}"))

    def _fail_pending(self, error: PublishFailed) -> None:
        for pending in self._pending.values():
            if not pending.done.done():
                pending.done.set_exception(error)
        self._pending.clear()
