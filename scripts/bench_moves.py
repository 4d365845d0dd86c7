"""Scenarios of ``scripts/bench transfer`` that move one stream from one machine to another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.bench_bed import BUCKET, Bed, Counters, Plan, Store, one_core
from scripts.bench_counter import Passed, nginx
from scripts.bench_gauge import GIB, KIB, MIB, Row, make_file, size_text
from tests.servers.nodes import Machine

from entrepot.services.node import Node

#: What streams of 1 GiB are compared with in every run; the others take part in the first one on the first server.
FEW = frozenset({"rclone", "s5cmd", "obstore", "curl on nginx"})
_HUB_ASKS = "entrepot_hub_bucket_requests_total"
_UPLOADED = "entrepot_hub_object_ready_bytes_total"
_LEAST = 16 * MIB  # the quota of four objects
_READS = 300.0  # seconds that all reads may take


def loopback(plan: Plan) -> None:
    """One stream over loopback through an S3 server, against tools that upload it there and download it again. All take
    turns on the same file and the same server: ours, then each tool, then again."""
    sizes = ((KIB, 3), (MIB, 5), (64 * MIB, 5), (GIB, 3))
    stores: tuple[tuple[Store, int], ...] = (("rclone", 0), ("ministack", 64 * MIB))
    for store, least in stores:
        for size, times in sizes:
            if least <= size <= plan.size(GIB, 64 * MIB) and not (plan.quick and size == KIB):
                case = f"{size_text(size)}, {store}"
                with plan.part("loopback", case):
                    _turns(plan, store, case, size, times)
                for tool in plan.tools:
                    tool.close()  # gives the memory back that it keeps files in


def _turns(plan: Plan, store: Store, case: str, size: int, times: int) -> None:
    with Bed(store, quota=(times + 1) * 2 * size + GIB) as bed:
        lab, laptop = bed.machine("lab").up(), bed.machine("laptop")
        for run in plan.turns(times, 2):
            plan.say(f"{case}, run {run + 1} of {plan.times(times, 2)}")
            file = make_file(bed.folder / f"{run}.bin", size)
            began = time.monotonic()
            (uri,) = lab.add(file)
            added = time.monotonic() - began
            values = {**bed.get(laptop, uri, file, lab), "prepare_wall": added}
            plan.add(Row("loopback", case, "entrepot", run, values))
            for tool in plan.tools:
                if size < GIB or tool.name in FEW or (run == 0 and store == "rclone"):
                    plan.rival("loopback", case, tool, run, file, bed.place(tool))
                    bed.clear()
            file.unlink()


def wire(plan: Plan) -> None:
    """How many requests a stream costs and how many bytes pass between everybody and the bucket, counted in front of
    the S3 server. Not timed."""
    if nginx() is None:
        raise RuntimeError("there is no nginx to count with (Debian: nginx-light)")
    size = plan.size(64 * MIB, 16 * MIB)
    with Bed("rclone", counted=True) as bed:
        assert bed.counter is not None
        lab, laptop = bed.machine("lab").up(), bed.machine("laptop")
        file = make_file(bed.folder / "counted.bin", size)
        (uri,) = lab.add(file)
        case = size_text(size)
        before = len(bed.counter.passed())
        asked = Counters.of(bed.hub).sum(_HUB_ASKS)
        bed.get(laptop, uri, file, lab)
        values = _passed(bed.counter.passed()[before:], size)
        values["hub"] = Counters.of(bed.hub).sum(_HUB_ASKS) - asked
        plan.add(Row("wire", case, "entrepot", 0, values))
        lacking: list[Row] = []
        untimed = Plan(plan.quick, (), lacking.append, plan.say)  # its times are thrown away
        for tool in plan.tools:
            before = len(bed.counter.passed())
            untimed.rival("wire", case, tool, 0, file, bed.place(tool))
            seen = bed.counter.passed()[before:]
            if any(one.path.startswith(f"/{BUCKET}") for one in seen):
                plan.add(Row("wire", case, tool.name, 0, _passed(seen, size)))
            bed.clear()
        for row in lacking:
            if row.lacks is not None:
                plan.add(row)


def _passed(seen: Sequence[Passed], size: int) -> dict[str, float]:
    values: dict[str, float] = {"size": size, "requests": len(seen)}
    for method in ("PUT", "GET", "HEAD", "POST", "DELETE"):
        values[method] = sum(one.method == method for one in seen)
    values["up"] = sum(one.up for one in seen)
    values["down"] = sum(one.down for one in seen)
    return values


def again(plan: Plan) -> None:
    """The same stream uploaded a second time, after it left the bucket: its objects' digests are known by then."""
    size = plan.size(512 * MIB, 32 * MIB)
    case = size_text(size)
    for run in plan.turns(2):
        with Bed("rclone", quota=size + GIB) as bed:
            lab = bed.machine("lab").up()
            file = make_file(bed.folder / "again.bin", size)
            (uri,) = lab.add(file)
            first = bed.get(bed.machine("first"), uri, file, lab)
            _emptied(bed, size + GIB)
            counted = Counters.of(bed.hub).sum(_UPLOADED)
            second = bed.get(bed.machine("second"), uri, file, lab)
            uploaded = Counters.of(bed.hub).sum(_UPLOADED) - counted
        if uploaded < min(0.9 * size, size - _LEAST):
            raise RuntimeError(f"only {uploaded / MIB:.0f} MiB were uploaded again")
        for name, values in (("first time", first), ("again", second)):
            plan.add(Row("again", case, name, run, {**values, "size": size, "uploaded": uploaded}))


