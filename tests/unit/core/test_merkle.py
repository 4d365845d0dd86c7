"""The Merkle tree, held against an independent implementation of BEP 52."""

from __future__ import annotations

import random
from hashlib import sha256
from itertools import pairwise

import pytest

from entrepot.core.errors import Corrupt, InvalidInput
from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import (
    LEAF,
    MAX_LENGTH,
    AuditPaths,
    StreamHasher,
    audit_path,
    depth,
    fold_path,
    from_nodes,
    node_of,
    object_proves,
    zero_node,
)

MIB = 1 << 20
LENGTHS = [
    1,
    2,
    16383,
    16384,
    16385,
    32768,
    49152,
    65535,
    65536,
    65537,
    MIB - 1,
    MIB,
    MIB + 1,
    5 * MIB // 2,
    3000001,
]


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def hashed(data: bytes, level: int, step: int = MIB):
    hasher = StreamHasher(level)
    for at in range(0, len(data), step):
        hasher.update(data[at : at + step])
    return hasher.finish()


@pytest.mark.parametrize("length", [*LENGTHS, *random.Random(52).sample(range(1, 2 * MIB), 12)])
def test_the_root_is_bep52s(tmp_path, length) -> None:
    """The root is what libtorrent calls the pieces root of a version 2 torrent."""
    libtorrent = pytest.importorskip("libtorrent", reason="libtorrent has no wheel for this Python")
    data = noise(length, length)
    (tmp_path / "file").write_bytes(data)
    torrent = libtorrent.create_torrent(
        libtorrent.list_files(str(tmp_path / "file")), 16384, libtorrent.create_torrent.v2_only
    )
    libtorrent.set_piece_hashes(torrent, str(tmp_path))
    root = torrent.generate()[b"info"][b"file tree"][b"file"][b""][b"pieces root"]
    for level in (0, 2, 6):
        assert hashed(data, level).opening.root == root


def test_the_tree_by_its_definition() -> None:
    """Root and nodes equal those of the padded tree written out naively."""
    for length in (0, 1, LEAF, LEAF + 1, 3 * LEAF, 5 * LEAF - 1, 8 * LEAF, 11 * LEAF + 7):
        data = noise(length)
        row = [sha256(data[at : at + LEAF]).digest() for at in range(0, length, LEAF)]
        row += [bytes(32)] * (2 ** depth(length) - len(row))
        for level in range(depth(length) + 1):
            count = -(-length // (LEAF << level))
            assert hashed(data, level).nodes == b"".join(row[:count])
            assert row[count:] == [zero_node(level)] * (len(row) - count)
            if len(row) > 1:
                row = [sha256(left + right).digest() for left, right in list(pairwise(row))[::2]]
        assert hashed(data, 6).opening.root == row[0]


def test_depth() -> None:
    """The depth grows by one as soon as a power of two of leaves is exceeded."""
    assert [depth(n) for n in (0, 1, LEAF, LEAF + 1, 2 * LEAF, 2 * LEAF + 1, 4 * LEAF, 4 * LEAF + 1)] == [
        *(0, 0, 0, 1, 1, 2, 2, 3)
    ]
    assert depth(MAX_LENGTH) == 49
    for impossible in (-1, MAX_LENGTH + 1):
        with pytest.raises(InvalidInput):
            depth(impossible)


@pytest.mark.parametrize("step", [1000, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF, 100_000, MIB])
def test_the_size_of_the_pieces_does_not_matter(step) -> None:
    """A stream fed in pieces of any size has the same opening and nodes."""
    data = noise(700_001)
    for level in (0, 2, 6):
        assert hashed(data, level, step) == hashed(data, level)


def test_finish_changes_nothing() -> None:
    """The result so far can be had at any time; hashing goes on after it."""
    data = noise(200_000)
    hasher = StreamHasher(1, sha256=True)
    hasher.update(data[:77_777])
    early = hasher.finish()
    assert early.opening == hashed(data[:77_777], 1).opening
    hasher.update(data[77_777:])
    assert hasher.finish() == hasher.finish()
    assert hasher.finish().opening == hashed(data, 1).opening
    assert hasher.finish().sha256 == sha256(data).digest()
    assert hasher.length == 200_000


def test_other_buffers() -> None:
    """Byte arrays, memory views of other items and sliced views are hashed as their bytes."""
    data = noise(64_000)
    expected = hashed(data, 1)
    for buffer in (bytearray(data), memoryview(data).cast("I"), memoryview(b"x" + data + b"x")[1:-1]):
        hasher = StreamHasher(1)
        hasher.update(buffer)
        assert hasher.finish() == expected


@pytest.mark.parametrize("level", [0, 1, 3])
def test_miniblocks_hashed_apart_give_the_same_stream(level) -> None:
    """Nodes of single miniblocks, in any order and joined, give the opening of one pass."""
    for length in (0, 1, LEAF, 5 * LEAF, 8 * LEAF, 20 * LEAF + 3):
        data = noise(length)
        whole = hashed(data, level)
        size = LEAF << level
        at = min(level, depth(length))
        nodes = b"".join(node_of(data[i : i + size], at) for i in range(0, length, size))
        assert nodes == whole.nodes
        assert from_nodes(length, nodes, level) == whole.opening


def test_a_node_covers_so_many_bytes_and_no_more() -> None:
    """A level's node takes 2^level leaves, no bytes give the padding node, a wrong count is refused."""
    assert node_of(b"", 3) == zero_node(3)
    with pytest.raises(InvalidInput):
        node_of(bytes(LEAF + 1), 0)
    with pytest.raises(InvalidInput):
        node_of(b"", 50)
    with pytest.raises(InvalidInput):
        from_nodes(LEAF + 1, bytes(32), 0)
    with pytest.raises(InvalidInput):
        StreamHasher(50)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 13])
