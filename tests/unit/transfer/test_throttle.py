"""Limits of bandwidth: what all transfers of a process move in a second."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from entrepot.adapters.transfer import CancelToken, Transfers, TransferSettings
from entrepot.adapters.transfer.throttle import Throttle
from entrepot.core.errors import RetryLater
from entrepot.core.rate import SLOWEST, Bandwidth

RATE = 1 << 20


class Clock:
    """Time that passes only when somebody waits, for all of them together."""

    def __init__(self) -> None:
        self.now = 0.0
        self.longest = 0.0
        self._guard = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        with self._guard:
            self.now += seconds
            self.longest = max(self.longest, seconds)


def test_a_second_holds_what_it_may() -> None:
    """Over 5 s it moves the rate to within 5 %, whatever pieces are asked for and given back."""
    clock, moved = Clock(), 0
    throttle = Throttle(RATE, clock=clock, pause=clock.pause)
    token = CancelToken()
    while clock.now < 5.0:
        count = throttle.take(1 << 20, token)
        assert count <= RATE // 20
        throttle.give_back(count // 3)
        moved += count - count // 3
    assert moved == pytest.approx(5 * RATE, rel=0.05)


def test_without_a_limit_nothing_waits() -> None:
    """All that is asked for may move at once."""
    clock = Clock()
    assert Throttle(None, clock=clock, pause=clock.pause).take(1 << 40, CancelToken()) == 1 << 40
    assert clock.now == 0.0


def test_who_is_stopped_stops_waiting() -> None:
    """A wait of many seconds ends soon after it is cancelled, and what it had reserved is others' again."""
    clock, token = Clock(), CancelToken()

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        token.set()

    throttle = Throttle(SLOWEST, clock=clock, pause=pause)
    while not token.is_set():  # until one had to wait: it was stopped while it did
        with contextlib.suppress(RetryLater):
            throttle.take(1 << 20, token)
    with pytest.raises(RetryLater) as caught:
        throttle.take(1 << 20, token)
    assert caught.value.kind == "cancelled"
    assert clock.longest <= 0.05


@pytest.fixture
async def slow() -> Transfers:
    return Transfers(TransferSettings(slots=3, bandwidth=Bandwidth(up=200_000, down=200_000)))


async def test_real_transfers_keep_to_it(bucket, stream, slow: Transfers) -> None:
    """Objects that go up and down at once, each in its own direction's time: none is faster than the limit, and what
    arrives is whole."""
    loop = asyncio.get_running_loop()
    total = sum(source.size for source in stream.sources)
    async with slow:
        began = loop.time()
        await asyncio.gather(*(slow.put(bucket.put(f"o{s.number}"), s) for s in stream.sources))
        took = loop.time() - began
        assert total / took <= 200_000 * 1.25
        for source in stream.sources:
            assert bucket.objects[f"/o{source.number}"] == stream.object(source.number)
        began = loop.time()
        async with await stream.here.begin(stream.stream, stream.opening, stream.lock, "hub/demo", "n") as fetch:
            await asyncio.gather(
                *(slow.get_object(bucket.get(f"o{s.number}"), fetch, s.number) for s in stream.sources)
            )
            took = loop.time() - began
            assert total / took <= 200_000 * 1.25
            assert await fetch.finish()


async def test_a_throttled_upload_is_cancelled_promptly(bucket, stream) -> None:
    """An upload that has a minute to go ends when it is told to; nothing of it stays in the bucket."""
    async with Transfers(TransferSettings(bandwidth=Bandwidth(up=SLOWEST))) as transfers:
        moved = asyncio.Event()
        loop = asyncio.get_running_loop()

        def progress(_: int) -> None:
            loop.call_soon_threadsafe(moved.set)

        token = CancelToken()
        going = asyncio.create_task(transfers.put(bucket.put(), stream.sources[0], progress, token))
        await asyncio.wait_for(moved.wait(), 10)
        token.set()
        with pytest.raises(RetryLater) as caught:
            await asyncio.wait_for(going, 10)
    assert caught.value.kind == "cancelled"
    assert "/o" not in bucket.objects
