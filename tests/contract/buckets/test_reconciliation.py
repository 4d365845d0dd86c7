"""Whatever a bucket came to hold, and whatever it lost: a reconciliation brings bucket and ledger together."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.servers.grid import Content
from tests.servers.sqlite import migrated

from entrepot.core.errors import RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.buckets import Bucket, Listing
from entrepot_hub.adapters.buckets.probe import send
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import Found, ObjectRef, ObjectStatus, Proposal
from entrepot_hub.core.members import Channel
from entrepot_hub.core.sealing import MasterKey
from entrepot_hub.services.bucket_keeper import BucketKeeper
from entrepot_hub.services.channels import Channels
from entrepot_hub.services.comparison import Comparison
from entrepot_hub.services.reconciliation import Reconciler

LOCK = SchemaLock("demo", miniblock=16384, object=65536)
QUOTA = 1 << 20


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A channel on a bucket, its ledger, and what compares the two."""

    bucket: Bucket
    base: str
    database: Database
    registry: Registry
    ledger: SqlLedger
    clock: Clock
    reconciler: Reconciler
    mended: list[ObjectRef]

    def ref(self, content: Content, number: int = 0) -> ObjectRef:
        return ObjectRef("demo", LOCK.id, content.stream.raw, number)

    def key(self, content: Content, number: int = 0) -> str:
        return f"{self.base}/{LOCK.hex}/{content.stream.hex}/{number:08x}"

    async def put(self, content: Content, number: int = 0) -> ObjectRef:
        """An object that nobody granted lies in the bucket."""
        assert await self.bucket.create(self.key(content, number), content.object(number))
        return self.ref(content, number)

    async def status(self, ref: ObjectRef) -> ObjectStatus:
        return (await self.database.call(self.ledger.view, ref)).record.status

    async def charged(self) -> int:
        return (await self.database.call(self.ledger.usage, "demo")).charged

    async def run(self, *, dry_run: bool = False) -> Comparison:
        """A whole run: every page."""
        found = await self.reconciler.step("demo", None, dry_run=dry_run, pages=1000)
        assert found.cursor is None
        return found

    async def keys(self) -> dict[str, tuple[int, str]]:
        """What lies below the prefix, by an independent listing."""
        listing = await self.bucket.list(self.base)
        return {entry.key: (entry.length, entry.etag) for entry in listing.entries}


@pytest.fixture(params=[1000, 2], ids=["one page", "many pages"])
async def world(request: pytest.FixtureRequest, bucket: Bucket, base: str, tmp_path: Path) -> AsyncIterator[World]:
    """A channel in a prefix of the bucket that this test has for itself."""
    async with await asyncio.to_thread(lambda: Database(migrated(tmp_path / "hub.db"))) as database:
        registry, ledger = Registry(database, MasterKey(bytes(32))), SqlLedger(database)
        await registry.create_channel(
            "demo", quota=QUOTA, lock=LOCK, bucket="file:///b", prefix=base, now=1.0, actor="admin"
        )

        async def opened(_record: Channel) -> Bucket:
            return bucket

        clock = Clock(time.time())
        channels, settings = Channels(registry, opened, clock), ExchangeSettings()
        keeper = BucketKeeper(database, ledger, channels, settings, clock)
        mended: list[ObjectRef] = []

        async def changed(ref: ObjectRef) -> None:
            mended.append(ref)

        reconciler = Reconciler(database, ledger, channels, keeper, clock, changed, request.param)
        yield World(bucket, base, database, registry, ledger, clock, reconciler, mended)


def stream(objects: int = 1) -> Content:
    return Content(os.urandom(65536 * objects - 1000), LOCK)


async def test_what_proves_itself_is_taken_in_and_then_agrees(world: World) -> None:
    """Objects that the ledger lost are ready again, charged, and told; a second run finds nothing to do."""
    content = stream(3)
    refs = [await world.put(content, number) for number in range(3)]
    found = await world.run()
    assert found.counts == {"adopted": 3}
    assert [await world.status(ref) for ref in refs] == [ObjectStatus.READY] * 3
    assert await world.charged() == sum(len(content.object(n)) for n in range(3)) == found.bytes
    assert sorted(world.mended) == sorted(refs)
    again = await world.run()
    assert (again.listed, again.agreed, again.counts) == (3, 3, {})


