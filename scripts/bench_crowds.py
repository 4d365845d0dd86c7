"""Scenarios of ``scripts/bench transfer`` with many streams, many readers, or a hub that is asked much."""

from __future__ import annotations

import asyncio
import filecmp
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.bench_bed import Bed, Counters, Plan, Store, hub_pid, limited, run_get, told
from scripts.bench_gauge import GIB, KIB, MIB, Row, cpu, gauged, make_file, size_text
from scripts.bench_tools import Failed, Place, Tool
from tests.servers.fanout import fan_out
from tests.servers.nodes import Machine

from entrepot.services.node import Node

ROOT = Path(__file__).resolve().parent.parent
_WARM = 5
_PATIENCE = 300.0  # seconds that all small gets may take
#: The tools that bring many files, in the order in which they do while there is time.
_FIRST = ("rclone", "s5cmd", "libtorrent", "obstore", "rclone tuned", "boto3")
_FIGURES = ("wall", "cpu", "rss")
_TOOL = 240.0  # seconds that a tool may take for all of many files, both halves


def tiny(plan: Plan) -> None:
    """Files of 1 KiB that nobody has cached, one after the other: in a running process by the Python API, and by the
    command, whose start is most of it."""
    count = plan.times(200, 30)
    stores: tuple[Store, ...] = ("folder", "rclone")
    for store in stores:
        with plan.part("tiny", f"1 KiB, {store}"), Bed(store) as bed:
            lab, laptop = bed.machine("lab").up(), bed.machine("laptop")
            files = [make_file(bed.folder / f"tiny-{number}", KIB) for number in range(count + _WARM + 5)]
            uris = lab.add(*files)
            gets, commands = list(zip(files, uris, strict=True)), 5
            seconds = asyncio.run(_one_by_one(laptop, gets[commands:]))[_WARM:]
            for run, one in enumerate(seconds):
                plan.add(Row("tiny", f"1 KiB, Python API, {store}", "entrepot", run, {"wall": one}))
            for run, (file, uri) in enumerate(gets[:commands]):
                plan.add(Row("tiny", f"1 KiB, command, {store}", "entrepot", run, bed.get(laptop, uri, file, lab)))


async def _one_by_one(machine: Machine, gets: list[tuple[Path, str]]) -> list[float]:
    seconds = []
    async with asyncio.timeout(_PATIENCE), Node(machine.settings) as node:
        for number, (file, uri) in enumerate(gets):
            began = time.monotonic()
            got = await node.get(uri, machine.folder / f"tiny-{number}")
            seconds.append(time.monotonic() - began)
            if not await asyncio.to_thread(filecmp.cmp, file, got.path, False):
                raise RuntimeError(f"other bytes than those of {file.name}")
    return seconds


def many(plan: Plan) -> None:
    """10,000 files of 4 KiB, each a stream of its own, from one machine to another."""
    count = 500 if plan.quick else 10_000
    case = f"{count:,} × 4 KiB"
    for run in plan.turns(1):
        with Bed("rclone") as bed:
            lab, laptop = bed.machine("lab"), bed.machine("laptop")
            (source := bed.folder / "source").mkdir()
            files = [make_file(source / f"{number:05}.bin", 4 * KIB) for number in range(count)]
            plan.say(f"{case}: adding")
            began = time.monotonic()
            uris = lab.add(*files)
            added = time.monotonic() - began
            lab.up()
            (target := bed.folder / "target").mkdir()
            plan.say(f"{case}: getting")
            (listed := bed.folder / "uris").write_text("\n".join(uris))
            with gauged(bed.processes(lab)) as values:
                used = run_get(laptop, ["--from-file", listed], target)
                values["wall"] = used.wall
            values |= {"cpu_requester": used.cpu, "rss_requester": used.rss, "files": count, "add_wall": added}
            same, other, failed = filecmp.cmpfiles(source, target, [file.name for file in files], shallow=False)
            if other or failed or len(same) != count:
                raise RuntimeError(f"{len(other) + len(failed)} of {count} files did not arrive as they were")
            plan.add(Row("many", case, "entrepot", run, values))
            for tool in sorted(plan.tools, key=lambda one: [*_FIRST, one.name].index(one.name)):
                if tool.missing() is None:
                    shutil.rmtree(target)
                    target.mkdir()
                    plan.say(f"{case}: {tool.name}")
                    _rival(plan, tool, case, run, source, bed.place(tool), target)


