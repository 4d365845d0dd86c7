"""The rules of eviction, one by one."""

from __future__ import annotations

import pytest

from entrepot.core.errors import RetryLater
from entrepot_hub.core.eviction import (
    FIRST,
    LATENCY,
    MOST_COST,
    MOST_VISITS,
    SPARED,
    Candidate,
    Choice,
    Merit,
    arrived,
    choose,
    left,
    measured,
    standing,
    visited,
)
from entrepot_hub.core.pins import Pin, PinKind, Pinned, check_room


def candidate(key: str, at: float, **words: object) -> Candidate[str]:
    words.setdefault("visits", 0)
    return Candidate(key, 1, 10, at, **words)  # type: ignore[arg-type]


def test_a_cost_is_latency_and_upload_within_bounds() -> None:
    """A clock that ran backwards and a provider that slept are no measurements."""
    assert measured(3.0) == LATENCY + 3.0
    assert measured(-5.0) == LATENCY
    assert measured(1e9) == MOST_COST


def test_standing_counts_visits_and_powers_of_two() -> None:
    """What was not visited since its upload counts least; costs that differ by less than a measurement does are one."""
    assert standing(10.0, 0, 4.0) == 10.0 + FIRST * 4
    assert standing(10.0, 1, 4.0) == 18.0
    assert standing(10.0, 3, 4.0) == 26.0
    assert standing(0.0, 1, 3.6) == standing(0.0, 1, 4.4)
    assert standing(0.0, 1, 8.0) == 2 * standing(0.0, 1, 4.0)
    assert standing(0.0, 1, 0.0) == standing(0.0, 1, LATENCY)


def test_a_visit_lifts_to_the_level_of_now() -> None:
    """Visits are counted up to a limit."""
    merit = visited(Merit(visits=2, cost=4.0, standing=1.0), 100.0)
    assert merit == Merit(3, 4.0, 116.0)
    for _ in range(20):
        merit = visited(merit, 100.0)
    assert merit.visits == MOST_VISITS


def test_what_comes_back_within_a_quota_is_remembered() -> None:
    """Up to a quota of evicted bytes an object has its visits and one more; after that it is like a new one."""
    gone = left(Merit(visits=2, cost=4.0, standing=20.0), 1000)
    assert arrived(gone, 8.0, 5.0, 1500, 500) == Merit(3, 8.0, 5.0 + 4 * 8)
    assert arrived(gone, 8.0, 5.0, 1501, 500) == Merit(0, 8.0, 5.0 + FIRST * 8)
    assert arrived(Merit(), 8.0, 5.0, 0, 500).visits == 0
    assert arrived(gone, None, 5.0, 1500, 500).cost == 4.0


def test_nothing_leaves_for_no_need() -> None:
    """Neither without a need nor without a limit is a candidate looked at."""
    assert choose(iter([candidate("a", 1.0)]), 0, 5, 3.0, 0.0) == Choice((), (), 3.0)
    assert choose(iter([candidate("a", 1.0)]), 5, 0, 3.0, 0.0) == Choice((), (), 3.0)


def test_candidates_are_read_no_further_than_needed() -> None:
    """The next one stays where it is once there is room enough."""
    candidates = iter([candidate("a", 1.0), candidate("b", 2.0), candidate("c", 3.0)])
    assert choose(candidates, 20, 5, 0.0, 0.0).chosen == ("a", "b")
    assert next(candidates).key == "c"


def test_the_level_rises_by_what_was_visited_only() -> None:
    """What was read once tells nothing of how long things are worth keeping; and the level never falls."""
    assert choose([candidate("a", 5.0)], 10, 5, 1.0, 0.0).level == 1.0
    assert choose([candidate("a", 5.0, visits=1)], 10, 5, 1.0, 0.0).level == 5.0
    assert choose([candidate("a", 5.0, visits=1)], 10, 5, 9.0, 0.0).level == 9.0


def test_the_order_of_the_last_resorts() -> None:
    """What nobody online holds goes after all others, what a reader wants last; the former stand higher afterwards."""
    candidates = [
        candidate("wanted", 1.0, wanted=True),
        candidate("alone", 2.0, holders=0, cost=4.0),
        candidate("other", 3.0),
        candidate("last", 4.0),
    ]
    chosen = [choose(candidates, need, 5, 0.0, 0.0).chosen for need in (10, 20, 30, 40)]
    assert chosen[0] == ("other",)
    assert chosen[-1] == ("other", "last", "alone", "wanted")
    assert choose(candidates, 10, 5, 0.0, 0.0).raised == (("alone", standing(2.0, 1, 4.0)),)
    assert choose(candidates, 30, 5, 0.0, 0.0).raised == ()


def test_what_nobody_holds_is_spared_for_a_time() -> None:
    """Not used for a day it is a candidate like any other."""
    old = candidate("old", 1.0, holders=0, used_at=0.0)
    assert choose([old, candidate("b", 2.0)], 10, 5, 0.0, SPARED).chosen == ("old",)
    assert choose([old, candidate("b", 2.0)], 10, 5, 0.0, SPARED - 1).chosen == ("b",)


def test_pins_must_leave_the_reserve() -> None:
    """To the byte; the error says how much there is, how much is pinned and how much more was asked for."""

    def pinned(length: int | None, stored: int = 0) -> Pinned:
        return Pinned(Pin(bytes(32), PinKind.PIN, "admin", 0.0), length, 1, stored)

    check_room(100, [pinned(30), pinned(None, 10)], pinned(20), 40)
    with pytest.raises(RetryLater) as caught:
        check_room(100, [pinned(30), pinned(None, 10)], pinned(20, stored=21), 40)
    assert caught.value.kind == "over-quota"
    assert caught.value.data == {"quota": 100, "pinned": 40, "more": 21, "reserve": 40}
