"""Between the consumer and the executor: frames over a Unix socket pair, and one shared page.

A frame is a length (u32), a kind (u8) and a payload, little-endian: both ends run on one machine, from one
installation. Consumer to executor: HELLO, then DELIVER and AFTERMATH in batches, and STOP. Executor to consumer: READY
or FAILED, then one SETTLED per message, LOG lines in between, and DYING before an exit that it knows of.

The page says at any moment, whatever state the executor is in, which delivery it is running and since when. The kernel
keeps it when the executor dies, so the consumer reads it afterwards as a flight recorder.
"""

from __future__ import annotations

import mmap
import os
import struct
from enum import IntEnum
from typing import Any

import msgspec

from workerkit.message import Incoming
from workerkit.settlement import Cause, Outcome, Verb

_FRAME = struct.Struct("<IB")
_DELIVERY = struct.Struct("<QIBHHI")
_SETTLED = struct.Struct("<QQB")

READ_SIZE = 256 * 1024


class Kind(IntEnum):
    """What a frame holds."""

    HELLO = 1
    DELIVER = 2
    AFTERMATH = 3
    STOP = 4
    READY = 10
    FAILED = 11
    SETTLED = 12
    LOG = 13
    DYING = 14


class Phase(IntEnum):
    """What the executor is doing with the delivery in the page."""

    CALLBACK = 1
    SHUTDOWN = 2
    """``shutdown`` runs, in the dying executor or in its replacement."""


Running = tuple[int, Phase, int]
"""What an executor runs: sequence number, phase, since when in monotonic nanoseconds."""


class _Detail(msgspec.Struct, omit_defaults=True):
    delay: float | None = None
    cause: Cause | None = None


_encoder = msgspec.json.Encoder()
_detail_decoder = msgspec.json.Decoder(_Detail)
_cause_decoder = msgspec.json.Decoder(Cause)


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame, ready to be sent."""
    return _FRAME.pack(len(payload), kind) + payload


class FrameReader:
    """Cuts a stream of bytes into frames. The pieces of a big frame are joined once, when the last one is there."""

    __slots__ = ("_needed", "_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take what was received; return the complete frames as (kind, payload), in order."""
        if self._pieces:
            self._pieces.append(data)
            self._size += len(data)
            if self._size < self._needed:
                return []
            data = b"".join(self._pieces)
        frames = []
        offset, end = 0, len(data)
        self._needed = _FRAME.size
        while end - offset >= _FRAME.size:
            length, kind = _FRAME.unpack_from(data, offset)
            start = offset + _FRAME.size
            if end - start < length:
                self._needed = _FRAME.size + length
                break
            offset = start + length
            frames.append((kind, data[start:offset]))
        self._pieces = [data[offset:]] if offset < end else []
        self._size = end - offset
        return frames


def pack_delivery(seq: int, message: Incoming) -> bytes:
    """The payload of DELIVER; ``seq`` identifies the delivery on this link and only ever grows."""
    exchange = message.exchange.encode()
    routing_key = message.routing_key.encode()
    return b"".join(
        (
            _DELIVERY.pack(
                seq,
                message.attempt,
                message.redelivered,
                len(exchange),
                len(routing_key),
                len(message.raw_properties),
            ),
            exchange,
            routing_key,
            message.raw_properties,
            message.body,
        )
    )


def unpack_delivery(payload: bytes, queue: str) -> tuple[int, Incoming]:
    """The sequence number and the message of a DELIVER payload."""
    seq, attempt, redelivered, exchange_size, key_size, properties_size = _DELIVERY.unpack_from(payload)
    exchange_end = _DELIVERY.size + exchange_size
    key_end = exchange_end + key_size
    properties_end = key_end + properties_size
    return seq, Incoming(
        queue=queue,
        exchange=payload[_DELIVERY.size : exchange_end].decode(),
        routing_key=payload[exchange_end:key_end].decode(),
        redelivered=bool(redelivered),
        attempt=attempt,
        raw_properties=payload[key_end:properties_end],
        body=payload[properties_end:],
    )


