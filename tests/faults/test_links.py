"""Links between hub, message bus, bucket and nodes that break, break in one direction, stutter, crawl and narrow.

Every party is a process in a network namespace of its own (:mod:`tests.servers.linked`). While a link is broken a get
waits or ends with the reason that fits; once it is mended the get completes with equal bytes, both nodes' copies
verify, and the hub has nothing left reserved. The ordinary run has a cell of each kind, ``-m soak`` has them all.
"""

from __future__ import annotations

import filecmp
import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from tests.servers.linked import LinkedMachine, LinkedSite
from tests.servers.namespaces import How, missing, running_network
from tests.servers.nodes import KIB, MIB, Command, Ended, elapsed
from tests.servers.relay import noted, until

pytestmark = [pytest.mark.blocking, pytest.mark.slow, pytest.mark.timeout(400)]

type Report = Callable[..., None]
type Point = Literal["before the want", "in an upload", "in a download", "at the last object"]

SIZE = 6 * MIB
#: Bytes/s of the line of whom the point is about: so that a transfer has a middle.
RATE = 3 * MIB
QUOTA = 24 * MIB
#: Seconds for which a link is broken. Longer than what a sender waits for a message's answer.
BROKEN = 4.0
#: By when a transfer must have ended once its link was mended. Within it lie every lease, every time-out of an idle
#: connection (30 s), and the pings that find a dead bus (40 s).
MENDED = 110.0

LINKS = [
    ("reader", "bucket"),
    ("reader", "bus"),
    ("reader", "hub"),
    ("holder", "bucket"),
    ("holder", "bus"),
    ("holder", "hub"),
    ("hub", "bucket"),
    ("hub", "bus"),
]
PARTIES = ("reader", "holder", "hub", "bus", "bucket")
#: Seconds without a byte after which a get gives up, where a link stays broken; and by when it must have ended.
PATIENCE = 15
LIMIT = 45.0
POINTS: tuple[Point, ...] = ("before the want", "in an upload", "in a download", "at the last object")


class Ground:
    """The parties, and transfers between the holder and the reader."""

    def __init__(self, site: LinkedSite) -> None:
        self.site = site
        self.network = site.network
        self.holder = site.machine("holder").up()
        self.reader = site.machine("reader")
        assert isinstance(self.holder, LinkedMachine)
        self._numbers = itertools.count()

    def transfer(self, point: Point, size: int = SIZE) -> Transfer:
        """A file of the holder's, and the line slowed that makes the point last."""
        return Transfer(self, point, size, next(self._numbers))

    def settle(self) -> None:
        """The holder's daemon is up."""
        until(lambda: [view.state for view in self.holder.views()] == ["up"], 90, "the holder's return")

    def clean(self) -> None:
        """Nothing is reserved any more, and bucket and ledger agree."""
        until(lambda: not self.site.books().reserved, 60, "the end of all reservations")
        self.site.books().check()
        assert not self.site.compare()


class Transfer:
    """One get of a new file."""

    def __init__(self, ground: Ground, point: Point, size: int, number: int) -> None:
        self.ground = ground
        self.point = point
        self.size = size
        self.original = ground.holder.file(f"original-{number}", size)
        (self.uri,) = ground.holder.add(self.original)
        self.output = ground.reader.folder / f"copy-{number}"
        self.get: Command | None = None

    def begin(self, *words: str) -> None:
        """Start the get and return when it is at the point."""
        network, size = self.ground.network, self.size
        if self.point == "before the want":
            return
        line, side = ("reader", 0) if self.point == "in a download" else ("holder", 1)
        share = 0.8 if self.point == "at the last object" else 0.3
        network.slow(line, RATE)
        before = network.passed(line)[side]
        self.start(*words)
        until(lambda: network.passed(line)[side] - before > share * size, 60, f"the point {self.point!r}")
        assert not self.output.exists(), "the transfer was over before its link was broken"

    def start(self, *words: str) -> None:
        """Start the get."""
        self.get = self.ground.reader.start("get", self.uri, "-o", self.output, "--json", *words)

    def ended(self) -> Ended:
        """How the get ended."""
        assert self.get is not None
        return self.get.wait(MENDED)

    def complete(self) -> None:
        """The get succeeds, with equal bytes, and all of it verifies; then it makes room."""
        self.ended().fine()
        assert filecmp.cmp(self.original, self.output, shallow=False)
        assert self.ground.holder.sound(self.uri)
        assert self.ground.reader.sound(self.uri)
        self.ground.clean()

    def repeat(self) -> None:
        """The get once more, which completes."""
        self.start()
        self.complete()


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory, empty_home: Path) -> Iterator[Ground]:
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)
    with running_network() as network:
        site = LinkedSite(network, tmp_path_factory.mktemp("linked"), empty_home / secrets.token_hex(4))
        try:
            yield Ground(site.start(quota=QUOTA))
        finally:
            site.close()


@pytest.fixture
def ground(parties: Ground) -> Iterator[Ground]:
    """The parties, all links whole; whole again afterwards, with the holder's daemon up."""
    yield parties
    parties.network.mend()
    parties.network.hasten()
    print(parties.site.told())
    for command in parties.reader.commands:
        if command.process.poll() is None:
            command.kill()
    parties.settle()


