"""Hashing again what is held, with miniblocks smaller and larger than the pieces that are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from entrepot.adapters.store import Store
from entrepot.core.lock import SchemaLock

type MakeFile = Callable[[str, bytes], Path]

MIB = 1 << 20
LENGTH = 11 * MIB + 777


@pytest.mark.blocking
@pytest.mark.parametrize("miniblock", [16384, MIB, 2 * MIB, 8 * MIB])
@pytest.mark.parametrize("at", [0, 5 * MIB + 3, LENGTH - 1])
async def test_the_bad_miniblock_is_found(store: Store, file: MakeFile, miniblock: int, at: int) -> None:
    """One flipped bit in the stored copy makes its miniblock bad and no other; progress ends at what was read."""
    lock = SchemaLock("demo", miniblock=miniblock, object=64 * MIB)
    added = await store.add(file("f", os.urandom(LENGTH)), channel="hub/demo", lock=lock, copy=True)
    told: list[tuple[int, int]] = []
    count = -(-LENGTH // miniblock)
    found = await store.verify(added.stream, progress=lambda *now: told.append(now))
    assert (found.checked, dict(found.bad)) == (count, {})
    assert told[-1] == (LENGTH, LENGTH)
    assert told == sorted(told)
    (path,) = [one for one in (store.folder / "content").rglob("*") if one.is_file()]
    with path.open("r+b") as writer:
        writer.seek(at)
        byte = writer.read(1)
        writer.seek(at)
        writer.write(bytes([byte[0] ^ 1]))
    found = await store.verify(added.stream)
    assert dict(found.bad) == {path: (at // miniblock,)}


@pytest.mark.blocking
async def test_what_cannot_be_read_is_bad(store: Store, file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that the disk does not give back spoils the miniblocks that lie in it, the others are good."""
    lock = SchemaLock("demo", miniblock=4 * MIB, object=4 * MIB)
    added = await store.add(file("f", os.urandom(LENGTH)), channel="hub/demo", lock=lock, copy=True)
    before = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 6 * MIB:
            raise OSError(5, "Input/output error")
        return before(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    found = await store.verify(added.stream)
    assert list(found.bad.values()) == [(1,)]
