"""Limits, budgets and counts of a running hub: what stops, what the reader is told, what goes on, what is billed."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.node.conftest import Site
from tests.servers.grid import Content, Grid, Peer, send, until

from entrepot.core.errors import Denied, RetryLater
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Ack, Cancel, Got
from entrepot_hub.core.ledger import ObjectRef, Proposal

OBJECT = 65536


@pytest.fixture
async def site(grid: Grid, lock: SchemaLock, empty_home: Path) -> AsyncIterator[Site]:
    """Whole nodes at the hub."""
    site = Site(grid, empty_home / secrets.token_hex(4))
    try:
        yield site
    finally:
        await site.aclose()


async def serve(holder: Peer, content: Content) -> asyncio.Task[None]:
    """Have a peer offer and upload the stream whenever it is asked."""
    return asyncio.create_task(holder.serve_all(content))


async def ready(reader: Peer, number: int) -> None:
    """Return when the reader has heard that the object is ready."""
    await until(lambda: (s := reader.state(number)) is not None and s.state == "ready", 40)


async def fetched(reader: Peer, content: Content, numbers: range) -> None:
    """Want these objects and wait until all are ready, saying got for each."""
    await reader.want(content, ranges=((numbers[0], numbers[-1]),), window=len(numbers))
    for number in numbers:
        await ready(reader, number)


async def told(reader: Peer, content: Content, kind: str | None) -> Any:
    """Ask until the reason has this kind (None: there is none), and give it."""
    async with asyncio.timeout(30):
        while True:
            reply = await reader.want(content)
            reason = reply.reason or reply.error
            if (None if reason is None else reason.kind) == kind:
                return reason
            await asyncio.sleep(0.05)


async def total(grid: Grid, **more: Any) -> dict[str, Any]:
    return dict((await grid.admin("channel.usage", name="demo", **more))["total"])


async def test_a_transfer_is_counted_by_node_and_day(grid: Grid, content: Content) -> None:
    """Five objects up and down: bytes, objects and requests stand under who moved them, and survive a restart."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    serving = await serve(holder, content)
    await fetched(reader, content, range(5))
    for _ in range(3):  # told again: the same URLs
        reply = await reader.want(content)
        assert [state.state for state in reply.objects] == ["ready"] * 5
    report = await grid.admin("channel.usage", name="demo")
    size = sum(len(content.object(number)) for number in range(5))
    nodes = {node["name"]: node["counts"] for node in report["nodes"]}
    assert (nodes["holder"]["uploads"], nodes["holder"]["uploaded"], nodes["holder"]["requests_a"]) == (5, size, 5)
    assert (nodes["reader"]["downloads"], nodes["reader"]["downloaded"]) == (5, size)
    assert nodes["reader"]["requests_b"] == 5
    assert nodes["the hub"]["requests_b"] >= 5  # it looked where each object should be
    assert nodes["the hub"]["byte_seconds"] > 0
    assert report["prices"] == "folder"
    assert report["charged"] == size
    serving.cancel()
    before = await total(grid)
    await grid.stop()
    await grid.start()
    after = await total(grid)
    assert after["byte_seconds"] > before["byte_seconds"]
    counted = ("uploads", "uploaded", "downloads", "downloaded", "requests_a", "deletes", "evicted")
    assert {name: after[name] for name in counted} == {name: before[name] for name in counted}


async def test_a_reader_that_used_up_its_day_is_told_so(site: Site, grid: Grid, tmp_path: Path) -> None:
    """A node's get ends with the limit as its reason; another node goes on; with a higher limit it goes on too."""
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(30 * OBJECT))
    holder = await site.node("holder")
    await site.up("holder")
    added = await holder.add(path)
    reader, other = await site.node("reader"), await site.node("other")
    await grid.admin("channel.limit", name="demo", node="reader", day_down=2 * OBJECT)
    with pytest.raises(RetryLater) as caught:
        await reader.get(added.uri, tmp_path / "copy.bin", deadline=4)
    assert caught.value.kind == "over-limit"
    assert caught.value.data["limit"] == "down-per-day"
    assert caught.value.data["allowed"] == 2 * OBJECT
    assert isinstance(caught.value.data["resets_at"], float)
    assert "tomorrow" in (caught.value.hint or "")
    await other.get(added.uri, tmp_path / "other.bin", deadline=20)
    await grid.admin("channel.limit", name="demo", node="reader", clear=["all"])
    await reader.get(added.uri, tmp_path / "copy.bin", deadline=20)
    assert (tmp_path / "copy.bin").read_bytes() == path.read_bytes()


