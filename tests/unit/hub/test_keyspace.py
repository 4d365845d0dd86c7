"""The same point in a listing and in the ledger."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from entrepot_hub.core.keyspace import floor_place

_STREAMS = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.sampled_from([bytes(32), b"\xff" * 32, b"\x9f" + bytes(31), b"\xa0" + bytes(31)]),
)
_PLACES = st.tuples(_STREAMS, st.sampled_from([0, 1, 0x9FFFFFFF, 0xA0000000, 0xFFFFFFFE, 0xFFFFFFFF]))
_LETTERS = st.text("0123456789abcdef/-.~_AZgz", max_size=90)


def tail(place: tuple[bytes, int]) -> str:
    return f"{place[0].hex()}/{place[1]:08x}"


@given(place=_PLACES)
def test_a_key_is_its_own_place(place: tuple[bytes, int]) -> None:
    """The floor of a key of an object is that object."""
    assert floor_place(tail(place)) == place


@given(place=_PLACES, cut=st.integers(0, 80), letters=_LETTERS)
def test_whatever_text_a_page_ends_with_places_lie_on_its_right_side(
    place: tuple[bytes, int], cut: int, letters: str
) -> None:
    """A place is at or before the floor of a text exactly when its key is not after the text."""
    for text in (letters, tail(place)[:cut] + letters):
        assert (place <= floor_place(text)) == (tail(place) <= text)
