"""What ``scripts/bench transfer`` runs on: a hub, nodes and a bucket's server, each a process as people run it.

Nodes reach hub and bucket straight. Only where requests and bytes are counted, in runs of their own that are not timed,
something that counts stands in front of the bucket.
"""

from __future__ import annotations

import contextlib
import filecmp
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from scripts.bench_counter import Counter
from scripts.bench_gauge import GIB, Row, child, gauged
from scripts.bench_tools import Failed, Place, Run, Tool, run
from tests.servers.ministack import S3Server, run_ministack
from tests.servers.namespaces import Party
from tests.servers.nodes import HubProcess, Machine, Site
from tests.servers.rclone import run_rclone
from tests.servers.relay import Relay

from entrepot.core.errors import EntrepotError

#: Where the bucket is: in a folder of the hub's, or on an S3 server.
type Store = Literal["folder", "rclone", "ministack"]

#: The relay takes what lies under this for requests to a bucket.
BUCKET = "bucket"
#: What a row begins with that says why a tool brought nothing, though it is there.
FAILED = "failed:"
#: What ends a scenario and is told; everything else is a mistake in it.
FAILURES = (RuntimeError, AssertionError, OSError, EntrepotError, subprocess.SubprocessError)
_LONGEST = 1200.0  # seconds that a command may take
_TOOL = 300.0  # seconds that a tool may take for both halves
_AGAIN = 60.0
_SERVERS: Mapping[str, tuple[Callable[[Path], contextlib.AbstractContextManager[S3Server]], tuple[str, ...]]] = {
    "rclone": (run_rclone, ("rclone", "serve")),
    "ministack": (run_ministack, ("ministack",)),
}


class Straight(Relay):
    """No relay: the port behind it."""

    def start(self) -> Self:
        """There is nothing to start."""
        self.port = self.target
        return self

    def close(self) -> None:
        """Let go of what a relay would have used."""
        if not self._loop.is_closed():
            self._loop.close()


class Bed:
    """A hub with the channel ``demo`` and its bucket, until it is closed. Machines are made by :meth:`machine`.

    ``counted``: requests to the bucket pass the relay of :attr:`site`, or :attr:`counter` if it is an S3 server.
    ``shape``: ``miniblock`` and ``object`` of the channel, by default those of a new channel. ``base``: where all of it
    lies, by default in memory.
    """

    def __init__(
        self, store: Store = "folder", *, quota: int = 8 * GIB, counted: bool = False, base: Path | None = None,
        **shape: int,
    ) -> None:  # fmt: skip
        base = base or (Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir()))
        self.store = store
        self.folder = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
        self.server: S3Server | None = None
        self.counter: Counter | None = None
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._start(store, quota, counted, shape)
        except BaseException:
            self.close()
            raise

    def _start(self, store: Store, quota: int, counted: bool, shape: Mapping[str, int]) -> None:
        self.site = Site(self.folder, self.folder / "h", Relay if counted and store == "folder" else Straight)
        self._stack.callback(self._end, self.site)
        fields: dict[str, Any] = {"name": "demo", "quota": quota, **shape}
        if store == "folder":
            self.site.hub.bucket("demo").mkdir()
            fields["bucket"] = self.site.hub.bucket("demo").as_uri()
        else:
            run, _ = _SERVERS[store]
            (home := self.folder / "s3").mkdir()
            self.server = self._stack.enter_context(run(home))
            if counted:
                port = int(self.server.endpoint.rpartition(":")[2])
                self.counter = self._stack.enter_context(Counter(port, self.folder / "counter"))
            fields |= on_s3(self.server, self.server.endpoint, self.endpoint)
        self.site.hub.start()
        self.site.hub.admin("channel.create", **fields)

    @staticmethod
    def _end(site: Site) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # what a failed test would show
            site.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything and remove its folder. May be called again."""
        self._stack.close()

    @property
    def hub(self) -> HubProcess:
        """The hub."""
        return self.site.hub

    @property
    def endpoint(self) -> str:
        """Where nodes and tools reach the S3 server."""
        assert self.server is not None
        return self.server.endpoint if self.counter is None else f"http://127.0.0.1:{self.counter.port}"

    def place(self, tool: Tool) -> Place:
        """Where a tool puts its copy: the same server, the same bucket, beside our channel's objects."""
        assert self.server is not None
        return place_on(self.server, self.endpoint, tool.name)

    def clear(self) -> None:
        """Remove what tools left in the bucket."""
        assert self.server is not None
        remove_copies(self.server, self.server.endpoint)

    def machine(self, name: str) -> Machine:
        """A machine that joined the channel."""
        return self.site.machine(name)

    def processes(self, *providers: Machine) -> dict[str, list[int]]:
        """What takes part beside the command that is waited for, by their parts."""
        found = {"provider": [pid_of(one) for one in providers], "hub": [hub_pid(self.hub)], "bus": [self.hub.nats_pid]}
        if self.server is not None:
            found["store"] = child(*_SERVERS[self.store][1])
        return found

    def get(self, machine: Machine, uri: str, original: Path, *providers: Machine) -> dict[str, float]:
        """One ``entrepot get``, its file compared and removed: see :func:`timed_get`."""
        return timed_get(machine, uri, original, self.processes(*providers))


