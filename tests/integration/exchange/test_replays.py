"""What is said again and again costs the channel next to nothing, and makes nobody look better."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from tests.servers.grid import Content, Grid, until

from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Ack, Missing

OBJECT = 65536


async def counted(grid: Grid) -> list[str]:
    """The keys that the hub looks at in the bucket from now on."""
    assert grid.hub is not None
    bucket: Any = (await grid.hub._channels.channel("demo")).bucket
    looks: list[str] = []
    inner = bucket.inner.head

    async def head(key: str) -> Any:
        looks.append(key)
        return await inner(key)

    bucket.inner.head = head
    return looks


async def test_an_old_upload_forgives_no_new_failure(grid: Grid, lock: SchemaLock) -> None:
    """A node that once uploaded an object says so again after each failure: it is left out all the same."""
    content = Content(os.urandom(2 * OBJECT), lock)
    bad, reader = await grid.peer("bad"), await grid.peer("reader")
    await reader.want(content)
    await bad.offer(content, await bad.sought(content))
    old = await bad.granted(0)
    await bad.upload(content, old)
    assert grid.hub is not None
    found = grid.hub._arbiter.rounds._rounds["demo", content.stream.raw]
    failed = await bad.granted(1)
    await bad.accept(content, failed)
    await bad.done(content, failed)
    await until(lambda: found.failures == {bad.node: 1})
    for _ in range(2):
        await bad.done(content, old)
        await asyncio.sleep(1.1)  # so that it is looked at again
    await bad.done(content, old)
    assert found.failures == {bad.node: 1}
    await until(lambda: any(g.number == 1 and g.grant != failed.grant for g in bad.grants))
    again = next(g for g in bad.grants if g.number == 1 and g.grant != failed.grant)
    await bad.accept(content, again)
    await bad.done(content, again)
    await until(lambda: bad.node in found.excluded)


async def test_who_brings_an_object_is_forgiven(grid: Grid, lock: SchemaLock) -> None:
    """A node that failed once and then uploads counts as before."""
    content = Content(os.urandom(OBJECT), lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    failed = await holder.granted(0)
    await holder.accept(content, failed)
    await holder.done(content, failed)
    assert grid.hub is not None
    found = grid.hub._arbiter.rounds._rounds["demo", content.stream.raw]
    await until(lambda: found.failures == {holder.node: 1})
    again = await until(lambda: next((g for g in holder.grants if g.grant != failed.grant), None))
    assert again is not None
    await holder.upload(content, again)
    await until(lambda: found.failures == {})


async def test_repeated_reports_are_looked_into_once_a_second(grid: Grid, lock: SchemaLock) -> None:
    """However often an object is called missing or done, and by whom, there is one look at it in a second."""
    content = Content(os.urandom(OBJECT), lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    guest = await grid.peer("guest", rights="read", hear=False)
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    await holder.upload(content, grant)
    looks = await counted(grid)
    missing = Missing(lock=lock.id, stream=content.stream.raw, number=0)
    begun = time.time()
    for _ in range(5):
        told = [guest.ask("demo", "missing", missing, Ack) for _ in range(20)]
        answers = await asyncio.gather(*told, *(holder.done(content, grant) for _ in range(20)))
        assert {answer.error for answer in answers} == {None}
    assert 1 <= len(looks) <= time.time() - begun + 2
