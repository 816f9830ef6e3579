"""Publishing with confirms: every publish ends confirmed, unroutable, refused or timed out, never in silence."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import pika

from workerkit.brokers.ended import Ended, resolve
from workerkit.brokers.rabbitmq.amqp import Channel, Connection
from workerkit.brokers.rabbitmq.errors import PreconditionFailed
from workerkit.errors import (
    AccessRefused,
    BrokerError,
    ConnectionLost,
    ExitCode,
    PublishFailed,
    PublishRefused,
    PublishTimeout,
    QueueNotFound,
    Unconfirmed,
    Unroutable,
)

PUBLISH_TIMEOUT = 10.0
"""Seconds the broker gets to take responsibility for one message, from when it is written."""
WINDOW = 1000
"""Messages in flight at most: enough to keep a broker on the same machine busy until its next confirms."""
WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes of bodies in flight at most; one message may be bigger. They wait in memory, and a message should not time out
because of those before it: a line of 10 Mbit/s takes three seconds for so many."""

# RabbitMQ closes the channel on a message that it does not accept, and says which: for an exchange that is missing or
# forbidden by name ('amq.default' for the default exchange), for a body that is too big by its size.
_BLAMED_EXCHANGE = re.compile("exchange '(.*?)' in vhost")
_BLAMED_SIZE = re.compile(r"message size (\d+)\b")


class _Pending(NamedTuple):
    exchange: str
    routing_key: str
    body: bytes
    properties: bytes
    ended: Ended
    written: float


