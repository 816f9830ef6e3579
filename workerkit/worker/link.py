"""The frames that go over the Unix socket pair between the consumer and one executor.

A frame is a length (u32), a kind (u8) and a payload, little-endian: both ends run on one machine, from one
installation. Consumer to executor: HELLO, then DELIVER and AFTERMATH in batches, CANCEL for a callback that must come
to an end, and STOP. Executor to consumer: READY or FAILED, then SETTLED for each message that was not simply
acknowledged, WAKE when acknowledgements wait in the page, LOG lines in between, and DYING before an exit that it knows
of.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import msgspec

from workerkit.message import Incoming
from workerkit.outgoing import Outgoing
from workerkit.ports import Delivery
from workerkit.settlement import Cause, Outcome, Verb

_FRAME = struct.Struct("<IB")
_DELIVER_FRAME = struct.Struct("<IBI")  # with the size of the head, which is in front of the body
_SIZE = struct.Struct("<I")

READ_SIZE = 256 * 1024
_BIG_BODY = 32 * 1024
"""Bytes from which a body is sent as a piece of its own: copying it next to its header would cost more."""


class Kind(IntEnum):
    """What a frame holds."""

    HELLO = 1
    DELIVER = 2
    AFTERMATH = 3
    STOP = 4
    CANCEL = 5
    READY = 10
    FAILED = 11
    SETTLED = 12
    LOG = 13
    DYING = 14
    WAKE = 15


class _Settled(msgspec.Struct, array_like=True):
    seq: int
    duration_ns: int
    verb: Verb
    delay: float | None = None
    cause: Cause | None = None
    publish: tuple[Outgoing, ...] = ()


# msgpack, as bodies are bytes. The hook is for routing keys of the user's: msgspec takes no subclass of str.
_encoder = msgspec.msgpack.Encoder(enc_hook=str.__str__)
_settled_decoder = msgspec.msgpack.Decoder(_Settled)
_head_decoder = msgspec.msgpack.Decoder(tuple[int, int, int, int, bool, str, str, bytes])


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


def deliver_frames(deliveries: Iterable[Delivery], queues: Mapping[str, int]) -> list[bytes]:
    """DELIVER frames in pieces, to be sent one after the other. ``queues`` numbers the worker's queues by name."""
    pack_frame, encode = _DELIVER_FRAME.pack, _encoder.encode
    sent: list[bytes] = []
    pieces: list[bytes] = []
    for delivery in deliveries:
        head = encode(
            (
                delivery.seq,
                delivery.slot,
                queues[delivery.queue],
                delivery.attempt,
                delivery.redelivered,
                delivery.exchange,
                delivery.routing_key,
                delivery.raw_properties,
            )
        )
        body = delivery.body
        pieces += (pack_frame(_SIZE.size + len(head) + len(body), Kind.DELIVER, len(head)), head)
        if len(body) < _BIG_BODY:
            pieces.append(body)
        else:
            sent += (b"".join(pieces), body)
            pieces.clear()
    if pieces:
        sent.append(b"".join(pieces))
    return sent


def unpack_delivery(data: bytes, start: int, end: int, queues: Sequence[str]) -> tuple[int, int, Incoming]:
    """The sequence number, the slot and the message of a DELIVER payload."""
    start += _SIZE.size
    body = start + _SIZE.unpack_from(data, start - _SIZE.size)[0]
    seq, slot, queue, attempt, redelivered, exchange, key, properties = _head_decoder.decode(data[start:body])
    return seq, slot, Incoming(queues[queue], exchange, key, redelivered, attempt, properties, data[body:end])


class Aftermath(msgspec.Struct, frozen=True):
    """What a replacement executor is told about a message that ran when its predecessor died.

    ``shutdown`` runs for it; what that decides counts as the outcome, unless the message was settled before the death.
    """

    cause: Cause
    settled: Verb | None = None
    """How the message was settled before the death; ``shutdown`` runs, but cannot settle it again."""
    suspect: bool = False
    """The message is only suspected: unless ``shutdown`` decides otherwise, it is to run again, alone."""


def aftermath_frame(delivery: Delivery, aftermath: Aftermath, queues: Mapping[str, int]) -> bytes:
    """An AFTERMATH frame: the cause, then the delivery as in DELIVER."""
    story = _encoder.encode(aftermath)
    payload = b"".join(deliver_frames([delivery], queues))[_FRAME.size :]
    return frame(Kind.AFTERMATH, _SIZE.pack(len(story)) + story + payload)


def unpack_aftermath(payload: bytes, queues: Sequence[str]) -> tuple[int, int, Incoming, Aftermath]:
    """The sequence number, the slot, the message and the story of an AFTERMATH payload."""
    rest = _SIZE.size + _SIZE.unpack_from(payload)[0]
    seq, slot, message = unpack_delivery(payload, rest, len(payload), queues)
    return seq, slot, message, msgspec.msgpack.decode(payload[_SIZE.size : rest], type=Aftermath)


def settled_frame(seq: int, duration_ns: int, outcome: Outcome) -> bytes:
    """A SETTLED frame."""
    settled = _Settled(seq, duration_ns, outcome.verb, outcome.delay, outcome.cause, outcome.publish)
    return frame(Kind.SETTLED, _encoder.encode(settled))


def unpack_settled(data: bytes, start: int, end: int) -> tuple[int, int, Outcome]:
    """The sequence number, the duration in nanoseconds and the outcome of a SETTLED payload."""
    settled = _settled_decoder.decode(memoryview(data)[start:end])
    outcome = Outcome(settled.verb, settled.delay, settled.cause, settled.publish)
    return settled.seq, settled.duration_ns, outcome


class Dying(msgspec.Struct, frozen=True):
    """Why an executor is about to end, by its own account."""

    cause: Cause
    seq: int | None = None
    """The delivery whose callback ends it; None when that is none's doing."""


def json_frame(kind: Kind, value: Any) -> bytes:
    """A frame of another kind: HELLO, CANCEL with the number of a delivery, READY, FAILED or DYING."""
    return frame(kind, msgspec.json.encode(value))
