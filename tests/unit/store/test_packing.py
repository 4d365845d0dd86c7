"""Objects of a channel of codec zstd as the store prepares them: packed once, bounded, and gone when released."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.store.conftest import SETTINGS

from entrepot.adapters.files import FileIdentity
from entrepot.adapters.store import ObjectSource, Store
from entrepot.core.errors import Conflict, RetryLater
from entrepot.core.format import unpack_miniblock, verify_object
from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock

type MakeFile = Callable[[str, bytes], Path]

LOCK = SchemaLock("demo", "zstd", miniblock=16384, object=65536)
BIG = SchemaLock("demo", "zstd", miniblock=1 << 20, object=4 << 20)
TEXT = b"a line of text, and another line of text\n"


def text(length: int) -> bytes:
    return (TEXT * (length // len(TEXT) + 1))[:length]


def stored(source: ObjectSource) -> bytes:
    """The object as it would be sent."""
    with source.path.open("rb") as file:
        assert source.matches(None) is False
        file.seek(source.offset)
        return source.header + file.read(source.length)


def opened(source: ObjectSource, lock: SchemaLock) -> bytes:
    """The plain bytes of an object that verifies and has the digest that is said."""
    whole = stored(source)
    assert (len(whole), source.digest) == (source.size, hashlib.sha256(whole).digest())
    header = verify_object(whole, stream=source.stream, lock=lock, number=source.number)
    spans = map(header.miniblock_span, range(len(header.nodes)))
    return b"".join(bytes(unpack_miniblock(header, i, whole[o : o + n])) for i, (o, n) in enumerate(spans))


@pytest.mark.parametrize(
    "lock", [LOCK, BIG, SchemaLock("demo", "zstd", miniblock=65536, object=0)], ids=["S", "L", "0"]
)
async def test_objects_are_packed_where_it_pays(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """Text becomes smaller, random bytes stay where they lie, a mixture is spooled; each opens to its own bytes."""
    half = os.urandom(3 * lock.miniblock)
    for name, data, spooled in (
        ("text", text(5 * lock.miniblock + 9), True),
        ("random", os.urandom(2 * lock.miniblock + 9), False),
        ("mixed", half + text(3 * lock.miniblock) + half[:5], True),
    ):
        added = await store.add(file(name, data), channel="hub/demo", lock=lock)
        geometry = Geometry(len(data), lock)
        sources = [await store.object_source(added.stream, lock, n) for n in range(geometry.object_count)]
        assert b"".join(opened(source, lock) for source in sources) == data
        assert any(source.spool is not None for source in sources) == spooled
        assert all(source.path.name == name for source in sources if source.spool is None)
        total = sum(source.size for source in sources)
        plain = sum(geometry.object_length(n) for n in range(geometry.object_count))
        assert total < 0.7 * plain if spooled else total == plain
        for source in sources:
            await store.confirm(source)
            source.release()
            source.release()


async def test_a_released_object_is_gone(store: Store, file: MakeFile, tmp_path: Path) -> None:
    """A spool has no name in the store's folder; released, it is no open file any more, but for who is sending it."""
    added = await store.add(file("f", text(65536)), channel="hub/demo", lock=LOCK)
    before = sorted(tmp_path.rglob("*"))
    source = await store.object_source(added.stream, LOCK, 0)
    assert sorted(tmp_path.rglob("*")) == before
    assert source.path.exists()
    path = source.path
    with path.open("rb") as sending:
        source.release()
        assert len(sending.read()) == source.length
    assert not path.exists() or not source.matches(FileIdentity.of(path.stat()))


async def test_a_partial_holder_packs_what_it_has(store: Store) -> None:
    """Who fetched an object from somebody else's packing serves it in its own."""
    data = text(3 * 65536)
    origin = SchemaLock("demo", "zstd", miniblock=16384, object=65536)
    made = Store(store.folder.parent / "origin", SETTINGS)
    async with made as other:
        added = await other.add_bytes(data, channel="hub/demo", lock=origin)
        headers = [(await other.object_source(added.stream, origin, n)).header for n in range(3)]
    async with await store.begin(added.stream, added.opening, origin, "hub/demo") as fetch:
        header = fetch.accept_header(1, headers[1])
        for index in range(4):
            fetch.write_verified(header, index, data[65536 + index * 16384 :][:16384])
        await asyncio.to_thread(fetch.drain)
        holding = await store.holds(added.stream, "hub/demo", origin)
        assert holding is not None
        assert holding.objects == ((1, 1),)
        source = await store.object_source(added.stream, origin, 1)
        assert opened(source, origin) == data[65536:131072]


async def test_a_file_that_changes_is_not_packed(store: Store, file: MakeFile) -> None:
    """A linked file that is not what it was gives no object."""
    path = file("f", text(65536))
    added = await store.add(path, channel="hub/demo", lock=LOCK)
    path.write_bytes(text(65535) + b"!")
    with pytest.raises(Conflict) as caught:
        await store.object_source(added.stream, LOCK, 0)
    assert caught.value.kind == "changed"


async def test_no_spool_is_made_on_a_full_disk(tmp_path: Path, file: MakeFile) -> None:
    """The store's reserve is kept: disk-full, and nothing is left behind."""
    async with Store(tmp_path / "s", SETTINGS) as opened_store:
        added = await opened_store.add(file("f", text(65536)), channel="hub/demo", lock=LOCK)
    async with Store(tmp_path / "s", replace(SETTINGS, reserve=1 << 60)) as full:
        with pytest.raises(RetryLater) as caught:
            await full.object_source(added.stream, LOCK, 0)
        assert caught.value.kind == "disk-full"


async def test_memory_is_bounded_by_a_miniblock(store: Store, file: MakeFile) -> None:
    """A whole stream in one object is packed a miniblock at a time."""
    lock = SchemaLock("demo", "zstd", miniblock=65536, object=0)
    added = await store.add(file("f", text(24 << 20)), channel="hub/demo", lock=lock)
    tracemalloc.start()
    try:
        source = await store.object_source(added.stream, lock, 0)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert source.size < 1 << 20
    source.release()
