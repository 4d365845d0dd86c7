"""Faults and the points of a transfer at which they are made, and what has to hold after every one.

A :class:`Transfer` is one ``entrepot get`` on a :class:`~tests.servers.ground.Ground`. A *point* brings it to a place
that is seen, not slept for: bytes that are held in the relay, states that the hub tells. A *fault* is made there and
mended again. :func:`befall` does both, and then asks for everything that must be true.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.ground import MIB, Ground
from tests.servers.nodes import KIB, Command, Ended, elapsed
from tests.servers.relay import until

from entrepot_hub.services.settings import DATABASE_NAME

LENGTH, OBJECT = 4 * MIB, 256 * KIB
OBJECTS = LENGTH // OBJECT

#: How a get may end that was in the middle of a fault: by exit code and kind, and always with a hint or a reason that
#: names who is to blame. Repeated, it has to succeed.
EXIT_CODES = {"no-holder": 3, "clock-skew": 4, "expired": 4, "denied": 4, "changed": 5, "corrupt-object": 7}
_LATER = 6


@dataclass
class Transfer:
    """A file of the holder's and a get of the reader's that may run."""

    ground: Ground
    original: Path
    uri: str
    copy: Path
    get: Command | None = None
    #: How long the get stays.
    patience: tuple[str, str] = ("--wait", "60s")
    #: Whether the get was started when the fault was there already.
    late: bool = False
    #: The objects that were spoiled in the bucket, by number.
    spoiled: dict[int, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start the get."""
        self.get = self.ground.reader.start("get", self.uri, "-o", self.copy, "--json", *self.patience)

    def over(self) -> bool:
        """Whether the get has ended."""
        return self.get is not None and self.get.process.poll() is not None


def transfer(ground: Ground) -> Transfer:
    """A new file, added and not asked for yet."""
    original = ground.holder.file(ground.name("original"), LENGTH)
    (uri,) = ground.holder.add(original)
    return Transfer(ground, original, uri, ground.reader.folder / original.name)


# -- points -------------------------------------------------------------------------------------------------------

type Point = Callable[[Transfer], None]


def before_the_want(_work: Transfer) -> None:
    """All are up and nobody asks: the get is started when the fault is there already."""


def at_the_seek(work: Transfer) -> None:
    """The want stands at the hub and nobody offers: the holder's daemon is down until the fault is mended."""
    work.ground.holder.down()
    work.start()
    until(lambda: work.ground.reader.wanted(work.uri), what="the want at the hub")


def at_the_grant(work: Transfer) -> None:
    """The first objects are granted and accepted, no byte of them has arrived in the bucket."""
    work.ground.relay.hold("PUT")
    work.start()
    work.ground.relay.wait_held("PUT")


