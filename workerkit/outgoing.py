"""A message on its way to a broker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish: properties encoded, body as it goes over the wire."""

    exchange: str
    routing_key: str
    raw_properties: bytes
    body: bytes
    delay: float | None = None
