"""Rows of ``scripts/bench transfer`` as the tables and plots of docs/performance.md.

The words of the page are written by hand; what is between the marks of a section is made of the rows.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scripts.bench_gauge import GIB, MIB, Row, Rows, Spread
from scripts.bench_targets import ELSEWHERE, TARGETS, halves, number, ratios, spread, total

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "performance.md"
ROWS: Final = ROOT / "docs" / "data" / "performance.jsonl"
#: ``performance-SCENARIO.svg`` lie there.
IMAGES: Final = ROOT / "docs" / "images"
NOTHING: Final = "Not measured yet."
_OURS = "entrepot"
_SHOWN: Final = 0.025  # smaller shares of a profile are left out


def write(rows: Rows, page: Path = PAGE, images: Path = IMAGES) -> None:
    """Put tables and plots of these rows into the page; sections without rows say so."""
    text = page.read_text(encoding="utf-8")
    for name in SECTIONS:
        text = placed(text, name, made(name, rows))
    page.write_text(text, encoding="utf-8")
    for scenario in PLOTTED:
        plot(rows, scenario, images / f"performance-{scenario}.svg")


def placed(text: str, name: str, content: str) -> str:
    """The page with this between the marks of a section. Raises ``ValueError`` where it has no such section."""
    mark = f"<!-- made by scripts/bench transfer: {name} -->"
    found, count = re.subn(
        f"{re.escape(mark)}.*?<!-- end -->",
        lambda _: f"{mark}\n\n{content}\n\n<!-- end -->",
        text,
        count=1,
        flags=re.DOTALL,
    )
    if not count:
        raise ValueError(f"the page has no section {name}")
    return found


def tables(rows: Rows) -> str:
    """All tables that have something to show, for a terminal."""
    parts = [f"{name}\n\n{made(name, rows)}" for name in SECTIONS]
    return "\n\n".join(part for part in parts if not part.endswith(NOTHING))


def made(name: str, rows: Rows) -> str:
    """A section, with what went wrong with ours."""
    text = SECTIONS[name](rows)
    lacks = [row.lacks for row in rows.rows if row.scenario == name and row.who == _OURS and row.lacks]
    return "\n\n".join([text, *(f"**Not finished**, {one}." for one in lacks)])


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    if not lines:
        return NOTHING
    cells = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells)


# -- sections -------------------------------------------------------------------------------------------------------


def machine(rows: Rows) -> str:
    """What the figures were made on, and of each scenario how; on what, where that was another machine."""
    parts = [table(("", ""), list(rows.machine.items()))]
    lines = []
    for name in SECTIONS:
        if run := rows.runs.get(name):
            on = [run[key] for key in ("processor", "cores", "memory") if run.get(key, "") != rows.machine.get(key, "")]
            kind = {"quick": "quick, with small streams", "whole": "whole"}.get(run["run"], run["run"])
            lines.append((f"`{name}`", kind, run["took"], run["load before"], ", ".join(on) if on else "this"))
    if lines:
        parts.append(table(("scenario", "run", "took", "others' load before", "machine"), lines))
    return "\n\n".join(parts)


def targets(rows: Rows) -> str:
    """Every row of the design's table."""
    lines = []
    for one in TARGETS:
        verdict = one.judge(rows)
        if one.scenario is None:
            figure, met = one.lacks, "–"
        elif verdict is None:
            figure, met = "not measured", "–"
        else:
            figure, met = verdict.figure, {True: "met", False: "**missed**", None: "–"}[verdict.met]
        scenario = "–" if one.scenario is None else f"`{one.scenario}`"
        lines.append((one.what, one.target, figure, met, scenario))
    return table(("what", "to reach", "measured", "", "scenario"), lines)


def versus(scenario: str, rows: Rows) -> str:
    """A table for each case of a scenario: ours, and what each tool takes for up and then down."""
    parts = []
    for case in rows.named(scenario):
        ours = rows.where(scenario, case, _OURS)
        if not ours:
            continue
        lines = [_line(rows, scenario, case, who, ours) for who in _tools(rows, scenario, case)]
        columns = ("", "up, s", "down, s", "together, s", "× entrepot", "CPU, s", "memory, MiB")
        part = f"**{case}** ({len(ours)} runs)\n\n{table(columns, lines)}"
        best = halves(rows, scenario, case)
        if best is not None:
            up, down, ratio = best
            part += f"\n\nAgainst the fastest up ({up}) and then the fastest down ({down}): {spread(ratio)} ×."
        if "ideal" in ours[0].values:
            wire = Spread.of(row.values["wall"] / row.values["ideal"] for row in ours)
            part += f" Against size / link: {spread(wire)} ×."
        if "line_both" in ours[0].values:
            rates = [number(ours[0].values[f"line_{way}"] * 8 / 1e6) for way in ("up", "down", "both")]
            part += (
                " Plain TCP connections on these lines: {} Mbit/s up, {} down, the slower of both at once {}.".format(
                    *rates
                )
            )
        parts.append(part + _prepared(rows, scenario, case) + _use(ours))
    parts += _lacking(rows, scenario)
    return "\n\n".join(parts) or NOTHING


