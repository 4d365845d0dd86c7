"""The demonstration behind ``scripts/demo``: it types the commands that a person would, and shows what they do."""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
RANDOM = 256 << 20
START = 30.0  # seconds that the hub may take

console = Console(highlight=False)


class Failed(Exception):
    """A step did not do what it should."""


@dataclass
class Moved:
    """One file's way: sizes in bytes, times in seconds."""

    name: str
    size: int
    uri: str
    add_seconds: float
    get_seconds: float = 0.0
    put_bytes: int = 0
    put_objects: int = 0
    here: Path = field(default_factory=Path)
    there: Path = field(default_factory=Path)
    same: bool = False


def main() -> int:
    """Run the demonstration; the exit code."""
    words = argparse.ArgumentParser(prog="scripts/demo", description="Move files between two nodes through a bucket.")
    words.add_argument("files", metavar="FILE", nargs="*", type=Path, help="files to move instead of the usual two")
    words.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C, with commands to try")
    asked = words.parse_args()
    for path in asked.files:
        if not path.is_file():
            words.error(f"{path} is not a file")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with place() as folder:
            demo = Demo(folder)
            try:
                demo.run(asked.files)
                if asked.keep:
                    demo.linger()
            finally:
                demo.stop()
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing is left behind.")
        return 130
    except Failed as error:
        console.print(f"[red]{error}[/]")
        return 1
    return 0


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder for everything, gone in the end whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="entrepot-demo-"))
    try:
        yield folder
    finally:
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Cleaning up is not interrupted by a second Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Demo:
    """A hub and two nodes under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub: subprocess.Popen[bytes] | None = None
        self.homes = {name: folder / name for name in ("alice", "bob")}
        self.step = 0

    def run(self, files: list[Path]) -> None:
        """All steps."""
        started = time.monotonic()
        self.say("A hub: a signing key, a database, a message bus, and a folder that serves as the bucket")
        self.start_hub()
        paths = files or self.usual_files()
        total = sum(path.stat().st_size for path in paths)
        bucket = self.folder / "bucket"
        bucket.mkdir()
        quota = f"{2 * total // (1 << 30) + 1}G"
        self.hub_command("channel", "create", "demo", "--bucket", bucket.as_uri(), "--quota", quota)
        invite = json.loads(self.hub_command("channel", "invite", "demo", "--uses", "2", "--json"))["url"]

        self.say("Two nodes join with an invite; each makes its own key, nobody sees the bucket's")
        for name in self.homes:
            self.node_command(name, "join", invite, "--name", name, shown=("join", "http://…/j/…", "--name", name))

        moved = []
        self.say("alice adds: the files stay where they are, hashed in place; nothing is uploaded")
        for path in paths:
            began = time.monotonic()
            added = json.loads(self.node_command("alice", "add", str(path.resolve()), "--json"))["added"][0]
            seconds = time.monotonic() - began
            moved.append(Moved(added["name"], added["length"], added["uri"], seconds, here=path))
            console.print(f"   [cyan]{added['uri']}[/]", soft_wrap=True)

        self.say("bob gets them by URI: only now alice uploads, object by object, and bob verifies each miniblock")
        for number, one in enumerate(moved):
            before = self.stored()
            one.there = self.folder / "received" / str(number) / one.name
            one.there.parent.mkdir(parents=True)
            began = time.monotonic()
            self.node_command(
                "bob",
                "get",
                one.uri,
                "-o",
                str(one.there),
                shown=("get", f"…/{one.name}", "-o", f"received/{one.name}"),
            )
            one.get_seconds = time.monotonic() - began
            after = self.stored()
            console.print(f"   [cyan]{one.there}[/]", soft_wrap=True)
            one.put_objects, one.put_bytes = after[0] - before[0], after[1] - before[1]
            one.same = filecmp.cmp(one.here, one.there, shallow=False)
        self.report(moved, time.monotonic() - started)
        if not all(one.same for one in moved):
            raise Failed("The bytes differ. This must never happen: please report it.")

    def report(self, moved: list[Moved], seconds: float) -> None:
        """What moved where, and how fast."""
        table = Table(
            title="alice ── PUT ──▶ bucket ── GET ──▶ bob", title_justify="left", header_style="bold", box=None
        )
        table.add_column("file", overflow="ellipsis", no_wrap=True, max_width=28)
        for heading in ("added in", "uploaded", "objects", "got in", "rate"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("bytes", no_wrap=True)
        for one in moved:
            rate = one.size / one.get_seconds if one.get_seconds else 0.0
            table.add_row(
                one.name,
                f"{one.add_seconds:.1f} s",
                size(one.put_bytes),
                str(one.put_objects),
                f"{one.get_seconds:.1f} s",
                f"{size(rate)}/s",
                "[green]same[/]" if one.same else "[red]DIFFERENT[/]",
            )
        console.print()
        console.print(table)
        console.print(
            "added in, got in: whole commands with Python's start. uploaded: what the bucket holds, headers too.\n"
            f"Everything together took {seconds:.1f} s."
        )

    def linger(self) -> None:
        """Stay until Ctrl-C, with something to try."""
        path = f"{BIN}{os.pathsep}$PATH"
        console.print("\nStill running. In another terminal:\n")
        for line in (
            f'export PATH="{path}"',
            f"ENTREPOT_HOME={shlex.quote(str(self.homes['alice']))} entrepot add SOME_FILE",
            f"ENTREPOT_HOME={shlex.quote(str(self.homes['bob']))} entrepot get entrepot://…",
            f"ENTREPOT_HOME={shlex.quote(str(self.homes['alice']))} entrepot status",
            f"entrepot-hub channel show demo --folder {shlex.quote(str(self.folder / 'hub'))}",
            f"find {shlex.quote(str(self.folder / 'bucket'))} -type f",
        ):
            console.print(f"  [cyan]{line}[/]", soft_wrap=True)
        console.print("\nCtrl-C ends it and removes everything.")
        while True:
            time.sleep(3600)

    def stop(self) -> None:
        """End what was started: both daemons, the hub with its nats-server."""
        with undisturbed():
            for home in self.homes.values():
                if home.exists():
                    subprocess.run(
                        [BIN / "entrepot", "down"], env=environment(home), capture_output=True, check=False, timeout=60
                    )
            if self.hub is not None:
                self.hub.terminate()
                try:
                    self.hub.wait(20)
                except subprocess.TimeoutExpired:
                    self.hub.kill()
                    self.hub.wait()

    # -- pieces -----------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Name the next step."""
        self.step += 1
        console.print(f"\n[bold]{self.step}. {text}[/]", soft_wrap=True)

    def start_hub(self) -> None:
        """Set up the hub and start it as a process of its own."""
        port, nats = free_port(), free_port()
        url = f"http://127.0.0.1:{port}"
        self.hub_command("init", "--url", url, "--listen", f"127.0.0.1:{port}", "--nats-listen", f"127.0.0.1:{nats}")
        log = (self.folder / "hub.log").open("wb")
        show("entrepot-hub", "serve", "&")
        self.hub = subprocess.Popen(
            [BIN / "entrepot-hub", "serve", "--folder", self.folder / "hub"],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START
        while True:
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            if self.hub.poll() is not None or time.monotonic() > deadline:
                raise Failed("The hub did not start:\n" + (self.folder / "hub.log").read_text()[-2000:])
            time.sleep(0.05)

    def hub_command(self, *words: str) -> str:
        """An ``entrepot-hub`` command; its standard output."""
        show("entrepot-hub", *words)
        return run([BIN / "entrepot-hub", *words, "--folder", self.folder / "hub"], os.environ)

    def node_command(self, node: str, *words: str, shown: tuple[str, ...] | None = None) -> str:
        """An ``entrepot`` command of one node; its standard output. Progress goes to the terminal."""
        show(f"{node}$ entrepot", *(shown or words))
        return run([BIN / "entrepot", *words], environment(self.homes[node]))

    def stored(self) -> tuple[int, int]:
        """Objects and bytes in the bucket."""
        sizes = [
            path.stat().st_size
            for path in (self.folder / "bucket").rglob("*")
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(self.folder / "bucket").parts)
        ]
        return len(sizes), sum(sizes)

    def usual_files(self) -> list[Path]:
        """A large file of the Python installation and 256 MiB that nobody can compress or have cached."""
        base = Path(sys.base_prefix)
        candidates = [path for pattern in ("lib/libpython*", "bin/python3*") for path in base.glob(pattern)]
        large = max((path for path in candidates if path.is_file()), key=lambda path: path.stat().st_size)
        random = self.folder / "random-256MiB.bin"
        with random.open("wb") as file:
            for _ in range(RANDOM >> 20):
                file.write(os.urandom(1 << 20))
        return [large, random]


def show(*words: str) -> None:
    """A command as a person would type it."""
    console.print(f"   [dim]{' '.join(words)}[/]", soft_wrap=True)


def run(command: list[Any], env: Any) -> str:
    """Run it with its progress on the terminal; its standard output. Failed if it fails."""
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Failed(f"{Path(command[0]).name} {command[1]} ended with {done.returncode}")
    return done.stdout.decode()


def environment(home: Path) -> dict[str, str]:
    """The environment of a node's commands."""
    return {**os.environ, "ENTREPOT_HOME": str(home)}


def free_port() -> int:
    """A TCP port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


if __name__ == "__main__":
    sys.exit(main())
