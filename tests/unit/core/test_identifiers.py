"""Stream ids and openings."""

from __future__ import annotations

from typing import Any

import pytest

from entrepot.core.errors import InvalidInput
from entrepot.core.identifiers import MAX_LENGTH, Opening, StreamId, StreamKind, feed_id, result_id

A = StreamId.parse("ffbccc67723a661a8341a2a5c39e27523a23247db89721401db43e5e6268229b")


@pytest.mark.parametrize("kind", list(StreamKind))
def test_id_round_trip(kind) -> None:
    """An id survives its text, its bytes and a dictionary, and knows its kind."""
    stream = StreamId(bytes([kind]) + bytes(range(31)))
    assert StreamId.parse(str(stream)) == stream == StreamId(bytes(stream))
    assert stream.kind is kind
    assert {stream: 1}[StreamId.parse(stream.hex)] == 1


def test_ids_are_ordered_by_their_bytes() -> None:
    """Sorting ids sorts their bytes."""
    ids = [StreamId(bytes([kind]) + bytes([last]) * 31) for kind in StreamKind for last in (9, 1)]
    assert [i.raw for i in sorted(ids)] == sorted(i.raw for i in ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ff",
        A.hex.upper(),
        A.hex + "0",
        A.hex[:-1],
        " " + A.hex[1:],
        A.hex + "\n",
        "0" * 64,
        "fb" + A.hex[2:],
        "ff" + "\uff11" * 62,
        "0x" + A.hex[2:],
        "ff" + "_1" * 31,
    ],
)
def test_malformed_ids_are_refused(text) -> None:
    """Only 64 lower-case digits that begin with a known kind are an id."""
    with pytest.raises(InvalidInput) as caught:
        StreamId.parse(text)
    assert caught.value.kind == "invalid-id"


@pytest.mark.parametrize("raw", [b"", A.raw[:31], A.raw + b"\0", b"\0" * 32, bytearray(A.raw)])
def test_malformed_raw_ids_are_refused(raw) -> None:
    """An id is 32 immutable bytes of a known kind."""
    with pytest.raises(InvalidInput, match="stream id"):
        StreamId(raw)


@pytest.mark.parametrize(
    ("length", "root"),
    [(-1, bytes(32)), (MAX_LENGTH + 1, bytes(32)), (1, bytes(31)), (0, b"\1" * 32), (True, bytes(32))],
)
def test_impossible_openings_are_refused(length, root) -> None:
    """A length outside 0 to 2^63 - 1, a short root, and a root for no bytes are refused."""
    with pytest.raises(InvalidInput) as caught:
        Opening(length, root)
    assert caught.value.kind == "invalid-id"


@pytest.mark.parametrize("data", [b"", bytes(39), bytes(41), b"\xff" * 40, bytes(8) + b"\1" * 32])
def test_malformed_encoded_openings_are_refused(data) -> None:
    """Only 40 bytes with a possible length and root decode."""
    with pytest.raises(InvalidInput):
        Opening.decode(data)


def test_an_opening_proves_only_its_own_ids() -> None:
    """Another length, another root or another kind of stream is not proved."""
    opening = Opening(5, b"\7" * 32)
    assert Opening.decode(opening.encode()) == opening
    for kind in (StreamKind.FILE, StreamKind.TREE):
        stream = opening.stream_id(kind)
        assert opening.proves(stream)
        assert not Opening(6, opening.root).proves(stream)
        assert not Opening(5, b"\6" * 32).proves(stream)
    for kind in (StreamKind.FEED, StreamKind.RESULT):
        assert not opening.proves(StreamId(bytes([kind]) + opening.stream_id().raw[1:]))
        with pytest.raises(InvalidInput) as caught:
            opening.stream_id(kind)
        assert caught.value.kind == "unsupported"


def test_feed_ids_depend_on_key_and_name() -> None:
    """Another owner or another name is another feed, and a feed's id says that it is one."""
    ids = {feed_id(bytes([key]) * 32, name) for key in (1, 2) for name in ("a", "b")}
    assert len(ids) == 4
    assert {i.kind for i in ids} == {StreamKind.FEED}


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "a\0b", "a\nb", "e\u0301", "\ud800"])
def test_bad_feed_names_are_refused(name) -> None:
    """Empty, overlong, unprintable, denormalized and broken names are refused."""
    with pytest.raises(InvalidInput) as caught:
        feed_id(bytes(32), name)
    assert caught.value.kind == "invalid-id"


def test_a_short_key_owns_no_feed() -> None:
    """A public key has 32 bytes."""
    with pytest.raises(InvalidInput):
        feed_id(bytes(31), "a")


def test_result_ids_ignore_the_order_of_keys() -> None:
    """The same description in another order is the same result; any other value is another."""
    one = result_id("t", "1", {"a": 1, "b": [1, 2]}, ["ff"])
    assert one == result_id("t", "1", {"b": [1, 2], "a": 1}, ["ff"])
    assert one.kind is StreamKind.RESULT
    others = {
        result_id("t", "2", {"a": 1, "b": [1, 2]}, ["ff"]),
        result_id("t", "1", {"a": 1, "b": [2, 1]}, ["ff"]),
    }
    assert one not in others
    assert len(others) == 2


def _nested() -> list:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize("what", ["nan", "large", "broken text", "key", "nested"])
def test_results_of_what_json_cannot_carry_are_refused(what) -> None:
    """NaN, large integers, broken text, keys that are no text and endless nesting raise our error."""
    values: dict[str, Any] = {
        "nan": float("nan"),
        "large": 2**53,
        "broken text": "\ud800",
        "key": {1: 2},
        "nested": _nested(),
    }
    with pytest.raises(InvalidInput) as caught:
        result_id("t", "1", values[what], [])
    assert caught.value.kind == "invalid-id"