def in_an_upload(work: Transfer) -> None:
    """A good third of the bytes has gone out, several objects are in the middle of it."""
    work.ground.relay.hold("PUT", 3 * LENGTH // 8)
    work.start()
    work.ground.relay.wait_held("PUT")


def uploaded(work: Transfer) -> None:
    """Objects lie in the bucket whole, and their uploader was not answered yet: nobody has said done."""
    work.ground.relay.hold("ANSWER", 3)
    work.start()
    work.ground.relay.wait_held("ANSWER")
    until(lambda: waiting(work), what="an object of which the bucket knows and nobody else")


def in_a_download(work: Transfer) -> None:
    """A good third of the bytes has come down, several objects are in the middle of it."""
    work.ground.relay.hold("GET", 3 * LENGTH // 8)
    work.start()
    work.ground.relay.wait_held("GET")


def at_the_last_object(work: Transfer) -> None:
    """All has come down but the last hundred KiB."""
    work.ground.relay.hold("GET", LENGTH - 100 * KIB)
    work.start()
    work.ground.relay.wait_held("GET")


POINTS: dict[str, Point] = {
    "before the want": before_the_want,
    "at the seek": at_the_seek,
    "at the grant": at_the_grant,
    "in an upload": in_an_upload,
    "between upload and done": uploaded,
    "in a download": in_a_download,
    "at the last object": at_the_last_object,
}


def waiting(work: Transfer) -> list[int]:
    """The objects that lie in the bucket while the answer to their PUT is held."""
    stream = work.uri.split("/")[3]
    held = {
        int(put.key[-8:], 16)
        for put in work.ground.relay.puts()
        if put.status is None and put.body == put.length and f"/{stream}/" in put.path
    }
    return sorted(held & work.ground.objects(work.uri).keys())


# -- faults -------------------------------------------------------------------------------------------------------

type Fault = Callable[[Transfer], AbstractContextManager[None]]

#: How long something stays dead or full before it is mended, and stopped: shorter, and longer than a lease.
DEAD, STOPPED, LONG = 1.0, 3.0, 13.0
#: How long a get is given that has to see the fault for itself.
PATIENCE = 60.0


@contextmanager
def hub_killed(work: Transfer) -> Iterator[None]:
    """SIGKILL; started again."""
    work.ground.hub.kill()
    yield
    linger(work, DEAD)
    work.ground.hub.start()


@contextmanager
def hub_stopped(work: Transfer) -> Iterator[None]:
    """SIGSTOP, SIGCONT; its nats-server goes on."""
    work.ground.hub.signal(signal.SIGSTOP)
    yield
    linger(work, STOPPED)
    work.ground.hub.signal(signal.SIGCONT)


@contextmanager
def bus_killed(work: Transfer) -> Iterator[None]:
    """SIGKILL to the nats-server, which its hub starts again."""
    work.ground.hub.kill_nats()
    yield


@contextmanager
def bus_stopped(work: Transfer) -> Iterator[None]:
    """SIGSTOP to the nats-server, SIGCONT."""
    server = work.ground.hub.nats_pid
    os.kill(server, signal.SIGSTOP)
    yield
    linger(work, STOPPED)
    with contextlib.suppress(ProcessLookupError):  # the hub may have replaced it
        os.kill(server, signal.SIGCONT)


@contextmanager
def holder_killed(work: Transfer) -> Iterator[None]:
    """SIGKILL to the daemon that uploads; started again."""
    work.ground.holder.kill()
    yield
    linger(work, DEAD)
    work.ground.holder.up()


@contextmanager
def holder_stopped(work: Transfer) -> Iterator[None]:
    """SIGSTOP to the daemon that uploads, for longer than a lease, SIGCONT."""
    assert work.ground.holder.daemon is not None
    work.ground.holder.daemon.signal(signal.SIGSTOP)
    yield
    linger(work, LONG)
    work.ground.holder.daemon.signal(signal.SIGCONT)


@contextmanager
def reader_killed(work: Transfer) -> Iterator[None]:
    """SIGKILL to the get; the same command again."""
    if work.get is None:
        work.start()
    assert work.get is not None
    work.get.kill()
    assert not work.copy.exists(), "a get that was killed left an output"
    yield
    work.start()


@contextmanager
def reader_stopped(work: Transfer) -> Iterator[None]:
    """SIGSTOP to the get, for longer than a lease, SIGCONT."""
    if work.get is None:
        work.start()
    assert work.get is not None
    work.get.signal(signal.SIGSTOP)
    yield
    time.sleep(LONG)
    work.get.signal(signal.SIGCONT)


@contextmanager
def bucket_killed(work: Transfer) -> Iterator[None]:
    """SIGKILL to the S3 server; started again with what it had stored."""
    assert work.ground.s3 is not None
    work.ground.s3.kill()
    yield
    linger(work, STOPPED)
    work.ground.s3.start()


@contextmanager
def bucket_stopped(work: Transfer) -> Iterator[None]:
    """SIGSTOP to the S3 server, SIGCONT."""
    assert work.ground.s3 is not None
    work.ground.s3.signal(signal.SIGSTOP)
    yield
    linger(work, STOPPED)
    work.ground.s3.signal(signal.SIGCONT)


def spoiling(how: str) -> Fault:
    """Harm to all objects of the stream that lie in the bucket, done past the hub."""

    @contextmanager
    def spoiled(work: Transfer) -> Iterator[None]:
        ground = work.ground
        if work.get is None:  # nothing is there yet: a former get brings it
            work.start()
            assert work.get is not None
            work.get.wait().fine()
            ground.forget(ground.reader, work.uri)
            work.copy.unlink()
            work.get = None
        until(lambda: ground.objects(work.uri), what="objects in the bucket")
        numbers = waiting(work)
        there = ground.objects(work.uri)
        work.spoiled = {number: there[number] for number in numbers or there}
        for key in work.spoiled.values():
            match how:
                case "rot":
                    ground.bucket.rot(key)
                case "flip":
                    data = ground.bucket.read(key)
                    ground.bucket.write(key, data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:])
                case "truncate":
                    ground.bucket.write(key, ground.bucket.read(key)[: OBJECT // 2])
                case "replace":
                    ground.bucket.write(key, b"something else")
                case "delete":
                    ground.bucket.delete(key)
        yield

    return spoiled


def skewed(who: str, seconds: int) -> Fault:
    """The clock of a running process jumps, and later back. A get that is started meanwhile has its clock too."""

    @contextmanager
    def off(work: Transfer) -> Iterator[None]:
        work.ground.clocks[who].set(seconds)
        yield
        linger(work, STOPPED)
        work.ground.clocks[who].set(0)

    return off


def disk_full(who: str) -> Fault:
    """Another's file takes every byte of the disk, and gives it back. The database's log is emptied before, so that no
    room is left in it either."""

    @contextmanager
    def full(work: Transfer) -> Iterator[None]:
        disk = work.ground.disks[who]
        (database,) = (disk.folder / DATABASE_NAME,) if who == "hub" else (disk.folder / "store").glob("*.sqlite3")
        with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        disk.fill()
        yield
        linger(work, STOPPED)
        disk.empty()

    return full


PROCESS_FAULTS: dict[str, Fault] = {
    "hub killed": hub_killed,
    "hub stopped": hub_stopped,
    "nats-server killed": bus_killed,
    "nats-server stopped": bus_stopped,
    "holder killed": holder_killed,
    "holder stopped": holder_stopped,
    "reader killed": reader_killed,
    "reader stopped": reader_stopped,
}
BUCKET_FAULTS: dict[str, Fault] = {
    "S3 server killed": bucket_killed,
    "S3 server stopped": bucket_stopped,
    "object rots": spoiling("rot"),
    "object overwritten, a bit flipped": spoiling("flip"),
    "object cut": spoiling("truncate"),
    "object replaced": spoiling("replace"),
    "object deleted": spoiling("delete"),
}
CLOCK_FAULTS: dict[str, Fault] = {
    f"{who}'s clock {seconds // 60:+d} min": skewed(who, seconds)
    for who in ("hub", "holder", "reader")
    for seconds in (600, -600)
}
DISK_FAULTS: dict[str, Fault] = {f"{who}'s disk full": disk_full(who) for who in ("hub", "holder", "reader")}
FAULTS = PROCESS_FAULTS | BUCKET_FAULTS | CLOCK_FAULTS | DISK_FAULTS


def linger(work: Transfer, seconds: float) -> None:
    """Let the fault last for so long, less if the get has ended. One that was started into the fault is given the time
    to meet it: until it tells that it waits, or has ended."""
    assert work.get is not None
    patience = time.monotonic() + PATIENCE
    while work.late and not work.get.told and not work.over() and time.monotonic() < patience:
        time.sleep(0.02)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not work.over():
        time.sleep(0.02)


# -- what has to hold ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How the get ended, in words, and how long after the fault was mended the file was there, in seconds."""

    words: str
    seconds: float


def befall(ground: Ground, fault: str, point: str) -> Outcome:
    """Make a fault at a point of a new transfer, mend it, and see that all is well."""
    work = transfer(ground)
    try:
        POINTS[point](work)
        with FAULTS[fault](work):
            if work.get is None:
                work.late = True
                work.start()
            ground.relay.release()
        mended = time.monotonic()
        if point == "at the seek" and work.ground.holder.daemon_ended:
            work.ground.holder.up()
    finally:
        ground.relay.release()
    assert work.get is not None
    ended = work.get.wait(150)
    words = "completed"
    if ended.code:
        words = f"ended: {stated(ended, work)}; repeated, completed"
        work.start()
        work.get.wait(150).fine()
    seconds = elapsed(mended)
    settle(work)
    repeated = again(work)
    if work.spoiled and point in {"before the want", "between upload and done"}:
        assert repeated >= work.spoiled.keys(), "what was spoiled was not uploaded again"
    if repeated:
        words += f"; {len(repeated)} of {OBJECTS} objects uploaded again"
    return Outcome(words, seconds)


def again(work: Transfer) -> set[int]:
    """The objects that were uploaded to their end more than once."""
    stream = work.uri.split("/")[3]
    numbers = [int(put.key[-8:], 16) for put in work.ground.relay.puts(200) if f"/{stream}/" in put.path]
    return {number for number in numbers if numbers.count(number) > 1}


def stated(ended: Ended, work: Transfer) -> str:
    """The kind of the error with which a get ended, which is a stated reason with a fitting exit code."""
    error = ended.error
    kind: str = error["kind"]
    assert ended.code == EXIT_CODES.get(kind, _LATER), (ended.code, error)
    assert kind != "internal", error
    assert error["message"], error
    assert error["hint"] or kind not in {"clock-skew", "disk-full"}, error
    assert not work.copy.exists(), "a get that failed left an output"
    return kind


def settle(work: Transfer) -> None:
    """The bytes are equal, both stores verify, and the bucket holds what the ledger says, after one mending at most."""
    ground = work.ground
    assert filecmp.cmp(work.original, work.copy, shallow=False), "the copy has other bytes"
    assert ground.verified(ground.reader, work.uri), "the reader's store does not verify"
    assert ground.verified(ground.holder, work.uri), "the holder's store does not verify"
    ground.reconcile()
    left = ground.reconcile()
    assert not left, f"a second comparison still finds {left}"
