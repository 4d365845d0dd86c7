"""Properties of objects of codec zstd, for any content and any geometry."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass

import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from entrepot.core.codec import Packer, unpack
from entrepot.core.errors import Corrupt, InvalidInput
from entrepot.core.format import (
    Header,
    decode_header,
    encode_header,
    unpack_miniblock,
    verify_miniblock,
    verify_object,
    with_stored_lengths,
)
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import LEAF, StreamHasher

patient = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def locks(draw: st.DrawFn) -> SchemaLock:
    miniblock = LEAF << draw(st.integers(0, 3))
    per_object = draw(st.none() | st.integers(0, 2))
    return SchemaLock("demo", "zstd", miniblock=miniblock, object=0 if per_object is None else miniblock << per_object)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Up to 16 leaves; each leaf repeats itself or is random, so that neighbours compress differently."""
    dice = random.Random(draw(st.integers(0, 2**32)))
    leaves = draw(st.lists(st.booleans(), max_size=16))
    length = max(0, len(leaves) * LEAF - draw(st.integers(0, LEAF)))
    parts = (dice.randbytes(7) * (LEAF // 7 + 1) if repeats else dice.randbytes(LEAF) for repeats in leaves)
    return b"".join(part[:LEAF] for part in parts)[:length]


@dataclass
class Made:
    """One object of a stream, packed."""

    stream: StreamId
    opening: Opening
    lock: SchemaLock
    number: int
    plain: list[bytes]
    stored: list[bytes]
    head: bytes

    @property
    def whole(self) -> bytes:
        return self.head + b"".join(self.stored)

    def verify(self, data: bytes) -> Header:
        return verify_object(data, stream=self.stream, lock=self.lock, number=self.number, opening=self.opening)

    def decode(self, data: bytes) -> Header:
        return decode_header(data, stream=self.stream, lock=self.lock, number=self.number)

    def opened(self, data: bytes) -> list[bytes]:
        """The plain bytes of an object, verified."""
        header = self.verify(data)
        spans = map(header.miniblock_span, range(len(header.nodes)))
        return [bytes(unpack_miniblock(header, i, data[o : o + n])) for i, (o, n) in enumerate(spans)]


def objects(data: bytes, lock: SchemaLock) -> list[Made]:
    """All objects of a stream."""
    hasher, packer, geometry = StreamHasher(lock.level), Packer(), Geometry(len(data), lock)
    hasher.update(data)
    found = hasher.finish()
    stream, made = found.opening.stream_id(), []
    for number in range(geometry.object_count):
        spans = map(geometry.miniblock_span, geometry.miniblocks_of(number))
        plain = [data[offset : offset + length] for offset, length in spans]
        stored = [packer.pack(block) or block for block in plain]
        lengths = [len(block) for block in stored]
        head = encode_header(stream, found.opening, lock, number, found.nodes, stored_lengths=lengths)
        made.append(Made(stream, found.opening, lock, number, plain, stored, head))
    return made


@patient
@given(contents(), locks())
def test_every_object_opens_to_its_content(data: bytes, lock: SchemaLock) -> None:
    """Any content under any lock: each object verifies, is never longer than plain, and opens to its bytes."""
    geometry = Geometry(len(data), lock)
    together = b""
    for made in objects(data, lock):
        assert len(made.whole) in geometry.object_lengths(made.number)
        assert len(made.head) == geometry.header_length(made.number)
        assert made.verify(made.whole).stored_lengths == tuple(map(len, made.stored))
        together += b"".join(made.opened(made.whole))
        plain = with_stored_lengths(made.decode(made.head), None)
        assert made.opened(plain + b"".join(made.plain)) == made.plain
        assert with_stored_lengths(made.decode(plain), [len(block) for block in made.stored]) == made.head
    assert together == data


@patient
@given(contents(), locks(), st.data())
def test_no_change_shows_other_bytes(data: bytes, lock: SchemaLock, choice: st.DataObject) -> None:
    """Whatever of an object is changed, cut out or put in, it is refused, or opens to the very same bytes."""
    assume(data)
    made = choice.draw(st.sampled_from(objects(data, lock)))
    whole = bytearray(made.whole)
    at = choice.draw(st.integers(0, len(whole)))
    patch, over = choice.draw(st.binary(max_size=40)), choice.draw(st.integers(0, 40))
    whole[at : at + over] = patch
    assume(bytes(whole) != made.whole)
    with contextlib.suppress(Corrupt):
        assert made.opened(bytes(whole)) == made.plain
        assert len(whole) == len(made.whole)


def test_every_flipped_byte_of_a_packed_object_is_noticed() -> None:
    """Each byte of the header matters, and so does each length of the object. A frame has a few bits that mean nothing:
    whatever is flipped in it, it is refused or opens to the very same bytes."""
    block = random.Random(5).choices([b"alpha ", b"beta ", b"gamma ", b"delta "], k=9000)
    (made,) = objects(b"".join(block)[:33_000], SchemaLock("demo", "zstd", miniblock=LEAF, object=4 * LEAF))
    whole = bytearray(made.whole)
    assert len(whole) < 20_000
    alike = 0
    for at in range(len(whole)):
        whole[at] ^= 0x55
        try:
            assert made.opened(bytes(whole)) == made.plain
            alike += 1
            assert at >= len(made.head)
        except Corrupt:
            pass
        whole[at] ^= 0x55
    assert alike <= 5
    for size in (*range(len(made.head), len(whole), 97), len(whole) - 1):
        with pytest.raises(Corrupt):
            made.verify(bytes(whole[:size]))
    with pytest.raises(Corrupt):
        made.verify(bytes(whole) + b"\0")


@patient
@given(contents(), locks(), st.data())
def test_stored_lengths_are_bounded_by_the_plain_ones(data: bytes, lock: SchemaLock, choice: st.DataObject) -> None:
    """A header says one byte to the plain length for each miniblock, or it is no header; none can be made either."""
    assume(data)
    made = choice.draw(st.sampled_from(objects(data, lock)))
    index = choice.draw(st.integers(0, len(made.stored) - 1))
    wrong = choice.draw(st.sampled_from([0, len(made.plain[index]) + 1, 2**32 - 1]))
    lengths = [len(block) for block in made.stored]
    lengths[index] = wrong
    with pytest.raises(InvalidInput):
        with_stored_lengths(made.decode(made.head), lengths)
    with pytest.raises(Corrupt):
        made.decode(made.head[: 96 + 36 * index] + wrong.to_bytes(4) + made.head[100 + 36 * index :])


@patient
@given(st.binary(max_size=300), st.integers(1, 70_000))
def test_random_frames_are_corrupt(data: bytes, length: int) -> None:
    """Random bytes, also behind a frame's first bytes, raise nothing but Corrupt and never give another length."""
    for frame in (data, b"\x28\xb5\x2f\xfd" + data, zstandard.ZstdCompressor().compress(data)):
        with contextlib.suppress(Corrupt):
            assert len(unpack(frame, length)) == length


@patient
@given(contents(), locks())
def test_a_frame_of_other_bytes_does_not_verify(data: bytes, lock: SchemaLock) -> None:
    """A frame that unpacks to the right number of other bytes is refused by the node of the plain ones."""
    assume(data)
    made = objects(data, lock)[0]
    header = made.decode(made.head)
    for index, plain in enumerate(made.plain):
        other = bytes([plain[0] ^ 1]) + plain[1:]
        with pytest.raises(Corrupt):
            verify_miniblock(header, index, other)
