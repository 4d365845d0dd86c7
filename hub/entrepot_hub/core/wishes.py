"""What the readers of a channel still lack, and which ready objects give way to whom when there is no room.

Objects that no waiting reader lacks are left to the eviction policy. Of the others the one that is needed last goes
first; what a reader was told of stays until it has had its time to read it, but nobody keeps more than half of a quota
from others, and nobody keeps objects for later from its own front.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass

from entrepot.core.ranges import Pair, front
from entrepot_hub.core.eviction import Candidate

#: The first objects of a window are being read already when the next one is waited for; the others can be told again.
READING = 4
#: Who needs room for its front waits so many seconds before others' leases end for it: they may be through by then.
PATIENCE = 1.0
#: A reader's want is looked at so far, in objects, before "later" is all the same.
HORIZON = 1 << 16

type Key = tuple[bytes, bytes, int]


@dataclass(frozen=True, slots=True)
class Wish:
    """What one node still lacks of a stream, in the order in which it needs it, and how much of that is its window."""

    node: str
    ranges: tuple[Pair, ...]
    window: int

    def rank(self, number: int) -> int | None:
        """How many objects the node needs before this one; None if it does not lack it."""
        before = 0
        for first, last in self.ranges:
            if first <= number <= last:
                return before + number - first
            before = min(before + last - first + 1, HORIZON)
        return None

    def near(self, number: int) -> bool:
        """Whether the object is in the window."""
        return number in front(self.ranges, self.window)


class Wishes:
    """The wishes of a channel's active wants."""

    def __init__(self, wants: Iterable[tuple[bytes, bytes, Wish]]) -> None:
        self._streams: dict[tuple[bytes, bytes], list[Wish]] = {}
        for lock, stream, wish in wants:
            self._streams.setdefault((lock, stream), []).append(wish)

    def get(self, key: Key, default: Collection[str] = ()) -> Collection[str]:
        """The nodes that lack the object."""
        lock, stream, number = key
        wishes = self._streams.get((lock, stream))
        if not wishes:
            return default
        return [wish.node for wish in wishes if wish.rank(number) is not None]

    def of(self, key: Key) -> list[Wish]:
        """The wishes that hold the object."""
        lock, stream, number = key
        return [wish for wish in self._streams.get((lock, stream), ()) if wish.rank(number) is not None]

    def rank(self, key: Key, node: str) -> int:
        """How far the object is from the node's front; :data:`HORIZON` if the node does not lack it."""
        ranks = (wish.rank(key[2]) for wish in self._streams.get(key[:2], ()) if wish.node == node)
        return next((rank for rank in ranks if rank is not None), HORIZON)


@dataclass(frozen=True, slots=True)
class Front:
    """The object that a reader waits for at its front: ``node`` needs room for the next object of ``stream``, and has
    ``waited`` so many seconds for it."""

    node: str
    stream: bytes
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Read:
    """A node's read of a ready object: told of it until ``until``; ``got``: it has it."""

    node: str
    until: float
    got: bool


@dataclass(frozen=True, slots=True)
class Ready[K: Hashable]:
    """A ready object with its reads, as what gives way is chosen from."""

    key: K
    name: Key
    size: int
    place: int
    reads: tuple[Read, ...]


def unlacked[K: Hashable](candidates: Iterable[Candidate[K]], lacked: list[Candidate[K]]) -> Iterator[Candidate[K]]:
    """The candidates that no waiting reader lacks, lazily; the others are noted in ``lacked`` as they are met."""
    for candidate in candidates:
        if candidate.wanted:
            lacked.append(candidate)
        else:
            yield candidate


def untold(ready: Ready[Hashable], wishes: Wishes) -> bool:
    """Whether some reader has the object in its window and was not told of it yet: it has just become ready."""
    told = {read.node for read in ready.reads}
    return any(wish.node not in told and wish.near(ready.name[2]) for wish in wishes.of(ready.name))


def latest[K: Hashable](objects: Iterable[Ready[K]], wishes: Wishes, need: int, limit: int) -> tuple[K, ...]:
    """Of objects that readers lack, those that are needed last, worth ``need`` bytes, at most ``limit``; of equals
    those that fewer lack, then the older ones."""

    def order(ready: Ready[K]) -> tuple[int, int, int]:
        has = {read.node for read in ready.reads if read.got}
        ranks = [wish.rank(ready.name[2]) or 0 for wish in wishes.of(ready.name) if wish.node not in has]
        return -min(ranks, default=HORIZON), len(ranks), ready.place

    chosen: list[K] = []
    freed = 0
    for ready in sorted(objects, key=order):
        if freed >= need or len(chosen) >= limit:
            break
        chosen.append(ready.key)
        freed += ready.size
    return tuple(chosen)


def yielding[K: Hashable](
    objects: Iterable[Ready[K]], wishes: Wishes, quota: int, now: float, head: Front | None, stalled: Collection[Front]
) -> list[Ready[K]]:
    """The leased objects whose every live lease gives way to ``head``.

    A lease gives way when its reader is ``stalled`` (had its time and got nothing). When ``head`` has waited for
    :data:`PATIENCE`, leases also give way of a node that keeps more than half of the quota from it (for the objects
    that this node needs last), and its own, for objects that it does not read yet.
    """
    if head is not None and head.waited < PATIENCE:
        head = None
    leased = [
        (ready, [read for read in ready.reads if read.until > now and not read.got])
        for ready in objects
        if any(read.until > now and not read.got for read in ready.reads)
    ]
    slow = {(front.node, front.stream) for front in stalled}
    kept: dict[str, int] = {}
    for ready, reads in leased:
        for read in reads:
            kept[read.node] = kept.get(read.node, 0) + ready.size
    over = {node: size - quota // 2 for node, size in kept.items() if head is not None and node != head.node}
    ends: dict[K, set[str]] = {}
    for ready, reads in sorted(leased, key=lambda pair: -min(wishes.rank(pair[0].name, r.node) for r in pair[1])):
        for read in reads:
            if (read.node, ready.name[1]) in slow:
                ends.setdefault(ready.key, set()).add(read.node)
            elif over.get(read.node, 0) > 0:
                over[read.node] -= ready.size
                ends.setdefault(ready.key, set()).add(read.node)
            elif (
                head is not None
                and (read.node, ready.name[1]) == (head.node, head.stream)
                and wishes.rank(ready.name, read.node) >= READING
            ):
                ends.setdefault(ready.key, set()).add(read.node)
    return [ready for ready, reads in leased if {read.node for read in reads} <= ends.get(ready.key, set())]
