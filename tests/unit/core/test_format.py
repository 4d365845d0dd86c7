"""The object format: what verifies, and that nothing else does."""

from __future__ import annotations

import dataclasses
import struct
from hashlib import sha256

import pytest

from entrepot.core.errors import Corrupt, InvalidInput
from entrepot.core.format import (
    decode_header,
    decode_opening,
    encode_header,
    header_length,
    verify_miniblock,
    verify_object,
)
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId, StreamKind
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import LEAF, AuditPaths, StreamHasher, fold_path, zero_node

KIB = 1024
SMALL = SchemaLock("demo", miniblock=16 * KIB, object=64 * KIB)
PATTERN = bytes(i * 7 % 251 for i in range(251)) * 1100


@dataclasses.dataclass(frozen=True)
class Made:
    """A stream and all its objects."""

    data: bytes
    lock: SchemaLock
    stream: StreamId
    opening: Opening
    nodes: bytes
    objects: list[bytes]

    def verify(self, data: bytes, number: int = 0, **other):
        known = {"stream": self.stream, "lock": self.lock, "number": number, **other}
        return verify_object(data, **known)


def make(length: int, lock: SchemaLock = SMALL, kind: StreamKind = StreamKind.FILE) -> Made:
    data = PATTERN[:length]
    hasher = StreamHasher(lock.level)
    hasher.update(data)
    found = hasher.finish()
    stream = found.opening.stream_id(kind)
    geometry = Geometry(length, lock)
    paths = AuditPaths(found.nodes, geometry)
    objects = []
    for number in range(geometry.object_count):
        offset, size = geometry.object_span(number)
        header = encode_header(stream, found.opening, lock, number, found.nodes, paths=paths)
        objects.append(header + data[offset : offset + size])
    return Made(data, lock, stream, found.opening, found.nodes, objects)


def refused(call) -> None:
    with pytest.raises(Corrupt) as caught:
        call()
    assert caught.value.kind == "corrupt-object"


def golden_objects(vectors, data_folder):
    for golden in vectors["objects"]:
        known = {
            "stream": StreamId.parse(golden["stream"]),
            "lock": SchemaLock.parse(golden["lock"]),
            "number": golden["number"],
        }
        yield golden, (data_folder / golden["file"]).read_bytes(), known


def test_every_flipped_bit_of_every_golden_header_is_refused(vectors, data_folder) -> None:
    """Each single bit of a header matters, in all golden objects, whether the opening was known or not."""
    for golden, whole, known in golden_objects(vectors, data_folder):
        head = bytearray(whole[: golden["header_length"]])
        assert decode_header(head, **known).length == len(head)
        for bit in range(8 * len(head)):
            head[bit >> 3] ^= 1 << (bit & 7)
            with pytest.raises(Corrupt):
                decode_header(head, **known)
            head[bit >> 3] ^= 1 << (bit & 7)
        assert bytes(head) == whole[: len(head)]


def test_wrong_lengths_are_refused(vectors, data_folder) -> None:
    """A header or object with bytes missing or appended is refused, wherever it was cut."""
    for golden, whole, known in golden_objects(vectors, data_folder):
        head = whole[: golden["header_length"]]
        for size in range(len(head)):
            refused(lambda cut=head[:size], k=known: decode_header(cut, **k))
        refused(lambda more=head + b"\0", k=known: decode_header(more, **k))
        for size in (0, 95, 96, len(head) - 1, len(head), len(whole) - 1):
            refused(lambda cut=whole[:size], k=known: verify_object(cut, **k))
        refused(lambda more=whole + b"\0", k=known: verify_object(more, **k))


