"""Adding files to the store."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from entrepot.adapters.store import Store, StoreSettings
from entrepot.core.errors import Conflict, Denied, InvalidInput, NotFound
from entrepot.core.format import verify_object
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import StreamKind
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher
from entrepot.core.messages import DigestKind

type MakeFile = Callable[[str, bytes], Path]


def pattern(length: int) -> bytes:
    block = bytes(i * 7 % 251 for i in range(251))
    return (block * (length // 251 + 1))[:length]


@pytest.mark.parametrize(
    ("length", "stream"),
    [
        (0, "ffe7b33958dd5ce7079aee57184e33f68cf5d8c49856ab9828530a086d94d634"),
        (16385, "ff465987ac241ab132a5155162646d4be2d863a726b91f9885b31449886235bd"),
        (3000000, "ff55a951c37248e968155b15fd1625dba004ccb17bf1d481fac8755d839fd0d6"),
    ],
)
async def test_golden_files_get_their_ids(store: Store, file: MakeFile, length: int, stream: str) -> None:
    """Files of the golden vectors get the ids of the design, and the alias that sha256sum shows."""
    data = pattern(length)
    added = await store.add(file("f", data), channel="hub/demo", lock=SchemaLock("demo"))
    assert str(added.stream) == stream
    assert added.sha256 == hashlib.sha256(data).digest()
    assert await store.find_alias(added.sha256) == added.stream


@pytest.mark.parametrize("length", [0, 1, 16383, 16384, 16385, 65536, 65537, 200_001, 5_000_000])
async def test_every_object_of_an_added_file_proves_itself(
    store: Store, file: MakeFile, lock: SchemaLock, length: int
) -> None:
    """Header and payload of each object verify, and its digest is the SHA-256 of both together, also when cached."""
    data = os.urandom(length)
    added = await store.add(file("f", data), channel="hub/demo", lock=lock)
    for number in range(Geometry(length, lock).object_count):
        for _ in range(2):
            source = await store.object_source(added.stream, lock, number)
            whole = source.header + data[source.offset : source.offset + source.length]
            verify_object(whole, stream=added.stream, lock=lock, number=number)
            assert source.digest == hashlib.sha256(whole).digest()
            await store.confirm(source)
    assert await store.read(added.stream, 0, length) == data


@pytest.mark.parametrize("kind", ["sha256", "md5"])
async def test_the_digest_is_of_the_kind_that_was_asked_for(store: Store, file: MakeFile, kind: DigestKind) -> None:
    """Both kinds are taken of the same bytes, each kept apart: the second call finds what the first took."""
    data, lock = pattern(200_000), SchemaLock("demo", miniblock=16384, object=65536)
    added = await store.add(file("f", data), channel="hub/demo", lock=lock)
    kinds: tuple[DigestKind, ...] = (kind, "sha256", "md5")
    for _ in range(2):
        for each in kinds:
            source = await store.object_source(added.stream, lock, 1, each)
            whole = source.header + data[source.offset : source.offset + source.length]
            assert source.digest == hashlib.new(each, whole).digest()


async def test_large_file_hashes_the_same_with_threads(store: Store, file: MakeFile) -> None:
    """The threaded pass over many pieces finds what the plain hasher finds, for small and large miniblocks."""
    data = os.urandom(9 * (1 << 20) + 12345)
    path = file("f", data)
    for miniblock in (16384, 1 << 20, 4 << 20):
        lock = SchemaLock("demo", miniblock=miniblock, object=4 << 20)
        hasher = StreamHasher(lock.level)
        hasher.update(data)
        os.utime(path)
        added = await store.add(path, channel="hub/demo", lock=lock)
        assert added.opening == hasher.finish().opening
        source = await store.object_source(added.stream, lock, 1)
        verify_object(
            source.header + data[source.offset : source.offset + source.length],
            stream=added.stream,
            lock=lock,
            number=1,
        )


async def test_another_lock_serves_the_same_file(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """Nodes for coarser and for finer miniblocks are worked out when an object under another lock is wanted."""
    data = os.urandom(300_000)
    added = await store.add(file("f", data), channel="hub/demo", lock=SchemaLock("demo", miniblock=32768, object=65536))
    for other in (SchemaLock("demo", miniblock=65536, object=131072), lock, SchemaLock("demo", object=0)):
        source = await store.object_source(added.stream, other, 0)
        payload = data[source.offset : source.offset + source.length]
        verify_object(source.header + payload, stream=added.stream, lock=other, number=0)


async def test_unchanged_file_is_not_read_again(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """A second add of a file that did not change reports no progress, and joins another scope."""
    path = file("f", b"x" * 100_000)
    first = await store.add(path, channel="hub/a", lock=lock)
    calls: list[tuple[int, int]] = []
    again = await store.add(path, channel="hub/b", lock=lock, progress=lambda *at: calls.append(at))
    assert (again.stream, again.unchanged, first.unchanged, calls) == (first.stream, True, False, [])
    assert await store.scopes(first.stream) == {"hub/a", "hub/b"}


async def test_changed_file_is_never_served_as_what_it_was(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """After an edit of the same length with its times put back, reading, serving and confirming all refuse."""
    path = file("f", b"a" * 70_000)
    added = await store.add(path, channel="hub/demo", lock=lock)
    source = await store.object_source(added.stream, lock, 0)
    status = path.stat()
    with path.open("r+b") as writer:
        writer.write(b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for ask in (
        store.confirm(source),
        store.read(added.stream, 0, 1),
        store.object_source(added.stream, lock, 0),
    ):
        with pytest.raises(Conflict) as caught:
            await ask
        assert caught.value.kind == "changed"
    assert await store.holds(added.stream, "hub/demo", lock) is None
    assert (await store.entry(added.stream)).stale


async def test_refresh_takes_back_a_file_whose_bytes_are_the_same(
    store: Store, file: MakeFile, lock: SchemaLock
) -> None:
    """A file that was only touched counts again after a refresh; one that was edited is forgotten."""
    path = file("f", b"a" * 70_000)
    added = await store.add(path, channel="hub/demo", lock=lock)
    path.touch()
    assert await store.holds(added.stream, "hub/demo", lock) is None
    assert await store.refresh(added.stream)
    assert await store.read(added.stream, 0, 3) == b"aaa"
    path.write_bytes(b"b" * 70_000)
    assert not await store.refresh(added.stream)


async def test_same_path_with_new_content_is_another_stream(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """Adding the edited file gives its new id, and the old stream is no longer held."""
    path = file("f", b"one")
    old = await store.add(path, channel="hub/demo", lock=lock)
    path.write_bytes(b"two")
    new = await store.add(path, channel="hub/demo", lock=lock)
    assert new.stream != old.stream
    assert not (await store.entry(old.stream)).complete
    assert await store.read(new.stream, 0, 3) == b"two"


async def test_copy_is_immune_to_later_changes(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """A copied file is served after the original was edited and deleted."""
    data = os.urandom(100_000)
    path = file("f", data)
    added = await store.add(path, channel="hub/demo", lock=lock, copy=True)
    path.write_bytes(b"gone")
    path.unlink()
    assert await store.read(added.stream, 0, len(data)) == data
    assert (await store.entry(added.stream)).stored


async def test_file_that_changes_while_it_is_hashed_is_refused(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """A write in the middle of the pass raises changed and leaves nothing in the catalogue."""
    path = file("f", bytes(8 << 20))
    once = threading.Event()

    def edit(done: int, total: int) -> None:
        if not once.is_set():
            once.set()
            with path.open("r+b") as writer:
                writer.write(b"!")

    with pytest.raises(Conflict) as caught:
        await store.add(path, channel="hub/demo", lock=lock, progress=edit)
    assert caught.value.kind == "changed"
    assert await store.streams() == []


async def test_odd_files(store: Store, file: MakeFile, lock: SchemaLock, tmp_path: Path) -> None:
    """Read-only, sparse, linked and oddly named files are added; folders, pipes and absent ones are refused."""
    readonly = file("ro", b"r" * 10)
    readonly.chmod(0o400)
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as writer:
        writer.truncate(3 << 20)
    odd = tmp_path / os.fsdecode(b"caf\xe9 \xff\n.bin")
    odd.write_bytes(b"odd")
    link = tmp_path / "link"
    link.symlink_to(readonly)
    for path in (readonly, sparse, odd, link):
        added = await store.add(path, channel="hub/demo", lock=lock)
        assert await store.read(added.stream, 0, added.length) == path.read_bytes()
    assert (await store.add(link, channel="hub/demo", lock=lock)).unchanged
    os.mkfifo(tmp_path / "pipe")
    for path, error in (
        (tmp_path, InvalidInput),
        (tmp_path / "pipe", InvalidInput),
        (Path("/dev/null"), InvalidInput),
        (tmp_path / "absent", NotFound),
        (tmp_path / "ro" / "below", NotFound),
        (tmp_path / ("x" * 300), InvalidInput),
        (tmp_path / "nul\0byte", InvalidInput),
    ):
        with pytest.raises(error):
            await store.add(path, channel="hub/demo", lock=lock)


async def test_unreadable_file_is_denied(
    store: Store, file: MakeFile, lock: SchemaLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the system does not let us read raises unreadable."""
    path = file("f", b"secret")
    path.chmod(0)
    if os.geteuid() == 0:  # root reads everything: refuse as the system would refuse anybody else
        real_open = os.open

        def refuse(name: os.PathLike[str] | str, *rest: int) -> int:
            if name == path:
                raise PermissionError(13, "Permission denied", str(path))
            return real_open(name, *rest)

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Denied) as caught:
        await store.add(path, channel="hub/demo", lock=lock)
    assert caught.value.kind == "unreadable"