def on_s3(server: S3Server, endpoint: str, public: str) -> dict[str, Any]:
    """The bucket of a new channel on an S3 server, with its keys. Nodes reach it at its ``public`` endpoint."""
    ends = f"endpoint={endpoint}" + (f"&public_endpoint={public}" if public != endpoint else "")
    return {
        "bucket": f"s3://{BUCKET}/lab?region={server.region}&{ends}&create=true",
        "credentials": json.dumps({"access_key": server.access_key, "secret_key": server.secret_key}),
    }


def place_on(server: S3Server, endpoint: str, name: str, party: Party | None = None) -> Place:
    """Where the tool of this name puts its copies."""
    key = f"tools/{name.replace(' ', '-')}"
    return Place(endpoint, server.access_key, server.secret_key, BUCKET, key, server.region, party)


def remove_copies(server: S3Server, endpoint: str, party: Party | None = None) -> None:
    """Remove all copies that tools put there."""
    place = place_on(server, endpoint, "")
    config = {
        "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": endpoint, "REGION": place.region,
        "ACCESS_KEY_ID": place.access_key, "SECRET_ACCESS_KEY": place.secret_key,
    }  # fmt: skip
    environment = {f"RCLONE_CONFIG_PLACE_{name}": value for name, value in config.items()}
    words: list[str | Path] = [
        Path(sys.executable).parent / "rclone",
        "delete",
        "--config",
        os.devnull,
        f"place:{BUCKET}/tools",
    ]
    try:
        run(words, {"PATH": os.environ.get("PATH", os.defpath), **environment}, party, limit=_TOOL)
    except Failed as error:
        raise RuntimeError(f"the copies of tools cannot be removed: {error}") from None


def hub_pid(hub: HubProcess) -> int:
    """The process of a hub."""
    process = hub._process
    assert process is not None
    return process.pid


def pid_of(machine: Machine) -> int:
    """The process of a machine's daemon."""
    assert machine.daemon is not None
    return machine.daemon.process.pid


def timed_get(
    machine: Machine,
    uris: str | Sequence[str],
    original: Path,
    processes: Mapping[str, Sequence[int]],
    party: Party | None = None,
) -> dict[str, float]:
    """One ``entrepot get`` as a user types it, timed from its start to its end, and what every process used: ``wall``,
    ``cpu_NAME``, ``rss_NAME`` with ``requester`` for itself. The file is compared with the original and removed.
    Raises ``RuntimeError`` if it fails, takes 20 minutes or brings something else."""
    output = machine.folder / f"got-{time.monotonic_ns()}"
    with gauged(processes) as values:
        used = run_get(machine, [uris] if isinstance(uris, str) else uris, output, party)
        values["wall"] = used.wall
    values |= {"cpu_requester": used.cpu, "rss_requester": used.rss, "size": original.stat().st_size}
    if not filecmp.cmp(original, output, shallow=False):
        raise RuntimeError(f"entrepot get brought other bytes than those of {original.name}")
    output.unlink()
    return values


def run_get(
    machine: Machine,
    uris: Sequence[str | Path],
    output: Path,
    party: Party | None = None,
    *,
    before: Sequence[str | Path] = (),
) -> Run:
    """An ``entrepot get`` of these, URIs or ``--from-file`` and a list of them, measured. ``before``: words that start
    the command. Raises ``RuntimeError``."""
    words: list[str | Path] = [*before, sys.executable, "-m", "entrepot", "get", "--quiet", *uris, "--output", output]
    plain = {} if party is None else {"ENTREPOT_PLAIN_HTTP": "1"}  # hubs of namespaces have no certificate
    try:
        return run(words, machine.environment(**plain), party, folder=machine.folder, limit=_LONGEST)
    except Failed as error:
        raise RuntimeError(f"entrepot get failed: {error}") from None


