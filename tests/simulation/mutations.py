"""Deliberate bugs, each of which the simulator must find: see ``scripts/mutate``.

A mutation is an exact replacement in the source of one module, made while it is imported, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Mutation:
    """``old`` occurs once in the source of ``module``; ``quick``: it is planted in the ordinary test run too."""

    name: str
    module: str
    old: str
    new: str
    quick: bool = False
    plan: str = ""  # a regression that is tried first, with some seeds: a race that few other plans meet


_CORE: Final = "entrepot_hub.core"
_SERVICES: Final = "entrepot_hub.services"

MUTATIONS: Final = (
    Mutation(
        "the fence is dropped: a grant that is over still accepts",
        f"{_CORE}.transitions",
        "if grant is None or grant.status not in LIVE or grant.node != node or lapsed(grant, now):",
        "if grant is None or grant.node != node:",
        quick=True,
    ),
    Mutation(
        "a reservation is released when its lease lapses",
        f"{_CORE}.transitions",
        "if record.status is ObjectStatus.RESERVED and not lands and all(g.status not in LIVE for g in grants):",
        "if record.status is ObjectStatus.RESERVED and all(g.status not in LIVE for g in grants):",
        quick=True,
    ),
    Mutation(
        "no tombstone is left where a PUT could land",
        f"{_SERVICES}.bucket_keeper",
        "tombstone = may_land(record, self._clock(), self._settings.put_grace)",
        "tombstone = False",
        quick=True,
    ),
    Mutation(
        "an object of any length is taken for what was granted",
        f"{_CORE}.ledger",
        "        and g.length == found.length\n",
        "",
    ),
    Mutation(
        "the digest that the bucket shows is not compared",
        f"{_CORE}.ledger",
        "        and (found.digest is None or found.digest == g.digest)\n",
        "",
        quick=True,
    ),
    Mutation(
        "progress that does not grow renews a lease",
        f"{_CORE}.ledger",
        "not grant.sent < sent <= grant.length:",
        "sent > grant.length:",
    ),
    Mutation(
        "progress below the floor rate renews a lease",
        f"{_CORE}.ledger",
        "if sent < grant.length and sent - grant.sent < floor * since:",
        "if sent < 0:",
    ),
    Mutation(
        "objects of class archive are evicted",
        f"{_CORE}.model_ledger",
        "if self._is_pinned(ref) or any(until > now for until, _ in slot.reads.values()):",
        "if any(until > now for until, _ in slot.reads.values()):",
    ),
    Mutation(
        "objects are evicted under a live read lease",
        f"{_CORE}.model_ledger",
        "if self._is_pinned(ref) or any(until > now for until, _ in slot.reads.values()):",
        "if self._is_pinned(ref):",
    ),
    Mutation(
        "the quota is exceeded by one object",
        f"{_CORE}.ledger",
        "    if more > 0 and more > free:\n",
        "    if more > 0 and more > free + proposal.size:\n",
        quick=True,
    ),
    Mutation(
        "a hub that starts forgets the wants of the ledger",
        f"{_SERVICES}.arbiter",
        "await self.perform(self.rounds.restored(want, channel.lock, opening, now))",
        "pass",
        quick=True,
    ),
    Mutation(
        "done is believed without a look",
        f"{_SERVICES}.arbiter",
        "        now = self._clock()\n        look = await self._keeper.look(grant.ref)\n",
        "        from entrepot_hub.core.ledger import Found\n"
        "        from entrepot_hub.services.bucket_keeper import Look\n"
        "        now = self._clock()\n"
        "        believed = Found(grant.length, 'believed', grant.digest)\n"
        "        look = Look(await self._database.call(\n"
        "            self._ledger.settle, grant.ref, believed, now, self.settings.put_grace) or before)\n",
        quick=True,
    ),
    Mutation(
        "a holder that failed twice is never asked again",
        f"{_CORE}.round",
        "            self.excluded[node] = now + self.settings.exclusion\n"
        "            self.rested[node] = now + min(2.0 ** min(more, 16), self.settings.exclusion / 8)\n",
        "            self.excluded[node] = self.rested[node] = now + 1e9\n",
    ),
    Mutation(
        "an eviction goes on where another hub has ended it",
        f"{_SERVICES}.bucket_keeper",
        "                if view.record.status is not ObjectStatus.EVICTING:\n",
        "                if view is None:\n",
        quick=True,
        plan="an eviction that another hub has ended is over",
    ),
    Mutation(
        "a tombstone is cleared where another hub has done so",
        f"{_SERVICES}.bucket_keeper",
        "            if now.record != before.record or _grant_of(now) != _grant_of(before):\n",
        "            if now is None:\n",
        quick=True,
        plan="a tombstone is cleared once, whichever hub does it",
    ),
    Mutation(
        "an object is granted to two holders",
        f"{_CORE}.ledger",
        "    if live is not None and live.status in LIVE:\n",
        "    if live is not None and live.status in LIVE and live.node == proposal.node:\n",
        quick=True,
    ),
    Mutation(
        "a repeated accept gets a URL that ends later",
        f"{_SERVICES}.exchange",
        "life = max(int(held.put_until - now), 1)",
        "life = int(self._settings.put_url)",
    ),
    Mutation(
        "bytes are released before the bucket let go of them",
        f"{_SERVICES}.bucket_keeper",
        "        tombstone = may_land(record, self._clock(), self._settings.put_grace)\n",
        "        tombstone = may_land(record, self._clock(), self._settings.put_grace)\n"
        "        await self._database.call(self._ledger.evict_end, record.ref, tombstone, self._clock())\n",
        quick=True,
    ),
    Mutation(
        "a bad object is condemned on a reader's word",
        f"{_SERVICES}.exchange",
        "        if verdict is Verdict.CHANGED:\n",
        "        verdict = Verdict.CORRUPT\n        if verdict is Verdict.CHANGED:\n",
    ),
    Mutation(
        "downloads that fail at once are asked for without a pause",
        "entrepot.core.exchange.requester",
        "        if pause:\n"
        "            self._rests[number] = (etag, now + pause)\n"
        "        else:\n"
        "            self._asked -= {number}\n",
        "        self._asked -= {number}\n",
        quick=True,
        plan="downloads that fail at once are tried again with pauses",
    ),
    Mutation(
        "a bucket that does not answer counts as a mistake",
        f"{_SERVICES}.arbiter",
        "            except EntrepotError as error:\n                return error\n",
        "            except EntrepotError:\n                raise\n",
    ),
)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module with something replaced."""

    def __init__(self, name: str, path: str, mutation: Mutation) -> None:
        super().__init__(name, path)
        self._mutation = mutation

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text()
        return compile(mutated(source, self._mutation), self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != self._mutation.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.origin is not None
        loader = _Loader(name, spec.origin, self._mutation)
        return importlib.util.spec_from_file_location(name, spec.origin, loader=loader)


def mutated(source: str, mutation: Mutation) -> str:
    """The source with the bug. Raises ValueError where the text to be replaced does not occur exactly once."""
    if source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: the text occurs {source.count(mutation.old)} times in {mutation.module}")
    return source.replace(mutation.old, mutation.new)


def source_of(mutation: Mutation) -> str:
    """The source of the module that it changes."""
    parts = mutation.module.split(".")
    top = "node" if parts[0] == "entrepot" else "hub"
    return (ROOT / top / Path(*parts).with_suffix(".py")).read_text()


def hunt(index: int, first: int, seeds: int) -> dict[str, object]:
    """Try seeds, in this process, until one finds the bug."""
    mutation = MUTATIONS[index]
    sys.meta_path.insert(0, _Finder(mutation))
    from tests.simulation.plan import Plan, draw
    from tests.simulation.regressions import PLANS
    from tests.simulation.world import run

    kept: list[Plan] = []
    if mutation.plan:  # the race is met at another moment whenever what is awaited changes
        plan = PLANS[mutation.plan]
        kept = [plan, *(replace(plan, seed=seed) for seed in range(1, min(seeds // 2, 50)))]
    for seed, plan in enumerate([*kept, *(draw(seed) for seed in range(first, first + seeds - len(kept)))], first):
        outcome = run(plan)
        if outcome.violation is not None:
            return {"seeds": seed - first + 1, "seed": seed, "invariant": outcome.violation.invariant,
                    "detail": outcome.violation.detail.splitlines()[0]}  # fmt: skip
    return {"seeds": seeds, "seed": None, "invariant": None, "detail": "nothing was found"}


def hunt_apart(index: int, first: int, seeds: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.simulation.mutations", "--hunt", str(index)]
    command += ["--first", str(first), "--seeds", str(seeds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """``scripts/mutate``."""
    parser = argparse.ArgumentParser(prog="scripts/mutate", description="Plant bugs and see that each is found.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds a bug may survive")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", metavar="WORDS", help="only mutations whose names hold these words")
    parser.add_argument("--report", metavar="FILE", help="append a row for each to this file (see scripts/reliability)")
    parser.add_argument("--hunt", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.hunt is not None:
        print(json.dumps(hunt(options.hunt, options.first, options.seeds)))
        return 0
    chosen = [(i, m) for i, m in enumerate(MUTATIONS) if options.only is None or options.only in m.name]
    survived = 0

    def one(pair: tuple[int, Mutation]) -> dict[str, Any]:
        return hunt_apart(pair[0], options.first, options.seeds)

    since = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        for (_, mutation), found in zip(chosen, pool.map(one, chosen), strict=True):
            caught = found["invariant"] or "SURVIVED"
            survived += found["invariant"] is None
            print(f"{found['seeds']:>5}  {caught:<14} {mutation.name}", flush=True)
            if found["invariant"] is not None:
                print(f"       {'':<14} seed {found['seed']}: {found['detail']}", flush=True)
            if options.report:
                columns = {"mutation": mutation.name, "seeds": found["seeds"], "caught_by": caught}
                line = json.dumps({"table": "mutations", "columns": columns}) + "\n"
                with open(options.report, "a") as file:
                    file.write(line)
    print(f"{len(chosen) - survived} of {len(chosen)} found in {time.monotonic() - since:.0f} s")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
