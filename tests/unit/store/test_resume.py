"""Hashing that was interrupted goes on where it was, and never gives a wrong name."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from entrepot.adapters import files, hashing, sha256
from entrepot.adapters.store import Added, Store, checkpoints
from entrepot.core.errors import Conflict, EntrepotError
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import HashedStream, StreamHasher

type MakeFile = Callable[[str, bytes], Path]

MIB = 1 << 20
LENGTH = 13 * MIB + 12_345
HALF = 6 * MIB
LOCKS = [SchemaLock("demo", miniblock=size, object=4 * MIB) for size in (16384, MIB, 4 * MIB)]


class Death(BaseException):
    """The process ends here."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every piece is kept as soon as it is hashed; the bytes that are read are counted."""
    counted: list[int] = []
    before = files.read_into

    def counting(descriptor: int, buffer: memoryview, offset: int) -> int:
        counted.append(len(buffer))
        return before(descriptor, buffer, offset)

    monkeypatch.setattr(hashing, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(hashing, "read_into", counting)
    return counted


def truth(data: bytes, lock: SchemaLock) -> HashedStream:
    hasher = StreamHasher(lock.level, sha256=True)
    hasher.update(data)
    return hasher.finish()


async def interrupted(store: Store, path: Path, lock: SchemaLock, at: int = HALF) -> None:
    """An add that ends when ``at`` bytes are hashed, or a piece later."""

    def die(done: int, _length: int) -> None:
        if done > at:
            raise Death

    with pytest.raises(Death):
        await store.add(path, channel="hub/demo", lock=lock, progress=die)


def rows(store: Store, what: str = "SELECT count(*) FROM checkpoint") -> int:
    with sqlite3.connect(store.folder / "catalogue.sqlite3") as db:
        found: int = db.execute(what).fetchone()[0]
    db.close()
    return found


def write(store: Store, what: str, *values: object) -> None:
    db = sqlite3.connect(store.folder / "catalogue.sqlite3", isolation_level=None)
    db.execute(what, values)
    db.close()


def is_right(added: Added, data: bytes, lock: SchemaLock) -> bool:
    expected = truth(data, lock)
    return (added.opening, added.sha256) == (expected.opening, expected.sha256)


@pytest.mark.blocking
@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.miniblock))
async def test_an_interrupted_add_goes_on(store: Store, file: MakeFile, lock: SchemaLock, read: list[int]) -> None:
    """The second add reads what the first did not hash, finds the same names and nodes, and leaves no checkpoint."""
    data = os.urandom(LENGTH)
    path = file("f", data)
    await interrupted(store, path, lock)
    assert rows(store) == 1
    read.clear()
    told: list[int] = []
    added = await store.add(path, channel="hub/demo", lock=lock, progress=lambda done, _length: told.append(done))
    assert is_right(added, data, lock)
    assert sum(read) <= LENGTH - HALF
    assert told[0] >= HALF
    assert told == sorted(told)
    assert (rows(store), rows(store, "SELECT count(*) FROM checkpoint_part")) == (0, 0)
    assert not (await store.verify(added.stream)).bad
    source = await store.object_source(added.stream, lock, 1)
    assert source.offset == 4 * MIB


@pytest.mark.blocking
async def test_a_file_that_changed_is_hashed_from_its_beginning(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int]
) -> None:
    """A change that keeps length and times of modification is seen, and what was hashed before does not count."""
    data = bytearray(os.urandom(LENGTH))
    path = file("f", bytes(data))
    await interrupted(store, path, lock)
    status = path.stat()
    data[5] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    read.clear()
    added = await store.add(path, channel="hub/demo", lock=lock)
    assert is_right(added, bytes(data), lock)
    assert sum(read) == LENGTH
    assert rows(store) == 0


