"""The traces of ``scripts/bench eviction``: which objects of which streams are read, one after the other.

Made from seeds, so that they are the same everywhere, except for one that was recorded (see ``bench_record.py``).
Objects are of 4 MiB, the last of a stream is shorter; the streams of a trace have providers of different uplinks, and
an upload costs 2 s and its bytes over the uplink.
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Final

from entrepot_hub.core.eviction import LATENCY

OBJECT: Final = 4 << 20
#: Bytes/s: a bad DSL line to a gigabit.
UPLINKS: Final = (0.25e6, 1e6, 4e6, 12.5e6, 50e6, 125e6)
#: A holder that is often away is away for so many requests, and then there for as many.
AWAY: Final = 2000
RECORDED: Final = Path(__file__).resolve().parent.parent / "tests" / "data" / "traces" / "exchange.json"


@dataclass(slots=True)
class Trace:
    """``requests`` are indices of objects; of each object its ``sizes`` (bytes), ``costs`` (seconds of uploading) and
    ``streams`` (index); ``away``: streams whose one holder is often away."""

    name: str
    sizes: list[int] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    away: frozenset[int] = frozenset()

    @property
    def footprint(self) -> int:
        """Bytes of all objects that are read."""
        return sum(self.sizes[each] for each in set(self.requests))

    @property
    def cost(self) -> float:
        """Seconds of uploading without a cache."""
        return sum(self.costs[each] for each in self.requests)

    def online(self, stream: int, at: int) -> bool:
        """Whether anybody holds the stream and is online at the request of this number."""
        return stream not in self.away or (at // AWAY + stream) % 2 == 0


class _Maker:
    """A trace being made."""

    def __init__(self, name: str, seed: int) -> None:
        self.trace = Trace(name)
        self.random = Random(seed)
        self._count = 0

    def stream(self, objects: int, uplink: float | None = None) -> list[int]:
        """A new stream's objects."""
        made, trace = [], self.trace
        uplink = self.random.choice(UPLINKS) if uplink is None else uplink
        for number in range(objects):
            size = OBJECT if number < objects - 1 else self.random.randrange(65_536, OBJECT + 1)
            made.append(len(trace.sizes))
            trace.sizes.append(size)
            trace.costs.append(LATENCY + size / uplink)
            trace.streams.append(self._count)
        self._count += 1
        return made

    def streams(self, objects: int, longest: int = 64) -> list[int]:
        """So many objects of streams of various lengths."""
        made: list[int] = []
        while len(made) < objects:
            made += self.stream(min(self.random.randint(1, longest), objects - len(made)))
        return made

    def shuffled(self, objects: int) -> list[int]:
        """The same in no order: the first is to be the most popular."""
        made = self.streams(objects)
        self.random.shuffle(made)
        return made

    def draw(self, weights: list[float]) -> int:
        """An index by accumulated weights."""
        return min(bisect(weights, self.random.random() * weights[-1]), len(weights) - 1)


def _zipf(count: int, exponent: float) -> list[float]:
    return list(accumulate((rank + 1) ** -exponent for rank in range(count)))


def uniform(scale: float = 1.0) -> Trace:
    """Every object as often as any other."""
    make = _Maker("uniform", 1)
    objects = make.streams(round(4000 * scale))
    make.trace.requests = [make.random.choice(objects) for _ in range(round(40_000 * scale))]
    return make.trace