def broken(
    ground: Ground,
    report: Report,
    point: Point,
    fault: str,
    cut: Callable[[], None],
    *,
    seconds: float = BROKEN,
    size: int = SIZE,
) -> None:
    """Break something at a point of a transfer, mend it after a while, and see it complete."""
    transfer = ground.transfer(point, size)
    transfer.begin()
    cut()
    if transfer.get is None:
        transfer.start()
    time.sleep(seconds)  # what is broken is broken for so long: nothing to wait for
    waiting = transfer.get is not None and transfer.get.process.poll() is None
    ground.network.mend()
    mended = time.monotonic()
    transfer.ended().fine()
    took = elapsed(mended)
    transfer.complete()
    outcome = "completed" if waiting else "complete, before it was mended"
    noted(f"{fault}, {point}", took)
    report("faults", fault=fault, point=point, outcome=outcome, seconds=round(took, 1))
    report("recoveries", fault=fault, point=point, seconds=round(took, 1))


def pulled(ground: Ground, name: str) -> None:
    """A party is cut off from all others."""
    for other in ground.network.parties:
        if other != name:
            ground.network.cut(name, other)


def stutter(ground: Ground, one: str, other: str, times: int = 5) -> None:
    """A link is broken and mended again and again."""
    for _ in range(times):
        ground.network.cut(one, other)
        time.sleep(0.6)
        ground.network.mend()
        time.sleep(0.4)


def crawl(ground: Ground, name: str, rate: int, seconds: float = 6.0) -> None:
    """A party's line crawls for a while."""
    ground.network.slow(name, rate)
    time.sleep(seconds)
    ground.network.slow(name, RATE)


def between(link: tuple[str, str]) -> str:
    return f"{link[0]}–{link[1]}"


def busiest(link: tuple[str, str]) -> Point:
    """The point at which a link has most to do."""
    return "in a download" if "reader" in link else "in an upload"


# ---- the ordinary run


@pytest.mark.parametrize(
    ("link", "point"),
    [(("holder", "bucket"), "in an upload"), (("hub", "bus"), "in a download")],
    ids=lambda value: between(value) if isinstance(value, tuple) else value,
)
def test_a_link_that_swallows_everything(ground: Ground, report: Report, link: tuple[str, str], point: Point) -> None:
    """A link passes nothing and says nothing: once it is mended the get completes."""
    broken(ground, report, point, f"{between(link)} cut, silent", lambda: ground.network.cut(*link), seconds=3)


def test_a_link_that_passes_one_way_only(ground: Ground, report: Report) -> None:
    """What the bucket answers its readers is lost, what they ask for is not: once it is mended the get completes."""
    broken(
        ground,
        report,
        "in a download",
        "bucket→reader cut, silent",
        lambda: ground.network.cut_towards("bucket", "reader"),
        seconds=3,
    )


def test_a_link_that_refuses(ground: Ground, report: Report) -> None:
    """The hub's connections to its bucket are reset and refused: once it is mended the get completes."""
    broken(
        ground,
        report,
        "in an upload",
        "hub–bucket cut, refused",
        lambda: ground.network.cut("hub", "bucket", "refused"),
        seconds=3,
    )


def test_a_link_that_stutters(ground: Ground, report: Report) -> None:
    """The reader's link to the message bus comes and goes: the get completes."""
    broken(
        ground,
        report,
        "in an upload",
        "reader–bus stuttering",
        lambda: stutter(ground, "reader", "bus", 3),
        seconds=0,
    )


# ---- links that stay broken: a stated reason within the deadline


@dataclass(frozen=True)
class Verdict:
    """What a get says when a link stays broken: one of these kinds, or (None among them) nothing: it can do without."""

    kinds: frozenset[str | None]


def verdict(*kinds: str | None) -> Verdict:
    return Verdict(frozenset(kinds))


#: By link: at the beginning of a transfer, and in the middle of it.
REASONS: dict[tuple[str, str], tuple[Verdict, Verdict]] = {
    ("reader", "bucket"): (verdict("bucket-unreachable"), verdict("bucket-unreachable")),
    ("reader", "bus"): (verdict("bus-unreachable"), verdict("bus-unreachable", "hub-unreachable")),
    # The hub's own address is needed for the beginning and once an hour.
    ("reader", "hub"): (verdict("hub-unreachable"), verdict(None)),
    ("holder", "bucket"): (
        verdict("bucket-unreachable", "holder-too-slow", "deadline"),
        verdict("bucket-unreachable", "holder-too-slow", "deadline"),
    ),
    ("holder", "bus"): (verdict("no-holder"), verdict("no-holder", "deadline")),
    ("holder", "hub"): (verdict(None), verdict(None)),
    ("hub", "bucket"): (
        verdict("bucket-unreachable", "over-quota", "deadline"),
        verdict("bucket-unreachable", "over-quota", "deadline"),
    ),
    ("hub", "bus"): (verdict("hub-unreachable"), verdict("hub-unreachable")),
}