async def test_what_proves_nothing_leaves(world: World) -> None:
    """Garbage, a cut object, an object at another's key and a left tombstone are removed; nothing is charged."""
    one, other = stream(2), stream(1)
    await world.bucket.create(world.key(one, 0), os.urandom(500))
    await world.bucket.create(world.key(one, 1), one.object(1)[:-1])
    await world.bucket.create(world.key(other, 0), one.object(0))
    await world.bucket.put_tombstone(world.key(stream(1)))
    found = await world.run()
    assert found.counts == {"removed": 4}
    assert await world.keys() == {}
    assert await world.charged() == 0


async def test_never_over_the_quota(world: World) -> None:
    """Of more than fits only as much is taken in as there is room for; the rest leaves the bucket."""
    content = stream(4)
    length = len(content.object(0))
    await world.registry.set_quota("demo", 4 * (65536 + 2000), now=2.0, actor="admin")
    for number in range(4):
        await world.put(content, number)
    more = stream(1)
    await world.put(more)
    found = await world.run()
    assert found.counts["adopted"] + found.counts["removed"] == 5
    usage = await world.database.call(world.ledger.usage, "demo")
    assert usage.charged == usage.stored == sum(size for size, _ in (await world.keys()).values())
    assert usage.quota - length < usage.charged <= usage.quota


async def test_what_is_gone_is_free_again(world: World) -> None:
    """A ready object that somebody deleted, or replaced, is no longer charged; what replaced it leaves."""
    content = stream(2)
    for number in range(2):
        await world.put(content, number)
    await world.run()
    world.mended.clear()
    await world.bucket.delete(world.key(content, 0))
    await world.bucket.delete(world.key(content, 1))
    await world.bucket.create(world.key(content, 1), b"something else")
    found = await world.run()
    assert found.counts == {"lost": 1, "replaced": 1}
    assert await world.charged() == 0
    assert await world.keys() == {}
    assert len(world.mended) == 2


async def test_a_live_grant_is_left_alone(world: World) -> None:
    """Whatever lies at the key of a live grant is the grant's business."""
    content = stream(1)
    ref, now = world.ref(content), world.clock()
    length = len(content.object(0))
    proposal = Proposal(ref, b"g" * 16, "N", "5" * 16, length, now + 100)
    await world.database.call(world.ledger.grant, [proposal], now)
    await world.bucket.create(world.key(content), b"half of it")
    assert (await world.run()).counts == {}
    assert list(await world.keys()) == [world.key(content)]
    assert await world.charged() == length


async def test_an_upload_that_nobody_reported_is_found(world: World) -> None:
    """The object of a lapsed grant that did arrive is ready, and its uploader is known."""
    content = stream(1)
    ref, now, data = world.ref(content), world.clock(), content.object(0)
    digest = hashlib.new(world.bucket.digest_kind, data, usedforsecurity=False).digest()
    await world.database.call(world.ledger.grant, [Proposal(ref, b"g" * 16, "N", "5" * 16, len(data), now + 100)], now)
    await world.database.call(world.ledger.learn, "demo", ref.stream, content.opening)
    await world.database.call(world.ledger.accept, b"g" * 16, "N", digest, now + 100, now + 1000, now)
    signed = await world.bucket.sign_put(world.key(content), len(data), digest, 1000)
    assert (await send(signed, data)).accepted
    world.clock.now += 200
    await world.database.call(world.ledger.lapse, world.clock())
    assert (await world.run()).counts == {"found": 1}
    record = (await world.database.call(world.ledger.view, ref)).record
    assert (record.status, record.uploader) == (ObjectStatus.READY, "N")


