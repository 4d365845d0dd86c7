"""Sizes, rates, durations and ranges as the commands print and read them."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot.core.units import (
    MAX_SECONDS,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_size,
    parse_span,
    spell_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("45", 45),
        ("0.5", 0.5),
        ("45s", 45),
        ("10m", 600),
        ("7d", 604800),
        ("1h30m", 5400),
        ("2w", 1209600),
        ("250ms", 0.25),
        ("1m1s1ms", 61.001),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    """A number is seconds; units stand from large to small."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "10M", "1.5h", "30m1h", "1m1m", "10 m", "1h ", "1y", "inf", "nan", "١m"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """No sign, no blank, no unit twice or out of order, no other digits."""
    with pytest.raises(InvalidInput, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["3651d", "999999999999", "999999999999w"])
def test_a_duration_has_a_bound(text: str) -> None:
    """More than ten years is refused."""
    with pytest.raises(InvalidInput, match="too long"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "span"), [("0-0", (0, 1)), ("0-1023", (0, 1024)), ("5-", (5, None)), ("7-9", (7, 3))])
def test_a_range_is_read_as_in_http(text: str, span: tuple[int, int | None]) -> None:
    """Both ends are included, and the last may be left out."""
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["", "-", "-5", "5", "9-7", "0-1-2", "0x0-1", " 0-1", "0-1 ", "a-b", "9" * 19 + "-"])
def test_what_is_no_range_is_refused(text: str) -> None:
    """A suffix range, a reversed one and anything else is an error."""
    with pytest.raises(InvalidInput):
        parse_span(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (-5, "0 B"),
        (117 * 2**30, "117 GiB"),
        (int(99.99 * 2**20), "100 MiB"),
        (2**63, "8.0 EiB"),
    ],
)
def test_a_size_is_shown(size: int, text: str) -> None:
    """Three digits or so, binary, and never 1024 of a unit."""
    assert format_size(size) == text


def test_a_rate_is_a_size_per_second() -> None:
    """A rate is shown per second."""
    assert format_rate(1.5 * 2**20) == "1.5 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.2, "1s"),
        (59, "59s"),
        (60, "1m"),
        (80, "1m20s"),
        (3599, "1h"),
        (3661, "1h2m"),
        (90000, "1d1h"),
        (float("inf"), "very long"),
        (float("nan"), "very long"),
        (1000000000000.0, "very long"),
        (-1, "0s"),
    ],
)
def test_a_duration_is_shown(seconds: float, text: str) -> None:
    """The two largest units, rounded up."""
    assert format_duration(seconds) == text


@given(st.integers(0, 2**63))
def test_a_shown_size_is_about_the_size(size: int) -> None:
    """What is shown is a readable size within five percent."""
    text = format_size(size)
    found = re.fullmatch(r"(\d{1,4}(?:\.\d)?) (B|[KMGTPE]iB)", text)
    assert found is not None
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(found[2])
    assert abs(float(found[1]) * factor - size) <= size / 20


@given(st.floats(0, MAX_SECONDS))
def test_a_shown_duration_is_never_too_short(seconds: float) -> None:
    """What is shown can be read again and is not less than the duration."""
    assert parse_duration(format_duration(seconds)) >= seconds


@given(st.text(max_size=30))
def test_reading_any_text_gives_a_value_or_our_error(text: str) -> None:
    """Whatever is written, the readers answer or refuse."""
    for read in (parse_duration, parse_span):
        with contextlib.suppress(InvalidInput):
            assert read(text) is not None


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1", 1), ("1K", 1024), ("512M", 512 << 20), ("10G", 10 << 30), ("3TiB", 3 << 40), ("4P", 4 << 50)],
)
def test_sizes(text: str, size: int) -> None:
    """Whole numbers with binary units."""
    assert parse_size(text) == size


@pytest.mark.parametrize("unit", "KMGTP")
def test_a_unit_may_be_lower_case(unit: str) -> None:
    """``10g`` is what ``10G`` is."""
    assert parse_size(f"10{unit.lower()}") == parse_size(f"10{unit}")


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1.5G", "10GB", "1 G", "1gb", "1gib", "1KB", "٣", "9" * 19, "9999P", "1e3"]
)
def test_what_is_no_size(text: str) -> None:
    """Signs, fractions, blanks, decimal units and too much are refused."""
    with pytest.raises(InvalidInput):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 seconds"), (1, "1 second"), (59, "59 seconds"), (60, "1 minute"), (240, "4 minutes"), (86400, "1 day")],
)
def test_durations_are_spelled(seconds: float, text: str) -> None:
    """In the largest unit that fits."""
    assert spell_duration(seconds) == text