@pytest.mark.blocking
@pytest.mark.parametrize(
    ("table", "column"),
    [("checkpoint", name) for name in ("state", "digest", "identity")] + [("checkpoint_part", "nodes")],
)
async def test_a_flipped_bit_never_gives_a_wrong_name(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int], table: str, column: str
) -> None:
    """A checkpoint that is not what was kept does not count: the file is hashed from its beginning."""
    data = os.urandom(LENGTH)
    path = file("f", data)
    await interrupted(store, path, lock)
    with sqlite3.connect(store.folder / "catalogue.sqlite3") as db:
        row, value = db.execute(f"SELECT rowid, {column} FROM {table}").fetchone()
    db.close()
    spoiled = bytearray(value)
    spoiled[len(spoiled) // 3] ^= 4
    write(store, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", bytes(spoiled), row)
    read.clear()
    added = await store.add(path, channel="hub/demo", lock=lock)
    assert is_right(added, data, lock)
    assert sum(read) == LENGTH


@pytest.mark.blocking
@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE checkpoint SET done = done + 2097152",
        "UPDATE checkpoint SET done = done - 2097152",
        "UPDATE checkpoint SET state = NULL",
        "UPDATE checkpoint SET state = substr(state, 1, 100)",
        "UPDATE checkpoint SET state = 'text'",
        "UPDATE checkpoint SET done = 'text'",
        "UPDATE checkpoint SET identity = substr(identity, 2)",
        "UPDATE checkpoint SET identity = 'text'",
        "UPDATE checkpoint_part SET nodes = 'text'",
        "DELETE FROM checkpoint_part WHERE done = (SELECT max(done) FROM checkpoint_part)",
        "DELETE FROM checkpoint_part",
        "UPDATE checkpoint SET path = CAST('/elsewhere' AS BLOB)",
    ],
)
async def test_a_mangled_checkpoint_never_gives_a_wrong_name(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int], spoil: str
) -> None:
    """Rows that are missing, cut or moved do not count either."""
    data = os.urandom(LENGTH)
    path = file("f", data)
    await interrupted(store, path, lock)
    write(store, spoil)
    read.clear()
    assert is_right(await store.add(path, channel="hub/demo", lock=lock), data, lock)
    assert sum(read) == LENGTH


@pytest.mark.blocking
async def test_without_openssl_only_the_plain_digest_is_taken_again(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the state of SHA-256 cannot be kept, the nodes are: what was hashed is read again for the digest alone."""
    data = os.urandom(LENGTH)
    path = file("f", data)
    monkeypatch.setattr(sha256, "_library", lambda: None)
    leaves: list[int] = []
    before = hashing.nodes_of

    def counting(piece: memoryview, level: int) -> list[bytes]:
        leaves.append(len(piece))
        return before(piece, level)

    monkeypatch.setattr(hashing, "nodes_of", counting)
    await interrupted(store, path, lock)
    assert rows(store, "SELECT state IS NULL FROM checkpoint") == 1
    read.clear()
    leaves.clear()
    assert is_right(await store.add(path, channel="hub/demo", lock=lock), data, lock)
    assert sum(read) == LENGTH
    assert sum(leaves) <= LENGTH - HALF


@pytest.mark.parametrize("state", [b"", bytes(112), bytes(sha256.STATE_LENGTH + 1)])
def test_what_is_no_state_is_not_taken_up(state: bytes) -> None:
    """Bytes that cannot be the state after so many bytes are refused, and the caller reads them again."""
    assert sha256.resumed(state, HALF) is None


@pytest.mark.blocking
async def test_two_that_go_on_from_one_checkpoint_both_come_right(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int]
) -> None:
    """Two processes that add the same file after an interruption do not spoil what the other keeps."""
    data = os.urandom(LENGTH)
    path = file("f", data)
    await interrupted(store, path, lock, at=2 * MIB)
    async with Store(store.folder, store.settings) as other:
        found = await asyncio.gather(
            store.add(path, channel="hub/a", lock=lock), other.add(path, channel="hub/b", lock=lock)
        )
    assert all(is_right(added, data, lock) for added in found)
    assert rows(store) == 0


@pytest.mark.blocking
async def test_a_change_ends_it_early(store: Store, file: MakeFile, lock: SchemaLock, read: list[int]) -> None:
    """A file that is written to while it is hashed is refused at the next checkpoint, not after all of it was read."""
    path = file("f", os.urandom(LENGTH))

    def touch(done: int, _length: int) -> None:
        if done and len(read) < 8:
            os.utime(path)

    with pytest.raises(Conflict) as caught:
        await store.add(path, channel="hub/demo", lock=lock, progress=touch)
    assert caught.value.kind == "changed"
    assert str(path) in caught.value.message


@pytest.mark.blocking
async def test_cancelling_keeps_what_was_hashed(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled add keeps its last piece, whatever the time since the last checkpoint."""
    monkeypatch.setattr(hashing, "KEEP_EVERY", 3600.0)
    data = os.urandom(LENGTH)
    path = file("f", data)
    loop, moved = asyncio.get_running_loop(), asyncio.Event()
    gone: list[bool] = []

    def wait(done: int, _length: int) -> None:
        if done >= HALF and not gone:
            loop.call_soon_threadsafe(moved.set)
            deadline = time.monotonic() + 30
            while not gone and time.monotonic() < deadline:
                time.sleep(0.005)

    adding = asyncio.create_task(store.add(path, channel="hub/demo", lock=lock, progress=wait))
    await moved.wait()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    gone.append(True)
    await store.aclose()
    assert rows(store, "SELECT max(done) FROM checkpoint") >= HALF
    read.clear()
    async with Store(store.folder, store.settings) as again:
        assert is_right(await again.add(path, channel="hub/demo", lock=lock), data, lock)
    assert sum(read) <= LENGTH - HALF


@pytest.mark.blocking
async def test_a_linked_file_that_was_touched_is_hashed_again_in_two_goes(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int]
) -> None:
    """Hashing a changed file again is kept as adding is."""
    path = file("f", os.urandom(LENGTH))
    added = await store.add(path, channel="hub/demo", lock=lock)
    path.touch()

    def die(done: int, _length: int) -> None:
        if done > HALF:
            raise Death

    with pytest.raises(Death):
        await store.refresh(added.stream, progress=die)
    read.clear()
    assert await store.refresh(added.stream)
    assert sum(read) <= LENGTH - HALF
    assert rows(store) == 0


