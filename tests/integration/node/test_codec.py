"""Channels with codec zstd: whole nodes, a real hub and a bucket, for bytes that compress and bytes that do not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
from pathlib import Path

import pytest
from tests.integration.node.conftest import Site
from tests.servers.grid import Grid, until

from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import Usage
from entrepot_hub.services.settings import DATABASE_NAME

BLOCK, OBJECT = 65536, 262144


def words(length: int) -> bytes:
    """Text-like bytes, another text each time."""
    dice = random.Random(secrets.randbits(64))
    vocabulary = [secrets.token_hex(dice.randint(1, 5)).encode() for _ in range(400)]
    return b" ".join(dice.choices(vocabulary, k=length // 4 + 1))[:length]


def mixed(length: int) -> bytes:
    """Miniblocks that compress and ones that do not, in turn."""
    blocks = (words(BLOCK) if index % 2 else secrets.token_bytes(BLOCK) for index in range(-(-length // BLOCK)))
    return b"".join(blocks)[:length]


@pytest.fixture
async def packed(grid: Grid) -> SchemaLock:
    """A channel of codec zstd."""
    return await grid.channel("packed", codec="zstd", miniblock=BLOCK, object=OBJECT)


async def account(grid: Grid, channel: str = "packed") -> Usage:
    """The channel's account, read from the database by another connection."""

    def look() -> Usage:
        database = Database(f"sqlite:///{grid.folder / 'hub' / DATABASE_NAME}")
        try:
            return SqlLedger(database).usage(channel)
        finally:
            database.close()

    return await asyncio.to_thread(look)


@pytest.mark.parametrize(
    ("make", "length", "ratio"),
    [
        (words, 5 * OBJECT + 12_345, 0.6),
        (secrets.token_bytes, 2 * OBJECT + 77, 1.0),
        (mixed, 3 * OBJECT + 70_000, 0.9),
        (bytes, 3 * OBJECT, 0.01),
        (words, 1, 1.0),
        (words, 0, 1.0),
    ],
    ids=["words", "random", "mixed", "zeros", "one byte", "empty"],
)
async def test_a_stream_passes_and_is_charged_as_stored(
    grid: Grid, packed: SchemaLock, site: Site, tmp_path: Path, make, length: int, ratio: float
) -> None:
    """A file arrives byte for byte; the account holds exactly what lies in the bucket, which is smaller where that
    pays, and nothing stays reserved. Another node then gets it with no holder online."""
    data = make(length)
    path = tmp_path / "original"
    path.write_bytes(data)
    giver, taker = await site.node("giver", "packed"), await site.node("taker", "packed")
    await site.up("giver")
    added = await giver.add(path)
    got = await taker.get(added.uri, tmp_path / "copy")
    assert got.path.read_bytes() == data
    assert got.fetched_bytes == length
    lying = grid.objects("packed")
    usage = await account(grid)
    assert (usage.stored, usage.reserved, usage.objects) == (sum(lying.values()), 0, len(lying))
    geometry = Geometry(length, packed)
    assert len(lying) == geometry.object_count
    headers = sum(map(geometry.header_length, range(geometry.object_count)))
    assert sum(lying.values()) - headers <= ratio * length
    if make is secrets.token_bytes:
        assert sum(lying.values()) == headers + length
    await site.down("giver")
    late = await site.node("late", "packed")
    assert (await late.get(added.uri, tmp_path / "again")).path.read_bytes() == data


async def test_ranges_touch_only_what_is_asked_for(grid: Grid, packed: SchemaLock, site: Site, tmp_path: Path) -> None:
    """Any range of a packed stream is right, and of the stream's objects only those are uploaded that hold it."""
    data = mixed(4 * OBJECT + 5)
    path = tmp_path / "original"
    path.write_bytes(data)
    giver, taker = await site.node("giver", "packed"), await site.node("taker", "packed")
    await site.up("giver")
    added = await giver.add(path)
    async with await taker.open(added.uri) as file:
        for offset, length in ((OBJECT + 10, 10), (2 * OBJECT - 2 * BLOCK, BLOCK + 7), (OBJECT, OBJECT), (OBJECT, 1)):
            assert await file.read(offset, length) == data[offset : offset + length]
        assert len(grid.objects("packed")) == 1
        assert await file.read(len(data) - 5, 5) == data[-5:]
        assert len(grid.objects("packed")) == 2


async def test_what_was_fetched_packed_is_offered_again(
    grid: Grid, packed: SchemaLock, site: Site, tmp_path: Path
) -> None:
    """A node that holds some objects of a packed stream and never had the file provides them to the next reader."""
    data = words(3 * OBJECT)
    path = tmp_path / "original"
    path.write_bytes(data)
    giver, middle = await site.node("giver", "packed"), await site.node("middle", "packed")
    await site.up("giver")
    added = await giver.add(path)
    async with await middle.open(added.uri) as file:
        assert await file.read(OBJECT, OBJECT) == data[OBJECT : 2 * OBJECT]
    await site.down("giver")
    for key in grid.objects("packed"):
        await asyncio.to_thread((grid.folder / "bucket-packed" / key).unlink)
    await site.up("middle")
    reader = await site.node("reader", "packed")
    async with await reader.open(added.uri) as file:
        assert await file.read(OBJECT + 5, 1000) == data[OBJECT + 5 : OBJECT + 1005]


async def test_nothing_spooled_outlives_its_grant(grid: Grid, packed: SchemaLock, site: Site, tmp_path: Path) -> None:
    """After a provider sent packed objects its home holds no file that it did not hold before, and its process no open
    file without a name."""
    path = tmp_path / "original"
    path.write_bytes(words(6 * OBJECT))
    giver, taker = await site.node("giver", "packed"), await site.node("taker", "packed")
    await site.up("giver")
    added = await giver.add(path)
    home = site.folder / "giver"
    before = sorted(found.name for found in home.rglob("*") if found.is_file())
    await taker.get(added.uri, tmp_path / "copy")
    assert sorted(found.name for found in home.rglob("*") if found.is_file()) == before
    await until(lambda: not nameless(home))


def nameless(folder: Path) -> list[str]:
    """The open files of this process that lie in a folder and have no name there."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return [target for target in found if target.startswith(str(folder)) and target.endswith(" (deleted)")]
