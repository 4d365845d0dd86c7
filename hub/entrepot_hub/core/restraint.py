"""How much a node may say on the bus: a rate for each class of verbs, one answer a second to whoever says more, and a
count of it for the hub's admin. Pure: ``now`` is a monotonic clock's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from entrepot.core.subjects import BATCHES
from entrepot_hub.core.rates import Rate, TokenBuckets

#: What a verb counts as.
CLASSES: Final[Mapping[str, str]] = {
    "want": "ask",
    "open": "ask",
    "cancel": "ask",
    "offer": "bring",
    "accept": "bring",
    "progress": "bring",
    "done": "bring",
    "got": "tell",
    "missing": "tell",
    "added": "hold",
    "bad": "report",
}
#: Messages a second, and at once after a pause, of one node in all its channels; of ``hold`` it is streams. The fastest
#: honest node, with small files one by one, says a fifth of that.
RATES: Final[Mapping[str, Rate]] = {
    "ask": Rate(1000.0, 4000.0),
    "bring": Rate(4000.0, 8000.0),
    "tell": Rate(2000.0, 8000.0),
    "hold": Rate(5000.0, 50_000.0),
    "report": Rate(5.0, 50.0),
}
#: Bytes of an ``added`` that count as one stream: an id and its opening, packed.
HOLD_BYTES: Final = 80
#: What a message of several counts as besides its parts; and bytes of it that count as one message more.
BATCH: Final = "tell"
BATCH_BYTES: Final = 1024
#: Seconds in which a node hears once that it says too much of a class.
WINDOW: Final = 1.0
#: Seconds for which that is worth telling the admin.
RECENT: Final = 600.0
#: Nodes that are remembered for it.
MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Excess:
    """A message more than a node may say: there is room again in ``wait`` seconds. ``first``: of this second, so that
    it is answered; whatever follows is dropped."""

    wait: float
    first: bool


class Restraint:
    """What every node said lately, and how much of it was too much."""

    def __init__(self, rates: Mapping[str, Rate] | None = None) -> None:
        self._buckets = {name: TokenBuckets(rate) for name, rate in (rates or RATES).items()}
        self._answered: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._excess: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def heard(self, node: str, verb: str, size: int, now: float, *, asks: bool = True) -> Excess | None:
        """A message of ``size`` bytes came in, which ``asks`` for an answer or does not: None if it is within what the
        node may say. A verb that is none is refused by whoever reads it."""
        # Several at once are one message more: each of them is heard as what it is.
        batch = verb in BATCHES
        kind = BATCH if batch else CLASSES.get(verb)
        if kind is None:
            return None
        tokens = 1.0
        if batch or kind == "hold":
            tokens += size // (BATCH_BYTES if batch else HOLD_BYTES)
        wait = self._buckets[kind].take(node, now, tokens)
        if not wait:
            return None
        self._count(node, 1, now)
        answered = self._answered.get((node, kind))
        first = asks and (answered is None or now >= answered + WINDOW)
        if first:
            self._answered[node, kind] = now
            self._answered.move_to_end((node, kind))
            if len(self._answered) > MOST:
                self._answered.popitem(last=False)
        return Excess(wait, first)

    def left(self, node: str, count: int, now: float) -> None:
        """So many parts of one message were too many. They are paid for all the same, as what the message itself
        counts as: whoever goes on so has the next ones refused before they are read."""
        self._count(node, count - 1, now)  # the first of them was heard
        self._buckets[BATCH].charge(node, now, count)

    def _count(self, node: str, more: int, now: float) -> None:
        count, _ = self._excess.get(node, (0, now))
        self._excess[node] = (count + more, now)
        self._excess.move_to_end(node)
        if len(self._excess) > MOST:
            self._excess.popitem(last=False)

    def excessive(self, now: float) -> list[tuple[str, int]]:
        """The nodes that said too much lately, and how many of their messages went unheard since the hub started: the
        most first."""
        recent = [(node, count) for node, (count, at) in self._excess.items() if now < at + RECENT]
        return sorted(recent, key=lambda one: (-one[1], one[0]))
