"""A bucket that hangs or fails is the trouble of its own channel: all others go on, and the hub is ready."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.servers.grid import Content, Grid, Peer, running_grid, until

from entrepot.core.errors import RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.services import hub

OBJECT = 65536
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
        name = names.get(prefix.strip("/"))
        if name is not None:
            listed.append(name)
        if name == "bad":
            await asyncio.Event().wait()
        return await inner(bucket, prefix, *args)

    monkeypatch.setattr(FolderBucket, "list", listing)
    monkeypatch.setattr(hub, "_DUE", 0.1)
    await grid.start()
    await until(lambda: {"bad", "good"} <= set(listed))
    names[(await grid.channel("late")).id.hex()] = "late"
    await until(lambda: "late" in listed)


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_a_bad_bucket_degrades_the_hub_and_leaves_it_ready(grid: Grid, how: str) -> None:
    """/readyz stays 200 and says degraded; the status names the channel; and it is ok again when the bucket is."""
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
