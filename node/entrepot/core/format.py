"""The object format, version 1: a bucket object that proves itself to whoever knows the stream id.

    header || stored miniblocks, back to back

    offset  bytes  field (numbers are unsigned and big-endian)
         0      8  magic 89 45 4e 54 52 50 54 0a
         8      1  format version, 1
         9      1  codec, 0 = none, 1 = zstd
        10      1  log2 of the miniblock size in bytes
        11      1  log2 of the miniblocks per object; ff = the whole stream
        12      4  zero
        16     32  stream id
        48      8  length of the stream in bytes
        56     32  root
        88      4  object number
        92      4  miniblock count
        96    36n  per miniblock: stored length (4), node of the plain bytes (32)
     then     32p  audit path, bottom up

For one stream, lock and number exactly one header is valid with codec none; with zstd the stored lengths are free
between one byte and the plain length, which means that the miniblock is stored plain. ``docs/format.md`` says the same
for other implementations.
"""

from __future__ import annotations

import struct
from collections.abc import Buffer, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from entrepot.core.codec import CODECS, unpack
from entrepot.core.errors import Corrupt, InvalidInput
from entrepot.core.geometry import FIXED_HEADER_LENGTH, HEADER_ENTRY_LENGTH, Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import NODE_LENGTH, AuditPaths, node_of, object_proves

MAGIC: Final = b"\x89ENTRPT\n"
VERSION: Final = 1
WHOLE_STREAM: Final = 0xFF

_FIXED: Final = struct.Struct(">8sBBBB4x32sQ32sII")
_LEAD: Final = struct.Struct(">8sBBBB4s32s")
_ENTRY: Final = struct.Struct(">I32s")


@dataclass(frozen=True, slots=True)
class Header:
    """A verified header: every field is proved by the stream id and fits the lock.

    ``stored_lengths`` and ``nodes`` have one item per miniblock of this object; ``path`` is the audit path,
    bottom up. Sizes in bytes.
    """

    codec: str
    miniblock: int
    #: Size of an object as the lock has it; 0 = the whole stream.
    object: int
    stream: StreamId
    opening: Opening
    number: int
    stored_lengths: tuple[int, ...]
    nodes: tuple[bytes, ...]
    path: tuple[bytes, ...]
    geometry: Geometry
    #: Where each stored miniblock begins in the object, and where the last one ends.
    offsets: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes of the header itself."""
        return self.offsets[0]

    @property
    def object_length(self) -> int:
        """Bytes of the whole object."""
        return self.offsets[-1]

    def miniblock_span(self, index: int) -> tuple[int, int]:
        """``(offset in the object, stored length)`` of the object's ``index``-th miniblock, from zero."""
        _check_index(self, index)
        return self.offsets[index], self.stored_lengths[index]

    def plain_span(self, index: int) -> tuple[int, int]:
        """``(offset in the stream, length)`` of the plain bytes of the object's ``index``-th miniblock."""
        _check_index(self, index)
        return self.geometry.miniblock_span(self.number * self.geometry.miniblocks_per_object + index)


def header_length(length: int, number: int, lock: SchemaLock) -> int:
    """Bytes of the header of object ``number`` of a stream of ``length`` bytes: what to ask for first."""
    return Geometry(length, lock).header_length(number)


def encode_header(
    stream: StreamId,
    opening: Opening,
    lock: SchemaLock,
    number: int,
    nodes_of_stream: Buffer,
    *,
    paths: AuditPaths | None = None,
    stored_lengths: Sequence[int] | None = None,
) -> bytes:
    """The header of object ``number`` with its miniblocks stored in so many bytes each (None: plain).

    ``nodes_of_stream`` are all miniblock nodes as :class:`~entrepot.core.merkle.StreamHasher` gives them. To
    make many objects of one stream, build ``paths`` once from them. Raises :class:`InvalidInput` for a number
    the stream does not have, stored lengths that the codec cannot give, or a kind without objects
    (``unsupported``), and :class:`Corrupt` if the opening is not the stream's or the nodes do not lead to its root.
    """
    _check_kind(stream)
    if not opening.proves(stream):
        raise Corrupt("the opening is not this stream's", stream=stream.hex)
    geometry = Geometry(opening.length, lock)
    indices = geometry.miniblocks_of(number)
    raw = memoryview(nodes_of_stream).cast("B")
    if len(raw) != geometry.miniblock_count * NODE_LENGTH:
        raise Corrupt("the nodes are not as many as the stream has miniblocks", stream=stream.hex)
    if paths is None:
        paths = AuditPaths(raw, geometry)
    path = paths.path(number)
    nodes = tuple(bytes(raw[i * NODE_LENGTH : (i + 1) * NODE_LENGTH]) for i in indices)
    object_proves(opening.root, geometry, number, nodes, path)
    parts = [_fixed(stream, opening, lock, number, len(indices))]
    parts += [
        _ENTRY.pack(stored, node)
        for stored, node in zip(_checked_lengths(geometry, number, stored_lengths), nodes, strict=True)
    ]
    return b"".join((*parts, *path))


