"""A file much larger than its channel's quota on its way to readers apart from each other, watched at the bucket.

The bucket is looked at by a process that knows nothing of the hub: it walks the folder and adds up what lies there.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from tests.servers.nodes import MIB, Command, Machine, Site
from tests.servers.relay import until

_OBSERVER = """
import os, sys, time
root, stop, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
most = samples = last = 0
while not last:
    last = os.path.exists(stop)  # one more sample after the end
    stored = 0
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                try:
                    stored += os.stat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    pass
    most, samples = max(most, stored), samples + 1
    time.sleep(pause)
print(most, samples)
"""


@dataclass(frozen=True)
class Flow:
    """What it took. Sizes in bytes. ``stored_most``: the most that lay in the bucket at any of the ``samples``;
    ``uploads``: bytes that were PUT as a multiple of the file; ``seconds``: of each reader, from its start."""

    quota: int
    size: int
    readers: int
    starts: tuple[float, ...]
    stored_most: int
    samples: int
    puts: int
    put_bytes: int
    uploads: float
    verified: tuple[bool, ...]
    seconds: tuple[float, ...]
    wall: float

    def __str__(self) -> str:
        return (
            f"{self.size / MIB:.0f} MiB through {self.quota / MIB:.0f} MiB to {self.readers} readers: "
            f"most stored {self.stored_most / MIB:.1f} MiB in {self.samples} samples, {self.puts} PUTs, "
            f"{self.put_bytes / MIB:.0f} MiB up = {self.uploads:.2f} × the file, {sum(self.verified)} verified, "
            f"{self.wall:.1f} s"
        )

    def document(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


class Observer:
    """Samples the bytes under a folder from a process of its own, every ``pause`` seconds."""

    def __init__(self, root: Path, folder: Path, pause: float) -> None:
        self._stop = folder / "observed"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _OBSERVER, root, self._stop, str(pause)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="ascii",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> tuple[int, int]:
        """The most that was seen, and how often was looked."""
        self._stop.touch()
        out, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        most, samples = out.split()
        return int(most), int(samples)


def through(
    site: Site,
    *,
    quota: int,
    size: int,
    readers: int,
    starts: Sequence[float],
    pause: float = 0.05,
    seconds: float = 600.0,
) -> Flow:
    """Get a file of ``size`` random bytes to nodes of their own, each with a home and a process. Reader ``i`` begins
    when ``starts[i]`` of the file was uploaded, so that they are apart from each other; uploads stand still until it
    asks, however long its process takes to start. The channel's ``quota`` is that of the site."""
    holder = site.machine("holder").up()
    original = holder.file("original.bin", data=b"")
    with original.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(MIB))
        file.truncate(size)
    (uri,) = holder.add(original)
    with original.open("rb") as file:
        right = hashlib.file_digest(file, "sha256").hexdigest()
    machines = [site.machine(f"reader{number}") for number in range(readers)]
    began = time.monotonic()
    commands: list[Command] = []
    at: list[float] = []
    with Observer(site.hub.bucket(), site.folder, pause) as observer:
        for number, machine in enumerate(machines):
            if number:
                site.relay.wait_held("PUT", seconds)
            at.append(time.monotonic())
            commands.append(machine.start("get", uri, "-o", machine.folder / "got.bin"))
            until(partial(_wanted, holder, uri, number + 1), seconds, "a want")
            if number + 1 < readers:
                site.relay.hold("PUT", max(int(starts[number + 1] * size) - site.relay.put_bytes, 0))
        site.relay.release("PUT")
        ends = [0.0] * readers
        while not all(ends):
            for number, command in enumerate(commands):
                if not ends[number] and command.process.poll() is not None:
                    ends[number] = time.monotonic()
            assert time.monotonic() < began + seconds, [command.told[-500:] for command in commands]
            time.sleep(0.01)
        most, samples = observer.end()
    for command in commands:
        command.wait().fine()
    verified = []
    for machine in machines:
        with (machine.folder / "got.bin").open("rb") as file:
            verified.append(hashlib.file_digest(file, "sha256").hexdigest() == right)
    return Flow(
        quota=quota,
        size=size,
        readers=readers,
        starts=tuple(starts),
        stored_most=most,
        samples=samples,
        puts=len(site.relay.puts()),
        put_bytes=site.relay.put_bytes,
        uploads=site.relay.put_bytes / size,
        verified=tuple(verified),
        seconds=tuple(round(end - start, 2) for end, start in zip(ends, at, strict=True)),
        wall=round(max(ends) - began, 2),
    )


def _wanted(machine: Machine, uri: str, count: int) -> bool:
    """Whether so many nodes want the stream."""
    return machine.wanted(uri) >= count
