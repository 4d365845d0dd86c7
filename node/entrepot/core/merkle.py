"""The Merkle tree of a stream's bytes: BEP 52's ``pieces root``, computed as the bytes arrive.

SHA-256 over leaves of 16 KiB (the last may be short), a binary tree over L = ceil(length / 16 KiB) leaves
padded to 2^D, D = ceil(log2(max(L, 1))). Padding: Z_0 is 32 zero bytes, Z_(l+1) = SHA-256(Z_l || Z_l). A node
stands at *level* l when 2^l leaves lie below it. Source: BEP 52
(https://www.bittorrent.org/beps/bep_0052.html).

SHA-256 releases the interpreter lock on each leaf, so :func:`node_of` of separate miniblocks runs in parallel
threads; :func:`from_nodes` joins what they found.
"""

from __future__ import annotations

from collections.abc import Buffer
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from entrepot.core.errors import Corrupt, InvalidInput
from entrepot.core.identifiers import MAX_LENGTH as MAX_LENGTH  # noqa: PLC0414  # part of this module's names
from entrepot.core.identifiers import Opening

if TYPE_CHECKING:
    from entrepot.core.geometry import Geometry

LEAF: Final = 16384
NODE_LENGTH: Final = 32
#: The deepest tree: 2^63 - 1 bytes are 2^49 leaves.
MAX_LEVEL: Final = 49


def _zero_nodes() -> tuple[bytes, ...]:
    nodes = [bytes(NODE_LENGTH)]
    for _ in range(MAX_LEVEL):
        nodes.append(sha256(nodes[-1] + nodes[-1]).digest())
    return tuple(nodes)


_ZERO: Final = _zero_nodes()


def zero_node(level: int) -> bytes:
    """Z_level: the node of 2^level leaves that lie wholly past the end, for 0 <= level <= 49."""
    if not 0 <= level <= MAX_LEVEL:
        raise InvalidInput(f"a tree has levels 0 to {MAX_LEVEL}, not {level}")
    return _ZERO[level]


