"""Files that are harmed under a node or a hub: what was fetched, what is linked, the databases."""

from __future__ import annotations

import asyncio
import filecmp
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.servers.faults import LENGTH, in_a_download, in_an_upload, settle, transfer
from tests.servers.ground import Ground, Grounds, flip
from tests.servers.nodes import Machine, elapsed
from tests.servers.relay import until

from entrepot.adapters.store import Store, StoreSettings
from entrepot.core.errors import EntrepotError, Internal
from entrepot.core.lock import SchemaLock
from entrepot_hub.services.settings import DATABASE_NAME

PAGE = 4096
LOCK = SchemaLock("demo", miniblock=16384, object=65536)


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory, empty_home: Path) -> Iterator[Grounds]:
    """The grounds of this module."""
    found = Grounds(tmp_path_factory.mktemp, empty_home)
    yield found
    found.close()


def content(machine: Machine, length: int = LENGTH) -> Path:
    """The one file of this length in a machine's store."""
    (path,) = (
        path
        for path in machine.settings.store_folder.rglob("*")
        if path.is_file() and path.stat().st_size == length and "sqlite" not in path.name
    )
    return path


def clear(ground: Ground, uri: str) -> None:
    """Take a stream out of the bucket, and have the hub notice."""
    for key in ground.objects(uri).values():
        ground.bucket.delete(key)
    ground.reconcile()


@pytest.mark.soak
@pytest.mark.blocking
@pytest.mark.timeout(300)
def test_what_rots_in_a_store_reaches_nobody(grounds: Grounds, report: Callable[..., None]) -> None:
    """A fetched stream rots in the store of the only node that serves it: who asks gets no wrong byte but a reason,
    ``verify`` finds it, and once another holder is there both have it whole."""
    with grounds.use("folder") as ground:
        work = transfer(ground)
        reader, holder = ground.reader, ground.holder
        assert ground.site is not None
        third = ground.site.machine(ground.name("third"))
        work.start()
        assert work.get is not None
        work.get.wait().fine()
        ground.forget(reader, work.uri)
        work.copy.unlink()
        reader.run("cat", work.uri).fine()
        holder.down()
        clear(ground, work.uri)
        flip(content(reader))
        reader.up()
        got = third.run("get", work.uri, "-o", "copy.bin", "--timeout", "6s", "--json")
        assert (got.code, got.error["kind"]) in {
            (3, "no-holder"),
            (6, "holder-too-slow"),
            (7, "corrupt-object"),
        }, got
        assert got.error["message"]
        assert not (third.folder / "copy.bin").exists()
        kind = got.error["kind"]
        reader.down()
        holder.up()
        healed = time.monotonic()
        third.run("get", work.uri, "-o", "copy.bin").fine()
        seconds = elapsed(healed)
        assert filecmp.cmp(work.original, third.folder / "copy.bin", shallow=False)
        found = reader.run("verify", work.uri, "--json")
        assert found.code == 7, found
        work.start()
        work.get.wait().fine()
        settle(work)
        report(
            "faults",
            fault="stored stream rots at the only holder",
            point="before the want",
            outcome=f"ended: {kind}; verify finds it; with another holder, completed",
            seconds=round(seconds, 1),
        )


@pytest.mark.soak
@pytest.mark.blocking
@pytest.mark.timeout(300)
def test_what_rots_half_fetched_is_found(grounds: Grounds, report: Callable[..., None]) -> None:
    """A bit of what was fetched and verified flips on the disk before the get that was killed is repeated: ``verify``
    finds it, and the get after it brings the right bytes."""
    with grounds.use("folder") as ground:
        work = transfer(ground)
        in_a_download(work)
        assert work.get is not None
        until(lambda: (ground.reader.info(work.uri).missing or 0) < LENGTH, what="the record of the first bytes")
        work.get.kill()
        ground.relay.release()
        path = content(ground.reader)
        data = path.read_bytes()
        first = next(at for at in range(0, LENGTH, 16384) if any(data[at : at + 16384]))
        flip(path, first + 100)
        found = ground.reader.run("verify", work.uri, "--json")
        assert found.code == 7, found
        began = time.monotonic()
        work.start()
        work.get.wait().fine()
        report(
            "faults",
            fault="half-fetched stream rots at the reader",
            point="in a download",
            outcome="verify finds it; repeated, completed",
            seconds=round(elapsed(began), 1),
        )
        settle(work)