@pytest.mark.parametrize("objects", [LEAF, 2 * LEAF, 4 * LEAF, 0])
def test_audit_paths_lead_to_the_root(count, objects) -> None:
    """Every object's path leads to the root; one flipped bit in it, or a nonzero padding, does not."""
    lock = SchemaLock("a", miniblock=LEAF, object=objects)
    found = hashed(noise(count * LEAF - 5), 0)
    geometry = Geometry(found.opening.length, lock)
    paths = AuditPaths(found.nodes, geometry)
    assert paths.root == found.opening.root
    for number in range(geometry.object_count):
        nodes = tuple(found.nodes[32 * i : 32 * i + 32] for i in geometry.miniblocks_of(number))
        path = paths.path(number)
        assert list(path) == audit_path(found.nodes, geometry, number)
        object_proves(found.opening.root, geometry, number, nodes, path)
        for at in range(len(path)):
            wrong = (*path[:at], bytes([path[at][0] ^ 1]) + path[at][1:], *path[at + 1 :])
            with pytest.raises(Corrupt):
                object_proves(found.opening.root, geometry, number, nodes, wrong)
        for other in (path[:-1], (*path, bytes(32))):
            if other != path:
                with pytest.raises(Corrupt):
                    object_proves(found.opening.root, geometry, number, nodes, other)
    with pytest.raises(InvalidInput):
        audit_path(found.nodes, geometry, geometry.object_count)


def test_garbage_padding_is_refused_even_if_it_leads_to_the_root() -> None:
    """A creator who pads with something else than Z makes a root of his own, which no object can prove."""
    geometry = Geometry(3 * LEAF, SchemaLock("a", miniblock=LEAF, object=LEAF))
    leaves = [bytes([n]) * 32 for n in range(3)]
    garbage = b"\xee" * 32
    left = sha256(leaves[0] + leaves[1]).digest()
    root = fold_path(leaves[2], 0, 2, (garbage, left))
    with pytest.raises(Corrupt, match="pads"):
        object_proves(root, geometry, 2, (leaves[2],), (garbage, left))


def test_the_empty_stream_has_no_paths() -> None:
    """Without a miniblock there is no node and no object, and the root is that of no bytes."""
    paths = AuditPaths(b"", Geometry(0, SchemaLock("a")))
    assert paths.root == bytes(32)
