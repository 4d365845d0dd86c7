"""The hub dies between any two things that it writes in the course of a transfer.

The transfer has everything that a hub writes for: a stream larger than the quota, so that objects are granted, looked
at, evicted and replaced by tombstones, two readers, of whom one is revoked while it reads. After each kill the hub is
started again, the transfer completes with equal bytes, the account is right at every look, and bucket and ledger agree.
The ordinary run takes a sample of the points, ``-m soak`` takes all.
"""

from __future__ import annotations

import contextlib
import filecmp
import http.client
import itertools
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy as sa
from tests.servers.books import Ledger
from tests.servers.doomed import Nursery
from tests.servers.nodes import KIB, HubProcess, Machine, Site, setting
from tests.servers.postgres import running_postgres
from tests.servers.relay import noted, until

from entrepot_hub.services.settings import DATABASE_NAME

pytestmark = [pytest.mark.blocking, pytest.mark.slow, pytest.mark.timeout(400)]

OBJECT = 64 * KIB
#: Four objects and their headers; the stream has seven.
QUOTA = 4 * (OBJECT + 4 * KIB)
SIZE = 7 * OBJECT - 1000
#: What a get says that finds no hub when it begins.
UNREACHABLE = {"hub-unreachable", "bus-unreachable"}
#: Points of an ordinary run.
SAMPLE = 4


class DoomedHub(HubProcess):
    """``entrepot-hub serve`` that can be told to die at the Nth thing it writes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.nursery = Nursery("entrepot-hub", folder / "nursery")

    def start(self) -> Self:
        self.nursery.doom.disarm()
        self.nursery.start([self.base], "serve", "--folder", self.folder)
        self._answer = "none"
        try:
            until(self._ready, 90, "the hub's start")
        except AssertionError as error:
            raise AssertionError(f"{error}; its last answer: {self._answer}\n{self.nursery.said}") from None
        return self

    def die_starting(self, nth: int) -> None:
        """Start it, and have it die at its Nth write or, if it has not so much to write, once it is ready."""
        doom = self.nursery.doom
        doom.arm(nth)
        self.nursery.start([self.base], "serve", "--folder", self.folder)
        until(lambda: doom.reached or self._ready(), 90, "the hub's death or start")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.nursery.pid, signal.SIGKILL)
        assert self.nursery.ended() == -signal.SIGKILL

    def _ready(self) -> bool:
        doom = self.nursery.doom
        assert self.nursery.running or doom.reached, f"it ended\n{self.nursery.said}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            self._answer = f"{answer.status} {answer.read().decode()}"
            return answer.status == 200
        return False

    def close(self) -> None:
        self.nursery.close()
        self.relay.close()


class DoomedSite(Site):
    """A site with such a hub."""

    def __init__(self, folder: Path, homes: Path) -> None:
        self.folder = folder
        self.homes = homes
        self.hub = self.doomed = DoomedHub(folder)
        self.relay = self.hub.relay
        self.machines: list[Machine] = []
        (folder / "hub.log").touch()


class Watch:
    """Looks at the account again and again while it is entered: at no instant is it wrong."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._over = threading.Event()
        self._wrong: list[AssertionError] = []
        self.looks = 0
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert not self._wrong, self._wrong[0]
        assert self.looks

    def _run(self) -> None:
        while not self._over.wait(0.05):
            with contextlib.suppress(sa.exc.OperationalError):  # the database is being opened or mended
                try:
                    self._ledger.books().check()
                except AssertionError as error:
                    self._wrong.append(error)
                self.looks += 1


@dataclass(frozen=True)
class Passed:
    """A transfer: the hub's writes until it died or the transfer was over, and how long what followed took."""

    steps: int
    died: bool
    seconds: float


