"""What the catalogue is asked and told: each function is one short transaction of :class:`Database`.

A function takes the connection and plain values, and returns plain values; none waits for anything but SQLite.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from entrepot.adapters.files import FileIdentity
from entrepot.adapters.store.database import reads
from entrepot.adapters.store.proofs import put_nodes
from entrepot.adapters.store.records import Entry
from entrepot.core.errors import Conflict
from entrepot.core.identifiers import Opening, StreamId

_IDENTITY: Final = struct.Struct(">QqqQQ")
_MASK: Final = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, slots=True)
class Content:
    """One row of ``content``: a file that holds a stream."""

    id: int
    stored: bool
    path: Path
    complete: bool
    stale: bool
    identity: FileIdentity | None


@dataclass(frozen=True, slots=True)
class Known:
    """One row of ``stream`` and the files that hold it, the best to read first."""

    id: int
    stream: StreamId
    opening: Opening
    sha256: bytes | None
    name: str
    pinned: bool
    contents: tuple[Content, ...]


def pack_identity(identity: FileIdentity | None) -> bytes | None:
    """The identity as the catalogue keeps it."""
    if identity is None:
        return None
    return _IDENTITY.pack(
        identity.size,
        identity.mtime_ns,
        identity.ctime_ns,
        identity.inode & _MASK,
        identity.device & _MASK,
    )


def unpack_identity(raw: bytes | None) -> FileIdentity | None:
    """The identity that the catalogue kept."""
    return None if raw is None else FileIdentity(*_IDENTITY.unpack(raw))


def _content(row: Sequence[object]) -> Content:
    number, stored, path, complete, stale, identity = row
    return Content(
        int(number),  # type: ignore[call-overload]
        bool(stored),
        Path(os.fsdecode(path)),  # type: ignore[arg-type]
        bool(complete),
        bool(stale),
        unpack_identity(identity),  # type: ignore[arg-type]
    )


# ---- streams


@reads
def known(db: sqlite3.Connection, stream: StreamId) -> Known | None:
    """The stream and its files, None if nothing is known of it."""
    return _known(db, stream)


@reads
def known_in(db: sqlite3.Connection, streams: Sequence[StreamId], scope: str) -> list[Known]:
    """Those of the streams that are in the scope, and their files."""
    found = []
    for stream in streams:
        one = _known(db, stream)
        if one is not None:
            row = db.execute("SELECT 1 FROM scope WHERE stream = ? AND scope = ?", (one.id, scope)).fetchone()
            if row is not None:
                found.append(one)
    return found


def _known(db: sqlite3.Connection, stream: StreamId) -> Known | None:
    row = db.execute(
        "SELECT id, length, root, sha256, name, pinned FROM stream WHERE stream = ?", (stream.raw,)
    ).fetchone()
    if row is None:
        return None
    contents = db.execute(
        "SELECT id, stored, path, complete, stale, identity FROM content WHERE stream = ? "
        "ORDER BY stale, complete DESC, stored DESC, id",
        (row[0],),
    ).fetchall()
    return Known(row[0], stream, Opening(row[1], row[2]), row[3], row[4], bool(row[5]), tuple(map(_content, contents)))


def remember(
    db: sqlite3.Connection, stream: StreamId, opening: Opening, scope: str, name: str, sha256: bytes | None, now: int
) -> int:
    """Records that the stream is known, in this scope and under this name; returns its row."""
    row = db.execute(
        "INSERT INTO stream (stream, length, root, sha256, name, added, used) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (stream) DO UPDATE SET used = excluded.used, sha256 = coalesce(sha256, excluded.sha256), "
        "name = CASE excluded.name WHEN '' THEN name ELSE excluded.name END RETURNING id",
        (stream.raw, opening.length, opening.root, sha256, name, now, now),
    ).fetchone()
    db.execute("INSERT OR IGNORE INTO scope (scope, stream) VALUES (?, ?)", (scope, row[0]))
    return int(row[0])


@reads
def scopes(db: sqlite3.Connection, stream: StreamId) -> frozenset[str]:
    """The scopes the stream is in."""
    rows = db.execute(
        "SELECT scope FROM scope JOIN stream ON scope.stream = stream.id WHERE stream.stream = ?", (stream.raw,)
    )
    return frozenset(row[0] for row in rows)


def join_scope(db: sqlite3.Connection, stream: StreamId, scope: str) -> None:
    """Puts the stream into a scope; nothing happens if it is not known."""
    db.execute(
        "INSERT OR IGNORE INTO scope (scope, stream) SELECT ?, id FROM stream WHERE stream = ?", (scope, stream.raw)
    )


def leave_scope(db: sqlite3.Connection, stream: StreamId, scope: str) -> int:
    """Takes the stream out of a scope; returns how many scopes it is still in."""
    db.execute(
        "DELETE FROM scope WHERE scope = ? AND stream = (SELECT id FROM stream WHERE stream = ?)",
        (scope, stream.raw),
    )
    row = db.execute(
        "SELECT count(*) FROM scope JOIN stream ON scope.stream = stream.id WHERE stream.stream = ?", (stream.raw,)
    ).fetchone()
    return int(row[0])


@reads
def those_known(db: sqlite3.Connection, streams: Sequence[StreamId]) -> set[StreamId]:
    """Those of the streams that are in some scope."""
    query = "SELECT 1 FROM scope JOIN stream ON scope.stream = stream.id WHERE stream.stream = ? LIMIT 1"
    return {stream for stream in streams if db.execute(query, (stream.raw,)).fetchone() is not None}


@reads
def by_alias(db: sqlite3.Connection, sha256: bytes) -> StreamId | None:
    """The stream with this SHA-256 of all its bytes."""
    row = db.execute("SELECT stream FROM stream WHERE sha256 = ? ORDER BY id LIMIT 1", (sha256,)).fetchone()
    return None if row is None else StreamId(row[0])


def set_alias(db: sqlite3.Connection, stream: StreamId, sha256: bytes) -> None:
    """Keeps the SHA-256 of all bytes of the stream."""
    db.execute("UPDATE stream SET sha256 = ? WHERE stream = ?", (sha256, stream.raw))


def set_pinned(db: sqlite3.Connection, stream: StreamId, pinned: bool) -> bool:
    """Pins or unpins; False if the stream is not known."""
    return db.execute("UPDATE stream SET pinned = ? WHERE stream = ?", (pinned, stream.raw)).rowcount > 0


def touch(db: sqlite3.Connection, stream: StreamId, now: int) -> None:
    """The stream was used at ``now``, in milliseconds."""
    db.execute("UPDATE stream SET used = max(used, ?) WHERE stream = ?", (now, stream.raw))


def _entry(db: sqlite3.Connection, row: tuple[int, bytes, int, bytes, str, bytes | None, int, int, int]) -> Entry:
    contents = [
        _content(found)
        for found in db.execute(
            "SELECT id, stored, path, complete, stale, identity FROM content WHERE stream = ? ORDER BY id", (row[0],)
        )
    ]
    named = db.execute("SELECT scope FROM scope WHERE stream = ?", (row[0],))
    return Entry(
        stream=StreamId(row[1]),
        opening=Opening(row[2], row[3]),
        name=row[4],
        sha256=row[5],
        complete=any(content.complete and not content.stale for content in contents),
        stored=any(content.stored for content in contents),
        links=tuple(content.path for content in contents if not content.stored),
        stale=any(content.stale for content in contents),
        scopes=frozenset(scope for (scope,) in named),
        pinned=bool(row[6]),
        added=row[7] / 1000,
        used=row[8] / 1000,
    )


@reads
def entry(db: sqlite3.Connection, stream: StreamId) -> Entry | None:
    """One entry, None if the stream is not known."""
    row = db.execute(
        "SELECT id, stream, length, root, name, sha256, pinned, added, used FROM stream WHERE stream = ?", (stream.raw,)
    ).fetchone()
    return None if row is None else _entry(db, row)


@reads
def entries(db: sqlite3.Connection, scope: str | None, after: bytes, limit: int) -> list[Entry]:
    """A page in the order of ids, those past ``after``."""
    if scope is None:
        rows = db.execute(
            "SELECT id, stream, length, root, name, sha256, pinned, added, used FROM stream WHERE stream > ? "
            "ORDER BY stream LIMIT ?",
            (after, limit),
        )
    else:
        rows = db.execute(
            "SELECT id, stream, length, root, name, sha256, pinned, added, used FROM stream WHERE stream > ? "
            "AND EXISTS "
            "(SELECT 1 FROM scope WHERE scope.scope = ? AND scope.stream = stream.id) ORDER BY stream LIMIT ?",
            (after, scope, limit),
        )
    return [_entry(db, row) for row in rows.fetchall()]


@reads
def least_used(db: sqlite3.Connection, limit: int) -> list[tuple[StreamId, Path, bool]]:
    """Stored, unpinned streams, longest unused first: id, name of the stored file, whether it is complete."""
    rows = db.execute(
        "SELECT stream.stream, content.path, content.complete FROM content JOIN stream "
        "ON content.stream = stream.id WHERE content.stored AND NOT stream.pinned ORDER BY stream.used, stream.id "
        "LIMIT ?",
        (limit,),
    )
    return [(StreamId(raw), Path(os.fsdecode(path)), bool(complete)) for raw, path, complete in rows]


@reads
def stored_paths(db: sqlite3.Connection) -> list[Path]:
    """The names of all stored files."""
    return [Path(os.fsdecode(path)) for (path,) in db.execute("SELECT path FROM content WHERE stored")]


@reads
def totals(db: sqlite3.Connection) -> tuple[int, int]:
    """How many streams there are, and the bytes of those held by a link."""
    linked = db.execute(
        "SELECT coalesce(sum(length), 0) FROM stream WHERE id IN (SELECT stream FROM content WHERE NOT stored)"
    ).fetchone()[0]
    return int(db.execute("SELECT count(*) FROM stream").fetchone()[0]), int(linked)


# ---- files that hold streams


@reads
def files(db: sqlite3.Connection, after: int, limit: int) -> list[tuple[str, int, Content]]:
    """A page of the files past the row ``after``, in the order of rows: each with its stream's name (or id) and
    length."""
    rows = db.execute(
        "SELECT stream.name, stream.stream, stream.length, content.id, stored, path, complete, stale, identity "
        "FROM content JOIN stream ON content.stream = stream.id WHERE content.id > ? ORDER BY content.id LIMIT ?",
        (after, limit),
    ).fetchall()
    return [(row[0] or str(StreamId(row[1])), row[2], _content(row[3:])) for row in rows]


@reads
def link_at(db: sqlite3.Connection, path: Path) -> tuple[Known, Content] | None:
    """The stream that the linked file at ``path`` holds."""
    row = db.execute(
        "SELECT stream.stream FROM content JOIN stream ON content.stream = stream.id "
        "WHERE content.path = ? AND NOT content.stored",
        (os.fsencode(path),),
    ).fetchone()
    found = None if row is None else _known(db, StreamId(row[0]))
    if found is None:
        return None
    return next(((found, content) for content in found.contents if content.path == path), None)


@dataclass(frozen=True, slots=True)
class Linked:
    """A linked file that is not stale, and the stream that it holds."""

    identity: FileIdentity
    stream: StreamId
    opening: Opening
    sha256: bytes | None
    name: str


@reads
def links_at(db: sqlite3.Connection, paths: Sequence[Path]) -> dict[bytes, Linked]:
    """What the linked files at ``paths`` hold, by path; those that are not known or stale are left out."""
    found = {}
    for path in map(os.fsencode, paths):
        row = db.execute(
            "SELECT identity, stream.stream, length, root, sha256, name FROM content JOIN stream "
            "ON content.stream = stream.id WHERE path = ? AND NOT stored AND NOT stale AND identity IS NOT NULL",
            (path,),
        ).fetchone()
        if row is not None:
            identity = FileIdentity(*_IDENTITY.unpack(row[0]))
            found[path] = Linked(identity, StreamId(row[1]), Opening(row[2], row[3]), row[4], row[5])
    return found


def add_content(
    db: sqlite3.Connection,
    stream: StreamId,
    opening: Opening,
    scope: str,
    name: str,
    sha256: bytes | None,
    now: int,
    *,
    path: Path,
    stored: bool,
    complete: bool,
    identity: FileIdentity | None,
) -> Content:
    """Records a file that holds the stream. What another stream had at this path is forgotten.

    A stream has one stored file: where there is one already, that one is returned instead.
    """
    number = remember(db, stream, opening, scope, name, sha256, now)
    if stored:
        row = db.execute(
            "SELECT id, stored, path, complete, stale, identity FROM content WHERE stream = ? AND stored", (number,)
        ).fetchone()
        if row is not None:
            return _content(row)
    raw = os.fsencode(path)
    db.execute("DELETE FROM content WHERE path = ? AND stream <> ?", (raw, number))
    row = db.execute(
        "INSERT INTO content (stream, stored, path, complete, identity) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (path) DO UPDATE SET complete = excluded.complete, identity = excluded.identity, stale = 0 "
        "RETURNING id, stored, path, complete, stale, identity",
        (number, stored, raw, complete, pack_identity(identity)),
    ).fetchone()
    return _content(row)


def add_hashed(
    db: sqlite3.Connection,
    stream: StreamId,
    opening: Opening,
    scope: str,
    name: str,
    sha256: bytes | None,
    now: int,
    *,
    path: Path,
    stored: bool,
    identity: FileIdentity | None,
    level: int,
    nodes: bytes,
) -> Content:
    """As :func:`add_content` for a complete file, with its nodes."""
    content = add_content(
        db,
        stream,
        opening,
        scope,
        name,
        sha256,
        now,
        path=path,
        stored=stored,
        complete=True,
        identity=identity,
    )
    if nodes:
        number = db.execute("SELECT stream FROM content WHERE id = ?", (content.id,)).fetchone()[0]
        put_nodes(db, number, level, nodes)
    return content


def mark_stale(db: sqlite3.Connection, content: int) -> None:
    """A linked file is not trusted until it was hashed again."""
    db.execute("UPDATE content SET stale = 1 WHERE id = ? AND NOT stored", (content,))


def set_complete(db: sqlite3.Connection, content: int, identity: FileIdentity | None, level: int, count: int) -> bool:
    """Records that a stored file holds the whole stream, if the catalogue has all ``count`` bits of ``level`` or
    knew it already. False otherwise: the file was removed, or some of it turned out bad meanwhile."""
    row = db.execute("SELECT complete, stream FROM content WHERE id = ?", (content,)).fetchone()
    if row is None or row[0]:
        return row is not None
    bits = db.execute("SELECT bits FROM verified WHERE content = ? AND level = ?", (content, level))
    if sum(int.from_bytes(part, "little").bit_count() for (part,) in bits) != count:
        return False
    db.execute("UPDATE content SET complete = 1, identity = ? WHERE id = ?", (pack_identity(identity), content))
    db.execute("DELETE FROM verified WHERE content = ?", (content,))
    db.execute("DELETE FROM header WHERE stream = ?", (row[1],))
    return True


def drop_content(db: sqlite3.Connection, content: int) -> None:
    """Forgets a file that held a stream."""
    db.execute("DELETE FROM content WHERE id = ?", (content,))


def announce_move(db: sqlite3.Connection, stream: StreamId, path: Path) -> int:
    """A link that does not count yet: if we die in the middle, the file is hashed before it is ever served."""
    raw = os.fsencode(path)
    db.execute("DELETE FROM content WHERE path = ? AND NOT stored", (raw,))
    row = db.execute(
        "INSERT INTO content (stream, stored, path, complete, stale) SELECT id, 0, ?, 1, 1 FROM stream "
        "WHERE stream = ? RETURNING id",
        (raw, stream.raw),
    ).fetchone()
    if row is None:
        raise Conflict("the stream was removed meanwhile", stream=str(stream))
    return int(row[0])


def settle_move(db: sqlite3.Connection, link: int, identity: FileIdentity, dropped: int | None) -> None:
    """The link counts from now on; the stored file ``dropped`` is forgotten."""
    db.execute("UPDATE content SET stale = 0, identity = ? WHERE id = ?", (pack_identity(identity), link))
    if dropped is not None:
        db.execute("DELETE FROM content WHERE id = ? AND stored", (dropped,))


def forget_empty(db: sqlite3.Connection, stream: StreamId) -> None:
    """Forgets a stream that no file holds and nobody pinned."""
    db.execute(
        "DELETE FROM stream WHERE stream = ? AND NOT pinned "
        "AND NOT EXISTS (SELECT 1 FROM content WHERE content.stream = stream.id)",
        (stream.raw,),
    )


def forget(db: sqlite3.Connection, stream: StreamId) -> list[Path]:
    """Removes all that is known of the stream; returns the names of its stored files."""
    paths = db.execute(
        "SELECT path FROM content WHERE stored AND stream = (SELECT id FROM stream WHERE stream = ?)", (stream.raw,)
    ).fetchall()
    db.execute("DELETE FROM stream WHERE stream = ?", (stream.raw,))
    return [Path(os.fsdecode(path)) for (path,) in paths]


def drop_stored(db: sqlite3.Connection, stream: StreamId) -> list[Path]:
    """Forgets the stored file, and the stream with it where no link holds it; returns the file's name."""
    row = db.execute(
        "DELETE FROM content WHERE stored AND stream = (SELECT id FROM stream WHERE stream = ?) RETURNING path, stream",
        (stream.raw,),
    ).fetchone()
    if row is None:
        return []
    db.execute(
        "DELETE FROM stream WHERE id = ? AND NOT EXISTS (SELECT 1 FROM content WHERE content.stream = stream.id)",
        (row[1],),
    )
    return [Path(os.fsdecode(row[0]))]
