"""A node dies between any two things that it writes: when it adds a file, fetches a stream, makes it a user's file.

Commands are real ones, killed before the Nth thing that they ask the system to write, or right before or after a
transaction of the catalogue: bytes and bits, names and rows in every order that there is. Whatever is left, there is no
half-written output, the same command again succeeds, and what the store holds verifies. The ordinary run takes a sample
of the points, ``-m soak`` takes all.
"""

from __future__ import annotations

import asyncio
import filecmp
import os
import re
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.servers.doomed import Nursery
from tests.servers.nodes import KIB, Site
from tests.servers.relay import noted

from entrepot.services.node import Node
from entrepot.services.settings import NodeSettings

pytestmark = [pytest.mark.blocking, pytest.mark.slow, pytest.mark.timeout(400)]

SHAPE = {"miniblock": 16 * KIB, "object": 64 * KIB}
SIZE = 3 * 64 * KIB + 1000
#: Points of an ordinary run, for each command.
SAMPLE = 4


class Ground:
    """A hub whose bucket has the stream, and homes of nodes that joined and hold nothing."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self.nursery = Nursery("entrepot", folder / "nursery")
        holder = site.machine("holder")
        self.original = holder.file("original.bin", SIZE)
        (self.uri,) = holder.add(self.original)
        holder.up()
        first = site.machine("first")
        first.run("get", self.uri, "-o", "copy.bin").fine()
        self.template = site.machine("template")
        self._number = 0

    def place(self) -> Place:
        """A node that holds nothing, and its folder."""
        self._number += 1
        home = self.site.homes / f"n{self._number}"
        shutil.copytree(self.template.home, home)
        folder = self.folder / f"node-{self._number}"
        folder.mkdir()
        return Place(self, home, folder)


class Place:
    """One node: commands in it are doomed."""

    def __init__(self, ground: Ground, home: Path, folder: Path) -> None:
        self._nursery = ground.nursery
        self.home = home
        self.folder = folder

    def run(self, *words: str | Path, nth: int | None = None) -> int:
        """Run a command, to its Nth write; its exit code, or less than 0."""
        return self._nursery.run((self.home, self.folder), *words, nth=nth, ENTREPOT_HOME=str(self.home))

    @property
    def steps(self) -> int:
        """What the last command wrote."""
        return self._nursery.doom.steps

    def fine(self, *words: str | Path) -> None:
        """Run a command, which succeeds."""
        assert self.run(*words) == 0, self._nursery.said

    def sound(self) -> int:
        """Hash everything again: all is what it should be. How many streams are held."""

        async def work() -> int:
            async with Node(NodeSettings(home=self.home)) as node:
                found = await node.verify()
                assert not any(one.bad for one in found), found
                return len([entry for entry in await node.entries() if entry.complete])

        return asyncio.run(work())

    @property
    def said(self) -> str:
        """What the last command said."""
        return self._nursery.said

    def tidy(self) -> None:
        """Beside what the user knows of there lies at most one hidden file that a killed command was making."""
        others = set(os.listdir(self.folder)) - {"mine.bin", "copy.bin"}
        assert len(others) <= 1, others
        assert all(re.fullmatch(r"\.entrepot-[0-9a-f]{16}\.part", name) for name in others), others

    def gone(self) -> None:
        """Make room."""
        shutil.rmtree(self.home)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, empty_home: Path) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("doomed")
    site = Site(folder, empty_home / secrets.token_hex(4))
    made: Ground | None = None
    try:
        site.start(**SHAPE)
        made = Ground(site, folder)
        yield made
    finally:
        if made is not None:
            made.nursery.close()
        site.close()


def killed(ground: Ground, points: Callable[[int], range], check: Callable[[Place, int | None], int]) -> int:
    """Run ``check`` with a new node, once to its end and then killed at each of the points; how many died there."""
    place = ground.place()
    steps = check(place, None)
    place.gone()
    deaths = 0
    for nth in points(steps):
        place = ground.place()
        deaths += check(place, nth) < 0
        place.gone()
    noted("killed at, of writes", f"{deaths}, {steps}")
    return deaths


def sample(steps: int) -> range:
    """Points spread over a command."""
    return range(2, steps, max(steps // SAMPLE, 1))


def every(steps: int) -> range:
    return range(1, steps + 1)


def adding(place: Place, nth: int | None, *, copy: bool) -> int:
    """Add a file and be killed; it is as if nothing had been added, or as if all had. Adding it again succeeds."""
    path = place.folder / "mine.bin"
    path.write_bytes(os.urandom(SIZE))
    before = path.read_bytes()
    words = ("add", path, "--no-serve", *(("--copy",) if copy else ()))
    code = place.run(*words, nth=nth)
    steps = place.steps
    assert code in ((0,) if nth is None else (0, -signal.SIGKILL)), place.said
    held = place.sound()
    assert held in {0, 1}
    assert held == 1 or code != 0
    place.fine(*words)
    assert place.sound() == 1
    assert path.read_bytes() == before
    place.tidy()
    return -1 if code else steps


def getting(place: Place, nth: int | None, *, original: Path, uri: str) -> int:
    """Get a stream as a file and be killed; there is no output, or all of it. Getting it again succeeds."""
    output = place.folder / "copy.bin"
    words = ("get", uri, "-o", output)
    code = place.run(*words, nth=nth)
    steps = place.steps
    assert code in ((0,) if nth is None else (0, -signal.SIGKILL)), place.said
    assert not output.exists() or filecmp.cmp(original, output, shallow=False)
    place.sound()
    place.fine(*words)
    assert filecmp.cmp(original, output, shallow=False)
    assert place.sound() == 1
    place.tidy()
    return -1 if code else steps


def exporting(place: Place, nth: int | None, *, original: Path, uri: str) -> int:
    """A stream that is held as a file of the user's becomes another one, replacing what is there: what is there is the
    old one or the new one, never a mixture."""
    place.fine("cat", uri, "--range", "0-")
    output = place.folder / "copy.bin"
    output.write_bytes(b"old")
    code = place.run("get", uri, "-o", output, "--force", nth=nth)
    steps = place.steps
    assert code in ((0,) if nth is None else (0, -signal.SIGKILL)), place.said
    assert output.read_bytes() == b"old" or filecmp.cmp(original, output, shallow=False)
    place.sound()
    place.fine("get", uri, "-o", output, "--force")
    assert filecmp.cmp(original, output, shallow=False)
    assert place.sound() == 1
    place.tidy()
    return -1 if code else steps


def command(ground: Ground, name: str) -> Callable[[Place, int | None], int]:
    return {
        "add": partial(adding, copy=False),
        "add --copy": partial(adding, copy=True),
        "get": partial(getting, original=ground.original, uri=ground.uri),
        "get --force of what is held": partial(exporting, original=ground.original, uri=ground.uri),
    }[name]


COMMANDS = ["add", "add --copy", "get", "get --force of what is held"]


@pytest.mark.parametrize("name", ["add --copy", "get"])
def test_a_node_is_killed_between_writes(ground: Ground, report: Callable[..., None], name: str) -> None:
    """At a sample of the points: nothing half-made is seen, and the same command again completes."""
    deaths = killed(ground, sample, command(ground, name))
    assert deaths >= SAMPLE - 1
    report("kills", store=f"node, {name} (sample)", points=deaths, outcome="all complete")


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_node_is_killed_between_any_two_writes(ground: Ground, report: Callable[..., None], name: str) -> None:
    """At every point."""
    deaths = killed(ground, every, command(ground, name))
    report("kills", store=f"node, {name}", points=deaths, outcome="all complete")
