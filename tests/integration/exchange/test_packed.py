"""Channels of codec zstd on a folder and on S3: what is reserved, signed, believed and judged."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import zstandard
from tests.integration.node.conftest import Site
from tests.integration.s3.conftest import content_of, credentials, helping, location, put, serve
from tests.servers.grid import Content, Grid, Peer, send, until
from tests.servers.ministack import S3Server, run_ministack

from entrepot.core.format import decode_header, with_stored_lengths
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Accept, AcceptReply, Ack, Bad, Grant
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import Usage
from entrepot_hub.services.settings import DATABASE_NAME

pytestmark = pytest.mark.usefixtures("brief_probe")


def words(length: int) -> bytes:
    """Text-like bytes, another text each time."""
    dice = random.Random(secrets.randbits(64))
    vocabulary = [secrets.token_hex(dice.randint(1, 5)).encode() for _ in range(400)]
    return b" ".join(dice.choices(vocabulary, k=length // 4 + 1))[:length]


def mixed(length: int) -> bytes:
    """Miniblocks that compress and ones that do not, in turn."""
    blocks = (words(16384) if index % 2 else os.urandom(16384) for index in range(-(-length // 16384)))
    return b"".join(blocks)[:length]


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that holds to all that is signed."""
    with run_ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
async def lock(request: pytest.FixtureRequest, grid: Grid) -> SchemaLock:
    """The channel ``demo`` of codec zstd over a folder, and over S3."""
    if request.param == "folder":
        return await grid.channel("demo", codec="zstd")
    server = request.getfixturevalue("ministack")
    url = location(server, secrets.token_hex(4))
    return await grid.channel("demo", codec="zstd", bucket=url, credentials=credentials(server))


@pytest.fixture
async def site(grid: Grid, empty_home: Path) -> AsyncIterator[Site]:
    """Whole nodes at the hub."""
    site = Site(grid, empty_home / secrets.token_hex(4))
    try:
        yield site
    finally:
        await site.aclose()


async def account(grid: Grid) -> Usage:
    """The channel's account, read from the database by another connection."""

    def look() -> Usage:
        database = Database(f"sqlite:///{grid.folder / 'hub' / DATABASE_NAME}")
        try:
            return SqlLedger(database).usage("demo")
        finally:
            database.close()

    return await asyncio.to_thread(look)


async def ready(reader: Peer, number: int = 0) -> None:
    """Return when the reader has heard that the object is ready."""
    await until(lambda: (s := reader.state(number)) is not None and s.state == "ready")


async def take(holder: Peer, content: Content, grant: Grant, data: bytes, length: int | None = None) -> AcceptReply:
    """Accept a grant for an object of these bytes; with ``length`` without its header."""
    header = data[: content.geometry.header_length(grant.number)]
    message = Accept(
        lock=content.lock.id,
        grant=grant.grant,
        session=holder.session,
        header=header if length is None else b"",
        digest=hashlib.sha256(data).digest(),
    )
    return await holder.ask("demo", "accept", message, AcceptReply)