class Aftermath(msgspec.Struct):
    """What a replacement executor is told about the death of its predecessor."""

    cause: Cause
    settled: Verb | None
    """How the message was settled before the death; ``shutdown`` runs, but cannot settle it again."""


_aftermath_decoder = msgspec.json.Decoder(Aftermath)


def pack_aftermath(seq: int, message: Incoming, aftermath: Aftermath) -> bytes:
    """The payload of AFTERMATH: the cause, then the delivery as in DELIVER."""
    detail = _encoder.encode(aftermath)
    return struct.pack("<I", len(detail)) + detail + pack_delivery(seq, message)


def unpack_aftermath(payload: bytes, queue: str) -> tuple[int, Incoming, Aftermath]:
    """The sequence number, the message and the story of an AFTERMATH payload."""
    size = struct.unpack_from("<I", payload)[0]
    seq, message = unpack_delivery(payload[4 + size :], queue)
    return seq, message, _aftermath_decoder.decode(payload[4 : 4 + size])


def pack_settled(seq: int, duration_ns: int, outcome: Outcome) -> bytes:
    """The payload of SETTLED: 17 bytes for an acknowledgement, JSON with the cause behind them otherwise."""
    head = _SETTLED.pack(seq, duration_ns, outcome.verb)
    if outcome.cause is None and outcome.delay is None:
        return head
    return head + _encoder.encode(_Detail(outcome.delay, outcome.cause))


def unpack_settled(payload: bytes) -> tuple[int, int, Outcome]:
    """The sequence number, the duration in nanoseconds and the outcome of a SETTLED payload."""
    seq, duration_ns, verb = _SETTLED.unpack_from(payload)
    if len(payload) == _SETTLED.size:
        return seq, duration_ns, _PLAIN[verb]
    detail = _detail_decoder.decode(payload[_SETTLED.size :])
    return seq, duration_ns, Outcome(Verb(verb), detail.delay, detail.cause)


_PLAIN = {verb.value: Outcome(verb) for verb in Verb}


def pack_cause(cause: Cause) -> bytes:
    """The payload of DYING."""
    return _encoder.encode(cause)


def unpack_cause(payload: bytes) -> Cause:
    """The cause in a DYING payload."""
    return _cause_decoder.decode(payload)


def pack_json(value: Any) -> bytes:
    """The payload of HELLO, READY and FAILED."""
    return _encoder.encode(value)


class Page:
    """The shared page: four 64-bit words, each written by one side only.

    The executor writes what it runs; the consumer writes up to which delivery everything unstarted is void. Each word
    is stored as one aligned 8-byte copy, so a reader never sees half of one, even when the writer is killed.
    """

    _SEQ, _PHASE, _STARTED, _VOID = range(4)
    SIZE = 4096

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.SIZE)
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> tuple[Page, int]:
        """A new page, and the file descriptor to hand to the other side."""
        fd = os.memfd_create("workerkit-page", os.MFD_CLOEXEC)
        os.ftruncate(fd, cls.SIZE)
        return cls(fd), fd

    def begin(self, seq: int, phase: Phase, now_ns: int) -> None:
        """The executor starts on ``seq``. The sequence number is written last: it is what makes the rest true."""
        words = self._words
        words[self._STARTED] = now_ns
        words[self._PHASE] = phase
        words[self._SEQ] = seq

    def end(self) -> None:
        """The executor runs nothing."""
        self._words[self._SEQ] = 0

    def running(self) -> Running | None:
        """What the executor runs, None when it runs nothing."""
        words = self._words
        seq = words[self._SEQ]
        return (seq, Phase(words[self._PHASE]), words[self._STARTED]) if seq else None

    @property
    def void(self) -> int:
        """Deliveries up to this number that have not been started must not be started any more."""
        return self._words[self._VOID]

    @void.setter
    def void(self, seq: int) -> None:
        self._words[self._VOID] = seq

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._map.close()