class Ground:
    """A hub, a holder's daemon and two readers; one transfer after the other passes."""

    def __init__(self, folder: Path, homes: Path, url: str | None) -> None:
        self.site = DoomedSite(folder, homes)
        self.hub = self.site.doomed
        if url is not None:
            setting(self.hub, "database", "url", f'"{url}"')
            url = url.replace("postgresql:", "postgresql+psycopg:")
        self.ledger = Ledger(url or f"sqlite:///{self.hub.folder / DATABASE_NAME}")
        self.readers = Nursery("entrepot", folder / "readers")
        self.guests = Nursery("entrepot", folder / "guests")
        self._numbers = itertools.count()

    def start(self) -> Self:
        """Start everything and let a first transfer fill the bucket, and count what it writes."""
        self.hub.start()
        self.hub.channel(quota=QUOTA, miniblock=16 * KIB, object=OBJECT)
        self.holder = self.site.machine("holder").up()
        self.reader = self.site.machine("reader")
        self.guest = self.site.machine("guest")
        self.steps = self.transfer(None).steps
        return self

    def transfer(self, nth: int | None, again: int | None = None) -> Passed:
        """One whole transfer, with a hub that dies at its Nth write (None: does not) and, started again, once more at
        write number ``again`` of those with which it begins."""
        number = next(self._numbers)
        original = self.holder.file(f"original-{number}", SIZE)
        (uri,) = self.holder.add(original)
        self.hub.admin("channel.grant", name="demo", node="guest", rights="request,provide")
        outputs = [machine.folder / "copy" for machine in (self.reader, self.guest)]
        doom, relay = self.hub.nursery.doom, self.site.relay
        with Watch(self.ledger):
            doom.arm(nth)
            before = relay.get_bytes
            self._get(self.guests, self.guest, uri, outputs[1])
            self._get(self.readers, self.reader, uri, outputs[0])
            # Some of it was read by one of the two: now the guest is put out.
            until(lambda: relay.get_bytes - before > OBJECT or doom.reached or not self.readers.running, 90, "reading")
            revoked = not doom.reached and self._revoke()
            until(lambda: doom.reached or not self.readers.running, 90, "the hub's death or the reader's end")
            began = time.monotonic()
            doom.disarm()
            steps = doom.steps
            died = nth is not None and steps >= nth
            if died:
                assert self.hub.nursery.ended() == -signal.SIGKILL
                if again is not None:
                    self.hub.die_starting(again)
                self.hub.start()
                if not revoked:
                    assert self._revoke()
            code, guest = self.readers.ended(), self.guests.ended()
            took = time.monotonic() - began
        doom.disarm()
        if code != 0:
            # It had not begun: without a hub a get says so at once, and can be repeated.
            assert died, self.readers.said
            assert json.loads(self.readers.said.splitlines()[-1])["error"]["kind"] in UNREACHABLE, self.readers.said
            self._get(self.readers, self.reader, uri, outputs[0])
            code = self.readers.ended()
        assert code == 0, self.readers.said
        assert guest in {0, 3, 4, 6}, self.guests.said
        assert filecmp.cmp(original, outputs[0], shallow=False)
        self.clean()
        for path in (*outputs, original):
            path.unlink(missing_ok=True)
        return Passed(steps, died, took)

    def clean(self) -> None:
        """The account is right, nothing stays reserved but what a signed PUT could still bring, and what a comparison
        mends, it mends once."""

        def at_rest() -> bool:
            books = self.ledger.books()
            books.check()
            return not books.live and not books.loose

        until(at_rest, 90, "the end of all grants and reservations")
        self.hub.admin("channel.reconcile", name="demo")
        again = self.hub.admin("channel.reconcile", name="demo")
        assert not again["counts"], again
        books = self.ledger.books()
        books.check()
        stored = sum(path.stat().st_size for path in self.hub.objects().values())
        assert stored == books.charged - books.reserved

    def close(self) -> None:
        for nursery in (self.readers, self.guests):
            nursery.close()
        self.site.close()
        self.ledger.close()

    def _get(self, nursery: Nursery, machine: Machine, uri: str, output: Path) -> None:
        home = {"ENTREPOT_HOME": str(machine.home)}
        nursery.start([machine.folder], "get", uri, "-o", output, "--json", "--timeout", "90s", **home)

    def _revoke(self) -> bool:
        """Put the guest out; whether the hub lived to do it."""
        try:
            self.hub.admin("channel.revoke", name="demo", node="guest")
        except (OSError, http.client.HTTPException):
            return False
        return True


def ground_on(folder: Path, homes: Path, url: str | None) -> Iterator[Ground]:
    ground = Ground(folder, homes / secrets.token_hex(4), url)
    try:
        yield ground.start()
    finally:
        ground.close()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory, empty_home: Path) -> Iterator[Ground]:
    yield from ground_on(tmp_path_factory.mktemp("doomed"), empty_home, None)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory, empty_home: Path) -> Iterator[Ground]:
    with running_postgres() as server:
        yield from ground_on(tmp_path_factory.mktemp("doomed"), empty_home, server.empty())


def killed(ground: Ground, points: Callable[[int], range]) -> int:
    """Transfers, each with the hub killed at one of the points; how many died there."""
    deaths, longest = 0, 0.0
    for nth in points(ground.steps):
        # Every other hub dies while it gets up, too.
        passed = ground.transfer(nth, 1 + nth // 2 % 12 if nth % 2 else None)
        deaths += passed.died
        longest = max(longest, passed.seconds)
    noted(f"hub killed at {deaths} of {ground.steps} writes, the longest until the file was there", longest)
    return deaths


def sample(steps: int) -> range:
    """Points spread over a transfer. Transfers differ by a few writes, so the last ones are left out."""
    return range(3, max(steps - 10, 4), max(steps // SAMPLE, 1))


def every(steps: int) -> range:
    return range(1, steps + 1)


def test_the_hub_is_killed_between_writes(sqlite: Ground, report: Callable[..., None]) -> None:
    """At a sample of the points, on SQLite: each transfer completes, and the account stays right."""
    deaths = killed(sqlite, sample)
    assert deaths >= SAMPLE - 2
    report("kills", store="hub, SQLite and folder bucket (sample)", points=deaths, outcome="all complete")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_hub_is_killed_between_any_two_writes(sqlite: Ground, report: Callable[..., None]) -> None:
    """At every point, on SQLite."""
    deaths = killed(sqlite, every)
    report("kills", store="hub, SQLite and folder bucket", points=deaths, outcome="all complete")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_hub_is_killed_between_any_two_writes_on_postgresql(postgres: Ground, report: Callable[..., None]) -> None:
    """At every point, on PostgreSQL."""
    deaths = killed(postgres, every)
    report("kills", store="hub, PostgreSQL and folder bucket", points=deaths, outcome="all complete")
