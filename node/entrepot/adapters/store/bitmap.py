"""Which miniblocks of a stream are verified and on the disk: one bit each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

#: Miniblocks whose bits (and nodes) are kept in one row of the catalogue.
CHUNK: Final = 1024
_CHUNK_BYTES: Final = CHUNK // 8


class Bitmap:
    """``count`` bits, all clear at first. Not safe in several threads by itself."""

    __slots__ = ("_bits", "_set", "count")

    def __init__(self, count: int) -> None:
        self.count = count
        self._bits = bytearray(-(-count // 8))
        self._set = 0

    @property
    def set_count(self) -> int:
        """How many bits are set."""
        return self._set

    @property
    def full(self) -> bool:
        """Whether all bits are set."""
        return self._set == self.count

    def __contains__(self, index: int) -> bool:
        return bool(self._bits[index >> 3] & (1 << (index & 7)))

    def add(self, index: int) -> bool:
        """Sets a bit; False if it was set."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        mask = 1 << (index & 7)
        if self._bits[index >> 3] & mask:
            return False
        self._bits[index >> 3] |= mask
        self._set += 1
        return True

    def has_all(self, indices: range) -> bool:
        """Whether all these bits are set."""
        if self.full:
            return True
        return all(index in self for index in indices)

    def fill(self) -> None:
        """Sets all bits."""
        for index in self.missing():
            self.add(index)

    def missing(self, within: range | None = None) -> Iterator[int]:
        """The clear bits in ascending order."""
        for index in within if within is not None else range(self.count):
            if index not in self:
                yield index

    def merge(self, chunk: int, bits: bytes) -> None:
        """Sets the bits that a row of the catalogue has set."""
        start = chunk * _CHUNK_BYTES
        for at, new in enumerate(bits[: len(self._bits) - start], start):
            old = self._bits[at]
            if new & ~old:
                self._bits[at] = old | new
                self._set += (old | new).bit_count() - old.bit_count()

    @staticmethod
    def rows(indices: Iterable[int]) -> dict[int, bytearray]:
        """Bits as rows of the catalogue, by chunk."""
        rows: dict[int, bytearray] = {}
        for index in indices:
            chunk, at = divmod(index, CHUNK)
            row = rows.get(chunk)
            if row is None:
                row = rows[chunk] = bytearray(_CHUNK_BYTES)
            row[at >> 3] |= 1 << (at & 7)
        return rows


def join_bits(old: bytes, new: bytes) -> bytes:
    """The bits set in either row."""
    return (int.from_bytes(old, "little") | int.from_bytes(new, "little")).to_bytes(_CHUNK_BYTES, "little")


def without_bits(old: bytes, gone: bytes) -> bytes:
    """The row with the bits of ``gone`` cleared."""
    return (int.from_bytes(old, "little") & ~int.from_bytes(gone, "little")).to_bytes(_CHUNK_BYTES, "little")
