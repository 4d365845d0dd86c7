"""The numbers to reach, and how near what was measured came to them.

| what the design asks for | scenario that shows it |
|---|---|
| 1 GiB over links of 1 Gbit/s each way: at most 1.15 × size / link | `shaped` |
| 1 GiB over bare loopback: at most the fastest uploader and then the fastest downloader, same server | `loopback` |
| CPU of a node for each GiB: provider 1.5 s, 0.5 s with known digests, requester 1.2 s | `loopback`, `again` |
| one provider, 20 requesters of one stream: 1.00 × the bytes uploaded | `fanout` |
| memory of a node that moves 100 GiB: at most 200 MiB | `large`, with 10 GiB |
| 1 % of 10 GiB in random reads of 1 MiB: 1.3 % to the reader, only objects that are touched uploaded | `reads` |
| a file of 1 KiB that nobody has cached: median at most 20 ms | `tiny` |
| 10,000 files of 4 KiB: 500 a second one by one | `many` |
| 10,000 files of 4 KiB: 3,000 a second as a tree | none: trees are not built |
| hub: 1,000 grants and 5,000 signed GETs a second and core | `hub` |
| a page of 1,000,000 catalogue rows by any filter: at most 5 ms | none: moves no data, and the catalogue is not built |
| killed provider: the next holder uploads within 3 s | `failover` |
| hub, provider and requester on one core: 1 GiB, no lease lapsed | `single` |
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scripts.bench_gauge import GIB, MIB, Row, Rows, Spread, size_text

#: Tools that do not go through the server that ours went through.
ELSEWHERE = frozenset({"libtorrent", "curl on nginx"})


@dataclass(frozen=True)
class Verdict:
    """What was measured of a target, in words, and whether it is met; None where a smaller stream was measured, of
    which the target says nothing."""

    figure: str
    met: bool | None


@dataclass(frozen=True)
class Target:
    """A row of the design's table. ``judge`` gives None where its scenario was not run, or there is none."""

    what: str
    target: str
    scenario: str | None
    judge: Callable[[Rows], Verdict | None]
    #: Why there is no scenario.
    lacks: str = ""


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(found: Spread | None, unit: float = 1.0) -> str:
    """Median and, where there was more than one run, least and most."""
    if found is None:
        return "–"
    text = number(found.median / unit)
    return text if found.count == 1 else f"{text} ({number(found.least / unit)}–{number(found.most / unit)})"


def total(row: Row) -> float:
    """Seconds of a run, of a tool those of both halves."""
    return row.values["wall"] if "wall" in row.values else row.values["up_wall"] + row.values["down_wall"]


def ratios(rows: Sequence[Row], ours: Sequence[Row]) -> Spread | None:
    """A tool's seconds as multiples of ours, each of the same run."""
    by_run = {row.run: total(row) for row in ours}
    return Spread.of(total(row) / by_run[row.run] for row in rows if row.run in by_run)


def halves(rows: Rows, scenario: str, case: str) -> tuple[str, str, Spread] | None:
    """Who uploads fastest and who downloads fastest through the server that ours went through, by their medians, and
    our time as a multiple of both together, run by run. Who took part in fewer runs than others is not chosen: what is
    fastest once may have had a quiet moment."""
    best: dict[str, tuple[float, str]] = {}
    seconds: dict[tuple[str, str], dict[int, float]] = {}
    most = max(
        (len(rows.where(scenario, case, row.who)) for row in rows.where(scenario, case) if _rival(row)), default=0
    )
    for who in {row.who for row in rows.where(scenario, case) if _rival(row)}:
        for half in ("up_wall", "down_wall"):
            runs = {row.run: row.values[half] for row in rows.where(scenario, case, who) if half in row.values}
            if len(runs) == most:
                seconds[who, half] = runs
                best[half] = min(best.get(half, (float("inf"), "")), (statistics.median(runs.values()), who))
    if len(best) < 2:
        return None
    (_, up), (_, down) = best["up_wall"], best["down_wall"]
    ups, downs = seconds[up, "up_wall"], seconds[down, "down_wall"]
    found = Spread.of(
        row.values["wall"] / (ups[row.run] + downs[row.run])
        for row in rows.where(scenario, case, "entrepot")
        if row.run in ups and row.run in downs
    )
    return None if found is None else (up, down, found)


