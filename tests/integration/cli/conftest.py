"""Running the command line as a user does: in processes of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Cli:
    """Runs ``entrepot`` for one node, whose home is ``home``; text in and out, unless ``data`` is asked for."""

    home: Path
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "ENTREPOT_HOME": str(self.home), "PYTHONWARNINGS": "error", **more}

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "entrepot", *(str(word) for word in words)]

    def run(self, *words: str | Path, given: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            input="" if given is None else given,
            capture_output=True,
            encoding="utf-8",
            env=self.environment(**more),
            cwd=self.folder,
            timeout=90,
            check=False,
        )

    def data(self, *words: str | Path) -> bytes:
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.environment(),
            cwd=self.folder,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def start(self, *words: str | Path, **more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**more),
            cwd=self.folder,
        )


class Nodes:
    """Makes command lines of nodes and ends their daemons. Homes lie under short paths, for the daemon's socket."""

    def __init__(self, homes: Path, folders: Path) -> None:
        self._homes = homes
        self._folders = folders
        self._made: list[Cli] = []

    def make(self, name: str) -> Cli:
        folder = self._folders / name
        folder.mkdir()
        self._made.append(Cli(self._homes / f"{self._folders.name}-{name}", folder))
        return self._made[-1]

    def member(self, name: str, hub: HubProcess, *channels: str) -> Cli:
        cli = self.make(name)
        for channel in channels:
            done = cli.run("join", "-", "--name", name, given=hub.invite(channel) + "\n")
            assert (done.returncode, done.stdout) == (0, f"{channel}@{hub.host}\n"), done.stderr
        return cli

    def close(self) -> None:
        for one in self._made:
            if (one.home / "daemon.sock").exists():
                one.run("down", "--quiet")


@pytest.fixture
def nodes(tmp_path: Path, empty_home: Path) -> Iterator[Nodes]:
    """Nodes of one test."""
    made = Nodes(empty_home, tmp_path)
    yield made
    made.close()


@pytest.fixture
def cli(nodes: Nodes) -> Cli:
    """A node that joined nothing."""
    return nodes.make("node")


@pytest.fixture(scope="module")
def members(empty_home: Path, tmp_path_factory: pytest.TempPathFactory, hub: HubProcess) -> Iterator[tuple[Cli, Cli]]:
    """Two members of the channel demo, for all tests of a module: each test has files of its own."""
    made = Nodes(empty_home, tmp_path_factory.mktemp("members"))
    yield made.member("lab", hub, "demo"), made.member("office", hub, "demo")
    made.close()


@dataclass
class HubProcess:
    """A running ``entrepot-hub`` with one channel, ``demo``, whose objects are small."""

    folder: Path
    url: str

    @property
    def host(self) -> str:
        return self.url.partition("://")[2]

    def run(self, *words: str) -> str:
        program = "from entrepot_hub.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program, *words, "--folder", str(self.folder / "hub")],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def channel(self, name: str) -> None:
        place = self.folder / f"bucket-{name}"
        place.mkdir()
        shape = ("--miniblock", "16K", "--object", "64K", "--quota", "1G")
        self.run("channel", "create", name, "--bucket", f"file://{place}", *shape)

    def invite(self, channel: str = "demo") -> str:
        return str(json.loads(self.run("channel", "invite", channel, "--uses", "9", "--json"))["url"])


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def hub(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A hub as an admin runs it, in a process of its own."""
    folder = empty_home / tmp_path_factory.mktemp("hub").name
    folder.mkdir()
    port, bus = _free_ports(2)
    made = HubProcess(folder, f"http://127.0.0.1:{port}")
    made.run("init", "--url", made.url, "--listen", f"127.0.0.1:{port}", "--nats-listen", f"127.0.0.1:{bus}")
    program = "from entrepot_hub.cli.main import main; main()"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--folder", str(folder / "hub")], stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"{made.url}/v1/hub", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.05)
        made.channel("demo")
        yield made
    finally:
        process.terminate()
        process.wait(30)