async def test_a_stream_too_large_for_the_channel_is_refused_at_once(site: Site, grid: Grid, tmp_path: Path) -> None:
    """No waiting makes it smaller: the get fails as soon as its length is known, and nothing is uploaded."""
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(3 * OBJECT))
    holder, reader = await site.node("holder"), await site.node("reader")
    await site.up("holder")
    added = await holder.add(path)
    await grid.admin("channel.limit", name="demo", stream=2 * OBJECT)
    with pytest.raises(Denied) as caught:
        await reader.get(added.uri, tmp_path / "copy.bin", deadline=60)
    assert (caught.value.kind, caught.value.data["used"]) == ("too-large", 3 * OBJECT)
    assert grid.objects() == {}


async def test_a_holder_that_used_up_its_day_leaves_the_object_to_another(grid: Grid, lock: SchemaLock) -> None:
    """Both hold the stream; the one that may upload nothing is not granted anything, and the reader gets it all."""
    content = Content(os.urandom(3 * OBJECT), lock)
    spent, free, reader = await grid.peer("spent"), await grid.peer("free"), await grid.peer("reader")
    await grid.admin("channel.limit", name="demo", node="spent", day_up=0)
    await reader.follow("demo", content.stream)
    tasks = [await serve(spent, content), await serve(free, content)]
    await fetched(reader, content, range(3))
    assert (spent.grants, sorted(free.uploaded)) == ([], [0, 1, 2])
    for task in tasks:
        task.cancel()