class ConfirmedPublisher:
    """Publishes over a connection of its own, many messages in flight.

    The connection is opened by the first publish and again after it was lost. It is never the one that consumes: a
    broker under a memory alarm stops reading from connections that publish, and acknowledgements must get through.

    Args:
        connect: opens the connection.
        wait_while_blocked: wait for as long as the broker blocks publishers, instead of giving up.
        timeout: seconds the broker gets for one message; None for ``PUBLISH_TIMEOUT``.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        wait_while_blocked: bool = False,
        timeout: float | None = None,
    ) -> None:
        self._connect = connect
        self._timeout = PUBLISH_TIMEOUT if timeout is None else timeout
        self._wait_while_blocked = wait_while_blocked
        self._loop = asyncio.get_running_loop()  # asking for it each time is a system call each time
        self._opening: asyncio.Task[Channel] | None = None
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._pending: dict[int, _Pending] = {}  # by delivery tag, ascending
        self._next_tag = 1  # as the broker counts what is published on the channel
        self._returned: dict[int, str] = {}  # the reasons of those that came back and are not confirmed yet
        self._last_returned = 0
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._clock: asyncio.TimerHandle | None = None  # one for all deadlines: the oldest message has the next
        self._last_blocked = 0.0

    async def publish(self, exchange: str, routing_key: str, properties: bytes, body: bytes) -> None:
        """Publish one message and wait until the broker has it.

        Args:
            exchange: name; empty for the default exchange, which routes by queue name.
            routing_key: at most 255 bytes.
            properties: encoded AMQP properties.
            body: the payload.

        Raises:
            PublishFailed: Unroutable, PublishRefused, PublishTimeout, or Unconfirmed as the connection was lost.
            BrokerError: there is no connection.
        """
        if not self.ready:
            await self.room()
        done: asyncio.Future[None] = self._loop.create_future()
        self.submit(exchange, routing_key, properties, body, partial(resolve, done))
        await done

    @property
    def ready(self) -> bool:
        """Whether there is a channel, and room for one more message."""
        return self._channel is not None and self._room.is_set()

    async def room(self) -> None:
        """Wait until ``submit`` may be called, at once. Raises BrokerError when there is no connection."""
        while True:
            await self.channel()
            if self._room.is_set():
                return
            await self._room.wait()

    def submit(self, exchange: str, routing_key: str, properties: bytes, body: bytes, ended: Ended) -> None:
        """Publish one message without waiting. To be called when ``ready``; the arguments are those of ``publish``.

        Raises:
            BrokerError: the channel is gone, or a name too long; ``ended`` will not be called.
        """
        if self._channel is None:
            raise ConnectionLost("there is no connection to publish on")
        try:
            self._channel.publish(exchange, routing_key, properties, body)
        except BrokerError:
            raise
        except BaseException:
            self._give_up("given up after a fault")  # nobody can say whether the broker will count this one
            raise
        self._pending[self._next_tag] = _Pending(exchange, routing_key, body, properties, ended, self._loop.time())
        self._next_tag += 1
        self._bytes += len(body)
        if len(self._pending) >= WINDOW or self._bytes >= WINDOW_BYTES:
            self._room.clear()
        if self._clock is None:
            self._clock = self._loop.call_later(self._timeout / 10, self._check_deadline)

    @property
    def blocked_by(self) -> str:
        """Why the broker does not read what is published at present; empty when it does."""
        return self._connection.blocked_by if self._connection is not None else ""

    async def channel(self) -> Channel:
        """The channel it publishes on, opened if need be.

        One attempt is for all who wait, also when it fails, and it is not given up with whoever waited first: a time
        limit may be shorter than a handshake.
        """
        if self._channel is not None and self._channel.is_open:
            return self._channel
        if self._opening is None or self._opening.done():
            self._opening = self._loop.create_task(self._open())
            self._opening.add_done_callback(_look_at_error)
        return await asyncio.shield(self._opening)

    async def connection(self) -> Connection:
        """The connection it publishes on, for questions on a channel of their own: a refusal closes the channel."""
        await self.channel()
        assert self._connection is not None
        return self._connection

    async def _open(self) -> Channel:
        self._lose("it was closed")
        if self._connection is None or not self._connection.is_open:
            self._connection = await self._connect()
        channel = await self._connection.channel()
        channel.on_return(self._on_return)
        await channel.confirm_select(self._on_confirm)
        channel.closed.add_done_callback(lambda closed: self._on_closed(channel, closed.result()))
        self._next_tag, self._last_returned = 1, 0
        self._channel = channel
        return channel

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        if self._connection is not None:
            await self._connection.close()

    def _on_confirm(self, tag: int, multiple: bool, positive: bool) -> None:
        first = next(iter(self._pending), tag) if multiple else tag
        for known in range(first, tag + 1):
            message = self._pending.pop(known, None)
            if message is None:
                continue
            self._bytes -= len(message.body)
            if known in self._returned:
                target = f"exchange {message.exchange!r}, routing key {message.routing_key!r}"
                reason = self._returned.pop(known)
                message.ended(Unroutable(f"no queue took the message ({target}): {reason}"))
            elif positive:
                message.ended(None)
            else:
                message.ended(PublishRefused("the broker refused the message (nack); is the queue full?"))
        self._make_room()

    def _on_return(self, exchange: str, routing_key: str, properties: Any, body: bytes, reason: str) -> None:
        """A return names no tag. Returns come in order, each before its confirm.

        One before it may look the same, and be on its way into a queue that is gone by now. So properties count too;
        messages that are alike in everything may stand for each other.
        """
        found = 0
        oldest = next(iter(self._pending), self._next_tag)
        for tag in range(max(oldest, self._last_returned + 1), self._next_tag):
            message = self._pending.get(tag)
            if message is None or message[:3] != (exchange, routing_key, body):
                continue
            found = found or tag
            if _are(message.properties, properties):
                found = tag
                break
        if not found:
            # One of those in flight came back, and its confirm would say that it arrived.
            self._give_up("given up, as a message came back that is none of ours")
            return
        self._returned[found] = reason
        self._last_returned = found

    def _check_deadline(self) -> None:
        """Time out what is due. Runs often enough to see each time that the broker blocks publishers."""
        self._clock = None
        if not self._pending:
            return
        now = self._loop.time()
        blocked = self.blocked_by
        if blocked and self._wait_while_blocked:
            self._last_blocked = now
        oldest = next(iter(self._pending.values()))
        left = max(oldest.written, self._last_blocked) + self._timeout - now
        if left > 0:
            self._clock = self._loop.call_later(min(left, self._timeout / 10), self._check_deadline)
            return
        why = f", as the broker blocks publishers ({blocked})" if blocked else ""
        late = [tag for tag, message in self._pending.items() if message.written + self._timeout <= now]
        for message in [self._pending.pop(tag) for tag in late]:
            message.ended(PublishTimeout(f"no confirm within {self._timeout:g} s{why}; the message may still arrive"))
        self._give_up(f"given up, as the broker did not confirm an earlier message within {self._timeout:g} s")

    def _give_up(self, why: str) -> None:
        """Cut the connection.

        What is not sent yet must not be published beside what the caller sends next. What the broker's machine has
        taken in already may be: a publish without a confirm is neither done nor undone.
        """
        if self._channel is not None:
            self._channel.stop_publishing()
        if self._connection is not None:
            self._connection.abort()
        self._lose(why)

    def _on_closed(self, channel: Channel, reason: BrokerError) -> None:
        if self._channel is channel:
            self._lose(str(reason), reason)

    def _lose(self, why: str, refusal: BrokerError | None = None) -> None:
        """The channel is gone, and with it the confirms of what is in flight.

        A message that the broker closed it for is told so: published again, it would take its neighbours down again.
        """
        self._channel = None
        lost = tuple(self._pending.values())
        self._pending.clear()
        self._returned.clear()
        self._bytes = 0
        for message in lost:
            blamed = _blamed(message, refusal)
            message.ended(blamed or Unconfirmed(f"the connection was lost before the confirm: {why}"))
        self._make_room()

    def _make_room(self) -> None:
        """Only once half of the window is free: what is written together is sent together."""
        if len(self._pending) <= WINDOW // 2 and self._bytes <= WINDOW_BYTES // 2:
            self._room.set()


def _look_at_error(opening: asyncio.Task[Channel]) -> None:
    """Those who waited got it; where nobody did, asyncio would complain."""
    if not opening.cancelled():
        opening.exception()


def _blamed(message: _Pending, refusal: BrokerError | None) -> PublishFailed | None:
    """What became of the message, if it is the one that the broker closed the channel for."""
    if not isinstance(refusal, AccessRefused | QueueNotFound | PreconditionFailed):
        return None
    reason = str(refusal)
    exchange, size = _BLAMED_EXCHANGE.search(reason), _BLAMED_SIZE.search(reason)
    if exchange is not None and exchange[1] == (message.exchange or "amq.default"):
        kind = Unroutable if isinstance(refusal, QueueNotFound) else PublishRefused
        return kind(f"the broker refused the message: {reason}")
    if size is not None and int(size[1]) == len(message.body):
        refused = PublishRefused(f"the broker refused the message: {reason}")
        refused.exit_code = ExitCode.BAD_DATA  # trying again does not make it smaller
        return refused
    return None


def _are(encoded: bytes, properties: Any) -> bool:
    """Whether these are the properties that pika decoded."""
    try:
        return bool(pika.BasicProperties().decode(encoded) == properties)
    except Exception:  # noqa: BLE001 - a table that pika cannot read, so it did not read it
        return False
