"""Small streams that come into memory and are placed where the user wants them, many at once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from entrepot.adapters.store import How, SmallFetch, Store, StoreSettings, is_small
from entrepot.adapters.store import catalogue as tables
from entrepot.adapters.store.placing import SMALL, Placement, Placements
from entrepot.core.errors import Conflict, Corrupt, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.format import encode_header, verify_object
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher

SCOPE = "hub/demo"


def opening_of(data: bytes) -> Opening:
    hasher = StreamHasher(0)
    hasher.update(data)
    return hasher.finish().opening


def small(data: bytes, lock: SchemaLock) -> SmallFetch:
    """A small stream that came."""
    opening = opening_of(data)
    fetch = SmallFetch(opening.stream_id(), opening, lock)
    raw = encode_header(fetch.stream, opening, lock, 0, opening.root)
    assert fetch.write_verified(fetch.accept_header(0, raw, "etag"), 0, data)
    return fetch


async def test_a_small_stream_is_placed_and_held(store: Store, lock: SchemaLock, tmp_path: Path) -> None:
    """It is the file, it counts as held like an exported one, is served, and the store has no copy of its own."""
    data = os.urandom(5000)
    fetch = small(data, lock)
    assert await store.place(fetch, SCOPE, "name", tmp_path / "out") is How.MOVED
    assert (tmp_path / "out").read_bytes() == data
    entry = await store.entry(fetch.stream)
    assert (entry.complete, entry.stored, entry.stale, entry.name) == (True, False, False, "name")
    assert entry.links == (tmp_path / "out",)
    assert entry.scopes == {SCOPE}
    assert await store.known([fetch.stream, opening_of(b"other").stream_id()]) == {fetch.stream}
    source = await store.object_source(fetch.stream, lock, 0)
    verify_object(source.header + data, stream=fetch.stream, lock=lock, number=0)
    assert await store.lies_at(fetch.stream, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "out").write_bytes(b"other")
    assert await store.holds(fetch.stream, SCOPE, lock) is None


async def test_many_are_placed_at_once(store: Store, lock: SchemaLock, tmp_path: Path) -> None:
    """Each becomes its file, also two of one stream and two that follow each other at one path."""
    contents = [os.urandom(size) for size in range(1, 60)]
    fetches = [small(data, lock) for data in contents]
    (tmp_path / "out").mkdir()
    work = [store.place(fetch, SCOPE, "", tmp_path / "out" / str(at)) for at, fetch in enumerate(fetches)]
    work += [store.place(fetches[0], SCOPE, "", tmp_path / "out" / "twin")]
    work += [store.place(fetch, SCOPE, "", tmp_path / "out" / "same", force=True) for fetch in fetches[:3]]
    assert set(await asyncio.gather(*work)) == {How.MOVED}
    for at, data in enumerate(contents):
        assert (tmp_path / "out" / str(at)).read_bytes() == data
    assert (tmp_path / "out" / "twin").read_bytes() == contents[0]
    assert (tmp_path / "out" / "same").read_bytes() == contents[2]
    assert sorted((await store.entry(fetches[2].stream)).links) == [tmp_path / "out" / "2", tmp_path / "out" / "same"]
    assert len(await store.streams()) == len(contents)


async def test_what_cannot_be_placed_is_kept(store: Store, lock: SchemaLock, tmp_path: Path) -> None:
    """An output that is taken stays as it is, others of that moment are placed, and the bytes need not come again."""
    (tmp_path / "taken").write_bytes(b"mine")
    first, second = small(b"first", lock), small(b"second", lock)
    results = await asyncio.gather(
        store.place(first, SCOPE, "first", tmp_path / "taken"),
        store.place(second, SCOPE, "second", tmp_path / "free"),
        store.place(first, SCOPE, "first", tmp_path / "none" / "file"),
        store.place(first, SCOPE, "first", tmp_path / ".."),
        return_exceptions=True,
    )
    assert isinstance(results[0], Conflict)
    assert results[0].kind == "exists"
    assert results[1] is How.MOVED
    assert isinstance(results[2], NotFound)
    assert isinstance(results[3], InvalidInput)
    assert (tmp_path / "taken").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    entry = await store.entry(first.stream)
    assert (entry.complete, entry.stored, entry.links) == (True, True, ())
    assert await store.export(first.stream, tmp_path / "elsewhere") is How.MOVED
    assert (tmp_path / "elsewhere").read_bytes() == b"first"


async def test_force_replaces_a_file(store: Store, lock: SchemaLock, tmp_path: Path) -> None:
    """What was there is replaced, and what was known of it is forgotten."""
    first, second = small(b"first", lock), small(b"second", lock)
    await store.place(first, SCOPE, "", tmp_path / "out")
    await store.place(second, SCOPE, "", tmp_path / "out", force=True)
    assert (tmp_path / "out").read_bytes() == b"second"
    assert await store.holds(first.stream, SCOPE, lock) is None
    assert await store.holds(second.stream, SCOPE, lock) is not None


async def test_a_kill_before_the_end_leaves_nothing_untrue(
    store: Store, lock: SchemaLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the file's name and the record that it counts, the link is stale: hashed before it is ever served."""
    fetch = small(b"some bytes", lock)

    def killed(*_: object) -> None:
        raise RetryLater("killed", kind="busy")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "settle_move", killed)
        with pytest.raises(EntrepotError):  # the file is there by now, so it is not placed again
            await store.place(fetch, SCOPE, "", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"some bytes"
    (tmp_path / "out").write_bytes(b"SOME BYTES")
    entry = await store.entry(fetch.stream)
    assert tmp_path / "out" in entry.links
    assert entry.stale
    assert not await store.lies_at(fetch.stream, tmp_path / "out")


def test_what_is_small(lock: SchemaLock) -> None:
    """One miniblock and no more bytes than memory is to take; nothing is not small."""
    large = SchemaLock("demo")
    root = bytes(32)
    assert not is_small(Opening(0, root), large)
    assert is_small(Opening(1, root), large)
    assert is_small(Opening(SMALL, root), large)
    assert not is_small(Opening(SMALL + 1, root), large)
    assert is_small(Opening(16384, root), lock)
    assert not is_small(Opening(16385, root), lock)


def test_nothing_unverified_is_taken(lock: SchemaLock) -> None:
    """Wrong bytes and a wrong header are refused, and what is missing stays missing."""
    data = b"the bytes"
    opening = opening_of(data)
    fetch = SmallFetch(opening.stream_id(), opening, lock)
    assert fetch.missing_objects() == ((0, 0),)
    assert fetch.missing_miniblocks(0) == (0,)
    raw = encode_header(fetch.stream, opening, lock, 0, opening.root)
    with pytest.raises(Corrupt):
        fetch.accept_header(0, raw[:-1] + bytes([raw[-1] ^ 1]))
    header = fetch.accept_header(0, raw, "etag")
    assert fetch.origin(0) == (header, "etag")
    with pytest.raises(Corrupt):
        fetch.write_verified(header, 0, b"the bytez")
    assert (fetch.complete, fetch.verified_bytes, fetch.data) == (False, 0, None)
    other = small(b"else", lock)
    with pytest.raises(InvalidInput):
        fetch.write_verified(other.accept_header(0, other.raw_header), 0, b"else")
    assert fetch.write_verified(header, 0, memoryview(data))
    assert not fetch.write_verified(header, 0, data)
    assert (fetch.missing_objects(), fetch.missing_miniblocks(0), fetch.verified_bytes) == ((), (), len(data))


async def test_a_stream_that_did_not_come_is_not_placed(store: Store, lock: SchemaLock, tmp_path: Path) -> None:
    """There is nothing to place yet."""
    opening = opening_of(b"x")
    with pytest.raises(InvalidInput):
        await store.place(SmallFetch(opening.stream_id(), opening, lock), SCOPE, "", tmp_path / "out")


async def test_all_who_wait_hear_what_broke(lock: SchemaLock, tmp_path: Path) -> None:
    """Those of a batch that fails as a whole hear why, those of the next are placed, and who left is passed over."""
    batches: list[list[str]] = []
    running = asyncio.Event()

    async def place(wanted: list[Placement]) -> list[EntrepotError | None]:
        batches.append([one.name for one in wanted])
        if len(batches) == 1:
            await running.wait()
            raise RetryLater("the disk is gone", kind="busy")
        return [None] * len(wanted)

    queue = Placements(place)  # type: ignore[arg-type]  # a list is enough here

    def put(name: str) -> asyncio.Task[EntrepotError | None]:
        placement = Placement(small(b"x", lock), b"x", SCOPE, name, tmp_path / name, False)
        return asyncio.create_task(queue.put(placement))

    first = put("a")
    while not batches:
        await asyncio.sleep(0)
    second, third = put("b"), put("c")
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.sleep(0)
    running.set()
    with pytest.raises(RetryLater):
        await first
    assert await second is None
    assert batches == [["a"], ["b"]]
    await queue.aclose()


async def test_a_closing_store_places_what_waits(tmp_path: Path, lock: SchemaLock) -> None:
    """Closing the store ends after the files are there."""
    async with Store(tmp_path / "s", StoreSettings(reserve=0)) as store:
        work = [
            asyncio.create_task(store.place(small(bytes([at]), lock), SCOPE, "", tmp_path / str(at))) for at in range(9)
        ]
        await asyncio.sleep(0)
    assert {await one for one in work} == {How.MOVED}
    assert all((tmp_path / str(at)).read_bytes() == bytes([at]) for at in range(9))
