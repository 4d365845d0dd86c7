"""``scripts/bench transfer``: a slice of it, as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scripts.bench_gauge import MIB, Rows
from scripts.bench_profile import spy

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


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.skipif(spy() is None, reason="there is no py-spy: scripts/environment --bench makes it")
def test_a_profile_sees_what_ours_does(tmp_path: Path) -> None:
    """All Pythons of ours are looked into while they bring files, and the requester's imports are seen."""
    words = ["--quick", "--scenario", "profile", "--largest", "1M", "--rows", str(tmp_path / "rows")]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench_transfer", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=270,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = Rows.read(tmp_path / "rows")
    assert len(found.named("profile")) == 3
    for case in found.named("profile"):
        seen = {row.who: row.values for row in found.where("profile", case)}
        assert set(seen) == {"requester", "provider", "hub"}
        assert seen["requester"]["module importlib"] > 0
    assert "1 MiB, rclone" in done.stdout
