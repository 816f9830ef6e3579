"""Short cuts into pika's asyncio connection: deliveries read from the bytes, settlements written at once.

They use what pika does not document. Where the installed pika lacks any of it, ``missing_in_pika`` names it and
``PlainConnection`` does the same work by pika's public methods, slower.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import cache
from types import FunctionType
from typing import Any

import pika.channel
import pika.frame
import pika.spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils import io_services_utils
from pika.connection import Connection

from workerkit.brokers.rabbitmq.frames import FrameSplitter
from workerkit.ports import Delivery

RECEIVE_SIZE = 128 * 1024
"""Bytes per receive call; pika's own 4 KiB costs a system call every twenty small messages."""

_LONGEST_HOLD = 0.2
"""Seconds for which nothing is read at a stretch: the broker's heartbeats, its answers, and methods such as a cancel
come the same way as deliveries."""

OnDeliveries = Callable[[list[Delivery]], None]

_SETTLE_FRAME = struct.Struct(">BHIHHQBB")
_FRAME_END = 0xCE


class Settling(IntEnum):
    """The methods that settle, by their numbers in class 60 (basic)."""

    ACK = 80
    REJECT = 90
    NACK = 120


_REQUEUE = {Settling.ACK: 0, Settling.REJECT: 1, Settling.NACK: 2}
"""The requeue bit of each; the bit for `multiple` is 1, which a reject does not have."""


@cache
def missing_in_pika() -> list[str]:
    """What the short cuts need and the installed pika does not have; empty when they can be used."""
    transport = getattr(io_services_utils, "_AsyncPlaintextTransport", None)
    needed = {
        AsyncioConnection: ("_on_data_available", "_process_frame", "_proto_connection_made", "_adapter_emit_data"),
        Connection: ("bytes_received", "frames_received", "bytes_sent", "frames_sent", "_body_max_length"),
        transport: ("_MAX_RECV_BYTES", "_MAX_CONSUME_BYTES", "_sock", "_on_socket_readable", "get_write_buffer_size"),
        pika.frame: ("decode_frame",),
    }
    return [
        f"{getattr(owner, '__name__', '_AsyncPlaintextTransport')}.{name}"
        for owner, names in needed.items()
        for name in names
        if not hasattr(owner, name) and name not in _used_in(owner)
    ]


def _used_in(owner: Any) -> set[str]:
    """The names that a class's own methods use: the only trace of the attributes of its instances."""
    classes = inspect.getmro(owner) if inspect.isclass(owner) else ()
    functions = [value for cls in classes for value in vars(cls).values() if isinstance(value, FunctionType)]
    return {name for function in functions for name in function.__code__.co_names}


class FastConnection(AsyncioConnection):  # type: ignore[misc] # untyped library
    """Recognises deliveries in the received bytes and writes settlements past pika; the rest goes pika's own way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._splitter = FrameSplitter()
        self._consumers: dict[int, OnDeliveries] = {}
        self._socket: socket.socket | None = None
        self._held: asyncio.TimerHandle | None = None
        super().__init__(*args, **kwargs)

    def route(self, channel: int, queue: str, receipt: Any, on_deliveries: OnDeliveries) -> Callable[..., None]:
        """Have the deliveries of a channel handed over in batches, as they are read. Returns a callback for pika."""
        self._splitter.sources[channel] = (queue, receipt)
        self._consumers[channel] = on_deliveries
        return lambda *_args: None

    def settle(self, channel: pika.channel.Channel, how: Settling, frames: Iterable[tuple[int, bool]]) -> None:
        """Settle by (tag, multiple), in one write."""
        number, requeue = channel.channel_number, _REQUEUE[how]
        packed = [
            _SETTLE_FRAME.pack(1, number, 13, 60, how, tag, requeue + multiple, _FRAME_END) for tag, multiple in frames
        ]
        self.write(b"".join(packed), len(packed))

    def write(self, data: bytes, frames: int) -> None:
        """Send whole frames: at once if the socket takes them and nothing waits before them, else as pika does.

        pika itself waits for the event loop to say that the socket is writable, which costs an iteration of the loop
        and two system calls for each batch of settlements.
        """
        self.bytes_sent += len(data)
        self.frames_sent += frames
        if self._socket is not None and self._transport.get_write_buffer_size() == 0:
            try:
                sent = self._socket.send(data)
            except OSError:
                sent = 0  # full; or broken, which the transport finds out and reports
            if sent == len(data):
                return
            data = data[sent:]
        self._adapter_emit_data(data)

    def hold(self, hold: bool) -> None:
        """Do not read for a moment, or go on."""
        if self._socket is None or self._socket.fileno() < 0 or hold == (self._held is not None):
            return
        loop = asyncio.get_running_loop()
        if self._held is None:
            loop.remove_reader(self._socket.fileno())
            self._held = loop.call_later(_LONGEST_HOLD, self.hold, False)
        else:
            self._held.cancel()
            self._held = None
            loop.add_reader(self._socket.fileno(), self._transport._on_socket_readable)  # noqa: SLF001

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = RECEIVE_SIZE  # noqa: SLF001 - pika has no setting for it
        if isinstance(transport, io_services_utils._AsyncPlaintextTransport):  # noqa: SLF001
            # One receive call for each time that the socket is readable; pika's second one finds nothing, mostly.
            # TLS may hold data back that no selector announces, so there pika's loop stays.
            transport._MAX_CONSUME_BYTES = 1  # noqa: SLF001
            self._socket = transport._sock  # noqa: SLF001
        super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        splitter = self._splitter
        before = splitter.frames
        self.bytes_received += len(data_in)  # the heartbeat checker compares it: any byte is a sign of life
        for item in splitter.feed(data_in):
            if isinstance(item, tuple):
                channel, deliveries = item
                consumer = self._consumers.get(channel)
                if consumer is not None:
                    consumer(deliveries)
                continue
            _, value = pika.frame.decode_frame(item)
            if value:
                self._process_frame(value)
        self.frames_received += splitter.frames - before


class PlainConnection(AsyncioConnection):  # type: ignore[misc] # untyped library
    """The same by pika's documented methods: one callback for each delivery, one method for each settlement."""

    def route(self, _channel: int, queue: str, receipt: Any, on_deliveries: OnDeliveries) -> Callable[..., None]:
        """As ``FastConnection.route``."""

        def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            raw, where = b"".join(properties.encode()), (queue, method.exchange, method.routing_key)
            on_deliveries([Delivery(*where, method.redelivered, 1, raw, body, receipt, method.delivery_tag)])

        return on_message

    def settle(self, channel: pika.channel.Channel, how: Settling, frames: Iterable[tuple[int, bool]]) -> None:
        """As ``FastConnection.settle``."""
        for tag, multiple in frames:
            if how is Settling.ACK:
                channel.basic_ack(tag, multiple)
            elif how is Settling.NACK:
                channel.basic_nack(tag, multiple, requeue=True)
            else:
                channel.basic_reject(tag, requeue=True)

    def hold(self, _hold: bool) -> None:
        """Not possible by documented means: what the prefetch count allows comes into memory."""
