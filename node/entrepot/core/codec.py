"""What miniblocks are stored as: plain, or as one Zstandard frame where that pays.

A miniblock that does not become more than 5 % smaller is stored as it is. Whoever reads one trusts nothing that a frame
says of itself: it is unpacked into the plain length, which the stream id proves, and not one byte more.
"""

from __future__ import annotations

from collections.abc import Buffer
from typing import Final

import zstandard

from entrepot.core.errors import Corrupt

#: The codecs of schema locks, and their numbers in headers.
CODECS: Final = {"none": 0, "zstd": 1}

#: Ratio against CPU, in miniblocks of 1 MiB: level 1 leaves 10 % more of text and a third more of integers, level 5
#: takes twice the time of level 3 for some 5 % less.
LEVEL: Final = 3
#: Bytes of each of the two samples that say whether it is worth trying.
SAMPLE: Final = 16384

_SAMPLE_LEVEL: Final = 1
_FRAME: Final = b"\x28\xb5\x2f\xfd"
#: Where a frame's descriptor is, and what of it is zero here: all but the form of the content's size.
_DESCRIPTOR: Final = 4
_UNUSED: Final = 0b0001_1111


def pays(stored: int, plain: int) -> bool:
    """Whether ``stored`` bytes instead of ``plain`` save more than 5 %."""
    return stored * 20 < plain * 19


def samples(length: int) -> tuple[int, ...]:
    """Where in a miniblock of ``length`` bytes its samples begin; none for one that is tried without."""
    return (0, length // 2) if length > 4 * SAMPLE else ()


class Packer:
    """Packs miniblocks. Not for two threads at once."""

    def __init__(self) -> None:
        self._packing = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)
        self._sampling = zstandard.ZstdCompressor(level=_SAMPLE_LEVEL, write_checksum=False)

    def promising(self, sample: Buffer) -> bool:
        """Whether a sample becomes at least 3 % smaller: random bytes never do, and cost next to nothing."""
        view = memoryview(sample)
        return len(self._sampling.compress(view)) * 32 <= view.nbytes * 31

    def pack(self, plain: Buffer) -> bytes | None:
        """The miniblock as it is stored, None where it is to be stored plain."""
        view = memoryview(plain)
        packed = self._packing.compress(view)
        return packed if pays(len(packed), view.nbytes) else None


def unpack(stored: Buffer, length: int) -> bytes:
    """The ``length`` plain bytes of a packed miniblock: of exactly one frame that says it holds so many, names no
    dictionary, has no checksum, and is followed by nothing.

    No more memory than ``length`` is taken for them, whatever the frame says. Raises :class:`Corrupt`.
    """
    view = memoryview(stored).cast("B")
    if bytes(view[:4]) != _FRAME:
        raise Corrupt("it is no Zstandard frame")
    try:
        said = zstandard.get_frame_parameters(view)
        if view[_DESCRIPTOR] & _UNUSED:
            raise Corrupt("its frame has a dictionary, a checksum or reserved bits")
        if said.content_size != length:
            raise Corrupt("its frame says another length")
        plain = zstandard.ZstdDecompressor().decompress(view, max_output_size=length, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise Corrupt(f"its frame does not unpack: {error}") from None
    if len(plain) != length:
        raise Corrupt("its frame holds another length than it says")
    return plain
