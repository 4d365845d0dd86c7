"""Making files streams: hashed where they lie and linked, or copied into the store. All of it blocks."""

from __future__ import annotations

import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from entrepot.adapters.files import (
    FileIdentity,
    copy_into,
    identify,
    identify_open,
    make_folder,
    open_source,
    open_writable,
    real_path,
    reflink,
    remove_file,
    require_space,
    settle,
    sync_data,
    sync_folder,
    translated,
    write_at,
)
from entrepot.adapters.hashing import Flag, Progress, hash_file
from entrepot.adapters.store import catalogue
from entrepot.adapters.store.catalogue import Content, Known
from entrepot.adapters.store.checkpoints import FileKeeper, changed
from entrepot.adapters.store.database import Database
from entrepot.adapters.store.reading import Reader
from entrepot.adapters.store.records import Added, StoreSettings
from entrepot.core.errors import Conflict, EntrepotError
from entrepot.core.identifiers import StreamId, StreamKind
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import HashedStream, StreamHasher


class Adder:
    """Adds files to one store, whose own files lie in ``folder``."""

    def __init__(
        self, database: Database, reader: Reader, folder: Path, pool: ThreadPoolExecutor, settings: StoreSettings
    ) -> None:
        self._database = database
        self._reader = reader
        self._folder = folder
        self._pool = pool
        self._settings = settings

    def add(
        self,
        stop: Flag,
        path: Path,
        *,
        scope: str,
        lock: SchemaLock,
        copy: bool,
        name: str | None,
        progress: Progress | None,
    ) -> Added:
        """See :meth:`Store.add`."""
        name = readable(path.name if name is None else name)
        real = real_path(path)
        descriptor = open_source(real)
        try:
            identity = identify_open(descriptor)
            known = self._unchanged(real, identity)
            if known is not None and not copy:
                return self._again(known, scope, name)
            settle(descriptor)
            if copy:
                return self._copy(descriptor, real, known, scope, lock, name, progress, stop)
            hashed = self._hash(descriptor, real, identity, lock, progress, stop)
            stream = hashed.opening.stream_id()
            self._record(stream, hashed, lock, scope, name, path=real, stored=False, identity=identity)
        finally:
            os.close(descriptor)
        return added_of(stream, hashed, name, unchanged=False)

    def add_bytes(self, data: bytes, *, scope: str, lock: SchemaLock, name: str, kind: StreamKind) -> Added:
        """See :meth:`Store.add_bytes`."""
        hasher = StreamHasher(lock.level, sha256=True)
        hasher.update(data)
        hashed = hasher.finish()
        stream = hashed.opening.stream_id(kind)
        require_space(self._folder, len(data), self._settings.reserve)
        temporary = self._temporary()
        try:
            descriptor = open_writable(temporary, create=True)
            try:
                write_at(descriptor, data, 0, temporary)
                if self._settings.synced:
                    sync_data(descriptor, temporary)
            finally:
                os.close(descriptor)
            self._keep(temporary, stream, hashed, lock, scope, name)
        finally:
            remove_file(temporary)
        return added_of(stream, hashed, name, unchanged=False)

    def refresh(self, stop: Flag, stream: StreamId, *, progress: Progress | None) -> bool:
        """See :meth:`Store.refresh`."""
        known = self._reader.known(stream)
        for content in known.contents:
            if content.stored or (not content.stale and self._reader.current(content, known.opening.length)):
                continue
            if not self.still_holds(known, content, progress, stop):
                self._database.run_from_thread(catalogue.drop_content, content.id)
        return self._reader.complete(self._reader.known(stream)) is not None

    def lies_at(self, stop: Flag, stream: StreamId, path: Path, *, progress: Progress | None) -> bool:
        """See :meth:`Store.lies_at`."""
        known = self._database.run_from_thread(catalogue.known, stream)
        if known is None:
            return False
        places = {real_path(path), real_path(path.parent) / path.name}
        for content in known.contents:
            if content.complete and not content.stored and content.path in places:
                unchanged = self._reader.current(content, known.opening.length) is not None
                return unchanged or self.still_holds(known, content, progress, stop)
        return self._hashed_as(known, path, progress, stop) is not None

    def still_holds(self, known: Known, content: Content, progress: Progress | None, stop: Flag) -> bool:
        """Whether a linked file that changed or was stale has the stream after all; if so it counts again."""
        found = self._hashed_as(known, content.path, progress, stop)
        if found is None:
            return False
        self._database.run_from_thread(catalogue.settle_move, content.id, found, None)
        return True

    def _hashed_as(self, known: Known, path: Path, progress: Progress | None, stop: Flag) -> FileIdentity | None:
        """What the file at ``path`` is, if hashing finds the stream in it. A file of another size is not read."""
        try:
            found = identify(path)
            if found is None or found.size != known.opening.length:
                return None
            descriptor = open_source(path)
        except EntrepotError:
            return None
        try:
            settle(descriptor)
            before = identify_open(descriptor)
            if before.size != known.opening.length:
                return None
            keeper = FileKeeper(self._database, descriptor, path, before)
            hashed = hash_file(
                descriptor, before.size, 6, self._pool, alias=False, progress=progress, stop=stop, keeper=keeper
            )
            keeper.finish()
            same = hashed.opening == known.opening and is_still(descriptor, path, before)
            return before if same else None
        except Conflict:  # it changed while it was read: whatever it is now, it is not what was looked for
            return None
        finally:
            os.close(descriptor)

    def _unchanged(self, real: Path, identity: FileIdentity) -> Known | None:
        found = self._database.run_from_thread(catalogue.link_at, real)
        if found is None or found[1].stale or not identity.same(found[1].identity):
            return None
        return self._reader.known(found[0].stream)

    def _again(self, known: Known, scope: str, name: str) -> Added:
        self._database.run_from_thread(catalogue.join_scope, known.stream, scope)
        return Added(
            known.stream,
            known.opening,
            known.sha256,
            known.opening.length,
            known.name or name,
            unchanged=True,
        )

    def _hash(
        self,
        descriptor: int,
        path: Path,
        identity: FileIdentity,
        lock: SchemaLock,
        progress: Progress | None,
        stop: Flag,
    ) -> HashedStream:
        keeper = FileKeeper(self._database, descriptor, path, identity)
        hashed = hash_file(
            descriptor,
            identity.size,
            lock.level,
            self._pool,
            alias=self._settings.alias,
            progress=progress,
            stop=stop,
            keeper=keeper,
        )
        keeper.finish()
        if not is_still(descriptor, path, identity):
            raise changed(path)
        return hashed

    def _copy(
        self,
        descriptor: int,
        path: Path,
        known: Known | None,
        scope: str,
        lock: SchemaLock,
        name: str,
        progress: Progress | None,
        stop: Flag,
    ) -> Added:
        """Copies first and hashes the copy: what is stored is what was hashed, whatever happens to the file."""
        if known is not None and any(c.stored and c.complete for c in known.contents):
            return self._again(known, scope, name)
        identity = identify_open(descriptor)
        temporary = self._temporary()
        try:
            if not reflink(descriptor, temporary):
                require_space(self._folder, identity.size, self._settings.reserve)
                copying, progress = _halves(progress)
                copy_into(descriptor, temporary, identity.size, stop.is_set, copying)
            if not is_still(descriptor, path, identity):
                raise Conflict(f"{path} changed while it was copied", kind="changed", path=str(path))
            copied = open_source(temporary)
            try:
                with translated(temporary):
                    os.fsync(copied)
                hashed = hash_file(
                    copied,
                    identity.size,
                    lock.level,
                    self._pool,
                    alias=self._settings.alias,
                    progress=progress,
                    stop=stop,
                )
            finally:
                os.close(copied)
            stream = hashed.opening.stream_id()
            self._keep(temporary, stream, hashed, lock, scope, name)
        finally:
            remove_file(temporary)
        return added_of(stream, hashed, name, unchanged=False)

    def _temporary(self) -> Path:
        make_folder(self._folder / "new")
        return self._folder / "new" / secrets.token_hex(12)

    def _keep(
        self, temporary: Path, stream: StreamId, hashed: HashedStream, lock: SchemaLock, scope: str, name: str
    ) -> None:
        """Makes a finished file the stream's stored one, unless it has a complete one; what a fetch left half done
        is completed by it."""
        path = Path(stream.hex[2:4]) / f"{stream.hex}.{secrets.token_hex(4)}"
        make_folder(self._folder / path.parent)
        with translated(temporary):
            os.replace(temporary, self._folder / path)
        if self._settings.synced:
            sync_folder(self._folder / path.parent)
        content = self._record(
            stream, hashed, lock, scope, name, path=path, stored=True, identity=identify(self._folder / path)
        )
        if content.path == path:
            return
        if content.complete and self._reader.current(self._reader.located(content), hashed.opening.length):
            remove_file(self._folder / path)
            return
        self._database.run_from_thread(catalogue.drop_content, content.id)
        remove_file(self._folder / content.path)
        self._record(stream, hashed, lock, scope, name, path=path, stored=True, identity=identify(self._folder / path))

    def _record(
        self,
        stream: StreamId,
        hashed: HashedStream,
        lock: SchemaLock,
        scope: str,
        name: str,
        *,
        path: Path,
        stored: bool,
        identity: FileIdentity | None,
    ) -> Content:
        return self._database.run_from_thread(
            catalogue.add_hashed,
            stream,
            hashed.opening,
            scope,
            name,
            hashed.sha256,
            time.time_ns() // 1_000_000,
            path=path,
            stored=stored,
            identity=identity,
            level=lock.level,
            nodes=hashed.nodes if len(hashed.nodes) > 32 else b"",
        )


def is_still(descriptor: int, path: Path, identity: FileIdentity) -> bool:
    """Whether both the open file and the name still are what they were."""
    found = identify(path)
    return identify_open(descriptor).same(identity) and found is not None and found.same(identity)


def _halves(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """What to tell of the first and of the second pass over a file: each is half of the work."""
    if progress is None:
        return None, None
    return (
        lambda done, length: progress(done // 2, length),
        lambda done, length: progress((length + done + 1) // 2, length),
    )


def readable(name: str) -> str:
    """The name as text that can be written anywhere: bytes of a file's name that are no UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def added_of(stream: StreamId, hashed: HashedStream, name: str, *, unchanged: bool) -> Added:
    """What is told of a file that was hashed."""
    return Added(stream, hashed.opening, hashed.sha256, hashed.opening.length, name, unchanged)
