"""What ``scripts/bench`` compares with: each tool really brings bytes, and is really measured."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts.bench_tools import Failed, Place, Run, Tool, run, tools
from tests.servers.ministack import ROOT, S3Server
from tests.servers.rclone import run_rclone
from tests.servers.relay import until

MIB = 1 << 20
NAMES = [tool.name for tool in tools()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    with run_rclone(folder) as found:
        (folder / "buckets" / "bench").mkdir()
        yield found


@pytest.fixture(params=NAMES)
def tool(request: pytest.FixtureRequest) -> Iterator[Tool]:
    with next(tool for tool in tools() if tool.name == request.param) as found:
        reason = found.missing()
        if reason is not None:
            pytest.skip(reason)
        yield found


def place(server: S3Server, key: str) -> Place:
    return Place(server.endpoint, server.access_key, server.secret_key, "bench", key, server.region)


def sane(figures: Run) -> bool:
    """A process takes time and memory, and no more CPU time than two dozen cores have."""
    return 0 < figures.wall < 60 and 0 <= figures.cpu < 24 * figures.wall + 1 and MIB < figures.rss < 2 << 30


def test_each_tool_brings_a_file_up_and_down(tool: Tool, server: S3Server, tmp_path: Path) -> None:
    """The bytes that come down are those that went up, a second time as well."""
    source, target = tmp_path / "source", tmp_path / "target"
    there = place(server, f"one/{tool.name.replace(' ', '-')}")
    for size in (MIB, MIB + 1):
        source.write_bytes(secrets.token_bytes(size))
        prepared = tool.prepare(source, there)
        up, down = tool.up(source, there), tool.down(there, target)
        assert target.read_bytes() == source.read_bytes()
        assert sane(down)
        assert tool.direct or sane(up)
        assert prepared is None or sane(prepared)


def test_tools_for_folders_bring_all_their_files(server: S3Server, tmp_path: Path) -> None:
    """Where a tool can bring a folder, all its files come down; the others say that they have no such thing."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"{number}.bin").write_bytes(secrets.token_bytes(4096))
    wanted = {path.name: path.read_bytes() for path in source.iterdir()}
    able = set()
    for tool in tools():
        with tool:
            if tool.missing() is not None:
                continue
            there = place(server, f"many/{tool.name.replace(' ', '-')}")
            target = tmp_path / tool.name
            target.mkdir()
            up, down = tool.up_many(source, there), tool.down_many(there, target)
            assert (up is None) == (down is None)
            if down is not None:
                able.add(tool.name)
                assert sane(down)
                assert {path.name: path.read_bytes() for path in target.iterdir()} == wanted
    assert "rclone" in able


def test_a_run_counts_its_children_and_only_itself() -> None:
    """CPU seconds of children count, and what this process holds in memory is not taken for the command's."""
    held = bytearray(os.urandom(64 * MIB))
    work = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    figures = run([sys.executable, "-I", "-S", "-c", parent, work])
    assert len(held) == 64 * MIB
    assert figures.cpu >= 0.3
    assert figures.wall >= 0.3
    assert figures.rss < 40 * MIB
    grown = run([sys.executable, "-I", "-S", "-c", f"x = bytearray(b'x') * {64 * MIB}"])
    assert grown.rss > 64 * MIB


def test_nothing_is_left_when_who_measures_is_killed(tmp_path: Path) -> None:
    """A command that is being measured ends with who measures it, even if that one has no time for it."""
    told = tmp_path / "pid"
    command = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(600)"
    words = [sys.executable, "-I", "-S", "-c", command]
    code = f"from scripts.bench_tools import run; run({words!r})"
    measuring = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        until(lambda: told.exists() and told.read_text(), 30, "the command's start")
    finally:
        measuring.kill()
        measuring.wait()

    def ended() -> bool:
        try:
            return Path("/proc", told.read_text(), "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(ended, 30, "the command's end")


def test_a_run_that_fails_says_so() -> None:
    """A command's error is raised with what it said; one that does not end is killed."""
    with pytest.raises(Failed, match="no such luck"):
        run([sys.executable, "-I", "-S", "-c", "import sys; sys.exit('no such luck')"])
    with pytest.raises(Failed, match="did not end within"):
        run(["sleep", "600"], limit=0.2)
