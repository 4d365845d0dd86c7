"""Fetching streams into the store, and giving them out."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from entrepot.adapters import files
from entrepot.adapters.store import How, Store, StoreSettings
from entrepot.core.errors import Conflict, Corrupt, InvalidInput, NotFound, RetryLater
from entrepot.core.format import encode_header, verify_object
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher

type Fed = Callable[..., None]


def opening_of(data: bytes) -> Opening:
    hasher = StreamHasher(0)
    hasher.update(data)
    return hasher.finish().opening


async def fetched(store: Store, lock: SchemaLock, fed: Fed, data: bytes) -> Opening:
    opening = opening_of(data)
    async with await store.begin(opening.stream_id(), opening, lock, "hub/demo", "name") as fetch:
        await asyncio.to_thread(fed, fetch, data)
        assert await fetch.finish()
    return opening


@pytest.mark.parametrize("length", [0, 1, 16384, 16385, 200_001])
async def test_fetched_stream_is_held(store: Store, lock: SchemaLock, fed: Fed, length: int) -> None:
    """A stream whose miniblocks all came is complete, readable and can be served on."""
    data = os.urandom(length)
    opening = await fetched(store, lock, fed, data)
    stream = opening.stream_id()
    holding = await store.holds(stream, "hub/demo", lock)
    assert holding is not None
    assert holding.complete
    assert await store.read(stream, 0, length) == data
    if length:
        source = await store.object_source(stream, lock, 0)
        verify_object(
            source.header + data[source.offset : source.offset + source.length],
            stream=stream,
            lock=lock,
            number=0,
        )


async def test_partial_stream_resumes_and_serves_what_it_has(tmp_path: Path, lock: SchemaLock, fed: Fed) -> None:
    """After reopening the store the verified miniblocks count, whole objects are served, others are missing."""
    data = os.urandom(16384 * 11 + 5)
    opening = opening_of(data)
    stream, settings = opening.stream_id(), StoreSettings(reserve=0)
    async with (
        Store(tmp_path / "s", settings) as store,
        await store.begin(stream, opening, lock, "hub/demo") as fetch,
    ):
        await asyncio.to_thread(fed, fetch, data, [0, 1, 2, 3, 5, 11])
        assert await store.read(stream, 5 * 16384, 100) == data[5 * 16384 :][:100]
    async with Store(tmp_path / "s", settings) as store:
        holding = await store.holds(stream, "hub/demo", lock)
        assert holding is not None
        assert (holding.complete, holding.objects) == (False, ((0, 0),))
        source = await store.object_source(stream, lock, 0)
        verify_object(source.header + data[:65536], stream=stream, lock=lock, number=0)
        with pytest.raises(NotFound):
            await store.object_source(stream, lock, 1)
        with pytest.raises(NotFound):
            await store.read(stream, 4 * 16384 - 1, 2)
        assert await store.read(stream, 11 * 16384, 5) == data[-5:]
        with pytest.raises(NotFound):
            await store.export(stream, tmp_path / "out")
        async with await store.begin(stream, opening, lock, "hub/demo") as fetch:
            assert fetch.missing_objects() == ((1, 2),)
            assert fetch.missing_miniblocks(1) == (0, 2, 3)
            assert fetch.verified_bytes == 5 * 16384 + 5
            await asyncio.to_thread(fed, fetch, data)
            assert await fetch.finish()
        assert await store.read(stream, 0, len(data)) == data


async def test_wrong_bytes_are_never_written(store: Store, lock: SchemaLock, fed: Fed) -> None:
    """A miniblock with one bit turned raises corrupt-object and stays missing; so does a foreign header."""
    data = os.urandom(40_000)
    bad = bytes([data[0] ^ 1]) + data[1:]
    opening = opening_of(data)
    hasher = StreamHasher(lock.level)
    hasher.update(data)
    raw = encode_header(opening.stream_id(), opening, lock, 0, hasher.finish().nodes)
    async with await store.begin(opening.stream_id(), opening, lock, "hub/demo") as fetch:
        header = fetch.accept_header(0, raw)
        with pytest.raises(Corrupt):
            await asyncio.to_thread(fetch.write_verified, header, 0, bad[:16384])
        with pytest.raises(Corrupt):
            fetch.accept_header(0, raw[:-1] + bytes([raw[-1] ^ 1]))
        assert fetch.missing_miniblocks(0) == (0, 1, 2)
        other = opening_of(b"other" * 10_000)
        async with await store.begin(other.stream_id(), other, lock, "hub/demo") as second:
            with pytest.raises(InvalidInput):
                second.write_verified(header, 0, data[:16384])
    with pytest.raises(Corrupt):
        await store.begin(opening.stream_id(), opening_of(b"x"), lock, "hub/demo")


async def test_two_processes_fetch_one_stream(tmp_path: Path, lock: SchemaLock, fed: Fed) -> None:
    """Two stores on one folder, each bringing another half at once, complete the stream together."""
    data = os.urandom(16384 * 40)
    opening = opening_of(data)
    stream, settings = opening.stream_id(), StoreSettings(reserve=0, flush_after=0.01)
    async with Store(tmp_path / "s", settings) as one, Store(tmp_path / "s", settings) as two:
        first, second = await asyncio.gather(
            one.begin(stream, opening, lock, "hub/demo"), two.begin(stream, opening, lock, "hub/demo")
        )
        assert first.content.path == second.content.path
        await asyncio.gather(
            asyncio.to_thread(fed, first, data, range(22)), asyncio.to_thread(fed, second, data, range(18, 40))
        )
        await first.finish()
        await second.finish()
        await first.aclose()
        await second.aclose()
        async with await one.begin(stream, opening, lock, "hub/demo") as fetch:
            assert fetch.complete
            assert await fetch.finish()
        assert await two.read(stream, 0, len(data)) == data
        assert not (await two.verify(stream)).bad


async def test_another_size_of_miniblock_keeps_what_is_here(store: Store, lock: SchemaLock, fed: Fed) -> None:
    """A fetch under a lock with other miniblocks starts from the bytes that an earlier one verified."""
    data = os.urandom(16384 * 8)
    opening = opening_of(data)
    async with await store.begin(opening.stream_id(), opening, lock, "hub/demo") as fetch:
        await asyncio.to_thread(fed, fetch, data, [0, 1, 2, 5])
    coarse = SchemaLock("demo", miniblock=32768, object=65536)
    async with await store.begin(opening.stream_id(), opening, coarse, "hub/demo") as fetch:
        assert [fetch.missing_miniblocks(n) for n in (0, 1)] == [(1,), (0, 1)]
        await asyncio.to_thread(fed, fetch, data)
        assert await fetch.finish()
    assert await store.read(opening.stream_id(), 0, len(data)) == data


async def test_removed_stream_stops_its_fetch(store: Store, lock: SchemaLock, fed: Fed) -> None:
    """A fetch whose stream is removed meanwhile is told so, and its late writes reach no other file."""
    data = os.urandom(100_000)
    opening = opening_of(data)
    fetch = await store.begin(opening.stream_id(), opening, lock, "hub/demo")
    await asyncio.to_thread(fed, fetch, data, [0])
    await asyncio.to_thread(fetch.drain)
    await store.remove(opening.stream_id(), force=True)
    with contextlib.suppress(Conflict):  # either the write is told, or finish
        await asyncio.to_thread(fed, fetch, data, [1])
    with pytest.raises(Conflict):
        await fetch.finish()
    await fetch.aclose()
    async with await store.begin(opening.stream_id(), opening, lock, "hub/demo") as again:
        assert again.verified_bytes == 0


async def test_held_stream_needs_no_fetching(store: Store, lock: SchemaLock, tmp_path: Path) -> None:
    """Beginning a stream that was added here is complete at once and joins the scope."""
    path = tmp_path / "f"
    path.write_bytes(b"here" * 10_000)
    added = await store.add(path, channel="hub/a", lock=lock)
    async with await store.begin(added.stream, added.opening, lock, "hub/b") as fetch:
        assert fetch.complete
        assert fetch.missing_objects() == ()
    assert await store.scopes(added.stream) == {"hub/a", "hub/b"}


async def test_too_large_for_the_disk_is_refused_before_it_begins(tmp_path: Path, lock: SchemaLock, fed: Fed) -> None:
    """With more to be left free than there is, begin raises disk-full with figures."""
    async with Store(tmp_path / "s", StoreSettings(reserve=1 << 60)) as store:
        opening = opening_of(b"x" * 100)
        with pytest.raises(RetryLater) as caught:
            await store.begin(opening.stream_id(), opening, lock, "hub/demo")
        assert caught.value.kind == "disk-full"
        assert caught.value.data["needed"] == 100 + (1 << 60)


async def test_verify_of_scattered_miniblocks(store: Store, lock: SchemaLock, fed: Fed) -> None:
    """Miniblocks far apart, whose nodes lie in several rows with gaps, are each compared with their own node."""
    data = os.urandom(16384 * 2100)
    opening = opening_of(data)
    async with await store.begin(opening.stream_id(), opening, lock, "hub/demo") as fetch:
        await asyncio.to_thread(fed, fetch, data, [3, 1023, 1024, 1100, 2099])
    report = await store.verify(opening.stream_id())
    assert (report.checked, dict(report.bad)) == (5, {})


# ---- export


def on_disk(folder: Path) -> int:
    """What du says, in bytes: every inode once."""
    seen = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if path.is_file():
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


async def test_export_keeps_one_copy_on_the_disk(store: Store, lock: SchemaLock, fed: Fed, tmp_path: Path) -> None:
    """A fetched stream that is exported takes its size once, is still held, and later edits are noticed."""
    data = os.urandom(3 << 20)
    opening = await fetched(store, lock, fed, data)
    stream, out = opening.stream_id(), tmp_path / "out.bin"
    before = on_disk(tmp_path)
    how = await store.export(stream, out)
    assert out.read_bytes() == data
    assert how in (How.MOVED, How.REFLINK)
    assert on_disk(tmp_path) < before + (1 << 20)
    assert await store.read(stream, 100, 50) == data[100:150]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    if how is How.MOVED:
        with out.open("r+b") as writer:
            writer.write(b"edited")
        with pytest.raises(Conflict) as caught:
            await store.object_source(stream, lock, 0)
        assert caught.value.kind == "changed"


async def test_second_export_is_a_copy_of_its_own(store: Store, lock: SchemaLock, fed: Fed, tmp_path: Path) -> None:
    """Exporting again elsewhere copies, so that editing one output leaves the other; the same output stays."""
    data = os.urandom(100_000)
    stream = (await fetched(store, lock, fed, data)).stream_id()
    await store.export(stream, tmp_path / "one")
    assert await store.export(stream, tmp_path / "one") is How.LINKED
    assert await store.export(stream, tmp_path / "two") in (How.COPIED, How.REFLINK)
    (tmp_path / "one").write_bytes(b"edited")
    assert (tmp_path / "two").read_bytes() == data
    assert await store.read(stream, 0, 10) == data[:10]


async def test_export_never_replaces_without_force(
    store: Store, lock: SchemaLock, fed: Fed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file at the output stays as it is, also one that appears between the look and the move."""
    data = os.urandom(50_000)
    stream = (await fetched(store, lock, fed, data)).stream_id()
    out = tmp_path / "out"
    out.write_bytes(b"mine")
    with pytest.raises(Conflict):
        await store.export(stream, out)
    out.unlink()
    real_move = files.move

    def late(source: Path, target: Path, *, replace: bool) -> None:
        target.write_bytes(b"mine")
        real_move(source, target, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr("entrepot.adapters.store.export.move", late)
        with pytest.raises(Conflict) as caught:
            await store.export(stream, out)
    assert caught.value.kind == "exists"
    assert out.read_bytes() == b"mine"
    assert await store.read(stream, 0, len(data)) == data
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    await store.export(stream, out, force=True)
    assert out.read_bytes() == data
    for wrong in (tmp_path, tmp_path / "absent" / "x"):
        with pytest.raises((InvalidInput, NotFound)):
            await store.export(stream, wrong, force=True)


def test_moving_without_the_systems_rename_still_never_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallbacks by hard link and by look-then-rename keep an existing file too."""
    monkeypatch.setattr(files, "_rename_new", lambda *_: False)
    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
        source, target = tmp_path / "s", tmp_path / f"t{links}"
        source.write_bytes(b"new")
        target.write_bytes(b"old")
        with pytest.raises(Conflict):
            files.move(source, target, replace=False)
        assert (source.read_bytes(), target.read_bytes()) == (b"new", b"old")
        target.unlink()
        files.move(source, target, replace=False)
        assert target.read_bytes() == b"new"
        assert not source.exists()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system")
async def test_export_to_another_file_system(tmp_path: Path, lock: SchemaLock, fed: Fed) -> None:
    """Across file systems the output is a complete copy and the store's own file goes."""
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("one file system only")
    out = Path("/dev/shm") / f"entrepot-test-{os.getpid()}"
    data = os.urandom(300_000)
    try:
        async with Store(tmp_path / "s", StoreSettings(reserve=0)) as store:
            stream = (await fetched(store, lock, fed, data)).stream_id()
            assert await store.export(stream, out) is How.COPIED
            assert out.read_bytes() == data
            assert (await store.size()).stored == 0
            assert await store.read(stream, 0, 5) == data[:5]
    finally:
        out.unlink(missing_ok=True)


# ---- verify, remove, prune


async def test_verify_finds_rot_and_has_it_fetched_again(
    store: Store, lock: SchemaLock, fed: Fed, tmp_path: Path
) -> None:
    """A flipped bit in the store's file is found, only that miniblock counts as missing, and a fetch mends it."""
    data = os.urandom(16384 * 9)
    opening = await fetched(store, lock, fed, data)
    stream = opening.stream_id()
    path = next(path for path in (tmp_path / "store" / "content").rglob("ff*"))
    with path.open("r+b") as writer:
        writer.seek(5 * 16384 + 3)
        writer.write(bytes([data[5 * 16384 + 3] ^ 4]))
    report = await store.verify(stream)
    assert dict(report.bad) == {path: (5,)}
    with pytest.raises(NotFound):
        await store.read(stream, 5 * 16384, 1)
    assert await store.read(stream, 0, 16384) == data[:16384]
    async with await store.begin(stream, opening, lock, "hub/demo") as fetch:
        assert fetch.missing_miniblocks(1) == (1,)
        await asyncio.to_thread(fed, fetch, data)
        assert await fetch.finish()
    assert not (await store.verify(stream)).bad
    assert await store.read(stream, 0, len(data)) == data


@pytest.mark.parametrize("noticed", [False, True])
async def test_verify_tells_of_a_changed_link_each_time(
    store: Store, lock: SchemaLock, tmp_path: Path, noticed: bool
) -> None:
    """A linked file that changed or went is missing at every check, also if it was noticed before; one that is back
    with its bytes is hashed and counts again."""
    path = tmp_path / "linked"
    data = os.urandom(100_000)
    path.write_bytes(data)
    stream = (await store.add(path, channel="hub/demo", lock=lock)).stream
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) + b"more")
    if noticed:
        with pytest.raises(Conflict):
            await store.read(stream, 0, 1)
    for _ in range(3):
        report = await store.verify(stream)
        assert (report.checked, report.missing) == (0, (path,))
    path.unlink()
    for _ in range(2):
        assert (await store.verify(stream)).missing == (path,)
    path.write_bytes(data)
    for _ in range(2):
        report = await store.verify(stream)
        assert report.checked > 0
        assert not report.missing
    assert await store.read(stream, 0, len(data)) == data


