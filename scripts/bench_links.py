"""Links as people have them, for ``scripts/bench``: hub, bucket and two machines, each in a network namespace.

``1gbit``: all four have a line of 1 Gbit/s in each direction. ``50/500``: the two machines send 50 Mbit/s and receive
500 Mbit/s, and have 40 ms round trip to everybody; hub and bucket are as fast as they go. Rates are those of ``tbf``
with a queue of 100 ms, so they include the heads of packets: of 1 Gbit/s a file gets about 955 Mbit/s. Every packet of
a machine is held for half the round trip by a process of ours (:mod:`tests.servers.delay`), so connections start as
slowly as on a real line and answers take as long; nothing is lost but what overflows a queue. That process, and the
kernel's work for all parties, share this machine's cores: where these are busy, the delay grows by some milliseconds.

Connections use CUBIC if a namespace may choose it, else Reno (:attr:`Ground.congestion`), whatever the machine uses.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.bench_bed import BUCKET, hub_pid, pid_of, place_on, remove_copies, there_and_back, timed_get
from scripts.bench_gauge import GIB, make_file
from scripts.bench_tools import Place, Tool
from tests.servers import namespaces
from tests.servers.linked import LinkedMachine, LinkedSite
from tests.servers.ministack import S3Server
from tests.servers.namespaces import Network, Party, running_network

_MBIT: Final = 125_000  # bytes/s


@dataclass(frozen=True)
class Link:
    """A line: ``up`` and ``down`` in bytes/s as its party sees them, ``round_trip`` in seconds, who has one."""

    up: int
    down: int
    round_trip: float
    parties: tuple[str, ...]
    burst: str


PARTIES: Final = ("hub", "store", "lab", "laptop")
LINKS: Final[Mapping[str, Link]] = {
    "1gbit": Link(1000 * _MBIT, 1000 * _MBIT, 0.0, PARTIES, "512kb"),
    "50/500": Link(50 * _MBIT, 500 * _MBIT, 0.040, ("lab", "laptop"), "256kb"),
}
_CONTROLS: Final = ("cubic", "reno")
_PATIENCE: Final = 120.0  # seconds for a plain connection
_SENDER: Final = """
import socket, sys
block, left = memoryview(bytes(1 << 20)), int(sys.argv[3])
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as line:
    while left:
        sent = line.send(block[:left])
        left -= sent
"""
_RECEIVER: Final = """
import socket, sys, time
block, left = bytearray(1 << 20), int(sys.argv[2])
with socket.create_server((sys.argv[1], 0)) as server:
    server.settimeout(60)
    print(server.getsockname()[1], flush=True)
    line, _ = server.accept()
    began = time.monotonic()
    while left:
        came = line.recv_into(block)
        if not came:
            sys.exit(1)
        left -= came
    print(time.monotonic() - began)
"""


def missing() -> str | None:
    """What this machine lacks for such links; None if nothing."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun here"
    return namespaces.missing()


