"""Runs each target of tests/fuzz in a process of its own, for so long: see ``scripts/fuzz``."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import platformdirs

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fuzz.table import TARGETS  # noqa: E402
from tests.fuzz.targets import Target, regression  # noqa: E402

#: Seconds that one input may take, and what the process may hold.
PATIENCE, MEMORY = 10, 2048
LONGEST = 65536


@dataclass(frozen=True)
class Outcome:
    """What came of one target: how many inputs, and what broke it."""

    target: Target
    inputs: int
    found: bytes | None
    said: str

    @property
    def words(self) -> str:
        """In a word or two."""
        if self.found is not None:
            return "broken"
        return "a value or our error" if self.inputs else "did not run"


def run(target: Target, seconds: int, corpus: Path) -> Outcome:
    """Fuzz one target."""
    folder = corpus / re.sub(r"[^a-z0-9]+", "-", target.name.lower()).strip("-")
    inputs, finds = folder / "inputs", folder / "finds"
    for each in (inputs, finds):
        each.mkdir(parents=True, exist_ok=True)
    for sample in target.samples():
        (inputs / hashlib.sha256(sample).hexdigest()[:16]).write_bytes(sample)
    before = set(finds.iterdir())
    command = [
        *(sys.executable, "-m", "tests.fuzz.loop", target.name, str(inputs)),
        *(f"-max_total_time={seconds}", f"-timeout={PATIENCE}", f"-rss_limit_mb={MEMORY}", f"-max_len={LONGEST}"),
        *(f"-artifact_prefix={finds}/", "-print_final_stats=1"),
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=seconds + 120, check=False)
        said = (done.stdout + done.stderr).decode(errors="replace")
    except subprocess.TimeoutExpired as late:
        said = ((late.stdout or b"") + (late.stderr or b"")).decode(errors="replace") + "\nit did not end"
    counted = re.findall(r"stat::number_of_executed_units:\s+(\d+)", said) or re.findall(
        r"^#(\d+)\s", said, re.MULTILINE
    )
    new = sorted(path for path in set(finds.iterdir()) - before if not path.name.startswith("slow-unit"))
    return Outcome(target, int(counted[-1]) if counted else 0, new[0].read_bytes() if new else None, said)


def main() -> int:
    """The exit code: 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Looks for bytes that break a decoder.")
    parser.add_argument("targets", nargs="*", metavar="DECODER", help="which ones; the main ones without any")
    parser.add_argument("--seconds", type=int, default=60, help="for each (60)")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once (1)")
    parser.add_argument("--all", action="store_true", help="every decoder there is")
    parser.add_argument("--list", action="store_true", help="print their names")
    parser.add_argument(
        "--corpus", type=Path, default=Path(platformdirs.user_cache_dir("entrepot-fuzz", appauthor=False))
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="append rows for docs/reliability.md")
    given = parser.parse_args()
    if given.list:
        for target in TARGETS:
            print(f"{target.name}{'  (main)' if target.main else ''}")
        return 0
    known = {target.name: target for target in TARGETS}
    if unknown := [name for name in given.targets if name not in known]:
        parser.error(f"there is no decoder {unknown[0]!r}: see --list")
    wanted = [known[name] for name in given.targets] or [target for target in TARGETS if given.all or target.main]
    bad = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        for outcome in pool.map(lambda target: run(target, given.seconds, given.corpus), wanted):
            print(f"{outcome.target.name:35} {outcome.inputs:>12,} inputs  {outcome.words}", flush=True)
            if outcome.found is not None or not outcome.inputs:
                bad += 1
                print(outcome.said[-3000:])
            if outcome.found is not None:
                print(regression(outcome.target, outcome.found))
            if given.report is not None:
                columns = {"decoder": outcome.target.name, "inputs": outcome.inputs, "outcome": outcome.words}
                with given.report.open("a") as file:
                    file.write(json.dumps({"table": "fuzz", "columns": columns}) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
