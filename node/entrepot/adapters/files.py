"""Files of the operating system, behind one adapter.

Everything that exists on POSIX only (reflinks, ``renameat2``, ``pread``, folder syncs) is called here and has a
portable fallback, so that the rest of the node never asks which system it runs on. All calls block: use them
from a worker thread. Each one raises errors of :mod:`entrepot.core.errors` only; :func:`translate` is the one
place where an ``OSError`` becomes one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import functools
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound, RetryLater

COPY_BUFFER: Final = 1 << 20  # bytes
#: A file that changed less than this many nanoseconds ago may change again without a visible change of its
#: times: the kernel stamps with its tick (10 ms at 100 Hz).
TICK: Final = 20_000_000

_FICLONE: Final = 0x40049409
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCL: Final = 4
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_SHAPE: Final = frozenset({errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO})
_BUSY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})
_NO_RENAME_FLAGS: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells one state of a file from a later one. ``size`` in bytes, times in nanoseconds.

    The device number is kept for reports but not compared: it changes when a file system is mounted again.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """The identity that a stat shows."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    def same(self, other: FileIdentity | None) -> bool:
        """Whether both describe the same state of the same file."""
        return other is not None and (self.size, self.mtime_ns, self.ctime_ns, self.inode) == (
            other.size,
            other.mtime_ns,
            other.ctime_ns,
            other.inode,
        )


def translate(error: OSError, path: Path | str | None = None) -> EntrepotError:
    """The error of ours that says what ``error`` means for the caller."""
    where = str(path) if path is not None else os.fsdecode(error.filename or "") or "a file"
    code, reason = error.errno, error.strerror or type(error).__name__
    if code in _FULL:
        return disk_full(where)
    if code in _MISSING:
        return NotFound(f"{where} is not there", kind="no-such-file", path=where)
    if code == errno.EEXIST:
        return Conflict(f"{where} is already there", kind="exists", path=where)
    if code in _SHAPE:
        return InvalidInput(f"{where} cannot be used: {reason}", path=where)
    if code in _BUSY:
        return RetryLater(f"{where}: {reason}", kind="busy", path=where)
    return Denied(
        f"{where}: {reason}",
        kind="unreadable",
        hint="Check the permissions of the file and its folders, and the file system it lies on.",
        path=where,
    )


@contextlib.contextmanager
def translated(path: Path | str | None = None) -> Iterator[None]:
    """Turns every ``OSError`` of the block into an error of ours."""
    try:
        yield
    except OSError as error:
        raise translate(error, path) from error


def free_space(path: Path) -> int | None:
    """Bytes free where ``path`` lies or will lie, None where that cannot be known."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(existing(path)).free
    return None


def disk_full(
    path: Path | str,
    needed: int | None = None,
    free: int | None = None,
    reserve: int = 0,
    *,
    output: bool = False,
) -> RetryLater:
    """The error for a disk without room; ``needed`` and ``free`` in bytes where they are known, ``reserve`` the part of
    ``needed`` that is always left free. ``output``: it is the disk of a file of the user's, not the store's."""
    if free is None:
        free = free_space(Path(path))
    figures = "" if needed is None else f": {needed:,} bytes are needed"
    if needed is not None and reserve:
        figures += f" ({reserve:,} of them stay free)"
    if free is not None:
        figures += f"{',' if figures else ':'} {free:,} bytes are free"
    hint = "Free some space on that disk (what was fetched: entrepot rm) or move the store to a larger one"
    if output:
        hint = "Free some space on the output's disk, or name a folder on another one (--output)"
    return RetryLater(
        f"no room {'in' if output else 'for'} {path}{figures}",
        kind="disk-full",
        hint=f"{hint}; what was verified is kept.",
        path=str(path),
        needed=needed,
        free=free,
    )


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def require_space(path: Path, needed: int, reserve: int = 0) -> None:
    """Raises ``disk-full`` unless ``needed + reserve`` bytes are free where ``path`` lies or will lie."""
    with translated(path):
        free = shutil.disk_usage(existing(path)).free
    if needed + reserve > free:
        raise disk_full(path, needed + reserve, free, reserve)


# ---- identity and opening


def identify(path: Path) -> FileIdentity | None:
    """The identity of the regular file at ``path`` (links followed), None where there is none."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise translate(error, path) from error
    return FileIdentity.of(status) if stat.S_ISREG(status.st_mode) else None


