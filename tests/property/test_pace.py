"""What a transfer costs on given links, in virtual time: little more than the slower of its two halves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulation.pace import MBIT, Pace

GIGABIT = 1000 * MBIT


def ideal(world: Pace) -> float:
    """Seconds that the bytes alone need."""
    up, down = sum(link.rate for link in world.up.values()), min(link.rate for link in world.down.values())
    return world.size / min(up, down)


@pytest.mark.parametrize(
    ("up", "down", "message", "trip", "objects"),
    [
        (GIGABIT, GIGABIT, 0.005, 0.005, 256),
        (50 * MBIT, 500 * MBIT, 0.02, 0.04, 64),
        (10 * MBIT, GIGABIT, 0.02, 0.04, 32),
    ],
    ids=["a gigabit both ways", "50 Mbit/s up, 40 ms away", "10 Mbit/s up, 40 ms away"],
)
def test_a_transfer_costs_its_slower_half(
    up: float, down: float, message: float, trip: float, objects: int, report: Callable[..., None]
) -> None:
    """While one object comes down the next goes up, and nothing goes up twice."""
    world = Pace(objects=objects, up=[up], down=[down], message=message, trip=trip)
    seconds = world.run()
    assert seconds <= 1.10 * ideal(world)
    assert world.sent == pytest.approx(world.size)
    assert not world.takeovers
    report("pace", links=f"{up / MBIT:g}/{down / MBIT:g}", seconds=round(seconds, 2), ideal=round(ideal(world), 2))


@pytest.mark.parametrize("up", [(100, 10), (10, 100), (100, 100, 5), (100, 1)], ids=lambda up: "/".join(map(str, up)))
def test_a_slow_holder_does_not_hold_the_tail(up: tuple[int, ...], report: Callable[..., None]) -> None:
    """Of several holders one is ten and more times slower: it takes about as long as their uplinks together need,
    little is sent in vain, no object is taken over twice, and nobody's reputation suffers."""
    world = Pace(objects=64, up=[each * MBIT for each in up], down=[GIGABIT])
    seconds = world.run()
    assert seconds <= 1.25 * ideal(world)
    assert world.sent <= 1.1 * world.size
    numbers = [number for number, _, _ in world.takeovers]
    assert numbers
    assert len(numbers) == len(set(numbers))
    slowest = f"holder{up.index(min(up))}"
    assert {slow for _, slow, _ in world.takeovers} == {slowest}
    (found,) = world.rounds._rounds.values()
    assert not found.failures
    assert not found.excluded
    report("pace", links="/".join(map(str, up)), seconds=round(seconds, 2), ideal=round(ideal(world), 2))


@pytest.mark.parametrize("up", [(100, 100), (10, 10, 10), (100, 70)], ids=lambda up: "/".join(map(str, up)))
def test_among_equals_nothing_is_taken_over(up: tuple[int, ...]) -> None:
    """Holders that are about as fast as one another share a stream evenly, each object is sent once."""
    world = Pace(objects=64, up=[each * MBIT for each in up], down=[GIGABIT])
    assert world.run() <= 1.25 * ideal(world)
    assert world.sent == pytest.approx(world.size)
    assert not world.takeovers


def test_a_holder_that_stands_still_is_passed_by() -> None:
    """An uplink that brings next to nothing costs its share of the first window for some seconds, not a lease for each
    of its objects, and its upload is stopped."""
    world = Pace(objects=64, up=[100 * MBIT, 0.01 * MBIT], down=[GIGABIT])
    assert world.run() <= 1.5 * ideal(world)
    assert world.takeovers
    assert not world.up["holder1"].flows


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 24),
    st.lists(st.sampled_from((5, 10, 30, 100, 1000)), min_size=1, max_size=4),
    st.integers(1, 2),
    st.booleans(),
)
def test_one_upload_lives_for_each_object(objects: int, up: list[int], readers: int, in_order: bool) -> None:
    """Whatever the uplinks are: everything arrives, an object goes up once, and once more only where it was taken
    over from one that is at most half as fast; and no more is lost by that than was under way."""
    world = Pace(objects=objects, up=[each * MBIT for each in up], down=[GIGABIT] * readers, in_order=in_order)
    world.run()
    taken = {number: (slow, fast) for number, slow, fast in world.takeovers}
    assert len(taken) == len(world.takeovers)
    for number, senders in world.uploads.items():
        assert len(senders) == 1 or (len(senders) == 2 and tuple(senders) == taken[number])
    for slow, fast in taken.values():
        assert world.up[fast].rate >= 2 * world.up[slow].rate
    slots = world.settings.slots * world.geometry.object_length(0)
    assert world.sent <= world.size + (slots * len(up) if taken else 1)
