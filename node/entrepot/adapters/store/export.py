"""Giving a stream to the user as a file of theirs, with one copy on the disk.

By reflink where the file system can. Otherwise the store's own file *becomes* the output, in one rename, and the
store keeps a link to it like to any file that was added: later edits are noticed. While that happens the link is
recorded as stale, so dying at any point leaves either the stored file as it was or an output that will be hashed
before it is served. Nothing half-written is ever seen under the output's name. All of it blocks.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from entrepot.adapters.files import (
    FileIdentity,
    copy_into,
    identify,
    move,
    occupied,
    real_path,
    reflink,
    remove_file,
    require_space,
    same_file_system,
    sync_folder,
    translated,
)
from entrepot.adapters.hashing import Flag
from entrepot.adapters.outputs import temporary_beside, writing_output
from entrepot.adapters.store import catalogue
from entrepot.adapters.store.catalogue import Content, Known
from entrepot.adapters.store.database import Database
from entrepot.adapters.store.reading import Reader
from entrepot.adapters.store.records import How
from entrepot.core.errors import Conflict, EntrepotError, InvalidInput, NotFound
from entrepot.core.identifiers import StreamId


class Exporter:
    """Exports streams of one store. ``reserve``: bytes to leave free on any disk it writes to."""

    def __init__(self, database: Database, reader: Reader, *, reserve: int) -> None:
        self._database = database
        self._reader = reader
        self._reserve = reserve

    def export(self, stop: Flag, stream: StreamId, output: Path, force: bool) -> How:
        """See :meth:`Store.export`."""
        known = self._reader.known(stream)
        whole = self._reader.complete(known)
        if whole is None:
            raise self._reader.absent(known)
        content, identity = whole
        target = self._target(output)
        with translated(target):
            there = os.path.lexists(target)
            if there and target.is_dir():
                raise InvalidInput(f"{output} is a folder", path=str(output))
            if there and target.exists() and target.samefile(content.path):
                if content.stored:
                    raise InvalidInput(f"{output} is the store's own file", path=str(output))
                return How.LINKED
        if there and not force:
            raise _exists(target)
        with writing_output(target.parent, self._reserve):
            if self._reflink(known, content, identity, target, force):
                return How.REFLINK
            if content.stored and same_file_system(content.path, target.parent):
                self._move(known, content, identity, target, force)
                return How.MOVED
            self._copy(known, content, identity, target, force, stop)
            return How.COPIED

    def _target(self, output: Path) -> Path:
        if not output.name or output.name in (".", ".."):
            raise InvalidInput(f"{output} is not the name of a file", path=str(output))
        folder = real_path(output.parent)
        with translated(folder):
            if not folder.is_dir():
                raise NotFound(f"there is no folder {folder}", kind="no-such-file", path=str(folder))
        return folder / output.name

    def _reflink(self, known: Known, content: Content, identity: FileIdentity, target: Path, force: bool) -> bool:
        temporary = temporary_beside(target)
        with self._reader.opened(content, identity) as descriptor:
            if not reflink(descriptor, temporary):
                return False
        self._place(known, temporary, target, force, None)
        return True

    def _move(self, known: Known, content: Content, identity: FileIdentity, target: Path, force: bool) -> None:
        with self._reader.opened(content, identity):
            link = self._database.run_from_thread(catalogue.announce_move, known.stream, target)
        try:
            move(content.path, target, replace=force)
        except EntrepotError:
            self._database.run_from_thread(catalogue.drop_content, link)
            raise
        self._settle(link, identity, target, content.id)
        sync_folder(content.path.parent)

    def _copy(
        self, known: Known, content: Content, identity: FileIdentity, target: Path, force: bool, stop: Flag
    ) -> None:
        require_space(target, occupied(content.path), self._reserve)
        temporary = temporary_beside(target)
        with self._reader.opened(content, identity) as descriptor:
            copy_into(descriptor, temporary, known.opening.length, stop.is_set)
        self._place(known, temporary, target, force, content if content.stored else None)

    def _place(self, known: Known, temporary: Path, target: Path, force: bool, dropped: Content | None) -> None:
        """Gives the finished file its name and records the link; ``dropped`` leaves the store."""
        link = None
        try:
            link = self._database.run_from_thread(catalogue.announce_move, known.stream, target)
            identity = identify(temporary)
            if identity is None:
                raise NotFound(f"{temporary} is gone", kind="no-such-file", path=str(temporary))
            move(temporary, target, replace=force)
        except BaseException:
            with contextlib.suppress(EntrepotError):
                remove_file(temporary)
            if link is not None:
                self._database.run_from_thread(catalogue.drop_content, link)
            raise
        self._settle(link, identity, target, None if dropped is None else dropped.id)
        if dropped is not None:
            remove_file(dropped.path)

    def _settle(self, link: int, before: FileIdentity, target: Path, dropped: int | None) -> None:
        after = identify(target)
        if after is None or (after.size, after.mtime_ns, after.inode) != (
            before.size,
            before.mtime_ns,
            before.inode,
        ):
            # Somebody was there at once. The link stays stale; the output is theirs now.
            if dropped is not None:
                self._database.run_from_thread(catalogue.drop_content, dropped)
            return
        self._database.run_from_thread(catalogue.settle_move, link, after, dropped)


def _exists(path: Path) -> Conflict:
    return Conflict(
        f"{path} is already there",
        kind="exists",
        hint="Choose another name, or let it be replaced (--force).",
        path=str(path),
    )
