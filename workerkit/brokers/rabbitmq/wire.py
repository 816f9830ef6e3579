"""What RabbitMQ writes into the headers of a message, and how big they may be."""

from __future__ import annotations

from workerkit.properties import header_number

PROPERTIES_LIMIT = 131_072 - 128
"""Bytes for all properties of a message: a content header must fit one frame, 131,072 bytes by default, less its own
fields; a bigger one makes RabbitMQ close the whole connection with 501 FRAME_ERROR (measured on 3.10.8)."""

_DELIVERY_COUNT = "x-delivery-count"

# Written by brokers, about hand-overs that the copy has not had. A counter that came along would count against the
# delivery limit in readers' eyes, and RabbitMQ before 3.13.3 interprets x-death from publishers.
_BROKER_HEADERS = ("x-death", "x-first-death-", "x-last-death-", _DELIVERY_COUNT, "x-acquired-count", "x-delay")
# Sender-selected distribution: a copy with these would also go to queues that have had the original.
_ROUTING_HEADERS = ("CC", "BCC")


def is_not_for_copies(name: str) -> bool:
    """Whether a copy must not carry this header."""
    return name in _ROUTING_HEADERS or name.startswith(_BROKER_HEADERS)


def returns_of(raw_properties: bytes) -> int:
    """How often a quorum queue has taken this message back; from 4.3 on only what counts as a failure."""
    return header_number(raw_properties, _DELIVERY_COUNT)
