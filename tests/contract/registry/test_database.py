"""The database itself: transactions, bounds, and errors that leave as entrepot's own."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from tests.servers.postgres import PostgreSQL

from entrepot.core.errors import Corrupt, Denied, EntrepotError, Internal, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.database import Database, DatabaseSettings
from entrepot_hub.adapters.tables import settings as table


def put(connection: Connection, key: str) -> None:
    connection.execute(sa.insert(table).values(key=key, value=b"x"))


def keys(connection: Connection) -> list[str]:
    return list(connection.execute(sa.select(table.c.key).order_by(table.c.key)).scalars())


async def test_what_fails_is_undone(database: Database) -> None:
    """An error in the middle takes everything of its transaction back, and is raised as it was."""

    def work(connection: Connection) -> None:
        put(connection, "a")
        raise NotFound("not here")

    with pytest.raises(NotFound, match="not here"):
        await database.run(work)
    assert await database.run(keys) == []


async def test_transactions_join(database: Database) -> None:
    """What is called within a transaction belongs to it."""

    def one(key: str) -> None:
        with database.transaction() as connection:
            put(connection, key)

    def both() -> None:
        one("a")
        one("b")
        raise NotFound("no")

    with pytest.raises(NotFound):
        await database.together(both)
    assert await database.run(keys) == []
    await database.call(one, "c")
    assert await database.run(keys) == ["c"]


async def test_a_broken_invariant_is_ours(database: Database) -> None:
    """A constraint that should have held is Internal, and no library's error escapes."""
    await database.run(put, "a")
    with pytest.raises(Internal):
        await database.run(put, "a")
    with pytest.raises(Internal):
        await database.run(lambda connection: connection.exec_driver_sql("no SQL"))


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    """More calls than the queue holds are refused at once; those in it are done."""
    gate = threading.Event()
    async with Database(f"sqlite:///{tmp_path / 'hub.db'}", DatabaseSettings(queue=2)) as database:
        waiting = [asyncio.create_task(database.call(gate.wait, 30)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RetryLater) as caught:
            await database.call(gate.is_set)
        assert caught.value.kind == "busy"
        gate.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await database.call(gate.is_set)


async def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    """A call has a deadline."""
    gate = threading.Event()
    async with Database(f"sqlite:///{tmp_path / 'hub.db'}", DatabaseSettings(deadline=0.01)) as database:
        with pytest.raises(RetryLater) as caught:
            await database.call(gate.wait, 30)
        assert caught.value.kind == "deadline"
        gate.set()


async def test_a_closed_database_says_so(tmp_path: Path) -> None:
    """Closing may be repeated; afterwards calls are refused."""
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    await database.aclose()
    await database.aclose()
    with pytest.raises(RetryLater) as caught:
        await database.call(print)
    assert caught.value.kind == "cancelled"


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://u:secret@h/d", "sqlite+aiosqlite:///x", "postgresql://u:secret@h:port/d"]
)
def test_other_urls_are_refused(url: str) -> None:
    """A URL of another kind is a setting to mend; what is secret in it is not repeated."""
    with pytest.raises(InvalidInput) as caught:
        Database(url)
    assert caught.value.kind == "invalid-setting"
    assert "secret" not in str(caught.value)


def test_the_password_is_masked() -> None:
    """A database shows its URL without the password."""
    database = Database("postgresql://user:secret@host/name")
    assert "secret" not in repr(database)
    assert "host" in repr(database)
    database.close()


async def test_a_file_that_is_no_database_is_corrupt(tmp_path: Path) -> None:
    """Foreign bytes are told from an empty file and left as they are."""
    path = tmp_path / "hub.db"
    path.write_bytes(b"these are not the bytes of a database" * 100)
    async with Database(f"sqlite:///{path}") as database:
        with pytest.raises(Corrupt) as caught:
            await database.migrate()
    assert caught.value.kind == "corrupt-store"


async def test_a_missing_folder_is_unreadable(tmp_path: Path) -> None:
    """A file that cannot be made is a matter of permissions or a wrong path."""
    async with Database(f"sqlite:///{tmp_path / 'gone' / 'hub.db'}") as database:
        with pytest.raises(Denied) as caught:
            await database.migrate()
    assert caught.value.kind == "unreadable"


async def test_a_new_database_is_private(tmp_path: Path) -> None:
    """Only its owner can read the file and its journals."""
    path = tmp_path / "hub.db"
    async with Database(f"sqlite:///{path}") as database:
        await database.migrate()
        files = [file for file in await asyncio.to_thread(lambda: list(tmp_path.iterdir())) if file.is_file()]
        assert len(files) >= 2
        assert {os.stat(file).st_mode & 0o777 for file in files} == {0o600}


async def test_what_was_answered_is_synced(tmp_path: Path) -> None:
    """SQLite runs with synchronous=FULL (2), a write-ahead log and foreign keys."""

    def pragmas(connection: Connection) -> list[object]:
        names = ("synchronous", "journal_mode", "foreign_keys")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    async with Database(f"sqlite:///{tmp_path / 'hub.db'}") as database:
        assert await database.run(pragmas) == [2, "wal", 1]


async def test_a_server_that_is_away_is_for_later(tmp_path: Path) -> None:
    """No PostgreSQL at the address: try again later."""
    async with Database(f"postgresql://postgres@/x?host={tmp_path}") as database:
        with pytest.raises(RetryLater):
            await database.migrate()


async def test_a_database_that_is_not_there_is_named(postgres: PostgreSQL) -> None:
    """PostgreSQL runs but has no such database: somebody has to create it."""
    async with Database(postgres.url("nowhere")) as database:
        with pytest.raises(EntrepotError) as caught:
            await database.migrate()
    assert caught.value.kind in {"not-running", "retry-later"}


async def test_a_deadlock_is_run_again(postgres: PostgreSQL) -> None:
    """Two transactions that lock the same rows crosswise both succeed in the end."""
    url = await asyncio.to_thread(postgres.migrated)
    async with Database(url, DatabaseSettings(workers=2)) as database:
        await database.run(put, "a")
        await database.run(put, "b")
        barrier = threading.Barrier(2)
        runs: list[str] = []

        def cross(connection: Connection, first: str, second: str) -> None:
            runs.append(first)
            for key in (first, second):
                connection.execute(sa.update(table).where(table.c.key == key).values(value=first.encode()))
                if key == first and len(runs) <= 2:
                    barrier.wait(30)

        await asyncio.gather(database.run(cross, "a", "b"), database.run(cross, "b", "a"))
        assert len(runs) > 2
