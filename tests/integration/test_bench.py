"""``scripts/bench transfer``: a slice of it, as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scripts.bench_gauge import MIB, Rows

pytestmark = pytest.mark.blocking

ROOT = Path(__file__).parents[2]


def test_a_transfer_is_measured_beside_a_tool(tmp_path: Path) -> None:
    """One scenario with 1 MiB against rclone: whole processes are started and measured, the file arrives, and what was
    found is told in tables and kept as rows."""
    words = ["--quick", "--scenario", "loopback", "--largest", "1M", "--runs", "1", "--tool", "rclone"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench_transfer", *words, "--rows", str(tmp_path / "rows")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = Rows.read(tmp_path / "rows")
    ours, theirs = found.rows
    assert (ours.who, theirs.who) == ("entrepot", "rclone")
    assert ours.values["size"] == MIB
    assert 0 < ours.values["wall"] < 240
    for part in ("requester", "provider", "hub", "store"):
        assert ours.values[f"rss_{part}"] > 4 * MIB, part
    assert ours.values["cpu_requester"] > 0.05  # it starts an interpreter
    assert theirs.values["up_wall"] > 0 < theirs.values["down_wall"]
    assert "| rclone |" in done.stdout
    assert found.machine["rclone"].count(".") == 2
