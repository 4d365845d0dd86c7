"""Transactions on a connection: SQLite's one, which is kept, and those of PostgreSQL's pool.

Taking a connection from SQLAlchemy's pool, and having SQLAlchemy begin and commit on it, costs several times what
SQLite's own BEGIN and COMMIT do. So SQLite's connection stays out of the pool, and SQLAlchemy hears of a transaction
only where a statement is left to it.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from typing import Protocol, cast

from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from entrepot_hub.adapters.steady import Lane


class Link(Protocol):
    """An open transaction, of one thread."""

    @property
    def connection(self) -> Connection:
        """SQLAlchemy's connection, in the transaction."""

    @property
    def lane(self) -> Connection:
        """The same, with the short way for steady statements where there is one."""

    def commit(self) -> None:
        """End it: its changes are durable."""

    def rollback(self) -> None:
        """End it without changes."""


class KeptLink:
    """SQLite's one connection. Its transactions are begun IMMEDIATE, one after another, by whatever thread."""

    def __init__(self, engine: Engine, patience: float) -> None:
        self._engine = engine
        self._patience = patience
        self._turn = threading.Lock()
        self._connection: Connection | None = None
        self._raw: sqlite3.Connection
        self._lane: Lane

    @property
    def connection(self) -> Connection:
        """See :class:`Link`."""
        assert self._connection is not None
        self._lane.known = None
        if not self._connection.in_transaction():
            self._connection.begin()
        return self._connection

    @property
    def lane(self) -> Connection:
        """See :class:`Link`."""
        return cast(Connection, self._lane)

    def begin(self) -> KeptLink:
        """Begin a transaction, when the one before has ended: SQLAlchemy's TimeoutError after ``patience`` seconds."""
        if not self._turn.acquire(timeout=self._patience):
            raise exc.TimeoutError("another thread has the connection")
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
                self._raw = cast(sqlite3.Connection, self._connection.connection.driver_connection)
                self._lane = Lane(self._connection)
            self._raw.execute("BEGIN IMMEDIATE")
            self._lane.known = {}
        except BaseException:
            self._turn.release()
            raise
        return self

    def commit(self) -> None:
        """See :class:`Link`."""
        assert self._connection is not None
        try:
            if self._connection.in_transaction():
                self._connection.commit()
            else:
                self._raw.execute("COMMIT")
        except BaseException:
            self._undo()
            raise
        finally:
            self._turn.release()

    def rollback(self) -> None:
        """See :class:`Link`."""
        try:
            self._undo()
        finally:
            self._turn.release()

    def close(self) -> None:
        """Give the connection back, when its transaction has ended. The next transaction takes another."""
        if not self._turn.acquire(timeout=self._patience):
            return
        try:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        finally:
            self._turn.release()

    def _undo(self) -> None:
        assert self._connection is not None
        self._connection.rollback()
        if self._raw.in_transaction:
            with suppress(sqlite3.Error):  # after some errors SQLite has rolled back itself
                self._raw.execute("ROLLBACK")


class PooledLink:
    """A transaction on a connection of the pool."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()
        try:
            self._transaction = self._connection.begin()
        except BaseException:
            self._connection.close()
            raise

    @property
    def connection(self) -> Connection:
        """See :class:`Link`."""
        return self._connection

    @property
    def lane(self) -> Connection:
        """See :class:`Link`."""
        return self._connection

    def commit(self) -> None:
        """See :class:`Link`."""
        try:
            self._transaction.commit()
        except BaseException:
            self._transaction.rollback()
            raise
        finally:
            self._connection.close()

    def rollback(self) -> None:
        """See :class:`Link`."""
        try:
            self._transaction.rollback()
        finally:
            self._connection.close()