def with_stored_lengths(header: Header, stored_lengths: Sequence[int] | None) -> bytes:
    """The header of the same object with its miniblocks stored in other lengths (None: plain): for who has it from
    another holder, whose compression need not be ours. Raises :class:`InvalidInput` as :func:`encode_header`."""
    lengths = _checked_lengths(header.geometry, header.number, stored_lengths)
    fixed = _fixed(header.stream, header.opening, header.geometry.lock, header.number, len(lengths))
    entries = [_ENTRY.pack(stored, node) for stored, node in zip(lengths, header.nodes, strict=True)]
    return b"".join((fixed, *entries, *header.path))


def decode_opening(data: Buffer, *, stream: StreamId, lock: SchemaLock, number: int) -> Opening:
    """The opening in the first 96 bytes of an object, proved by the stream id.

    For a reader who knows nothing but the id: with the opening it knows how long the header and the object
    are. Raises :class:`Corrupt` (``corrupt-object``).
    """
    _check_kind(stream)
    fixed = bytes(data)
    if len(fixed) != FIXED_HEADER_LENGTH:
        raise _corrupt(f"an object begins with {FIXED_HEADER_LENGTH} fixed bytes", stream, number)
    magic, version, codec, miniblock, per_object, reserved, named = _LEAD.unpack_from(fixed)
    if magic != MAGIC:
        raise _corrupt("not an entrepot object", stream, number)
    if version != VERSION:
        raise _corrupt(f"object format version {version} is not the lock's", stream, number)
    if codec != CODECS[lock.codec]:
        raise _corrupt(f"codec {codec} is not the lock's", stream, number)
    if (miniblock, per_object) != _sizes(lock):
        raise _corrupt("the sizes of miniblock and object are not the lock's", stream, number)
    if reserved != bytes(4):
        raise _corrupt("the reserved bytes are not zero", stream, number)
    if named != stream.raw:
        raise _corrupt("the object belongs to another stream", stream, number)
    try:
        opening = Opening.decode(fixed[48:88])
        proved = opening.proves(stream)
        geometry = Geometry(opening.length, lock)
    except InvalidInput as error:
        raise _corrupt(f"impossible length or root: {error}", stream, number) from None
    if not proved:
        raise _corrupt("length and root are not the stream's", stream, number)
    if not 0 <= number < geometry.object_count:
        raise _corrupt(f"the stream has {geometry.object_count} objects", stream, number)
    if fixed != _fixed(stream, opening, lock, number, len(geometry.miniblocks_of(number))):
        raise _corrupt("the object has another number or count of miniblocks", stream, number)
    return opening


def decode_header(
    data: Buffer, *, stream: StreamId, lock: SchemaLock, number: int, opening: Opening | None = None
) -> Header:
    """The header in ``data``, which holds exactly its bytes: every bit of it checked.

    If ``opening`` is given it must be the header's. Raises :class:`Corrupt` (``corrupt-object``) for anything
    but a valid header of this stream, lock and number.
    """
    raw = bytes(data)
    found = decode_opening(raw[:FIXED_HEADER_LENGTH], stream=stream, lock=lock, number=number)
    if opening is not None and opening != found:
        raise _corrupt("length and root are not the expected ones", stream, number)
    geometry = Geometry(found.length, lock)
    expected = geometry.header_length(number)
    if len(raw) != expected:
        raise _corrupt(f"the header has {len(raw)} bytes instead of {expected}", stream, number)
    indices = geometry.miniblocks_of(number)
    table_end = FIXED_HEADER_LENGTH + HEADER_ENTRY_LENGTH * len(indices)
    lengths: list[int] = []
    nodes: list[bytes] = []
    for stored, node in _ENTRY.iter_unpack(raw[FIXED_HEADER_LENGTH:table_end]):
        lengths.append(stored)
        nodes.append(node)
    if not _fitting(geometry, indices, lengths):
        raise _corrupt("a stored length is not the miniblock's", stream, number)
    path = tuple(raw[at : at + NODE_LENGTH] for at in range(table_end, expected, NODE_LENGTH))
    try:
        object_proves(found.root, geometry, number, tuple(nodes), path)
    except Corrupt as error:
        raise _corrupt(error.message, stream, number) from None
    return Header(
        codec=lock.codec,
        miniblock=lock.miniblock,
        object=lock.object,
        stream=stream,
        opening=found,
        number=number,
        stored_lengths=tuple(lengths),
        nodes=tuple(nodes),
        path=path,
        geometry=geometry,
        offsets=tuple(accumulate(lengths, initial=expected)),
    )


