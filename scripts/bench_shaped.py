"""Scenario ``shaped`` of ``scripts/bench transfer``: machines behind links as people have them."""

from __future__ import annotations

from scripts.bench_bed import Plan, limited, told
from scripts.bench_gauge import GIB, MIB, Row, size_text
from scripts.bench_links import LINKS, Ground, missing, shaped
from scripts.bench_tools import Tool

#: Kinds of links, what they are called, how large a stream and how many runs.
_KINDS = (("1gbit", "1 Gbit/s", GIB, 64 * MIB, 3), ("50/500", "50 Mbit/s up, 500 down, 40 ms", 64 * MIB, 8 * MIB, 2))
#: What the stream is compared with in every run; the others, which take about as long, in the first
#: one only, and not in a quick one.
_ALWAYS = frozenset({"rclone", "s5cmd", "obstore"})
_TOOL = 180.0


def shaped_links(plan: Plan) -> None:
    """One stream over links of each kind, ours and tools in turns."""
    if lacks := missing():
        raise RuntimeError(f"no links can be made here: {lacks}")
    for kind, name, full, quick, times in _KINDS:
        size = plan.size(full, quick)
        case = f"{size_text(size)}, {name}"
        # One half of the way at the speed of the wire: the slower half.
        ideal = size / min(LINKS[kind].up, LINKS[kind].down)
        with plan.part("shaped", case), shaped(kind) as ground:
            plan.say(f"{case}: the lines by themselves")
            lines = ground.rates(size // 4)
            for run in plan.turns(times):
                plan.say(f"{case}, run {run + 1}")
                plan.add(Row("shaped", case, "entrepot", run, {**ground.transfer(size), "ideal": ideal, **lines}))
                for tool in plan.tools:
                    if tool.name in _ALWAYS or (run == 0 and not plan.quick and not plan.late()):
                        plan.add(_rival(ground, tool, size, case, run))
        for tool in plan.tools:
            tool.close()  # servers of theirs are in namespaces that are gone


def _rival(ground: Ground, tool: Tool, size: int, case: str, run: int) -> Row:
    lacks = tool.missing()
    if lacks is None:
        try:
            with limited(_TOOL):
                return Row("shaped", case, tool.name, run, ground.competitor(tool, size))
        except (RuntimeError, OSError) as error:
            lacks = told(error)
    return Row("shaped", case, tool.name, run, lacks=lacks)