def _rival(row: Row) -> bool:
    return row.who not in ELSEWHERE | {"entrepot"}


def largest(rows: Iterable[Row]) -> list[Row]:
    """Those of the largest streams."""
    found = [row for row in rows if row.values.get("size")]
    most = max((row.values["size"] for row in found), default=0)
    return [row for row in found if row.values["size"] == most]


def at(rows: Sequence[Row], meant: float) -> str:
    """Says the size where it is not the one that is meant."""
    size = int(rows[0].values["size"])
    return "" if size == meant else f" at {size_text(size)}"


def asked(rows: Sequence[Row], meant: float, met: bool) -> bool | None:
    """``met``, if it was the size that is meant."""
    return met if rows[0].values["size"] == meant else None


def _shaped(rows: Rows) -> Verdict | None:
    ours = largest(row for row in rows.where("shaped", who="entrepot") if row.case.endswith("1 Gbit/s"))
    found = Spread.of(row.values["wall"] / row.values["ideal"] for row in ours)
    return (
        None if found is None else Verdict(f"{spread(found)} ×{at(ours, GIB)}", asked(ours, GIB, found.median <= 1.15))
    )


def _loopback(rows: Rows) -> Verdict | None:
    ours = largest(rows.where("loopback", who="entrepot"))
    told, met = [], True
    for case in dict.fromkeys(row.case for row in ours):
        found = halves(rows, "loopback", case)
        if found is not None:
            up, down, ratio = found
            told.append(f"{spread(ratio)} × on {case.rpartition(', ')[2]} ({up} up, {down} down)")
            met = met and ratio.median <= 1.0
    return Verdict("; ".join(told) + at(ours, GIB), asked(ours, GIB, met)) if told else None


def _cpu(scenario: str, who: str, part: str, most: float) -> Callable[[Rows], Verdict | None]:
    def judge(rows: Rows) -> Verdict | None:
        ours = [row for row in largest(rows.where(scenario, who=who)) if "ministack" not in row.case]
        found = Spread.of(row.values[f"cpu_{part}"] / row.values["size"] * GIB for row in ours)
        if found is None:
            return None
        # Of some seconds the start of the process is a small part.
        enough = ours[0].values["size"] >= GIB / 2
        size = "" if enough else at(ours, GIB)
        return Verdict(f"{spread(found)} s{size}", found.median <= most if enough else None)

    return judge


def _fanout(rows: Rows) -> Verdict | None:
    ours = rows.where("fanout")
    found = Spread.of(row.values["up"] / row.values["size"] for row in ours)
    if found is None:
        return None
    same = all(row.values["requests"] == row.values["objects"] for row in ours)
    readers = ours[0].values["nodes"]
    return Verdict(f"{found.median:.3f} × to {readers:.0f}, headers included", same and found.most < 1.01)


def _memory(rows: Rows) -> Verdict | None:
    ours = largest(rows.where("large"))
    parts = {part: Spread.of(row.values[f"rss_{part}"] for row in ours) for part in ("provider", "requester")}
    told = [f"{part} {found.most / MIB:.0f} MiB" for part, found in parts.items() if found]
    met = all(found.most <= 200 * MIB for found in parts.values() if found)
    return (
        Verdict(f"{', '.join(told)}{at(ours, 100 * GIB)}", met if ours[0].values["size"] >= 10 * GIB else None)
        if told
        else None
    )


def _reads(rows: Rows) -> Verdict | None:
    ours = largest(rows.where("reads"))
    # Of a smaller stream one read is more than a hundredth: its share counts.
    found = Spread.of(row.values["down"] / row.values["read"] for row in ours)
    if found is None:
        return None
    only = all(row.values["objects"] <= row.values["touched"] for row in ours)
    objects = f"{ours[0].values['objects']:.0f} objects uploaded of {ours[0].values['touched']:.0f} touched"
    return Verdict(
        f"{found.median:.2f} %{at(ours, 10 * GIB)}; {objects}", asked(ours, 10 * GIB, only and found.most <= 1.3)
    )


