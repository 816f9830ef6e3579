"""Durations and sizes as people write them: ``30s``, ``512MiB``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from workerkit import declared
from workerkit.declared import DURATION, Duration, Size, alternatives, container, fields, item_type

SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
BYTES: Final = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "B": 1,
}

# Units are taken literally: `5M` and `512m` are refused, not guessed.
DURATION_PATTERN: Final = r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)?$"
SIZE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)? ?([KMGT]iB|[KMGT]?B)?$"

_WRITTEN: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_DURATIONS: Final[Mapping[str, int | Decimal]] = {**SECONDS, "ms": Decimal("0.001"), "": 1}
_SIZES: Final = {**BYTES, "": 1}
_LARGEST_SIZE: Final = 2**63 - 1
"""What the kernel's resource limits and AMQP's integers can hold."""


def parse_duration(value: str | float) -> Duration:
    """Seconds from ``500ms``, ``30s``, ``1.5s``, ``5m``, ``1h``, ``2d`` or a bare number of seconds.

    Raises:
        ValueError: it is not a number and a unit, it is negative, or it is not finite. The text says what to write.
    """
    seconds = float(_amount(value, _DURATIONS))
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{value!r} is not a duration: write a number and a unit (ms, s, m, h, d), like 30s")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest exact way to write ``seconds``: 300 is ``5m``, 0.5 is ``500ms``, 90 is ``90s``.

    ``parse_duration(format_duration(x)) == x`` for every finite ``x`` of at least 0.
    """
    if seconds == 0:
        return "0s"
    for unit, length in SECONDS.items():
        if seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    milliseconds = round(seconds * 1000)
    if milliseconds / 1000 == seconds:
        return f"{milliseconds}ms"
    return f"{Decimal(repr(float(seconds))):f}s"  # without an exponent


def parse_size(value: str | float) -> Size:
    """Bytes from ``512MiB``, ``1GiB``, ``64KiB``, ``100MB``, ``10KB``, ``1.5GiB`` or a bare number of bytes.

    ``KiB`` and its like are powers of 1024, ``KB`` and its like powers of 1000.

    Raises:
        ValueError: it is not a number and a unit, or not a whole number of bytes from 0 to 2**63-1. The text says
            what to write.
    """
    size = _amount(value, _SIZES)
    if isinstance(value, float) or not size.is_finite() or not 0 <= size <= _LARGEST_SIZE or size % 1:
        raise ValueError(
            f"{value!r} is not a size: write a number and a unit (B, KiB, MiB, GiB, KB, MB, GB), like 512MiB"
        )
    return int(size)


def _amount(value: str | float, units: Mapping[str, int | Decimal]) -> Decimal:
    """``value`` in seconds or bytes; NaN when it is no number with one of ``units``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(value)
    written = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    if written is None or written[2] not in units:
        return Decimal("NaN")
    return Decimal(written[1]) * units[written[2]]


def format_size(size: int) -> str:
    """The shortest exact way to write ``size`` bytes: 536870912 is ``512MiB``, 1000 is ``1KB``, 1001 is ``1001B``.

    ``parse_size(format_size(x)) == x`` for every ``x`` from 0 to 2**63-1.
    """
    if size == 0:
        return "0B"
    unit = next(unit for unit, length in BYTES.items() if size % length == 0)
    return f"{size // BYTES[unit]}{unit}"


def as_written(tp: Any, value: Any) -> Any:
    """``value``, declared as ``tp``, as one would write it in the YAML: plain, durations and sizes with their units."""
    if isinstance(value, msgspec.Struct):
        return {field.name: as_written(field.type, getattr(value, field.name)) for field in fields(type(value))}
    items = next((item_type(member) for member in alternatives(tp) if container(member)), Any)
    if isinstance(value, dict):
        return {key: as_written(items, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_written(items, item) for item in value]
    if isinstance(value, int | float) and (measure := declared.unit(tp)):
        return format_duration(value) if measure == DURATION else format_size(int(value))
    return value
