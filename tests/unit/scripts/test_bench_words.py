"""``scripts/bench`` as it is typed wrongly, or with --help: nothing is made for that."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.blocking

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("--help",), 0),
        (("-h",), 0),
        (("nothing",), 2),
        (("transfer", "--help"), 0),
        (("profile", "--help"), 0),
        (("eviction", "-h"), 0),
        (("transfer", "--nothing"), 2),
        (("profile", "--nothing"), 2),
        (("transfer", "--scenario=tiny", "--nothing=1"), 2),
    ],
)
def test_help_and_wrong_words_make_nothing(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    """Where no environment was made, help goes to stdout and a mistake is told on stderr; neither makes one."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("bench", "bench_transfer.py", "bench_eviction.py"):
        shutil.copy(SCRIPTS / name, scripts / name)
    (scripts / "environment").write_text("#!/bin/sh\ntouch made\nexit 9\n")
    (scripts / "environment").chmod(0o755)
    done = subprocess.run(
        [scripts / "bench", *words], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    assert done.returncode == code, done.stderr
    told, silent = (done.stdout, done.stderr) if code == 0 else (done.stderr, done.stdout)
    assert "scripts/bench transfer" in told
    assert silent == ""
    assert sorted(one.name for one in tmp_path.iterdir()) == ["scripts"]