def _lacking(rows: Rows, scenario: str) -> list[str]:
    """Which tools brought nothing, and why; where they did something else of the scenario, which case that was."""
    lines = []
    for row in rows.rows:
        if row.scenario == scenario and row.lacks and row.who != _OURS:
            did = bool(rows.where(scenario, who=row.who))
            lines.append(f"Without {row.who}{f' in {row.case}' if did else ''}: {row.lacks.rstrip('.')}.")
    return list(dict.fromkeys(lines))


def _tools(rows: Rows, scenario: str, case: str) -> list[str]:
    """Ours, then tools through the same server, fastest first, then those that go elsewhere."""
    found = {row.who: row for row in rows.where(scenario, case)}

    def order(who: str) -> tuple[bool, bool, float]:
        runs = [total(row) for row in rows.where(scenario, case, who)]
        return who != _OURS, who in ELSEWHERE, statistics.median(runs)

    return sorted(found, key=order)


def _line(rows: Rows, scenario: str, case: str, who: str, ours: Sequence[Row]) -> tuple[str, ...]:
    found = rows.where(scenario, case, who)
    if who == _OURS:
        cpu = Spread.of(row.values["cpu_requester"] + row.values["cpu_provider"] for row in found)
        rss = Spread.of(max(row.values["rss_requester"], row.values["rss_provider"]) for row in found)
        return (f"**{who}**", "", "", spread(Spread.of(map(total, found))), "1", spread(cpu), spread(rss, MIB))
    up, down = (rows.spread(name, scenario, case, who) for name in ("up_wall", "down_wall"))
    cpu = Spread.of(row.values["up_cpu"] + row.values["down_cpu"] for row in found)
    rss = Spread.of(max(row.values["up_rss"], row.values["down_rss"]) for row in found)
    note = " ¹" if who in ELSEWHERE else ""
    both = spread(Spread.of(map(total, found)))
    return (f"{who}{note}", spread(up), spread(down), both, spread(ratios(found, ours)), spread(cpu), spread(rss, MIB))


def _prepared(rows: Rows, scenario: str, case: str) -> str:
    """What is done once for a file, before, and is not in the time."""
    found = [(who, rows.spread("prepare_wall", scenario, case, who)) for who in _tools(rows, scenario, case)]
    told = ", ".join(f"{who} {spread(one)} s" for who, one in found if one is not None)
    return f"\n\nBefore that, once for a file (hashes): {told}." if told else ""


def _use(ours: Sequence[Row]) -> str:
    """What each process used, of ours."""
    parts = []
    for part in ("requester", "provider", "hub", "bus", "store"):
        cpu = Spread.of(row.values[f"cpu_{part}"] for row in ours if f"cpu_{part}" in row.values)
        rss = Spread.of(row.values[f"rss_{part}"] for row in ours if f"rss_{part}" in row.values)
        if cpu is not None and rss is not None:
            name = {"bus": "nats-server", "store": "the bucket's server"}.get(part, part)
            parts.append(f"{name} {spread(cpu)} s and {number(rss.most / MIB)} MiB")
    return f"\n\nCPU and peak memory of entrepot's processes: {'; '.join(parts)}." if parts else ""


def wire(rows: Rows) -> str:
    """Requests and bytes at the bucket."""
    lines = []
    for row in rows.where("wire"):
        values, size = row.values, _size(row)
        requests = ", ".join(
            f"{values[method]:.0f} {method}"
            for method in ("PUT", "GET", "HEAD", "POST", "DELETE")
            if values.get(method)
        )
        if values.get("hub"):
            requests += f"; {values['hub']:.0f} of the hub"
        name = f"**{row.who}**" if row.who == _OURS else row.who
        shares = [f"{values[way] / size:.4f} ×" for way in ("up", "down")]
        lines.append((name, f"{values['requests'] + values.get('hub', 0):.0f}", requests, *shares))
    return table(("", "requests", "of which", "bytes up", "bytes down"), lines)


