"""The copies of a message that workerkit publishes: what they keep, what they must not carry, what they say."""

from __future__ import annotations

import os
import socket
from typing import Any

from workerkit.message import ATTEMPT_HEADER, EXCHANGE_HEADER, ROUTING_KEY_HEADER
from workerkit.properties import decode_headers, rewrite
from workerkit.settlement import Cause
from workerkit.timestamps import timestamp
from workerkit.worker.ports import Delivery

PREFIX = "workerkit-"
_ATTEMPT = ATTEMPT_HEADER.encode()
FIRST_FAILED_HEADER = "workerkit-first-failed-at"
REASON_HEADER = "workerkit-reason"

HEADERS_BUDGET = 100_000
"""Bytes for all headers of a copy. A content header must fit one frame, 131,072 bytes by default; a bigger one makes
RabbitMQ close the whole connection with 501 FRAME_ERROR (measured on 3.10.8)."""
_PROPERTIES_LIMIT = 131_072 - 128
"""Bytes for all properties: one frame less its own fields."""
_MESSAGE_LIMIT = 2_000

RENEW_AFTER = 10
"""Returns after which a message is put back as a copy.

From RabbitMQ 4.0 on quorum queues drop a message after 20 returns, without a trace where no dead-letter exchange is
set. A release counts as one before 4.3, a lost connection always: restarts must not add up to a lost message.
"""
_NAME_LIMIT = 255
_NO_PROPERTIES = b"\0\0"

# Written by brokers, about hand-overs that the copy has not had. A counter that came along would count against the
# delivery limit in readers' eyes, and RabbitMQ before 3.13.3 interprets x-death from publishers.
_BROKER_HEADERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "x-delay")
# Sender-selected distribution: a copy with these would also go to queues that have had the original.
_ROUTING_HEADERS = ("CC", "BCC")

# Properties that a copy must not carry: an expiration would delete it from where it waits; a user_id that is not the
# publishing connection's own makes RabbitMQ close the channel (https://www.rabbitmq.com/docs/validated-user-id).
_WITHOUT = ("expiration", "user_id")


def retry_copy(delivery: Delivery, attempt: int) -> bytes:
    """Properties of the copy that comes back as attempt number ``attempt``."""
    known = _known_headers(delivery)
    return _copy(
        delivery.raw_properties,
        {ATTEMPT_HEADER: attempt, **_provenance(delivery, known), FIRST_FAILED_HEADER: _first_failed(known)},
    )


def renewed(delivery: Delivery) -> bytes:
    """Properties of the same message put back by a copy: no attempt more, but the broker's count begins anew."""
    return _copy(
        delivery.raw_properties,
        {ATTEMPT_HEADER: delivery.attempt, **_provenance(delivery, _known_headers(delivery))},
    )


def is_worn(raw_properties: bytes) -> bool:
    """Whether a quorum queue has had this message back so often that its delivery limit comes near."""
    if b"x-delivery-count" not in raw_properties:
        return False
    try:
        count = decode_headers(raw_properties).get("x-delivery-count", 0)
    except ValueError:
        return False
    return isinstance(count, int) and count >= RENEW_AFTER


def dead_letter(delivery: Delivery, cause: Cause, worker: str) -> bytes:
    """Properties of the dead letter: the original's, and the whole story of its end."""
    known = _known_headers(delivery)
    story: dict[str, str | int] = {
        REASON_HEADER: cause.reason.value,
        "workerkit-message": cause.message[:_MESSAGE_LIMIT],
        ATTEMPT_HEADER: delivery.attempt,
        "workerkit-queue": delivery.queue,
        "workerkit-worker": worker,
        "workerkit-host": socket.gethostname(),
        "workerkit-pid": os.getpid(),
        FIRST_FAILED_HEADER: _first_failed(known),
        "workerkit-failed-at": timestamp(),
        **_provenance(delivery, known),
    }
    if cause.exception:
        story["workerkit-exception"] = cause.exception[:_MESSAGE_LIMIT]
    if cause.signal is not None:
        story["workerkit-signal"] = cause.signal
    if cause.exit_code is not None:
        story["workerkit-exit-code"] = cause.exit_code
    if cause.traceback:
        room = HEADERS_BUDGET - len(delivery.raw_properties) - 4 * _MESSAGE_LIMIT
        text = cause.traceback.encode()[-max(0, min(room, 32_000)) :] if room > 0 else b""
        story["workerkit-traceback"] = text.decode("utf-8", "ignore")
    return _copy(delivery.raw_properties, story)