def drift(name: str, exponent: float, seed: int, scale: float = 1.0, *, away: bool = False) -> Trace:
    """Popularity by Zipf's law, and each 500 requests another percent of the objects becomes popular or not."""
    make = _Maker(name, seed)
    count = round(8000 * scale)
    objects, weights = make.shuffled(count), _zipf(count, exponent)
    for number in range(round(50_000 * scale)):
        if number and number % 500 == 0:
            for _ in range(count // 100):
                one, other = make.draw(weights), make.random.randrange(count)
                objects[one], objects[other] = objects[other], objects[one]
        make.trace.requests.append(objects[make.draw(weights)])
    if away:
        make.trace.away = frozenset(range(0, max(make.trace.streams) + 1, 8))
    return make.trace


def loop(scale: float = 1.0) -> Trace:
    """All is read in order, again and again: a loop that no cache of these sizes holds."""
    make = _Maker("loop", 5)
    make.trace.requests = make.streams(round(3000 * scale)) * 12
    return make.trace


def loops(scale: float = 1.0) -> Trace:
    """Three loops of different lengths beside a hot set."""
    make = _Maker("loops", 8)
    hot = make.shuffled(round(600 * scale))
    weights = _zipf(len(hot), 0.9)
    circles = [make.stream(round(length * scale)) for length in (300, 600, 1200)]
    places = [0, 0, 0]
    for _ in range(round(50_000 * scale)):
        which = make.random.randrange(4)
        if which == 3:
            make.trace.requests.append(hot[make.draw(weights)])
        else:
            make.trace.requests.append(circles[which][places[which] % len(circles[which])])
            places[which] += 1
    return make.trace


def scan(scale: float = 1.0) -> Trace:
    """A hot set, and now and then a long stream that is read once from end to end."""
    make = _Maker("scan", 6)
    hot = make.shuffled(round(2000 * scale))
    weights = _zipf(len(hot), 0.9)
    passing: list[int] = []
    for _ in range(round(60_000 * scale)):
        if not passing and make.random.random() < 0.004:
            passing = make.stream(make.random.randint(100, 600))[::-1]
        use = passing and make.random.random() < 0.7
        make.trace.requests.append(passing.pop() if use else hot[make.draw(weights)])
    return make.trace


def wonders(scale: float = 1.0) -> Trace:
    """Every second object is asked for once and never again."""
    make = _Maker("one-hit", 7)
    hot = make.shuffled(round(3000 * scale))
    weights = _zipf(len(hot), 0.9)
    for _ in range(round(50_000 * scale)):
        once = make.random.random() < 0.5
        make.trace.requests.append(make.stream(1)[0] if once else hot[make.draw(weights)])
    return make.trace


def readers(scale: float = 1.0) -> Trace:
    """Many readers at once; each reads a whole stream, or a part of it from anywhere, in order."""
    make = _Maker("readers", 9)
    streams = [make.stream(make.random.choice((1, 2, 8, 20, 60, 200))) for _ in range(round(300 * scale))]
    make.random.shuffle(streams)
    weights = _zipf(len(streams), 0.9)
    active: list[list[int]] = []
    for _ in range(round(60_000 * scale)):
        while len(active) < 24:
            stream = streams[make.draw(weights)]
            if make.random.random() < 0.05:
                one, other = make.draw(weights), make.random.randrange(len(streams))
                streams[one], streams[other] = streams[other], streams[one]
            first, count = 0, len(stream)
            if make.random.random() < 0.4:
                first, count = make.random.randrange(len(stream)), make.random.randint(1, max(1, len(stream) // 5))
            active.append([stream[(first + place) % len(stream)] for place in range(count)][::-1])
        which = make.random.randrange(len(active))
        make.trace.requests.append(active[which].pop())
        if not active[which]:
            active.pop(which)
    return make.trace


def recorded() -> Trace:
    """Readers of the real requester in virtual time, as ``bench_record.py`` recorded them."""
    document = json.loads(RECORDED.read_text(encoding="utf-8"))
    make = _Maker("recorded", 10)
    streams = [make.stream(objects, uplink) for objects, uplink in document["streams"]]
    flat = [each for stream in streams for each in stream]
    packed = zlib.decompress(bytes.fromhex(document["requests"]))
    make.trace.requests = [flat[int.from_bytes(packed[i : i + 2])] for i in range(0, len(packed), 2)]
    return make.trace


#: By name; each takes a scale, by which tests make small ones. The recorded one has its size.
TRACES: Final[Mapping[str, Callable[[float], Trace]]] = {
    "uniform": uniform,
    "zipf-0.8": lambda scale: drift("zipf-0.8", 0.8, 2, scale),
    "zipf-1.0": lambda scale: drift("zipf-1.0", 1.0, 3, scale),
    "zipf-1.1": lambda scale: drift("zipf-1.1", 1.1, 4, scale),
    "away": lambda scale: drift("away", 1.0, 13, scale, away=True),
    "loop": loop,
    "loops": loops,
    "scan": scan,
    "one-hit": wonders,
    "readers": readers,
    "recorded": lambda scale: recorded(),
}