async def test_with_no_other_holder_the_reader_hears_of_the_limit(grid: Grid, lock: SchemaLock) -> None:
    """The only holder used up its day: the reason names it, and what was lifted is soon believed."""
    content = Content(os.urandom(OBJECT), lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await grid.admin("channel.limit", name="demo", node="*", day_up=0)
    serving = await serve(holder, content)
    reason = await told(reader, content, "over-limit")
    assert (reason.data["limit"], reason.data["node"]) == ("up-per-day", holder.node)
    assert holder.grants == []
    serving.cancel()


async def test_a_used_up_budget_stops_signing_and_says_so(grid: Grid, lock: SchemaLock) -> None:
    """At the month's budget neither reads nor uploads are signed; the status warns; a higher budget lets it go on."""
    content, more = Content(os.urandom(2 * OBJECT), lock), Content(os.urandom(2 * OBJECT), lock)
    holder, reader, late = await grid.peer("holder"), await grid.peer("reader"), await grid.peer("late")
    await grid.admin("price.set", name="channel:demo", prices={"egress": "10000"}, currency="EUR")
    await grid.admin("channel.limit", name="demo", budget="1")
    tasks = [await serve(holder, content), await serve(holder, more)]
    for peer in (reader, late):
        await peer.follow("demo", content.stream)
    await fetched(reader, content, range(2))  # 128 KiB at 10,000 EUR a GiB: 1.22 EUR
    reason = await told(late, content, "over-budget")
    assert "EUR" in reason.message
    assert reason.data["resets_at"] > 0
    assert (await told(late, more, "over-budget")).hint
    count = len(grid.objects())
    assert count == 2
    marks: list[int] = []
    async with asyncio.timeout(30):
        while marks != [50, 80, 100]:
            await told(late, content, "over-budget")  # looked up again within seconds, and told then
            log = [line for line in await grid.admin("audit") if line["action"] == "channel.budget"]
            marks = [line["detail"]["percent"] for line in log]
    assert any("122 %" in warning for warning in (await grid.admin("status"))["warnings"])
    report = await grid.admin("channel.usage", name="demo")
    assert report["budget"]["reached"]
    assert report["budget"]["percent"] == 122
    await late.follow("demo", more.stream)
    await grid.admin("channel.limit", name="demo", budget="100")
    await told(late, content, None)
    await fetched(late, more, range(2))
    for task in tasks:
        task.cancel()


async def test_a_cache_full_by_number_makes_room(grid: Grid, lock: SchemaLock) -> None:
    """With as many objects in the bucket as are allowed, older ones leave for new ones."""
    content = Content(os.urandom(6 * OBJECT), lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await grid.admin("channel.limit", name="demo", objects=2)
    await reader.follow("demo", content.stream)
    serving = await serve(holder, content)
    for number in range(6):
        await reader.want(content, ranges=((number, number),), window=1)
        await ready(reader, number)
        got = Got(lock=lock.id, stream=content.stream.raw, numbers=(number,))
        await reader.ask("demo", "got", got, Ack)
    serving.cancel()
    assert (await total(grid))["evicted"] >= 3 * OBJECT
    assert sum(size > 0 for size in grid.objects().values()) <= 3


async def test_a_lowered_quota_evicts_what_is_over_it(grid: Grid, lock: SchemaLock) -> None:
    """Objects leave in the background until no more is stored than the new quota allows."""
    content = Content(os.urandom(8 * OBJECT), lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    serving = await serve(holder, content)
    await fetched(reader, content, range(8))
    got = Got(lock=lock.id, stream=content.stream.raw, numbers=tuple(range(8)))
    await reader.ask("demo", "got", got, Ack)
    await reader.ask("demo", "cancel", Cancel(lock=lock.id, stream=content.stream.raw), Ack)
    serving.cancel()
    quota = 4 * 70_000
    answer = await grid.admin("channel.quota", name="demo", quota=quota)
    assert answer["before"] == 1 << 30
    await until(lambda: sum(grid.objects().values()) <= quota)


async def test_a_member_who_may_only_read_is_limited_too(grid: Grid, lock: SchemaLock) -> None:
    """Whoever may only read what is there hears of its limit as any other reader does."""
    content = Content(os.urandom(2 * OBJECT), lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    serving = await serve(holder, content)
    await fetched(reader, content, range(2))
    serving.cancel()
    guest = await grid.peer("guest", rights="read")
    reply = await guest.want(content)
    assert [state.state for state in reply.objects] == ["ready", "ready"]
    state = reply.objects[0]
    assert state.get is not None
    assert (await send(state.get))[0] == 200
    await grid.admin("channel.limit", name="demo", node="guest", day_down=OBJECT)
    reply = await guest.want(content)
    assert reply.objects == ()
    assert reply.reason is not None
    assert reply.reason.kind == "over-limit"


def proposed(content: Content, number: int) -> Proposal:
    """A proposal as the rounds make it."""
    ref = ObjectRef(content.lock.channel, content.lock.id, content.stream.raw, number)
    return Proposal(ref, secrets.token_bytes(16), "node", "session", len(content.object(number)), 2e9)


@pytest.mark.parametrize("first", ["spent", "demo"])
async def test_a_limit_counts_for_its_own_channel_alone(grid: Grid, lock: SchemaLock, first: str) -> None:
    """Of proposals of two channels made together those of the one that used up its day are held back, and no others."""
    spent = await grid.channel("spent")
    await grid.admin("channel.limit", name="spent", day_up=0)
    mixed = [proposed(Content(os.urandom(OBJECT), each), 0) for each in (spent, lock, spent, lock)]
    mixed.sort(key=lambda each: each.ref.channel != first)
    assert grid.hub is not None
    arbiter = grid.hub._arbiter
    passed = await arbiter._within_limits(tuple(mixed))
    assert passed == tuple(each for each in mixed if each.ref.channel == "demo")
    told = [arbiter.refusal(each.ref.channel, each.ref.stream, arbiter._clock()) is not None for each in mixed]
    assert told == [each.ref.channel == "spent" for each in mixed]


@pytest.mark.parametrize("first", ["small", "large"])
async def test_the_length_of_each_stream_counts_for_itself(grid: Grid, lock: SchemaLock, first: str) -> None:
    """A stream larger than allowed does not pass beside a small one, nor does it hold that back."""
    small, large = Content(os.urandom(OBJECT), lock), Content(os.urandom(3 * OBJECT), lock)
    holder = await grid.peer("holder")
    for content in (small, large):
        await holder.added(content)
    await grid.admin("channel.limit", name="demo", stream=2 * OBJECT)
    mixed = [proposed(small, 0), proposed(large, 0), proposed(large, 1)]
    mixed.sort(key=lambda each: (each.ref.stream == small.stream.raw) != (first == "small"))
    assert grid.hub is not None
    passed = await grid.hub._arbiter._within_limits(tuple(mixed))
    assert [each.ref.stream for each in passed] == [small.stream.raw]