def _size(row: Row) -> float:
    return float(row.values["size"])


def shares(scenario: str, rows: Rows) -> str:
    """What each process used for a GiB, for each kind of run."""
    lines = []
    for case in rows.named(scenario):
        for who in dict.fromkeys(row.who for row in rows.where(scenario, case)):
            found = rows.where(scenario, case, who)
            cells = [case if who == _OURS else f"{case}, {who}", spread(Spread.of(map(total, found)))]
            for part in ("requester", "provider", "hub"):
                used = Spread.of(row.values[f"cpu_{part}"] / _size(row) * GIB for row in found)
                rss = Spread.of(row.values[f"rss_{part}"] for row in found)
                cells += [spread(used), "–" if rss is None else number(rss.most / MIB)]
            if scenario == "single":
                cells.append(f"{sum(row.values['lapsed'] for row in found):.0f}")
            lines.append(cells)
    columns = ["", "s"]
    for part in ("requester", "provider", "hub"):
        columns += [f"{part}: CPU s/GiB", "MiB"]
    return table(columns + (["leases lapsed"] if scenario == "single" else []), lines)


def tiny(rows: Rows) -> str:
    """Milliseconds of small gets."""
    lines = []
    for case in rows.named("tiny"):
        found = sorted(row.values["wall"] * 1000 for row in rows.where("tiny", case))
        if found:
            late = found[min(int(len(found) * 0.95), len(found) - 1)]
            cells = [number(value) for value in (statistics.median(found), late, found[0], found[-1])]
            lines.append((case, str(len(found)), *cells))
    return table(("", "gets", "median, ms", "95 %", "least", "most"), lines)


def many(rows: Rows) -> str:
    """Files a second."""
    lines = []
    for case in rows.named("many"):
        ours = rows.where("many", case, _OURS)
        for who in _tools(rows, "many", case):
            found = rows.where("many", case, who)
            seconds = Spread.of(map(total, found))
            rate = Spread.of(ours[0].values["files"] / total(row) for row in found)
            cpu = Spread.of(
                sum(row.values.get(name, 0.0) for name in ("cpu_requester", "cpu_provider", "up_cpu", "down_cpu"))
                for row in found
            )
            name = f"**{who}**" if who == _OURS else f"{who}{' ¹' if who in ELSEWHERE else ''}"
            lines.append((case, name, spread(seconds), spread(rate), spread(ratios(found, ours)), spread(cpu)))
    found_ = table(("", "", "together, s", "files/s", "× entrepot", "CPU, s"), lines)
    return "\n\n".join([found_, *_lacking(rows, "many")])


def profile(rows: Rows) -> str:
    """Where the time of each process goes: a line for each, modules and functions that have most of it."""
    parts = []
    for case in rows.named("profile"):
        lines = []
        for row in rows.where("profile", case):
            most = {
                kind: ", ".join(
                    f"`{name.removeprefix(kind).strip()}` {share:.0%}".replace("%", " %")
                    for name, share in row.values.items()
                    if name.startswith(f"{kind} ") and share >= _SHOWN
                )
                for kind in ("module", "function")
            }
            lines.append((row.who, f"{row.values['samples'] / 100:.1f}", most["module"], most["function"]))
        if lines:
            columns = ("process", "busy, s", "in which modules", "in which functions")
            parts.append(f"**{case}**\n\n{table(columns, lines)}")
    return "\n\n".join([*parts, *_lacking(rows, "profile")]) or NOTHING


def plain(scenario: str, columns: Mapping[str, Callable[[Row], float]], rows: Rows) -> str:
    """One line for each case, one column for each figure."""
    lines = [
        [case, *(spread(Spread.of(figure(row) for row in rows.where(scenario, case))) for figure in columns.values())]
        for case in rows.named(scenario)
        if rows.where(scenario, case)
    ]
    return table(["", *columns], lines)


