"""How many requests at once: on links of all kinds, simulated."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.exchange.concurrency import Concurrency, Outcome

MIB = 1 << 20
STEP = 0.01


@dataclass
class _Request:
    begun: int
    left: float
    since: float
    silent: float


@dataclass
class Link:
    """A link that its requests share evenly, each at most ``each`` bytes/s and silent for ``latency`` seconds first.
    Above ``crowd`` requests it refuses some."""

    total: float
    each: float = float("inf")
    latency: float = 0.02
    crowd: int = 100
    size: int = 4 * MIB
    limits: list[int] = field(default_factory=list)

    def run(self, machine: Concurrency, seconds: float, *, supply: int = 100) -> float:
        """Bytes/s that came. ``supply``: as many requests are there to be made at once."""
        chance, now, came = random.Random(7), 0.0, 0.0
        under_way: list[_Request] = []
        while now < seconds:
            while len(under_way) < min(machine.limit, supply):
                under_way.append(_Request(machine.begun(), self.size, now, self.latency))
            share = min(self.each, self.total / len(under_way))
            for one in list(under_way):
                busy = len(under_way)
                if busy > self.crowd and chance.random() < 0.05:
                    under_way.remove(one)
                    machine.ended(one.begun, 0, now - one.since, Outcome.THROTTLED, busy=busy)
                    continue
                if one.silent > 0:
                    one.silent -= STEP
                    continue
                bytes_now = share * STEP * chance.uniform(0.95, 1.05)
                one.left -= bytes_now
                came += bytes_now
                if one.left <= 0:
                    under_way.remove(one)
                    machine.ended(one.begun, self.size, now - one.since + STEP, Outcome.WELL, busy=busy)
            self.limits.append(machine.limit)
            now += STEP
        return came / seconds

    def mostly(self) -> int:
        """The limit that held for most of the second half."""
        half = self.limits[len(self.limits) // 2 :]
        return max(set(half), key=half.count)


def test_a_link_that_one_request_fills_gets_few() -> None:
    """Where more requests bring nothing, few are made, and the link is used nevertheless."""
    link, machine = Link(total=12 * MIB), Concurrency()
    assert link.run(machine, 60) > 0.9 * 12 * MIB
    assert link.mostly() <= 2


def test_a_long_link_gets_many() -> None:
    """Where each request is slow and the link is not, as many are made as are allowed, soon."""
    link, machine = Link(total=400 * MIB, each=10 * MIB, latency=0.1), Concurrency()
    link.run(machine, 40)
    assert link.mostly() == machine.most
    assert link.limits[int(8 / STEP)] == machine.most


def test_it_stops_where_the_link_is_full() -> None:
    """Growth ends where the link is filled, between one request and the most."""
    link, machine = Link(total=50 * MIB, each=10 * MIB), Concurrency()
    assert link.run(machine, 60) > 0.85 * 50 * MIB
    assert 5 <= link.mostly() <= 8


def test_refusals_halve_it() -> None:
    """A 503 halves the limit at once, further ones of the same crowd do not; after a while one more is tried."""
    machine = Concurrency(start=8)
    first, second = machine.begun(), machine.begun()
    machine.ended(first, 0, 0.1, Outcome.THROTTLED, busy=8)
    assert machine.limit == 4
    machine.ended(second, 0, 0.1, Outcome.THROTTLED, busy=7)
    assert machine.limit == 4
    machine.ended(machine.begun(), 0, 0.1, Outcome.THROTTLED, busy=4)
    assert machine.limit == 2


def test_a_bucket_that_refuses_crowds_is_left_in_peace() -> None:
    """Most of the time no more requests are made than it takes."""
    link, machine = Link(total=200 * MIB, each=10 * MIB, crowd=6), Concurrency()
    link.run(machine, 60)
    within = sum(limit <= 6 for limit in link.limits) / len(link.limits)
    assert within > 0.85
    assert max(link.limits[int(5 / STEP) :]) <= 8


def test_a_slow_holder_says_nothing_of_the_link() -> None:
    """While fewer objects are ready than the limit allows, it stays what it was."""
    link, machine = Link(total=5 * MIB), Concurrency()
    link.run(machine, 30, supply=2)
    assert set(link.limits) == {4}


def test_a_limit_of_one_stays() -> None:
    """Where only one at once is allowed, one it is."""
    link, machine = Link(total=100 * MIB, each=MIB), Concurrency(start=4, most=1)
    link.run(machine, 20)
    assert set(link.limits) == {1}


@given(
    start=st.integers(0, 20),
    most=st.integers(0, 20),
    events=st.lists(
        st.tuples(
            st.sampled_from(Outcome),
            st.integers(0, 1 << 40),
            st.floats(0, 100),
            st.integers(1, 40),
            st.booleans(),
        ),
        max_size=200,
    ),
)
def test_it_stays_within_bounds(start: int, most: int, events: list[tuple[Outcome, int, float, int, bool]]) -> None:
    """Whatever it is told, the limit lies between 1 and the most, and no single word much more than doubles it."""
    machine = Concurrency(start, most)
    old = machine.begun()
    for outcome, count, seconds, busy, stale in events:
        before = machine.limit
        machine.ended(old if stale else machine.begun(), count, seconds, outcome, busy=busy)
        assert 1 <= machine.limit <= max(most, 1)
        assert machine.limit <= 2 * before + 1  # 3 is halved to 1, and that may be taken back
        if outcome is Outcome.THROTTLED and not stale:
            assert machine.limit == max(before // 2, 1)
        if outcome is Outcome.FAILED:
            assert machine.limit == before


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.WELL])
def test_trouble_that_is_not_a_refusal_changes_nothing(outcome: Outcome) -> None:
    """A reset, or requests that ended while fewer than the limit were under way, do not count."""
    machine = Concurrency()
    for _ in range(100):
        machine.ended(machine.begun(), MIB, 1.0, outcome, busy=4 if outcome is Outcome.FAILED else 3)
    assert machine.limit == 4
