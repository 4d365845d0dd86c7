"""A bucket that hangs or fails is the trouble of its own channel: all others go on, and the hub is ready."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.integration.node.conftest import Site
from tests.servers.grid import Content, Grid, Peer, running_grid, until

from entrepot.core.errors import RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.messages import Ack, Cancel, Done, Got, Reason
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.core.ledger import GrantStatus
from entrepot_hub.services import hub

OBJECT = 65536
UNREACHABLE = "bucket-unreachable"
#: Soon over: leases, URLs, and the time in which a PUT could still land.
BRIEF = ExchangeSettings(lease=1.0, put_url=2.0, put_grace=0.1, disconnect_grace=0.2)


@pytest.fixture
async def brief(tmp_path: Path) -> AsyncIterator[Grid]:
    """A hub with nothing on it, whose leases and URLs are short."""
    async with running_grid(tmp_path, BRIEF) as running:
        yield running


async def spoil(grid: Grid, channel: str, how: str) -> list[str]:
    """Have every look into the channel's bucket hang or fail from now on; the looks."""
    looks: list[str] = []

    async def head(key: str) -> None:
        looks.append(key)
        if how == "hangs":
            await asyncio.Event().wait()
        raise RetryLater("the bucket is out of order", kind="bucket-unreachable")

    assert grid.hub is not None
    bucket: Any = (await grid.hub._channels.channel(channel)).bucket
    bucket.inner.head = head
    return looks


async def accepted(holder: Peer, content: Content) -> None:
    """The holder takes all grants of the stream, and puts nothing."""
    await holder.offer(content, await holder.sought(content))
    count = content.geometry.object_count
    await until(lambda: sum(grant.stream == content.stream.raw for grant in holder.grants) >= count)
    for grant in [grant for grant in holder.grants if grant.stream == content.stream.raw]:
        await holder.accept(content, grant)


async def reserved(grid: Grid, channel: str) -> int:
    """Bytes of the channel that are reserved for objects under way."""
    assert grid.hub is not None
    return (await grid.hub._database.call(grid.hub._arbiter._ledger.usage, channel)).reserved


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_a_bad_bucket_keeps_no_other_channel_from_failing_over(brief: Grid, how: str) -> None:
    """A holder of two channels goes away: in the one whose bucket answers its object passes on to the next holder."""
    bad, good = await brief.channel("bad"), await brief.channel("good")
    holder, other = await brief.peer("holder", "bad", "good"), await brief.peer("other", "good")
    reader = await brief.peer("reader", "bad", "good")
    lost, kept = Content(os.urandom(OBJECT), bad), Content(os.urandom(OBJECT), good)
    for content in (lost, kept):
        await reader.want(content)
        await accepted(holder, content)
    looks = await spoil(brief, "bad", how)
    serving = asyncio.create_task(other.serve_all(kept))
    await holder.disconnect()
    await until(lambda: looks)
    await until(lambda: other.uploaded == [0])
    serving.cancel()


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_a_bad_bucket_keeps_no_other_channel_from_being_swept(brief: Grid, how: str) -> None:
    """What was reserved and never came is free again in one channel while another one's bucket does not answer."""
    bad, good = await brief.channel("bad"), await brief.channel("good")
    holder, reader = await brief.peer("holder", "bad", "good"), await brief.peer("reader", "bad", "good")
    for lock in (bad, good):
        content = Content(os.urandom(2 * OBJECT), lock)
        await reader.want(content, deadline=1.0)
        await accepted(holder, content)
    await holder.disconnect()
    assert brief.hub is not None
    arbiter, database = brief.hub._arbiter, brief.hub._database
    async with asyncio.timeout(30):
        while len(await database.call(arbiter._ledger.stale, arbiter._clock(), BRIEF.put_grace)) < 4:
            await asyncio.sleep(0.05)
    looks = await spoil(brief, "bad", how)
    async with asyncio.timeout(30):
        while await reserved(brief, "good") > 0:
            await arbiter.sweep()
            await asyncio.sleep(0.05)
        await until(lambda: looks)
    assert await reserved(brief, "bad") > 0


