"""pika's asyncio connection with awaitable methods, raw deliveries and our errors: the narrowest useful piece of it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pika
import pika.channel
import pika.exceptions
import pika.spec

from workerkit.brokers.rabbitmq.errors import translate
from workerkit.brokers.rabbitmq.fastpath import FastConnection, OnDeliveries, PlainConnection, Settling, missing_in_pika
from workerkit.brokers.rabbitmq.frame_writer import FrameWriter
from workerkit.brokers.rabbitmq.io_services import IoServices
from workerkit.brokers.rabbitmq.versions import ServerVersion
from workerkit.errors import BrokerError, ConnectionLost, PublishFailed

CLOSE_TIMEOUT = 1.0
"""Seconds a broker gets to answer a close, where nothing depends on the answer."""
RPC_TIMEOUT = 20.0
"""Seconds a broker gets to answer a method. A frozen one is found by heartbeats later than a user should wait."""

T = TypeVar("T")


class RawProperties:
    """Properties that are encoded already, in the shape pika's content header wants them."""

    __slots__ = ("_raw",)
    INDEX = pika.spec.BasicProperties.INDEX

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def encode(self) -> list[bytes]:
        return [self._raw]


@dataclass(frozen=True, slots=True)
class QueueState:
    """What a declaration, passive or not, says of a queue."""

    messages_ready: int
    consumers: int


