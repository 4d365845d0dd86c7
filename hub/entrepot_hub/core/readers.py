"""Who wants one stream, and which of its objects each has in its window."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice

from entrepot.core.ranges import LAST_NUMBER, as_set, clip, front, numbers, size
from entrepot_hub.core.ledger import WantOrder

#: A want that was sent before its node got an object may be heard so long after that was known.
LATE = 2.0
#: Objects that a kept want with no living asker has in its window.
KEPT_WINDOW = 64
#: A want that was not heard again for so long has no living asker.
ASKER_LIFE = 90.0


@dataclass(slots=True)
class Reader:
    """A node that wants the stream. ``heard``: when it said so; ``reading_since``: since when it has had something to
    read without getting anything (None: it has nothing to read); ``left``: the objects it lacked when last heard;
    ``waits_since``: since when it waits for room at its front; ``has``: objects that it was since then known to have,
    and since when; ``place``: who came before it; ``asks``: its window, if that does not change until it is heard
    again; ``indexed``: what of it is in the index."""

    order: WantOrder
    heard: float
    left: int
    place: int
    asks: tuple[int, ...] = ()
    indexed: tuple[int, ...] = ()
    reading_since: float | None = None
    waits_since: float | None = None
    has: dict[int, float] = field(default_factory=dict)


class Readers:
    """The readers of one stream, by node, with an index of their windows: what is asked at every grant costs what it
    concerns, however many others there are. ``there`` says whether an object needs no grant now."""

    def __init__(self, there: Callable[[int], bool]) -> None:
        self.wants: dict[str, Reader] = {}
        self._there = there
        self._count = LAST_NUMBER + 1
        self._clipped = False
        self._places = 0
        self._near: dict[int, set[str]] = {}  # by object: readers that have it in their window
        self._keeping: dict[str, None] = {}  # readers whose window changes with time: it is worked out when asked for
        self._having: dict[str, None] = {}  # readers with a ``has``
        self._open: set[int] = set()  # objects in windows that are to be granted
        self._ends: list[tuple[float, int, str]] = []
        self._stirred: set[str] = set()  # readers that may have something to wait for since they were last collected
        self._all_stirred = False

    def learn(self, count: int) -> None:
        """So many objects the stream has: windows end there."""
        self._count, self._clipped = count, True
        for node, reader in self.wants.items():
            self._index(node, reader)

    def hear(self, order: WantOrder, now: float, ready: set[int]) -> bool:
        """A node says what it wants; whether it got something since it was last heard."""
        node = order.node
        before = self.wants.get(node)
        left = size(clip(order.ranges, self._count))
        place = self._places if before is None else before.place
        self._places += before is None
        reader = self.wants[node] = Reader(order, now, left, place, indexed=() if before is None else before.indexed)
        got = before is not None and left < before.left
        if before is not None:  # a want may be heard late
            reader.waits_since = None if got else before.waits_since
            reader.has = {number: at for number, at in before.has.items() if at > now - LATE}
            if before.has and not reader.has:
                self._having.pop(node, None)
        if before is None or before.order.until != order.until:
            self._end(order.until, place, node)
        if order.keep:
            self._keeping[node] = None
        else:
            self._keeping.pop(node, None)
        self._index(node, reader)
        if before is not None and before.has != reader.has:
            self._weigh(before.has)
        if ready and not ready.isdisjoint(self.window(reader, now, ready)):
            since = None if before is None or got else before.reading_since
            reader.reading_since = now if since is None else since
        return got

    def forget(self, node: str) -> bool:
        """The node wants nothing any more; False: it wanted nothing."""
        reader = self.wants.pop(node, None)
        if reader is None:
            return False
        self._keeping.pop(node, None)
        self._having.pop(node, None)
        self._stirred.discard(node)
        self._place(node, reader, ())
        return True

    def pass_time(self, now: float) -> None:
        """Wants end, and what readers were known to have is doubtful again."""
        while self._ends and self._ends[0][0] <= now:
            until, _, node = heappop(self._ends)
            reader = self.wants.get(node)
            if reader is not None and reader.order.until == until:
                self.forget(node)
        for node in tuple(self._having):
            reader = self.wants[node]
            over = [number for number, at in reader.has.items() if at <= now - LATE]
            for number in over:
                del reader.has[number]
            if not reader.has:
                del self._having[node]
            if over:
                self._stirred.add(node)
                self._weigh(over)

    def due(self) -> list[float]:
        """When :meth:`pass_time` has something to do."""
        while self._ends:
            until, _, node = self._ends[0]
            reader = self.wants.get(node)
            if reader is not None and reader.order.until == until:
                break
            heappop(self._ends)
        times = [until for until, _, _ in self._ends[:1]]
        return times + [at + LATE for node in self._having for at in self.wants[node].has.values()]

    def satisfied(self, number: int, now: float) -> None:
        """Whoever wanted the object has it, though its want may not say so yet."""
        for node, reader in self.wants.items():
            if any(first <= number <= last for first, last in reader.order.ranges):
                reader.has[number] = now
                self._having[node] = None
        self._weigh((number,))

    def window(self, reader: Reader, now: float, ready: Collection[int]) -> tuple[int, ...]:
        """The objects that a reader asks for now; all of its ranges that are not ``ready``, in turn, when it has been
        silent."""
        order = reader.order
        if not (self._clipped and order.keep and now > reader.heard + ASKER_LIFE):
            return reader.asks
        ranges = as_set(clip(order.ranges, self._count))
        return tuple(islice((n for n in numbers(ranges) if n not in ready), KEPT_WINDOW))

    def near(self, number: int, now: float, ready: Collection[int]) -> list[Reader]:
        """Readers that have the object in their window, in the order in which they came."""
        found = [self.wants[node] for node in self._near.get(number, ())]
        for node in self._keeping:
            reader = self.wants[node]
            if number in self.window(reader, now, ready):
                found.append(reader)
        return sorted(found, key=lambda reader: reader.place)

    def needed(self, now: float, ready: Collection[int]) -> set[int]:
        """Objects to be granted. Not to be changed."""
        kept = {
            number
            for node in self._keeping
            for number in self.window(self.wants[node], now, ready)
            if number not in self.wants[node].has and not self._there(number)
        }
        return self._open | kept if kept else self._open

    def moved(self, number: int) -> None:
        """Whether the object needs a grant may have changed."""
        self._weigh((number,))

    def stir(self) -> None:
        """What can be granted may have changed for every reader."""
        self._all_stirred = True

    def stirred(self) -> list[Reader]:
        """Readers for which what can be granted may have changed since this was last asked, in the order in which
        they came."""
        if self._all_stirred:
            found = list(self.wants.values())
        else:
            nodes = self._stirred.union(self._keeping) if self._keeping else self._stirred
            found = sorted((self.wants[node] for node in nodes), key=lambda reader: reader.place)
        self._stirred, self._all_stirred = set(), False
        return found

    def _end(self, until: float, place: int, node: str) -> None:
        if len(self._ends) > 4 * len(self.wants) + 16:
            self._ends = [(reader.order.until, reader.place, name) for name, reader in self.wants.items()]
            heapify(self._ends)
        else:
            heappush(self._ends, (until, place, node))

    def _index(self, node: str, reader: Reader) -> None:
        order = reader.order
        ranges = clip(order.ranges, self._count) if self._clipped else order.ranges
        reader.asks = front(ranges, order.window)
        self._place(node, reader, () if order.keep else reader.asks)
        self._stirred.add(node)

    def _place(self, node: str, reader: Reader, index: tuple[int, ...]) -> None:
        before, reader.indexed = reader.indexed, index
        if before == index:
            return
        for number in before:
            nodes = self._near[number]
            nodes.discard(node)
            if not nodes:
                del self._near[number]
        for number in index:
            self._near.setdefault(number, set()).add(node)
        self._weigh({*before, *index})

    def _weigh(self, changed: Iterable[int]) -> None:
        for number in changed:
            nodes = self._near.get(number)
            if not nodes or self._there(number) or self._had(number, nodes):
                self._open.discard(number)
            elif number not in self._open:
                self._open.add(number)
                self._stirred |= nodes

    def _had(self, number: int, nodes: set[str]) -> bool:
        return bool(self._having) and all(number in self.wants[node].has for node in nodes)