async def test_a_bucket_that_is_endless_keeps_no_other_from_being_compared(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the listing of one bucket never ends, others are compared with the ledger."""
    names = {(await grid.channel(name)).id.hex(): name for name in ("bad", "good")}
    await grid.stop()
    listed: list[str] = []
    inner = FolderBucket.list

    async def listing(bucket: FolderBucket, prefix: str, *args: Any) -> Any:
        name = names.get(prefix.strip("/"), prefix.strip("/"))
        listed.append(name)
        if name == "bad":
            await asyncio.Event().wait()
        return await inner(bucket, prefix, *args)

    monkeypatch.setattr(FolderBucket, "list", listing)
    monkeypatch.setattr(hub, "_DUE", 0.1)
    await grid.start()
    await until(lambda: {"bad", "good"} <= set(listed))
    late = (await grid.channel("late")).id.hex()
    await until(lambda: late in listed)


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_a_bad_bucket_degrades_the_hub_and_leaves_it_ready(
    grid: Grid, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/readyz stays 200 and says degraded; the status names the channel; and it is ok again when the bucket is."""
    monkeypatch.setattr(hub, "_BUCKET_OK", 0.5)
    await grid.channel("bad")
    await grid.channel("good")
    await spoil(grid, "bad", how)

    async def checks() -> tuple[int, str]:
        async with aiohttp.ClientSession() as http, http.get(f"{grid.url}/readyz") as response:
            answer = await response.json()
            assert answer["ready"] is (response.status == 200)
            return response.status, answer["checks"]["buckets"]

    async with asyncio.timeout(30):
        while (seen := await checks()) != (200, "degraded"):
            assert seen == (200, "ok")
            await asyncio.sleep(0.1)
    status = await grid.admin("status")
    assert status["checks"] | {"database": "ok", "nats": "ok", "buckets": "degraded"} == status["checks"]
    [warning] = [text for text in status["warnings"] if "bucket" in text]
    assert "channel bad " in warning
    if how == "fails":
        assert grid.hub is not None
        bucket: Any = (await grid.hub._channels.channel("bad")).bucket
        del bucket.inner.head
        async with asyncio.timeout(30):
            while (await grid.admin("status"))["checks"]["buckets"] != "ok":
                await asyncio.sleep(0.1)


async def test_a_get_without_a_bucket_names_the_bucket(brief: Grid, empty_home: Path, tmp_path: Path) -> None:
    """The channel's folder is gone: the get ends with that as its reason, the stream's timeline says so while it waits
    and keeps it afterwards, and the next get completes when the folder is back."""
    await brief.channel("demo")
    site = Site(brief, empty_home / secrets.token_hex(4))
    original, copy = tmp_path / "original.bin", tmp_path / "copy.bin"
    original.write_bytes(os.urandom(3 * OBJECT))
    bucket, away = brief.folder / "bucket-demo", brief.folder / "away"
    try:
        holder, reader, third = await site.node("holder"), await site.node("reader"), await site.node("third")
        await site.up("holder")
        added = await holder.add(original)
        bucket.rename(away)
        getting = asyncio.create_task(reader.get(added.uri, copy, deadline=12))
        async with asyncio.timeout(30):
            while (reason := (await third.why(added.uri)).timeline.reason) is None or "bucket" not in reason.message:
                assert not getting.done()
                await asyncio.sleep(0.1)
        assert reason.kind == "bucket-unreachable"
        assert "the hub cannot reach the channel's bucket" in reason.message
        with pytest.raises(RetryLater) as caught:
            await getting
        assert caught.value.kind == "bucket-unreachable"
        timeline = (await third.why(added.uri)).timeline
        assert timeline.reason is None  # nobody waits
        told = {(event.kind, event.detail.get("reason")) for event in timeline.events}
        assert {("failed", "bucket-unreachable"), ("waited", "bucket-unreachable")} <= told
        away.rename(bucket)
        await reader.get(added.uri, copy, deadline=40)
        assert copy.read_bytes() == original.read_bytes()
    finally:
        await site.aclose()


async def test_a_full_bucket_that_cannot_be_reached_is_not_called_full(brief: Grid) -> None:
    """Where no room can be made because the bucket is away, the reader hears that it is away and not that it is full;
    when the bucket is back, room is made."""
    lock = await brief.channel("demo", quota=9 * OBJECT // 2)
    holder, other, reader = [await brief.peer(name) for name in ("holder", "other", "reader")]
    first, second = Content(os.urandom(4 * OBJECT), lock), Content(os.urandom(2 * OBJECT), lock)
    await reader.follow("demo", first.stream)
    serving = asyncio.create_task(holder.serve_all(first))
    await reader.want(first)
    await until(lambda: sorted(holder.uploaded) == [0, 1, 2, 3])
    serving.cancel()
    await reader.ask("demo", "cancel", Cancel(lock=lock.id, stream=first.stream.raw), Ack)
    await reader.ask("demo", "got", Got(lock=lock.id, stream=first.stream.raw, numbers=(0, 1, 2, 3)), Ack)
    bucket, away = brief.folder / "bucket-demo", brief.folder / "away"
    assert brief.hub is not None
    bucket.rename(away)
    serving = asyncio.create_task(other.serve_all(second))  # there is no room for any of it
    kinds: set[str] = set()
    async with asyncio.timeout(30):
        while UNREACHABLE not in kinds:
            reason = (await reader.want(second)).reason
            kinds |= set() if reason is None else {reason.kind}
            await asyncio.sleep(0.02)
    for _ in range(20):
        reason = (await reader.want(second)).reason
        assert reason is not None
        assert reason.kind == UNREACHABLE
        await asyncio.sleep(0.05)
    away.rename(bucket)
    async with asyncio.timeout(40):
        while sorted(other.uploaded) != [0, 1]:
            await brief.hub._arbiter.sweep()
            await asyncio.sleep(0.05)
    serving.cancel()


async def test_what_a_holder_says_of_the_bucket_reaches_the_reader(grid: Grid) -> None:
    """The hub finds the bucket well, the holder does not: the reader is told so, until an object comes."""
    content = Content(os.urandom(OBJECT), await grid.channel("demo"))
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    await holder.accept(content, grant)
    failed = Reason(kind="bucket-unreachable", message="the bucket at 127.0.0.1: no route")
    await holder.ask("demo", "done", Done(lock=content.lock.id, grant=grant.grant, error=failed), Ack)
    reason = (await reader.want(content)).reason
    assert reason is not None
    assert (reason.kind, "no route" in reason.message) == ("bucket-unreachable", True)
    serving = asyncio.create_task(holder.serve_all(content))
    async with asyncio.timeout(20):
        while holder.uploaded != [0] or (await reader.want(content)).reason is not None:
            await asyncio.sleep(0.05)
    serving.cancel()


async def test_what_a_newer_holder_says_passes_its_object_on(grid: Grid) -> None:
    """A holder fails for a reason that this hub has no word for: its grant ends all the same."""
    content = Content(os.urandom(OBJECT), await grid.channel("demo"))
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    await holder.accept(content, grant)
    failed = Reason(kind="from-the-future", message="out of luck")
    answer = await holder.ask("demo", "done", Done(lock=content.lock.id, grant=grant.grant, error=failed), Ack)
    assert answer.error is None
    assert grid.hub is not None
    ended = await grid.hub._database.call(grid.hub._arbiter._ledger.find_grant, grant.grant)
    assert ended is not None
    assert ended.status is GrantStatus.FAILED


async def test_asking_whether_the_hub_is_ready_costs_no_request_each_time(grid: Grid) -> None:
    """A bucket that answered is not asked again at once, however often anybody asks the hub."""
    await grid.channel("demo")
    assert grid.hub is not None
    hub_, looks = grid.hub, 0
    bucket: Any = (await hub_._channels.channel("demo")).bucket
    inner = bucket.head

    async def head(key: str) -> Any:
        nonlocal looks
        looks += 1
        return await inner(key)

    bucket.head = head
    hub_._seen.clear()
    for _ in range(5):
        await hub_._probe_buckets()
    assert looks == 1
    assert hub_._seen["demo"][0] == "ok"
