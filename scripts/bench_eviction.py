"""``scripts/bench eviction``: the hub's eviction policy beside known ones, in seconds that providers spend on uploads.

Each trace of ``bench_traces.py`` is replayed with caches of several shares of its footprint. A miss costs what the
upload of the object costs; the figure is the sum of these over what it would be without a cache, so less is better.
Ours runs the code of the hub (``entrepot_hub.core.eviction``) and is told costs with an error of measurement.

The bound: a policy that keeps an object between two of its reads saves the upload and fills its size for the time
between (counted in requests). All of what is kept at one time fits the cache, so sizes times lengths sum up to no more
than the cache times the length of the trace. The dearest uploads that fit *that* are a fractional knapsack, which no
policy can beat, be it told the future; none needs to reach it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from scripts.bench_traces import TRACES, Trace

from entrepot_hub.core.eviction import LATENCY, Candidate, Merit, arrived, choose, left, measured, visited

#: Cache sizes as shares of the footprint.
SHARES: Final = (0.02, 0.05, 0.10, 0.25)
#: Standard deviation of the logarithm of a measured upload.
SCATTER: Final = 0.2
PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "eviction.md"
MARKS: Final = ("<!-- made by scripts/bench eviction --write -->", "<!-- end -->")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay cost in seconds; ``unserved``: misses while nobody online held the stream."""

    cost: float
    unserved: int = 0
    evicted: tuple[int, ...] = ()


class Ours:
    """The hub's policy over a heap, as the ledger runs it over an index. One request is one second."""

    def __init__(self, trace: Trace, capacity: int, *, scatter: float = SCATTER) -> None:
        self._trace = trace
        self._capacity = capacity
        self._random = Random(7)
        self._scatter = scatter
        self._heap: list[tuple[float, int, int]] = []
        self._merits: dict[int, Merit] = {}
        self._places: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._stored = self._evicted = self._count = self._now = 0
        self._level = 0.0
        self.left: list[int] = []

    def replay(self) -> Outcome:
        """All requests of the trace."""
        trace, cost, unserved = self._trace, 0.0, 0
        for at, number in enumerate(trace.requests):
            self._now = at
            if number in self._places:
                self._merits[number] = visited(self._merits[number], self._level)
            else:
                cost += trace.costs[number]
                unserved += not trace.online(trace.streams[number], at)
                self._upload(number)
            self._used[number] = at
            heapq.heappush(self._heap, (self._merits[number].standing, -self._places[number], number))
        return Outcome(cost, unserved, tuple(self.left))

    def _upload(self, number: int) -> None:
        size = self._trace.sizes[number]
        if self._stored + size > self._capacity:
            self._make_room(self._stored + size - self._capacity)
        seconds = (self._trace.costs[number] - LATENCY) * math.exp(self._random.gauss(0, self._scatter))
        before = self._merits.get(number, Merit())
        self._merits[number] = arrived(before, measured(seconds), self._level, self._evicted, self._capacity)
        self._count += 1
        self._places[number] = self._count
        self._stored += size

    def _make_room(self, need: int) -> None:
        met: list[int] = []
        choice = choose(self._candidates(met), need, len(self._places), self._level, self._now)
        self._level = choice.level
        for number, standing in choice.raised:
            merit = self._merits[number]
            self._merits[number] = Merit(merit.visits, merit.cost, standing, merit.left_at)
        for number in choice.chosen:
            size = self._trace.sizes[number]
            self._evicted += size
            self._stored -= size
            self._merits[number] = left(self._merits[number], self._evicted)
            del self._places[number]
            self.left.append(number)
        for number in met:
            if number in self._places:
                heapq.heappush(self._heap, (self._merits[number].standing, -self._places[number], number))

    def _candidates(self, met: list[int]) -> Iterator[Candidate[int]]:
        seen: set[int] = set()
        while self._heap:
            standing, place, number = heapq.heappop(self._heap)
            merit = self._merits[number]
            if self._places.get(number) != -place or merit.standing != standing or number in seen:
                continue
            seen.add(number)
            met.append(number)
            online = self._trace.online(self._trace.streams[number], self._now)
            yield Candidate(
                key=number,
                place=-place,
                size=self._trace.sizes[number],
                standing=standing,
                visits=merit.visits,
                cost=merit.cost,
                holders=int(online),
                used_at=self._used[number],
            )


def ours(trace: Trace, capacity: int) -> Outcome:
    """The hub's policy."""
    return Ours(trace, capacity).replay()


