"""Which objects leave a bucket when there is no room: SIEVE."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate[K: Hashable]:
    """A ready object that may be evicted. ``place`` orders objects by when they became ready; ``wanted``: some node
    wants it right now and has not got it. ``cost``: seconds of a provider's uplink to bring it back; ``holders``: how
    many nodes that could do that are online."""

    key: K
    place: int
    size: int
    visited: bool
    wanted: bool
    cost: float = 0.0
    holders: int = 1


@dataclass(frozen=True, slots=True)
class Choice[K: Hashable]:
    """What SIEVE chose, whose ``visited`` it cleared (and did not choose), and where its hand stands now."""

    chosen: tuple[K, ...]
    cleared: tuple[K, ...]
    hand: int


def sieve[K: Hashable](candidates: Iterable[Candidate[K]], need: int, limit: int, hand: int) -> Choice[K]:
    """Choose objects worth ``need`` bytes, at most ``limit``, from candidates in the order the hand meets them.

    SIEVE (Zhang et al., NSDI 2024): a visited object is spared once and its mark cleared, the next unvisited one
    goes, and the hand stays where it stopped. Here the spared ones are met again when one round was not enough, and
    objects that somebody waits for go after all others. ``candidates`` is read lazily.
    """
    chosen: list[K] = []
    spared: list[Candidate[K]] = []
    waited: list[Candidate[K]] = []
    freed = 0
    if need <= 0 or limit <= 0:
        return Choice((), (), hand)
    for candidate in candidates:
        if candidate.wanted:
            waited.append(candidate)
        elif candidate.visited:
            spared.append(candidate)
            hand = candidate.place
        else:
            chosen.append(candidate.key)
            freed += candidate.size
            hand = candidate.place
        if freed >= need or len(chosen) == limit:
            break
    for candidate in [*spared, *waited]:
        if freed >= need or len(chosen) >= limit:
            break
        chosen.append(candidate.key)
        freed += candidate.size
        if not candidate.wanted:
            hand = candidate.place
    taken = set(chosen)
    return Choice(tuple(chosen), tuple(c.key for c in spared if c.key not in taken), hand)
