"""Recognising deliveries in the bytes a broker sends, before pika builds objects of them.

A delivery is a Basic.Deliver method frame, a content header frame and body frames up to the size in the header
(AMQP 0-9-1, sections 2.3.5 and 4.2.6). Other frames are cut out and left to pika unchanged.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_FRAME = struct.Struct(">BHI")
_TAG_AND_FLAG = struct.Struct(">Q?")
_HEADER = struct.Struct(">HHQ")

_METHOD, _CONTENT_HEADER, _BODY = 1, 2, 3
_BASIC_DELIVER = struct.pack(">HH", 60, 60)
_END = 0xCE


@dataclass(slots=True)
class RawDelivery:
    """A complete delivery: routing facts, and properties and body as they came."""

    channel: int
    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: bytes = b""
    body: bytes = b""


@dataclass(slots=True)
class _Partial:
    delivery: RawDelivery
    missing: int = -1
    """Bytes of body still to come; -1 until the content header is here."""
    chunks: list[bytes] | None = None


class FrameSplitter:
    """Turns a byte stream into deliveries and foreign frames, in order.

    Content of one channel cannot be interleaved with methods of the same channel, but other channels' frames may come
    in between, so there is one unfinished delivery per channel.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._partial: dict[int, _Partial] = {}
        self.frames = 0
        """Frames recognised here, for pika's own counters."""

    def feed(self, data: bytes) -> list[RawDelivery | bytes]:
        """Take received bytes; return complete deliveries, and every other complete frame as its bytes.

        A malformed frame is returned as foreign: pika knows how to fail on it.
        """
        buffer = self._buffer + data if self._buffer else data
        offset, end = 0, len(buffer)
        found: list[RawDelivery | bytes] = []
        while end - offset >= 7:
            kind, channel, size = _FRAME.unpack_from(buffer, offset)
            start = offset + 7
            stop = start + size
            if buffer[offset] == 0x41:  # "AMQP": a protocol header, eight bytes, sent by a broker that refuses ours
                found.append(buffer[offset:])
                offset = end
                break
            if stop >= end:
                break
            if buffer[stop] != _END or not self._try_take(kind, channel, buffer[start:stop], found):
                found.append(buffer[offset : stop + 1])
            offset = stop + 1
        self._buffer = buffer[offset:] if offset else buffer
        return found

    def _try_take(self, kind: int, channel: int, payload: bytes, found: list[RawDelivery | bytes]) -> bool:
        try:
            return self._take(kind, channel, payload, found)
        except (struct.error, IndexError):  # shorter than its fields
            return False

    def _take(self, kind: int, channel: int, payload: bytes, found: list[RawDelivery | bytes]) -> bool:
        """Consume a frame that belongs to a delivery. False: it does not."""
        partial = self._partial.get(channel)
        if kind == _METHOD:
            if payload[:4] != _BASIC_DELIVER:
                return False
            self._partial[channel] = _Partial(_read_deliver(channel, payload))
        elif partial is None:
            return False
        elif kind == _CONTENT_HEADER and partial.missing < 0:
            _, _, partial.missing = _HEADER.unpack_from(payload)
            partial.delivery.properties = payload[12:]
            if partial.missing == 0:
                found.append(self._partial.pop(channel).delivery)
        elif kind == _BODY and partial.missing > 0:
            self._take_body(channel, partial, payload, found)
        else:
            del self._partial[channel]  # out of order: a broken broker, which pika reports
            return False
        self.frames += 1
        return True

    def _take_body(self, channel: int, partial: _Partial, chunk: bytes, found: list[RawDelivery | bytes]) -> None:
        partial.missing -= len(chunk)
        if partial.chunks is not None:
            partial.chunks.append(chunk)
        elif partial.missing > 0:
            partial.chunks = [chunk]
        if partial.missing <= 0:
            partial.delivery.body = chunk if partial.chunks is None else b"".join(partial.chunks)
            found.append(self._partial.pop(channel).delivery)


def _read_deliver(channel: int, buffer: bytes) -> RawDelivery:
    """consumer-tag shortstr, delivery-tag u64, redelivered bit, exchange shortstr, routing-key shortstr."""
    offset = 5 + buffer[4]
    tag, redelivered = _TAG_AND_FLAG.unpack_from(buffer, offset)
    offset += 9
    exchange_end = offset + 1 + buffer[offset]
    key_end = exchange_end + 1 + buffer[exchange_end]
    return RawDelivery(
        channel,
        tag,
        redelivered,
        buffer[offset + 1 : exchange_end].decode("utf-8", "replace"),
        buffer[exchange_end + 1 : key_end].decode("utf-8", "replace"),
    )