@pytest.mark.parametrize(
    ("make", "length"),
    [(words, 3 * 65536 + 99), (os.urandom, 2 * 65536), (mixed, 2 * 65536 + 40_000), (words, 1), (words, 0)],
    ids=["words", "random", "mixed", "one byte", "empty"],
)
async def test_files_and_ranges_pass_between_nodes(
    grid: Grid, lock: SchemaLock, site: Site, tmp_path: Path, make, length: int
) -> None:
    """A file of codec zstd arrives whole, and ranges of it are right; the account holds what was stored."""
    data = make(length)
    path = tmp_path / "original"
    path.write_bytes(data)
    giver, taker, reader = [await site.node(name) for name in ("giver", "taker", "reader")]
    await site.up("giver")
    added = await giver.add(path)
    async with await reader.open(added.uri) as file:
        for offset, size in ((0, 10), (length // 2, 5000), (length // 3, 20_000), (max(length - 7, 0), 7)):
            size = min(size, length - offset)
            assert await file.read(offset, size) == data[offset : offset + size]
    got = await taker.get(added.uri, tmp_path / "copy")
    assert await content_of(got.path) == data
    content = Content(data, lock)
    sizes = [len(content.object(number)) for number in range(content.geometry.object_count)]
    usage = await account(grid)
    assert (usage.stored, usage.reserved, usage.objects) == (sum(sizes), 0, len(sizes))


async def test_the_reservation_shrinks_when_the_grant_is_accepted(grid: Grid, lock: SchemaLock) -> None:
    """All plain bytes are reserved at the grant, exactly the stored ones from the accept on: the URL takes no byte more
    or less than those."""
    content = Content(words(65536), lock)
    whole, most = content.object(0), content.geometry.object_length(0)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    assert (await account(grid)).reserved == most
    for _ in range(2):
        reply = await take(holder, content, grant, whole)
        assert reply.put is not None
        assert (await account(grid)).reserved == len(whole) < most
    assert reply.put is not None
    assert (await put(reply.put, whole + b"!")) not in (200, 201)
    assert (await send(reply.put, whole))[0] == 200
    assert (await holder.done(content, grant)).error is None
    await ready(reader)
    usage = await account(grid)
    assert (usage.stored, usage.reserved, usage.charged) == (len(whole), 0, len(whole))
    state = reader.state(0)
    assert state is not None
    assert state.length == len(whole)


async def test_a_repeated_accept_names_the_same_object(grid: Grid, lock: SchemaLock) -> None:
    """A grant is accepted for one object: another packing of the same bytes needs another grant."""
    content = Content(words(65536), lock)
    whole = content.object(0)
    header = decode_header(content.header(0), stream=content.stream, lock=lock, number=0)
    plain = with_stored_lengths(header, None) + content.data
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    assert (await take(holder, content, grant, whole)).put is not None
    refused = await take(holder, content, grant, plain)
    assert refused.error is not None
    assert refused.error.kind == "stale-grant"
    assert (await account(grid)).reserved == len(whole)


async def test_two_packings_of_one_object_do_not_quarrel(grid: Grid, lock: SchemaLock) -> None:
    """The first holder's upload lands after its grant was given up and another's, packed otherwise, was accepted: one
    of both is ready, a reader opens it, and the account holds just that."""
    content = Content(words(65536), lock)
    packed = content.object(0)
    header = decode_header(content.header(0), stream=content.stream, lock=lock, number=0)
    blocks = [
        zstandard.ZstdCompressor(level=1).compress(content.data[at : at + 16384]) for at in range(0, 65536, 16384)
    ]
    other = with_stored_lengths(header, list(map(len, blocks))) + b"".join(blocks)
    assert len(other) != len(packed)
    first, second, reader = [await grid.peer(name) for name in ("first", "second", "reader")]
    await reader.follow("demo", content.stream)
    await reader.want(content)
    await first.offer(content, await first.sought(content))
    grant = await first.granted(0)
    late = (await take(first, content, grant, packed)).put
    assert late is not None
    await first.disconnect()
    await until(lambda: any(s.stream == content.stream.raw for _, s in second.seeks))
    seen = 0
    while not second.grants:
        for _, seek in second.seeks[seen:]:
            await second.offer(content, seek)
        seen = len(second.seeks)
        await asyncio.sleep(0.02)
    again = (await take(second, content, second.grants[0], other)).put
    assert again is not None
    assert (await account(grid)).reserved == max(len(packed), len(other))
    assert (await send(late, packed))[0] == 200
    assert (await send(again, other))[0] == 412
    assert (await second.done(content, second.grants[0])).error is None
    await ready(reader)
    state = reader.state(0)
    assert state is not None
    assert state.get is not None
    assert (await send(state.get))[1] == packed
    usage = await account(grid)
    assert (usage.stored, usage.reserved) == (len(packed), 0)


def hostile(content: Content, what: str) -> bytes:
    """Object 0 with a true header but a second miniblock that is none: as long as ever it says."""
    stored = content.stored(0)
    header = decode_header(content.header(0), stream=content.stream, lock=content.lock, number=0)
    stored[1] = {
        "bomb": zstandard.ZstdCompressor().compress(bytes(200 << 20))[:16000],
        "other bytes": zstandard.ZstdCompressor().compress(bytes(16384)),
        "rubbish": os.urandom(1000),
        "plain of others": os.urandom(16384),
    }[what]
    return with_stored_lengths(header, list(map(len, stored))) + b"".join(stored)


@pytest.mark.parametrize("what", ["bomb", "other bytes", "rubbish", "plain of others", "longer than its header"])
async def test_a_poisoned_packed_object_is_replaced_by_an_honest_holder(
    grid: Grid, lock: SchemaLock, site: Site, tmp_path: Path, what: str
) -> None:
    """Whatever a holder uploads in the place of a packed object, under a digest of just that: the reader finds it, the
    hub judges it, another holder's object takes its place, and no wrong byte is shown."""
    content = Content(words(65536), lock)
    honest = content.object(0)
    bad = honest + b"!" if what == "longer than its header" else hostile(content, what)
    attacker, helper = await grid.peer("attacker"), await grid.peer("helper")
    taker = await site.node("taker")

    async def attack() -> None:
        await attacker.offer(content, await attacker.sought(content))
        grant = await attacker.granted(0)
        reply = await take(attacker, content, grant, bad)
        if reply.put is not None:
            await put(reply.put, bad)
            await attacker.done(content, grant)

    getting = asyncio.create_task(taker.get(content.stream.hex, tmp_path / "copy"))
    await attack()
    async with helping(serve(helper, content)):
        await getting
    assert await content_of(tmp_path / "copy") == content.data
    usage = await account(grid)
    assert (usage.stored, usage.objects) == (len(honest), 1)


async def test_an_honest_packed_object_survives_false_reports(grid: Grid, lock: SchemaLock) -> None:
    """The hub unpacks what is called bad itself, and keeps it."""
    content = Content(mixed(65536), lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    async with helping(serve(holder, content)):
        await reader.want(content)
        await ready(reader)
    for miniblock in (None, 0, 1, 2, 3, 99):
        bad = Bad(lock=lock.id, stream=content.stream.raw, number=0, miniblock=miniblock)
        assert (await reader.ask("demo", "bad", bad, Ack)).error is None
    assert (await account(grid)).stored == len(content.object(0))


async def test_impossible_headers_are_refused(grid: Grid, lock: SchemaLock) -> None:
    """A header that says more than plain bytes or none for a miniblock, or another codec, costs the grant."""
    content = Content(words(65536), lock)
    whole = bytearray(content.object(0))
    for number, (at, value) in enumerate(((96, (16385).to_bytes(4)), (96, bytes(4)), (9, b"\0"))):
        liar, reader = await grid.peer(f"liar{number}"), await grid.peer(f"reader{number}")
        await reader.want(content)
        await liar.offer(content, await liar.sought(content))
        data = bytes(whole[:at] + value + whole[at + len(value) :])
        reply = await take(liar, content, await liar.granted(0), data)
        assert reply.put is None
        assert reply.error is not None
        assert reply.error.kind == "corrupt-object"
        await liar.disconnect()


async def test_one_object_for_a_whole_stream(grid: Grid, site: Site, tmp_path: Path) -> None:
    """A stream in one object, with a header too long for a message: its length travels with the accept, and exactly
    that is charged."""
    lock = await grid.channel("whole", codec="zstd", object=0)
    data = words(200_000) * 80
    assert Content(data[:16384], lock).geometry.object_count == 1
    path = tmp_path / "original"
    path.write_bytes(data)
    giver, taker = await site.node("giver", "whole"), await site.node("taker", "whole")
    await site.up("giver")
    added = await giver.add(path)
    got = await taker.get(added.uri, tmp_path / "copy")
    assert await content_of(got.path) == data
    [(_, size)] = grid.objects("whole").items()
    assert size < 0.7 * len(data)
    async with await taker.open(added.uri) as file:
        assert await file.read(8_000_000, 100) == data[8_000_000:8_000_100]