async def test_cancelled_add_stops(store: Store, tmp_path: Path, lock: SchemaLock) -> None:
    """Cancelling an add of a very large sparse file ends its thread soon: closing the store does not wait for it."""
    path = tmp_path / "huge"
    with path.open("wb") as writer:
        writer.truncate(1 << 40)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin(done: int, total: int) -> None:
        loop.call_soon_threadsafe(begun.set)

    task = asyncio.create_task(
        store.add(
            path,
            channel="hub/demo",
            lock=lock,
            progress=begin,
        )
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.aclose()


async def test_bytes_become_a_tree(store: Store, lock: SchemaLock) -> None:
    """Bytes given as a tree get a tree's id and are kept in the store."""
    added = await store.add_bytes(b"listing" * 10_000, channel="hub/demo", lock=lock, kind=StreamKind.TREE)
    assert added.stream.kind is StreamKind.TREE
    assert await store.read(added.stream, 7, 7) == b"listing"
    source = await store.object_source(added.stream, lock, 0)
    verify_object(
        source.header + source.path.read_bytes()[source.offset : source.offset + source.length],
        stream=added.stream,
        lock=lock,
        number=0,
    )


async def test_pages_of_the_catalogue(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """Pages by key go through all streams of a scope, each once, in order."""
    for index in range(7):
        await store.add(file(f"f{index}", bytes([index])), channel=f"hub/{index % 2}", lock=lock)
    seen, after = [], None
    while page := await store.streams("hub/0", after, 3):
        seen += [entry.stream for entry in page]
        after = seen[-1]
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen)) == 4
    assert len(await store.streams()) == 7


