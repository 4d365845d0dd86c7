"""``scripts/sim``: many seeds on all cores, one seed in full, or many nodes."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.plan import SCENARIOS, draw
from tests.simulation.shrinking import shrink
from tests.simulation.world import Outcome, run

CHUNK = 10


@dataclass(slots=True)
class Sum:
    """What many worlds come to. ``failed``: seed → invariant and detail."""

    seeds: int = 0
    steps: int = 0
    messages: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    scenarios: Counter[str] = field(default_factory=Counter)
    failed: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """One world more."""
        self.seeds += 1
        self.steps += outcome.steps
        self.messages += outcome.messages
        self.seconds += outcome.seconds
        self.ends.update(outcome.ends)
        self.scenarios[outcome.plan.scenario] += 1
        if outcome.violation is not None:
            self.failed[outcome.plan.seed] = (outcome.violation.invariant, outcome.violation.detail)

    def join(self, other: Sum) -> None:
        """Those of another."""
        self.seeds += other.seeds
        self.steps += other.steps
        self.messages += other.messages
        self.seconds += other.seconds
        self.ends.update(other.ends)
        self.scenarios.update(other.scenarios)
        self.failed.update(other.failed)


def chunk(first: int, count: int, scenario: str | None) -> Sum:
    """So many seeds in this process."""
    total = Sum()
    for seed in range(first, first + count):
        total.add(run(draw(seed, scenario)))
    gc.collect()
    return total


def told(outcome: Outcome, last: int = 80) -> Iterator[str]:
    """A failing world, smallest first, for people; and how to see it again."""
    assert outcome.violation is not None
    plan = outcome.plan
    yield f"seed {plan.seed} ({plan.scenario}) violates {outcome.violation}"
    small = shrink(outcome)
    assert small.violation is not None
    assert small.trace is not None
    yield f"smallest world found that does so too: {small.violation}"
    yield from (f"  {line}" for line in small.plan.describe())
    yield f"its last {last} steps (seconds, who, what):"
    yield from (f"  {line}" for line in small.trace.text(last))
    scenario = "" if draw(plan.seed).scenario == plan.scenario else f" --scenario {plan.scenario}"
    yield f"again: scripts/sim --seed {plan.seed}{scenario}"


def one(seed: int, scenario: str | None) -> int:
    """One seed in full."""
    outcome = run(draw(seed, scenario))
    if outcome.violation is None:
        print(f"seed {seed} ({outcome.plan.scenario}): nothing violated in {outcome.seconds:.1f} s of its own time")
        print("\n".join(f"  {line}" for line in outcome.plan.describe()))
        print(f"  {outcome.messages} messages, {outcome.puts} uploads, ends {dict(outcome.ends)}")
        print(f"  trace {outcome.digest}")
        return 0
    for line in told(outcome):
        print(line)
    return 1


def soak(first: int, seeds: int, jobs: int, scenario: str | None) -> Sum:
    """Many seeds on many cores, with a line of progress where somebody watches."""
    total, since = Sum(), time.monotonic()
    pieces = [(at, min(CHUNK, first + seeds - at), scenario) for at in range(first, first + seeds, CHUNK)]
    with ProcessPoolExecutor(jobs) as pool:
        for done in pool.map(chunk, *zip(*pieces, strict=True)):
            total.join(done)
            if sys.stderr.isatty():
                rate = total.seeds / (time.monotonic() - since)
                print(
                    f"\r{total.seeds}/{seeds} seeds, {rate:.1f}/s, {len(total.failed)} failed ", end="", file=sys.stderr
                )
            if len(total.failed) >= 5:
                pool.shutdown(cancel_futures=True)
                break
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return total


def rows(total: Sum) -> list[dict[str, Any]]:
    """For the table of docs/reliability.md."""
    outcome = "every invariant held" if not total.failed else f"failed: {sorted(total.failed)}"
    return [
        {
            "table": "seeds",
            "columns": {"scenario": "all", "seeds": total.seeds, "steps": total.steps, "outcome": outcome},
        }
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exits with 1 if a seed failed."""
    parser = argparse.ArgumentParser(
        prog="scripts/sim", description="Simulate hubs, holders, readers and their faults."
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="only this one, told in full")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--scale", nargs="?", const="10,100,1000,10000", metavar="N,N", help="numbers of nodes instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", metavar="FILE", help="append rows to this file (see scripts/reliability)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return one(options.seed, options.scenario)
    if options.scale is not None:
        from tests.simulation.scale import measure

        found = measure([int(part) for part in options.scale.split(",")])
    else:
        total = soak(options.first, options.seeds, options.jobs, options.scenario)
        found = rows(total)
        if not options.json:
            print(
                f"{total.seeds} seeds, {total.steps} checked steps, {total.messages} messages, "
                f"{total.seconds / 3600:.1f} h of virtual time; ends: {dict(total.ends)}"
            )
    if options.report:
        with open(options.report, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    if options.json:
        print(json.dumps([row["columns"] for row in found]))
    if options.scale is None and total.failed:
        for seed in sorted(total.failed)[:3]:
            for line in told(run(draw(seed, options.scenario))):
                print(line)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
