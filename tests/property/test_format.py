"""Properties of geometry, keys, URIs and the object format for any content and any lock."""

from __future__ import annotations

import contextlib
import ipaddress
import unicodedata

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from entrepot.core.errors import Corrupt, EntrepotError, InvalidInput
from entrepot.core.format import decode_header, decode_opening, encode_header, verify_miniblock, verify_object
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId, StreamKind
from entrepot.core.keys import check_prefix, object_key, parse_object_key
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import LEAF, StreamHasher, from_nodes, node_of
from entrepot.core.uri import StreamUri, courtesy_name

channels = st.from_regex(r"[a-z0-9]{1,32}", fullmatch=True)
kinds = st.sampled_from([StreamKind.FILE, StreamKind.TREE])
streams = st.builds(lambda kind, rest: StreamId(bytes([kind]) + rest), kinds, st.binary(min_size=31, max_size=31))
patient = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def locks(draw, largest: int = 12, widest: int = 20) -> SchemaLock:
    miniblock = LEAF << draw(st.integers(0, largest))
    per_object = draw(st.one_of(st.none(), st.integers(0, widest)))
    return SchemaLock(draw(channels), miniblock=miniblock, object=0 if per_object is None else miniblock << per_object)


@st.composite
def contents(draw) -> bytes:
    """Up to 20 leaves, often ending near a leaf's edge; seldom all alike."""
    leaves = draw(st.integers(0, 20))
    length = max(0, leaves * LEAF + draw(st.one_of(st.integers(-2, 2), st.integers(0, LEAF))))
    unit = draw(st.binary(min_size=1, max_size=300))
    return (unit * (length // len(unit) + 1))[:length]


def made(data: bytes, lock: SchemaLock, kind: StreamKind):
    hasher = StreamHasher(lock.level)
    hasher.update(data)
    found = hasher.finish()
    return found, found.opening.stream_id(kind), Geometry(len(data), lock)


@patient
@given(contents(), locks(largest=4, widest=3), kinds)
def test_all_objects_verify_and_reassemble(data, lock, kind) -> None:
    """Any content under any lock makes objects that verify, and whose payloads are the content again."""
    found, stream, geometry = made(data, lock, kind)
    together = bytearray()
    for number in range(geometry.object_count):
        head = encode_header(stream, found.opening, lock, number, found.nodes)
        offset, size = geometry.object_span(number)
        whole = head + data[offset : offset + size]
        assert len(head) == geometry.header_length(number)
        assert len(whole) == geometry.object_length(number)
        header = verify_object(whole, stream=stream, lock=lock, number=number, opening=found.opening)
        for index in range(len(header.nodes)):
            start, stored = header.miniblock_span(index)
            at, length = header.plain_span(index)
            assert whole[start : start + stored] == data[at : at + length]
            together += whole[start : start + stored]
    assert together == data


@patient
@given(contents(), st.integers(0, 4), st.lists(st.integers(1, 3 * LEAF), max_size=12))
def test_hashing_is_independent_of_how_the_bytes_come(data, level, cuts) -> None:
    """Pieces of any size, and miniblocks hashed apart, give the same opening and nodes."""
    whole, pieces = StreamHasher(level), StreamHasher(level)
    whole.update(data)
    at = 0
    for cut in cuts:
        pieces.update(data[at : at + cut])
        at += cut
    pieces.update(data[at:])
    found = whole.finish()
    assert pieces.finish() == found
    geometry = Geometry(len(data), SchemaLock("a", miniblock=LEAF << level, object=0))
    spans = [geometry.miniblock_span(i) for i in range(geometry.miniblock_count)]
    nodes = b"".join(node_of(data[o : o + n], geometry.miniblock_level) for o, n in spans)
    assert nodes == found.nodes
    assert from_nodes(len(data), nodes, level) == found.opening


@patient
@given(contents(), locks(largest=2, widest=2), kinds, st.data())
def test_a_flipped_bit_anywhere_is_refused(data, lock, kind, choice) -> None:
    """Whatever bit of whatever object is flipped, the object is refused as corrupt."""
    assume(data)
    found, stream, geometry = made(data, lock, kind)
    number = choice.draw(st.integers(0, geometry.object_count - 1))
    offset, size = geometry.object_span(number)
    head = encode_header(stream, found.opening, lock, number, found.nodes)
    whole = bytearray(head + data[offset : offset + size])
    bit = choice.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(Corrupt) as caught:
        verify_object(whole, stream=stream, lock=lock, number=number)
    assert caught.value.kind == "corrupt-object"


@patient
@given(contents(), locks(largest=2, widest=2), st.data())
def test_another_payload_is_refused(data, lock, choice) -> None:
    """Bytes of a miniblock's length that are not its own never verify."""
    assume(data)
    found, stream, geometry = made(data, lock, StreamKind.FILE)
    number = choice.draw(st.integers(0, geometry.object_count - 1))
    head = encode_header(stream, found.opening, lock, number, found.nodes)
    header = decode_header(head, stream=stream, lock=lock, number=number)
    index = choice.draw(st.integers(0, len(header.nodes) - 1))
    start, length = header.plain_span(index)
    wrong = bytearray(data[start : start + length])
    at = choice.draw(st.integers(0, length - 1))
    patch = choice.draw(st.binary(min_size=1, max_size=64))
    wrong[at : at + len(patch)] = patch[: length - at]
    if wrong == data[start : start + length]:
        verify_miniblock(header, index, wrong)
    else:
        with pytest.raises(Corrupt):
            verify_miniblock(header, index, wrong)


@given(st.binary(max_size=600), streams, locks(), st.integers(0, 2**32))
def test_random_bytes_are_corrupt(data, stream, lock, number) -> None:
    """Decoders of objects answer random bytes with Corrupt and nothing else."""
    for decode in (verify_object, decode_header, decode_opening):
        with pytest.raises(Corrupt):
            decode(data, stream=stream, lock=lock, number=number)


@given(st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32), locks(), st.integers(0, 2**32), st.data())
def test_true_openings_with_random_tables_are_corrupt(length, root, lock, number, choice) -> None:
    """A fixed part that is all true, whatever its length says, followed by anything else, is corrupt."""
    opening = Opening(length, root)
    stream = opening.stream_id()
    count = choice.draw(st.integers(0, 2**32 - 1))
    levels = lock.object_levels
    fixed = b"".join(
        (
            *(b"\x89ENTRPT\n\x01\x00", bytes([lock.miniblock.bit_length() - 1, 0xFF if levels is None else levels])),
            *(
                bytes(4),
                stream.raw,
                opening.encode(),
                (number & 0xFFFFFFFF).to_bytes(4, "big"),
                count.to_bytes(4, "big"),
            ),
        )
    )
    rest = choice.draw(st.binary(max_size=200))
    with pytest.raises(Corrupt):
        verify_object(fixed + rest, stream=stream, lock=lock, number=number)


@given(st.integers(0, 2**63 - 1), locks(), st.data())
def test_geometry_is_a_partition(length, lock, choice) -> None:
    """Miniblocks and objects follow each other without gap or overlap and end with the stream."""
    if -(-length // (lock.object or length or 1)) >= 2**32 or (not lock.object and length > lock.miniblock << 20):
        with pytest.raises(InvalidInput, match="too many"):
            Geometry(length, lock)
        return
    geometry = Geometry(length, lock)
    count, objects = geometry.miniblock_count, geometry.object_count
    assert (count == 0) == (objects == 0) == (length == 0)
    assume(length)
    index = choice.draw(st.integers(0, count - 1))
    number = choice.draw(st.integers(0, objects - 1))
    for span, at, last in (
        (geometry.miniblock_span, index, count - 1),
        (geometry.object_span, number, objects - 1),
    ):
        offset, size = span(at)
        assert size > 0
        assert offset == (0 if at == 0 else sum(span(at - 1)))
        assert sum(span(last)) == length
    inside = geometry.miniblocks_of(number)
    assert geometry.object_span(number)[0] == geometry.miniblock_span(inside[0])[0]
    assert sum(geometry.object_span(number)) == sum(geometry.miniblock_span(inside[-1]))
    assert {geometry.object_of_miniblock(inside[0]), geometry.object_of_miniblock(inside[-1])} == {number}
    offset = choice.draw(st.integers(0, length - 1))
    size = choice.draw(st.integers(1, length - offset))
    touched = geometry.objects_of_range(offset, size)
    for at, byte in ((touched[0], offset), (touched[-1], offset + size - 1)):
        start, plain = geometry.object_span(at)
        assert start <= byte < start + plain


@given(locks())
def test_lock_round_trip(lock) -> None:
    """Any lock is read back from its document."""
    assert SchemaLock.parse(lock.canonical()) == lock
    assert SchemaLock.parse(lock.canonical()).id == lock.id


prefixes = st.from_regex(r"([A-Za-z0-9._~-]{1,9}(/[A-Za-z0-9._~-]{1,9}){0,3})?", fullmatch=True)


@given(prefixes, st.binary(min_size=8, max_size=8), streams, st.integers(0, 0xFFFFFFFE))
def test_key_round_trip(prefix, lock_id, stream, number) -> None:
    """A key gives back what it was made from, and says nothing under another prefix."""
    assume(not {".", ".."} & set(prefix.split("/")))
    key = object_key(check_prefix(prefix), lock_id, stream, number)
    assert parse_object_key(prefix, key) == (lock_id, stream, number)
    with pytest.raises(InvalidInput):
        parse_object_key(f"{prefix}x" if prefix else "x", key)


hosts = st.one_of(
    st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){0,3}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.integers(2**48, 2**128 - 1).map(lambda n: f"[{ipaddress.IPv6Address(n)}]"),
)
hubs = st.one_of(
    st.none(), st.builds(lambda h, p: f"{h}:{p}" if p else h, hosts, st.one_of(st.none(), st.integers(1, 65535)))
)
names = st.one_of(st.none(), st.text(max_size=80).map(courtesy_name))


@given(channels, hubs, streams, names)
def test_uri_round_trip(channel, hub, stream, name) -> None:
    """Any URI prints as text that parses to it, one safe segment for a name included."""
    uri = StreamUri(channel, hub, stream, name)
    assert StreamUri.parse(str(uri)) == uri
    assert str(uri).count("/") == 3 + (name is not None)
    assert uri.target == StreamUri.parse(str(uri)).target


@given(st.text(max_size=100))
def test_courtesy_names_are_the_files_names(file_name) -> None:
    """A carried name is the file's own in form C, never a shortened or mended one."""
    name = courtesy_name(file_name)
    assert name is None or name == unicodedata.normalize("NFC", file_name)


near_uris = st.from_regex(
    r"\A(entrepot://)?[a-zA-Z0-9%]{0,6}@?[a-z0-9.:\[\]-]{0,12}/(f[cdef][0-9a-f]{62})?(/[a-z.%0-9/?#é]{0,9})?\Z"
)


@given(st.one_of(st.text(), near_uris))
def test_random_text_raises_nothing_else(text) -> None:
    """Parsers of text answer anything with a value that prints as itself, or with InvalidInput."""
    with contextlib.suppress(InvalidInput):
        uri = StreamUri.parse(text)
        assert StreamUri.parse(str(uri)) == uri
    with contextlib.suppress(InvalidInput):
        assert str(StreamId.parse(text)) == text
    with contextlib.suppress(InvalidInput):
        assert object_key("", *parse_object_key("", text)) == text
    with contextlib.suppress(InvalidInput):
        assert SchemaLock.parse(text).canonical() == text.encode()


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.one_of(st.binary(max_size=200), json_like.map(lambda v: repr(v).encode(errors="replace"))))
def test_random_documents_raise_nothing_else(data) -> None:
    """Decoders of openings and locks raise our errors only."""
    for decode in (Opening.decode, SchemaLock.parse):
        with contextlib.suppress(EntrepotError):
            decode(data)
