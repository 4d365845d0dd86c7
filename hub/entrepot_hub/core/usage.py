"""What a channel's traffic comes to: counts by node and UTC day, gathered in memory and added up anywhere.

A :class:`Tally` only ever grows by adding, so hubs need not agree on anything: each adds what it saw. Days are whole
UTC days since the epoch; months are written "2026-11".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Final

from entrepot.core.errors import InvalidInput

DAY: Final = 86_400
#: The node that stands for the hub itself, in what it does in the bucket of its own accord.
HUB: Final = ""
_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What was counted. ``uploads`` and ``uploaded`` (bytes): objects that arrived. ``downloads`` and ``downloaded``:
    signed for reading, an upper bound of what was read. ``requests_a``: writes and lists, ``requests_b``: looks and
    reads, ``deletes``: requests to the provider. ``evicted``: bytes. ``byte_seconds``: bytes stored times seconds."""

    uploads: int = 0
    uploaded: int = 0
    downloads: int = 0
    downloaded: int = 0
    requests_a: int = 0
    requests_b: int = 0
    deletes: int = 0
    evicted: int = 0
    byte_seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in COUNTS})

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in COUNTS)


#: The names of all that is counted.
COUNTS: Final = tuple(field.name for field in fields(Tally))
NOTHING: Final = Tally()

#: Where something is counted: channel, node (:data:`HUB` for the hub), day.
type Place = tuple[str, str, int]


class Meter:
    """Counts that wait to be kept. Not thread-safe: it belongs to one event loop."""

    def __init__(self) -> None:
        self._counts: dict[Place, Tally] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, channel: str, node: str, day: int, tally: Tally) -> None:
        """Count something."""
        place = (channel, node, day)
        known = self._counts.get(place)
        self._counts[place] = tally if known is None else known + tally

    def take(self) -> dict[Place, Tally]:
        """All counts, which are now somebody else's to keep."""
        taken, self._counts = self._counts, {}
        return taken

    def put_back(self, counts: Mapping[Place, Tally]) -> None:
        """Counts that could not be kept."""
        for (channel, node, day), tally in counts.items():
            self.add(channel, node, day, tally)

    def items(self) -> Iterator[tuple[Place, Tally]]:
        """What waits."""
        return iter(self._counts.items())


def total(tallies: Iterable[Tally]) -> Tally:
    """All of them together."""
    found = NOTHING
    for tally in tallies:
        found += tally
    return found


def day_of(now: float) -> int:
    """The UTC day of a moment."""
    return int(now // DAY)


def stored_since(stored: int, since: float, now: float) -> dict[int, float]:
    """``stored`` bytes lay there from ``since`` to ``now``: byte-seconds by day. Nothing when time ran backwards."""
    found: dict[int, float] = {}
    at = since
    while at < now:
        day = day_of(at)
        end = min(float((day + 1) * DAY), now)
        found[day] = stored * (end - at)
        at = end
    return found


def civil(day: int) -> tuple[int, int, int]:
    """Year, month and day of the month in the proleptic Gregorian calendar. (A clock is no part of the core, and so
    neither is the library that comes with one; this is the well-known count of days in eras of 400 years from 1 March.)
    """
    era, of_era = divmod(day + 719_468, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year + era * 400 + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1


def day_number(year: int, month: int, day: int) -> int:
    """The inverse of :func:`civil`."""
    shifted = year - (month <= 2)
    era, of_era = divmod(shifted, 400)
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def iso_day(day: int) -> str:
    """A day as "2026-11-21"."""
    return "{:04}-{:02}-{:02}".format(*civil(day))


def month_of(day: int) -> str:
    """The month of a day."""
    year, month, _ = civil(day)
    return f"{year:04}-{month:02}"


def month_days(month: str) -> tuple[int, int]:
    """The first day of a month and the first day after it. InvalidInput for what is no month."""
    match = _MONTH.fullmatch(month)
    if match is None:
        raise InvalidInput(f"{month[:20]!r} is no month", hint="Write a year and a month, like 2026-11.")
    year, number = int(match[1]), int(match[2])
    after = (year + 1, 1) if number == 12 else (year, number + 1)
    return day_number(year, number, 1), day_number(*after, 1)
