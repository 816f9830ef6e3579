"""Recognising deliveries in the bytes a broker sends, before pika builds objects of them.

A delivery is a Basic.Deliver method frame, a content header frame and body frames up to the size in the header
(AMQP 0-9-1, sections 2.3.5 and 4.2.6). Other frames are cut out and left to pika unchanged.

There are two ways through a stream. Message after message of one subscription has the same Deliver frame but for the
delivery tag and a flag, so a run of them is read with two look-ups each (``_take_alike``). Everything else, such as the
first of them, a body in many frames or a message cut off by the end of a read, is read frame by frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from workerkit.ports import Delivery

_FRAME = struct.Struct(">BHI")
_TAG_AND_FLAGS = struct.Struct(">QB")
_HEADER = struct.Struct(">QH")  # size of the body, flags of the properties
_BETWEEN = struct.Struct(">4sI")  # the end of the content header frame and the start of the body frame

_METHOD, _CONTENT_HEADER, _BODY = 1, 2, 3
_BASIC = 60
_BASIC_DELIVER = struct.pack(">HH", _BASIC, 60)
_BASIC_CLASS = struct.pack(">H", _BASIC)
_REDELIVERED = 1
_END = 0xCE
_PROTOCOL_HEADER = ord("A")

Batch = tuple[int, list[Delivery]]
"""Deliveries of one channel in a row, with the channel's number."""


@dataclass(slots=True)
class _Partial:
    """A delivery of which frames are missing."""

    delivery: Delivery
    missing: int = -1
    """Bytes of body still to come; -1 until the content header is here."""
    chunks: list[bytes | memoryview] = field(default_factory=list)


class _Shape:
    """What the Deliver frames of one subscription, exchange and routing key have in common."""

    __slots__ = ("channel", "exchange", "head", "middle", "routing_key", "struct")

    def __init__(self, channel: int, frame: bytes, tag_start: int, delivery: Delivery) -> None:
        flags_end = tag_start + _TAG_AND_FLAGS.size
        self.channel = channel
        self.exchange = delivery.exchange
        self.routing_key = delivery.routing_key
        self.head = frame[:tag_start]
        self.middle = frame[flags_end:] + struct.pack(">BH", _CONTENT_HEADER, channel)
        self.struct = struct.Struct(f">{len(self.head)}sQB{len(self.middle)}sIHxxQ")


