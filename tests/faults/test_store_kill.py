"""What is left of a store whose process was killed, or whose disk filled up, in the middle of writing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from entrepot.adapters.store import How, Store, StoreSettings
from entrepot.core.errors import Conflict, EntrepotError, NotFound, RetryLater
from entrepot.core.format import decode_header, encode_header
from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import HashedStream, StreamHasher

LOCK = SchemaLock("demo", miniblock=16384, object=65536)
LENGTH = 24 * (1 << 20) + 77


def content(length: int) -> bytes:
    return random.Random(7).randbytes(length)


def hashed(data: bytes) -> HashedStream:
    hasher = StreamHasher(LOCK.level)
    hasher.update(data)
    return hasher.finish()


#: Fetches the same stream again and again, from a random place, until it is killed.
_WRITER = """
import asyncio, random, sys
from pathlib import Path
from entrepot.adapters.store import Store, StoreSettings
from entrepot.core.format import decode_header, encode_header
from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher

async def main(folder, length, seed):
    lock = SchemaLock("demo", miniblock=16384, object=65536)
    data = random.Random(7).randbytes(length)
    hasher = StreamHasher(lock.level); hasher.update(data); found = hasher.finish()
    geometry = Geometry(length, lock)
    stream = found.opening.stream_id()
    numbers = list(range(geometry.object_count)); random.Random(seed).shuffle(numbers)
    async with Store(Path(folder), StoreSettings(reserve=0, flush_after=0.003)) as store:
        fetch = await store.begin(stream, found.opening, lock, "c")
        print("begun", flush=True)
        def write():
            for number in numbers:
                header = fetch.accept_header(number, encode_header(stream, found.opening, lock, number, found.nodes))
                for index, at in enumerate(geometry.miniblocks_of(number)):
                    offset, size = geometry.miniblock_span(at)
                    fetch.write_verified(header, index, data[offset:offset + size])
        await asyncio.to_thread(write)
        await fetch.finish()
        print("done", flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


async def check(folder: Path, data: bytes) -> tuple[int, bool]:
    """Every bit that is set has the right bytes; returns how many bytes they are, and whether it is all."""
    found = hashed(data)
    stream = found.opening.stream_id()
    geometry = Geometry(len(data), LOCK)
    async with Store(folder, StoreSettings(reserve=0)) as store:
        async with await store.begin(stream, found.opening, LOCK, "c") as fetch:
            for number in range(geometry.object_count):
                missing = set(fetch.missing_miniblocks(number))
                for index, at in enumerate(geometry.miniblocks_of(number)):
                    if index not in missing:
                        offset, length = geometry.miniblock_span(at)
                        assert await store.read(stream, offset, length) == data[offset : offset + length]
            counted = fetch.verified_bytes, fetch.complete
        assert not (await store.verify(stream)).bad
    return counted


async def test_every_bit_that_survives_a_kill_is_true(tmp_path: Path) -> None:
    """A writer is killed again and again at random moments: what is recorded grows, and is right each time."""
    data = content(LENGTH)
    before, chance = 0, random.Random()
    for seed in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "s"), str(LENGTH), str(seed)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begun\n"
            time.sleep(chance.uniform(0.005, 0.15))
            writer.send_signal(signal.SIGKILL)
        now, _ = await check(tmp_path / "s", data)
        assert now >= before
        before = now
    assert before > 0


async def test_two_writers_of_which_one_is_killed(tmp_path: Path) -> None:
    """Two processes fetch one stream at once; one dies, the other ends with the right bytes."""
    data = content(LENGTH)
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "s"), str(LENGTH)]
    with (
        subprocess.Popen([*command, "1"], stdout=subprocess.PIPE) as one,
        subprocess.Popen([*command, "2"], stdout=subprocess.PIPE) as two,
    ):
        assert one.stdout is not None
        assert two.stdout is not None
        assert one.stdout.readline() == b"begun\n"
        one.send_signal(signal.SIGKILL)
        assert two.stdout.read() == b"begun\ndone\n"
    counted, complete = await check(tmp_path / "s", data)
    assert (counted, complete) == (LENGTH, True)