def _tiny(rows: Rows) -> Verdict | None:
    told, met = [], True
    for case in rows.named("tiny"):
        found = rows.spread("wall", "tiny", case) if "API" in case else None
        if found is not None:
            told.append(f"{found.median * 1000:.1f} ms ({case.rpartition(', ')[2]})")
            met = met and found.median <= 0.020
    return Verdict(", ".join(told), met) if told else None


def _many(rows: Rows) -> Verdict | None:
    ours = rows.where("many", who="entrepot")
    found = Spread.of(row.values["files"] / row.values["wall"] for row in ours)
    if found is None:
        return None
    files = ours[0].values["files"]
    return Verdict(f"{spread(found)} files/s of {files:,.0f}", found.median >= 500 if files >= 10_000 else None)


def _hub(rows: Rows) -> Verdict | None:
    ours = rows.where("hub")
    grants = Spread.of(row.values["grants"] / row.values["cpu_hub"] for row in ours if row.values["cpu_hub"])
    signed = Spread.of(row.values["signed"] / row.values["read_cpu_hub"] for row in ours if row.values["read_cpu_hub"])
    if grants is None or signed is None:
        return None
    met = grants.median >= 1000 and signed.median >= 5000
    return Verdict(f"{spread(grants)} grants, {spread(signed)} signed GETs a second of its CPU", met)


def _failover(rows: Rows) -> Verdict | None:
    found = Spread.of(row.values["wall"] for row in rows.where("failover"))
    return None if found is None else Verdict(f"{spread(found)} s", found.most <= 3.0)


def _single(rows: Rows) -> Verdict | None:
    ours = largest(rows.where("single"))
    if not ours:
        return None
    lapsed = sum(row.values["lapsed"] for row in ours)
    took = Spread.of(row.values["wall"] for row in ours)
    return Verdict(f"{lapsed:.0f} lapsed, {spread(took)} s{at(ours, GIB)}", asked(ours, GIB, lapsed == 0))


TARGETS: Sequence[Target] = (
    Target("1 GiB, links of 1 Gbit/s each way", "≤ 1.15 × size / link", "shaped", _shaped),
    Target("the same on bare loopback", "≤ 1.0 × (fastest up, then fastest down)", "loopback", _loopback),
    Target("CPU for a GiB, provider", "≤ 1.5 s", "again", _cpu("again", "first time", "provider", 1.5)),
    Target("CPU for a GiB, provider, digests known", "≤ 0.5 s", "again", _cpu("again", "again", "provider", 0.5)),
    Target("CPU for a GiB, requester", "≤ 1.2 s", "loopback", _cpu("loopback", "entrepot", "requester", 1.2)),
    Target("one provider, 20 requesters of one stream", "uploads 1.00 × the bytes", "fanout", _fanout),
    Target("memory of a node moving 100 GiB", "≤ 200 MiB", "large", _memory),
    Target("1 % of 10 GiB in random reads of 1 MiB", "≤ 1.3 % to the reader, touched objects only", "reads", _reads),
    Target("a file of 1 KiB that nobody has cached", "median ≤ 20 ms", "tiny", _tiny),
    Target("10,000 files of 4 KiB, one by one", "≥ 500 files/s", "many", _many),
    Target("10,000 files of 4 KiB, as a tree", "≥ 3,000 files/s", None, lambda rows: None, "trees are not built"),
    Target("hub, for each core", "≥ 1,000 grants/s, ≥ 5,000 signed GETs/s", "hub", _hub),
    Target("a page of 1,000,000 catalogue rows", "≤ 5 ms", None, lambda rows: None, "the catalogue is not built"),
    Target("killed provider", "next holder uploads within 3 s", "failover", _failover),
    Target("hub, provider, requester on one core, 1 GiB", "no lease lapsed", "single", _single),
)
