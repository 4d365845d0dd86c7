"""Sizes and durations for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot.core.quantities import parse_duration, parse_size, spell_duration, spell_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1", 1), ("1K", 1024), ("512M", 512 << 20), ("10G", 10 << 30), ("3TiB", 3 << 40), ("4P", 4 << 50)],
)
def test_sizes(text, size):
    """Whole numbers with binary units."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "10GB", "1 G", "1g", "1KB", "٣", "9" * 19, "9999P", "1e3"])
def test_what_is_no_size(text):
    """Signs, fractions, blanks, decimal units and too much are refused."""
    with pytest.raises(InvalidInput):
        parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604800), ("1w", 604800)])
def test_durations(text, seconds):
    """Whole numbers with a unit."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "1 d", "1D", "1y", "1M", "1h30m"])
def test_what_is_no_duration(text):
    """A unit is needed, and one of ours."""
    with pytest.raises(InvalidInput):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (4 << 20, "4.00 MiB"),
        (10 << 30, "10.0 GiB"),
        ((1 << 30) - 1, "1.00 GiB"),
        (123 << 40, "123 TiB"),
        (5000 << 50, "5000 PiB"),
    ],
)
def test_sizes_are_spelled(size, text):
    """Three digits and a binary unit."""
    assert spell_size(size) == text


@given(st.integers(0, 2**62))
def test_a_spelled_size_is_close(size):
    """What people read is within half a percent of what is meant."""
    number, unit = spell_size(size).split()
    power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(float(number) * 1024**power - size) <= size * 0.006


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 seconds"), (1, "1 second"), (59, "59 seconds"), (60, "1 minute"), (240, "4 minutes"), (86400, "1 day")],
)
def test_durations_are_spelled(seconds, text):
    """In the largest unit that fits."""
    assert spell_duration(seconds) == text
