"""The catalogue's tables, as the steps that made them. A step is never edited once released; add another."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from entrepot.adapters.store.database import Migration

_FIRST: Final = (
    # A stream we know: its opening, and what people call it. Times in milliseconds since 1970.
    """CREATE TABLE stream (
        id INTEGER PRIMARY KEY,
        stream BLOB NOT NULL UNIQUE,
        length INTEGER NOT NULL,
        root BLOB NOT NULL,
        sha256 BLOB,
        name TEXT NOT NULL DEFAULT '',
        added INTEGER NOT NULL,
        used INTEGER NOT NULL,
        pinned INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX stream_by_sha256 ON stream (sha256) WHERE sha256 IS NOT NULL",
    "CREATE INDEX stream_by_use ON stream (used)",
    # The channels it was added to or fetched from.
    """CREATE TABLE scope (
        scope TEXT NOT NULL,
        stream INTEGER NOT NULL REFERENCES stream (id) ON DELETE CASCADE,
        PRIMARY KEY (stream, scope)) WITHOUT ROWID""",
    "CREATE INDEX scope_by_name ON scope (scope, stream)",
    # A file that holds it: stored (ours, path is a name in the content folder) or linked (path is absolute).
    # A linked file counts only while it still has this identity and is not stale.
    """CREATE TABLE content (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        stream INTEGER NOT NULL REFERENCES stream (id) ON DELETE CASCADE,
        stored INTEGER NOT NULL,
        path BLOB NOT NULL UNIQUE,
        complete INTEGER NOT NULL,
        stale INTEGER NOT NULL DEFAULT 0,
        identity BLOB)""",
    "CREATE INDEX content_by_stream ON content (stream)",
    "CREATE UNIQUE INDEX content_stored_once ON content (stream) WHERE stored",
    # Facts about the stream, wherever its bytes lie: proved Merkle nodes, 1,024 of 32 bytes in a row, zeros where
    # one is not known. level is log2(miniblock / 16 KiB).
    """CREATE TABLE node (
        stream INTEGER NOT NULL REFERENCES stream (id) ON DELETE CASCADE,
        level INTEGER NOT NULL,
        chunk INTEGER NOT NULL,
        nodes BLOB NOT NULL,
        PRIMARY KEY (stream, level, chunk))""",
    # Headers of objects of a stream that is not complete yet: they resume a download and serve what is here.
    """CREATE TABLE header (
        stream INTEGER NOT NULL REFERENCES stream (id) ON DELETE CASCADE,
        lock BLOB NOT NULL,
        number INTEGER NOT NULL,
        header BLOB NOT NULL,
        PRIMARY KEY (stream, lock, number))""",
    # The SHA-256 of whole objects.
    """CREATE TABLE digest (
        stream INTEGER NOT NULL REFERENCES stream (id) ON DELETE CASCADE,
        lock BLOB NOT NULL,
        number INTEGER NOT NULL,
        digest BLOB NOT NULL,
        PRIMARY KEY (stream, lock, number)) WITHOUT ROWID""",
    # Facts about one stored file: which miniblocks are on the disk, 1,024 bits in a row.
    """CREATE TABLE verified (
        content INTEGER NOT NULL REFERENCES content (id) ON DELETE CASCADE,
        level INTEGER NOT NULL,
        chunk INTEGER NOT NULL,
        bits BLOB NOT NULL,
        PRIMARY KEY (content, level, chunk)) WITHOUT ROWID""",
)


def _first(connection: sqlite3.Connection) -> None:
    for statement in _FIRST:
        connection.execute(statement)


def _digests_by_kind(connection: sqlite3.Connection) -> None:
    """A bucket's provider may check MD5 instead of SHA-256: digests of whole objects are kept by kind."""
    connection.execute("ALTER TABLE digest RENAME TO digest_before")
    connection.execute(
        """CREATE TABLE digest (
            stream INTEGER NOT NULL REFERENCES stream (id) ON DELETE CASCADE,
            lock BLOB NOT NULL,
            number INTEGER NOT NULL,
            kind TEXT NOT NULL,
            digest BLOB NOT NULL,
            PRIMARY KEY (stream, lock, number, kind)) WITHOUT ROWID"""
    )
    connection.execute("INSERT INTO digest SELECT stream, lock, number, 'sha256', digest FROM digest_before")
    connection.execute("DROP TABLE digest_before")


def _checkpoints(connection: sqlite3.Connection) -> None:
    """How far the hashing of large files is: a row for each pass, and its Merkle nodes in parts as they came."""
    connection.execute(
        """CREATE TABLE checkpoint (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            path BLOB NOT NULL,
            identity BLOB NOT NULL,
            level INTEGER NOT NULL,
            done INTEGER NOT NULL,
            state BLOB,
            digest BLOB NOT NULL,
            at INTEGER NOT NULL)"""
    )
    connection.execute("CREATE INDEX checkpoint_by_path ON checkpoint (path)")
    connection.execute(
        """CREATE TABLE checkpoint_part (
            checkpoint INTEGER NOT NULL REFERENCES checkpoint (id) ON DELETE CASCADE,
            done INTEGER NOT NULL,
            nodes BLOB NOT NULL,
            PRIMARY KEY (checkpoint, done))"""
    )


MIGRATIONS: Final[Sequence[Migration]] = (_first, _digests_by_kind, _checkpoints)