async def test_rot_found_while_fetching_stops_the_fetch(
    store: Store, lock: SchemaLock, fed: Fed, tmp_path: Path
) -> None:
    """A fetch that thinks it has a miniblock which a check found bad meanwhile does not make the stream complete."""
    data = os.urandom(16384 * 6)
    opening = opening_of(data)
    fetch = await store.begin(opening.stream_id(), opening, lock, "hub/demo")
    await asyncio.to_thread(fed, fetch, data, [0, 1])
    await asyncio.to_thread(fetch.drain)
    with fetch.content.path.open("r+b") as writer:
        writer.write(bytes([data[0] ^ 1]))
    assert list((await store.verify(opening.stream_id())).bad.values()) == [(0,)]
    await asyncio.to_thread(fed, fetch, data)
    with pytest.raises(Conflict):
        await fetch.finish()
    await fetch.aclose()
    async with await store.begin(opening.stream_id(), opening, lock, "hub/demo") as again:
        assert again.missing_objects() == ((0, 0),)
        await asyncio.to_thread(fed, again, data)
        assert await again.finish()
    assert await store.read(opening.stream_id(), 0, len(data)) == data


async def test_last_copy_is_not_dropped(store: Store, lock: SchemaLock, fed: Fed) -> None:
    """Removing what nobody else holds needs force; what others hold goes; pins stay."""

    async def yes(_: object) -> bool:
        return True

    stream = (await fetched(store, lock, fed, b"a" * 30_000)).stream_id()
    with pytest.raises(Conflict) as caught:
        await store.remove(stream)
    assert caught.value.kind == "last-copy"
    await store.pin(stream)
    with pytest.raises(Conflict) as caught:
        await store.remove(stream, held_elsewhere=yes)
    assert caught.value.kind == "in-use"
    await store.pin(stream, False)
    assert await store.remove(stream, held_elsewhere=yes)
    assert (await store.size()).stored == 0
    with pytest.raises(NotFound):
        await store.entry(stream)


