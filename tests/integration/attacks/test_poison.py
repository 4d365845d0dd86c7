"""Objects that seem right and are not: a valid header over other bytes, with the digest of just that."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.attacks.conftest import Refused
from tests.integration.node.conftest import Site
from tests.integration.s3.conftest import content_of, credentials, helping, location, put, serve
from tests.servers.grid import Content, Grid, Peer, running_grid, until
from tests.servers.ministack import S3Server, run_ministack

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Ack, Bad, Signed

pytestmark = pytest.mark.usefixtures("brief_probe")


def poisoned(content: Content, number: int) -> bytes:
    """The object's true header over other bytes."""
    good = bytearray(content.object(number))
    good[-1] ^= 1
    return bytes(good)


async def poison(attacker: Peer, content: Content, urls: list[Signed], times: int = 1000) -> None:
    """Offer object 0 whenever it is sought, and upload it poisoned under the poison's own digest, so many times."""
    sought, served, bad = 0, set[bytes](), poisoned(content, 0)
    while len(urls) < times:
        for _, seek in attacker.seeks[sought:]:
            if seek.stream == content.stream.raw:
                await attacker.offer(content, seek, numbers=(0, 0))
        sought = len(attacker.seeks)
        for grant in [g for g in attacker.grants if g.grant not in served]:
            served.add(grant.grant)
            reply = await attacker.accept(content, grant, digest=hashlib.sha256(bad).digest())
            if reply.put is not None:
                if await put(reply.put, bad) == 200:
                    urls.append(reply.put)
                await attacker.done(content, grant)
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that holds to all that is signed."""
    with run_ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
async def lock(request: pytest.FixtureRequest, grid: Grid) -> SchemaLock:
    """The channel ``demo`` over a folder, and over S3."""
    if request.param == "folder":
        return await grid.channel("demo")
    server = request.getfixturevalue("ministack")
    url = location(server, secrets.token_hex(4))
    return await grid.channel("demo", bucket=url, credentials=credentials(server))


@pytest.fixture
async def site(grid: Grid, empty_home: Path) -> AsyncIterator[Site]:
    """Whole nodes at the hub."""
    site = Site(grid, empty_home / secrets.token_hex(4))
    try:
        yield site
    finally:
        await site.aclose()


async def test_a_poisoned_object_is_replaced_by_an_honest_holder(
    grid: Grid, lock: SchemaLock, site: Site, tmp_path: Path, refused: Refused
) -> None:
    """A holder uploads an object whose header is right and whose bytes are not, under the digest of just that, so that
    nothing is wrong with the upload. The reader finds it, the hub judges it, and the object comes from another holder;
    nobody is shown a wrong byte."""
    content = Content(os.urandom(2 * 65536), lock)
    attacker, honest = await grid.peer("attacker"), await grid.peer("honest")
    urls: list[Signed] = []
    taker = await site.node("taker")
    async with helping(poison(attacker, content, urls)):
        getting = asyncio.create_task(taker.get(content.stream.hex, tmp_path / "copy"))
        await until(lambda: urls)
        async with helping(serve(honest, content)):
            await getting
    assert await content_of(tmp_path / "copy") == content.data
    assert not [check.bad for check in await taker.verify() if check.bad]
    refused("a poisoned object, then recovery from an honest holder")


async def test_a_poison_put_again_delays_and_no_more(tmp_path: Path, empty_home: Path, refused: Refused) -> None:
    """Whoever keeps the URL of a condemned upload puts the same there again whenever the key is free: nobody reads it,
    it is taken out each time, and once the URL has ended the object comes from the honest holder."""
    brief = ExchangeSettings(put_url=4.0, put_grace=0.5, exclusion=1.0, lease=3.0)
    async with running_grid(tmp_path, brief) as grid:
        lock = await grid.channel("demo")
        site = Site(grid, empty_home / secrets.token_hex(4))
        content = Content(os.urandom(2 * 65536), lock)
        attacker, honest = await grid.peer("attacker"), await grid.peer("honest")
        urls: list[Signed] = []
        statuses: list[int] = []

        async def again() -> None:
            while True:
                for url in urls:
                    statuses.append(await put(url, poisoned(content, 0)))
                await asyncio.sleep(0.005)

        try:
            taker = await site.node("taker")
            async with helping(poison(attacker, content, urls, 1)):
                getting = asyncio.create_task(taker.get(content.stream.hex, tmp_path / "copy"))
                await until(lambda: urls)
                async with helping(serve(honest, content), again()):
                    await getting
            assert await content_of(tmp_path / "copy") == content.data
            assert not [check.bad for check in await taker.verify() if check.bad]
        finally:
            await site.aclose()
    assert statuses
    refused("a condemned object put there again by its old URL")


async def test_who_brings_bad_objects_again_and_again_comes_last(tmp_path: Path, refused: Refused) -> None:
    """After three condemned objects in an hour a holder is granted nothing that somebody else offers too, whatever the
    stream; what only it offers it still is."""
    async with running_grid(tmp_path, ExchangeSettings(offer_window=1.0)) as grid:
        lock = await grid.channel("demo")
        attacker, honest, reader = [await grid.peer(name) for name in ("attacker", "honest", "reader")]
        for _ in range(3):
            content = Content(os.urandom(65536), lock)
            await reader.follow("demo", content.stream)
            reader.states.clear()
            await reader.want(content)
            seen = len(attacker.grants)
            await attacker.offer(content, await attacker.sought(content))
            grant = await attacker.granted(0, after=seen)
            bad = poisoned(content, 0)
            reply = await attacker.accept(content, grant, digest=hashlib.sha256(bad).digest())
            assert reply.put is not None
            assert await put(reply.put, bad) == 200
            await attacker.done(content, grant)
            await until(lambda: (s := reader.state(0)) is not None and s.state == "ready")
            report = Bad(lock=lock.id, stream=content.stream.raw, number=0, miniblock=3)
            assert (await reader.ask("demo", "bad", report, Ack)).error is None
        both = Content(os.urandom(16 * 65536), lock)
        seen = len(attacker.grants)
        await reader.want(both, window=16)
        for holder in (attacker, honest):
            await holder.offer(both, await holder.sought(both), slots=16)
        await until(lambda: len({g.number for g in honest.grants}) == 16)
        assert [grant for grant in attacker.grants[seen:] if grant.stream == both.stream.raw] == []
        alone = Content(os.urandom(65536), lock)
        await reader.want(alone)
        await attacker.offer(alone, await attacker.sought(alone))
        await until(lambda: any(grant.stream == alone.stream.raw for grant in attacker.grants))
    refused("a poisoned object, then recovery from an honest holder")
