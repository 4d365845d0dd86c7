"""Bad uploads and bad buckets: whatever arrives or is put there, readers keep and show right bytes only, and the
account is that of the bucket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from tests.contract.buckets.requests import make
from tests.integration.s3.conftest import Stage, content_of, helping, put, serve
from tests.servers.grid import Content, Peer, send, until

from entrepot.core.errors import RetryLater
from entrepot.core.messages import Ack, Bad, Cancel, Done, Got, Missing, Signed, reason_of

OBJECT = 65_536


def flipped(data: bytes, at: int) -> bytes:
    """The data with one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


async def truncated(signed: Signed, data: bytes) -> int:
    """Send the granted headers and half of the body, then end the connection."""

    def call() -> int:
        parts = urlsplit(signed.url)
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
            headers = "".join(f"{name}: {value}\r\n" for name, value in signed.headers.items())
            head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n{headers}\r\n"
            connection.sendall(head.encode() + data[: len(data) // 2])
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        return 0

    return await asyncio.to_thread(call)


async def stripped(signed: Signed, data: bytes) -> int:
    """PUT without any of the headers that bind."""
    headers = {"Content-Length": str(len(data))}
    return (await asyncio.to_thread(make, "PUT", signed.url, headers, data)).status


async def twice(signed: Signed, content: Content) -> None:
    """PUT the right object and then another one."""
    await put(signed, content.object(0))
    await put(signed, flipped(content.object(0), -1))


#: What a bad provider does with the URL for object 0.
UPLOADS: dict[str, Callable[[Signed, Content], Awaitable[object]]] = {
    "other bytes": lambda signed, c: put(signed, flipped(c.object(0), -1)),
    "other bytes without headers": lambda signed, c: stripped(signed, flipped(c.object(0), 40_000)),
    "another header": lambda signed, c: put(signed, flipped(c.object(0), 60)),
    "another object": lambda signed, c: put(signed, c.object(1)),
    "a shorter one": lambda signed, c: put(signed, c.object(0)[:-1]),
    "a longer one": lambda signed, c: put(signed, c.object(0) + b"+"),
    "nothing": lambda signed, c: put(signed, b""),
    "a broken connection": lambda signed, c: truncated(signed, c.object(0)),
    "twice": twice,
}


async def lie(peer: Peer, content: Content, upload: Callable[[Signed, Content], Awaitable[object]]) -> None:
    """Offer object 0 alone, and do this with every URL for it."""
    sought, served = 0, set[bytes]()
    while True:
        for _, seek in peer.seeks[sought:]:
            if seek.stream == content.stream.raw:
                await peer.offer(content, seek, numbers=(0, 0))
        sought = len(peer.seeks)
        for grant in [g for g in peer.grants if g.grant not in served and g.stream == content.stream.raw]:
            served.add(grant.grant)
            reply = await peer.accept(content, grant)
            if reply.put is not None:
                await upload(reply.put, content)
                await peer.done(content, grant)
        await asyncio.sleep(0.01)


async def test_bad_uploads_reach_no_reader(stage: Callable[..., Any]) -> None:
    """Nine ways to upload something else: the server refuses it, or the hub's look finds it, or the reader's
    verification does; then the object comes from another holder, and the file is right."""
    at: Stage
    async with stage() as at:
        taker = await at.site.node("taker")
        contents: dict[str, Content] = {}
        liars: dict[str, Peer] = {}

        async def one(name: str) -> None:
            content = contents[name] = at.content()
            liar, honest = await at.grid.peer("liar"), await at.grid.peer("honest")
            liars[name] = liar
            async with helping(lie(liar, content, UPLOADS[name])):
                getting = asyncio.create_task(taker.get(content.stream.hex, at.folder / name))
                await until(lambda: any(grant.number == 0 for grant in liar.grants))
                async with helping(serve(honest, content)):
                    got = await getting
            assert await content_of(got.path) == content.data, name

        async with asyncio.TaskGroup() as group:
            for name in UPLOADS:
                group.create_task(one(name))
        assert not [check.bad for check in await taker.verify() if check.bad]
        await at.balanced(*contents.values())
        if at.ground.kind == "careless":
            for name in ("other bytes", "another header", "another object"):
                assert "bad-object" in await at.strikes(liars[name]), name
        assert await at.reports() == []


#: What becomes of object 0 in the bucket after it was ready: by its owner's hand, or by another use of the PUT URL.
CHANGES: dict[str, Callable[[Stage, Content, Signed], Awaitable[object]]] = {
    "a damaged byte": lambda at, c, _: at.owner.put(c, 0, flipped(c.object(0), -1)),
    "a damaged header": lambda at, c, _: at.owner.put(c, 0, flipped(c.object(0), 60)),
    "swapped": lambda at, c, _: at.owner.put(c, 0, c.object(1)),
    "shorter": lambda at, c, _: at.owner.put(c, 0, c.object(0)[:-1]),
    "longer": lambda at, c, _: at.owner.put(c, 0, c.object(0) + b"+"),
    "empty": lambda at, c, _: at.owner.put(c, 0, b""),
    "gone": lambda at, c, _: at.owner.delete(c, 0),
    "the same again": lambda at, c, _: at.owner.put(c, 0, c.object(0)),
    "put again otherwise": lambda _, c, url: put(url, flipped(c.object(0), -1)),
    "put again and broken off": lambda _, c, url: truncated(url, c.object(0)),
}


async def test_objects_changed_behind_the_hubs_back_reach_no_reader(stage: Callable[..., Any]) -> None:
    """A ready object is damaged, swapped for a valid one of the same stream, cut, removed, put once more by its URL:
    the reader refuses what it gets, the hub takes it out and has it uploaded again, and no report is a strike."""
    at: Stage
    async with stage() as at:
        taker = await at.site.node("taker")
        contents: dict[str, Content] = {}
        peers: list[Peer] = []

        async def one(name: str) -> None:
            content = contents[name] = at.content()
            first, second, starter = [await at.grid.peer(who) for who in ("first", "second", "starter")]
            peers.extend((second, starter))
            await starter.follow("demo", content.stream)
            urls: dict[int, Signed] = {}
            async with helping(serve(first, content, urls)):
                await starter.want(content)
                await until(lambda: all((s := starter.state(n)) and s.state == "ready" for n in range(3)))
            await first.disconnect()
            await CHANGES[name](at, content, urls[0])
            async with helping(serve(second, content)):
                got = await taker.get(content.stream.hex, at.folder / name)
            assert await content_of(got.path) == content.data, name

        async with asyncio.TaskGroup() as group:
            for name in CHANGES:
                group.create_task(one(name))
        assert not [check.bad for check in await taker.verify() if check.bad]
        await at.balanced(*contents.values())
        for peer in peers:
            assert await at.strikes(peer) == []
        assert await at.reports() == []


async def evicted(at: Stage, content: Content, holder: Peer, reader: Peer) -> dict[int, Signed]:
    """Pass a stream through a channel that it does not fit into; the PUT URLs of the objects that left again."""
    await reader.follow(content.lock.channel, content.stream)
    last = content.geometry.object_count - 1
    await reader.want(content, ranges=((0, last),), window=2)
    await holder.offer(content, await holder.sought(content))
    urls: dict[int, Signed] = {}
    for number in range(last + 1):
        grant = await holder.granted(number)
        reply = await holder.accept(content, grant)
        assert reply.put is not None
        urls[number] = reply.put
        assert await put(reply.put, content.object(number)) == 200
        await holder.done(content, grant)
        await until(lambda n=number: (s := reader.state(n)) is not None and s.state == "ready")  # type: ignore[misc]
        got = Got(lock=content.lock.id, stream=content.stream.raw, numbers=(number,))
        await reader.ask(content.lock.channel, "got", got, Ack)
        await reader.want(content, ranges=((min(number + 1, last), last),), window=2)
    there = await at.owner.of(content)
    return {number: url for number, url in urls.items() if number not in there}


async def test_a_late_put_after_eviction(stage: Callable[..., Any]) -> None:
    """An object was evicted and its old URL is used again, with right and with wrong bytes: the tombstone refuses it,
    or what it put there makes way for the next grant, whose object readers get."""
    at: Stage
    async with stage() as at:
        lock = await at.grid.channel("small", bucket=at.ground.url, quota=4 * 70_000)
        content = Content(os.urandom(6 * OBJECT), lock)
        holder, reader = await at.grid.peer("holder", "small"), await at.grid.peer("reader", "small")
        late = await evicted(at, content, holder, reader)
        assert len(late) >= 2
        await at.balanced(content)
        right, wrong, *_ = late
        statuses = [
            await put(late[right], content.object(right)),
            await put(late[wrong], flipped(content.object(wrong), -1)),
        ]
        assert statuses == ([412, 412] if at.ground.kind == "ministack" else [200, 200])
        await holder.disconnect()
        taker, other = await at.site.node("taker", "small"), await at.grid.peer("other", "small")
        async with helping(serve(other, content)):
            got = await taker.get(content.stream.hex, at.folder / "copy", deadline=20)
        assert await content_of(got.path) == content.data
        await at.balanced(content)


async def test_what_a_late_put_left_is_swept_when_no_url_works_any_more(stage: Callable[..., Any]) -> None:
    """Nobody asks for the evicted object again: what the late PUT put over its tombstone is removed by the sweep after
    the URL's end, and so is every tombstone."""
    at: Stage
    async with stage(put_url=2, put_grace=0.5) as at:
        lock = await at.grid.channel("small", bucket=at.ground.url, quota=4 * 70_000)
        content = Content(os.urandom(6 * OBJECT), lock)
        holder, reader = await at.grid.peer("holder", "small"), await at.grid.peer("reader", "small")
        late = await evicted(at, content, holder, reader)
        for number, url in late.items():
            await put(url, flipped(content.object(number), -1))
        await reader.ask("small", "cancel", Cancel(lock=lock.id, stream=content.stream.raw), Ack)
        await holder.disconnect()
        await asyncio.sleep(3.0)  # until no URL works
        await at.grid.stop()
        await at.grid.start()  # sweeps at once

        async def clean() -> bool:
            found = await at.owner.sizes(f"lab/one/{lock.hex}/{content.stream}/")
            return all(found.values()) and not {int(key[-8:], 16) for key in found} & late.keys()

        async with asyncio.timeout(20):
            while not await clean():
                await asyncio.sleep(0.05)
        await at.balanced(content)


async def test_a_report_is_judged_by_what_lies_there(stage: Callable[..., Any]) -> None:
    """A false report of a good object removes nothing and strikes the reporter; ``missing`` of what is there changes
    nothing; a done that names an error for a good upload is overruled by the look."""
    at: Stage
    async with stage() as at:
        content = at.content(OBJECT)
        holder, reader = await at.grid.peer("holder"), await at.grid.peer("reader")
        await reader.follow("demo", content.stream)
        await reader.want(content)
        await holder.offer(content, await holder.sought(content))
        grant = await holder.granted(0)
        reply = await holder.accept(content, grant)
        assert reply.put is not None
        await put(reply.put, content.object(0))
        trouble = reason_of(RetryLater("the answer was lost", kind="bucket-unreachable"))
        done = Done(lock=content.lock.id, grant=grant.grant, error=trouble)
        assert (await holder.ask("demo", "done", done, Ack)).error is None
        await until(lambda: (s := reader.state(0)) is not None and s.state == "ready")
        state = reader.state(0)
        assert state is not None
        lock, stream, etag = content.lock.id, content.stream.raw, state.etag
        await reader.ask("demo", "missing", Missing(lock=lock, stream=stream, number=0, etag=etag), Ack)
        for miniblock in (None, 0, 3):
            report = Bad(lock=lock, stream=stream, number=0, etag=etag, miniblock=miniblock)
            await reader.ask("demo", "bad", report, Ack)
        assert await at.strikes(reader) == ["false-report"] * 3
        assert state.get is not None
        assert (await send(state.get))[1] == content.object(0)
        usage = await at.balanced(content)
        assert (usage.objects, usage.reserved) == (1, 0)
