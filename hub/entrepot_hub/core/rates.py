"""How much of something one party may do: token buckets by name, how many at once, and a tally that keeps a log short.

Pure: ``now`` is any clock's seconds that never run backwards by much. Everything here is bounded: whoever makes up
names without end makes the hub forget the names that were heard least recently, never grow.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from entrepot.core.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second (``each_second``), and up to ``burst`` at once after a pause."""

    each_second: float
    burst: float

    def __post_init__(self) -> None:
        if not (0 < self.each_second < float("inf") and 1 <= self.burst < float("inf")):
            raise InvalidInput(
                "a rate is a number above 0 a second and a burst of at least 1",
                kind="invalid-setting",
                each_second=self.each_second,
                burst=self.burst,
            )


class TokenBuckets:
    """A token bucket of one :class:`Rate` for every name. At most ``most`` names are remembered: the one that was heard
    least recently goes first, and a name that is not remembered has its whole burst."""

    def __init__(self, rate: Rate, most: int = 20_000) -> None:
        self.rate = rate
        self._most = most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def wait(self, name: str, now: float, tokens: float = 1.0) -> float:
        """Seconds until the name has so many tokens; 0.0 if it has them now. Takes nothing. More than the burst are
        never there at once: then it is the time until the bucket is full."""
        lacking = min(tokens, self.rate.burst) - self._at(name, now)
        return max(lacking, 0.0) / self.rate.each_second

    def take(self, name: str, now: float, tokens: float = 1.0) -> float:
        """Take so many tokens of the name and return 0.0; or take nothing and return as :meth:`wait`."""
        left = self._at(name, now)
        wanted = min(tokens, self.rate.burst)
        if left < wanted:
            return (wanted - left) / self.rate.each_second
        self._keep(name, left - wanted, now)
        return 0.0

    def charge(self, name: str, now: float, tokens: float) -> None:
        """Take so many tokens of the name whether they are there or not: it may owe as many as its burst."""
        self._keep(name, max(self._at(name, now) - tokens, -self.rate.burst), now)

    def give(self, name: str, now: float, tokens: float = 1.0) -> None:
        """Put back what was taken for nothing; never beyond the burst."""
        if name in self._left:
            self._keep(name, min(self._at(name, now) + tokens, self.rate.burst), now)

    def _at(self, name: str, now: float) -> float:
        kept = self._left.get(name)
        if kept is None:
            return self.rate.burst
        left, since = kept
        return min(left + max(now - since, 0.0) * self.rate.each_second, self.rate.burst)

    def _keep(self, name: str, left: float, now: float) -> None:
        self._left[name] = (left, now)
        self._left.move_to_end(name)
        if len(self._left) > self._most:
            self._left.popitem(last=False)


class Crowd:
    """How many of each name are at work at once: at most ``of_one`` of a name and ``most`` of all together."""

    def __init__(self, of_one: int, most: int) -> None:
        self._of_one = of_one
        self._most = most
        self._inside: Counter[str] = Counter()
        self.size = 0

    @property
    def full(self) -> bool:
        """Whether nobody else gets in, whoever it is."""
        return self.size >= self._most

    def enter(self, name: str) -> bool:
        """One more of the name; False, and nothing changes, where there is no room."""
        if self.full or self._inside[name] >= self._of_one:
            return False
        self._inside[name] += 1
        self.size += 1
        return True

    def leave(self, name: str) -> None:
        """One of the name, which had entered, is done."""
        self._inside[name] -= 1
        self.size -= 1
        if not self._inside[name]:
            del self._inside[name]


class Tally:
    """Counts what happens too often to be told each time: the first of a name is told at once, those that follow
    together, at most once every ``pause`` seconds. At most ``most`` names are kept apart."""

    def __init__(self, pause: float = 60.0, most: int = 1000) -> None:
        self._pause = pause
        self._most = most
        self._told: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._everything = (float("-inf"), 0)

    def note(self, name: str, now: float) -> int:
        """One more of the name: how many are to be told now, or 0. Names beyond ``most`` are told as one."""
        if name not in self._told and len(self._told) >= self._most:
            oldest = next(iter(self._told))
            if now < self._told[oldest][0] + self._pause:
                self._everything, count = self._one(self._everything, now)
                return count
            del self._told[oldest]
        kept, count = self._one(self._told.get(name, (float("-inf"), 0)), now)
        self._told[name] = kept
        if count:
            self._told.move_to_end(name)  # in the order of when they were told
        return count

    def _one(self, kept: tuple[float, int], now: float) -> tuple[tuple[float, int], int]:
        at, count = kept
        if now >= at + self._pause:
            return (now, 0), count + 1
        return (at, count + 1), 0
