"""A network of network namespaces: parties with an address and a line each, and a router between them that breaks and
slows what passes.

Nothing of it can be seen from outside: every namespace is held by a descriptor of this process and is gone with it, the
addresses (TEST-NET-1) exist in the namespaces only. Links are cut by routing rules of the router, one for each
direction; lines are slowed by ``tc``. It takes root and ``ip``; :func:`missing` says what it lacks here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

#: What becomes of a packet that is cut off. ``silent``: nothing. ``refused``: a RST, as where nobody listens (any
#: more). ``unreachable``: the router says that there is no way.
type How = Literal["silent", "refused", "unreachable"]

_ROUTER = "192.0.2.1"
_CUT, _LINES, _LOCAL = "10", "40", "50"  # preferences of the router's rules; the second is its table too
_DELAY = "20"  # rules that send packets through the tunnel that holds them, and its table
_SELF = "30"  # a table in which the router itself has every address
_BURST = "64kb"
_TIMEOUT = 20.0


class Namespace:
    """A network namespace, made by its constructor; gone when it is closed and its processes have ended."""

    def __init__(self) -> None:
        self._descriptor = -1

        def make() -> None:
            os.unshare(os.CLONE_NEWNET)
            self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        _in_thread(make)
        self.tool("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """What names it to ``ip``."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def call[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``work(…)`` in a thread of its own inside. Processes and threads that it starts, and sockets that it opens,
        are inside too and stay there."""

        def enter() -> T:
            os.setns(self._descriptor, os.CLONE_NEWNET)
            return work(*args, **kwargs)

        return _in_thread(enter)

    def tool(self, *words: str) -> str:
        """Run a command inside; what it printed."""
        done = self.call(
            subprocess.run, words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT
        )
        assert done.returncode == 0, (words, done.stderr)
        return str(done.stdout)

    def write(self, setting: str, value: str) -> None:
        """Set a setting of the kernel, as ``net/ipv4/ip_forward``."""
        self.call(lambda: Path("/proc/sys", setting).write_text(value))

    def close(self) -> None:
        """Let go of it. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Party(Namespace):
    """A namespace with one line, to the router."""

    def __init__(self, name: str, address: str, device: str) -> None:
        super().__init__()
        self.name = name
        self.address = address
        #: The router's end of the line.
        self.device = device