def verify_miniblock(header: Header, index: int, data: Buffer) -> None:
    """Checks the plain bytes of the object's ``index``-th miniblock against its node.

    Raises :class:`Corrupt` (``corrupt-object``) if a single bit differs, :class:`InvalidInput` if the object
    has no such miniblock. Pure: separate miniblocks may be verified in separate threads.
    """
    _check_index(header, index)
    view, length = memoryview(data).cast("B"), header.plain_span(index)[1]
    if len(view) != length:
        raise _corrupt(f"miniblock {index} has {len(view)} bytes instead of {length}", header.stream, header.number)
    if node_of(view, header.geometry.miniblock_level) != header.nodes[index]:
        raise _corrupt(f"the bytes of miniblock {index} are not the stream's", header.stream, header.number)


def unpack_miniblock(header: Header, index: int, stored: Buffer) -> memoryview | bytes:
    """The plain bytes of the object's ``index``-th miniblock, of the length they must have but not verified yet, out
    of its stored ones: those themselves where it is stored plain.

    Raises :class:`Corrupt` (``corrupt-object``), :class:`InvalidInput` if the object has no such miniblock.
    """
    _check_index(header, index)
    length, view = header.plain_span(index)[1], memoryview(stored).cast("B")
    if len(view) != header.stored_lengths[index]:
        raise _corrupt(
            f"miniblock {index} is stored in {len(view)} bytes instead of {header.stored_lengths[index]}",
            header.stream,
            header.number,
        )
    if len(view) == length:
        return view
    try:
        return unpack(view, length)
    except Corrupt as error:
        raise _corrupt(f"miniblock {index}: {error.message}", header.stream, header.number) from None


def verify_object(
    data: Buffer, *, stream: StreamId, lock: SchemaLock, number: int, opening: Opening | None = None
) -> Header:
    """Checks a whole object of exactly its length: the header, then every miniblock.

    With codec ``none`` the plain bytes are then ``data[header.length:]``. Raises :class:`Corrupt`
    (``corrupt-object``).
    """
    view = memoryview(data).cast("B")
    found = decode_opening(view[:FIXED_HEADER_LENGTH], stream=stream, lock=lock, number=number)
    possible = Geometry(found.length, lock).object_lengths(number)
    if len(view) not in possible:
        raise _corrupt(f"the object has {len(view)} bytes instead of {possible[-1]}", stream, number)
    head = view[: header_length(found.length, number, lock)]
    header = decode_header(head, stream=stream, lock=lock, number=number, opening=opening)
    if len(view) != header.object_length:
        raise _corrupt(f"the object has {len(view)} bytes instead of {header.object_length}", stream, number)
    for index in range(len(header.nodes)):
        offset, stored = header.miniblock_span(index)
        verify_miniblock(header, index, unpack_miniblock(header, index, view[offset : offset + stored]))
    return header


def _fitting(geometry: Geometry, indices: range, lengths: Sequence[int]) -> bool:
    """Whether these miniblocks can be stored in so many bytes each."""
    plain = [geometry.miniblock_span(index)[1] for index in indices]
    if geometry.lock.codec == "none":
        return plain == list(lengths)
    return len(plain) == len(lengths) and all(0 < stored <= most for stored, most in zip(lengths, plain, strict=True))


def _checked_lengths(geometry: Geometry, number: int, lengths: Sequence[int] | None) -> Sequence[int]:
    indices = geometry.miniblocks_of(number)
    if lengths is None:
        return [geometry.miniblock_span(index)[1] for index in indices]
    if not _fitting(geometry, indices, lengths):
        raise InvalidInput("the codec does not store these miniblocks in so many bytes")
    return lengths


def _sizes(lock: SchemaLock) -> tuple[int, int]:
    levels = lock.object_levels
    return lock.miniblock.bit_length() - 1, WHOLE_STREAM if levels is None else levels


def _fixed(stream: StreamId, opening: Opening, lock: SchemaLock, number: int, count: int) -> bytes:
    miniblock, per_object = _sizes(lock)
    codec = CODECS[lock.codec]
    return _FIXED.pack(
        MAGIC, VERSION, codec, miniblock, per_object, stream.raw, opening.length, opening.root, number, count
    )


def _check_kind(stream: StreamId) -> None:
    if not stream.kind.has_opening:
        raise InvalidInput(f"a {stream.kind.name.lower()} has no objects in this version", kind="unsupported")


def _check_index(header: Header, index: int) -> None:
    if not 0 <= index < len(header.nodes):
        raise InvalidInput(f"the object has {len(header.nodes)} miniblocks, there is no number {index}")


def _corrupt(message: str, stream: StreamId, number: int) -> Corrupt:
    return Corrupt(
        f"object {number} of {stream.hex} does not verify: {message}",
        kind="corrupt-object",
        stream=stream.hex,
        number=number,
    )