async def test_removing_a_link_keeps_the_file(store: Store, lock: SchemaLock, tmp_path: Path) -> None:
    """A linked file is forgotten without force and stays on the disk; leaving one scope of two keeps the other."""
    path = tmp_path / "f"
    path.write_bytes(b"mine")
    added = await store.add(path, channel="a", lock=lock)
    await store.join_scope(added.stream, "b")
    assert not await store.remove(added.stream, scope="a")
    assert await store.scopes(added.stream) == {"b"}
    assert await store.remove(added.stream, scope="b")
    assert path.read_bytes() == b"mine"


async def test_prune_drops_the_longest_unused_first(store: Store, lock: SchemaLock, fed: Fed) -> None:
    """Pruning to a limit deletes stored files by last use and keeps pins and last copies."""
    streams = []
    for index in range(4):
        streams.append((await fetched(store, lock, fed, bytes([index]) * 131072)).stream_id())
        await asyncio.sleep(0.005)
    await store.pin(streams[0])

    async def others(stream: object) -> bool:
        return stream != streams[1]

    assert await store.prune(0) == 0
    assert await store.prune(3 * 131072, held_elsewhere=others) >= 131072
    left = {entry.stream for entry in await store.streams()}
    assert left == {streams[0], streams[1], streams[3]}
