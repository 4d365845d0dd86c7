"""Adding many small files at once: one look into the catalogue and one transaction for all. All of it blocks."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from entrepot.adapters.files import FileIdentity, identify_open, open_source, real_path, settle, translated
from entrepot.adapters.hashing import Flag, hash_file
from entrepot.adapters.store import catalogue
from entrepot.adapters.store.adding import added_of, is_still, readable
from entrepot.adapters.store.checkpoints import changed, now_ms
from entrepot.adapters.store.database import Database
from entrepot.adapters.store.records import Added
from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import NODE_LENGTH, HashedStream

#: The largest file, in bytes, that is worth adding together with others, and the most files of one batch.
SMALL_FILE: Final = 2 << 20
MOST_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class _Hashed:
    """A file that is to be recorded."""

    path: Path
    name: str
    identity: FileIdentity
    hashed: HashedStream


class BatchAdder:
    """Links small files where they lie, for one store."""

    def __init__(self, database: Database, *, alias: bool) -> None:
        self._database = database
        self._alias = alias

    def add(
        self,
        stop: Flag,
        paths: Sequence[Path],
        *,
        scope: str,
        lock: SchemaLock,
        progress: Callable[[int, str], None] | None,
    ) -> list[Added | EntrepotError]:
        """See :meth:`Store.add_batch`."""
        places = _Places()
        found: list[Path | EntrepotError] = []
        for path in paths:
            try:
                found.append(places.real(path))
            except EntrepotError as error:
                found.append(error)
        links = self._database.run_from_thread(
            catalogue.links_at, [path for path in found if not isinstance(path, EntrepotError)]
        )
        results: list[Added | EntrepotError | _Hashed] = []
        for path, real in zip(paths, found, strict=True):
            if stop.is_set():
                raise RetryLater("adding was cancelled", kind="cancelled")
            if isinstance(real, EntrepotError):
                results.append(real)
                continue
            if progress is not None:
                progress(len(results), path.name)
            try:
                results.append(self._one(stop, path, real, links, lock))
            except EntrepotError as error:
                if error.kind == "cancelled":
                    raise
                results.append(error)
        self._database.run_from_thread(_record, results, scope, lock, now_ms())
        return [
            added_of(one.hashed.opening.stream_id(), one.hashed, one.name, unchanged=False)
            if isinstance(one, _Hashed)
            else one
            for one in results
        ]

    def _one(
        self, stop: Flag, path: Path, real: Path, links: dict[bytes, catalogue.Linked], lock: SchemaLock
    ) -> Added | _Hashed:
        name = readable(path.name)
        descriptor = open_source(real)
        try:
            identity = identify_open(descriptor)
            link = links.get(os.fsencode(real))
            if link is not None and identity.same(link.identity):
                return Added(
                    link.stream, link.opening, link.sha256, link.opening.length, link.name or name, unchanged=True
                )
            settle(descriptor)
            hashed = hash_file(descriptor, identity.size, lock.level, alias=self._alias, stop=stop)
            if not is_still(descriptor, real, identity):
                raise changed(real)
        finally:
            os.close(descriptor)
        return _Hashed(real, name, identity, hashed)


def _record(
    db: sqlite3.Connection, results: Sequence[Added | EntrepotError | _Hashed], scope: str, lock: SchemaLock, now: int
) -> None:
    """All that was hashed, and the scope of what was there already."""
    for one in results:
        if isinstance(one, Added):
            catalogue.join_scope(db, one.stream, scope)
        elif isinstance(one, _Hashed):
            hashed = one.hashed
            catalogue.add_hashed(
                db,
                hashed.opening.stream_id(),
                hashed.opening,
                scope,
                one.name,
                hashed.sha256,
                now,
                path=one.path,
                stored=False,
                identity=one.identity,
                level=lock.level,
                nodes=hashed.nodes if len(hashed.nodes) > NODE_LENGTH else b"",
            )


class _Places:
    """Where paths really lie. Folders are resolved once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def real(self, path: Path) -> Path:
        """As :func:`real_path`."""
        folder, name = os.path.split(path)
        known = self._folders.get(folder)
        if known is None:
            known = self._folders[folder] = str(real_path(Path(folder)))
        if name in {"", ".", ".."}:
            return real_path(path)
        found = os.path.join(known, name)
        with translated(path):
            linked = stat.S_ISLNK(os.lstat(found).st_mode)
        return real_path(path) if linked else Path(found)
