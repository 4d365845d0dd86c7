"""The folder that a file of the user's is made in: whether it takes one, and the hidden file in which it is made.

The name of a hidden file tells which process of which system makes it: one that is gone finishes nothing, and whoever
writes into that folder next removes it. Where that cannot be known (another machine that shares the folder, another
container), only age tells. All of it blocks, and raises errors of :mod:`entrepot.core.errors` only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from entrepot.adapters.files import disk_full, existing, translated
from entrepot.core.errors import Denied, EntrepotError

#: Seconds after which a hidden file of a process that cannot be looked for is left over.
ABANDONED_AFTER: Final = 24 * 3600
_HIDDEN: Final = re.compile(r"\.entrepot-([0-9a-f]{4})([0-9a-f]{6})[0-9a-f]{6}\.part")
_MASK: Final = 0xFFFFFF
_numbers = itertools.count(secrets.randbits(24))


# ---- the hidden file


def temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the folder of ``path``, short enough whatever the length of its name."""
    return path.with_name(f".entrepot-{_system()}{os.getpid() & _MASK:06x}{next(_numbers) & _MASK:06x}.part")


@functools.cache
def _system() -> str:
    """Four digits for what the numbers of processes are counted in: this boot of this machine, or a container of it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:4]


def remove_leftovers(folder: Path) -> int:
    """Removes the hidden files of ours in ``folder`` that nobody finishes any more; how many. Those of other users
    stay, and so does what cannot be looked at: it is in nobody's way."""
    removed = 0
    try:
        with os.scandir(folder) as entries:
            found = [(entry, match) for entry in entries if (match := _HIDDEN.fullmatch(entry.name)) is not None]
    except OSError:
        return 0
    for entry, match in found:
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if _is_ours(status) and _is_abandoned(match[1], int(match[2], 16), status.st_mtime):
                os.unlink(entry.path)
                removed += 1
    return removed


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _is_abandoned(system: str, process: int, changed: float) -> bool:
    if time.time() - changed > ABANDONED_AFTER:
        return True
    if os.name != "posix" or system != _system():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it is somebody else's
    return False


# ---- the folder


def require_writable(folder: Path) -> None:
    """Raises ``denied`` where no file can be made in the folder, as far as that can be told without making one."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, "its file system is read-only" if _is_read_only(folder) else "permission denied")


def make_output_folder(folder: Path) -> None:
    """Makes the folder and what is missing above it. Raises ``denied`` where it cannot be made."""
    try:
        with translated(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except Denied as error:
        raise _unwritable(existing(folder), _reason(error)) from error


@contextlib.contextmanager
def writing_output(folder: Path, reserve: int) -> Iterator[None]:
    """Has an error of the block that is the folder's told as such: that it cannot be written to, or that its disk is
    full. Where no other file could be made there either, ``data["output"]`` names the folder. ``reserve``: bytes that
    stay free there."""
    try:
        yield
    except EntrepotError as error:
        told = _of_folder(error, folder, reserve)
        if told is None:
            raise
        raise told from error


def _of_folder(error: EntrepotError, folder: Path, reserve: int) -> EntrepotError | None:
    place = error.data.get("path")
    if not isinstance(place, str) or folder not in {Path(place), Path(place).parent}:
        return None
    if error.kind == "disk-full":
        needed, free = (_number(error, name) for name in ("needed", "free"))
        full = disk_full(folder, needed, free, reserve, output=True)
        if needed is None or free is None or free <= reserve:
            full.data = {**full.data, "output": str(folder)}
        return full
    if error.kind == "unreadable" and (_HIDDEN.fullmatch(Path(place).name) or not os.access(folder, os.W_OK)):
        return _unwritable(folder, _reason(error))
    return None


def _number(error: EntrepotError, name: str) -> int | None:
    value = error.data.get(name)
    return value if isinstance(value, int) else None


def _unwritable(folder: Path, reason: str) -> Denied:
    return Denied(
        f"the folder {folder} cannot be written to: {reason}",
        kind="denied",
        hint="Choose another one (--output), or have this one opened to you. What was fetched is kept.",
        path=str(folder),
        output=str(folder),
    )


def _reason(error: EntrepotError) -> str:
    """What the system said."""
    cause = error.__cause__
    return (cause.strerror or "" if isinstance(cause, OSError) else "").lower() or "the system refuses it"


def _is_read_only(folder: Path) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return False
