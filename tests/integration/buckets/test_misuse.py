"""Providers that do not keep to their grants, and URLs that come late: on every kind of bucket readers get right bytes
only, and the account is that of the bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.integration.buckets.conftest import (
    GET_URL,
    KINDS,
    OBJECT,
    Place,
    Yard,
    content_of,
    helping,
    honest,
    one_loop,
    put,
    serve,
    stream,
    take,
)
from tests.integration.node.conftest import Site
from tests.servers.grid import Content, Peer

from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Grant, Signed
from entrepot.services.node import Node

pytestmark = one_loop

TAKEN = (200, 201)
SMALL_QUOTA = 4 * 70_000


def flipped(data: bytes, at: int) -> bytes:
    """The data with one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


#: What is put where an object should be, one after the other.
BAD: dict[str, Callable[[bytes], list[bytes]]] = {
    "other bytes": lambda data: [flipped(data, -1)],
    "another header": lambda data: [flipped(data, 60)],
    "a longer one": lambda data: [data + b"+"],
    "a shorter one": lambda data: [data[:-1]],
    "much more, unreported": lambda data: [data * 3],
    "the right one, then another": lambda data: [data, flipped(data, -1)],
}
#: Any of these, held by the provider, refuses the last of them.
REFUSED_BY = {
    "other bytes": ("digest",),
    "another header": ("digest",),
    "a longer one": ("length", "digest"),
    "a shorter one": ("length", "digest"),
    "much more, unreported": ("length", "digest"),
    "the right one, then another": ("create_only", "digest"),
}
#: What the hub sees by itself when it looks at a reported upload.
SEEN_AT_DONE = ("another header", "a longer one", "a shorter one")


class Gone(Exception):
    """The provider says no more."""


async def lie(peer: Peer, content: Content, bad: Callable[[bytes], list[bytes]], *, report: bool) -> list[int]:
    """Offer object 0, put something else than was granted, report it done or not, and go. How the PUTs were
    answered."""
    statuses: list[int] = []

    async def upload(signed: Signed, grant: Grant) -> None:
        for data in bad(content.object(grant.number)):
            statuses.append(await put(signed, data))
        if not report:
            raise Gone

    await peer.offer(content, await peer.sought(content), numbers=(0, 0))
    with suppress(Gone):
        await take(peer, content, await peer.granted(0), upload)
    await peer.disconnect()
    return statuses


async def test_bad_uploads_reach_no_reader(yard: Yard, place: Place, site: Site, tmp_path: Path) -> None:
    """Other bytes, another header, another length (reported or not), the URL used twice: refused where the provider
    holds uploads to the grant; where it does not, the hub's look removes it, or the reader's report does, and its
    uploader has a strike. The object then comes from another holder, and nobody is blamed for a report."""
    lock = await yard.channel(place, "lies")
    taker, other = await site.node("taker", lock.channel), await yard.grid.peer("honest", lock.channel)

    async def one(name: str) -> None:
        content = stream(lock, OBJECT + 5000)
        liar = await yard.grid.peer("liar", lock.channel)
        getting = asyncio.create_task(taker.get(content.stream.hex, tmp_path / name))
        statuses = await lie(liar, content, BAD[name], report="unreported" not in name)
        refused = any(place.binds(what) for what in REFUSED_BY[name])
        assert (statuses[-1] in TAKEN) is not refused, (name, statuses)
        if (refused and len(statuses) == 1) or name in SEEN_AT_DONE:
            assert not (await yard.there(place, lock)).get((str(content.stream), 0)), name
        async with asyncio.timeout(20):  # who is gone has a short lease, and then it is looked
            while "unreported" in name and (await yard.there(place, lock)).get((str(content.stream), 0)):
                await asyncio.sleep(0.05)
        async with helping(serve(other, content, honest(content))):
            got = await getting
        assert await content_of(got.path) == content.data, name
        if not refused and name in ("other bytes", "another header"):
            assert "bad-object" in await yard.strikes(liar), name

    async with asyncio.TaskGroup() as group:
        for name in BAD:
            group.create_task(one(name))
    assert not [check.bad for check in await taker.verify() if check.bad]
    usage = await yard.balanced(place, lock)
    assert (usage.objects, usage.reserved) == (2 * len(BAD), 0)
    assert await yard.rows("select node from strikes where reason = 'false-report'") == []
    assert await yard.strikes(other) == []
    assert await yard.reconciled(lock) == {}


