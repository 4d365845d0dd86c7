"""Sizes, rates, durations and ranges as people write and read them: ``10G``, ``34.1 MiB/s``, ``1h30m``, ``0-1023``.

Reading is strict: one spelling rule, no guessing, a clear error. What is printed is binary, as in rclone and restic.
"""

from __future__ import annotations

import math
import re
from typing import Final

from entrepot.core.errors import InvalidInput

#: The largest offset.
MAX_SIZE: Final = 2**63 - 1
#: Ten years: longer than any wait, short enough for every clock.
MAX_SECONDS: Final = 3650 * 86400.0

_SIZE: Final = re.compile(r"([0-9]{1,19})(?:([KMGTP])(?:iB)?|([kmgtp]))?")
_SIZES: Final = {None: 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_LARGEST_SIZE: Final = 2**62
_LETTERS: Final = "KMGTPE"
_PART: Final = re.compile(r"([0-9]{1,12})(w|d|h|ms|m|s)")
_PLAIN: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_SECONDS: Final = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_LARGEST_FIRST: Final = tuple(_SECONDS)
_SPAN: Final = re.compile(r"([0-9]{1,19})-([0-9]{1,19})?")


def parse_size(text: str) -> int:
    """Bytes from a whole number, alone or with K, M, G, T or P (powers of 1,024; ``k`` and ``KiB`` are the same).

    Raises InvalidInput; ``10GB`` is refused, for people disagree what it means.
    """
    match = _SIZE.fullmatch(text)
    size = -1 if match is None else int(match[1]) << _SIZES[match[2] or (match[3] and match[3].upper())]
    if not 0 <= size <= _LARGEST_SIZE:
        raise InvalidInput(f"{text[:50]!r} is no size", hint="Write a whole number with K, M, G, T or P: 512M, 10G.")
    return size


def parse_duration(text: str) -> float:
    """Seconds: ``45``, ``0.5``, ``10m``, ``7d``, ``1h30m``, ``250ms``; units from large to small, each once.

    At most ten years. Raises :class:`InvalidInput`.
    """
    if _PLAIN.fullmatch(text) is not None:
        seconds = float(text)
    else:
        seconds, at, last = 0.0, 0, -1
        while at < len(text):
            found = _PART.match(text, at)
            rank = _LARGEST_FIRST.index(found[2]) if found is not None else -1
            if found is None or rank <= last:
                break
            seconds += int(found[1]) * _SECONDS[found[2]]
            at, last = found.end(), rank
        if at < len(text) or not text:
            raise _invalid(f"{text[:40]!r} is not a duration", "Write it like 45s, 10m, 7d or 1h30m.")
    if seconds > MAX_SECONDS:
        raise _invalid(f"{text!r} is too long", "The longest duration is ten years.")
    return seconds


def parse_span(text: str) -> tuple[int, int | None]:
    """``(offset, length)`` of the bytes ``FIRST-LAST``, both included, as in HTTP; ``FIRST-`` goes to the end.

    Raises :class:`InvalidInput`.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise _invalid(f"{text[:60]!r} is not a range of bytes", "Write the first and the last byte, like 0-1023")
    first = int(found[1])
    if first > MAX_SIZE:
        raise _invalid(f"the range {text} begins too far out", "The largest offset is 2^63 - 1.")
    if found[2] is None:
        return first, None
    last = int(found[2])
    if last < first:
        raise _invalid(f"the range {text} ends before it begins", "Write the first and the last byte, like 0-1023")
    return first, min(last, MAX_SIZE) - first + 1


def format_size(size: float) -> str:
    """Three digits or so and a binary unit: ``0 B``, ``1023 B``, ``1.5 KiB``, ``117 GiB``."""
    value, unit = float(max(size, 0)), 0
    while unit < len(_LETTERS) and float(_shown(value)) >= 1024:
        value /= 1024
        unit += 1
    if unit == 0:
        return f"{int(value)} B"
    return f"{_shown(value)} {_LETTERS[unit - 1]}iB"


def format_rate(rate: float) -> str:
    """Bytes per second: ``34.1 MiB/s``."""
    return f"{format_size(rate)}/s"


def format_duration(seconds: float) -> str:
    """The two largest units: ``0s``, ``45s``, ``1m20s``, ``3h``, ``2d4h``; whole seconds, rounded up."""
    if not math.isfinite(seconds) or seconds > MAX_SECONDS:
        return "very long"
    left = math.ceil(max(seconds, 0.0))
    for large, small in (("d", "h"), ("h", "m"), ("m", "s")):
        size, part = int(_SECONDS[large]), int(_SECONDS[small])
        # Rounded before it is split, so that nothing reads 1h60m.
        rounded = -(-left // part) * part
        if rounded >= size:
            count, rest = divmod(rounded, size)
            return f"{count}{large}{rest // part}{small}" if rest else f"{count}{large}"
    return f"{left}s"


def spell_duration(seconds: float) -> str:
    """A duration in words, in its largest fitting unit: ``4 minutes``."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {unit}{'s' * (count != 1)}"
    count = round(seconds)
    return f"{count} second{'s' * (count != 1)}"


def _shown(value: float) -> str:
    text = f"{value:.1f}"
    return text if float(text) < 100 else f"{value:.0f}"


def _invalid(message: str, hint: str) -> InvalidInput:
    return InvalidInput(message, kind="invalid-input", hint=hint)
