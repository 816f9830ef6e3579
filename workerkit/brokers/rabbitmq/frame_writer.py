"""The frames of a publish, put together by hand, and those of one turn of the event loop written together.

A publish is a Basic.Publish method frame, a content header frame and body frames of at most the negotiated size
(AMQP 0-9-1, sections 2.3.5 and 4.2.6). pika makes an object of each frame and hands each to the socket by itself, which
takes longer than all the rest of a publish.
"""

from __future__ import annotations

import asyncio
import struct

import pika.channel

from workerkit.brokers.rabbitmq.fastpath import FastConnection

_FRAME = struct.Struct(">BHI")
_HEADER = struct.Struct(">BHIHHQ")  # frame; class, weight, size of the body
_END_AND_FRAME = struct.Struct(">BBHI")  # the end of the content header frame and the start of the only body frame

_METHOD, _CONTENT_HEADER, _BODY = 1, 2, 3
_BASIC = 60
_BASIC_PUBLISH = struct.pack(">HHH", _BASIC, 40, 0)  # class, method, and a field that is not used any more
_MANDATORY = b"\x01"
_END = b"\xce"

WRITE_SIZE = 64 * 1024
"""Bytes that are written before the turn of the event loop is over. pika's transport copies what is left of a write
each time the socket takes a part of it, so a write must not be much bigger than what a socket takes."""


class FrameWriter:
    """What is published on one channel, on its way to the socket."""

    def __init__(self, connection: FastConnection, channel: pika.channel.Channel) -> None:
        self._connection = connection
        self._channel = channel
        self._number: int = channel.channel_number
        self._body_max: int = connection._body_max_length  # noqa: SLF001 - named in missing_in_pika
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes | memoryview] = []
        self._frames = 0
        self._size = 0
        self._flushing = False
        self._stopped = False
        self._target = ("", "")
        self._method = _method_frame(self._number, "", "")

    def publish(self, exchange: str, routing_key: str, properties: bytes, body: bytes) -> None:
        """Take a mandatory message; it is written in this turn of the event loop or at the start of the next.

        Raises:
            ValueError: a name is longer than AMQP allows; nothing was taken.
        """
        target = (exchange, routing_key)
        if target != self._target:
            self._method = _method_frame(self._number, exchange, routing_key)
            self._target = target
        size = len(body)
        header = _HEADER.pack(_CONTENT_HEADER, self._number, 12 + len(properties), _BASIC, 0, size)
        self._size += size + len(properties) + 64
        if 0 < size <= self._body_max:
            start = _END_AND_FRAME.pack(0xCE, _BODY, self._number, size)
            self._pieces += (self._method, header, properties, start, body, _END)
            self._frames += 3
        else:
            self._pieces += (self._method, header, properties, _END)
            self._frames += 2
            self._add_in_parts(memoryview(body))
        if self._size >= WRITE_SIZE:
            self._write()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def stop(self) -> None:
        """Write nothing any more, not even what was taken."""
        self._stopped = True

    def _add_in_parts(self, body: memoryview) -> None:
        for start in range(0, len(body), self._body_max):
            part = body[start : start + self._body_max]
            self._pieces += (_FRAME.pack(_BODY, self._number, len(part)), part, _END)
            self._frames += 1
            self._write()

    def _flush(self) -> None:
        self._flushing = False
        if self._pieces:
            self._write()

    def _write(self) -> None:
        data, frames = b"".join(self._pieces), self._frames
        self._pieces.clear()
        self._frames = self._size = 0
        if self._channel.is_open and not self._stopped:  # otherwise whoever waits for the confirms is told so
            self._connection.write(data, frames)


def _method_frame(channel: int, exchange: str, routing_key: str) -> bytes:
    arguments = b"".join((_BASIC_PUBLISH, _short(exchange), _short(routing_key), _MANDATORY))
    return _FRAME.pack(_METHOD, channel, len(arguments)) + arguments + _END


def _short(name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) > 255:
        raise ValueError(f"a routing key or the name of an exchange has at most 255 bytes, not {len(encoded)}")
    return bytes((len(encoded),)) + encoded
