"""Objects as they are stored with a codec: packed once, into a file without a name that a kill takes along. Blocks."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from entrepot.adapters.files import require_space, translated, write_at
from entrepot.core.codec import SAMPLE, Packer, samples
from entrepot.core.geometry import Geometry

#: Fills a buffer with the stream's bytes from an offset, or raises.
type Read = Callable[[memoryview, int], None]

_OPEN_FILES: Final = "/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"


class Spool:
    """A file on the store's disk that no folder names: it is gone when it is released, or when the process ends."""

    def __init__(self, folder: Path) -> None:
        with translated(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as made:
            self.descriptor = os.dup(made.fileno())
        self._close = weakref.finalize(self, os.close, self.descriptor)

    @property
    def path(self) -> Path:
        """What this process may open it by, until it is released."""
        return Path(_OPEN_FILES, str(self.descriptor))

    def release(self) -> None:
        """Lets the bytes go; who has opened the file keeps them as long. May be called again."""
        self._close()


@dataclass(frozen=True, slots=True)
class Packed:
    """The stored miniblocks of one object, back to back in ``spool``, and how many bytes each has."""

    stored_lengths: tuple[int, ...]
    spool: Spool


def pack_object(geometry: Geometry, number: int, read: Read, folder: Path, reserve: int) -> Packed | None:
    """Object ``number`` packed into a spool in ``folder``; None, and hardly read, where all of it is stored plain.

    One miniblock is in memory at a time. Raises ``disk-full`` rather than leave less than ``reserve`` bytes free, and
    what ``read`` raises.
    """
    first, plain_length = geometry.object_span(number)
    packer, spool, end = Packer(), None, 0
    lengths: list[int] = []
    whole = memoryview(b"")
    for index in geometry.miniblocks_of(number):
        offset, length = geometry.miniblock_span(index)
        packed = None
        if _promising(packer, offset, length, read):
            whole = _filled(whole, offset, length, read)
            packed = packer.pack(whole[:length])
        if packed is not None and spool is None:
            require_space(folder, plain_length, reserve)
            spool = Spool(folder)
            for before, size in map(geometry.miniblock_span, geometry.miniblocks_of(number)[: len(lengths)]):
                whole = _filled(whole, before, size, read)
                write_at(spool.descriptor, whole[:size], before - first, folder)
            end = offset - first
        if spool is not None:
            if packed is None:
                whole = _filled(whole, offset, length, read)
            stored = whole[:length] if packed is None else packed
            write_at(spool.descriptor, stored, end, folder)
            end += len(stored)
        lengths.append(length if packed is None else len(packed))
    return None if spool is None else Packed(tuple(lengths), spool)


def _promising(packer: Packer, offset: int, length: int, read: Read) -> bool:
    """Whether a look at parts of the miniblock says that packing it may pay."""
    starts = samples(length)
    if not starts:
        return True
    sample = memoryview(bytearray(SAMPLE))
    for start in starts:
        read(sample, offset + start)
        if packer.promising(sample):
            return True
    return False


def _filled(buffer: memoryview, offset: int, length: int, read: Read) -> memoryview:
    """A buffer that begins with these bytes: ``buffer`` if it is large enough."""
    if len(buffer) < length:
        buffer = memoryview(bytearray(length))
    read(buffer[:length], offset)
    return buffer
