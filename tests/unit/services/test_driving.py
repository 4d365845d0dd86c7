"""Drivers, lifetimes, meters, estimates and samples: the small machinery of the services."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Seek
from entrepot.core.nkeys import KeyKind, encode_public
from entrepot.services.driver import Driver
from entrepot.services.estimate import Assumptions, estimate, ready_bytes
from entrepot.services.lifetime import Lifetime
from entrepot.services.progress import Meter, Progress
from entrepot.services.providing import sampled
from entrepot.services.settings import NodeSettings


class Alarm:
    """A machine that wants to be called at certain times."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)
        self.called: list[float] = []

    def tick(self, now: float) -> list[str]:
        self.called.append(now)
        while self.times and self.times[0] <= now:
            self.times.pop(0)
        return ["rang"]

    def timer(self) -> float | None:
        return self.times[0] if self.times else None


async def test_a_machine_is_called_when_it_wants_to_be() -> None:
    """The driver ticks at each time that the machine names, never before, also at one named later."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    alarm = Alarm(start + 0.02, start + 0.05)
    rung: list[str] = []
    driver: Driver[str] = Driver(alarm, rung.append, loop.time)
    task = asyncio.create_task(driver.run())
    async with asyncio.timeout(10):
        while len(rung) < 2:
            await asyncio.sleep(0.005)
        alarm.times = [loop.time()]
        driver.feed(lambda now: ["fed"])
        while len(rung) < 4:
            await asyncio.sleep(0.005)
    task.cancel()
    assert alarm.called[0] >= start + 0.02
    assert alarm.called[1] >= start + 0.05
    assert rung == ["rang", "rang", "fed", "rang"]


async def test_effects_are_finished_before_the_next_event() -> None:
    """An event that is fed while effects are performed comes after them."""
    done: list[str] = []

    def perform(effect: str) -> None:
        done.append(effect)
        if effect == "first":
            driver.feed(lambda now: ["third"])

    driver: Driver[str] = Driver(Alarm(), perform, lambda: 0.0)
    driver.feed(lambda now: ["first", "second"])
    assert done == ["first", "second", "third"]


async def test_a_lifetime_is_entered_and_left_by_one_task() -> None:
    """Whoever starts and closes it, the context manager sees one task; closing twice is closing once."""
    seen: list[object] = []

    @asynccontextmanager
    async def manager() -> AsyncIterator[str]:
        seen.append(asyncio.current_task())
        yield "value"
        seen.append(asyncio.current_task())

    lifetime = Lifetime(manager)
    assert await asyncio.create_task(lifetime.start()) == "value"
    assert not lifetime.ended
    await asyncio.create_task(lifetime.aclose())
    await lifetime.aclose()
    assert seen[0] is seen[1]
    assert lifetime.ended


async def test_a_lifetime_tells_what_entering_and_leaving_raise() -> None:
    """Errors of both ends reach the one who called."""

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ValueError("in")
        yield

    @asynccontextmanager
    async def breaking() -> AsyncIterator[None]:
        yield
        raise ValueError("out")

    with pytest.raises(ValueError, match="in"):
        await Lifetime(broken).start()
    lifetime = Lifetime(breaking)
    await lifetime.start()
    with pytest.raises(ValueError, match="out"):
        await lifetime.aclose()


async def test_a_start_that_is_cancelled_leaves_nothing_open() -> None:
    """Cancelling the start cancels what is being entered."""
    left = asyncio.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            await asyncio.sleep(60)
            yield
        finally:
            left.set()

    starting = asyncio.create_task(Lifetime(slow).start())
    await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert left.is_set()


async def test_a_meter_tells_now_and_then_and_the_end() -> None:
    """Many counts, also from threads, become a few calls on the loop with the last count among them."""
    now = [0.0]
    told: list[Progress] = []
    meter = Meter("get", told.append, asyncio.get_running_loop(), clock=lambda: now[0])

    def work() -> None:
        for at in range(1, 1001):
            now[0] += 0.01
            meter.count(at * 1000, 1_000_000, "waiting" if at < 10 else None)

    await asyncio.to_thread(work)
    meter.close()
    await asyncio.sleep(0)
    assert 50 <= len(told) <= 110
    assert (told[-1].done, told[-1].total, told[-1].note) == (1_000_000, 1_000_000, None)
    assert told[-1].rate == pytest.approx(100_000, rel=0.05)
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)


def test_an_estimate_is_the_slower_half_and_what_leaves_the_bucket() -> None:
    """What lies in the bucket needs no upload; the price is egress and requests; nothing missing costs nothing."""
    lock = SchemaLock("demo")
    geometry = Geometry(1 << 40, lock)
    given = Assumptions(upload=1e6, download=2e6)
    cold = estimate(geometry, 1 << 40, 0, given)
    assert cold.seconds == pytest.approx((1 << 40) / 1e6 + 1.0)
    assert cold.dollars == pytest.approx(90 + 1.42, abs=0.01)
    warm = estimate(geometry, 1 << 40, 1 << 40, given)
    assert warm.upload == 0
    assert warm.seconds == pytest.approx((1 << 40) / 2e6)
    assert estimate(geometry, 0, 0, given).dollars == 0.0


def test_an_estimate_counts_objects_not_what_they_are_packed_into() -> None:
    """All objects that are there leave nothing to upload, however few bytes the codec made of them."""
    geometry = Geometry((50 << 20) + 1, SchemaLock("demo", "zstd"))
    assert ready_bytes(geometry, geometry.object_count) == geometry.length
    assert estimate(geometry, geometry.length, ready_bytes(geometry, geometry.object_count)).upload == 0
    assert estimate(geometry, geometry.length, ready_bytes(geometry, 12)).upload == (2 << 20) + 1


def test_a_sample_is_a_share_of_the_channel() -> None:
    """Each node answers a seek for a stream alike every time, and about the share that is asked does."""
    nodes = [encode_public(KeyKind.USER, os.urandom(32)) for _ in range(2000)]
    seek = Seek(lock=bytes(8), stream=b"\xff" + os.urandom(31), hub="0" * 16, sample=65536 // 4)
    chosen = [node for node in nodes if sampled(seek, node)]
    assert 350 < len(chosen) < 650
    assert chosen == [node for node in nodes if sampled(seek, node)]
    everyone = Seek(lock=bytes(8), stream=seek.stream, hub="0" * 16)
    assert all(sampled(everyone, node) for node in nodes)


def test_settings_keep_secrets_and_spare_this_machine() -> None:
    """A proxy's password is not shown; a hub on this machine is reached without the proxy."""
    settings = NodeSettings(home=Path("home"), proxy="http://me:secret@proxy:8080", ca_file="ca.pem")
    assert "secret" not in repr(settings)
    assert settings.hub_settings("https://hub.example.org").proxy == settings.proxy
    assert settings.hub_settings("http://127.0.0.1:8480").proxy is None
    assert settings.hub_settings("http://[::1]:8480").proxy is None
    assert settings.hub_settings("https://hub.example.org:8443").ca_file == "ca.pem"
    assert settings.transfer_settings().https_proxy == settings.proxy
    assert settings.transfer_settings().http_proxy is None


async def test_a_meter_counts_no_rate_for_what_was_here() -> None:
    """What turns up with the total was here before; the rate is of what comes after."""
    told: list[Progress] = []
    now = [0.0]
    meter = Meter("get", told.append, asyncio.get_running_loop(), clock=lambda: now[0])
    for done, total in ((0, 0), (900, 1000), (910, 1000)):
        meter.count(done, total)
        now[0] += 1.0
    meter.close()
    await asyncio.sleep(0)
    assert [progress.rate for progress in told[:3]] == [0.0, 0.0, pytest.approx(10)]
