"""Limits of bandwidth: how they are written, and the bucket of tokens that keeps to one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.rate import BURST, SLOWEST, Bandwidth, TokenBucket


@pytest.mark.parametrize(
    ("text", "up", "down", "written"),
    [
        ("10M", 10 << 20, 10 << 20, "10M"),
        ("2M:10M", 2 << 20, 10 << 20, "2M:10M"),
        ("off", None, None, "off"),
        ("OFF:1G", None, 1 << 30, "off:1G"),
        ("100000:off", 100_000, None, "100000:off"),
        ("1024k", 1 << 20, 1 << 20, "1M"),
    ],
)
def test_limits_are_read_as_they_are_written(text: str, up: int | None, down: int | None, written: str) -> None:
    """One rate for both ways, two for up and down, ``off`` for none; written back in the shortest form."""
    found = Bandwidth.parse(text)
    assert (found.up, found.down, str(found)) == (up, down, written)
    assert Bandwidth.parse(written) == found


@pytest.mark.parametrize("text", ["", ":", "10", "31K", "fast", "1M:", ":1M", "1M:2M:3M", "-1M", "1.5M", "1MB/s"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    """What cannot be read, or is too slow for a lease, is an error that says how to write it."""
    with pytest.raises(InvalidInput) as caught:
        Bandwidth.parse(text)
    assert caught.value.hint is not None


@given(
    rate=st.integers(SLOWEST, 1 << 34),
    threads=st.integers(1, 16),
    lateness=st.floats(0, 0.02),
    unused=st.floats(0, 0.9),
    seed=st.integers(0, 1000),
)
def test_the_rate_is_kept(rate: int, threads: int, lateness: float, unused: float, seed: int) -> None:
    """However many ask, however late they wake and however much of it they give back, at most the rate moves and a
    burst; and over 5 s not less than 95 % of it."""
    chance, bucket = random.Random(seed), TokenBucket(rate)
    wakes = [0.0] * threads
    moved: list[tuple[float, int]] = []
    while (now := min(wakes)) < 5.0:
        one = wakes.index(now)
        at = now + bucket.reserve(bucket.quantum, now) + chance.uniform(0, lateness)
        count = bucket.quantum
        if chance.random() < 0.1:  # a socket takes less than was asked for
            back = int(count * unused)
            bucket.refund(back)
            count -= back
        moved.append((at, count))
        wakes[one] = at + 1e-6
    moved.sort()
    within = [(at, count) for at, count in moved if at < 5.0]
    assert sum(count for _, count in within) >= 0.95 * rate * 5.0 - threads * bucket.quantum
    # In any stretch of a second: who woke late moves what was due before.
    for start in (0.0, 1.3, 3.7):
        stretch = sum(count for at, count in moved if start <= at < start + 1.0)
        assert stretch <= rate * (1.0 + BURST + lateness) + threads * bucket.quantum


def test_no_burst_after_a_pause() -> None:
    """What was not used in an idle hour is not made up for: at once moves 50 ms of the rate."""
    bucket = TokenBucket(1 << 20)
    assert bucket.reserve(bucket.quantum, 0.0) == 0.0
    now, at_once = 3600.0, 0
    while bucket.reserve(bucket.quantum, now) <= 0.0:
        at_once += bucket.quantum
    assert at_once <= (1 << 20) * BURST * 1.01


def test_a_small_rate_moves_few_objects_at_once() -> None:
    """Each upload keeps the floor of its lease with some to spare, and a miniblock is verified long before the want
    ends; without a limit nothing changes."""
    settings = ExchangeSettings()
    assert settings.throttled(None, None) == settings
    for up in (SLOWEST, 64 << 10, 256 << 10, 1 << 30):
        slots = settings.throttled(up, None).slots
        assert 1 <= slots <= settings.slots
        assert up / slots >= settings.floor_rate * 2
    assert [settings.throttled(up, None).queue for up in (64 << 10, 2 << 20, 1 << 30)] == [0, 1, 8]
    slow = settings.throttled(None, 64 << 10)
    assert (slow.fetches, slow.fetches_most) == (1, 1)
    assert settings.throttled(None, 1 << 20).fetches_most == 15