def _rival(plan: Plan, tool: Tool, case: str, run: int, source: Path, place: Place, target: Path) -> None:
    """A tool brings the whole folder, if it can, while there is time."""
    if plan.late():
        plan.add(Row("many", case, tool.name, run, lacks="there was no time for it"))
        return
    try:
        with limited(_TOOL):
            steps = {"up": tool.up_many(source, place), "down": tool.down_many(place, target)}
    except (Failed, RuntimeError, OSError) as error:
        plan.add(Row("many", case, tool.name, run, lacks=told(error)))
        return
    values = {f"{name}_{what}": getattr(step, what) for name, step in steps.items() if step for what in _FIGURES}
    if values:
        plan.add(Row("many", case, tool.name, run, values))


def fanout(plan: Plan) -> None:
    """Twenty nodes that want one stream at the same moment: how often it is uploaded."""
    nodes, size = (5, 16 * MIB) if plan.quick else (20, 128 * MIB)
    size = min(size, plan.largest)
    case = f"{nodes} × {size_text(size)}"
    for run in plan.turns(1):
        with Bed("folder", quota=4 * GIB, counted=True) as bed:
            found = fan_out(bed.site, nodes=nodes, size=size)
            if found.same != nodes:
                raise RuntimeError(f"only {found.same} of {nodes} readers have the right bytes")
            values = {
                "wall": found.seconds, "size": size, "nodes": nodes, "objects": found.objects,
                "requests": found.puts, "up": found.put_bytes, "down": found.get_bytes,
            }  # fmt: skip
            plan.add(Row("fanout", case, "entrepot", run, values))


def hub(plan: Plan) -> None:
    """What a grant, and a signed GET, cost the hub: a stream of many small objects on an S3 server, moved once; then,
    with a hub that was started again and remembers no URL, read once more from the bucket."""
    size = plan.size(64 * MIB, 8 * MIB)
    case = f"{size // (16 * KIB):,} objects of 16 KiB"
    for run in plan.turns(2):
        with Bed("rclone", miniblock=16 * KIB, object=16 * KIB) as bed:
            lab = bed.machine("lab").up()
            readers = [bed.machine("first"), bed.machine("second")]
            file = make_file(bed.folder / "small.bin", size)
            (uri,) = lab.add(file)
            before = Counters.of(bed.hub)
            values = bed.get(readers[0], uri, file, lab)
            after = Counters.of(bed.hub)
            row = {
                "wall": values["wall"],
                "cpu_hub": values["cpu_hub"],
                "cpu_provider": values["cpu_provider"],
                "cpu_requester": values["cpu_requester"],
                "grants": after.sum("entrepot_hub_grants_total") - before.sum("entrepot_hub_grants_total"),
            }
            bed.hub.stop()
            bed.hub.start()
            lab.wait_up()
            before, spent = Counters.of(bed.hub), cpu(hub_pid(bed.hub))
            row["read_wall"] = bed.get(readers[1], uri, file, lab)["wall"]
            row["read_cpu_hub"] = cpu(hub_pid(bed.hub)) - spent
            after = Counters.of(bed.hub)
            for name, metric, label in (
                ("signed", "entrepot_hub_signatures_total", 'method="get"'),
                ("told", "entrepot_hub_reads_signed_total", ""),
            ):
                row[name] = after.sum(metric, label) - before.sum(metric, label)
            plan.add(Row("hub", case, "entrepot", run, row))


_MEASURED = re.compile(r"^measured: provider killed, until the next holder uploads: ([0-9.]+) s$", re.MULTILINE)


def failover(plan: Plan) -> None:
    """A provider killed half-way: until the next holder uploads. The test of that, which prints it."""
    test = "tests/faults/test_kills.py::test_a_killed_provider_is_replaced_by_another_holder"
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:randomly", "-rP", test]
    for run in plan.turns(3):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        found = _MEASURED.search(done.stdout)
        if done.returncode or found is None:
            raise RuntimeError(f"the test of a killed provider failed: {done.stdout[-1000:]}")
        plan.add(Row("failover", "killed half-way", "entrepot", run, {"wall": float(found[1])}))