class Ground:
    """Everything that runs on such links: the channel ``demo`` with its bucket on the S3 server of rclone, ``lab``,
    whose daemon is up, and ``laptop``."""

    def __init__(self, link: Link, network: Network, site: LinkedSite, congestion: str) -> None:
        self.link = link
        self.network = network
        self.site = site
        self.congestion = congestion
        self.hub, self.store, self.lab, self.laptop = (network.parties[name] for name in PARTIES)
        self.sender: LinkedMachine = site.machine("lab")
        self.sender.up()
        self.receiver: LinkedMachine = site.machine("laptop")
        self.server = S3Server(site.endpoint)
        self.store.call(self._make_bucket)
        self._numbers = itertools.count()

    def _make_bucket(self) -> None:
        """Where tools put their copies."""
        import boto3

        boto3.client(
            "s3",
            endpoint_url=self.server.endpoint,
            region_name=self.server.region,
            aws_access_key_id=self.server.access_key,
            aws_secret_access_key=self.server.secret_key,
        ).create_bucket(Bucket=BUCKET)

    @property
    def folder(self) -> Path:
        """Where files may be put."""
        return self.site.folder

    def file(self, size: int) -> Path:
        """A new file of random bytes."""
        return make_file(self.folder / f"file-{next(self._numbers)}.bin", size)

    def place(self, tool: Tool) -> Place:
        """Where a tool puts its copy."""
        return place_on(self.server, self.server.endpoint, tool.name, self.store)

    def transfer(self, size: int, file: Path | None = None) -> dict[str, float]:
        """``entrepot get`` at the laptop of a file of the lab, a new one if none is given: ``wall`` seconds from its
        start to its end, ``cpu_…`` and ``rss_…`` of all parties, ``wire_…`` (:meth:`counted`). Both forget it
        afterwards, the bucket keeps its objects. Raises ``RuntimeError``."""
        original = self.file(size) if file is None else file
        (uri,) = self.sender.add(original)
        with self.counted() as wire:
            values = timed_get(self.receiver, uri, original, self.processes(), self.laptop)
        self.receiver.forget(uri)
        self.sender.forget(uri)
        if file is None:
            original.unlink()
        return {**values, **wire}

    def competitor(self, tool: Tool, size: int, file: Path | None = None) -> dict[str, float]:
        """A tool's upload at the lab and then its download at the laptop: ``up_wall``, ``down_wall``, …, ``wire_…``.
        What it left on the server is removed. Raises ``RuntimeError``."""
        original = self.file(size) if file is None else file
        try:
            with self.counted() as wire:
                values = there_and_back(tool, original, self.place(tool), self.lab, self.laptop)
        finally:
            remove_copies(self.server, self.server.endpoint, self.store)
            if file is None:
                original.unlink()
        return {**values, **wire, "size": size}

    @contextlib.contextmanager
    def counted(self) -> Iterator[dict[str, float]]:
        """What the lines carried meanwhile, as ``wire_PARTY_in`` and ``wire_PARTY_out`` in bytes. Of packets that were
        sent together (up to 64 KiB) the kernel counts one head: the figures are up to 4 % low. Filled at the end."""
        values: dict[str, float] = {}
        before = {name: self.network.passed(name) for name in PARTIES}
        yield values
        for name, (came, went) in before.items():
            now = self.network.passed(name)
            values[f"wire_{name}_in"], values[f"wire_{name}_out"] = now[0] - came, now[1] - went

    def rates(self, size: int) -> dict[str, float]:
        """What one plain TCP connection makes of the lines, nothing else running: ``line_up``, from the lab to the
        bucket's machine, ``line_down``, from there to the laptop, in bytes/s; and ``line_both``, the slower of the two
        when both go at once, as in a transfer."""
        up = _rate(self.lab, self.store, size)
        down = _rate(self.store, self.laptop, size)
        with ThreadPoolExecutor(2) as threads:
            both = [threads.submit(_rate, *way, size) for way in ((self.lab, self.store), (self.store, self.laptop))]
            return {"line_up": up, "line_down": down, "line_both": min(one.result() for one in both)}

    def processes(self) -> dict[str, list[int]]:
        """What takes part beside the command that is waited for."""
        bus, store = (server.pid for server in self.site.servers)
        return {"provider": [pid_of(self.sender)], "hub": [hub_pid(self.site.hub)], "bus": [bus], "store": [store]}


def _rate(sender: Party, receiver: Party, size: int) -> float:
    """Bytes/s of one connection, each end a process. Raises ``RuntimeError``."""
    words = [sys.executable, "-I", "-S", "-c"]

    def start(code: str, *more: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*words, code, *map(str, more)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    there = receiver.call(start, _RECEIVER, receiver.address, size)
    with there:
        try:
            assert there.stdout is not None
            port = int(there.stdout.readline())
            with sender.call(start, _SENDER, receiver.address, port, size) as here:
                here.wait(_PATIENCE)
            return size / float(there.communicate(timeout=_PATIENCE)[0])
        except (ValueError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"the line from {sender.name} to {receiver.name} carries nothing: {error}") from None
        finally:
            there.kill()


@contextlib.contextmanager
def shaped(kind: str, *, quota: int = 8 * GIB, base: Path | None = None, **shape: int) -> Iterator[Ground]:
    """A ground on links of a kind of :data:`LINKS`, until the end. ``shape``: ``miniblock`` and ``object`` of the
    channel, by default those of a new channel. ``base``: where its folder is made, by default in memory."""
    link = LINKS[kind]
    if base is None:
        base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="links-", dir=base))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = stack.enter_context(lines(link))
        site = LinkedSite(network, folder, folder / "h", bus="hub", bucket="store", s3="rclone")
        stack.callback(_end, site)
        site.start(quota=quota, shape=shape)
        yield Ground(link, network, site, _control(network.parties["lab"]))


@contextlib.contextmanager
def lines(link: Link) -> Iterator[Network]:
    """The four parties with such lines, and nothing on them."""
    with running_network() as network:
        for name in PARTIES:
            _choose(network.party(name))
        for name in link.parties:
            network.slow(name, link.down, up=link.up, burst=link.burst)
        if link.round_trip:
            network.delay(link.parties, link.round_trip)
        yield network


def _choose(party: Party) -> None:
    """CUBIC if this namespace may. What it may is up to the machine; changing that would change it for everybody."""
    for name in _CONTROLS:
        with contextlib.suppress(OSError):
            party.write("net/ipv4/tcp_congestion_control", name)
            return


def _control(party: Party) -> str:
    return party.call(Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text).strip()


def _end(site: LinkedSite) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # what a failed test would show
        site.close()