def gdsf(trace: Trace, capacity: int) -> Outcome:
    """Greedy-dual size frequency with the same costs, exactly known (libcachesim's takes every cost for one)."""
    heap: list[tuple[float, int, int]] = []
    priority: dict[int, float] = {}
    uses: dict[int, int] = {}
    level, stored, cost, unserved = 0.0, 0, 0.0, 0
    for at, number in enumerate(trace.requests):
        size = trace.sizes[number]
        if number in priority:
            uses[number] += 1
        else:
            cost += trace.costs[number]
            unserved += not trace.online(trace.streams[number], at)
            while stored + size > capacity:
                lowest, _, victim = heapq.heappop(heap)
                if priority.get(victim) == lowest:
                    level = max(level, lowest)
                    stored -= trace.sizes[victim]
                    del priority[victim]
            stored += size
            uses[number] = 1
        priority[number] = level + uses[number] * trace.costs[number] / size
        heapq.heappush(heap, (priority[number], at, number))
    return Outcome(cost, unserved)


def known(name: str) -> Callable[[Trace, int], Outcome]:
    """A policy of libcachesim, with its defaults."""

    def replay(trace: Trace, capacity: int) -> Outcome:
        import libcachesim  # type: ignore[import-untyped]

        cache = getattr(libcachesim, name)(capacity)
        request = libcachesim.Request()
        cost, unserved = 0.0, 0
        for at, number in enumerate(trace.requests):
            request.obj_id, request.obj_size, request.clock_time = number, trace.sizes[number], at
            if not cache.get(request):
                cost += trace.costs[number]
                unserved += not trace.online(trace.streams[number], at)
        return Outcome(cost, unserved)

    return replay


def bound(trace: Trace, capacity: int) -> float:
    """Seconds that no policy can stay below: see above."""
    last: dict[int, int] = {}
    keeps: list[tuple[float, float, float]] = []
    for at, number in enumerate(trace.requests):
        if number in last:
            room = float(trace.sizes[number]) * (at - last[number])
            keeps.append((-trace.costs[number] / room, room, trace.costs[number]))
        last[number] = at
    budget, saved = float(capacity) * len(trace.requests), 0.0
    for _, room, cost in sorted(keeps):
        part = min(1.0, budget / room)
        saved += part * cost
        budget -= part * room
        if part < 1.0:
            break
    return trace.cost - saved


POLICIES: Final[Mapping[str, Callable[[Trace, int], Outcome]]] = {
    "ours": ours,
    "LRU": known("LRU"),
    "S3-FIFO": known("S3FIFO"),
    "SIEVE": known("Sieve"),
    "GDSF": gdsf,
    "ARC": known("ARC"),
}


def measure(name: str, share: float, trace: Trace) -> dict[str, Any]:
    """One row of the table: figures relative to no cache."""
    capacity, whole = int(trace.footprint * share), trace.cost
    outcomes = {policy: replay(trace, capacity) for policy, replay in POLICIES.items()}
    figures = {policy: outcome.cost / whole for policy, outcome in outcomes.items()}
    best = min((policy for policy in figures if policy != "ours"), key=lambda policy: figures[policy])
    return {
        "trace": name,
        "share": share,
        "requests": len(trace.requests),
        "figures": figures,
        "bound": bound(trace, capacity) / whole,
        "best": best,
        "against_best": figures["ours"] / figures[best],
        "unserved": {policy: outcome.unserved for policy, outcome in outcomes.items()} if trace.away else {},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; the best of the compared policies in bold."""
    lines = [
        "| trace | cache | " + " | ".join(POLICIES) + " | bound | ours / best |",
        "|---|---|" + "---|" * (len(POLICIES) + 2),
    ]
    for row in rows:
        cells = [f"**{v:.3f}**" if name == row["best"] else f"{v:.3f}" for name, v in row["figures"].items()]
        lines.append(
            f"| {row['trace']} | {row['share']:.0%} | {' | '.join(cells)} | {row['bound']:.3f} | "
            f"{row['against_best']:.2f} |"
        )
    worst = max(rows, key=lambda row: row["against_best"])
    over = [f"{row['trace']} at {row['share']:.0%}" for row in rows if row["against_best"] > 1.10]
    lines += [
        "",
        f"Farthest behind the best compared policy: {worst['against_best']:.2f} times, {worst['trace']} at "
        f"{worst['share']:.0%}. More than 10 % behind: {', '.join(over) or 'nowhere'}.",
    ]
    for row in rows:
        if row["unserved"]:
            counts = ", ".join(f"{name} {count}" for name, count in row["unserved"].items())
            lines.append(f"\nReads of `{row['trace']}` at {row['share']:.0%} that nobody online could serve: {counts}.")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench eviction", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="put the table into docs/eviction.md")
    parser.add_argument("--trace", action="append", choices=list(TRACES), help="only this one (may be repeated)")
    options = parser.parse_args()
    rows = []
    for name in options.trace or TRACES:
        trace = TRACES[name](1.0)
        for share in SHARES:
            rows.append(measure(name, share, trace))
            print(f"{name} at {share:.0%}", file=sys.stderr)
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{table(rows)}\n\n{MARKS[1]}{after}", encoding="utf-8")
    print(json.dumps({"rows": rows}) if options.json else table(rows))


if __name__ == "__main__":
    main()