_FANOUT: Mapping[str, Callable[[Row], float]] = {
    "s": lambda row: row.values["wall"],
    "objects": lambda row: row.values["objects"],
    "PUTs": lambda row: row.values["requests"],
    "bytes up / bytes of the stream": lambda row: row.values["up"] / _size(row),
    "bytes down / (readers × bytes)": lambda row: row.values["down"] / _size(row) / row.values["nodes"],
}
_READS: Mapping[str, Callable[[Row], float]] = {
    "bytes asked for, MiB": lambda row: row.values["read"] / MIB,
    "bytes to the reader / asked for": lambda row: row.values["down"] / row.values["read"],
    "objects touched": lambda row: row.values["touched"],
    "objects uploaded": lambda row: row.values["objects"],
}
_HUB: Mapping[str, Callable[[Row], float]] = {
    "grants / CPU s of the hub": lambda row: row.values["grants"] / max(row.values["cpu_hub"], 0.01),
    "grants / s": lambda row: row.values["grants"] / row.values["wall"],
    "signed GETs / CPU s": lambda row: row.values["signed"] / max(row.values["read_cpu_hub"], 0.01),
    "signed GETs / s": lambda row: row.values["signed"] / row.values["read_wall"],
}
_FAILOVER: Mapping[str, Callable[[Row], float]] = {"until the next holder uploads, s": lambda row: row.values["wall"]}

#: The sections of the page by name.
SECTIONS: Mapping[str, Callable[[Rows], str]] = {
    "machine": machine,
    "targets": targets,
    "loopback": lambda rows: versus("loopback", rows),
    "shaped": lambda rows: versus("shaped", rows),
    "wire": wire,
    "again": lambda rows: shares("again", rows),
    "large": lambda rows: shares("large", rows),
    "single": lambda rows: shares("single", rows),
    "reads": lambda rows: plain("reads", _READS, rows),
    "tiny": tiny,
    "many": many,
    "fanout": lambda rows: plain("fanout", _FANOUT, rows),
    "hub": lambda rows: plain("hub", _HUB, rows),
    "failover": lambda rows: plain("failover", _FAILOVER, rows),
    "profile": profile,
}

# -- plots ----------------------------------------------------------------------------------------------------------

#: Scenarios with a plot.
PLOTTED: Final = ("loopback", "shaped")
_UP, _DOWN, _MINE, _OTHER = "#4878a8", "#9cbcd8", "#c8553d", "#a0a0a0"


def plot(rows: Rows, scenario: str, path: Path) -> None:
    """A panel for each case: up and then down of each tool as multiples of ours, medians, with the spread of their sum.
    Nothing without rows of tools."""
    cases = [case for case in rows.named(scenario) if {row.who for row in rows.where(scenario, case)} > {_OURS}]
    if not cases:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    mpl.rcParams.update({"svg.hashsalt": "entrepot", "font.size": 9, "svg.fonttype": "none"})
    across = min(len(cases), 2)
    down = -(-len(cases) // across)
    figure, axes = plt.subplots(down, across, figsize=(5.2 * across, 2.7 * down), squeeze=False)
    panels = [axis for line in axes for axis in line]
    for axis, case in zip(panels, cases, strict=False):
        _panel(axis, rows, scenario, case)
    for axis in panels[len(cases) :]:
        axis.set_visible(False)
    colours = {"entrepot": _MINE, "up": _UP, "down": _DOWN, "not through the server": _OTHER}
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    height = figure.get_figheight()
    figure.tight_layout(rect=(0, 0.3 / height, 1, 1))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def _panel(axis: Any, rows: Rows, scenario: str, case: str) -> None:
    ours = rows.where(scenario, case, _OURS)
    base = statistics.median(map(total, ours))
    names = _tools(rows, scenario, case)
    for place, who in enumerate(reversed(names)):
        if who == _OURS:
            axis.barh(place, 1.0, color=_MINE)
            continue
        up, down = (rows.spread(name, scenario, case, who) for name in ("up_wall", "down_wall"))
        found = ratios(rows.where(scenario, case, who), ours)
        assert up is not None
        assert down is not None
        assert found is not None
        colours = (_OTHER, _OTHER) if who in ELSEWHERE else (_UP, _DOWN)
        half = found.median * up.median / (up.median + down.median)
        axis.barh(place, half, color=colours[0])
        axis.barh(place, found.median - half, left=half, color=colours[1])
        axis.plot([found.least, found.most], [place, place], color="black", linewidth=1)
        end = max(found.most, found.median)
        axis.annotate(number(found.median), (end, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    if "ideal" in ours[0].values:
        axis.axvline(ours[0].values["ideal"] / base, color="black", linestyle=":", linewidth=1)
    axis.axvline(1.0, color=_MINE, linewidth=0.8)
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_title(case, fontsize=10)
    axis.set_xlabel("up, then down, as a multiple of entrepot's time")
    axis.margins(x=0.12)
    axis.set_xlim(left=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
