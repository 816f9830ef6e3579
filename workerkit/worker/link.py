"""Between the consumer and the executor: frames over a Unix socket pair, and one shared page.

A frame is a length (u32), a kind (u8) and a payload, little-endian: both ends run on one machine, from one
installation. Consumer to executor: HELLO, then DELIVER and AFTERMATH in batches, and STOP. Executor to consumer: READY
or FAILED, then SETTLED for each message that was not simply acknowledged, WAKE when acknowledgements wait in the page,
LOG lines in between, and DYING before an exit that it knows of.

The page says at any moment, whatever state the executor is in, which delivery it is running and since when, and which
it has acknowledged since the consumer looked last. The kernel keeps it when the executor dies, so the consumer reads it
afterwards as a flight recorder.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import msgspec

from workerkit.message import Incoming
from workerkit.settlement import Cause, Outcome, Verb
from workerkit.worker.ports import Delivery

_FRAME = struct.Struct("<IB")
_DELIVERY = struct.Struct("<QIBHHI")
_SETTLED = struct.Struct("<QQB")
# With the head of their frame before them: one call instead of two for what is packed per message.
_DELIVER_FRAME = struct.Struct(_FRAME.format + _DELIVERY.format[1:])
_SETTLED_FRAME = struct.Struct(_FRAME.format + _SETTLED.format[1:])

READ_SIZE = 256 * 1024
_BIG_BODY = 32 * 1024
"""Bytes from which a body is sent as a piece of its own: copying it next to its header would cost more."""


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
    WAKE = 15


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


Frame = tuple[int, bytes, int, int]
"""A kind, and where the payload lies: in these bytes, from here, to here. Big payloads are cut out only once."""


class FrameReader:
    """Cuts a stream of bytes into frames. The pieces of a big frame are joined once, when the last one is there."""

    __slots__ = ("_needed", "_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take what was received; return the complete frames, in order."""
        if self._pieces:
            self._pieces.append(data)
            self._size += len(data)
            if self._size < self._needed:
                return []
            data = b"".join(self._pieces)
        frames = []
        offset, end, head = 0, len(data), _FRAME.size
        unpack_head = _FRAME.unpack_from
        self._needed = head
        while end - offset >= head:
            length, kind = unpack_head(data, offset)
            start = offset + head
            if end - start < length:
                self._needed = head + length
                break
            offset = start + length
            frames.append((kind, data, start, offset))
        self._pieces = [data[offset:]] if offset < end else []
        self._size = end - offset
        return frames


def deliver_frames(deliveries: Iterable[Delivery]) -> list[bytes]:
    """DELIVER frames in pieces, to be sent one after the other. ``seq`` identifies a delivery here and only grows."""
    pack_frame = _DELIVER_FRAME.pack
    sent: list[bytes] = []
    pieces: list[bytes] = []
    last_exchange = last_key = ""
    exchange = routing_key = b""
    for delivery in deliveries:
        # The same objects as the last time, mostly, so identity saves encoding them again.
        if delivery.exchange is not last_exchange or delivery.routing_key is not last_key:
            last_exchange, last_key = delivery.exchange, delivery.routing_key
            exchange, routing_key = last_exchange.encode(), last_key.encode()
        properties, body = delivery.raw_properties, delivery.body
        exchange_size, key_size, properties_size = len(exchange), len(routing_key), len(properties)
        head = pack_frame(
            _DELIVERY.size + exchange_size + key_size + properties_size + len(body),
            Kind.DELIVER,
            delivery.seq,
            delivery.attempt,
            delivery.redelivered,
            exchange_size,
            key_size,
            properties_size,
        )
        pieces += (head, exchange, routing_key, properties)
        if len(body) < _BIG_BODY:
            pieces.append(body)
        else:
            sent += (b"".join(pieces), body)
            pieces.clear()
    if pieces:
        sent.append(b"".join(pieces))
    return sent


def unpack_delivery(data: bytes, start: int, end: int, queue: str) -> tuple[int, Incoming]:
    """The sequence number and the message of a DELIVER payload."""
    seq, attempt, redelivered, exchange_size, key_size, properties_size = _DELIVERY.unpack_from(data, start)
    exchange_start = start + _DELIVERY.size
    key_start = exchange_start + exchange_size
    properties_start = key_start + key_size
    body_start = properties_start + properties_size
    return seq, Incoming(
        queue,
        data[exchange_start:key_start].decode(),
        data[key_start:properties_start].decode(),
        redelivered == 1,
        attempt,
        data[properties_start:body_start],
        data[body_start:end],
    )


class Aftermath(msgspec.Struct):
    """What a replacement executor is told about the death of its predecessor."""

    cause: Cause
    settled: Verb | None
    """How the message was settled before the death; ``shutdown`` runs, but cannot settle it again."""


_aftermath_decoder = msgspec.json.Decoder(Aftermath)


def pack_aftermath(delivery: Delivery, aftermath: Aftermath) -> bytes:
    """The payload of AFTERMATH: the cause, then the delivery as in DELIVER."""
    detail = _encoder.encode(aftermath)
    payload = b"".join(deliver_frames([delivery]))[_FRAME.size :]
    return struct.pack("<I", len(detail)) + detail + payload


def unpack_aftermath(payload: bytes, queue: str) -> tuple[int, Incoming, Aftermath]:
    """The sequence number, the message and the story of an AFTERMATH payload."""
    size = struct.unpack_from("<I", payload)[0]
    seq, message = unpack_delivery(payload, 4 + size, len(payload), queue)
    return seq, message, _aftermath_decoder.decode(payload[4 : 4 + size])


