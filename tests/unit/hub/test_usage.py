"""Counts by day: adding them up, splitting time into days, the calendar."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot_hub.core.usage import (
    COUNTS,
    DAY,
    NOTHING,
    Meter,
    Tally,
    civil,
    day_number,
    day_of,
    iso_day,
    month_days,
    month_of,
    stored_since,
    total,
)

EPOCH = dt.date(1970, 1, 1)
days = st.integers(min_value=0, max_value=100_000)
tallies = st.builds(Tally, **{name: st.integers(min_value=0, max_value=2**40) for name in COUNTS})
places = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["", "N"]), st.integers(min_value=0, max_value=2))


@given(day=days)
def test_the_calendar_is_that_of_everybody(day: int) -> None:
    """Days and dates agree with the standard library's, both ways."""
    date = EPOCH + dt.timedelta(days=day)
    assert civil(day) == (date.year, date.month, date.day)
    assert day_number(date.year, date.month, date.day) == day
    assert iso_day(day) == date.isoformat()
    assert month_of(day) == date.isoformat()[:7]


@given(day=days)
def test_a_month_holds_its_days(day: int) -> None:
    """A day lies in its month, whose first and last days are the calendar's."""
    first, after = month_days(month_of(day))
    assert first <= day < after
    assert civil(first)[2] == 1
    assert civil(after)[2] == 1
    assert month_of(after) != month_of(after - 1) == month_of(first)


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "2026-1", "2026-00", "26-01", "2026-01-01", "２０２６-01"])
def test_what_is_no_month_is_refused(text: str) -> None:
    """Only a year and a month of two digits are one."""
    with pytest.raises(InvalidInput):
        month_days(text)


@given(batches=st.lists(st.lists(st.tuples(places, tallies), max_size=8), max_size=8), lost=st.sets(st.integers(0, 7)))
def test_counts_add_up_however_they_are_taken(
    batches: list[list[tuple[tuple[str, str, int], Tally]]], lost: set[int]
) -> None:
    """Whatever is counted, taken, and put back where it could not be kept: in the end it is all there, once."""
    meter, kept = Meter(), dict[tuple[str, str, int], Tally]()
    for turn, batch in enumerate(batches):
        for place, tally in batch:
            meter.add(*place, tally)
        taken = meter.take()
        if turn in lost:
            meter.put_back(taken)
            continue
        for place, tally in taken.items():
            kept[place] = kept.get(place, NOTHING) + tally
    for place, tally in meter.items():
        kept[place] = kept.get(place, NOTHING) + tally
    everything = [pair for batch in batches for pair in batch]
    for place in {place for place, _ in everything} | kept.keys():
        assert kept.get(place, NOTHING) == total(tally for where, tally in everything if where == place)


@given(
    stored=st.integers(min_value=0, max_value=2**40),
    since=st.integers(min_value=0, max_value=20 * DAY),
    cuts=st.lists(st.integers(min_value=0, max_value=5 * DAY), max_size=6),
)
def test_bytes_stored_count_every_second_once(stored: int, since: int, cuts: list[int]) -> None:
    """However often it is looked, the byte-seconds are bytes times seconds, each day's part within the day."""
    at, found = since, dict[int, float]()
    for cut in cuts:
        for day, part in stored_since(stored, at, at + cut).items():
            found[day] = found.get(day, 0) + part
        at += cut
    assert sum(found.values()) == pytest.approx(stored * (at - since), rel=1e-12)  # doubles: rounded, never lost
    assert all(part <= stored * DAY * (1 + 1e-12) for part in found.values())
    assert all(day_of(since) <= day <= day_of(at) for day in found)


def test_nothing_is_stored_while_time_runs_backwards() -> None:
    """A clock that went back adds nothing and takes nothing away."""
    assert stored_since(1000, 50.0, 40.0) == {}


def test_two_days_share_what_lay_over_midnight() -> None:
    """1,000 bytes from an hour before midnight to two hours after it: one hour here, two there."""
    assert stored_since(1000, DAY - 3600.0, DAY + 7200.0) == {0: 3_600_000.0, 1: 7_200_000.0}
