"""Transactions of one SQLite database that come at the same time: one commit, and each its own outcome."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from tests.contract.registry.test_database import keys, put

from entrepot.core.errors import NotFound, RetryLater
from entrepot_hub.adapters.database import Database, DatabaseSettings
from entrepot_hub.adapters.ledger_rows import account, keep_account


class Held:
    """A database whose worker is kept busy until :meth:`release`; ``commits`` counts those since then."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.commits = 0
        self._free, self._busy = threading.Event(), threading.Event()
        self._holding: asyncio.Task[Any] | None = None

    async def hold(self) -> None:
        def work() -> None:
            self._busy.set()
            assert self._free.wait(20)

        self._holding = asyncio.create_task(self.database.call(work))
        while not self._busy.is_set():
            await asyncio.sleep(0.005)

    async def together(self, *works: Awaitable[Any]) -> list[Any]:
        """Have these wait for the worker together; their outcomes."""
        tasks = [asyncio.ensure_future(work) for work in works]
        while self.database.waiting < 1 + len(tasks):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)  # they reach the worker in the next turn of the loop
        self.release()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def release(self) -> None:
        self._free.set()


@asynccontextmanager
async def held(path: Path, busy: float = 5.0) -> AsyncIterator[Held]:
    async with Database(f"sqlite:///{path}", DatabaseSettings(busy=busy)) as database:
        await database.migrate()
        found = Held(database)

        def count(_: Connection) -> None:
            found.commits += 1

        event.listen(Engine, "commit", count)
        try:
            await found.hold()
            found.commits = 0
            yield found
        finally:
            event.remove(Engine, "commit", count)
            found.release()


def stored(path: Path) -> list[str]:
    """What another connection sees."""
    with closing(sqlite3.connect(path)) as connection:
        return [key for (key,) in connection.execute("select key from settings order by key")]


@pytest.mark.blocking
async def test_what_waits_together_is_committed_once(tmp_path: Path) -> None:
    """Twenty transactions that wait are one commit, and each caller is answered after it."""
    path = tmp_path / "hub.db"
    async with held(path) as found:
        await found.together(*(found.database.run(put, f"{number:02}") for number in range(20)))
        assert found.commits == 1
        assert stored(path) == [f"{number:02}" for number in range(20)]


@pytest.mark.blocking
async def test_what_fails_is_undone_alone(tmp_path: Path) -> None:
    """Of those committed together one fails: its error is its caller's, its changes are gone, the others' are not."""

    def fail(connection: Connection) -> None:
        put(connection, "b")
        raise NotFound("not here")

    path = tmp_path / "hub.db"
    async with held(path) as found:
        run = found.database.run
        first, second, third = await found.together(run(put, "a"), run(fail), run(put, "c"))
        assert (first, third, found.commits) == (None, None, 1)
        assert isinstance(second, NotFound)
    assert stored(path) == ["a", "c"]


@pytest.mark.blocking
async def test_a_broken_constraint_is_its_callers(tmp_path: Path) -> None:
    """A statement that the database refuses spoils nothing for those it would have been committed with."""
    path = tmp_path / "hub.db"
    async with held(path) as found:
        run = found.database.run
        outcomes = await found.together(run(put, "a"), run(put, "a"), run(put, "c"))
        assert [outcome is None for outcome in outcomes] == [True, False, True]
    assert stored(path) == ["a", "c"]


@pytest.mark.blocking
async def test_what_was_undone_is_not_known_to_the_next(tmp_path: Path) -> None:
    """Of a channel that one changed before it failed, those committed together see what it was."""
    async with held(tmp_path / "hub.db") as found:
        database = found.database

        def make(connection: Connection) -> None:
            connection.execute(sa.text("INSERT INTO buckets (id, url, prefix, binds) VALUES (1, 'u', '', '{}')"))
            connection.execute(
                sa.text(
                    "INSERT INTO channels (id, name, quota, lock, bucket_id, public_read, created_at) "
                    "VALUES (1, 'demo', 1, 'l', 1, 0, 0)"
                )
            )

        def charge(more: int) -> int:
            with database.lane() as lane:
                of = account(lane, "demo")
                of.charged += more
                keep_account(lane, of)
                if more > 1:
                    raise NotFound("not here")
                return of.charged

        with database.transaction() as connection:
            make(connection)
        first, second, third, fourth = await found.together(*(database.call(charge, more) for more in (1, 2, 1, 0)))
        assert (first, third, fourth) == (1, 2, 2)
        assert isinstance(second, NotFound)


@pytest.mark.blocking
async def test_a_transaction_that_is_lost_is_run_again_one_by_one(tmp_path: Path) -> None:
    """Where SQLite rolls back everything, whoever had no part in it is answered with what then really happened."""

    def lose(connection: Connection) -> None:
        raw: Any = connection.connection.driver_connection
        raw.execute("ROLLBACK")
        raise NotFound("not here")

    path = tmp_path / "hub.db"
    async with held(path) as found:
        run = found.database.run
        first, second, third = await found.together(run(put, "a"), run(lose), run(put, "c"))
        assert (first, third) == (None, None)
        assert isinstance(second, Exception)
    assert stored(path) == ["a", "c"]


@pytest.mark.blocking
async def test_who_gave_up_waiting_is_not_run(tmp_path: Path) -> None:
    """A caller that is cancelled before its turn changes nothing."""
    path = tmp_path / "hub.db"
    async with held(path) as found:
        task = asyncio.create_task(found.database.run(put, "a"))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await found.together(found.database.run(put, "b"))
    assert stored(path) == ["b"]


@pytest.mark.blocking
async def test_a_locked_file_is_told_to_all(tmp_path: Path) -> None:
    """Another process has the file locked: all that waited together hear it at once, and can go on later."""
    path = tmp_path / "hub.db"
    async with held(path, busy=0.1) as found:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            outcomes = await found.together(*(found.database.run(put, key) for key in "abc"))
            assert {(type(error), getattr(error, "kind", "")) for error in outcomes} == {(RetryLater, "busy")}
            other.execute("ROLLBACK")
        await found.database.run(put, "d")
        assert await found.database.run(keys) == ["d"]


@pytest.mark.blocking
async def test_closing_cancels_what_waits(tmp_path: Path) -> None:
    """What runs when the database is closed ends; what still waits is cancelled and not run."""
    path = tmp_path / "hub.db"
    async with held(path) as found:
        task = asyncio.create_task(found.database.run(put, "a"))
        await asyncio.sleep(0.02)
        closing_it = asyncio.create_task(found.database.aclose())
        await asyncio.sleep(0.02)
        found.release()
        await closing_it
        with pytest.raises(asyncio.CancelledError):
            await task
    assert stored(path) == []


def test_a_database_serves_one_loop_after_another(tmp_path: Path) -> None:
    """Callers without a loop of their own start one each time."""
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    database.migrate_now()
    for key in "ab":
        asyncio.run(database.run(put, key))
    assert asyncio.run(database.run(keys)) == ["a", "b"]
    with database.transaction() as connection:
        assert connection.execute(sa.text("select count(*) from settings")).scalar_one() == 2
    database.close()