class Connection:
    """An open connection to a broker. Made by ``open``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        """Done, with the reason, as soon as the connection is gone."""
        self.on_blocked: Callable[[bool, str], None] | None = None
        self.blocked_by = ""
        """Why the broker does not read what is published at present, empty when it does."""
        self._pika: FastConnection | PlainConnection
        self._asking = asyncio.Lock()
        self._side: Channel | None = None  # for questions

    @classmethod
    async def open(cls, url: str, *, name: str, heartbeat: float, attempt_timeout: float) -> Connection:
        """Connect to one URL.

        Args:
            url: ``amqp://`` or ``amqps://``; the latter verifies the certificate chain and the host name.
            name: shown by the management page.
            heartbeat: seconds.
            attempt_timeout: seconds the whole attempt may take.

        Raises:
            ConnectionFailed: nobody answered, or not in AMQP 0-9-1.
            AccessRefused: the credentials or the virtual host were refused.
        """
        self = cls(name)
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        connection = PlainConnection if missing_in_pika() else FastConnection
        self._pika = connection(
            _parameters(url, name, heartbeat, attempt_timeout),
            on_open_callback=opened.set_result,
            on_open_error_callback=lambda _pika, error: self._end(translate(error, url)),
            on_close_callback=lambda _pika, error: self._end(translate(error)),
            custom_ioloop=IoServices(asyncio.get_running_loop()),
        )
        try:
            await asyncio.wait({opened, self.closed}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # While it resolves a name pika cannot be stopped: it goes on to make a socket that nobody closes.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    while getattr(self._pika, "_transport", None) is None and not self.closed.done():  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            self.abort()
            await asyncio.wait({self.closed}, timeout=CLOSE_TIMEOUT)  # it closes its socket in later turns of the loop
            raise
        if not opened.done():
            raise self.closed.result()
        self._pika.add_on_connection_blocked_callback(
            lambda _pika, frame: self._tell_blocked(str(frame.method.reason) or "no reason given")
        )
        self._pika.add_on_connection_unblocked_callback(lambda _pika, _frame: self._tell_blocked(""))
        return self

    @property
    def is_open(self) -> bool:
        return not self.closed.done() and bool(self._pika.is_open)

    @property
    def version(self) -> ServerVersion:
        properties = self._pika.server_properties or {}
        return ServerVersion.parse(str(properties.get("product", "")), str(properties.get("version", "")))

    def hold(self, hold: bool) -> None:
        """Read nothing for a moment, or go on."""
        self._pika.hold(hold)

    async def channel(self) -> Channel:
        """Open a channel. Raises BrokerError."""
        channel = Channel(self, self._pika)
        await channel.open()
        return channel

    async def ask(self, question: Callable[[Channel], Awaitable[T]]) -> T:
        """Ask the broker something that it may refuse, which closes the channel: not one that others use.

        One question at a time, else the refusal of one would be taken for the answer to another. Raises BrokerError.
        """
        async with self._asking:
            if self._side is None or not self._side.is_open:
                self._side = await self.channel()
            return await question(self._side)

    async def close(self, patience: float = CLOSE_TIMEOUT) -> None:
        """Close in order, reading what is still on its way; cut it when the broker has not answered in time.

        A socket that is closed with unread data in it resets the connection, and the broker may then drop what it has
        not read yet: so that is the last resort.
        """
        if self.closed.done():
            return
        self.hold(False)
        if not (self._pika.is_closing or self._pika.is_closed):
            self._pika.close()
        await asyncio.wait({self.closed}, timeout=patience)
        if not self.closed.done():
            self.abort()
            await asyncio.wait({self.closed}, timeout=CLOSE_TIMEOUT)  # in later turns of the loop, if there are any

    def abort(self, why: str = "given up") -> None:
        """Cut it: what was written and not sent is gone. pika itself closes in order only, and waits for an answer."""
        transport = getattr(self._pika, "_transport", None)
        if transport is not None:
            if getattr(self._pika, "_error", self) is None:  # pika asserts that an end has a reason
                self._pika._error = ConnectionLost(why)  # noqa: SLF001
            transport.abort()
        elif not (self._pika.is_closing or self._pika.is_closed):
            self._pika.close()  # still connecting

    def _end(self, reason: BrokerError) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)

    def _tell_blocked(self, reason: str) -> None:
        self.blocked_by = reason
        if self.on_blocked is not None:
            self.on_blocked(bool(reason), reason)


class Channel:
    """A channel whose methods can be awaited; each raises BrokerError when the channel or its connection goes."""

    def __init__(self, connection: Connection, wire: FastConnection | PlainConnection) -> None:
        self.connection = connection
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        """Done, with the reason, as soon as the channel is gone; pika tells it of its connection's end, too."""
        self._wire = wire
        self._pika: pika.channel.Channel
        self._outgoing: FrameWriter | None = None
        self._closed_in_order = False

    async def open(self) -> None:
        def start(callback: Callable[[Any], None]) -> None:
            self._pika = self._wire.channel(on_open_callback=callback)
            self._pika.add_on_close_callback(self._on_closed)

        await self._call(start)

    @property
    def is_open(self) -> bool:
        return not self.closed.done() and bool(self._pika.is_open)

    async def qos(self, prefetch_count: int) -> None:
        await self._call(self._pika.basic_qos, prefetch_count=prefetch_count)

    async def consume(self, queue: str, tag: str, on_deliveries: OnDeliveries, *, receipt: Any = None) -> None:
        """Subscribe; deliveries go to ``on_deliveries`` in batches, as they are read, each with ``receipt``.

        A channel can have several subscriptions; they are to the same queue, with the same receipt.
        """
        on_message = self._wire.route(int(self._pika.channel_number), queue, receipt, on_deliveries)
        await self._call(self._pika.basic_consume, queue, on_message, consumer_tag=tag)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call back when the broker ends a subscription of this channel."""
        self._pika.add_on_cancel_callback(lambda _method: callback())

    async def cancel(self, tag: str) -> None:
        await self._call(self._pika.basic_cancel, tag)

    def ack(self, frames: Sequence[tuple[int, bool]]) -> None:
        """Acknowledge, each frame a delivery tag and whether all tags below are meant too. Raises BrokerError."""
        self.settle(Settling.ACK, frames)

    def nack(self, frames: Sequence[tuple[int, bool]]) -> None:
        """Give back, not an attempt: from RabbitMQ 4.3 it does not count towards the delivery limit."""
        self.settle(Settling.NACK, frames)

    def settle(self, how: Settling, frames: Sequence[tuple[int, bool]]) -> None:
        """Settle by one of the three methods. Raises BrokerError; then the broker has been told nothing."""
        if not self.is_open:
            raise ConnectionLost("the channel is closed")
        if not frames:
            return
        try:
            self._wire.settle(self._pika, how, frames)
        except pika.exceptions.AMQPError as error:
            raise translate(error) from None

    async def confirm_select(self, on_confirm: Callable[[int, bool, bool], None]) -> None:
        """Turn on publisher confirms; ``on_confirm`` gets (tag, multiple, positive)."""

        def on_method(frame: Any) -> None:
            method = frame.method
            on_confirm(method.delivery_tag, method.multiple, isinstance(method, pika.spec.Basic.Ack))

        await self._call(self._pika.confirm_delivery, on_method)
        if isinstance(self._wire, FastConnection):
            self._outgoing = FrameWriter(self._wire, self._pika)

    def on_return(self, callback: Callable[[str, str, Any, bytes, str], None]) -> None:
        """Call back with (exchange, routing key, properties, body, reason) when a mandatory message found no queue."""
        self._pika.add_on_return_callback(
            lambda _channel, method, properties, body: callback(
                method.exchange, method.routing_key, properties, body, f"{method.reply_code} {method.reply_text}"
            )
        )

    def publish(self, exchange: str, routing_key: str, properties: bytes, body: bytes) -> None:
        """Publish, mandatory, on a channel with confirms. Raises BrokerError; then nothing was published."""
        try:
            if self._outgoing is not None:
                self._outgoing.publish(exchange, routing_key, properties, body)
            else:
                self._pika.basic_publish(exchange, routing_key, body, RawProperties(properties), mandatory=True)
        except ValueError as error:
            raise PublishFailed(str(error)) from None
        except pika.exceptions.AMQPError as error:
            raise translate(error) from None

    def stop_publishing(self) -> None:
        """Forget what is not written yet."""
        if self._outgoing is not None:
            self._outgoing.stop()

    async def declare_queue(
        self, name: str, arguments: Mapping[str, Any], *, durable: bool = True, auto_delete: bool = False
    ) -> None:
        await self._call(
            self._pika.queue_declare, name, durable=durable, auto_delete=auto_delete, arguments=dict(arguments)
        )

    async def check_queue(self, name: str) -> QueueState:
        """Declare passively. Raises QueueNotFound."""
        frame = await self._call(self._pika.queue_declare, name, passive=True)
        return QueueState(frame.method.message_count, frame.method.consumer_count)

    async def check_exchange(self, name: str) -> None:
        """Declare passively. Raises QueueNotFound when it does not exist: the broker's word is the same, 404."""
        await self._call(self._pika.exchange_declare, name, passive=True)

    async def declare_exchange(self, name: str, kind: str, *, durable: bool, arguments: Mapping[str, Any]) -> None:
        await self._call(self._pika.exchange_declare, name, kind, durable=durable, arguments=dict(arguments))

    async def bind(self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any]) -> None:
        await self._call(self._pika.queue_bind, queue, exchange, routing_key, dict(arguments))

    async def purge(self, queue: str) -> int:
        """Delete the ready messages of a queue; returns how many."""
        frame = await self._call(self._pika.queue_purge, queue)
        return int(frame.method.message_count)

    async def close(self, patience: float = CLOSE_TIMEOUT) -> bool:
        """Close in order: what was acknowledged is applied, what was not goes back.

        Returns whether the broker has answered within ``patience`` seconds: it has taken all that was sent before.
        """
        if self.is_open:
            self._pika.close()
        await asyncio.wait({self.closed}, timeout=patience)
        return self._closed_in_order

    async def _call(self, method: Callable[..., object], *args: object, **keywords: object) -> Any:
        """Call a method of pika and wait for the broker's answer, which pika hands to its argument ``callback``."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            method(*args, **keywords, callback=answer.set_result)
        except pika.exceptions.AMQPError as error:
            raise translate(error) from None
        await asyncio.wait({answer, self.closed}, timeout=RPC_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if self.closed.done():
            raise self.closed.result()
        raise ConnectionLost(f"the broker did not answer within {RPC_TIMEOUT:g} s")

    def _on_closed(self, _channel: Any, error: BaseException) -> None:
        self._closed_in_order = isinstance(error, pika.exceptions.ChannelClosedByClient)
        self.closed.set_result(translate(error))


def _parameters(url: str, name: str, heartbeat: float, timeout: float) -> pika.URLParameters:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = round(heartbeat)
    parameters.socket_timeout = timeout
    parameters.stack_timeout = timeout
    parameters.connection_attempts = 1  # we try again ourselves, with a backoff that pika does not have
    parameters.client_properties = {"connection_name": name, "product": "workerkit"}
    if url.startswith("amqps:") and "ssl_options" not in url:
        # pika's default context for a URL verifies already; said here so that it stays so.
        parameters.ssl_options = pika.SSLOptions(ssl.create_default_context(), parameters.host)
    return parameters