async def test_a_tombstone_holds_its_key_until_nothing_can_land(world: World) -> None:
    """A late upload over a tombstone becomes a tombstone again; one that is gone comes back; later it is forgotten."""
    content = stream(2)
    now = world.clock()
    for number in range(2):
        ref, data = world.ref(content, number), content.object(number)
        grant = bytes([number]) * 16
        await world.database.call(world.ledger.grant, [Proposal(ref, grant, "N", "5" * 16, len(data), now + 100)], now)
        await world.database.call(world.ledger.accept, grant, "N", content.digest(number), now + 100, now + 1000, now)
        found = Found(len(data), "e", None)
        await world.database.call(world.ledger.settle, ref, found, now, 60.0)
        await world.database.call(world.ledger.condemn, ref, None, now)
        await world.database.call(world.ledger.evict_end, ref, True, now)
    await world.bucket.create(world.key(content, 0), b"too late")
    found_now = await world.run()
    assert found_now.counts == {"tombstone": 2}
    assert {key: size for key, (size, _) in (await world.keys()).items()} == {
        world.key(content, 0): 0,
        world.key(content, 1): 0,
    }
    assert (await world.run()).counts == {}
    world.clock.now += 2000
    await world.bucket.delete(world.key(content, 1))
    assert (await world.run()).counts == {"tombstone": 1}
    assert await world.status(world.ref(content, 1)) is ObjectStatus.ABSENT


async def test_what_is_not_ours_is_told_and_left(world: World) -> None:
    """Other things under the prefix, and objects of a lock that no channel has, stay where they are."""
    content = stream(1)
    await world.put(content)
    mine = f"{world.base}/{LOCK.hex}"
    others = [
        f"{world.base}/notes.txt",
        f"{world.base}/0123456789abcdef/{content.stream.hex}/00000000",
        f"{mine}/README",
        f"{mine}/{content.stream.hex}/ffffffff",
    ]
    for key in others:
        await world.bucket.create(key, b"somebody's")
    found = await world.run()
    assert found.counts == {"adopted": 1, "foreign": 4}
    assert set(others) < set(await world.keys())


async def test_a_dry_run_changes_nothing(world: World) -> None:
    """It finds what a real run would mend, and leaves bucket and ledger as they are."""
    kept, content = stream(2), stream(2)
    for number in range(2):
        await world.put(kept, number)
    await world.run()
    await world.bucket.delete(world.key(kept, 0))
    await world.put(content, 0)
    await world.bucket.create(world.key(content, 1), b"garbage")
    before, charged = await world.keys(), await world.charged()
    found = await world.run(dry_run=True)
    assert found.counts == {"lost": 1, "adopted": 1, "removed": 1}
    assert (await world.keys(), await world.charged()) == (before, charged)
    assert (await world.run()).counts == found.counts


async def test_a_run_is_one_hubs_and_goes_on_where_it_stopped(world: World) -> None:
    """A run is not due again before its period is over; one that a dead hub left is taken over at its cursor."""
    content = stream(3)
    for number in range(3):
        await world.put(content, number)
    assert await world.reconciler.due(3600.0) == 1
    assert await world.reconciler.due(3600.0) == 0
    world.clock.now += 3601
    run = await world.database.call(world.ledger.claim_run, "demo", world.clock(), 3600.0, 600.0)
    assert run is not None
    await world.database.call(
        world.ledger.note_run, run, world.key(content, 1), {"listed": 2.0}, world.clock(), ended=False
    )
    assert await world.reconciler.due(3600.0) == 0  # somebody works on it
    world.clock.now += 601
    assert await world.reconciler.due(3600.0) == 1
    last = await world.database.call(world.ledger.last_run, "demo")
    assert last is not None
    assert (last.id, last.ended_at is not None, last.counts["listed"]) == (run.id, True, 3.0)


async def test_a_listing_that_goes_in_circles_is_no_listing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers every page with the same keys is not listened to for ever; nothing is changed by it."""
    await world.put(stream())
    page = await world.bucket.list(world.base)
    last = page.entries[-1].key

    async def again(_prefix: str, _after: str | None = None, _limit: int = 1000) -> Listing:
        return Listing(entries=page.entries, next=last)

    before = await world.keys()
    monkeypatch.setattr(type(world.bucket), "list", staticmethod(again))
    with pytest.raises(RetryLater, match="circles"):
        await world.reconciler.step("demo", None, pages=1000)
    monkeypatch.undo()
    assert await world.keys() == before
