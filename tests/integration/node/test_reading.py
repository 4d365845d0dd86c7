"""Reading parts of a stream that was never fetched: only what is touched moves, and it moves once."""

from __future__ import annotations

import asyncio
import io
import random
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.integration.node.conftest import Site

from entrepot.core.errors import InvalidInput, NotFound
from entrepot.core.identifiers import StreamId
from entrepot.core.uri import StreamUri
from entrepot.services.blocking import Blocking

MINIBLOCK, OBJECT = 16384, 65536


async def test_only_what_is_read_moves(site: Site, original: Path, data: bytes) -> None:
    """Reading a hundred bytes has one object uploaded and one miniblock of it downloaded."""
    giver, reader = await site.node("giver"), await site.node("reader")
    await site.up("giver")
    added = await giver.add(original)
    async with await reader.open(added.uri) as file:
        assert file.length == len(data)
        assert site.grid.objects() == {}
        assert await file.read(3 * OBJECT + 20_000, 100) == data[3 * OBJECT + 20_000 :][:100]
        assert len(site.grid.objects()) == 1
        (stored,) = [await reader._store.size()]
        assert stored.stored <= 2 * MINIBLOCK + 4096


async def test_what_was_read_is_local(site: Site, original: Path, data: bytes) -> None:
    """A range that was read is read again with the hub and the bucket gone; beyond it the reason is told."""
    giver, reader = await site.node("giver"), await site.node("reader")
    await site.up("giver")
    added = await giver.add(original)
    async with await reader.open(added.uri, deadline=2.5) as file:
        first = await file.read(10, 30_000)
        await site.down("giver")
        await site.grid.stop()
        assert await file.read(10, 30_000) == first == data[10:30_010]
        with pytest.raises(Exception, match=r"."):
            await file.read(len(data) - 10, 10)


async def test_another_miniblock_of_an_object_needs_no_want(site: Site, original: Path, data: bytes) -> None:
    """While the signed URL of an object holds, its other miniblocks come without the hub's bus."""
    giver, reader = await site.node("giver"), await site.node("reader")
    await site.up("giver")
    added = await giver.add(original)
    async with await reader.open(added.uri) as file:
        await file.read(0, 10)
        session, _ = await file._connect()
        before = session.bus._serial
        assert await file.read(2 * MINIBLOCK, 10) == data[2 * MINIBLOCK :][:10]
        assert session.bus._serial == before


async def test_random_reads_at_once(site: Site, original: Path, data: bytes) -> None:
    """Twenty reads at once, some past the end, all give the right bytes; each object is uploaded once."""
    giver, reader = await site.node("giver"), await site.node("reader")
    daemon = await site.up("giver")
    added = await giver.add(original)
    chance = random.Random(5)
    spans = [(chance.randrange(len(data)), chance.randrange(1, 100_000)) for _ in range(20)]
    async with await reader.open(added.uri) as file:
        parts = await asyncio.gather(*(file.read(offset, length) for offset, length in spans))
        assert parts == [data[offset : offset + length] for offset, length in spans]
        assert await file.read(len(data), 10) == b""
        assert await file.read(len(data) - 3, 10) == data[-3:]
        with pytest.raises(InvalidInput):
            await file.read(-1, 1)
    assert (await daemon.status()).hubs[0].uploaded_objects <= 9


async def test_a_stream_is_read_in_order(site: Site, original: Path, data: bytes) -> None:
    """Streaming gives the whole stream, or a range of it, in order; only the objects of the range are uploaded."""
    giver, reader = await site.node("giver"), await site.node("reader")
    await site.up("giver")
    added = await giver.add(original)
    piece = b"".join([part async for part in reader.cat(added.uri, OBJECT + 5, 2 * OBJECT)])
    assert piece == data[OBJECT + 5 : 3 * OBJECT + 5]
    assert len(site.grid.objects()) == 3
    assert b"".join([part async for part in reader.cat(added.uri)]) == data
    assert b"".join([part async for part in reader.cat(added.uri, len(data) + 5)]) == b""


async def test_a_reader_may_leave_in_the_middle(site: Site, original: Path, data: bytes) -> None:
    """Ending an iteration early stops the transfer behind it and leaves the node usable."""
    giver, reader = await site.node("giver"), await site.node("reader")
    await site.up("giver")
    added = await giver.add(original)
    async with aclosing(reader.cat(added.uri)) as pieces:
        async for piece in pieces:
            assert data.startswith(piece)
            break
    assert b"".join([part async for part in reader.cat(added.uri, 0, 10)]) == data[:10]


async def test_opening_what_nobody_has(site: Site) -> None:
    """A stream that nobody offers cannot be opened, and the reason says so."""
    reader = await site.node("reader")
    unknown = StreamUri("demo", None, StreamId(bytes([0xFF]) + bytes(31)))
    with pytest.raises(NotFound) as caught:
        await reader.open(unknown, deadline=2.5)
    assert caught.value.kind == "no-holder"


async def test_a_whole_get_after_parts_fetches_the_rest(
    site: Site, original: Path, data: bytes, tmp_path: Path
) -> None:
    """Miniblocks that came by reading count when the whole file is fetched."""
    giver, reader = await site.node("giver"), await site.node("reader")
    await site.up("giver")
    added = await giver.add(original)
    async with await reader.open(added.uri) as file:
        await file.read(0, 5 * MINIBLOCK)
    got = await reader.get(added.uri, tmp_path / "copy")
    assert got.fetched_bytes == len(data) - 5 * MINIBLOCK
    assert await asyncio.to_thread(got.path.read_bytes) == data


async def test_the_blocking_face(site: Site, original: Path, data: bytes, tmp_path: Path) -> None:
    """The same node without asyncio: add, get, and a file object that seeks and reads."""
    await site.node("giver")
    await site.node("reader")
    await site.up("giver")

    def without_asyncio() -> None:
        with Blocking(site.settings("giver")) as giver, Blocking(site.settings("reader")) as reader:
            uri = giver.add(original).uri
            with reader.open(uri) as file:
                assert file.seek(-10, io.SEEK_END) == len(data) - 10
                assert file.read() == data[-10:]
                assert file.read() == b""
                file.seek(OBJECT)
                assert io.BufferedReader(file, 1000).read(3000) == data[OBJECT : OBJECT + 3000]
            assert b"".join(reader.cat(uri, 5, 70_000)) == data[5:70_005]
            assert next(iter(reader.cat(uri))) == data[: 1 << 20]
            got = reader.get(uri, tmp_path / "copy")
            assert got.path.read_bytes() == data
            assert [entry.stream for entry in reader.entries()] == [got.stream]
            with pytest.raises(InvalidInput):
                reader.get("nonsense")
        with pytest.raises(InvalidInput):
            reader.whoami()

    await asyncio.to_thread(without_asyncio)
