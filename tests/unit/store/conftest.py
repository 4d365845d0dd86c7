"""A store in a fresh folder, and streams to put into it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from entrepot.adapters.store import Fetch, Store, StoreSettings
from entrepot.core.format import encode_header
from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher

LOCK = SchemaLock("demo", miniblock=16384, object=65536)
SETTINGS = StoreSettings(reserve=0, flush_after=0.02)


@pytest.fixture
def lock() -> SchemaLock:
    """Small miniblocks, so that small files have many."""
    return LOCK


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store(tmp_path / "store", SETTINGS) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Makes a file whose times are those of an hour ago."""

    def make(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        then = os.stat(path).st_mtime_ns - 3_600_000_000_000
        os.utime(path, ns=(then, then))
        return path

    return make


def feed(fetch: Fetch, data: bytes, miniblocks: Iterable[int] | None = None) -> None:
    """Gives a fetch some (or all) miniblocks of ``data``, as objects would."""
    geometry = Geometry(len(data), fetch.lock)
    hasher = StreamHasher(fetch.lock.level)
    hasher.update(data)
    nodes = hasher.finish().nodes
    for index in range(geometry.miniblock_count) if miniblocks is None else miniblocks:
        number = geometry.object_of_miniblock(index)
        raw = encode_header(fetch.stream, fetch.opening, fetch.lock, number, nodes)
        header = fetch.header(number) or fetch.accept_header(number, raw)
        offset, length = geometry.miniblock_span(index)
        fetch.write_verified(header, index - geometry.miniblocks_of(number).start, data[offset : offset + length])


@pytest.fixture
def fed() -> Callable[..., None]:
    return feed
