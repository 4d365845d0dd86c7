"""Runs of object numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core import ranges
from entrepot.core.errors import InvalidInput

NUMBERS = st.sets(st.integers(0, 60))


def _set(numbers: set[int]) -> tuple[tuple[int, int], ...]:
    return ranges.of_numbers(sorted(numbers))


@given(NUMBERS, NUMBERS)
def test_sets_behave_like_sets(one: set[int], other: set[int]) -> None:
    """Union, intersection and difference of pairs hold the numbers that sets of numbers would."""
    a, b = _set(one), _set(other)
    assert set(ranges.numbers(ranges.as_set(a + b))) == one | other
    assert set(ranges.numbers(ranges.common(a, b))) == one & other
    assert set(ranges.numbers(ranges.less(a, b))) == one - other
    for number in range(62):
        assert ranges.holds(a, number) is (number in one)
        assert set(ranges.numbers(ranges.without(a, number))) == one - {number}


@given(NUMBERS)
def test_sets_are_ascending_and_joined(numbers: set[int]) -> None:
    """A set of pairs is ascending and no two of its pairs touch."""
    pairs = ranges.as_set((n, n) for n in numbers)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(pairs))
    assert ranges.size(pairs) == len(numbers)


@given(NUMBERS, st.integers(0, 60))
def test_rotation_starts_where_it_is_told_and_loses_nothing(numbers: set[int], start: int) -> None:
    """A rotated set holds the same numbers, those from ``start`` on first, each part ascending."""
    wish = list(ranges.numbers(ranges.rotated(_set(numbers), start)))
    assert wish == sorted(n for n in numbers if n >= start) + sorted(n for n in numbers if n < start)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=6), st.integers(0, 20))
def test_the_front_is_the_first_different_numbers(pairs: list[tuple[int, int]], count: int) -> None:
    """The front of a wish is its first numbers in order, each once."""
    wish = [(a, a + b) for a, b in pairs]
    assert list(ranges.front(wish, count)) == list(dict.fromkeys(ranges.numbers(wish)))[:count]


def test_a_huge_pair_costs_nothing() -> None:
    """A pair of four thousand million numbers is looked at, not expanded."""
    wish = ((0, ranges.LAST_NUMBER),)
    assert ranges.front(wish, 3) == (0, 1, 2)
    assert ranges.clip(wish, 2) == ((0, 1),)
    assert ranges.holds(wish, 10**9)


@pytest.mark.parametrize("pairs", [((1, 0),), ((-1, 2),), ((0, ranges.LAST_NUMBER + 1),)])
def test_what_is_no_range_is_refused(pairs: tuple[tuple[int, int], ...]) -> None:
    """Backward, negative and reserved numbers are refused."""
    with pytest.raises(InvalidInput):
        ranges.check_pairs(pairs)


def test_numbers_become_pairs_in_their_order() -> None:
    """A wish keeps its order; runs that count up become one pair; the limit cuts whole pairs."""
    assert ranges.of_numbers([5, 6, 7, 1, 2, 9]) == ((5, 7), (1, 2), (9, 9))
    assert ranges.of_numbers([5, 6, 1, 9], limit=2) == ((5, 6), (1, 1))
