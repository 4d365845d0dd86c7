"""Runs of object numbers as inclusive pairs ``(first, last)``: compact in messages, cheap to ask.

A *wish* is a sequence of pairs in the order in which somebody wants them; a *set* is ascending, disjoint and not
adjacent. Nothing here expands a pair of attacker-chosen size into a list.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from entrepot.core.errors import InvalidInput

type Pair = tuple[int, int]

#: The largest object number that may hold data; the one after it is the stream's index.
LAST_NUMBER = 0xFFFFFFFE
#: How many pairs a message may carry.
MAX_PAIRS = 64


def check_pairs(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """The pairs, each with ``0 ≤ first ≤ last ≤ LAST_NUMBER``; InvalidInput (invalid-message) otherwise."""
    checked = tuple((first, last) for first, last in pairs)
    for first, last in checked:
        if not 0 <= first <= last <= LAST_NUMBER:
            raise InvalidInput(f"{first}-{last} is not a range of object numbers", kind="invalid-message")
    return checked


def as_set(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """The same numbers ascending, overlapping and adjacent pairs joined."""
    joined: list[Pair] = []
    for first, last in sorted(pairs):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def of_numbers(numbers: Iterable[int], limit: int | None = None) -> tuple[Pair, ...]:
    """Numbers in the order of wish as pairs: a run that counts up becomes one pair. At most ``limit`` pairs."""
    pairs: list[Pair] = []
    for number in numbers:
        if pairs and number == pairs[-1][1] + 1:
            pairs[-1] = (pairs[-1][0], number)
        elif limit is not None and len(pairs) == limit:
            break
        else:
            pairs.append((number, number))
    return tuple(pairs)


def numbers(pairs: Iterable[Pair]) -> Iterator[int]:
    """The numbers in the order of the pairs, lazily."""
    for first, last in pairs:
        yield from range(first, last + 1)


def front(pairs: Iterable[Pair], count: int) -> tuple[int, ...]:
    """The first ``count`` different numbers of a wish."""
    wish = numbers(pairs)
    found = dict.fromkeys(islice(wish, count))
    if len(found) < count:  # some were repeated
        found.update(dict.fromkeys(islice(wish, count * 3)))
    return tuple(islice(found, count))


def clip(pairs: Iterable[Pair], count: int) -> tuple[Pair, ...]:
    """The pairs cut to numbers below ``count``, empty ones left out, order kept."""
    return tuple((first, min(last, count - 1)) for first, last in pairs if first < count)


def holds(pairs: Sequence[Pair], number: int) -> bool:
    """Whether a *set* of pairs holds the number."""
    at = bisect_right(pairs, (number, LAST_NUMBER + 1)) - 1
    return at >= 0 and pairs[at][0] <= number <= pairs[at][1]


def size(pairs: Iterable[Pair]) -> int:
    """How many numbers the pairs hold, repeated ones counted again."""
    return sum(last - first + 1 for first, last in pairs)


def without(pairs: Sequence[Pair], number: int) -> tuple[Pair, ...]:
    """The pairs in their order, less one number."""
    left: list[Pair] = []
    for first, last in pairs:
        if not first <= number <= last:
            left.append((first, last))
            continue
        if first < number:
            left.append((first, number - 1))
        if number < last:
            left.append((number + 1, last))
    return tuple(left)


def common(pairs: Sequence[Pair], chosen: Sequence[Pair]) -> tuple[Pair, ...]:
    """What two *sets* have in common, as a set."""
    both: list[Pair] = []
    i = j = 0
    while i < len(pairs) and j < len(chosen):
        first, last = max(pairs[i][0], chosen[j][0]), min(pairs[i][1], chosen[j][1])
        if first <= last:
            both.append((first, last))
        if pairs[i][1] < chosen[j][1]:
            i += 1
        else:
            j += 1
    return tuple(both)


def less(pairs: Sequence[Pair], taken: Sequence[Pair]) -> tuple[Pair, ...]:
    """What is left of one *set* without another, as a set."""
    left: list[Pair] = []
    for first, last in pairs:
        at = first
        for start, end in taken:
            if end < at or start > last:
                continue
            if start > at:
                left.append((at, start - 1))
            at = max(at, end + 1)
        if at <= last:
            left.append((at, last))
    return tuple(left)


def rotated(pairs: Sequence[Pair], start: int) -> tuple[Pair, ...]:
    """The *set* as a wish that begins at ``start`` and wraps around."""
    after = tuple((max(first, start), last) for first, last in pairs if last >= start)
    before = tuple((first, min(last, start - 1)) for first, last in pairs if first < start)
    return after + before
