"""The simulator: the hub's and the node's real services in virtual time, from seeds, with every invariant looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.simulation.mutations import ROOT
from tests.simulation.plan import Crash, Plan, Vandal, draw
from tests.simulation.regressions import PLANS
from tests.simulation.shrinking import shrink
from tests.simulation.soak import chunk, told
from tests.simulation.world import run

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(600)]

BLOCK = 50


def simulate(first: int, report: Callable[..., None]) -> None:
    """A block of seeds; the first that fails is told with the smallest world that does."""
    total = chunk(first, BLOCK, None)
    for seed in sorted(total.failed):
        pytest.fail("\n".join(told(run(draw(seed)))), pytrace=False)
    outcome = "every invariant held"
    report("seeds", scenario=f"seeds {first} to {first + BLOCK - 1}", seeds=BLOCK, steps=total.steps, outcome=outcome)


@pytest.mark.parametrize("name", PLANS)
def test_what_was_found_once_stays_mended(name: str) -> None:
    """Every world that once violated an invariant runs clean."""
    outcome = run(PLANS[name])
    assert outcome.violation is None, outcome.violation


@pytest.mark.parametrize("first", range(1, 501, BLOCK))
def test_every_invariant_holds(first: int, report: Callable[..., None]) -> None:
    """Whatever fails, every want ends in ready or a stated reason, and nothing is lost, exceeded or leaked."""
    simulate(first, report)


def test_a_seed_is_one_history() -> None:
    """The same seed gives the same trace twice in one process, and in others whatever their hash seeds are."""
    seeds = [3, 6, 11, 24]
    here = [run(draw(seed)).digest for seed in seeds]
    assert [run(draw(seed)).digest for seed in seeds] == here
    assert len(set(here)) == len(seeds)
    script = (
        "from tests.simulation.plan import draw\nfrom tests.simulation.world import run\n"
        f"print(*[run(draw(seed)).digest for seed in {seeds}])"
    )
    for hashing in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hashing}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == here


def test_seeds_reach_every_kind_of_fault_and_bucket() -> None:
    """A thousand plans hold every kind of fault, bucket and scenario that there is."""
    plans = [draw(seed) for seed in range(1, 1001)]
    kinds = {type(fault).__name__ for plan in plans for fault in plan.faults}
    assert kinds >= {
        "Lossy", "Cut", "Flap", "Crash", "Stall", "Storm", "LostAnswers", "LatePuts", "SlowCalls", "BusyDatabase",
        "Skew", "SlowUploads", "Revoke", "Liar", "Vandal",
    }  # fmt: skip
    assert {plan.bucket for plan in plans} == {"strict", "blind", "careless"}
    assert len([plan for plan in plans if plan.hubs > 1]) > 200
    assert len([plan for plan in plans if plan.pinned]) > 50
    assert len([plan for plan in plans if any(f.who.startswith("hub") for f in plan.of(Crash))]) > 50


def test_a_failing_world_is_made_small() -> None:
    """What does not matter is left out: of an archive object that a vandal deletes only the vandal remains."""

    def broken(seed: int) -> Plan:
        return draw(seed, "archive")

    for seed in range(1, 40):
        plan = broken(seed)
        if plan.bucket == "strict" and len(plan.faults) >= 2:
            break
    failed = run(_with_vandal(plan))
    assert failed.violation is not None
    small = shrink(failed, 60)
    assert small.violation is not None
    assert small.violation.invariant == failed.violation.invariant == "archive"
    assert {type(fault) for fault in small.plan.faults} == {Vandal}
    assert len(small.plan.faults) <= 2  # which key one picks depends on what another deleted before
    assert len(small.plan.readers) <= len(plan.readers)


def _with_vandal(plan: Plan) -> Plan:
    from dataclasses import replace

    return replace(plan, faults=(*plan.faults, *(Vandal(12.0, pick, False) for pick in range(12))))
