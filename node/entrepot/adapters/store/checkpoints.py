"""How far the hashing of files is, kept across processes: nodes as they come, and the state of the plain SHA-256.

A checkpoint counts for one path and one state of the file there. A digest over all of it shows whether it is what was
kept: one that is not is dropped, and the file is hashed from its beginning. Functions as in
:mod:`entrepot.adapters.store.catalogue`.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import time
from hashlib import sha256
from pathlib import Path
from typing import Final

from entrepot.adapters.files import FileIdentity, identify_open
from entrepot.adapters.hashing import Checkpoint
from entrepot.adapters.store.catalogue import pack_identity, unpack_identity
from entrepot.adapters.store.database import Database, reads
from entrepot.core.errors import Conflict, RetryLater
from entrepot.core.merkle import LEAF, NODE_LENGTH

#: Milliseconds after which nobody is expected to go on any more, and how many files may wait for it.
ABANDONED_AFTER: Final = 14 * 24 * 3600 * 1000
MOST: Final = 32


class FileKeeper:
    """Keeps how far one pass over the open file ``descriptor`` at ``path`` is, in the state ``identity``.

    A file that is no longer in that state when something is to be kept raises ``changed``: to read the rest of it would
    be in vain.
    """

    def __init__(self, database: Database, descriptor: int, path: Path, identity: FileIdentity) -> None:
        self._database = database
        self._descriptor = descriptor
        self._path = path
        self._identity = identity
        self._id: int | None = None  # None: a row is still to be made; 0: somebody else's row, nothing is kept
        self._done = 0
        self._chain = b""
        self._waiting = b""

    def last(self, level: int) -> Checkpoint | None:
        """See :class:`Keeper`."""
        found = self._database.run_from_thread(furthest, self._path, self._identity, level)
        if found is None:
            return None
        self._id, self._done, self._chain, checkpoint = found
        return checkpoint

    def keep(self, level: int, done: int, nodes: bytes, state: bytes | None) -> None:
        """See :class:`Keeper`. What cannot be kept while another process keeps the catalogue busy is kept next time."""
        if not identify_open(self._descriptor).same(self._identity):
            raise changed(self._path)
        if self._id == 0:
            return
        self._waiting += nodes
        chain = _link(self._chain or _root(self._path, self._identity, level), self._waiting)
        try:
            if self._id is None:
                self._id = self._database.run_from_thread(
                    begin, self._path, self._identity, level, done, chain, self._waiting, state, now_ms()
                )
            else:
                kept = self._database.run_from_thread(
                    advance, self._id, self._done, done, chain, self._waiting, state, now_ms()
                )
                self._id = self._id if kept else 0
        except RetryLater as error:
            if error.kind != "busy":
                raise
            return
        self._done, self._chain, self._waiting = done, chain, b""

    def finish(self) -> None:
        """The file was hashed to its end: there is nothing to go on from."""
        if self._id is not None:
            self._database.run_from_thread(clear, self._path)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def changed(path: Path) -> Conflict:
    """The error for a file that was written to while it was hashed."""
    return Conflict(
        f"{path} changed while it was read",
        kind="changed",
        hint="Add it again when nothing writes to it any more.",
        path=str(path),
    )


@reads
def furthest(
    db: sqlite3.Connection, path: Path, identity: FileIdentity, level: int
) -> tuple[int, int, bytes, Checkpoint] | None:
    """The furthest checkpoint of the file as it is now that is what was kept: its row, bytes, chain and content."""
    rows = db.execute(
        "SELECT id, identity, done, state, digest FROM checkpoint WHERE path = ? AND level = ? ORDER BY done DESC",
        (os.fsencode(path), level),
    ).fetchall()
    for number, raw, done, state, digest in rows:
        if not _same(identity, raw) or not isinstance(done, int) or not isinstance(state, bytes | None):
            continue
        parts = [
            part
            for (part,) in db.execute("SELECT nodes FROM checkpoint_part WHERE checkpoint = ? ORDER BY done", (number,))
        ]
        if not all(isinstance(part, bytes) for part in parts):
            continue
        chain = _root(path, identity, level)
        for part in parts:
            chain = _link(chain, part)
        nodes = b"".join(parts)
        if _seal(chain, done, state) == digest and _fits(done, len(nodes), level, identity.size):
            return number, done, chain, Checkpoint(done, nodes, state)
    return None


def begin(
    db: sqlite3.Connection,
    path: Path,
    identity: FileIdentity,
    level: int,
    done: int,
    chain: bytes,
    nodes: bytes,
    state: bytes | None,
    now: int,
) -> int:
    """The first checkpoint of a pass; returns its row. Those of other states of the file go, and what was abandoned."""
    for number, raw in db.execute(
        "SELECT id, identity FROM checkpoint WHERE path = ?", (os.fsencode(path),)
    ).fetchall():
        if not _same(identity, raw):
            db.execute("DELETE FROM checkpoint WHERE id = ?", (number,))
    db.execute("DELETE FROM checkpoint WHERE at < ?", (now - ABANDONED_AFTER,))
    db.execute(
        "DELETE FROM checkpoint WHERE id IN (SELECT id FROM checkpoint ORDER BY at DESC, id DESC LIMIT -1 OFFSET ?)",
        (MOST - 1,),
    )
    row = db.execute(
        "INSERT INTO checkpoint (path, identity, level, done, state, digest, at) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "RETURNING id",
        (os.fsencode(path), pack_identity(identity), level, done, state, _seal(chain, done, state), now),
    ).fetchone()
    db.execute("INSERT INTO checkpoint_part VALUES (?, ?, ?)", (row[0], done, nodes))
    return int(row[0])


def advance(
    db: sqlite3.Connection,
    number: int,
    before: int,
    done: int,
    chain: bytes,
    nodes: bytes,
    state: bytes | None,
    now: int,
) -> bool:
    """A pass that had ``before`` bytes has ``done``. False if its row is gone, or another process went on from it."""
    found = db.execute(
        "UPDATE checkpoint SET done = ?, state = ?, digest = ?, at = ? WHERE id = ? AND done = ?",
        (done, state, _seal(chain, done, state), now, number, before),
    )
    if not found.rowcount:
        return False
    db.execute("INSERT INTO checkpoint_part VALUES (?, ?, ?)", (number, done, nodes))
    return True


def clear(db: sqlite3.Connection, path: Path) -> None:
    """The file at ``path`` was hashed to its end."""
    db.execute("DELETE FROM checkpoint WHERE path = ?", (os.fsencode(path),))


def _same(identity: FileIdentity, raw: object) -> bool:
    """Whether what a row says is this identity. Of a damaged one it is not."""
    try:
        return isinstance(raw, bytes) and identity.same(unpack_identity(raw))
    except struct.error:
        return False  # of another length


def _fits(done: int, length: int, level: int, size: int) -> bool:
    span = LEAF << level
    return 0 < done <= size and done % span == 0 and length == done // span * NODE_LENGTH


def _root(path: Path, identity: FileIdentity, level: int) -> bytes:
    """Where a chain begins. The device is no part of it, as it is none of what tells states of a file apart."""
    what = f"{identity.size} {identity.mtime_ns} {identity.ctime_ns} {identity.inode} {level} ".encode()
    return sha256(what + os.fsencode(path)).digest()


def _link(chain: bytes, nodes: bytes) -> bytes:
    return sha256(chain + nodes).digest()


def _seal(chain: bytes, done: int, state: bytes | None) -> bytes:
    return sha256(b"%s%d %s" % (chain, done, b"-" if state is None else state)).digest()
