"""Where fetches begin and end: the stored file, what of it is verified, and the record that all of it is.

All of it blocks.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from entrepot.adapters.files import (
    identify,
    make_folder,
    open_writable,
    remove_file,
    require_space,
    set_length,
    sync_data,
    sync_folder,
)
from entrepot.adapters.store import catalogue, proofs
from entrepot.adapters.store.bitmap import Bitmap
from entrepot.adapters.store.catalogue import Content, Known
from entrepot.adapters.store.checking import Checker
from entrepot.adapters.store.database import Database
from entrepot.adapters.store.fetch import Fetch, Recorder
from entrepot.adapters.store.reading import Reader
from entrepot.adapters.store.records import StoreSettings
from entrepot.core.errors import Conflict
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock


class Intake:
    """The fetches of one store that are open in this process. ``folder`` is where the store's own files lie."""

    def __init__(self, database: Database, folder: Path, settings: StoreSettings) -> None:
        self._database = database
        self._folder = folder
        self._settings = settings
        self._guard = threading.Lock()
        self._fetches: set[Fetch] = set()

    def use(self, reader: Reader, checker: Checker, recorder: Recorder) -> None:
        """The parts it works with; the reader asks back what is being fetched, so they come later."""
        self._reader = reader
        self._checker = checker
        self._recorder = recorder

    def live(self, stream: StreamId, level: int, miniblocks: range) -> bool:
        """Whether an open fetch has written all these miniblocks of the size of ``level``."""
        with self._guard:
            fetches = [f for f in self._fetches if f.stream == stream and f.lock.level == level]
        return any(fetch.has(miniblocks) for fetch in fetches)

    def fetching(self, stream: StreamId) -> bool:
        """Whether a fetch of the stream is open."""
        with self._guard:
            return any(fetch.stream == stream for fetch in self._fetches)

    def release(self) -> None:
        """Lets go of the files of all fetches."""
        with self._guard:
            fetches = list(self._fetches)
        for fetch in fetches:
            fetch.release()

    def begin(
        self,
        stream: StreamId,
        opening: Opening,
        lock: SchemaLock,
        scope: str,
        name: str,
        on_finish: Callable[[Fetch], Awaitable[None]],
    ) -> Fetch:
        """See :meth:`Store.begin`."""
        reader = self._reader
        geometry = Geometry(opening.length, lock)
        known = self._database.run_from_thread(catalogue.known, stream)
        bitmap = Bitmap(geometry.miniblock_count)
        descriptor: int | None = None
        whole = None
        if known is not None:
            self._database.run_from_thread(catalogue.join_scope, stream, scope)
            known = reader.known(stream)
            whole = reader.complete(known)
        if whole is not None:
            content = whole[0]
            bitmap.fill()
        else:
            found = None if known is None else reader.partial(known)
            if found is None:
                require_space(self._folder, opening.length, self._settings.reserve)
                content, descriptor, new = self._new_file(stream, opening, scope, name)
            else:
                content, descriptor, new = found, open_writable(found.path), False
            try:
                if not new:
                    bitmap = self._resume(reader.known(stream), content, geometry)
                missing = opening.length - bitmap.set_count * lock.miniblock
                require_space(self._folder, max(0, missing), self._settings.reserve)
            except BaseException:
                os.close(descriptor)
                raise
        fetch = Fetch(
            stream=stream,
            opening=opening,
            lock=lock,
            row=reader.known(stream).id,
            content=content,
            descriptor=descriptor,
            bitmap=bitmap,
            recorder=self._recorder,
            on_finish=on_finish,
            on_close=self._forget,
        )
        with self._guard:
            self._fetches.add(fetch)
        return fetch

    def _forget(self, fetch: Fetch) -> None:
        with self._guard:
            self._fetches.discard(fetch)

    def _new_file(self, stream: StreamId, opening: Opening, scope: str, name: str) -> tuple[Content, int, bool]:
        """A sparse file under a name never used before, and its row: a late writer of a removed file cannot
        reach the bytes of its successor. False: another process was first, and the file is its."""
        path = self.new_path(stream)
        make_folder(self._folder / path.parent)
        descriptor = open_writable(self._folder / path, create=True)
        try:
            set_length(descriptor, opening.length, self._folder / path)
            if self._settings.synced:
                sync_data(descriptor, self._folder / path)
                sync_folder(self._folder / path.parent)
            content = self._database.run_from_thread(
                catalogue.add_content,
                stream,
                opening,
                scope,
                name,
                None,
                time.time_ns() // 1_000_000,
                path=path,
                stored=True,
                complete=False,
                identity=None,
            )
        except BaseException:
            os.close(descriptor)
            remove_file(self._folder / path)
            raise
        new = content.path == path
        if not new:  # another process was first
            os.close(descriptor)
            remove_file(self._folder / path)
            descriptor = open_writable(self._folder / content.path)
        return self._reader.located(content), descriptor, new

    @staticmethod
    def new_path(stream: StreamId) -> Path:
        """A name in the content folder that no file has had."""
        return Path(stream.hex[2:4]) / f"{stream.hex}.{secrets.token_hex(4)}"

    def _resume(self, known: Known, content: Content, geometry: Geometry) -> Bitmap:
        """The bits of the lock's level; those that another level's bits cover are worked out from the bytes."""
        reader = self._reader
        bitmap = reader.bits(content, geometry)
        if bitmap.set_count:
            return bitmap
        levels = self._database.run_from_thread(proofs.verified_levels, content.id)
        if not [level for level in levels if level != geometry.lock.level]:
            return bitmap
        return self._checker.translate_bits(known, content, geometry)

    def finish(self, fetch: Fetch) -> None:
        """Records all that the fetch wrote and, where it is complete, that the stream is held."""
        fetch.drain()
        if not fetch.complete or not fetch.content.stored or fetch.recorded_complete:
            return
        identity = identify(fetch.content.path)
        if identity is None or not self._database.run_from_thread(
            catalogue.set_complete,
            fetch.content.id,
            identity,
            fetch.lock.level,
            fetch.geometry.miniblock_count,
        ):
            error = Conflict(
                "the stream was removed, or parts of it turned out bad, while it was fetched",
                kind="changed",
                hint="Fetch it again: what is good is kept.",
                stream=str(fetch.stream),
            )
            fetch.fail(error)
            raise error
        fetch.recorded_complete = True
