"""The catalogue's SQLite file: one connection, used by one thread at a time.

Another process (the daemon, a command) may use the same file at any time, so every transaction is short, every
write begins IMMEDIATE and waits at most the busy time-out. Nothing relies on locks beyond SQLite's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, Final, Literal

from entrepot.adapters.files import disk_full, free_space, make_folder
from entrepot.core.errors import Corrupt, Denied, EntrepotError, Internal, InvalidInput, RetryLater

type Migration = Callable[[sqlite3.Connection], None]
type Journal = Literal["wal", "delete"]

_CACHE: Final = -16_384  # KiB of page cache
_SCANT: Final = 64 << 10  # bytes free on the disk below which what SQLite could not write had no room


class Database:
    """Opens, migrates and closes the file; runs one unit of work after another. Work of coroutines has a thread of its
    own; a worker thread does its own, which costs no hand-over to another thread."""

    def __init__(
        self,
        path: Path,
        migrations: Sequence[Migration],
        *,
        journal: Journal,
        busy_timeout: float,
        synced: bool,
    ) -> None:
        """``journal`` "delete" (a rollback journal) is for shared file systems, where WAL's shared memory
        does not work. ``busy_timeout`` in seconds. Without ``synced`` a power cut may cost the catalogue."""
        self.path = path
        self._migrations = migrations
        self._journal = journal
        self._busy_timeout = busy_timeout
        self._synced = synced
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._guard = threading.Lock()

    async def open(self) -> None:
        """Opens or creates the file and brings its schema up to date.

        Raises ``corrupt-store``, ``unsupported`` (written by a newer version), ``unreadable``, ``busy``.
        """
        self._thread = ThreadPoolExecutor(1, "store-database")
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Finishes the work under way and closes the file. May be called again."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(thread, self._close)
        finally:
            thread.shutdown(wait=False)

    async def run[**P, R](
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """``work(connection, …)`` as one transaction in the database's own thread."""
        thread = self._live()
        return await asyncio.get_running_loop().run_in_executor(
            thread, lambda: self._transaction(work, *args, **kwargs)
        )

    def run_from_thread[**P, R](
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As :meth:`run`, for worker threads and in them: blocks until done."""
        self._live()
        return self._transaction(work, *args, **kwargs)

    def _live(self) -> ThreadPoolExecutor:
        if self._thread is None:
            raise Internal("the store is not open")
        return self._thread

    def _transaction[**P, R](
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        with self._guard, database_errors(self.path):
            connection = self._connection
            if connection is None:
                raise Internal("the store is not open")
            connection.execute("BEGIN IMMEDIATE" if getattr(work, "writes", True) else "BEGIN")
            try:
                result = work(connection, *args, **kwargs)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise
            return result

    def _open(self) -> None:
        make_folder(self.path.parent)
        with database_errors(self.path):
            connection = sqlite3.connect(
                self.path,
                timeout=self._busy_timeout,
                isolation_level=None,
                cached_statements=256,
                check_same_thread=False,
            )
            self._connection = connection
            # Ask first: two processes that set the mode at once would wait for each other.
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != self._journal:
                connection.execute(f"PRAGMA journal_mode = {self._journal}")
            # NORMAL loses, at a power cut, the last transactions but never the order: a bit is recorded after
            # its bytes were synced, so what is left is true.
            level = "OFF" if not self._synced else "NORMAL" if self._journal == "wal" else "FULL"
            connection.execute(f"PRAGMA synchronous = {level}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA cache_size = {_CACHE}")
            self._migrate(connection)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        newest = len(self._migrations)
        if connection.execute("PRAGMA user_version").fetchone()[0] == newest:
            return
        connection.execute("BEGIN IMMEDIATE")  # another process may be migrating: look again inside
        try:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version > newest:
                raise InvalidInput(
                    f"the store {self.path.parent} was written by a newer version of entrepot",
                    kind="unsupported",
                    hint="Upgrade entrepot, or name another store folder.",
                    version=version,
                    known=newest,
                )
            for migration in self._migrations[version:]:
                migration(connection)
            connection.execute(f"PRAGMA user_version = {newest}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _close(self) -> None:
        with self._guard:
            connection, self._connection = self._connection, None
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("PRAGMA optimize")
                connection.close()


def reads[F: Callable[..., object]](work: F) -> F:
    """Marks a unit of work that writes nothing: it needs no write lock."""
    work.writes = False  # type: ignore[attr-defined]
    return work


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turns every ``sqlite3.Error`` of the block into an error of ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


def translate(error: sqlite3.Error, path: Path) -> EntrepotError:
    """The error of ours that says what SQLite's ``error`` means for the caller."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Corrupt(
            f"the store's catalogue {path} is damaged: {error}",
            kind="corrupt-store",
            hint="Move the store folder aside and add your files again; linked files themselves are untouched.",
            path=str(path),
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RetryLater(f"the store {path.parent} is busy with another process", kind="busy", path=str(path))
    if primary == sqlite3.SQLITE_FULL:
        return disk_full(path)
    if primary == sqlite3.SQLITE_IOERR:
        # The files beside the catalogue (-wal, -shm) need room too, and SQLite does not say that it lacked.
        free = free_space(path.parent)
        if free is not None and free < _SCANT:
            return disk_full(path, None, free)
    if primary in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_IOERR,
    ):
        return Denied(
            f"the store's catalogue {path} cannot be used: {error}",
            kind="unreadable",
            hint="Check that the folder is yours and on a working disk; on a shared file system set the "
            "rollback journal.",
            path=str(path),
        )
    return Internal(f"the store's catalogue refused a statement: {error}", path=str(path))