def replayed(raw_properties: bytes) -> bytes:
    """Properties of a dead letter that goes back to its queue: a first attempt again, without the story."""
    return rewrite(
        raw_properties,
        drop=lambda name: (
            _is_not_for_copies(name) or (name.startswith(PREFIX) and name not in (EXCHANGE_HEADER, ROUTING_KEY_HEADER))
        ),
        add={"workerkit-replayed-at": timestamp()},
        without=_WITHOUT,
    )


def count_attempts(deliveries: list[Delivery], *, native: bool) -> None:
    """Say of each delivery which attempt it is. Nearly all are the first, and that must cost next to nothing."""
    for delivery in deliveries:
        properties = delivery.raw_properties
        if native or _ATTEMPT in properties:
            delivery.attempt = attempt_of(properties, native=native)


def attempt_of(raw_properties: bytes, *, native: bool) -> int:
    """The 1-based number of the run that this delivery starts.

    Our header counts on every copy. With native delayed retry there is no copy: there the quorum queue's own count of
    failures is added, which from RabbitMQ 4.3 leaves out messages that were merely handed back. It is not used
    elsewhere, since older versions count every return. Values that make no sense count as nothing.
    """
    try:
        headers = decode_headers(raw_properties)
    except ValueError:
        return 1
    attempt = headers.get(ATTEMPT_HEADER, 1)
    attempt = attempt if isinstance(attempt, int) and 1 <= attempt < 2**31 else 1
    failures = headers.get("x-delivery-count", 0) if native else 0
    return attempt + (failures if isinstance(failures, int) and 0 < failures < 2**31 else 0)


def _copy(raw_properties: bytes, add: dict[str, str | int]) -> bytes:
    """The original's properties with our headers. A message whose headers cannot be copied is still not lost."""
    try:
        copy = rewrite(raw_properties, drop=_is_not_for_copies, add=add, without=_WITHOUT)
        if len(copy) <= _PROPERTIES_LIMIT:
            return copy
        note = {"workerkit-headers-dropped": "too big for a copy"}
        return rewrite(raw_properties, drop=lambda _name: True, add=add | note, without=_WITHOUT)
    except ValueError as error:
        note = {"workerkit-headers-dropped": str(error)[:_MESSAGE_LIMIT]}
        return rewrite(_NO_PROPERTIES, drop=_is_not_for_copies, add=add | note)


def _is_not_for_copies(name: str) -> bool:
    return name in _ROUTING_HEADERS or name.startswith(_BROKER_HEADERS)


def _known_headers(delivery: Delivery) -> dict[str, Any]:
    try:
        return decode_headers(delivery.raw_properties)
    except ValueError:
        return {}


def _provenance(delivery: Delivery, known: dict[str, Any]) -> dict[str, str | int]:
    """Where the message was first published to: the copy itself goes through the default exchange."""
    return {
        EXCHANGE_HEADER: str(known.get(EXCHANGE_HEADER, delivery.exchange))[:_NAME_LIMIT],
        ROUTING_KEY_HEADER: str(known.get(ROUTING_KEY_HEADER, delivery.routing_key))[:_NAME_LIMIT],
    }


def _first_failed(known: dict[str, Any]) -> str:
    return str(known.get(FIRST_FAILED_HEADER) or timestamp())[:_NAME_LIMIT]
