"""Sizes and durations as people write and read them: ``10G``, ``512M``, ``7d``, ``10m``."""

from __future__ import annotations

import re
from typing import Final

from entrepot.core.errors import InvalidInput

_SIZE: Final = re.compile(r"([0-9]{1,19})(?:([KMGTP])(?:iB)?)?")
_DURATION: Final = re.compile(r"([0-9]{1,9})(s|m|h|d|w)")
_SIZES: Final = {None: 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_MAX_SIZE: Final = 2**62


def parse_size(text: str) -> int:
    """Bytes from a whole number, alone or with K, M, G, T or P (powers of 1,024; ``KiB`` and so on are the
    same).

    Raises InvalidInput; ``10GB`` is refused, for people disagree what it means.
    """
    match = _SIZE.fullmatch(text)
    size = -1 if match is None else int(match[1]) << _SIZES[match[2]]
    if not 0 <= size <= _MAX_SIZE:
        raise InvalidInput(f"{text[:50]!r} is no size", hint="Write a whole number with K, M, G, T or P: 512M, 10G.")
    return size


def parse_duration(text: str) -> float:
    """Seconds from a whole number with s, m, h, d or w. Raises InvalidInput."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text[:50]!r} is no duration", hint="Write a whole number with s, m, h, d or w: 10m, 7d.")
    return float(int(match[1]) * _SECONDS[match[2]])


def spell_size(size: int) -> str:
    """A size for people: exact below 1 KiB, else three digits or more: ``4.00 MiB``."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    value = size / (1 << 10 * power)
    if round(value) >= 1024 and power < len(_UNITS):
        power, value = power + 1, value / 1024
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {_UNITS[power - 1]}"


def spell_duration(seconds: float) -> str:
    """A duration in words, in its largest fitting unit: ``4 minutes``."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {unit}{'s' * (count != 1)}"
    count = round(seconds)
    return f"{count} second{'s' * (count != 1)}"