def identify_open(descriptor: int) -> FileIdentity:
    """The identity of an open file."""
    with translated():
        return FileIdentity.of(os.fstat(descriptor))


def open_source(path: Path) -> int:
    """A descriptor for reading the regular file at ``path``; never waits for the writer of a pipe.

    Raises ``no-such-file``, ``unreadable``, or ``invalid-input`` for a folder, pipe, socket or device.
    """
    with translated(path):
        _refuse_special(os.stat(path), path)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _O_FLAGS)
    try:
        _refuse_special(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_special(status: os.stat_result, path: Path) -> None:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise InvalidInput(f"{path} is {what}, not a file", path=str(path))


_O_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_writable(path: Path, *, create: bool = False) -> int:
    """A descriptor for reading and writing ``path``; with ``create`` the file must not exist yet."""
    flags = os.O_RDWR | _O_FLAGS | (os.O_CREAT | os.O_EXCL if create else 0)
    with translated(path):
        return os.open(path, flags, 0o666)


def settle(descriptor: int) -> None:
    """Waits (at most one tick) until a later change of the open file must show in its times."""
    age = time.time_ns() - identify_open(descriptor).ctime_ns
    if age < TICK:
        time.sleep(min(TICK, TICK - age) / 1e9)


def real_path(path: Path) -> Path:
    """The absolute path with every symbolic link resolved."""
    with translated(path):
        try:
            return Path(os.path.realpath(path))
        except ValueError as error:
            raise InvalidInput(f"not a usable path: {error}") from error


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Makes the folder and what is missing above it, all with ``mode``."""
    with translated(path):
        for folder in [each for each in reversed(path.parents) if not each.exists()]:
            folder.mkdir(mode=mode, exist_ok=True)
        path.mkdir(mode=mode, exist_ok=True)


# ---- reading and writing at a position

_position = threading.Lock()


def _seek_and_read(descriptor: int, buffer: memoryview, offset: int) -> int:
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _seek_and_write(descriptor: int, buffer: memoryview, offset: int) -> int:
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, buffer)


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fills ``buffer`` from ``offset`` on; returns the bytes read, fewer only at the file's end."""
    done = 0
    with translated():
        while done < len(buffer):
            if hasattr(os, "preadv"):
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
            else:
                count = _seek_and_read(descriptor, buffer[done:], offset + done)
            if count == 0:
                break
            done += count
    return done


def write_at(descriptor: int, data: memoryview | bytes, offset: int, path: Path | None = None) -> None:
    """Writes all of ``data`` at ``offset``. A full disk raises ``disk-full``."""
    view = memoryview(data)
    with translated(path):
        while view:
            if hasattr(os, "pwrite"):
                count = os.pwrite(descriptor, view, offset)
            else:
                count = _seek_and_write(descriptor, view, offset)
            view, offset = view[count:], offset + count


def set_length(descriptor: int, length: int, path: Path) -> None:
    """Gives the open file ``length`` bytes, as a hole where the file system has holes."""
    with translated(path):
        os.ftruncate(descriptor, length)


def sync_data(descriptor: int, path: Path | None = None) -> None:
    """Returns once the open file's bytes, and the length needed to find them, are on the disk."""
    with translated(path):
        if hasattr(os, "fdatasync"):
            os.fdatasync(descriptor)
        else:
            os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Makes names made, moved or removed in ``path`` last, where the system lets a folder be synced."""
    if os.name != "posix":
        return
    with translated(path):
        descriptor = os.open(path, os.O_RDONLY | _O_FLAGS)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


def occupied(path: Path) -> int:
    """Bytes the file takes on the disk: holes cost nothing. 0 if it is not there."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in _MISSING:
            return 0
        raise translate(error, path) from error
    blocks = getattr(status, "st_blocks", None)
    return int(status.st_size if blocks is None else blocks * 512)


def remove_file(path: Path) -> bool:
    """Removes the file; False if it was not there."""
    try:
        path.unlink()
    except OSError as error:
        if error.errno in _MISSING:
            return False
        raise translate(error, path) from error
    return True


def same_file_system(path: Path, other: Path) -> bool:
    """Whether a name can be moved from beside ``path`` to beside ``other``. Both, or their folders, exist."""
    with translated(path):
        return os.stat(existing(path)).st_dev == os.stat(existing(other)).st_dev


# ---- copying and moving


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def reflink(source: int, target: Path) -> bool:
    """Makes ``target`` (which must not exist) share the blocks of the open file ``source``.

    False, and no ``target``, where the file system cannot.
    """
    if sys.platform == "linux":
        import fcntl

        descriptor = open_writable(target, create=True)
        try:
            fcntl.ioctl(descriptor, _FICLONE, source)
        except OSError as error:
            remove_file(target)
            if error.errno in _FULL:
                raise translate(error, target) from error
            return False
        finally:
            os.close(descriptor)
        return True
    if sys.platform == "darwin":
        clone = getattr(_libc(), "fclonefileat", None)
        return clone is not None and clone(source, -2, os.fsencode(target), 0) == 0
    return False


def copy_into(
    source: int,
    target: Path,
    length: int,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Copies ``length`` bytes of the open file to ``target`` (which must not exist), holes kept, and syncs it.
    ``progress(done, length)`` in bytes, holes counted.

    Raises ``changed`` if the source turns out shorter, ``cancelled`` once ``stop()`` is true. ``target`` is gone if
    anything fails.
    """
    descriptor = open_writable(target, create=True)
    try:
        set_length(descriptor, length, target)
        buffer = memoryview(bytearray(min(COPY_BUFFER, max(length, 1))))
        for start, end in _data_spans(source, length):
            offset = start
            while offset < end:
                if stop():
                    raise RetryLater("copying was cancelled", kind="cancelled")
                count = read_into(source, buffer[: min(len(buffer), end - offset)], offset)
                if count == 0:
                    raise Conflict("the file became shorter while it was copied", kind="changed")
                write_at(descriptor, buffer[:count], offset, target)
                offset += count
                if progress is not None:
                    progress(offset, length)
        with translated(target):
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(EntrepotError):
            remove_file(target)
        raise
    finally:
        os.close(descriptor)


def _data_spans(descriptor: int, length: int) -> Iterator[tuple[int, int]]:
    """Spans that may hold something other than zeros; the whole file where holes cannot be seen."""
    if not hasattr(os, "SEEK_DATA"):
        yield 0, length
        return
    offset = 0
    while offset < length:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
            stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                yield offset, length
            elif os.fstat(descriptor).st_size < length:
                raise Conflict("the file became shorter while it was copied", kind="changed") from error
            return
        if start >= length:
            return
        yield start, min(stop, length)
        offset = stop


def move(source: Path, target: Path, *, replace: bool, synced: bool = True) -> None:
    """Gives the file another name on the same file system, in one step; syncs the folder of ``target`` if ``synced``.

    Without ``replace`` a ``target`` that exists, or comes to exist meanwhile, raises ``exists``. Where the
    system has no such rename, a hard link does it; where there are no links either, the look and the rename
    are two steps.
    """
    if replace:
        with translated(target):
            if target.is_dir():
                raise InvalidInput(f"{target} is a folder", path=str(target))
            os.replace(source, target)
    elif not _rename_new(source, target):
        try:
            os.link(source, target)
        except FileExistsError as error:
            raise translate(error, target) from error
        except OSError:
            with translated(target):
                if os.path.lexists(target):
                    raise Conflict(f"{target} is already there", kind="exists", path=str(target)) from None
                os.rename(source, target)
        else:
            remove_file(source)
    if synced:
        sync_folder(target.parent)


def _rename_new(source: Path, target: Path) -> bool:
    """The system's rename that never replaces; False where it has none."""
    if sys.platform == "linux":
        call, arguments = getattr(_libc(), "renameat2", None), _RENAME_NOREPLACE
    elif sys.platform == "darwin":
        call, arguments = getattr(_libc(), "renameatx_np", None), _RENAME_EXCL
    else:
        with translated(target):
            os.rename(source, target)  # Windows never replaces
        return True
    if call is None:
        return False
    here = _AT_FDCWD if sys.platform == "linux" else -2
    if call(here, os.fsencode(source), here, os.fsencode(target), ctypes.c_uint(arguments)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_RENAME_FLAGS:
        return False
    raise translate(OSError(code, os.strerror(code), str(target)), target)
