"""The hub's database: one engine, transactions in worker threads, errors translated in one place.

SQLite has one worker, so its single writer never waits for itself; PostgreSQL has a small pool. A transaction is
begun IMMEDIATE on SQLite with ``synchronous=FULL``: what was answered survives a power cut. What comes while the worker
is busy is committed together (:mod:`.group_commit`).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, Self

import psycopg
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import QueuePool

from entrepot.core.errors import Corrupt, Denied, EntrepotError, Internal, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.group_commit import GroupCommit
from entrepot_hub.adapters.metrics import Metrics, Stopwatch
from entrepot_hub.adapters.sql_link import KeptLink, Link, PooledLink

MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"

_DRIVERS: Final = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
#: Where the migrations note which of them were done: it comes with the first of them.
_VERSIONS: Final = "alembic_version"
#: Key of the advisory lock under which one hub at a time migrates: "entrepot" as a number.
_MIGRATION_LOCK: Final = int.from_bytes(b"entrepot")
#: PostgreSQL: serialization failure, deadlock. The whole transaction may be run again.
_AGAIN: Final = frozenset({"40001", "40P01"})
#: Seconds before a deadlocked transaction is run again; doubled each time.
_PAUSE: Final = 0.005
_DISK_FULL: Final = frozenset({"53100"})
#: What the libraries raise.
_FOREIGN: Final = (exc.SQLAlchemyError, sqlite3.Error, psycopg.Error)


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """How hard the database may be worked.

    ``workers``: threads and connections on PostgreSQL (SQLite always has one). ``queue``: calls that may wait or
    run at once; one more is refused with RetryLater (busy). ``deadline``: seconds until a caller stops waiting.
    ``busy``: seconds to wait for another process that has the SQLite file locked, or for a connection of the pool.
    ``attempts``: how often a transaction is run when PostgreSQL asks to run it again.
    """

    workers: int = 4
    queue: int = 4096
    deadline: float = 30.0
    busy: float = 5.0
    attempts: int = 4


class Database:
    """An asynchronous face over synchronous SQLAlchemy Core.

    ``url`` is ``sqlite:///relative``, ``sqlite:////absolute`` or ``postgresql://user:password@host/name``; anything
    else raises InvalidInput (invalid-setting). Nothing is opened before the first transaction. ``metrics`` is told of
    every call.
    """

    def __init__(self, url: str, settings: DatabaseSettings | None = None, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._settings = settings or DatabaseSettings()
        self._url = _parse(url)
        self._sqlite = self._url.get_backend_name() == "sqlite"
        self._workers = 1 if self._sqlite else max(self._settings.workers, 1)
        self._engine: Engine | None = None
        self._kept: KeptLink | None = None
        self._opening = threading.Lock()
        self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="database")
        self._writer = GroupCommit(self.lane, self._attempt) if self._sqlite else None
        self._local = threading.local()
        self._waiting = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)!r})"

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite (else PostgreSQL)."""
        return self._sqlite

    @property
    def file(self) -> Path | None:
        """SQLite's file; None for PostgreSQL, and for a database in memory."""
        name = self._url.database if self._sqlite else None
        return None if name in {None, "", ":memory:"} else Path(str(name))

    @property
    def waiting(self) -> int:
        """Calls that wait or run now."""
        return self._waiting

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for running transactions, then close all connections. May be called again."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """What :meth:`aclose` does, for callers without an event loop."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        with self._opening:
            if self._kept is not None:
                self._kept.close()
            if self._engine is not None:
                self._engine.dispose()

    async def run[**P, T](self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``work(connection, …)`` in one transaction in a worker thread; committed when it returns.

        ``work`` may be run again after a deadlock, or where it was to be committed with others and that failed, so it
        changes nothing outside the database. Raises what ``work`` raises; RetryLater (busy, deadline, disk-full) when
        the database cannot now; Internal for what should not be.
        """

        def transact() -> T:
            with self.transaction() as connection:
                return work(connection, *args, **kwargs)

        return await self._submit(transact)

    async def call[**P, T](self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A synchronous method that uses :meth:`transaction` itself (a ledger's), in a worker thread."""
        return await self._submit(lambda: method(*args, **kwargs))

    async def together[T](self, work: Callable[[], T]) -> T:
        """``work()`` in a worker thread and one transaction, which all methods that it calls join."""

        def transact() -> T:
            with self.lane():
                return work()

        return await self._submit(transact)

    def transaction(self) -> AbstractContextManager[Connection]:
        """A transaction on this thread: begun here, or the one that is already open on it, which is joined."""
        return _Joined(self, direct=False)

    def lane(self) -> AbstractContextManager[Connection]:
        """The same, with the short way for statements that are :func:`~.steady.steady`."""
        return _Joined(self, direct=True)

    async def migrate(self) -> None:
        """Bring the tables up to this version of the hub; one hub at a time. A database that a newer version made
        is refused with InvalidInput (unsupported)."""
        await self.call(self.migrate_now)

    def has_tables(self) -> bool:
        """Whether a hub's tables were ever made here. Blocking. The file of an SQLite database that is not there is not
        made by asking."""
        if self.file is not None and not self.file.exists():
            return False
        with self.transaction() as connection:
            return sa.inspect(connection).has_table(_VERSIONS)

    def migrate_now(self, revision: str = "head") -> None:
        """What :meth:`migrate` does, for callers without an event loop; ``base`` takes everything down."""
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self.transaction() as connection:
            if not self._sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            try:
                if revision == "base":
                    command.downgrade(config, "base")
                else:
                    command.upgrade(config, revision)
            except CommandError as error:
                raise InvalidInput(
                    f"the database cannot be migrated: {error}",
                    kind="unsupported",
                    hint="Was it used by a newer entrepot-hub?",
                ) from error

    def _opened(self) -> Engine:
        with self._opening:
            if self._engine is None:
                self._engine = _engine(self._url, self._settings, self._workers)
                if self._sqlite:
                    self._kept = KeptLink(self._engine, self._settings.busy)
            return self._engine

    def _begin(self) -> Link:
        engine = self._opened()
        if not self._sqlite:
            return PooledLink(engine)
        assert self._kept is not None
        return self._kept.begin()

    async def _submit[T](self, work: Callable[[], T]) -> T:
        if self._closed:
            raise RetryLater("the database is closed", kind="cancelled")
        if self._waiting >= self._settings.queue:
            raise RetryLater("the database has too much to do", kind="busy", waiting=self._waiting)
        self._waiting += 1
        watch, outcome = Stopwatch(), "ok"
        try:
            async with asyncio.timeout(self._settings.deadline):
                if self._writer is not None:
                    found: T = await self._writer.put(work)
                    return found
                return await asyncio.wrap_future(self._executor.submit(self._attempt, work))
        except EntrepotError as error:
            outcome = error.kind
            raise
        except TimeoutError:
            outcome = "deadline"
            raise RetryLater(f"the database did not answer in {self._settings.deadline:g} s", kind="deadline") from None
        finally:
            self._waiting -= 1
            self._metrics.database(outcome, watch.seconds)

    def _attempt[T](self, work: Callable[[], T]) -> T:
        for attempt in range(self._settings.attempts - 1):
            try:
                return work()
            except _RunAgain:
                # Whoever won the deadlock must have its locks before we ask for them again.
                time.sleep(_PAUSE * 2**attempt)
        return work()


class _RunAgain(RetryLater):
    """A deadlock or a serialization failure: the transaction was rolled back and may be run again at once."""

    default_kind = "busy"


class _Joined:
    """A transaction on this thread: begun here, or the one that is already open on it. Errors of SQLAlchemy and the
    drivers leave it as entrepot's own; everything else passes."""

    __slots__ = ("_begun", "_database", "_direct")

    def __init__(self, database: Database, *, direct: bool) -> None:
        self._database = database
        self._direct = direct
        self._begun: Link | None = None

    def __enter__(self) -> Connection:
        local = self._database._local
        link: Link | None = getattr(local, "link", None)
        try:
            if link is None:
                link = self._begun = local.link = self._database._begin()
            return link.lane if self._direct else link.connection
        except BaseException as error:
            self._end(error)
            if isinstance(error, _FOREIGN):
                raise _translate(error) from error
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._begun is not None:
                self._end(error)
        except _FOREIGN as trouble:
            raise _translate(trouble) from trouble
        if isinstance(error, _FOREIGN):
            raise _translate(error) from error

    def _end(self, error: BaseException | None) -> None:
        link, self._begun = self._begun, None
        if link is None:
            return
        self._database._local.link = None
        if error is None:
            link.commit()
        else:
            link.rollback()


def _translate(error: exc.SQLAlchemyError | sqlite3.Error | psycopg.Error) -> EntrepotError:
    if isinstance(error, exc.TimeoutError):
        return RetryLater("all connections to the database are in use", kind="busy")
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _translate_sqlite(cause)
    if isinstance(cause, psycopg.Error):
        return _translate_postgresql(cause)
    return Internal(f"the database refused a statement: {type(error).__name__}")


def _translate_sqlite(error: sqlite3.Error) -> EntrepotError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return RetryLater("another process has the database locked", kind="busy")
        case sqlite3.SQLITE_FULL:
            return RetryLater("the disk of the database is full", kind="disk-full", hint="Make room")
        case sqlite3.SQLITE_IOERR:
            return RetryLater("the disk of the database does not work", hint="Look at the system's log")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Corrupt("the database file is damaged or no database", kind="corrupt-store", hint="Restore a backup")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH | sqlite3.SQLITE_READONLY:
            return Denied(
                "the database file cannot be opened or written", kind="unreadable", hint="Look at its permissions"
            )
        case _:
            return Internal(f"the database refused a statement: {error}")


def _translate_postgresql(error: psycopg.Error) -> EntrepotError:
    state = error.sqlstate or ""
    if state in _AGAIN:
        return _RunAgain("the database was busy with the same rows")
    if state in _DISK_FULL:
        return RetryLater("the disk of the database is full", kind="disk-full", hint="Make room")
    if state[:2] == "28":
        return Denied("the database refuses the hub's user", hint="Look at the user and password in its URL")
    if state == "3D000":
        return NotFound("there is no such database", kind="not-running", hint="Create it, then start the hub")
    if state[:2] in {"08", "53", "55", "57", "58"} or (not state and isinstance(error, psycopg.OperationalError)):
        return RetryLater("the database is out of reach", hint="Is the database server running?")
    return Internal(f"the database refused a statement: {type(error).__name__} {state}".strip())


def _parse(text: str) -> URL:
    try:
        text.encode()  # half a character would come out of the library only where the URL is used
        url = sa.make_url(text)
    except (exc.ArgumentError, ValueError):
        url = None
    driver = None if url is None else _DRIVERS.get(url.drivername)
    if url is None or driver is None:
        raise InvalidInput(
            "the database's URL is not understood",
            kind="invalid-setting",
            hint="Write sqlite:////path/to/hub.db or postgresql://user@host/name",
        )
    return url.set(drivername=driver)


def _engine(url: URL, settings: DatabaseSettings, workers: int) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    connect: dict[str, Any] = (
        {"isolation_level": None, "check_same_thread": False, "timeout": settings.busy, "cached_statements": 512}
        if sqlite
        else {"connect_timeout": max(int(settings.busy), 2), "application_name": "entrepot-hub"}
    )
    engine = sa.create_engine(
        url,
        connect_args=connect,
        poolclass=QueuePool,
        pool_size=workers,
        max_overflow=0,
        pool_timeout=settings.busy,
        pool_pre_ping=not sqlite,
        skip_autocommit_rollback=False,
    )
    if sqlite:
        event.listen(engine, "do_connect", _create_private)
        event.listen(engine, "connect", _tune)
    return engine


def _create_private(_dialect: Any, _record: Any, arguments: list[Any], _options: dict[str, Any]) -> None:
    """A new database file is readable by its owner only; its journals inherit that."""
    path = arguments[0] if arguments else ""
    if path and path != ":memory:" and not path.startswith("file:"):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise Denied(
                f"the database file cannot be opened: {error.strerror}", kind="unreadable", path=str(path)
            ) from error


def _tune(connection: sqlite3.Connection, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA journal_size_limit=67108864")
    cursor.close()
