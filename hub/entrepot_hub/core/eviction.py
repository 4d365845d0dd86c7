"""Which objects leave a bucket when there is no room: those that cost their providers least.

Greedy-dual with a memory. Every ready object has a *standing*: the channel's level at its last visit plus what it is
worth to keep, which grows with its visits and with the seconds that its upload took. The lowest standing leaves first,
of equals the newest, and the level rises to the standing of what left after it had been visited, so that what was
popular once does not stay for ever. What comes back soon after it left still has its visits. docs/eviction.md says why,
with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

#: Weight of an object that was uploaded and read once: most of those are never asked for again.
FIRST = 0.3
#: Visits beyond this count no more: an object that was very popular is forgotten in bounded time.
MOST_VISITS = 7
#: Seconds of waiting that each upload costs, however small the object.
LATENCY = 2.0
#: Cost of an object whose upload was not measured: 4 MiB at about 2 MiB/s.
UNKNOWN_COST = 4.0
#: A provider that stood still for longer says nothing about its uplink.
MOST_COST = 128.0
#: An object that no holder online could upload again is spared while it was used in the last so many seconds.
SPARED = 86_400.0
#: A holder that was heard in the last so many seconds is online.
ONLINE = 300.0


@dataclass(frozen=True, slots=True)
class Candidate[K: Hashable]:
    """A ready object that may be evicted. ``place`` orders objects by when they became ready; ``wanted``: some node
    wants it and has not got it. ``cost``: seconds of a provider to bring it back; ``holders``: how many nodes that
    could do that are online; ``used_at``: when a reader was last told of it."""

    key: K
    place: int
    size: int
    standing: float
    visits: int
    wanted: bool = False
    cost: float = UNKNOWN_COST
    holders: int = 1
    used_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Merit:
    """What an object's standing comes from. ``left_at``: bytes evicted from the channel in all when it left last."""

    visits: int = 0
    cost: float = UNKNOWN_COST
    standing: float = 0.0
    left_at: int | None = None


@dataclass(frozen=True, slots=True)
class Choice[K: Hashable]:
    """What is to leave, the new standing of what was passed over because nobody online holds it, and the new level."""

    chosen: tuple[K, ...]
    raised: tuple[tuple[K, float], ...]
    level: float


def measured(seconds: float) -> float:
    """The cost of an object whose upload took so many seconds."""
    return min(LATENCY + max(seconds, 0.0), MOST_COST)


def standing(level: float, visits: int, cost: float) -> float:
    """The standing of an object that is visited now. Costs count as powers of two, for measurements scatter: objects of
    one provider are equals, and of equals the newest leaves first, which keeps a part of what is read in circles."""
    weight = 1.0 + visits if visits > 0 else FIRST
    return level + weight * 2.0 ** round(math.log2(max(cost, LATENCY)))


def arrived(merit: Merit, cost: float | None, level: float, evicted: int, quota: int) -> Merit:
    """The merit of an object that becomes ready after an upload of this cost (None: not measured), when so many bytes
    had been evicted from the channel. It has its former visits and one more if since it left no more than a quota
    was."""
    known = merit.left_at is not None and evicted - merit.left_at <= quota
    visits = min(merit.visits + 1, MOST_VISITS) if known else 0
    paid = merit.cost if cost is None else cost
    return Merit(visits, paid, standing(level, visits, paid))


def visited(merit: Merit, level: float) -> Merit:
    """The merit of a ready object that one more reader reads."""
    visits = min(merit.visits + 1, MOST_VISITS)
    return replace(merit, visits=visits, standing=standing(level, visits, merit.cost))


def left(merit: Merit, evicted: int) -> Merit:
    """The merit of an object that was evicted, as the last of so many bytes of the channel."""
    return replace(merit, left_at=evicted)


def choose[K: Hashable](
    candidates: Iterable[Candidate[K]], need: int, limit: int, level: float, now: float
) -> Choice[K]:
    """Choose objects worth ``need`` bytes, at most ``limit``. ``candidates`` come by standing, the newest of equals
    first, and are read lazily.

    What nobody online holds goes after all others, and what some reader wants last of all. What is passed over for
    want of a holder stands higher by a visit, so that it is not met again at every eviction.
    """
    if need <= 0 or limit <= 0:
        return Choice((), (), level)
    chosen: list[K] = []
    alone: list[Candidate[K]] = []
    wanted: list[Candidate[K]] = []
    freed = 0
    for candidate in candidates:
        if candidate.wanted:
            wanted.append(candidate)
            continue
        if candidate.holders == 0 and now - candidate.used_at < SPARED:
            alone.append(candidate)
            continue
        chosen.append(candidate.key)
        freed += candidate.size
        if candidate.visits > 0:
            level = max(level, candidate.standing)
        if freed >= need or len(chosen) >= limit:
            break
    for candidate in [*alone, *wanted]:
        if freed >= need or len(chosen) >= limit:
            break
        chosen.append(candidate.key)
        freed += candidate.size
    taken = set(chosen)
    raised = [(c.key, standing(c.standing, 1, c.cost)) for c in alone if c.key not in taken]
    return Choice(tuple(chosen), tuple(raised), level)