@pytest.mark.blocking
async def test_a_linked_file_that_changes_under_a_refresh_is_not_the_stream(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int]
) -> None:
    """A file that is written to while it is hashed again does not count, and that is no error of the refresh."""
    path = file("f", os.urandom(LENGTH))
    added = await store.add(path, channel="hub/demo", lock=lock)
    path.touch()
    assert not await store.refresh(added.stream, progress=lambda _done, _length: os.utime(path))


@pytest.mark.blocking
async def test_what_nobody_goes_on_with_is_swept(
    store: Store, file: MakeFile, lock: SchemaLock, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the checkpoints of files that are never added again, those that are too old or too many go."""
    monkeypatch.setattr(checkpoints, "MOST", 2)
    for name in "abc":
        await interrupted(store, file(name, os.urandom(LENGTH)), lock, at=3 * MIB)
    assert rows(store) == 2
    write(store, "UPDATE checkpoint SET at = at - ?", checkpoints.ABANDONED_AFTER + 60_000)
    await interrupted(store, file("d", os.urandom(LENGTH)), lock, at=3 * MIB)
    assert rows(store) == 1
    assert rows(store, "SELECT count(DISTINCT checkpoint) FROM checkpoint_part") == 1


@pytest.mark.blocking
async def test_a_piece_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    """A file that became shorter is told by whichever thread finds out, and no thread is left behind."""
    path = tmp_path / "f"
    path.write_bytes(bytes(5 * MIB))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(2) as pool, pytest.raises(EntrepotError) as caught:
            hashing.hash_file(descriptor, 9 * MIB, 6, pool)
    finally:
        os.close(descriptor)
    assert caught.value.kind == "changed"


@pytest.mark.parametrize("cuts", [(), (1,), (64, 65), (55, 56, 119, 4096)])
def test_a_carried_state_gives_what_hashlib_gives(cuts: tuple[int, ...]) -> None:
    """Wherever SHA-256 is put down, it is taken up again to the digest that hashlib finds."""
    data = os.urandom(5000)
    whole, at = sha256.new(), 0
    for cut in (*cuts, len(data)):
        whole.update(memoryview(bytearray(data[at:cut])))
        at = cut
        state = whole.state()
        assert whole.digest() == hashlib.sha256(data[:at]).digest()
        if state is not None:
            taken = sha256.resumed(state, at)
            assert taken is not None
            assert sha256.resumed(state, at + 1) is None
            whole = taken
    assert whole.digest() == hashlib.sha256(data).digest()


def test_a_library_that_hashes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial compares with hashlib: an OpenSSL whose structure is another one is left alone."""
    library = sha256._library()
    if library is None:
        pytest.skip("this Python's OpenSSL does not offer it")
    assert sha256._works(library)
    monkeypatch.setattr(sha256, "_fits", lambda _state, _length: False)
    assert not sha256._works(library)