def leaf_count(length: int) -> int:
    """How many leaves ``length`` bytes have: ceil(length / 16 KiB)."""
    return -(-length // LEAF)


def depth(length: int) -> int:
    """D, the level of the root over ``length`` bytes."""
    if not 0 <= length <= MAX_LENGTH:
        raise InvalidInput("a stream's length lies between 0 and 2^63 - 1 bytes")
    return (max(leaf_count(length), 1) - 1).bit_length()


def fold(nodes: list[bytes], level: int, top: int) -> list[bytes]:
    """The nodes at level ``top`` over consecutive ``nodes`` at ``level``, padded on the right with Z."""
    for at in range(level, top):
        if len(nodes) & 1:
            nodes = [*nodes, _ZERO[at]]
        pairs = iter(nodes)
        nodes = [sha256(left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return nodes


def fold_path(node: bytes, level: int, position: int, path: tuple[bytes, ...]) -> bytes:
    """The root above ``node``, the ``position``-th at ``level``, by its siblings bottom up."""
    for sibling in path:
        node = sha256(sibling + node if position & 1 else node + sibling).digest()
        position >>= 1
    return node


def node_of(data: Buffer, level: int) -> bytes:
    """The Merkle node at ``level`` of at most 2^level leaves of plain bytes, padded with Z where they end
    early.

    For one miniblock of a stream, ``level`` is ``Geometry.miniblock_level``. Pure and safe in many threads.
    Raises :class:`InvalidInput` if ``data`` is longer than the level holds.
    """
    view = _flat(data)
    length = len(view)
    if length == 0:
        return zero_node(level)
    if not 0 <= level <= MAX_LEVEL or length > LEAF << level:
        raise InvalidInput(f"{length} bytes are more than a node at level {level} covers")
    hashed = sha256
    return fold([hashed(view[at : at + LEAF]).digest() for at in range(0, length, LEAF)], 0, level)[0]


def from_nodes(length: int, nodes: Buffer, level: int) -> Opening:
    """The opening of a stream from its miniblocks' nodes, back to back.

    ``level`` is log2(miniblock / 16 KiB); the nodes stand at min(level, D). Raises :class:`InvalidInput` when
    their number does not fit the length.
    """
    top = depth(length)
    split = _split(nodes, -(-length // (LEAF << level)))
    if not split:
        return Opening(0, _ZERO[0])
    return Opening(length, fold(split, min(level, top), top)[0])


@dataclass(frozen=True, slots=True)
class HashedStream:
    """What one pass over a stream's bytes gives.

    ``nodes`` holds 32 bytes per miniblock at level min(level, D), none for the empty stream. ``sha256`` is
    the plain digest of all bytes, if it was asked for.
    """

    opening: Opening
    nodes: bytes
    sha256: bytes | None = None


class StreamHasher:
    """Hashes a stream in one pass, in pieces of any size; fastest when they are multiples of 16 KiB.

    ``level`` is log2(miniblock / 16 KiB): which nodes are kept. Memory: 32 bytes per miniblock and one
    miniblock's leaf digests. One thread at a time.
    """

    def __init__(self, level: int, *, sha256: bool = False) -> None:
        if not 0 <= level <= MAX_LEVEL:
            raise InvalidInput(f"a tree has levels 0 to {MAX_LEVEL}, not {level}")
        self._level = level
        self._full = 1 << level
        self._length = 0
        self._tail = bytearray()
        self._leaves: list[bytes] = []
        self._nodes = bytearray()
        self._whole = _new_sha256() if sha256 else None

    @property
    def length(self) -> int:
        """Bytes hashed so far."""
        return self._length

    def update(self, buffer: Buffer) -> None:
        """Takes the next bytes. The buffer may be reused as soon as this returns."""
        view = _flat(buffer)
        end = len(view)
        if end > MAX_LENGTH - self._length:
            raise InvalidInput("a stream has at most 2^63 - 1 bytes")
        self._length += end
        if self._whole is not None:
            self._whole.update(view)
        start = 0
        if self._tail:
            start = min(LEAF - len(self._tail), end)
            self._tail += view[:start]
            if len(self._tail) < LEAF:
                return
            self._leaves.append(sha256(self._tail).digest())
            self._tail = bytearray()
            self._close_miniblock()
        stop = end - (end - start) % LEAF
        hashed = sha256
        while start < stop:
            until = min(start + (self._full - len(self._leaves)) * LEAF, stop)
            self._leaves += [hashed(view[at : at + LEAF]).digest() for at in range(start, until, LEAF)]
            self._close_miniblock()
            start = until
        if stop < end:
            self._tail += view[stop:]

    def finish(self) -> HashedStream:
        """The result for the bytes so far; changes nothing, so hashing may go on."""
        leaves = [*self._leaves, sha256(self._tail).digest()] if self._tail else self._leaves
        nodes = bytes(self._nodes)
        if leaves:
            nodes += fold(leaves, 0, min(self._level, depth(self._length)))[0]
        whole = None if self._whole is None else self._whole.digest()
        return HashedStream(from_nodes(self._length, nodes, self._level), nodes, whole)

    def _close_miniblock(self) -> None:
        if len(self._leaves) == self._full:
            self._nodes += fold(self._leaves, 0, self._level)[0]
            self._leaves = []


class AuditPaths:
    """The audit paths of every object of a stream, from its miniblocks' nodes.

    Building folds all nodes once; each :meth:`path` afterwards is a few slices. Keep one per stream being
    served. Memory: 64 bytes per object.
    """

    def __init__(self, nodes: Buffer, geometry: Geometry) -> None:
        split = _split(nodes, geometry.miniblock_count)
        self._bottom = geometry.object_level
        self._levels: list[list[bytes]] = []
        if not split:
            self.root = _ZERO[0]
            return
        row = fold(split, geometry.miniblock_level, geometry.object_level)
        for level in range(geometry.object_level, geometry.depth):
            self._levels.append(row)
            row = fold(row, level, level + 1)
        self.root = row[0]

    def path(self, number: int) -> tuple[bytes, ...]:
        """The siblings from object ``number``'s subtree to the root, bottom up."""
        siblings = []
        for above, row in enumerate(self._levels):
            at = (number >> above) ^ 1
            siblings.append(row[at] if at < len(row) else _ZERO[self._bottom + above])
        return tuple(siblings)


def audit_path(nodes: Buffer, geometry: Geometry, number: int) -> list[bytes]:
    """The audit path of one object; for many objects of one stream keep an :class:`AuditPaths`."""
    geometry.object_span(number)  # refuses a number the stream does not have
    return list(AuditPaths(nodes, geometry).path(number))


def object_proves(
    root: bytes, geometry: Geometry, number: int, nodes: tuple[bytes, ...], path: tuple[bytes, ...]
) -> None:
    """Checks that an object's miniblock nodes and its audit path lead to ``root``.

    Also that each sibling wholly past the end is Z of its level, which the root alone does not show.
    Raises :class:`Corrupt` (``corrupt-object``).
    """
    if len(nodes) != len(geometry.miniblocks_of(number)) or len(path) != geometry.path_length(number):
        raise Corrupt("an object proves itself with another number of nodes", kind="corrupt-object")
    leaves = leaf_count(geometry.length)
    for level, sibling in enumerate(path, geometry.object_level):
        at = (number >> (level - geometry.object_level)) ^ 1
        if at << level >= leaves and sibling != _ZERO[level]:
            raise Corrupt("an object's audit path pads the stream with something else", kind="corrupt-object")
    subtree = fold(list(nodes), geometry.miniblock_level, geometry.object_level)[0]
    if fold_path(subtree, geometry.object_level, number, path) != root:
        raise Corrupt("an object's nodes do not lead to the stream's root", kind="corrupt-object")


_new_sha256 = sha256  # under a name that StreamHasher's option of the same word does not hide


def _flat(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view if view.ndim == 1 and view.format == "B" and view.contiguous else view.cast("B")


def _split(nodes: Buffer, count: int) -> list[bytes]:
    raw = bytes(nodes)
    if len(raw) != count * NODE_LENGTH:
        raise InvalidInput(f"{count} miniblocks have {count * NODE_LENGTH} bytes of nodes, not {len(raw)}")
    return [raw[at : at + NODE_LENGTH] for at in range(0, len(raw), NODE_LENGTH)]
