"""Processes measured whole, and what a tool is that brings files from one machine to another: see ``bench_tools.py``.

Tools read no settings of the user's, and write nothing but what they are told to and their scratch folder.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from tests.servers.namespaces import Party

ROOT: Final = Path(__file__).resolve().parent.parent
OURS: Final = Path(sys.executable).parent
BENCH: Final = ROOT / ".venv-bench"
MADE: Final = "scripts/environment --bench makes it"
#: Seconds after which a step is given up.
LIMIT: Final = 3600.0
SHOWN: Final = 2000  # characters of what a failed step said

# A small process between us and what is measured. The peak that the kernel tells of a process is at least that of who
# started it (an exec keeps it), and this process may have grown; so the floor of every figure is that of a bare Python.
# If this process is gone, so is who would read the figures: then it ends all.
_LAUNCHER: Final = """
import os, select, signal, sys, time
report = int(sys.argv[1])
os.set_inheritable(report, False)
began = time.monotonic()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
if hasattr(os, "pidfd_open"):
    watch = select.poll()
    watch.register(os.pidfd_open(pid), select.POLLIN)
    watch.register(report, 0)
    if any(descriptor == report for descriptor, _ in watch.poll()):
        os.killpg(0, signal.SIGKILL)
_, status, used = os.wait4(pid, 0)
wall = time.monotonic() - began
figures = (os.waitstatus_to_exitcode(status), wall, used.ru_utime + used.ru_stime, used.ru_maxrss)
os.write(report, repr(figures).encode())
"""


class Failed(Exception):
    """A step ended with an error, or not in time."""


@dataclass(frozen=True, slots=True)
class Run:
    """One or several processes: ``wall`` seconds, ``cpu`` seconds (user and system, with the children that were waited
    for), ``rss`` bytes at the peak of the largest process."""

    wall: float
    cpu: float
    rss: int

    def __add__(self, other: Run) -> Run:
        """One after the other."""
        return Run(self.wall + other.wall, self.cpu + other.cpu, max(self.rss, other.rss))


@dataclass(frozen=True, slots=True)
class Place:
    """An object on an S3 server, whose bucket exists. ``party``: the namespace that the server is in, for tools that
    bring a server of their own; None: loopback."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    key: str
    region: str = "us-east-1"
    party: Party | None = None

    def aws(self) -> dict[str, str]:
        """The environment that tools of Amazon's kin take it from."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class Running:
    """A command that runs, to be measured at its end."""

    def __init__(
        self,
        words: Sequence[str | Path],
        env: Mapping[str, str] | None,
        party: Party | None,
        folder: Path | None,
    ) -> None:
        self._words = [str(word) for word in words]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._report, report = os.pipe()

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(report), *self._words],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(report,),
                env=None if env is None else dict(env),
                cwd=folder,
                start_new_session=True,
            )

        try:
            self._process = start() if party is None else party.call(start)
        finally:
            os.close(report)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def close_input(self) -> None:
        """What it reads from its standard input comes to an end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self, limit: float = LIMIT) -> Run:
        """Its figures. :class:`Failed` if it did not end well, or not in ``limit`` seconds; then it is killed."""
        self.close_input()
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self._words[0]} did not end within {limit:g} s") from None
        finally:
            self.kill()
            with open(self._report, "rb") as report, self._errors:
                told = report.read().decode()
                self._errors.seek(0)
                said = self._errors.read().decode(errors="replace")[-SHOWN:]
        code, wall, cpu, kib = (float(figure) for figure in told.strip("()").split(",")) if told else (-1, 0, 0, 0)
        if code:
            raise Failed(f"{' '.join(self._words[:4])} … ended with {code:g}:\n{said}")
        return Run(wall, cpu, int(kib) << 10)

    def kill(self) -> None:
        """End all of it that still runs."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def run(
    words: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    party: Party | None = None,
    *,
    folder: Path | None = None,
    limit: float = LIMIT,
) -> Run:
    """Run a command to its end, with this whole environment (None: ours), in this party's namespace, in this folder.

    :class:`Failed` if it ends with an error or takes longer than ``limit`` seconds."""
    return Running(words, env, party, folder).wait(limit)


class Tool(ABC):
    """Something that brings files from one machine to another. Files are written anew, whatever was there.

    Methods may be called from several threads. :meth:`close` ends what servers it has and removes its scratch folder;
    it happens at the end of this process at the latest.
    """

    name: str
    #: Whether the bytes go from machine to machine, not through the place.
    direct = False

    def __init__(self) -> None:
        self._scratch: Path | None = None
        self._lock = threading.RLock()

    def missing(self) -> str | None:
        """What it lacks here, and how to get it; None if nothing."""
        return None

    def prepare(self, file: Path, place: Place, party: Party | None = None) -> Run | None:
        """What has to be done once for a file before it can be brought anywhere; None if that is nothing.

        :meth:`up` does it if it was not done, and does not count it."""
        return None

    @abstractmethod
    def up(self, file: Path, place: Place, party: Party | None = None) -> Run:
        """From this file to the place."""

    @abstractmethod
    def down(self, place: Place, file: Path, party: Party | None = None) -> Run:
        """From the place to this file."""

    def up_many(self, folder: Path, place: Place, party: Party | None = None) -> Run | None:
        """All files of a folder to below the place; None: it has no such thing."""
        return None

    def down_many(self, place: Place, folder: Path, party: Party | None = None) -> Run | None:
        """All that is below the place into a folder; None: it has no such thing."""
        return None

    def close(self) -> None:
        """End it. May be called again."""
        with self._lock:
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)
                self._scratch = None
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        """Itself; closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scratch(self) -> Path:
        """A folder of its own, in memory if this machine has such."""
        with self._lock:
            if self._scratch is None:
                memory = "/dev/shm"
                base = memory if os.access(memory, os.W_OK) else None
                self._scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
                atexit.register(self.close)
            return self._scratch

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What its processes have as environment: nothing of the user's but the path."""
        home = str(self.scratch())
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "LC_ALL": "C.UTF-8", **(more or {})}
