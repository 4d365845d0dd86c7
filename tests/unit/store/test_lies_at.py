"""Whether a file that is there already is the stream that was asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from entrepot.adapters.store import Store
from entrepot.core.lock import SchemaLock

Make = Callable[[str, bytes], Path]
DATA = os.urandom(100_000)


async def test_a_linked_file_is_not_read_again(store: Store, lock: SchemaLock, file: Make) -> None:
    """A file that the store links to and that is unchanged is the stream, by whatever path it is reached."""
    path = file("a", DATA)
    stream = (await store.add(path, channel="demo", lock=lock)).stream
    told: list[int] = []
    assert await store.lies_at(stream, path, progress=lambda done, _total: told.append(done))
    link = path.parent / "link"
    link.symlink_to(path)
    assert await store.lies_at(stream, link, progress=lambda done, _total: told.append(done))
    assert told == []


async def test_a_touched_file_is_hashed_and_counts_again(store: Store, lock: SchemaLock, file: Make) -> None:
    """Other times and the same bytes: it is the stream, and it is served again."""
    path = file("a", DATA)
    stream = (await store.add(path, channel="demo", lock=lock)).stream
    os.utime(path)
    assert await store.lies_at(stream, path)
    entry = await store.entry(stream)
    assert (entry.complete, entry.stale) == (True, False)
    assert await store.read(stream, 0, len(DATA)) == DATA


async def test_a_copy_that_the_store_does_not_know_is_hashed(store: Store, lock: SchemaLock, file: Make) -> None:
    """A copy of the user's own is recognised, and does not become one of the store's links."""
    path = file("a", DATA)
    stream = (await store.add(path, channel="demo", lock=lock)).stream
    copy = path.parent / "copy"
    shutil.copyfile(path, copy)
    assert await store.lies_at(stream, copy)
    assert (await store.entry(stream)).links == (path,)


async def test_anything_else_is_not_the_stream(store: Store, lock: SchemaLock, file: Make, tmp_path: Path) -> None:
    """Other bytes of the same length, another length, a folder, nothing: no."""
    path = file("a", DATA)
    stream = (await store.add(path, channel="demo", lock=lock)).stream
    file("same", DATA[:-1] + bytes([DATA[-1] ^ 1]))
    file("short", DATA[:-1])
    for name in ("same", "short", "none", "no/where", "."):
        assert not await store.lies_at(stream, tmp_path / name), name
    path.write_bytes(bytes(len(DATA)))
    assert not await store.lies_at(stream, path)


async def test_an_unknown_stream_is_nowhere(store: Store, lock: SchemaLock, file: Make, tmp_path: Path) -> None:
    """The store compares with what it knows, and knows nothing of this stream."""
    path = file("a", DATA)
    stream = (await store.add(path, channel="demo", lock=lock)).stream
    async with Store(tmp_path / "other", store.settings) as other:
        assert not await other.lies_at(stream, path)
