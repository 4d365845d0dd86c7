"""The geometry of streams."""

from __future__ import annotations

import pytest

from entrepot.core.errors import InvalidInput
from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock

KIB = 1024
SMALL = SchemaLock("a", miniblock=16 * KIB, object=64 * KIB)
WHOLE = SchemaLock("a", miniblock=32 * KIB, object=0)
DEFAULT = SchemaLock("a")


@pytest.mark.parametrize(
    ("length", "lock", "levels", "counts", "path"),
    [
        # levels: depth, miniblock, object; counts: miniblocks, objects
        (1, SMALL, (0, 0, 0), (1, 1), 0),
        (16384, SMALL, (0, 0, 0), (1, 1), 0),
        (16385, SMALL, (1, 0, 1), (2, 1), 0),
        (65536, SMALL, (2, 0, 2), (4, 1), 0),
        (65537, SMALL, (3, 0, 2), (5, 2), 1),
        (262145, SMALL, (5, 0, 2), (17, 5), 3),
        (100000, WHOLE, (3, 1, 3), (4, 1), 0),
        (20000, DEFAULT, (1, 1, 1), (1, 1), 0),
        (3 << 20, DEFAULT, (8, 6, 8), (3, 1), 0),
        (100 << 30, DEFAULT, (23, 6, 8), (102400, 25600), 15),
    ],
    ids=str,
)
def test_levels_and_counts(length, lock, levels, counts, path) -> None:
    """Levels, counts and path length follow the design's rule."""
    geometry = Geometry(length, lock)
    assert (geometry.depth, geometry.miniblock_level, geometry.object_level) == levels
    assert (geometry.miniblock_count, geometry.object_count) == counts
    assert geometry.path_length(0) == geometry.path_length(geometry.object_count - 1) == path


def test_spans() -> None:
    """Spans, header and object lengths of a stream with a short last object, by hand."""
    geometry = Geometry(140000, SMALL)
    assert [geometry.object_span(n) for n in range(3)] == [(0, 65536), (65536, 65536), (131072, 8928)]
    assert geometry.miniblock_span(8) == (131072, 8928)
    assert [list(geometry.miniblocks_of(n)) for n in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert [geometry.object_of_miniblock(i) for i in (0, 3, 4, 8)] == [0, 0, 1, 2]
    assert [geometry.header_length(n) for n in range(3)] == [96 + 4 * 36 + 64, 96 + 4 * 36 + 64, 96 + 36 + 64]
    assert geometry.object_length(2) == 96 + 36 + 64 + 8928
    assert geometry.objects_of_range(65535, 2) == range(2)
    assert geometry.objects_of_range(65536, 65536) == range(1, 2)
    assert geometry.miniblocks_of_range(139999, 1) == range(8, 9)


def test_the_empty_stream_has_nothing() -> None:
    """No bytes make no miniblocks, no objects and no ranges."""
    for lock in (SMALL, WHOLE):
        geometry = Geometry(0, lock)
        assert (geometry.miniblock_count, geometry.object_count) == (0, 0)
        assert list(geometry.objects_of_range(0, 0)) == []
        for call in (
            geometry.object_span,
            geometry.header_length,
            geometry.object_length,
            geometry.miniblocks_of,
        ):
            with pytest.raises(InvalidInput):
                call(0)


def test_what_lies_outside_is_refused() -> None:
    """Numbers and ranges that the stream does not have are the caller's mistake."""
    geometry = Geometry(140000, SMALL)
    for call, beyond in (
        (geometry.object_span, 3),
        (geometry.path_length, 3),
        (geometry.miniblock_span, 9),
        (geometry.object_of_miniblock, 9),
    ):
        for number in (-1, beyond):
            with pytest.raises(InvalidInput):
                call(number)
    for offset, length in ((-1, 1), (0, -1), (0, 140001), (140000, 1), (140001, 0)):
        with pytest.raises(InvalidInput):
            geometry.objects_of_range(offset, length)
    assert list(geometry.objects_of_range(140000, 0)) == []


def test_streams_that_a_lock_cannot_hold_are_refused() -> None:
    """At most 2^32 - 1 objects, and 2^20 miniblocks in one: one more is unsupported, not a surprise later."""
    most = (2**32 - 1) * SMALL.object
    assert Geometry(most, SMALL).object_count == 2**32 - 1
    most_in_one = WHOLE.miniblock << 20
    assert Geometry(most_in_one, WHOLE).header_length(0) < 38 << 20
    for length, lock in ((most + 1, SMALL), (most_in_one + 1, WHOLE), (2**63 - 1, DEFAULT)):
        with pytest.raises(InvalidInput) as caught:
            Geometry(length, lock)
        assert caught.value.kind == "unsupported"
    for length in (-1, 2**63):
        with pytest.raises(InvalidInput):
            Geometry(length, SMALL)
