"""``entrepot add`` of large and of many files, as processes: what a kill costs, what is told meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from tests.integration.cli.conftest import Cli

from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher
from entrepot.core.nkeys import KeyKind, encode_public
from entrepot.services.hubs import Hubs, JoinedChannel, JoinedHub, host_of, with_channels

MIB = 1 << 20
LENGTH = 80 * MIB + 4321
STANDSTILL = 48 * MIB

#: The command line, but with other seconds between two checkpoints, and so many for each piece past the standstill.
_SLOWED = """
import sys, threading
from entrepot.adapters import hashing
from entrepot.cli.main import main

read, standstill, pause = hashing.read_into, int(sys.argv[1]), float(sys.argv[2])

def slowly(descriptor, buffer, offset):
    if offset >= standstill:
        print("slow", file=sys.stderr, flush=True)
        threading.Event().wait(pause)
    return read(descriptor, buffer, offset)

hashing.read_into, hashing.KEEP_EVERY = slowly, float(sys.argv[3])
sys.exit(main(sys.argv[4:]))
"""

#: The command line, but that it tells at its end how many bytes it read.
_COUNTED = """
import sys
from entrepot.cli.main import main

def read():
    with open("/proc/self/io") as io:
        return int(io.readline().split()[1])

before = read()
code = main(sys.argv[1:])
print(read() - before, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def joined(cli: Cli) -> Cli:
    """A node that has joined a channel of a hub that is not there."""
    url = "https://hub.example.org"
    bare = JoinedHub(
        url,
        encode_public(KeyKind.OPERATOR, bytes([1]) * 32),
        host_of(url),
        "me",
        encode_public(KeyKind.USER, bytes(32)),
    )
    channel = JoinedChannel(bare, "demo", SchemaLock("demo"), "request:files,provide:files")
    cli.home.mkdir(mode=0o700)
    asyncio.run(Hubs(cli.home / "hubs.json").put(with_channels(bare, [channel])))
    return cli


def hashed_bytes(cli: Cli) -> int:
    """How far the furthest checkpoint is."""
    try:
        db = sqlite3.connect(f"file:{cli.home / 'store' / 'catalogue.sqlite3'}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return 0
    try:
        return int(db.execute("SELECT coalesce(max(done), 0) FROM checkpoint").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        db.close()


def run(cli: Cli, script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        env=cli.environment(),
        cwd=cli.folder,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_an_add_that_was_killed_goes_on(joined: Cli, ending: signal.Signals) -> None:
    """After SIGKILL or Ctrl-C in the middle the same command reads only what is left, and finds the same names."""
    path = joined.folder / "big.bin"
    hasher = StreamHasher(6, sha256=True)
    with path.open("wb") as file:
        for at in range(0, LENGTH, 8 * MIB):
            piece = os.urandom(min(8 * MIB, LENGTH - at))
            hasher.update(piece)
            file.write(piece)
    expected = hasher.finish()
    words = ("add", "--no-serve", "--json", path)
    pause, keep_every = ("3600", "0") if ending is signal.SIGKILL else ("1", "3600")
    with subprocess.Popen(
        [sys.executable, "-c", _SLOWED, str(STANDSTILL), pause, keep_every, *map(str, words), "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=joined.environment(),
        cwd=joined.folder,
    ) as first:
        assert first.stderr is not None
        assert first.stderr.readline().startswith(b"slow")
        deadline = time.monotonic() + 90
        while ending is signal.SIGKILL and hashed_bytes(joined) < STANDSTILL - 16 * MIB:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(ending)
        first.stderr.read()
        assert first.wait(60) == (-9 if ending is signal.SIGKILL else 130)
    assert hashed_bytes(joined) >= STANDSTILL - 16 * MIB
    done = run(joined, _COUNTED, *words)
    assert done.returncode == 0, done.stderr
    (added,) = json.loads(done.stdout)["added"]
    assert (added["stream"], added["sha256"]) == (str(expected.opening.stream_id()), (expected.sha256 or b"").hex())
    assert int(done.stderr.split()[-1]) < LENGTH - STANDSTILL + 32 * MIB
    assert hashed_bytes(joined) == 0


def test_many_files_are_added_together(joined: Cli) -> None:
    """Each file has its URI, in the order they were named; a missing one and a folder do not hold up the others."""
    names = [f"{number:04}.bin" for number in range(1500)]
    for name in names:
        (joined.folder / name).write_bytes(name.encode() * 9)
    (joined.folder / "link").symlink_to(names[7])
    (joined.folder / "folder").mkdir()
    done = joined.run("add", "--no-serve", "--json", *names[:1100], "none", "folder", *names[1100:], "link")
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert [Path(one["path"]).name for one in document["added"]] == [*names, "link"]
    for one in document["added"]:
        data = Path(one["path"]).name.encode() * 9 if one["path"] != "link" else names[7].encode() * 9
        assert one["sha256"] == hashlib.sha256(data).hexdigest()
    assert [Path(one["path"]).name for one in document["failed"]] == ["none", "folder"]
    again = joined.run("add", "--no-serve", "--json", *names)
    assert all(one["unchanged"] for one in json.loads(again.stdout)["added"])
    streams = json.loads(joined.run("ls", "--json").stdout)["streams"]
    assert len(streams) == len(names)
    assert {one["state"] for one in streams} == {"complete"}


#: The command line, but that each piece takes a while, and a plain line comes twenty times a second.
_TALKING = """
import sys, threading
from entrepot.adapters import hashing
from entrepot.cli import progress
from entrepot.cli.main import main

read = hashing.read_into

def slowly(descriptor, buffer, offset):
    threading.Event().wait(0.25)
    return read(descriptor, buffer, offset)

hashing.read_into, progress.Lines.__init__.__defaults__ = slowly, (0.05,)
sys.exit(main(sys.argv[1:]))
"""


def test_progress_is_that_of_all_files(joined: Cli) -> None:
    """While files are hashed, lines tell the one in hand, the share of all of them, the rate and the time left."""
    for name in "ab":
        (joined.folder / name).write_bytes(os.urandom(12 * MIB))
    done = run(joined, _TALKING, "add", "--no-serve", "a", "b")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if " / 24.0 MiB" in line]
    assert any(line.startswith("a: reading, ") for line in lines)
    assert any(line.startswith("b: reading, ") and "ETA" in line for line in lines)
    checked = run(joined, _TALKING, "verify", "--all")
    assert checked.returncode == 0, checked.stderr
    lines = [line for line in checked.stderr.splitlines() if " / 24.0 MiB" in line]
    assert {line[:14] for line in lines} == {"a: verifying, ", "b: verifying, "}
    assert run(joined, _TALKING, "verify", "--all", "--quiet").stderr == ""


@pytest.mark.parametrize("width", [40, 120])
def test_uris_stand_alone_above_the_bar(joined: Cli, width: int) -> None:
    """On a terminal each URI has a line of its own, unbroken however narrow the terminal is, and the bar is gone at the
    end; so has what is told of a file that failed."""
    names = [f"recording-of-a-day-with-a-long-name-{number}.bin" for number in range(4)]
    for name in names:
        (joined.folder / name).write_bytes(os.urandom(9 * MIB))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    words = ("add", "--no-serve", *names[:2], "none-with-a-name-that-is-longer-than-the-terminal-is-wide", *names[2:])
    with subprocess.Popen(
        [sys.executable, "-c", _TALKING, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=joined.environment(TERM="xterm", COLUMNS="", LINES=""),
        cwd=joined.folder,
    ) as process:
        os.close(theirs)
        shown = bytearray()
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        assert process.wait(60) == 3
    text = shown.decode()
    assert "reading recording" in text
    # What was drawn before a line was erased is gone.
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", line.rpartition("\x1b[2K")[2]) for line in text.split("\n")]
    uris = joined.run("ls").stdout.split()
    assert len(uris) == len(names)
    assert [line for line in lines if line.startswith("entrepot://")] == sorted(uris, key=lambda uri: uri[-5:])
    assert any(line.startswith("entrepot: none-with") or "is-wide" in line for line in lines)
    piped = joined.run("add", "--no-serve", *names)
    assert piped.stdout.split("\n") == [*sorted(uris, key=lambda uri: uri[-5:]), ""]
