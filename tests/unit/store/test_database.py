"""The catalogue's file: migrations, damage, other processes."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from entrepot.adapters import files
from entrepot.adapters.store import Store, StoreSettings
from entrepot.adapters.store.database import Database, translate
from entrepot.adapters.store.schema import MIGRATIONS
from entrepot.core.errors import Corrupt, Denied, EntrepotError, InvalidInput, RetryLater
from entrepot.core.lock import SchemaLock


def database(path: Path, migrations: object = MIGRATIONS) -> Database:
    return Database(path, migrations, journal="wal", busy_timeout=0.1, synced=True)  # type: ignore[arg-type]


async def test_a_later_version_adds_its_steps(tmp_path: Path) -> None:
    """A store of the first version gets the new step once, and keeps what it has."""
    path = tmp_path / "c.sqlite3"
    first = database(path)
    await first.open()
    await first.run(lambda db: db.execute("INSERT INTO stream VALUES (1, x'ff', 0, x'00', NULL, 'n', 0, 0, 0)"))
    await first.aclose()

    def step(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE stream ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'")

    for _ in range(2):
        later = database(path, (*MIGRATIONS, step))
        await later.open()
        row = await later.run(lambda db: db.execute("SELECT name, colour FROM stream").fetchone())
        await later.aclose()
        assert row == ("n", "blue")
    with pytest.raises(InvalidInput) as caught:
        await database(path).open()
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_a_store_of_an_earlier_version_is_brought_up(tmp_path: Path, version: int) -> None:
    """A store that any earlier version wrote gets the tables that a new one has."""

    async def tables(path: Path, migrations: object = MIGRATIONS) -> list[tuple[str, str]]:
        opened = database(path, migrations)
        await opened.open()
        found = await opened.run(lambda db: db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall())
        await opened.aclose()
        return found

    assert await tables(tmp_path / "old", MIGRATIONS[:version]) != await tables(tmp_path / "new")
    assert await tables(tmp_path / "old") == await tables(tmp_path / "new")


async def test_failed_step_changes_nothing(tmp_path: Path) -> None:
    """A migration that fails in the middle leaves the old version."""
    path = tmp_path / "c.sqlite3"
    first = database(path)
    await first.open()
    await first.aclose()

    def step(db: sqlite3.Connection) -> None:
        db.execute("DROP TABLE digest")
        db.execute("nonsense")

    with pytest.raises(EntrepotError):
        await database(path, (*MIGRATIONS, step)).open()
    again = database(path)
    await again.open()
    assert await again.run(lambda db: db.execute("SELECT count(*) FROM digest").fetchone()) == (0,)
    await again.aclose()


@pytest.mark.parametrize("damage", [b"this is no database, it is a text" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
async def test_damaged_catalogue_is_named(tmp_path: Path, damage: bytes) -> None:
    """A file that is no database raises corrupt-store with a hint."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "catalogue.sqlite3").write_bytes(damage)
    with pytest.raises(Corrupt) as caught:
        async with Store(tmp_path / "s"):
            pass
    assert caught.value.kind == "corrupt-store"
    assert caught.value.hint


async def test_pages_damaged_in_the_middle_are_named(tmp_path: Path) -> None:
    """Damage behind an intact first page is corrupt-store when it is met, never a library's error."""
    lock = SchemaLock("demo")
    async with Store(tmp_path / "s", StoreSettings(reserve=0, journal="delete")) as store:
        for index in range(200):
            await store.add_bytes(os.urandom(20), channel=f"c{index}", lock=lock, name="n" * 200)
    path = tmp_path / "s" / "catalogue.sqlite3"
    with path.open("r+b") as writer:
        writer.seek(4096)
        writer.write(b"\xa5" * (path.stat().st_size - 4096))
    with pytest.raises(Corrupt) as caught:
        async with Store(tmp_path / "s", StoreSettings(reserve=0, journal="delete")) as store:
            await store.streams()
    assert caught.value.kind == "corrupt-store"


async def test_busy_with_another_process(tmp_path: Path) -> None:
    """A write lock that another connection keeps past the time-out is busy, and reading goes on."""
    path = tmp_path / "c.sqlite3"
    ours = database(path)
    await ours.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetryLater) as caught:
        await ours.run(lambda db: db.execute("DELETE FROM digest"))
    assert caught.value.kind == "busy"
    other.execute("ROLLBACK")
    other.close()
    await ours.run(lambda db: db.execute("DELETE FROM digest"))
    await ours.aclose()
    await ours.aclose()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, RetryLater),
        (sqlite3.SQLITE_BUSY, RetryLater),
        (sqlite3.SQLITE_CORRUPT, Corrupt),
        (sqlite3.SQLITE_READONLY, Denied),
        (sqlite3.SQLITE_IOERR, Denied),
    ],
)
def test_each_refusal_of_sqlite_has_its_error(tmp_path: Path, code: int, expected: type[EntrepotError]) -> None:
    """SQLite's codes become errors by what the caller can do."""
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    assert type(translate(error, tmp_path / "c")) is expected


def test_a_disk_without_room_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite calls a disk that has no room for the files beside the catalogue an I/O error: it is told as what it is,
    and the room that is kept free is told beside the room that is needed."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | (19 << 8)  # as while the shared memory is made larger
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    found = translate(error, tmp_path / "c")
    assert (found.kind, found.exit_code) == ("disk-full", 6)
    with pytest.raises(RetryLater) as caught:
        files.require_space(tmp_path, 300_000_000, 67_108_864)
    assert "367,108,864 bytes are needed (67,108,864 of them stay free), 0 bytes are free" in caught.value.message


def test_every_errno_becomes_an_error_of_ours() -> None:
    """No number that an operating system may give escapes the translation."""
    for code in range(200):
        assert isinstance(files.translate(OSError(code, os.strerror(code)), "f"), EntrepotError)


async def test_journal_setting_is_checked(tmp_path: Path) -> None:
    """A journal that does not exist is refused when the store is made."""
    with pytest.raises(InvalidInput):
        Store(tmp_path, StoreSettings(journal="off"))