def test_flipped_payload_is_refused_in_its_miniblock_only() -> None:
    """A flipped bit spoils its miniblock; the others still verify."""
    made = make(140000)
    header = made.verify(made.objects[1], 1)
    for spoiled in range(4):
        offset, size = header.miniblock_span(spoiled)
        for at in (offset, offset + size // 2, offset + size - 1):
            wrong = bytearray(made.objects[1])
            wrong[at] ^= 0x10
            refused(lambda w=wrong: made.verify(w, 1))
            for index in range(4):
                start, stored = header.miniblock_span(index)
                part = memoryview(wrong)[start : start + stored]
                if index == spoiled:
                    refused(lambda i=index, p=part: verify_miniblock(header, i, p))
                else:
                    verify_miniblock(header, index, part)


def test_miniblocks_of_another_length_are_refused() -> None:
    """A miniblock that is cut, extended by zeros, or empty does not verify; an unknown one is a caller's error."""
    made = make(20000)
    header = made.verify(made.objects[0])
    last = made.data[16384:]
    verify_miniblock(header, 1, last)
    for wrong in (last[:-1], last + b"\0", b"", last + bytes(LEAF - len(last))):
        refused(lambda w=wrong: verify_miniblock(header, 1, w))
    for index in (-1, 2):
        for call in (lambda i=index: verify_miniblock(header, i, last), lambda i=index: header.miniblock_span(i)):
            with pytest.raises(InvalidInput):
                call()


def test_swapped_objects_and_miniblocks_are_refused() -> None:
    """An object is refused under another number, stream, kind, lock or opening, and with its miniblocks swapped."""
    made, other, tree = make(140000), make(139999), make(140000, kind=StreamKind.TREE)
    assert tree.objects[0] != made.objects[0]
    refused(lambda: made.verify(made.objects[0], 1))
    refused(lambda: made.verify(made.objects[1], 0))
    refused(lambda: made.verify(made.objects[0], 3))
    refused(lambda: made.verify(made.objects[0], -1))
    refused(lambda: made.verify(other.objects[0]))
    refused(lambda: made.verify(tree.objects[0]))
    refused(lambda: tree.verify(made.objects[0]))
    refused(lambda: made.verify(made.objects[0], opening=other.opening))
    for lock in (
        SchemaLock("demo"),
        SchemaLock("demo", miniblock=16 * KIB, object=128 * KIB),
        SchemaLock("demo", miniblock=32 * KIB, object=128 * KIB),
        SchemaLock("demo", miniblock=16 * KIB, object=0),
    ):
        refused(lambda lk=lock: made.verify(made.objects[0], lock=lk))
    whole = made.objects[0]
    (a, size), (b, _) = made.verify(whole).miniblock_span(0), made.verify(whole).miniblock_span(1)
    refused(lambda: made.verify(whole[:a] + whole[b : b + size] + whole[a:b] + whole[b + size :]))
    rows = [whole[96 + 36 * i : 132 + 36 * i] for i in range(4)]
    refused(lambda: made.verify(whole[:96] + rows[1] + rows[0] + rows[2] + rows[3] + whole[240:]))


def test_the_channel_is_not_in_an_object() -> None:
    """Two channels with the same sizes make the same bytes: an object is a function of content and sizes."""
    one, two = make(70000), make(70000, SchemaLock("lab7", miniblock=16 * KIB, object=64 * KIB))
    assert one.objects == two.objects
    assert one.lock.id != two.lock.id


def test_what_a_verified_header_says() -> None:
    """A header knows its sizes, where its miniblocks lie, and what they are in the stream."""
    made = make(140000)
    header = decode_header(made.objects[2][:196], stream=made.stream, lock=SMALL, number=2, opening=made.opening)
    assert (header.codec, header.miniblock, header.object, header.number) == ("none", 16 * KIB, 64 * KIB, 2)
    assert (header.stream, header.opening) == (made.stream, made.opening)
    assert (header.length, header.object_length) == (196, 196 + 8928)
    assert (header.stored_lengths, header.miniblock_span(0), header.plain_span(0)) == (
        *((8928,), (196, 8928), (131072, 8928)),
    )
    assert header.nodes == (made.nodes[-32:],)
    assert len(header.path) == 2
    first = made.verify(made.objects[0])
    assert [first.miniblock_span(i)[0] for i in range(4)] == [304 + 16384 * i for i in range(4)]


def test_a_reader_needs_only_the_id() -> None:
    """From the id and the first 96 bytes comes the opening, from the opening every length, before asking more."""
    made = make(140000)
    for number, whole in enumerate(made.objects):
        opening = decode_opening(whole[:96], stream=made.stream, lock=SMALL, number=number)
        assert opening == made.opening
        size = header_length(opening.length, number, SMALL)
        header = decode_header(whole[:size], stream=made.stream, lock=SMALL, number=number)
        assert header.object_length == len(whole)
    refused(lambda: decode_opening(made.objects[0][:97], stream=made.stream, lock=SMALL, number=0))


def test_an_empty_stream_has_no_object() -> None:
    """No header is made for the empty stream, and none is believed."""
    made = make(0)
    assert made.objects == []
    with pytest.raises(InvalidInput):
        encode_header(made.stream, made.opening, SMALL, 0, b"")
    fixed = struct.pack(">8sBBBB4x32sQ32sII", b"\x89ENTRPT\n", 1, 0, 14, 2, made.stream.raw, 0, made.opening.root, 0, 0)
    refused(lambda: made.verify(fixed))


def test_streams_without_objects_are_refused() -> None:
    """Feeds and results have no objects in this version: asking for one is the caller's error."""
    made = make(10)
    for kind in (StreamKind.FEED, StreamKind.RESULT):
        stream = StreamId(bytes([kind]) + made.stream.raw[1:])
        for call in (
            lambda s=stream: made.verify(made.objects[0], stream=s),
            lambda s=stream: encode_header(s, made.opening, SMALL, 0, made.nodes),
        ):
            with pytest.raises(InvalidInput) as caught:
                call()
            assert caught.value.kind == "unsupported"


def test_an_encoder_makes_no_header_that_would_not_verify() -> None:
    """Damaged nodes, too few of them, another stream's opening or paths, and absent numbers are refused."""
    made, other = make(140000), make(140001)
    spoiled = bytes([made.nodes[0] ^ 1]) + made.nodes[1:]
    for nodes in (spoiled, made.nodes[:-32], made.nodes + bytes(32), b""):
        with pytest.raises(Corrupt):
            encode_header(made.stream, made.opening, SMALL, 0, nodes)
    with pytest.raises(Corrupt):
        encode_header(made.stream, other.opening, SMALL, 0, made.nodes)
    paths = AuditPaths(other.nodes, Geometry(140001, SMALL))
    with pytest.raises(Corrupt):
        encode_header(made.stream, made.opening, SMALL, 0, made.nodes, paths=paths)
    for number in (-1, 3):
        with pytest.raises(InvalidInput):
            encode_header(made.stream, made.opening, SMALL, number, made.nodes)


def test_garbage_padding_of_a_creator_is_refused() -> None:
    """An object whose path leads to its creator's root over garbage past the end is refused all the same."""
    lock = SchemaLock("demo", miniblock=16 * KIB, object=16 * KIB)
    blocks = [PATTERN[i * LEAF : (i + 1) * LEAF] for i in range(3)]
    leaves = [sha256(block).digest() for block in blocks]
    left = sha256(leaves[0] + leaves[1]).digest()

    def third(padding: bytes) -> tuple[StreamId, bytes]:
        opening = Opening(3 * LEAF, fold_path(leaves[2], 0, 2, (padding, left)))
        stream = opening.stream_id()
        fixed = struct.pack(
            *(">8sBBBB4x32sQ32sII", b"\x89ENTRPT\n", 1, 0, 14, 0, stream.raw, opening.length, opening.root, 2, 1)
        )
        return stream, fixed + struct.pack(">I", LEAF) + leaves[2] + padding + left + blocks[2]

    stream, whole = third(zero_node(0))
    verify_object(whole, stream=stream, lock=lock, number=2)
    stream, whole = third(b"\xee" * 32)
    with pytest.raises(Corrupt, match="pads"):
        verify_object(whole, stream=stream, lock=lock, number=2)


def test_a_length_that_the_lock_cannot_hold_is_refused() -> None:
    """A creator's true but absurd length is refused by its geometry before anything is sized by it."""
    opening = Opening(2**63 - 1, b"\7" * 32)
    stream = opening.stream_id()
    for lock, byte in ((SMALL, 2), (SchemaLock("demo", miniblock=16 * KIB, object=0), 0xFF)):
        fixed = struct.pack(
            *(">8sBBBB4x32sQ32sII", b"\x89ENTRPT\n", 1, 0, 14, byte, stream.raw, opening.length, opening.root, 0, 4)
        )
        refused(lambda f=fixed, lk=lock: verify_object(f, stream=stream, lock=lk, number=0))


def test_a_corrupt_object_is_named() -> None:
    """The error says which object of which stream, for people and for programs."""
    made = make(140000)
    with pytest.raises(Corrupt) as caught:
        made.verify(b"\0" * 500, 2)
    assert caught.value.data == {"stream": made.stream.hex, "number": 2}
    assert made.stream.hex in str(caught.value)