@pytest.mark.parametrize("where", ["announced", "moved"])
async def test_death_in_the_middle_of_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Dying before the rename leaves the store as it was; dying after it leaves an output that is not trusted
    until it was hashed again."""
    data = content(300_000)
    found = hashed(data)
    stream, geometry = found.opening.stream_id(), Geometry(len(data), LOCK)
    out = tmp_path / "out"
    settings = StoreSettings(reserve=0)

    class Death(BaseException):
        pass

    async with Store(tmp_path / "s", settings) as store:
        async with await store.begin(stream, found.opening, LOCK, "c") as fetch:
            for number in range(geometry.object_count):
                raw = encode_header(stream, found.opening, LOCK, number, found.nodes)
                header = fetch.accept_header(number, raw)
                for index, at in enumerate(geometry.miniblocks_of(number)):
                    offset, length = geometry.miniblock_span(at)
                    fetch.write_verified(header, index, data[offset : offset + length])
            assert await fetch.finish()
        monkeypatch.setattr("entrepot.adapters.store.export.reflink", lambda *_: False)

        def die(*_: object, **__: object) -> None:
            raise Death

        target = "move" if where == "announced" else "identify"
        monkeypatch.setattr(f"entrepot.adapters.store.export.{target}", die)
        with pytest.raises(Death):
            await store.export(stream, out)
        monkeypatch.undo()
    async with Store(tmp_path / "s", settings) as store:
        if where == "announced":
            assert not out.exists()
            assert await store.read(stream, 0, len(data)) == data
            assert await store.export(stream, out) in (How.MOVED, How.REFLINK)
        else:
            with pytest.raises(Conflict) as caught:
                await store.object_source(stream, LOCK, 0)
            assert caught.value.kind == "changed"
            assert await store.refresh(stream)
        assert out.read_bytes() == data
        assert await store.read(stream, 0, len(data)) == data
        source = await store.object_source(stream, LOCK, 1)
        decode_header(source.header, stream=stream, lock=LOCK, number=1)


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mount is not permitted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_fills_up_loses_nothing_verified(small_disk: Path, tmp_path: Path) -> None:
    """Another's file takes the room in the middle of a fetch: disk-full with figures; with room again it goes on."""
    data = content(1 << 20)
    found = hashed(data)
    stream, geometry = found.opening.stream_id(), Geometry(len(data), LOCK)
    settings = StoreSettings(reserve=0, flush_after=0.01)

    def write(fetch: object, numbers: range) -> None:
        for number in numbers:
            header = fetch.accept_header(  # type: ignore[attr-defined]
                number, encode_header(stream, found.opening, LOCK, number, found.nodes)
            )
            for index, at in enumerate(geometry.miniblocks_of(number)):
                offset, length = geometry.miniblock_span(at)
                fetch.write_verified(header, index, data[offset : offset + length])  # type: ignore[attr-defined]

    async with Store(small_disk / "s", settings) as store:
        fetch = await store.begin(stream, found.opening, LOCK, "c")
        await asyncio.to_thread(write, fetch, range(4))
        await asyncio.to_thread(fetch.drain)
        hog = small_disk / "hog"
        with contextlib.suppress(OSError), hog.open("wb", buffering=0) as writer:
            while True:
                writer.write(bytes(4096))
        with pytest.raises(RetryLater) as caught:
            await asyncio.to_thread(write, fetch, range(4, 16))
        assert caught.value.kind == "disk-full"
        assert isinstance(caught.value.data["free"], int)
        with pytest.raises(RetryLater) as caught:
            (await store.begin(stream, found.opening, LOCK, "c")).release()
        assert caught.value.kind == "disk-full"
        hog.unlink()
        with contextlib.suppress(EntrepotError):
            await fetch.finish()
        await fetch.aclose()
    async with Store(small_disk / "s", settings) as store:
        async with await store.begin(stream, found.opening, LOCK, "c") as fetch:
            assert all(not fetch.missing_miniblocks(number) for number in range(4))
            await asyncio.to_thread(write, fetch, range(16))
            assert await fetch.finish()
        big = hashed(content(4 << 20)).opening
        with pytest.raises(RetryLater):
            await store.begin(big.stream_id(), big, LOCK, "c")
        with pytest.raises(NotFound):
            await store.entry(big.stream_id())


async def test_export_to_a_full_disk_leaves_no_trace(small_disk: Path, tmp_path: Path) -> None:
    """A copy that does not fit is refused; nothing appears at the output and the store still has the stream."""
    path = tmp_path / "f"
    path.write_bytes(content(5 << 20))
    async with Store(tmp_path / "s", StoreSettings(reserve=0)) as store:
        added = await store.add(path, channel="c", lock=LOCK, copy=True)
        with pytest.raises(RetryLater) as caught:
            await store.export(added.stream, small_disk / "out")
        assert caught.value.kind == "disk-full"
        assert os.listdir(small_disk) == []
        assert await store.read(added.stream, 0, 10) == path.read_bytes()[:10]