async def test_reading_outside_is_refused(store: Store, file: MakeFile, lock: SchemaLock) -> None:
    """Ranges past the end and negative ones are invalid input, and an empty range is empty."""
    added = await store.add(file("f", b"12345"), channel="hub/demo", lock=lock)
    assert await store.read(added.stream, 5, 0) == b""
    for offset, length in ((0, 6), (-1, 2), (5, 1), (2, -1)):
        with pytest.raises(InvalidInput):
            await store.read(added.stream, offset, length)


async def test_two_stores_on_one_folder(tmp_path: Path, file: MakeFile, lock: SchemaLock) -> None:
    """What one process adds another sees at once, with both journals."""
    for journal in ("wal", "delete"):
        settings = StoreSettings(reserve=0, journal=journal)
        async with Store(tmp_path / journal, settings) as one, Store(tmp_path / journal, settings) as two:
            await asyncio.gather(
                *(
                    part.add(file(f"{journal}{index}", os.urandom(50)), channel="hub/demo", lock=lock)
                    for index in range(10)
                    for part in (one, two)
                )
            )
            assert len(await one.streams()) == len(await two.streams())
        with sqlite3.connect(tmp_path / journal / "catalogue.sqlite3") as db:
            assert db.execute("PRAGMA journal_mode").fetchone()[0] == journal
        db.close()
