"""What the catalogue keeps to prove bytes: Merkle nodes, headers, digests of objects, and bits of verified miniblocks.

Functions as in :mod:`entrepot.adapters.store.catalogue`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from entrepot.adapters.store.bitmap import CHUNK, join_bits, without_bits
from entrepot.adapters.store.database import reads
from entrepot.core.merkle import NODE_LENGTH
from entrepot.core.messages import DigestKind

_NO_NODE: Final = bytes(NODE_LENGTH)


@reads
def nodes(db: sqlite3.Connection, stream: int, level: int) -> bytes:
    """The nodes kept at ``level``, back to back, zeros where one is not known; rows that are missing left out
    at the end only."""
    parts: list[bytes] = []
    for chunk, part in db.execute(
        "SELECT chunk, nodes FROM node WHERE stream = ? AND level = ? ORDER BY chunk", (stream, level)
    ):
        if parts:  # a row holds nodes up to the last one known: fill it up before the next
            parts[-1] = parts[-1].ljust(CHUNK * NODE_LENGTH, b"\0")
        parts.extend([_NO_NODE * CHUNK] * (chunk - len(parts)))
        parts.append(part)
    return b"".join(parts)


@reads
def node_levels(db: sqlite3.Connection, stream: int) -> list[int]:
    """The levels at which nodes of the stream are kept, lowest first."""
    rows = db.execute("SELECT DISTINCT level FROM node WHERE stream = ? ORDER BY level", (stream,))
    return [row[0] for row in rows]


def put_nodes(db: sqlite3.Connection, stream: int, level: int, all_nodes: bytes) -> None:
    """Keeps all nodes of a stream at ``level``."""
    size = CHUNK * NODE_LENGTH
    db.executemany(
        "INSERT OR REPLACE INTO node (stream, level, chunk, nodes) VALUES (?, ?, ?, ?)",
        [(stream, level, at // size, all_nodes[at : at + size]) for at in range(0, len(all_nodes), size)],
    )


def merge_nodes(db: sqlite3.Connection, stream: int, level: int, found: Mapping[int, bytes]) -> None:
    """Adds single nodes to those kept."""
    chunks: dict[int, list[int]] = {}
    for index in found:
        chunks.setdefault(index // CHUNK, []).append(index)
    for chunk, indices in chunks.items():
        row = db.execute(
            "SELECT nodes FROM node WHERE stream = ? AND level = ? AND chunk = ?", (stream, level, chunk)
        ).fetchone()
        part = bytearray(b"" if row is None else row[0])
        for index in indices:
            at = (index % CHUNK) * NODE_LENGTH
            if len(part) < at + NODE_LENGTH:
                part.extend(bytes(at + NODE_LENGTH - len(part)))
            part[at : at + NODE_LENGTH] = found[index]
        db.execute(
            "INSERT OR REPLACE INTO node (stream, level, chunk, nodes) VALUES (?, ?, ?, ?)",
            (stream, level, chunk, bytes(part)),
        )


@reads
def digest(db: sqlite3.Connection, stream: int, lock: bytes, number: int, kind: DigestKind) -> bytes | None:
    """The digest of a whole object, if it was taken before."""
    row = db.execute(
        "SELECT digest FROM digest WHERE stream = ? AND lock = ? AND number = ? AND kind = ?",
        (stream, lock, number, kind),
    ).fetchone()
    return None if row is None else bytes(row[0])


def put_digest(db: sqlite3.Connection, stream: int, lock: bytes, number: int, kind: DigestKind, value: bytes) -> None:
    """Keeps the digest of a whole object."""
    db.execute("INSERT OR REPLACE INTO digest VALUES (?, ?, ?, ?, ?)", (stream, lock, number, kind, value))


@reads
def header(db: sqlite3.Connection, stream: int, lock: bytes, number: int) -> bytes | None:
    """The header of an object that was kept while the stream was fetched."""
    row = db.execute(
        "SELECT header FROM header WHERE stream = ? AND lock = ? AND number = ?", (stream, lock, number)
    ).fetchone()
    return None if row is None else bytes(row[0])


@reads
def header_numbers(db: sqlite3.Connection, stream: int, lock: bytes) -> frozenset[int]:
    """The objects whose headers are kept."""
    rows = db.execute("SELECT number FROM header WHERE stream = ? AND lock = ?", (stream, lock))
    return frozenset(row[0] for row in rows)


@reads
def verified(db: sqlite3.Connection, content: int, level: int) -> list[tuple[int, bytes]]:
    """The rows of bits kept for a stored file."""
    return db.execute("SELECT chunk, bits FROM verified WHERE content = ? AND level = ?", (content, level)).fetchall()


@reads
def verified_levels(db: sqlite3.Connection, content: int) -> list[int]:
    """The levels at which bits of a stored file are kept, lowest first."""
    rows = db.execute("SELECT DISTINCT level FROM verified WHERE content = ? ORDER BY level", (content,))
    return [row[0] for row in rows]


@dataclass(frozen=True, slots=True)
class Verified:
    """Miniblocks of one stored file that are verified and synced: rows of bits, nodes, and the headers of
    objects (under the lock id ``lock``) that proved them. ``pending`` is the writer's own record of them."""

    stream: int
    content: int
    level: int
    rows: Mapping[int, bytes]
    nodes: Mapping[int, bytes]
    lock: bytes
    headers: Mapping[int, bytes]
    pending: Mapping[int, bytes]


