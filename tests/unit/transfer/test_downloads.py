"""The downloads of one get: lanes, and large objects in parts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from entrepot.adapters.store import Fetch, ObjectSource, Store, StoreSettings
from entrepot.adapters.transfer import Transfers, TransferSettings
from entrepot.core.errors import Corrupt, RetryLater
from entrepot.core.exchange.concurrency import Concurrency
from entrepot.core.lock import SchemaLock
from entrepot.services import downloads
from entrepot.services.downloads import Downloads, Lanes

WHOLE = SchemaLock("demo", miniblock=16384, object=0)
COUNT = 41  # miniblocks, the last one short


@dataclass
class Large:
    """A stream in one large object, and an open fetch of it."""

    data: bytes
    source: ObjectSource
    fetch: Fetch
    moved: list[int]

    @property
    def object(self) -> bytes:
        return self.source.header + self.data


@pytest.fixture
async def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Large]:
    monkeypatch.setattr(downloads, "PART", 4 * 16384)
    data = os.urandom(16384 * (COUNT - 1) + 77)
    path = tmp_path / "file"
    path.write_bytes(data)
    settings = StoreSettings(reserve=0, flush_after=0.02)
    async with Store(tmp_path / "there", settings) as there, Store(tmp_path / "here", settings) as here:
        added = await there.add(path, channel="hub/demo", lock=WHOLE)
        source = await there.object_source(added.stream, WHOLE, 0)
        async with await here.begin(added.stream, added.opening, WHOLE, "hub/demo", "n") as fetch:
            yield Large(data, source, fetch, [])


def bringing(transfers: Transfers, concurrency: Concurrency, large: Large) -> Downloads:
    return Downloads(transfers, concurrency, lambda: large.moved.append)


async def test_a_large_object_comes_in_parts_at_once(bucket, large: Large) -> None:
    """Its header comes once, then ranges of whole miniblocks, as many at once as the limit allows and no more; each
    byte is asked for once."""
    bucket.objects["/o"] = large.object
    guard, busy, most = threading.Lock(), 0, 0
    three = threading.Event()

    def slow(handler) -> None:
        nonlocal busy, most
        with guard:
            busy += 1
            most = max(most, busy)
            if busy == 3:
                three.set()
        three.wait(10)
        handler.behave()
        with guard:
            busy -= 1

    bucket.script.extend([None, None, *([slow] * 20)])
    async with Transfers(TransferSettings(backoff=0.001)) as transfers:
        moved = await bringing(transfers, Concurrency(3, 3), large).bring(bucket.get(), large.fetch, 0)
        assert moved == len(large.data)
        assert await large.fetch.finish()
    assert most == 3
    asked = sorted(
        tuple(int(x) for x in headers["Range"].removeprefix("bytes=").split("-")) for _, _, headers in bucket.seen
    )
    assert len(asked) == 2 + (COUNT - 1) // 4
    assert [first for first, _ in asked] == [0, *(last + 1 for _, last in asked[:-1])]
    assert asked[-1][1] == len(large.object) - 1


async def test_small_objects_come_in_one_answer(bucket, transfers, stream) -> None:
    """An object of few miniblocks costs one request."""
    bucket.objects["/o"] = stream.object(0)
    async with await stream.here.begin(stream.stream, stream.opening, stream.lock, "hub/demo", "n") as fetch:
        bringer = Downloads(transfers, Concurrency(), lambda: lambda _: None)
        assert await bringer.bring(bucket.get(), fetch, 0) == 65536
    assert len(bucket.seen) == 1
    assert "Range" not in bucket.seen[0][2]


async def test_a_refusal_lowers_the_limit(bucket, large: Large) -> None:
    """A part that met 503 is tried again and comes; fewer are asked for at once from then on."""
    bucket.objects["/o"] = large.object
    refuse = lambda h: h.reply(503, b"", **{"Retry-After": "0"})  # noqa: E731
    bucket.script.extend([None, None, refuse])
    concurrency = Concurrency(4, 4)
    async with Transfers(TransferSettings(backoff=0.001)) as transfers:
        await bringing(transfers, concurrency, large).bring(bucket.get(), large.fetch, 0)
        assert large.fetch.complete
    assert concurrency.limit == 2


async def test_a_spoilt_part_ends_it_with_its_reason(bucket, large: Large) -> None:
    """The error names the miniblock; what verified stays, and with a good copy only the rest is asked for."""
    at = len(large.source.header) + 16384 * 22
    spoilt = bytearray(large.object)
    spoilt[at] ^= 1
    bucket.objects["/o"] = bytes(spoilt)
    async with Transfers(TransferSettings(backoff=0.001)) as transfers:
        bringer = bringing(transfers, Concurrency(4, 4), large)
        with pytest.raises(Corrupt) as caught:
            await bringer.bring(bucket.get(), large.fetch, 0)
        assert caught.value.data["miniblock"] == 22
        here = large.fetch.verified_bytes
        assert 4 * 16384 <= here < len(large.data)
        bucket.objects["/o"] = large.object
        assert await bringer.bring(bucket.get(), large.fetch, 0) == len(large.data) - here
        assert await large.fetch.finish()


async def test_a_cancelled_get_leaves_nothing_running(bucket, large: Large) -> None:
    """All parts stop with it."""
    bucket.objects["/o"] = large.object
    held, met = threading.Event(), threading.Event()

    def hold(handler) -> None:
        met.set()
        held.wait(10)
        handler.behave()

    bucket.script.extend([None, None, hold, hold, hold])
    async with Transfers(TransferSettings(backoff=0.001)) as transfers:
        bringer = bringing(transfers, Concurrency(3, 3), large)
        going = asyncio.create_task(bringer.bring(bucket.get(), large.fetch, 0))
        assert await asyncio.to_thread(met.wait, 10)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(going, 10)
        held.set()
        assert bringer.busy == 0


async def test_lanes_are_taken_in_turn() -> None:
    """No more than the limit are let through, first come first served, also where one gives up waiting."""
    concurrency = Concurrency(2, 2)
    lanes, order = Lanes(concurrency), []
    leave = [asyncio.Event() for _ in range(5)]

    async def go(number: int) -> None:
        async with lanes.one():
            order.append(number)
            await leave[number].wait()

    tasks = [asyncio.create_task(go(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert (order, lanes.busy) == ([0, 1], 2)
    tasks[2].cancel()
    leave[0].set()
    await asyncio.wait([tasks[0], tasks[2]])
    await asyncio.sleep(0)
    assert (order, lanes.busy) == ([0, 1, 3], 2)
    leave[1].set()
    await tasks[1]
    tasks[4].cancel()  # its lane was given to it, and it has not begun
    await asyncio.wait([tasks[4]])
    leave[3].set()
    await tasks[3]
    assert lanes.busy == 0


@pytest.mark.parametrize(("miniblock", "threads"), [(16384, 3), (8 << 20, 1)])
async def test_large_buffers_take_the_places_of_several(bucket, miniblock: int, threads: int, tmp_path: Path) -> None:
    """All buffers together stay within 4 MiB for each slot: where miniblocks are larger, fewer move at once."""
    lock = SchemaLock("demo", miniblock=miniblock, object=miniblock)
    path = tmp_path / "file"
    path.write_bytes(os.urandom(16384) * 3)
    guard, busy, most = threading.Lock(), 0, 0

    def count(handler) -> None:
        nonlocal busy, most
        with guard:
            busy += 1
            most = max(most, busy)
        threading.Event().wait(0.1)
        with guard:
            busy -= 1
        handler.reply(404, b"")

    bucket.script.extend([count] * 3)
    async with Store(tmp_path / "s", StoreSettings(reserve=0)) as store, Store(tmp_path / "h") as here:
        added = await store.add(path, channel="c", lock=lock)
        async with (
            Transfers(TransferSettings(slots=3)) as transfers,
            await here.begin(added.stream, added.opening, lock, "c", "n") as fetch,
        ):
            results = await asyncio.gather(
                *(transfers.get_object(bucket.get(), fetch, 0) for _ in range(3)), return_exceptions=True
            )
    assert all(isinstance(result, Exception) for result in results)
    assert most <= threads
    assert not any(isinstance(result, RetryLater) for result in results)