async def test_a_late_put_after_eviction(yard: Yard, place: Place, site: Site, tmp_path: Path) -> None:
    """The URLs of evicted objects are used again, with right and with wrong bytes: a tombstone refuses them; where the
    provider lets it be replaced, the comparison with the ledger puts it back. Who asks then gets the right file."""
    lock = await yard.channel(place, "late", quota=SMALL_QUOTA)
    content = stream(lock, 8 * OBJECT)
    holder, taker = await yard.grid.peer("holder", lock.channel), await site.node("taker", lock.channel)
    urls: dict[int, Signed] = {}
    async with helping(serve(holder, content, honest(content, urls))):
        await taker.get(content.stream.hex, tmp_path / "copy")
    before = await yard.there(place, lock)
    right, wrong, *_ = sorted(number for (_, number), size in before.items() if size == 0)
    statuses = [
        await put(urls[right], content.object(right)),
        await put(urls[wrong], flipped(content.object(wrong), -1)),
    ]
    if place.binds("create_only"):
        assert not set(statuses) & set(TAKEN)
        assert await yard.reconciled(lock, dry_run=True) == {}
    else:
        assert set(statuses) <= set(TAKEN)
        assert await yard.reconciled(lock, dry_run=True) == {"tombstone": 2}
        assert await yard.reconciled(lock) == {"tombstone": 2}
    assert await yard.there(place, lock) == before
    other = await site.node("other", lock.channel)
    async with helping(serve(holder, content, honest(content))):
        got = await other.get(content.stream.hex, tmp_path / "again")
    assert await content_of(got.path) == content.data
    await yard.balanced(place, lock)
    assert await yard.reconciled(lock) == {}


async def test_lost_answers_cost_nothing(yard: Yard, place: Place, site: Site, tmp_path: Path) -> None:
    """Uploads arrive and the answers are lost: the node tries again, finds the keys taken by itself, and the hub sees
    that all is well. No object is granted twice, and nobody has a strike."""
    lock = await yard.channel(place, "lost")
    content = stream(lock, 4 * OBJECT)
    original = tmp_path / "original"
    await asyncio.to_thread(original.write_bytes, content.data)
    giver, taker = await site.node("giver", lock.channel), await site.node("taker", lock.channel)
    await site.up("giver")
    added = await giver.add(original)
    place.relay.lose = 2
    got = await taker.get(added.uri, tmp_path / "copy")
    assert await content_of(got.path) == content.data
    assert place.relay.lose == 0
    statuses = [passage.status for passage in place.relay.puts() if lock.hex in passage.path]
    assert statuses.count(None) == 2
    assert len([status for status in statuses if status in TAKEN]) == (2 if place.binds("create_only") else 4)
    assert len([status for status in statuses if status in (403, 409, 412)]) == (2 if place.binds("create_only") else 0)
    grants = await yard.rows(
        "select g.status from grants g join objects o on o.id = g.object_id join channels c on c.id = o.channel_id "
        "where c.name = ?",
        lock.channel,
    )
    assert grants == [("done",)] * 4
    assert (await yard.balanced(place, lock)).objects == 4


async def test_reading_urls_that_have_ended_are_replaced(yard: Yard, site: Site, tmp_path: Path) -> None:
    """The hub was started again. The first GETs reach each bucket after their URLs' end and are refused; the node asks
    for fresh ones, and the file comes. All kinds at once, for they have to wait."""
    places = [yard.places[kind] for kind in KINDS if kind in yard.places]
    relays = list({id(place.relay): place.relay for place in places}.values())
    prepared: list[tuple[Place, SchemaLock, Content, Node]] = []
    for place in places:
        lock = await yard.channel(place, "ended")
        content = stream(lock, OBJECT + 1)
        first, late = await yard.grid.peer("first", lock.channel), await site.node(f"late{lock.channel}", lock.channel)
        starter = await yard.grid.peer("starter", lock.channel)
        async with helping(serve(first, content, honest(content))):
            await starter.follow(lock.channel, content.stream)
            await starter.want(content)
            async with asyncio.timeout(20):
                while len(await yard.there(place, lock)) < 2 or (await yard.usage(lock.channel)).objects < 2:
                    await asyncio.sleep(0.02)
        prepared.append((place, lock, content, late))
    await yard.grid.stop()
    await yard.grid.start()
    for relay in relays:
        relay.hold("GET")
    try:
        async with asyncio.TaskGroup() as group:
            for _, lock, content, late in prepared:
                group.create_task(late.get(content.stream.hex, tmp_path / lock.channel))
            for relay in relays:
                await asyncio.to_thread(relay.wait_held, "GET")
            await asyncio.sleep(GET_URL + 2)  # until no URL that waits works any more
            for relay in relays:
                relay.release()
    finally:
        for relay in relays:
            relay.release()
    for place, lock, content, _ in prepared:
        assert await content_of(tmp_path / lock.channel) == content.data
        gets = [passage.status for passage in place.relay.gets() if lock.hex in passage.path]
        assert set(gets) & {400, 401, 403}, (place.kind, gets)
        assert gets[-1] in (200, 206)
