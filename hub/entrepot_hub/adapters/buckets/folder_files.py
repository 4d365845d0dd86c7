"""Objects as plain files under one directory: the blocking half of the folder driver.

An object's file holds exactly its bytes, under exactly its key, so the folder can be served, copied and
looked at with any tool. Beside the objects stand two folders that no key can name:

- ``.pending`` holds uploads. A whole, checked and synced one becomes visible by ``link(2)``, which refuses an
  existing name: create-only and all-or-nothing in one step, on one file system. A tombstone replaces by
  ``rename(2)``.
- ``.records/<2 digits>/<etag>`` holds one line per object, ``<sha256> <length> <key>``. It is written before
  the link and found by the object's etag, so racing writers of one key never touch each other's. It is a
  cache, not synced: a lost record is made again by reading the object.

An etag is a hash of (length, modification time). The time is set by us, in nanoseconds, and never twice the
same, so it names one content; it survives ``rsync -a`` to another disk; a file that was changed in place gets
another.

One process at a time may own a folder: the etag given to ``delete`` and ``tombstone`` is compared under a
lock of this process. Everything else is safe between processes too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Buffer, Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Final

from entrepot.core.errors import Conflict, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.buckets.folder_entries import entry_of, translated
from entrepot_hub.adapters.buckets.interface import (
    Entry,
    Head,
    Listing,
    check_etag,
    check_key,
    check_limit,
    check_prefix,
    check_range,
    is_key,
)

_PENDING: Final = ".pending"
_RECORDS: Final = ".records"
_EMPTY_DIGEST: Final = hashlib.sha256(b"").digest()
#: The largest object in bytes that :meth:`FolderFiles.head` reads through to make a lost record again.
_REHASH_LIMIT: Final = 256 << 20
#: How often a parent folder may vanish under a new object before that is an error: each time means that
#: somebody removed the last object beside it in that very moment.
_PARENT_TRIES: Final = 100
type _Move = Callable[[], object]

_RECORD = re.compile(r"([0-9a-f]{64}) ([0-9]{1,19}) ([A-Za-z0-9._~/-]+)\n")
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class FolderFiles:
    """The objects under ``root``. Every method blocks and may be called from any thread.

    ``sync``: an object is on the disk, name and all, before it is reported. Without, a power cut may lose it.
    ``create``: :meth:`start` makes the folder if it is missing.
    """

    def __init__(self, root: Path, *, sync: bool = True, create: bool = True) -> None:
        self._root = root
        self._create = create
        self._sync = sync
        self._changing = threading.Lock()
        self._stamping = threading.Lock()
        self._last_stamp = 0
        self._uploads: set[str] = set()

    def start(self, older_than: float) -> int:
        """See that the folder is there, or make it, and that it can hold objects; sweep. The bytes freed."""
        with translated(self._root):
            if self._create:
                self._root.mkdir(parents=True, exist_ok=True)
            elif not self._root.is_dir():
                # Not made silently: it may be a disk that is not mounted.
                raise InvalidInput(
                    f"there is no folder {self._root}",
                    kind="invalid-setting",
                    hint="Make it, mount it, or have it made on the first start with --create-bucket",
                )
            with contextlib.suppress(FileExistsError):
                (self._root / _RECORDS).mkdir()
            with self.begin() as upload:
                twin = self._root / _PENDING / f"{upload.name}.link"
                try:
                    os.link(upload.path, twin)
                except OSError as error:
                    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO}:
                        raise
                    raise InvalidInput(
                        f"the file system of {self._root} has no hard links",
                        kind="invalid-setting",
                        hint="Keep the bucket on a local file system such as ext4, XFS, ZFS or APFS",
                    ) from error
                twin.unlink()
        return self.sweep(older_than)

    # --- looking ------------------------------------------------------------------------------------------

    def open(self, key: str, etag: str | None = None) -> tuple[FileIO, Entry]:
        """The object's file, for the caller to close, and what it is.

        The content cannot change under an open file: objects are replaced, never written.
        Raises ``NotFound(no-such-object)``, ``Conflict(changed)`` if it is not the content of ``etag``.
        """
        check_etag(etag)
        with translated(key):
            found = self._open(key)
        if found is None:
            raise NotFound("there is no such object", kind="no-such-object", key=key)
        descriptor, entry = found
        if etag is not None and entry.etag != etag:
            os.close(descriptor)
            raise Conflict("the object was replaced", kind="changed", key=key, etag=entry.etag)
        return FileIO(descriptor, "rb"), entry

    def head(self, key: str) -> Head | None:
        """The object as it stands, with its digest."""
        with translated(key):
            found = self._open(key)
            if found is None:
                return None
            descriptor, entry = found
            try:
                digest = self._digest(descriptor, entry)
            finally:
                os.close(descriptor)
        return Head(length=entry.length, etag=entry.etag, digest=digest, modified=entry.modified)

    def exists(self, key: str) -> bool:
        """Whether the key is taken at this moment."""
        with translated(key):
            return self._look(key) is not None

    @staticmethod
    def pread(file: FileIO, length: int, offset: int) -> bytes:
        """A piece of an open object."""
        with translated("object"):
            return os.pread(file.fileno(), length, offset)

    def read(self, key: str, offset: int, length: int, etag: str | None) -> bytes:
        """A range of the object, shorter only at its end."""
        check_range(offset, length)
        file, entry = self.open(key, etag)
        with file, translated(key):
            pieces = bytearray()
            wanted = max(0, min(length, entry.length - offset))
            while len(pieces) < wanted:
                piece = os.pread(file.fileno(), wanted - len(pieces), offset + len(pieces))
                if not piece:
                    raise Conflict("the object's file was cut", kind="changed", key=key)
                pieces += piece
            return bytes(pieces)

    def list(self, prefix: str, start_after: str | None, limit: int) -> Listing:
        """A page of keys in the order of their bytes. Reads only the directories that the page touches."""
        check_prefix(prefix)
        check_limit(limit)
        entries: list[Entry] = []
        with translated(prefix):
            for entry in self._walk(self._root, "", prefix, start_after or ""):
                if len(entries) == limit:
                    return Listing(entries=tuple(entries), next=entries[-1].key)
                entries.append(entry)
        return Listing(entries=tuple(entries), next=None)

    # --- changing -----------------------------------------------------------------------------------------

    def begin(self) -> Upload:
        """A new upload: write to it, then publish it, and discard it in any case (it is a context
        manager)."""
        with translated(self._root):
            folder = self._root / _PENDING
            name = secrets.token_hex(16)
            self._uploads.add(name)
            try:
                try:
                    descriptor = _create(folder / name)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        folder.mkdir()
                    descriptor = _create(folder / name)
            except BaseException:
                self._uploads.discard(name)
                raise
            return Upload(self, name, folder / name, descriptor)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object where there is none."""
        check_key(key)
        with self.begin() as upload:
            upload.write([data])
            try:
                upload.publish(key, len(data), hashlib.sha256(data).digest())
            except Conflict:
                return False
        return True

    def delete(self, key: str, etag: str | None) -> bool:
        """Remove the object, then the parents it leaves empty."""
        check_etag(etag)
        path = self._path(key)
        with translated(key), self._changing:
            entry = self._look(key)
            if entry is None:
                return False
            if etag is not None and entry.etag != etag:
                raise Conflict("the object was replaced", kind="changed", key=key, etag=entry.etag)
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            self._forget(entry.etag)
            self._sync_folder(path.parent)
            # rmdir refuses what is not empty, so this cannot take a newcomer with it; a newcomer that finds
            # its parent gone makes it again.
            for parent in path.parents:
                if parent == self._root:
                    break
                try:
                    parent.rmdir()
                except OSError:
                    break
        return True

    def tombstone(self, key: str, etag: str | None) -> Head:
        """Put an object of 0 bytes in the place of what is there."""
        check_etag(etag)
        path = self._path(key)
        with self.begin() as upload, translated(key), self._changing:
            before = self._look(key)
            if before is not None and before.length == 0:
                return Head(length=0, etag=before.etag, digest=_EMPTY_DIGEST, modified=before.modified)
            if etag is not None and (before is None or before.etag != etag):
                raise Conflict("the object was replaced or removed", kind="changed", key=key)
            entry = upload.seal(key)
            self._place(path, lambda: upload.path.replace(path))
            if before is not None:
                self._forget(before.etag)
        return Head(length=0, etag=entry.etag, digest=_EMPTY_DIGEST, modified=entry.modified)

    # --- leftovers ----------------------------------------------------------------------------------------

    def pending_bytes(self) -> int:
        """The bytes of unfinished uploads, those that a crash left behind included."""
        total = 0
        with translated(self._root):
            for path in self._scan(self._root / _PENDING):
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat(follow_symlinks=False).st_size
        return total

    def sweep(self, older_than: float) -> int:
        """Remove unfinished uploads that were not written to for ``older_than`` seconds and are not of this
        process, and records of that age whose object is gone. Returns the bytes freed in ``.pending``."""
        freed = 0
        horizon = time.time() - older_than
        with translated(self._root):
            for path in self._scan(self._root / _PENDING):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat(follow_symlinks=False)
                    if path.name not in self._uploads and status.st_mtime < horizon:
                        path.unlink()
                        freed += status.st_size
            for folder in self._scan(self._root / _RECORDS):
                for path in self._scan(folder):
                    with contextlib.suppress(FileNotFoundError):
                        if path.stat(follow_symlinks=False).st_mtime < horizon and self._is_stray(path):
                            path.unlink()
        return freed

    # --- used by Upload -----------------------------------------------------------------------------------

    def release(self, name: str) -> None:
        """The upload of this name is over."""
        self._uploads.discard(name)

    def stamp(self) -> int:
        """Now in nanoseconds, never the same twice."""
        with self._stamping:
            self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
            return self._last_stamp

    def sync(self, descriptor: int) -> None:
        """Wait until the file is on the disk, if objects are to survive a power cut."""
        if self._sync:
            os.fsync(descriptor)

    def publish(self, temporary: Path, entry: Entry, digest: bytes) -> None:
        """Give a sealed upload its name. ``Conflict(exists)`` if the name is taken."""
        path = self._path(entry.key)
        self._remember(entry, digest)
        try:
            self._place(path, lambda: os.link(temporary, path))
        except FileExistsError:
            self._forget(entry.etag)
            raise Conflict("there is an object already", kind="exists", key=entry.key) from None

    # --- inside -------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _open(self, key: str) -> tuple[int, Entry] | None:
        try:
            descriptor = os.open(self._path(key), _OPEN_FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            self._look_at_root()
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symbolic link is not an object
                return None
            raise
        entry = entry_of(key, os.fstat(descriptor))
        if entry is None:
            os.close(descriptor)
            return None
        return descriptor, entry

    def _look(self, key: str) -> Entry | None:
        try:
            return entry_of(key, self._path(key).stat(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            self._look_at_root()
            return None

    def _look_at_root(self) -> None:
        """An absent object in an absent folder is no absent object: the disk is not mounted."""
        if not self._root.is_dir():
            raise RetryLater(
                "the bucket's folder is not there",
                kind="bucket-unreachable",
                hint="Mount the disk, or make the folder",
                path=str(self._root),
            )

    def _place(self, path: Path, move: _Move) -> None:
        """Make the parents, then move. Parents that vanish in between are made again."""
        for _ in range(_PARENT_TRIES):
            try:
                move()
            except FileNotFoundError:
                self._make_parents(path)
            else:
                self._sync_folder(path.parent)
                return
        raise RetryLater("the object's folder keeps vanishing", kind="busy", path=str(path.parent))

    def _make_parents(self, path: Path) -> None:
        self._look_at_root()
        for parent in reversed(path.parents):
            if parent == self._root or self._root not in parent.parents:
                continue
            try:
                parent.mkdir()
            except FileExistsError:
                continue
            except FileNotFoundError:  # an outer one was just removed: the caller tries again
                return
            self._sync_folder(parent.parent)

    def _sync_folder(self, folder: Path) -> None:
        if not self._sync:
            return
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # removed as empty meanwhile: whoever did it syncs the level above
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _walk(self, folder: Path, base: str, prefix: str, after: str) -> Iterator[Entry]:
        try:
            with os.scandir(folder) as found:
                names = {
                    f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name: entry for entry in found
                }
        except (FileNotFoundError, NotADirectoryError):
            if not base:
                self._look_at_root()
            return
        # A folder sorts with its slash, as its keys do: "a-b" before "a/b" before "a0".
        for name in sorted(names):
            key = base + name
            if name.endswith("/"):
                inside = key.startswith(prefix) or prefix.startswith(key)
                if inside and (key > after or after.startswith(key)) and is_key(key[:-1]):
                    yield from self._walk(folder / names[name].name, key, prefix, after)
            elif key.startswith(prefix) and key > after and is_key(key):
                try:
                    entry = entry_of(key, names[name].stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue
                if entry is not None:
                    yield entry

    @staticmethod
    def _scan(folder: Path) -> tuple[Path, ...]:
        try:
            return tuple(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return ()

    # --- records ------------------------------------------------------------------------------------------

    def _record(self, etag: str) -> Path:
        return self._root / _RECORDS / etag[:2] / etag

    def _remember(self, entry: Entry, digest: bytes) -> None:
        path = self._record(entry.etag)
        line = f"{digest.hex()} {entry.length} {entry.key}\n"
        try:
            path.write_text(line, encoding="ascii")
        except FileNotFoundError:
            for folder in (path.parent.parent, path.parent):
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
            path.write_text(line, encoding="ascii")

    def _forget(self, etag: str) -> None:
        self._record(etag).unlink(missing_ok=True)

    def _digest(self, descriptor: int, entry: Entry) -> bytes | None:
        if entry.length == 0:
            return _EMPTY_DIGEST
        match = _read_record(self._record(entry.etag))
        if match is not None and match[2] == str(entry.length) and match[3] == entry.key:
            return bytes.fromhex(match[1])
        if entry.length > _REHASH_LIMIT:
            return None
        hasher = hashlib.sha256()
        offset = 0
        while piece := os.pread(descriptor, 1 << 20, offset):
            hasher.update(piece)
            offset += len(piece)
        if entry_of(entry.key, os.fstat(descriptor)) != entry or offset != entry.length:
            return None  # somebody is writing into the file: nothing is certain
        # A record saves reading the object again; that a full disk cannot keep it changes no answer.
        with contextlib.suppress(OSError):
            self._remember(entry, hasher.digest())
        return hasher.digest()

    def _is_stray(self, record: Path) -> bool:
        match = _read_record(record)
        if match is None or not is_key(match[3]):
            return True
        entry = self._look(match[3])
        return entry is None or entry.etag != record.name


class Upload:
    """An upload in ``.pending``. Threads may call it, one at a time; it may be discarded at any moment."""

    def __init__(self, files: FolderFiles, name: str, path: Path, descriptor: int) -> None:
        self.name = name
        self.path = path
        self._files = files
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()
        self._hasher = hashlib.sha256()
        self._length = 0

    @property
    def over(self) -> bool:
        """Whether it was discarded."""
        return self._descriptor is None

    def write(self, pieces: Iterable[Buffer]) -> int:
        """Append the pieces and hash them. Returns the bytes written so far."""
        with self._lock, translated(self.name):
            descriptor = self._open_descriptor()
            for piece in pieces:
                view = memoryview(piece)
                self._hasher.update(view)
                while view.nbytes:
                    written = os.write(descriptor, view)
                    self._length += written
                    view = view[written:]
            return self._length

    def seal(self, key: str) -> Entry:
        """Stamp and sync the file: what it will be under ``key``."""
        with self._lock, translated(key):
            return self._seal(key)

    def publish(self, key: str, length: int, digest: bytes, before: Callable[[], None] | None = None) -> Entry:
        """Make the upload visible under ``key`` if it has this length and SHA-256.

        ``before`` is called when everything is on the disk; what it raises keeps the object from becoming
        visible. Raises ``InvalidInput`` for other bytes, ``Conflict(exists)`` if the key is taken; nothing is
        visible then.
        """
        check_key(key)
        with self._lock, translated(key):
            if self._length != length:
                raise InvalidInput(
                    f"{self._length} bytes came, {length} were granted",
                    key=key,
                    length=self._length,
                    granted=length,
                )
            if self._hasher.digest() != digest:
                raise InvalidInput(
                    "other bytes came than were granted: the SHA-256 differs",
                    key=key,
                    digest=self._hasher.hexdigest(),
                    granted=digest.hex(),
                )
            entry = self._seal(key)
            if before is not None:
                before()
            self._files.publish(self.path, entry, digest)
            return entry

    def discard(self) -> None:
        """Close and remove the temporary file; an object that was published keeps its own name.
        Idempotent."""
        with self._lock:
            if self._descriptor is None:
                return
            os.close(self._descriptor)
            self._descriptor = None
            try:
                with translated(self.name):
                    self.path.unlink(missing_ok=True)
            finally:
                self._files.release(self.name)

    def _seal(self, key: str) -> Entry:
        descriptor = self._open_descriptor()
        stamp = self._files.stamp()
        os.utime(descriptor, ns=(stamp, stamp))
        self._files.sync(descriptor)
        entry = entry_of(key, os.fstat(descriptor))
        assert entry is not None
        return entry

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise RetryLater("the upload was given up", kind="cancelled")
        return self._descriptor

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _read_record(path: Path) -> re.Match[str] | None:
    try:
        with path.open("rb") as file:
            return _RECORD.fullmatch(file.read(2048).decode("ascii", "replace"))
    except FileNotFoundError:
        return None