class Network:
    """Parties around a router."""

    def __init__(self) -> None:
        self.parties: dict[str, Party] = {}
        self._cuts: list[tuple[str, ...]] = []
        self._slowed: set[str] = set()
        self._narrowed: set[str] = set()
        self._delayer: subprocess.Popen[bytes] | None = None
        self.router = Namespace()
        self.router.write("net/ipv4/ip_forward", "1")
        # The lines are looked up before the router's own addresses: so it may have every party's address as well, and
        # answer for a party from whom it is to be cut off.
        for words in (
            ("rule", "add", "pref", _LOCAL, "lookup", "local"),
            ("rule", "del", "pref", "0"),
            ("rule", "add", "pref", _LINES, "lookup", _LINES),
            ("route", "add", "local", "default", "dev", "lo", "table", _SELF),
            ("addr", "add", f"{_ROUTER}/32", "dev", "lo"),
        ):
            self.router.tool("ip", *words)

    def party(self, name: str) -> Party:
        """A new party."""
        number = len(self.parties)
        made = Party(name, f"192.0.2.{10 + number}", f"line{number}")
        self.parties[name] = made
        router = self.router
        router.tool("ip", "link", "add", made.device, "type", "veth", "peer", "name", "net0")
        router.tool("ip", "link", "set", "net0", "netns", made.path)
        made.tool("ip", "link", "set", "net0", "up")
        made.tool("ip", "addr", "add", f"{made.address}/32", "dev", "net0")
        made.tool("ip", "route", "add", f"{_ROUTER}/32", "dev", "net0")
        made.tool("ip", "route", "add", "default", "via", _ROUTER, "dev", "net0")
        router.tool("ip", "link", "set", made.device, "up")
        router.tool("ip", "route", "add", f"{made.address}/32", "dev", made.device, "table", _LINES)
        router.tool("ip", "addr", "add", f"{made.address}/32", "dev", "lo")
        return made

    def cut(self, one: str, other: str, how: How = "silent") -> None:
        """Nothing passes between two parties, in neither direction."""
        self.cut_towards(one, other, how)
        self.cut_towards(other, one, how)

    def cut_towards(self, sender: str, receiver: str, how: How = "silent") -> None:
        """What ``sender`` sends ``receiver`` does not arrive; the other direction passes."""
        action = {"silent": ("blackhole",), "refused": ("lookup", _SELF), "unreachable": ("unreachable",)}[how]
        self._rule("iif", self.parties[sender].device, "to", self.parties[receiver].address, *action)

    def hush(self, name: str) -> None:
        """The router's own words to a party (that a packet is too big, that there is no way) are lost."""
        self._rule("iif", "lo", "to", self.parties[name].address, "blackhole")

    def slow(self, name: str, rate: int, *, up: int | None = None, burst: str = _BURST) -> None:
        """A party's line passes ``rate`` bytes/s in each direction, or what it sends at ``up``. ``burst``: what passes
        at once; for rates of a gigabit/s and more it must be some hundred KiB."""

        def words(rate: int) -> tuple[str, ...]:
            return ("root", "tbf", "rate", f"{rate * 8}bit", "burst", burst, "latency", "100ms")

        self.router.tool("tc", "qdisc", "replace", "dev", self.parties[name].device, *words(rate))
        self.parties[name].tool("tc", "qdisc", "replace", "dev", "net0", *words(rate if up is None else up))
        self._slowed.add(name)

    def delay(self, names: Iterable[str], round_trip: float) -> None:
        """From now on there are ``round_trip`` seconds from each of these parties to every other party and back. May
        be called once, when all parties are there. A process of ours holds the packets (:mod:`tests.servers.delay`);
        it takes ``/dev/net/tun``."""
        assert self._delayer is None
        router = self.router

        def start() -> subprocess.Popen[bytes]:
            words = [sys.executable, "-I", str(Path(__file__).with_name("delay.py")), "delay", str(round_trip / 2)]
            return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        self._delayer = router.call(start)
        assert self._delayer.stdout is not None
        assert self._delayer.stdout.readline() == b"ready\n", "there is no tunnel"
        router.tool("ip", "link", "set", "delay", "txqueuelen", "10000", "up")
        for party in self.parties.values():  # and no more: the router itself is as near as ever, also to ask who has it
            router.tool("ip", "route", "add", f"{party.address}/32", "dev", "delay", "table", _DELAY)
        # What comes out of it goes on as ever; what comes from or goes to these parties goes in.
        router.tool("ip", "rule", "add", "pref", _DELAY, "iif", "delay", "lookup", _LINES)
        for name in names:
            party = self.parties[name]
            router.tool("ip", "rule", "add", "pref", _DELAY, "iif", party.device, "lookup", _DELAY)
            router.tool("ip", "rule", "add", "pref", _DELAY, "to", f"{party.address}/32", "lookup", _DELAY)

    def narrow(self, name: str, size: int) -> None:
        """Packets to a party are at most ``size`` bytes; the router says so to who sends larger ones."""
        self.router.tool("ip", "link", "set", self.parties[name].device, "mtu", str(size))
        self._narrowed.add(name)

    def mend(self) -> None:
        """All links pass again; slow lines stay slow."""
        cuts, self._cuts = self._cuts, []
        for rule in cuts:
            self.router.tool("ip", "rule", "del", *rule)
        for name in self._narrowed:
            self.router.tool("ip", "link", "set", self.parties[name].device, "mtu", "1500")
        self._narrowed.clear()

    def hasten(self) -> None:
        """All lines are as fast as they go."""
        for name in self._slowed:
            self.router.tool("tc", "qdisc", "del", "dev", self.parties[name].device, "root")
            self.parties[name].tool("tc", "qdisc", "del", "dev", "net0", "root")
        self._slowed.clear()

    def passed(self, name: str) -> tuple[int, int]:
        """Bytes that a party's line brought it, and that it sent on it, since it is there."""
        text = self.router.call(Path("/proc/thread-self/net/dev").read_text)
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{self.parties[name].device}:"))
        figures = line.partition(":")[2].split()
        return int(figures[8]), int(figures[0])

    def close(self) -> None:
        """Let go of everything. May be called again."""
        if self._delayer is not None:
            self._delayer.kill()
            self._delayer.communicate()
            self._delayer = None
        for party in self.parties.values():
            party.close()
        self.router.close()

    def _rule(self, *words: str) -> None:
        rule = ("pref", _CUT, *words)
        self.router.tool("ip", "rule", "add", *rule)
        self._cuts.append(rule)


def missing() -> str | None:
    """What this machine lacks for such a network; None if nothing."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"there is no {program} here (iproute2)"
    network: Network | None = None
    try:
        network = Network()
        network.party("one")
        network.party("other")
        network.cut("one", "other")
        network.slow("one", 1 << 20)
    except (OSError, AssertionError) as error:
        return f"network namespaces are not permitted here: {error}"
    finally:
        if network is not None:
            network.close()
    return None


@contextlib.contextmanager
def running_network() -> Iterator[Network]:
    """A network without parties."""
    network = Network()
    try:
        yield network
    finally:
        network.close()


def _in_thread[T](work: Callable[[], T]) -> T:
    found: list[Any] = []

    def run() -> None:
        try:
            found.extend((True, work()))
        except BaseException as error:
            found.extend((False, error))

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    fine, value = found
    if not fine:
        raise value
    return value
