"""Whole streams through real S3 servers: between hand-driven peers, between whole nodes, in ranges, after a restart."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from tests.integration.s3.conftest import Stage, content_of, helping, serve
from tests.servers.grid import Content, send, until

from entrepot.adapters.transfer import SignedRequest, Transfers
from entrepot.core.format import verify_object
from entrepot.core.messages import Ack, Got, Signed


async def every_run(content: Content, number: int, get: Signed) -> None:
    """Every run of miniblocks of an object, asked for in ranges, is verified and right."""
    offset, length = content.geometry.object_span(number)
    data, count = content.data[offset : offset + length], len(content.geometry.miniblocks_of(number))
    request = SignedRequest(get.method, get.url, get.headers)
    async with Transfers() as transfers:
        for first in range(count):
            for last in range(first + 1, count + 1):
                part = await transfers.get_range(
                    request, content.stream, content.lock, content.opening, number, range(first, last)
                )
                assert part == data[first * 16384 : last * 16384]


async def test_a_stream_passes_between_peers(stage: Callable[..., Any]) -> None:
    """Want, seek, offer, grant, PUT, done, ready, GET, got: every object and every range of it proves itself, and
    the account holds."""
    at: Stage
    async with stage() as at:
        content = at.content()
        holder, reader = await at.grid.peer("holder"), await at.grid.peer("reader")
        await reader.follow("demo", content.stream)
        async with helping(serve(holder, content)):
            await reader.want(content)
            await until(lambda: all((s := reader.state(n)) and s.state == "ready" for n in range(3)))
        for number in range(3):
            state = reader.state(number)
            assert state is not None
            assert state.get is not None
            status, body = await send(state.get)
            assert status == 200
            verify_object(body, stream=content.stream, lock=content.lock, number=number)
            assert body == content.object(number)
            await every_run(content, number, state.get)
        got = Got(lock=content.lock.id, stream=content.stream.raw, numbers=(0, 1, 2))
        assert (await reader.ask("demo", "got", got, Ack)).error is None
        assert sorted(await at.owner.of(content)) == [0, 1, 2]
        await at.balanced(content)


async def test_a_file_passes_between_nodes(stage: Callable[..., Any]) -> None:
    """A daemon uploads each object of a file once, another node gets it byte for byte; a third one, with the daemon
    and the hub's process of then gone, gets it from the bucket."""
    at: Stage
    async with stage() as at:
        data = secrets.token_bytes(8 * 65536 + 12_345)
        path = at.folder / "original"
        path.write_bytes(data)
        giver, taker = await at.site.node("giver"), await at.site.node("taker")
        await at.site.up("giver")
        added = await giver.add(path)
        got = await taker.get(added.uri, at.folder / "copy")
        assert await content_of(got.path) == data
        usage = await at.usage()
        assert usage.objects == 9
        assert usage.reserved == 0
        await at.site.down("giver")
        await at.grid.stop()
        await at.grid.start()
        late = await at.site.node("late")
        again = await late.get(added.uri, at.folder / "again")
        assert await content_of(again.path) == data
        assert again.from_bucket_bytes == len(data)
        assert await at.usage() == usage


async def test_ranges_are_right_whatever_the_server_answers(stage: Callable[..., Any]) -> None:
    """A few bytes out of the middle are the right ones, also where a range is answered with 200 and everything."""
    at: Stage
    async with stage() as at:
        content = at.content()
        holder, taker = await at.grid.peer("holder"), await at.site.node("taker")
        async with helping(serve(holder, content)), await taker.open(content.stream.hex) as file:
            for offset, length in ((100_000, 10), (65_000, 2000), (90_000, 40_000), (16_384, 16_384), (0, 10)):
                assert await file.read(offset, length) == content.data[offset : offset + length]
