"""``scripts/demo``: the first command a newcomer types."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "bash"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path for the demo's folder: sockets lie in it."""
    folder = Path("/tmp") / f"d{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(temporary: Path, *words: str) -> subprocess.Popen[str]:
    """The demo as a process group of its own, its folder under ``temporary``."""
    return subprocess.Popen(
        [BASH, ROOT / "scripts" / "demo", *words],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes that run with something in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                home = (entry / "environ").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            if str(folder) in line or f"ENTREPOT_HOME={folder}" in home:
                found.append(line)
    return found


def test_the_demo_moves_files_and_leaves_nothing(temporary: Path, tmp_path: Path) -> None:
    """Two files, one with a name beyond ASCII and one empty, arrive byte for byte; then everything is gone."""
    one, other = tmp_path / "grün.bin", tmp_path / "empty"
    one.write_bytes(os.urandom(6_000_000))
    other.write_bytes(b"")
    demo = start(temporary, str(one), str(other))
    output, _ = demo.communicate(timeout=100)
    assert demo.returncode == 0, output
    assert output.count("same") >= 2
    assert "entrepot://demo@127.0.0.1" in output
    assert list(temporary.iterdir()) == []
    assert processes_in(temporary) == []


def test_ctrl_c_leaves_nothing_behind(temporary: Path, tmp_path: Path) -> None:
    """Interrupted while it keeps running, the demo ends its daemons, hub and nats-server and removes its folder."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000)
    demo = start(temporary, "--keep", str(file))
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "Ctrl-C ends it" in line:
                break
        assert processes_in(temporary)
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(60) == 130
    finally:
        demo.kill()
        demo.communicate()
    deadline = time.monotonic() + 10
    while processes_in(temporary) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_in(temporary) == []
    assert list(temporary.iterdir()) == []