@pytest.mark.soak
@pytest.mark.blocking
@pytest.mark.timeout(300)
def test_a_source_that_was_changed_and_put_back_is_served_again(grounds: Grounds, report: Callable[..., None]) -> None:
    """A linked file changes in the middle of an upload: the get ends with the reason; with the bytes put back and added
    again, it completes."""
    with grounds.use("folder") as ground:
        work = transfer(ground)
        data = work.original.read_bytes()
        work.patience = ("--timeout", "5s")
        in_an_upload(work)
        with work.original.open("r+b") as file:
            file.write(b"changed" * 1000)
        ground.relay.release()
        assert work.get is not None
        ended = work.get.wait(150)
        assert ended.code in {3, 5, 6}, ended
        assert "changed or removed" in ended.err, ended
        assert not work.copy.exists()
        work.patience = ("--wait", "60s")
        work.original.write_bytes(data)
        assert ground.holder.add(work.original) == [work.uri]
        began = time.monotonic()
        work.start()
        work.get.wait().fine()
        report(
            "faults",
            fault="linked file changed, then put back",
            point="in an upload",
            outcome=f"ended: {ended.error['kind']}; put back and repeated, completed",
            seconds=round(elapsed(began), 1),
        )
        settle(work)


@pytest.mark.soak
@pytest.mark.blocking
@pytest.mark.timeout(300)
def test_a_hub_with_a_damaged_database_does_not_start(grounds: Grounds, report: Callable[..., None]) -> None:
    """Garbage in the first page of the hub's database while it was dead: it says so and does not start; with the backup
    in its place the transfer that was interrupted completes."""
    with grounds.use("folder") as ground:
        work = transfer(ground)
        in_a_download(work)
        ground.hub.kill()
        database = ground.hub.folder / DATABASE_NAME
        backup = {path: path.read_bytes() for path in ground.hub.folder.glob(f"{DATABASE_NAME}*")}
        for path in backup:
            path.unlink()
        data = backup[database]
        database.write_bytes(random.Random(7).randbytes(PAGE) + data[PAGE:])
        ground.relay.release()
        refused = ground.hub.command("serve")
        assert refused.code == 7, refused
        assert "damaged" in refused.err, refused
        for path, former in backup.items():
            path.write_bytes(former)
        ground.hub.start()
        began = time.monotonic()
        assert work.get is not None
        ended = work.get.wait(150)
        words = "completed"
        if ended.code:
            words = f"ended: {ended.error['kind']}; repeated, completed"
            work.start()
            work.get.wait(150).fine()
        report(
            "faults",
            fault="hub's database damaged, restored from a copy",
            point="in a download",
            outcome=f"hub does not start: corrupt-store; restored, {words}",
            seconds=round(elapsed(began), 1),
        )
        settle(work)


async def test_garbage_in_a_catalogue_is_an_error_and_no_wrong_byte(tmp_path: Path) -> None:
    """Every page of a node's catalogue in turn is overwritten, by garbage, by zeros, by single flipped bits: reading a
    stream gives its bytes or an error that is none of our own mistakes."""
    chance = random.Random(7)
    data = chance.randbytes(300_000)

    def prepare() -> Path:
        (tmp_path / "file").write_bytes(data)
        return tmp_path / "store"

    folder = await asyncio.to_thread(prepare)
    settings = StoreSettings(reserve=0)
    async with Store(folder, settings) as store:
        stream = (await store.add(tmp_path / "file", channel="c", lock=LOCK, copy=True)).stream

    def harms() -> list[bytes]:
        (database,) = folder.glob("*.sqlite3")
        good = database.read_bytes()
        found = []
        for at in range(0, len(good), PAGE):
            page = bytearray(good[at : at + PAGE])
            for _ in range(8):
                page[chance.randrange(PAGE)] ^= 1 << chance.randrange(8)
            for bad in (chance.randbytes(PAGE), bytes(PAGE), bytes(page)):
                found.append(good[:at] + bad + good[at + PAGE :])
        return found

    def harm(bad: bytes, number: int) -> Path:
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        (database,) = copy.glob("*.sqlite3")
        for path in copy.glob("*.sqlite3-*"):
            path.unlink()
        database.write_bytes(bad)
        return copy

    refused = 0
    for number, bad in enumerate(await asyncio.to_thread(harms)):
        copy = await asyncio.to_thread(harm, bad, number)
        try:
            async with Store(copy, settings) as store:
                assert await store.read(stream, 0, len(data)) == data, number
                await store.holds(stream, "c", LOCK)
                await store.verify(stream)
        except Internal as error:
            pytest.fail(f"harm {number}: {error!r}")
        except EntrepotError:
            refused += 1
        await asyncio.to_thread(shutil.rmtree, copy)
    assert refused