def stays_broken(
    ground: Ground, report: Report, link: tuple[str, str], how: How, point: Point, patience: float = PATIENCE
) -> None:
    """A link breaks and stays so: the get ends in time and says why. Mended, the same get completes."""
    ground.settle()
    transfer = ground.transfer(point)
    words = ("--timeout", f"{patience:g}s")
    transfer.begin(*words)
    ground.network.cut(*link, how)
    if transfer.get is None:
        transfer.start(*words)
    began = time.monotonic()
    ended = transfer.ended()
    took = elapsed(began)
    kind = None if ended.code == 0 else ended.error["kind"]
    told = "completed" if kind is None else kind
    noted(f"{between(link)} stays cut, {how}, {point}: {told}", took)
    assert kind in REASONS[link][point != "before the want"].kinds, ended
    # A connection to be made takes 10 s to fail, then no verified byte for as long as it has patience.
    assert took < LIMIT, "it does not end in time"
    ground.network.mend()
    ground.network.hasten()
    if kind is not None:
        assert not transfer.output.exists()
        transfer.start()
    transfer.complete()
    report("faults", fault=f"{between(link)} cut for good, {how}", point=point, outcome=told, seconds=round(took, 1))


def test_a_link_that_stays_broken(ground: Ground, report: Report) -> None:
    """The reader cannot reach the bucket: the get says so, and completes once it can."""
    # Long enough that its downloads have failed for half of it, also where the machine is busy.
    stays_broken(ground, report, ("reader", "bucket"), "refused", "before the want", 25)


# ---- all of it


@pytest.mark.soak
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("link", LINKS, ids=between)
def test_every_link_that_swallows_everything(
    ground: Ground, report: Report, link: tuple[str, str], point: Point
) -> None:
    """Each link at each point."""
    broken(ground, report, point, f"{between(link)} cut, silent", lambda: ground.network.cut(*link))


@pytest.mark.soak
@pytest.mark.parametrize("link", [*LINKS, *((b, a) for a, b in LINKS)], ids=between)
def test_every_link_that_passes_one_way_only(ground: Ground, report: Report, link: tuple[str, str]) -> None:
    """Each link in each direction."""
    fault = f"{link[0]}→{link[1]} cut, silent"
    broken(ground, report, busiest(link), fault, lambda: ground.network.cut_towards(*link))


@pytest.mark.soak
@pytest.mark.parametrize("how", ["refused", "unreachable"])
@pytest.mark.parametrize("link", LINKS, ids=between)
def test_every_link_that_refuses(ground: Ground, report: Report, link: tuple[str, str], how: How) -> None:
    """Each link, with resets and with words of the router's."""
    broken(ground, report, busiest(link), f"{between(link)} cut, {how}", lambda: ground.network.cut(*link, how))


@pytest.mark.soak
@pytest.mark.parametrize("link", LINKS, ids=between)
def test_every_link_that_stutters(ground: Ground, report: Report, link: tuple[str, str]) -> None:
    """Each link comes and goes."""
    broken(ground, report, busiest(link), f"{between(link)} stuttering", lambda: stutter(ground, *link), seconds=0)


@pytest.mark.soak
@pytest.mark.parametrize("name", PARTIES)
def test_every_party_that_is_unplugged(ground: Ground, report: Report, name: str) -> None:
    """Each party loses all others at once."""
    point: Point = "in a download" if name == "reader" else "in an upload"
    broken(ground, report, point, f"{name} unplugged", lambda: pulled(ground, name))


@pytest.mark.soak
@pytest.mark.parametrize("name", PARTIES)
def test_every_line_that_crawls(ground: Ground, report: Report, name: str) -> None:
    """Each party's line passes 32 KiB/s for a while."""
    point: Point = "in a download" if name == "reader" else "in an upload"
    broken(ground, report, point, f"{name}'s line at 32 KiB/s", lambda: crawl(ground, name, 32 * KIB), seconds=0)


@pytest.mark.soak
@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
@pytest.mark.parametrize("name", PARTIES)
def test_every_line_that_is_narrow(ground: Ground, report: Report, name: str, told: bool) -> None:
    """Packets to each party are cut to 600 bytes, and those who send larger ones are told or are not."""

    def narrow() -> None:
        ground.network.narrow(name, 600)
        if not told:
            for other in PARTIES:
                if other != name:
                    ground.network.hush(other)

    fault = f"{name}'s packets at most 600 bytes, {'told' if told else 'untold'}"
    point: Point = "in a download" if name == "reader" else "in an upload"
    broken(ground, report, point, fault, narrow)


@pytest.mark.soak
@pytest.mark.parametrize("middle", [False, True], ids=["at the beginning", "in the middle"])
@pytest.mark.parametrize("how", ["silent", "refused"])
@pytest.mark.parametrize("link", LINKS, ids=between)
def test_every_link_that_stays_broken(
    ground: Ground, report: Report, link: tuple[str, str], how: How, middle: bool
) -> None:
    """Each link, from the beginning and in the middle."""
    stays_broken(ground, report, link, how, busiest(link) if middle else "before the want")