def settled_frame(seq: int, duration_ns: int, outcome: Outcome) -> bytes:
    """A SETTLED frame: 17 bytes of payload for an acknowledgement, JSON with the cause behind them otherwise."""
    if outcome.cause is None and outcome.delay is None:
        return _SETTLED_FRAME.pack(_SETTLED.size, Kind.SETTLED, seq, duration_ns, outcome.verb)
    detail = _encoder.encode(_Detail(outcome.delay, outcome.cause))
    return _SETTLED_FRAME.pack(_SETTLED.size + len(detail), Kind.SETTLED, seq, duration_ns, outcome.verb) + detail


def unpack_settled(data: bytes, start: int, end: int) -> tuple[int, int, Outcome]:
    """The sequence number, the duration in nanoseconds and the outcome of a SETTLED payload."""
    seq, duration_ns, verb = _SETTLED.unpack_from(data, start)
    if end - start == _SETTLED.size:
        return seq, duration_ns, Outcome(Verb(verb))
    detail = _detail_decoder.decode(data[start + _SETTLED.size : end])
    return seq, duration_ns, Outcome(Verb(verb), detail.delay, detail.cause)


def pack_cause(cause: Cause) -> bytes:
    """The payload of DYING."""
    return _encoder.encode(cause)


def unpack_cause(payload: bytes) -> Cause:
    """The cause in a DYING payload."""
    return _cause_decoder.decode(payload)


def pack_json(value: Any) -> bytes:
    """The payload of HELLO, READY and FAILED."""
    return _encoder.encode(value)


_LAST, _PHASE, _STARTED, _VOID, _AWAKE, _KNOWN = range(6)
_TABLE = 512  # the table begins with the second 4 KiB
SLOTS = 4096


class Page:
    """The shared page: 64-bit words, each stored as one aligned 8-byte copy, so a reader never sees half of one, even
    when the writer is killed.

    The executor writes what it runs; the consumer writes up to which delivery everything unstarted is void.

    Behind them is the table of acknowledgements. Delivery ``seq`` has two words there, at ``seq`` modulo the size: the
    executor stores its duration and then its number. That costs no system call, unlike a frame, whose sending was
    measured to take half as long as all the rest of a short message. And nothing can come between: a slot belongs to
    one delivery, so there is no index that threads, or an exception out of a signal handler, could get wrong.
    """

    SIZE = 8 * (_TABLE + 2 * SLOTS)

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.SIZE)
        self._words = memoryview(self._map).cast("Q")
        self._barrier = threading.Lock()

    @classmethod
    def create(cls) -> tuple[Page, int]:
        """A new page, and the file descriptor to hand to the other side."""
        fd = os.memfd_create("workerkit-page", os.MFD_CLOEXEC)
        os.ftruncate(fd, cls.SIZE)
        return cls(fd), fd

    # ---- written by the executor

    def begin(self, seq: int, phase: int, now_ns: int) -> None:
        """The executor starts on ``seq``, or on the next phase of it. The phase, which is 0 between two deliveries, is
        written last: it is what makes the rest true. At no moment does a delivery that runs look as if it did not.
        """
        words = self._words
        words[_LAST] = seq
        words[_STARTED] = now_ns
        words[_PHASE] = phase

    def end(self) -> None:
        """The executor runs nothing."""
        self._words[_PHASE] = 0

    def acknowledge(self, seq: int, duration_ns: int) -> bool:
        """The task has acknowledged ``seq``. False: its slot may hold another one that the consumer has not seen."""
        words = self._words
        if seq - words[_KNOWN] > SLOTS:
            return False
        slot = _TABLE + 2 * (seq % SLOTS)
        words[slot + 1] = duration_ns
        words[slot] = seq
        return True

    def must_wake(self) -> bool:
        """Whether the consumer has to be told that there is something new; it has not been told yet.

        Each side stores first and then reads what the other one stores, with a lock's memory barrier in between, so one
        of the two sees the other: either the consumer finds the acknowledgement or the executor finds it asleep.
        """
        with self._barrier:
            pass
        if self._words[_AWAKE]:
            return False
        self._words[_AWAKE] = 1
        return True

    # ---- written by the consumer

    @property
    def void(self) -> int:
        """Deliveries up to this number that have not been started must not be started any more."""
        return self._words[_VOID]

    @void.setter
    def void(self, seq: int) -> None:
        self._words[_VOID] = seq

    def know(self, seq: int) -> None:
        """The consumer will not look for deliveries up to this number any more: their slots are free."""
        self._words[_KNOWN] = seq

    def running(self) -> Running | None:
        """What the executor runs, None when it runs nothing."""
        words = self._words
        phase = words[_PHASE]
        return (words[_LAST], Phase(phase), words[_STARTED]) if phase else None

    def acknowledged(self, inflight: Iterable[int]) -> list[tuple[int, int]]:
        """Number and duration of what was acknowledged among these deliveries, which come in rising order."""
        words = self._words
        words[_AWAKE] = 0
        with self._barrier:
            pass
        last = words[_LAST]
        found = []
        for seq in inflight:
            if seq > last:
                break
            slot = _TABLE + 2 * (seq % SLOTS)
            if words[slot] == seq:
                found.append((seq, words[slot + 1]))
        return found

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._map.close()
