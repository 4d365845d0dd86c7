"""What of a stream is here now, and which files are no longer what they were."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from entrepot.adapters.store import Store
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher

Make = Callable[[str, bytes], Path]
DATA = os.urandom(100_000)


async def test_what_was_fetched_in_part_counts(store: Store, lock: SchemaLock, fed: Callable[..., None]) -> None:
    """Every verified miniblock counts, also of objects of which others are missing, and the short last one as it is."""
    hasher = StreamHasher(0)
    hasher.update(DATA)
    opening = hasher.finish().opening
    stream = opening.stream_id()
    assert await store.present(stream) == 0
    async with await store.begin(stream, opening, lock, "demo") as fetch:
        await asyncio.to_thread(fed, fetch, DATA, [0, 6])
        await fetch.finish()
    assert await store.present(stream) == 16_384 + len(DATA) - 6 * 16_384
    assert await store.altered() == ([], None)
    async with await store.begin(stream, opening, lock, "demo") as fetch:
        await asyncio.to_thread(fed, fetch, DATA)
        await fetch.finish()
    assert await store.present(stream) == len(DATA)


async def test_a_file_that_changed_or_went_is_noticed(store: Store, lock: SchemaLock, file: Make) -> None:
    """A look at the files names the streams of which one is not what it was, page by page, and changes nothing; what
    is asked for then is not here any more."""
    paths = [file(name, DATA + name.encode()) for name in ("a", "b", "c")]
    streams = [(await store.add(path, channel="demo", lock=lock)).stream for path in paths]
    assert await store.altered() == ([], None)
    paths[0].unlink()
    paths[2].write_bytes(b"other")
    found, after = await store.altered(limit=2)
    assert found == ["a"]
    assert after is not None
    assert await store.altered(after, limit=2) == (["c"], None)
    assert not any(entry.stale for entry in await store.streams())
    assert [await store.present(stream) for stream in streams] == [0, len(DATA) + 1, 0]
    assert [(await store.entry(stream)).complete for stream in streams] == [False, True, False]
