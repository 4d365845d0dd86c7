"""From a failing plan to the smallest one found that still fails in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.simulation.plan import Plan
from tests.simulation.world import Outcome, run


def shrink(failed: Outcome, most: int = 300) -> Outcome:
    """Leave out faults (halves first), readers, holders, hubs and objects while the same invariant is violated; at most
    ``most`` worlds are run."""
    assert failed.violation is not None
    best, invariant, runs = failed, failed.violation.invariant, 0
    progress = True
    while progress and runs < most:
        progress = False
        for candidate in _smaller(best.plan):
            if runs >= most:
                break
            runs += 1
            outcome = run(candidate)
            if outcome.violation is not None and outcome.violation.invariant == invariant:
                best, progress = outcome, True
                break
    return best


def _smaller(plan: Plan) -> Iterator[Plan]:
    faults, size = plan.faults, len(plan.faults) // 2
    while size:
        for at in range(0, len(faults), size):
            yield replace(plan, faults=faults[:at] + faults[at + size :])
        size //= 2
    if len(plan.readers) > 1:
        yield _without(replace(plan, readers=plan.readers[:-1]), f"reader{len(plan.readers) - 1}")
    if len(plan.holders) > 1:
        yield _without(replace(plan, holders=plan.holders[:-1]), f"holder{len(plan.holders) - 1}")
    if plan.hubs > 1:
        yield _without(replace(plan, hubs=plan.hubs - 1), f"hub{plan.hubs - 1}")
    for i, reader in enumerate(plan.readers):
        if len(reader.streams) > 1:
            less = replace(reader, streams=reader.streams[:-1])
            yield replace(plan, readers=(*plan.readers[:i], less, *plan.readers[i + 1 :]))
    for i, count in enumerate(plan.streams):
        if count > 1:
            yield replace(plan, streams=(*plan.streams[:i], count - 1, *plan.streams[i + 1 :]))


def _without(plan: Plan, who: str) -> Plan:
    return replace(plan, faults=tuple(fault for fault in plan.faults if getattr(fault, "who", None) != who))