class FrameSplitter:
    """Turns a byte stream into deliveries and foreign frames, in order.

    Content of one channel cannot be interleaved with methods of the same channel, but other channels' frames may come
    in between, so there is one unfinished delivery per channel.
    """

    def __init__(self) -> None:
        self.sources: dict[int, tuple[str, Any]] = {}
        """By channel: the queue that its deliveries come from, and the receipt that each of them gets."""
        self.frames = 0
        """Frames recognised here, for pika's own counters."""
        self._unread: list[bytes | memoryview] = []  # the start of a frame, in as many pieces as it was read in
        self._missing = 0  # bytes of it still to come, at least
        self._partial: dict[int, _Partial] = {}
        self._shape: _Shape | None = None

    def feed(self, data: bytes) -> list[Batch | bytes]:
        """Take received bytes; return runs of complete deliveries, and every other complete frame as its bytes.

        A malformed frame is returned as foreign: pika knows how to fail on it.
        """
        found: list[Batch | bytes] = []
        buffer, offset = data, 0
        if self._unread:
            self._unread.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return found
            if len(self._unread[0]) < _FRAME.size:  # nothing says yet how long the frame is
                buffer = b"".join(self._unread)
            else:
                offset = len(data) + self._missing
                self._unread[-1] = memoryview(data)[:offset]
                self._take(self._unread, found)
        end = len(buffer)
        while end - offset >= _FRAME.size:
            if self._shape is not None and not self._partial:
                offset = self._take_alike(self._shape, buffer, offset, found)
                if end - offset < _FRAME.size:
                    break
            kind, _, size = _FRAME.unpack_from(buffer, offset)
            if kind == _PROTOCOL_HEADER:  # "AMQP" and a version, sent by a broker that refuses ours
                found.append(buffer[offset:])
                offset = end
                break
            stop = offset + _FRAME.size + size + 1
            if stop > end:
                self._missing = stop - end
                break
            self._take([memoryview(buffer)[offset:stop]], found)
            offset = stop
        self._unread = [memoryview(buffer)[offset:]] if offset < end else []
        return found

    def _take_alike(self, shape: _Shape, buffer: bytes, offset: int, found: list[Batch | bytes]) -> int:
        """Read messages for as long as they are whole, in one body frame, and like the last one; return where it ends.

        This loop runs once per message and nearly all of a busy worker's bytes go through it.
        """
        unpack, size = shape.struct.unpack_from, shape.struct.size
        unpack_between = _BETWEEN.unpack_from
        head, middle, exchange, routing_key = shape.head, shape.middle, shape.exchange, shape.routing_key
        between = struct.pack(">BBH", _END, _BODY, shape.channel)
        queue, receipt = self.sources.get(shape.channel, ("", None))
        deliveries: list[Delivery] = []
        try:
            while True:
                this_head, tag, flags, this_middle, header_size, kind, body_size = unpack(buffer, offset)
                if this_head != head or this_middle != middle or header_size < 14 or kind != _BASIC:
                    break
                start = offset + size
                end = start + header_size - 12
                this_between, frame_size = unpack_between(buffer, end)
                body = end + 8
                stop = body + body_size
                if this_between != between or frame_size != body_size or not body_size or buffer[stop] != _END:
                    break
                redelivered = flags & _REDELIVERED == 1
                properties, content = buffer[start:end], buffer[body:stop]
                deliveries.append(
                    Delivery(queue, exchange, routing_key, redelivered, 1, properties, content, receipt, tag)
                )
                offset = stop + 1
        except (struct.error, IndexError):
            pass  # the rest has not arrived
        if deliveries:
            self.frames += 3 * len(deliveries)
            _append(found, shape.channel, deliveries)
        return offset

    def _take(self, pieces: list[bytes | memoryview], found: list[Batch | bytes]) -> None:
        """Take a whole frame, in the pieces that it was read in. One that belongs to no delivery is handed on."""
        kind, channel, size = _FRAME.unpack_from(pieces[0])
        try:
            taken = pieces[-1][-1] == _END and (
                self._take_body(channel, size, pieces) if kind == _BODY else self._take_head(channel, b"".join(pieces))
            )
        except (struct.error, IndexError):  # shorter than its fields
            taken = False
        if not taken:
            found.append(b"".join(pieces))
            return
        self.frames += 1
        partial = self._partial[channel]
        if partial.missing == 0:
            del self._partial[channel]
            partial.delivery.body = b"".join(partial.chunks)
            _append(found, channel, [partial.delivery])

    def _take_head(self, channel: int, frame: bytes) -> bool:
        partial = self._partial.get(channel)
        if frame[0] == _METHOD and frame[7:11] == _BASIC_DELIVER:
            self._partial[channel] = _Partial(self._read_deliver(channel, frame))
        elif frame[0] == _CONTENT_HEADER and partial and partial.missing < 0 and frame[7:9] == _BASIC_CLASS:
            partial.missing, _ = _HEADER.unpack_from(memoryview(frame)[:-1], 11)
            partial.delivery.raw_properties = frame[19:-1]
        else:
            if frame[0] != _METHOD:
                self._partial.pop(channel, None)  # out of order: a broken broker, which pika reports
            return False
        return True

    def _take_body(self, channel: int, size: int, pieces: list[bytes | memoryview]) -> bool:
        """Of a big body nothing is copied before it is whole."""
        partial = self._partial.get(channel)
        if partial is None or size > partial.missing:
            self._partial.pop(channel, None)  # out of order, or too long
            return False
        partial.missing -= size
        chunks = [*pieces]
        chunks[0] = chunks[0][_FRAME.size :]
        chunks[-1] = chunks[-1][:-1]
        partial.chunks += chunks
        return True

    def _read_deliver(self, channel: int, frame: bytes) -> Delivery:
        """consumer-tag shortstr, delivery-tag u64, redelivered bit, exchange shortstr, routing-key shortstr."""
        tag_start = 12 + frame[11]
        tag, flags = _TAG_AND_FLAGS.unpack_from(frame, tag_start)
        offset = tag_start + _TAG_AND_FLAGS.size
        exchange_end = offset + 1 + frame[offset]
        key_end = exchange_end + 1 + frame[exchange_end]
        exchange = frame[offset + 1 : exchange_end].decode("utf-8", "replace")
        routing_key = frame[exchange_end + 1 : key_end].decode("utf-8", "replace")
        queue, receipt = self.sources.get(channel, ("", None))
        redelivered = flags & _REDELIVERED == 1
        delivery = Delivery(queue, exchange, routing_key, redelivered, 1, b"", b"", receipt, tag)
        self._shape = _Shape(channel, frame, tag_start, delivery)
        return delivery


def _append(found: list[Batch | bytes], channel: int, deliveries: list[Delivery]) -> None:
    last = found[-1] if found else b""
    if isinstance(last, tuple) and last[0] == channel:
        last[1].extend(deliveries)
    else:
        found.append((channel, deliveries))
