from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.settings.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("1.5s", 1.5),
        ("5m", 300),
        ("1h", 3600),
        ("2d", 172_800),
        ("7", 7),
        ("0", 0),
        ("5 m", 300),
        (7, 7),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_a_number_and_a_unit_or_bare_seconds(written, seconds):
    """Durations are seconds."""
    parsed = parse_duration(written)
    assert parsed == seconds
    assert type(parsed) is float


@pytest.mark.parametrize(
    "written",
    ["5x", "", "s", "-5s", "1h30m", "5M", "1e3", "nan", "inf", " 5s", "5s\n", "٣s", "9" * 400 + "d", "1_000"],
)
def test_what_is_not_a_duration_says_what_to_write(written):
    """Nothing is guessed: every other text is refused with the units and an example."""
    with pytest.raises(ValueError) as caught:
        parse_duration(written)
    expected = f"{written!r} is not a duration: write a number and a unit (ms, s, m, h, d), like 30s"
    assert str(caught.value) == expected


@pytest.mark.parametrize("number", [-1, -0.5, math.nan, math.inf, -math.inf, True])
def test_numbers_that_are_no_duration_are_refused(number):
    """Negative, infinite and undefined numbers are no durations, and neither is True."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(number)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (5.0, "5s"),
        (300, "5m"),
        (0.5, "500ms"),
        (90, "90s"),
        (5400, "90m"),
        (86_400, "1d"),
        (0, "0s"),
        (1.5, "1500ms"),
        (0.0001, "0.0001s"),
    ],
)
def test_a_duration_is_written_in_its_largest_whole_unit(seconds, written):
    """Formatting is exact and short; queue names are made from it."""
    assert format_duration(seconds) == written


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_every_duration_survives_being_written_and_read(seconds):
    """parse_duration(format_duration(x)) is x."""
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(min_value=0, max_value=10**10))
def test_whole_milliseconds_never_need_a_fraction(milliseconds):
    """What was written in a unit is shown in a unit."""
    written = format_duration(parse_duration(f"{milliseconds}ms"))
    assert "." not in written
    assert parse_duration(written) == milliseconds / 1000


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("1GiB", 2**30),
        ("1TiB", 2**40),
        ("64KiB", 65_536),
        ("100MB", 100_000_000),
        ("10KB", 10_000),
        ("2TB", 2 * 10**12),
        ("1.5GiB", 3 * 2**29),
        ("12B", 12),
        ("12", 12),
        (12, 12),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_a_size_is_a_number_and_a_unit_or_bare_bytes(written, size):
    """KiB are 1024 bytes and KB are 1000."""
    parsed = parse_size(written)
    assert parsed == size
    assert type(parsed) is int


@pytest.mark.parametrize(
    "written", ["512m", "512M", "mib", "-1MiB", "1.5B", "1.0001KB", "", "10mb", -1, 1.5, True, 2**63]
)
def test_what_is_not_a_size_says_what_to_write(written):
    """Sizes are whole bytes within the kernel's limits; a unit is never guessed."""
    with pytest.raises(ValueError) as caught:
        parse_size(written)
    assert str(caught.value) == (
        f"{written!r} is not a size: write a number and a unit (B, KiB, MiB, GiB, KB, MB, GB), like 512MiB"
    )


@pytest.mark.parametrize(
    ("size", "written"),
    [(512 * 2**20, "512MiB"), (1000, "1KB"), (1001, "1001B"), (2**30, "1GiB"), (0, "0B"), (3 * 2**29, "1536MiB")],
)
def test_a_size_is_written_in_its_largest_whole_unit(size, written):
    """Formatting is exact and short."""
    assert format_size(size) == written


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_every_size_survives_being_written_and_read(size):
    """parse_size(format_size(x)) is x."""
    assert parse_size(format_size(size)) == size
