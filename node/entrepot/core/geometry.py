"""Where a stream's miniblocks and objects begin and end: pure functions of its length and the schema lock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from entrepot.core.errors import InvalidInput
from entrepot.core.lock import MAX_MINIBLOCKS_PER_OBJECT, SchemaLock
from entrepot.core.merkle import NODE_LENGTH, depth

#: Bytes of an object's header before its table of miniblocks.
FIXED_HEADER_LENGTH: Final = 96
#: Bytes of one row of that table: stored length and node.
HEADER_ENTRY_LENGTH: Final = 4 + NODE_LENGTH
#: Objects are numbered 0 to 0xfffffffe; 0xffffffff is the index.
MAX_OBJECTS: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Geometry:
    """The partition of ``length`` bytes into miniblocks and objects under ``lock``.

    Offsets and lengths are in bytes, spans are ``(offset, length)`` of plain bytes in the stream, numbers
    count from zero. A stream of length zero has no miniblocks and no objects. Raises :class:`InvalidInput`
    (``unsupported``) for a stream that the lock cannot hold: more than 2^32 - 1 objects, or more than 2^20
    miniblocks in one; and (``invalid-input``) for numbers and ranges outside the stream.
    """

    length: int
    lock: SchemaLock
    #: D, the level of the root.
    depth: int = field(init=False, repr=False, compare=False)
    #: min(m, D), the level of the miniblocks' nodes.
    miniblock_level: int = field(init=False, repr=False, compare=False)
    #: min(m + o, D), the level of the objects' nodes.
    object_level: int = field(init=False, repr=False, compare=False)
    miniblock_count: int = field(init=False, repr=False, compare=False)
    object_count: int = field(init=False, repr=False, compare=False)
    #: Miniblocks in every object but the last; for a whole-stream object, all of them.
    miniblocks_per_object: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        top = depth(self.length)
        m, o = self.lock.level, self.lock.object_levels
        count = -(-self.length // self.lock.miniblock)
        if o is None:
            if count > MAX_MINIBLOCKS_PER_OBJECT:
                raise InvalidInput(
                    f"a stream of {self.length} bytes has too many miniblocks for one object",
                    kind="unsupported",
                    hint="Use a channel with larger miniblocks or with objects of a fixed size",
                )
            per_object, objects = max(count, 1), min(count, 1)
        else:
            per_object = 1 << o
            objects = -(-count // per_object)
            if objects > MAX_OBJECTS:
                raise InvalidInput(
                    f"a stream of {self.length} bytes has too many objects",
                    kind="unsupported",
                    hint="Use a channel with larger objects",
                )
        values = {
            "depth": top,
            "miniblock_level": min(m, top),
            "object_level": top if o is None else min(m + o, top),
            "miniblock_count": count,
            "object_count": objects,
            "miniblocks_per_object": per_object,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def miniblock_span(self, index: int) -> tuple[int, int]:
        """Miniblock ``index`` of the stream."""
        if not 0 <= index < self.miniblock_count:
            raise InvalidInput(f"the stream has {self.miniblock_count} miniblocks, there is no number {index}")
        offset = index * self.lock.miniblock
        return offset, min(self.lock.miniblock, self.length - offset)

    def object_span(self, number: int) -> tuple[int, int]:
        """The plain bytes that object ``number`` holds."""
        if not 0 <= number < self.object_count:
            raise InvalidInput(f"the stream has {self.object_count} objects, there is no number {number}")
        size = self.miniblocks_per_object * self.lock.miniblock
        offset = number * size
        return offset, min(size, self.length - offset)

    def miniblocks_of(self, number: int) -> range:
        """The stream's miniblocks that object ``number`` holds."""
        self.object_span(number)
        first = number * self.miniblocks_per_object
        return range(first, min(first + self.miniblocks_per_object, self.miniblock_count))

    def object_of_miniblock(self, index: int) -> int:
        """The number of the object that holds miniblock ``index`` of the stream."""
        self.miniblock_span(index)
        return index // self.miniblocks_per_object

    def miniblocks_of_range(self, offset: int, length: int) -> range:
        """The miniblocks that hold the ``length`` bytes at ``offset``; none for no bytes."""
        return self._units(offset, length, self.lock.miniblock)

    def objects_of_range(self, offset: int, length: int) -> range:
        """The objects that hold the ``length`` bytes at ``offset``; none for no bytes."""
        return self._units(offset, length, self.miniblocks_per_object * self.lock.miniblock)

    def path_length(self, number: int) -> int:
        """Nodes in the audit path of object ``number``; the same for all objects of a stream."""
        self.object_span(number)
        return self.depth - self.object_level

    def header_length(self, number: int) -> int:
        """Bytes of object ``number`` before its stored miniblocks."""
        return (
            FIXED_HEADER_LENGTH
            + HEADER_ENTRY_LENGTH * len(self.miniblocks_of(number))
            + NODE_LENGTH * (self.depth - self.object_level)
        )

    def object_length(self, number: int) -> int:
        """Bytes of object ``number`` in the bucket: exactly with codec ``none``, at most with any other."""
        return self.header_length(number) + self.object_span(number)[1]

    def object_lengths(self, number: int) -> range:
        """How many bytes object ``number`` can have in the bucket: one length with codec ``none``; with any other at
        least one byte for each miniblock, at most all plain bytes."""
        most = self.object_length(number)
        if self.lock.codec == "none":
            return range(most, most + 1)
        return range(self.header_length(number) + len(self.miniblocks_of(number)), most + 1)

    def _units(self, offset: int, length: int, size: int) -> range:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise InvalidInput(
                f"{length} bytes at {offset} do not lie in a stream of {self.length} bytes",
                offset=offset,
                length=length,
            )
        if length == 0:
            return range(0)
        return range(offset // size, (offset + length - 1) // size + 1)