def there_and_back(
    tool: Tool, file: Path, place: Place, sender: Party | None = None, receiver: Party | None = None
) -> dict[str, float]:
    """A tool's upload and then its download, as values of a row; ``prepare_…`` is what it does once for a file. Raises
    ``RuntimeError`` if it fails or other bytes come back."""
    back = file.with_name(f"back-{time.monotonic_ns()}")
    try:
        prepared = tool.prepare(file, place, sender)
        up = tool.up(file, place, sender)
        down = tool.down(place, back, receiver)
        if not filecmp.cmp(file, back, shallow=False):
            raise RuntimeError(f"{tool.name} brought other bytes than those of {file.name}")
    except Failed as error:
        raise RuntimeError(f"{tool.name} failed: {error}") from None
    finally:
        back.unlink(missing_ok=True)
    return {
        f"{name}_{what}": getattr(step, what)
        for name, step in (("prepare", prepared), ("up", up), ("down", down))
        if step is not None
        for what in ("wall", "cpu", "rss")
    }


@dataclass(frozen=True)
class Counters:
    """The hub's metrics at one moment."""

    samples: Mapping[str, float]

    @classmethod
    def of(cls, hub: HubProcess) -> Self:
        """From the admin's socket."""
        connection = http.client.HTTPConnection("hub", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(str(hub.folder / "hub.sock"))
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        found = re.findall(r"^(\w+(?:\{.*\})?) ([-+.0-9eE]+|NaN)$", text, re.MULTILINE)
        return cls({name: float(value) for name, value in found})

    def sum(self, name: str, *labels: str) -> float:
        """The sum of a metric over all its labels that have these, each as ``method="get"``."""
        return sum(
            value
            for sample, value in self.samples.items()
            if sample.partition("{")[0] == name and all(label in sample for label in labels)
        )


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises ``RuntimeError`` after so many seconds, in the main thread, wherever it waits. In another one
    the sooner of the two ends it. What goes on all the same, since somebody took that for a failure of one part, is
    ended again after each further minute."""
    outer, _ = signal.getitimer(signal.ITIMER_REAL)
    if 0 < outer <= seconds:
        yield
        return

    def end(*_: object) -> None:
        raise RuntimeError(f"it did not end within {seconds:.0f} s")

    former = signal.signal(signal.SIGALRM, end)
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - began), 0.001), _AGAIN)


def told(error: BaseException) -> str:
    """An error as :attr:`Row.lacks` has it."""
    return f"{FAILED} {' '.join(str(error).split())[:300] or type(error).__name__}"


def failure(scenario: str, case: str, error: BaseException) -> Row:
    """The row that says how something of ours failed."""
    return Row(scenario, case, "entrepot", 0, lacks=told(error))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Processes that are started meanwhile run on one core for ever."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Plan:
    """What is to be measured: how much of it, against which tools, and where rows and words about the progress go.

    ``largest``: no stream is larger, in bytes; ``runs``: None as each scenario has it; ``late``: whether a scenario has
    used its time, so that it should begin no further run of what it has measured once.
    """

    quick: bool
    tools: Sequence[Tool]
    add: Callable[[Row], None]
    say: Callable[[str], None]
    largest: int = 1 << 40
    runs: int | None = None
    #: A folder on a disk, for what is too large for the memory.
    disk: Path = Path(tempfile.gettempdir())
    late: Callable[[], bool] = lambda: False

    @contextlib.contextmanager
    def part(self, scenario: str, case: str) -> Iterator[None]:
        """What fails of ours in a part of a scenario is a row, and the next part begins."""
        try:
            yield
        except FAILURES as error:
            self.add(failure(scenario, case, error))

    def turns(self, full: int, quick: int = 1) -> Iterator[int]:
        """The numbers of the runs of something, the first in any case, the others while there is time."""
        for number in range(self.times(full, quick)):
            if number and self.late():
                self.say(f"no time for more than {number} runs")
                return
            yield number

    def times(self, full: int, quick: int = 1) -> int:
        """How often something is run."""
        return self.runs or (quick if self.quick else full)

    def size(self, full: int, quick: int) -> int:
        """How large a stream is."""
        return min(quick if self.quick else full, self.largest)

    def rival(
        self,
        scenario: str,
        case: str,
        tool: Tool,
        run: int,
        file: Path,
        place: Place,
        sender: Party | None = None,
        receiver: Party | None = None,
    ) -> None:
        """Measure a tool; what it lacks, or how it failed, is a row too."""
        lacks = tool.missing()
        if lacks is None:
            try:
                with limited(_TOOL):
                    values = there_and_back(tool, file, place, sender, receiver)
                self.add(Row(scenario, case, tool.name, run, values))
            except (RuntimeError, OSError) as error:
                lacks = told(error)
        if lacks is not None:
            self.add(Row(scenario, case, tool.name, run, lacks=lacks))