def _emptied(bed: Bed, quota: int) -> None:
    """Let the bucket evict all but the least that a channel may have. Raises ``RuntimeError`` after two minutes."""
    end = time.monotonic() + 120
    while bed.hub.admin("channel.quota", name="demo", quota=_LEAST)["charged"] > _LEAST:
        if time.monotonic() > end:
            raise RuntimeError("the bucket does not become empty")
        time.sleep(0.5)
    bed.hub.admin("channel.quota", name="demo", quota=quota)


def large(plan: Plan) -> None:
    """A stream of 10 GiB through the hub's own folder bucket with a quota of 2 GiB, from disk to disk."""
    size = plan.size(10 * GIB, 512 * MIB)
    case = size_text(size)
    with Bed(quota=max(size // 5, 256 * MIB), base=plan.disk) as bed:
        plan.say(f"{case}: writing and hashing it")
        file = make_file(bed.folder / "large.bin", size)
        lab, laptop = bed.machine("lab"), bed.machine("laptop")
        (uri,) = lab.add(file)
        lab.up()
        for run in plan.turns(1):
            plan.say(f"{case}: getting it")
            plan.add(Row("large", case, "entrepot", run, bed.get(laptop, uri, file, lab)))


async def _read(machine: Machine, uri: str, file: Path, offsets: list[int], length: int) -> None:
    async with asyncio.timeout(_READS), Node(machine.settings) as node, await node.open(uri) as stream:
        with file.open("rb") as original:
            for offset in offsets:
                original.seek(offset)
                if await stream.read(offset, length) != original.read(length):
                    raise RuntimeError(f"other bytes than those at {offset} of {file.name}")


def reads(plan: Plan) -> None:
    """One per cent of a large stream in random aligned reads of 1 MiB: what reaches the reader, what is uploaded."""
    size = plan.size(10 * GIB, 512 * MIB)
    count = max(size // 100 // MIB, 1)
    with Bed(quota=size + GIB, counted=True, base=plan.disk) as bed:
        plan.say(f"{size_text(size)}: writing and hashing it")
        file = make_file(bed.folder / "large.bin", size)
        lab, laptop = bed.machine("lab"), bed.machine("laptop")
        (uri,) = lab.add(file)
        lab.up()
        chosen = random.Random(1).sample(range(size // MIB), count)
        asyncio.run(_read(laptop, uri, file, [number * MIB for number in chosen], MIB))
        values = {
            "size": size,
            "read": count * MIB,
            "down": bed.site.relay.get_bytes,
            "touched": len({number // 4 for number in chosen}),
            "objects": len(bed.site.relay.puts(200)),
        }
        plan.add(Row("reads", size_text(size), "entrepot", 0, values))


def single(plan: Plan) -> None:
    """Hub, provider and requester together on one core: no lease may lapse."""
    size = plan.size(GIB, 64 * MIB)
    case = size_text(size)
    with one_core(), Bed(quota=4 * size + GIB) as bed:
        lab, laptop = bed.machine("lab").up(), bed.machine("laptop")
        for run in plan.turns(2):
            plan.say(f"{case} on one core, run {run + 1}")
            file = make_file(bed.folder / f"{run}.bin", size)
            (uri,) = lab.add(file)
            values = bed.get(laptop, uri, file, lab)
            counters = Counters.of(bed.hub)
            values["lapsed"] = counters.sum("entrepot_hub_leases_lapsed_total")
            ended = counters.sum("entrepot_hub_grants_ended_total")
            values["failed"] = ended - counters.sum("entrepot_hub_grants_ended_total", 'reason="done"')
            plan.add(Row("single", case, "entrepot", run, values))
            file.unlink()
            if values["lapsed"]:
                raise RuntimeError(f"{values['lapsed']:.0f} leases lapsed on one core")