def record_verified(db: sqlite3.Connection, batches: Iterable[Verified]) -> list[list[tuple[int, bytes]] | None]:
    """Sets the bits of each batch and keeps its nodes. Returns the rows that were touched as they are now, with
    what other processes set; None where the file is no longer in the catalogue."""
    results: list[list[tuple[int, bytes]] | None] = []
    for batch in batches:
        row = db.execute("SELECT complete FROM content WHERE id = ?", (batch.content,)).fetchone()
        if row is None:
            results.append(None)
            continue
        merge_nodes(db, batch.stream, batch.level, batch.nodes)
        if not row[0]:
            db.executemany(
                "INSERT OR REPLACE INTO header VALUES (?, ?, ?, ?)",
                [(batch.stream, batch.lock, number, raw) for number, raw in batch.headers.items()],
            )
        now: list[tuple[int, bytes]] = []
        for chunk, bits in batch.rows.items():
            old = db.execute(
                "SELECT bits FROM verified WHERE content = ? AND level = ? AND chunk = ?",
                (batch.content, batch.level, chunk),
            ).fetchone()
            joined = bytes(bits) if old is None else join_bits(old[0], bits)
            now.append((chunk, joined))
            if not row[0]:
                db.execute(
                    "INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?)",
                    (batch.content, batch.level, chunk, joined),
                )
        results.append(now)
    return results


def clear_verified(
    db: sqlite3.Connection, content: int, level: int, good: Mapping[int, bytes], bad: Mapping[int, bytes]
) -> None:
    """Takes back the bits of ``bad`` miniblocks; the file is not complete any more. ``good`` are the rows of bits
    of a file that was complete until now. Bits kept at other levels go: they may cover the bad bytes."""
    row = db.execute("SELECT complete FROM content WHERE id = ?", (content,)).fetchone()
    if row is None:
        return
    db.execute("DELETE FROM verified WHERE content = ? AND level <> ?", (content, level))
    if row[0]:
        db.executemany(
            "INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?)",
            [(content, level, chunk, bytes(bits)) for chunk, bits in good.items()],
        )
        db.execute("UPDATE content SET complete = 0 WHERE id = ?", (content,))
        return
    for chunk, bits in bad.items():
        old = db.execute(
            "SELECT bits FROM verified WHERE content = ? AND level = ? AND chunk = ?", (content, level, chunk)
        ).fetchone()
        if old is not None:
            db.execute(
                "INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?)",
                (content, level, chunk, without_bits(old[0], bits)),
            )
