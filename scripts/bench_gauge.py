"""What ``scripts/bench transfer`` measures with: processes, rows of figures, and their medians with the spread.

CPU of a process is user and system time of all its threads, from ``/proc/PID/stat``; peak memory is ``VmHWM``, which is
set back before each run. What commands use is told by ``bench_tools.run``. Nothing of that touches what is measured
while it runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from entrepot.core.units import format_size

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_TICKS = os.sysconf("SC_CLK_TCK")
_PIECE = 16 * MIB


@dataclass(frozen=True)
class Row:
    """What one run of one party came to: ``who`` is ``entrepot`` or a tool, ``values`` are seconds, bytes and counts.

    ``values`` of a tool are ``up_wall``, ``up_cpu``, ``up_rss`` and the same with ``down``; those of a get ``wall``,
    and ``cpu_…`` and ``rss_…`` of each process.
    """

    scenario: str
    case: str
    who: str
    run: int
    values: Mapping[str, float] = field(default_factory=dict)
    #: Why there is nothing, where there is nothing.
    lacks: str | None = None


@dataclass(frozen=True)
class Spread:
    """The median of some runs with the least and the most of them."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """None of no values."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1], len(found)) if found else None


@dataclass(frozen=True)
class Rows:
    """Rows of one or more runs of the command, and what they were made on; ``runs``: of each scenario, since they may
    have been measured one by one, how, how long and on what."""

    machine: Mapping[str, str]
    rows: Sequence[Row]
    runs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """From lines of JSON, of which the first names the machine."""
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            return cls({}, [])
        return cls(lines[0]["machine"], [Row(**line) for line in lines[1:]], lines[0].get("runs", {}))

    def write(self, path: Path) -> None:
        """To lines of JSON."""
        lines: list[Any] = [
            {"machine": dict(self.machine), "runs": {name: dict(run) for name, run in self.runs.items()}}
        ]
        lines += [{key: value for key, value in asdict(row).items() if value is not None} for row in self.rows]
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        new.replace(path)  # all of it or nothing

    def where(self, scenario: str, case: str | None = None, who: str | None = None) -> list[Row]:
        """The rows of these that have figures, in the order of their runs."""
        return [
            row
            for row in self.rows
            if row.scenario == scenario and case in {None, row.case} and who in {None, row.who} and row.values
        ]

    def spread(self, name: str, scenario: str, case: str, who: str = "entrepot") -> Spread | None:
        """One value over all runs."""
        return Spread.of(row.values[name] for row in self.where(scenario, case, who) if name in row.values)

    def named(self, scenario: str) -> list[str]:
        """The cases of a scenario in the order of their measurement."""
        return list(dict.fromkeys(row.case for row in self.rows if row.scenario == scenario))


def cpu(pid: int) -> float:
    """Seconds of user and system time that a process has used. Raises ``FileNotFoundError``."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak(pid: int) -> int:
    """The most bytes of memory that a process had resident since it started or was :func:`forget`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    return 0


def forget(pid: int) -> None:
    """Let the peak of a process begin anew."""
    with contextlib.suppress(PermissionError):  # of another user: its peak since it started
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def child(*words: str) -> list[int]:
    """Those processes that descend from this one whose command line has all these words."""

    def line(pid: int) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""

    return [pid for pid in family(os.getpid())[1:] if all(word in line(pid) for word in words)]


@contextlib.contextmanager
def gauged(processes: Mapping[str, Sequence[int]]) -> Iterator[dict[str, float]]:
    """What processes use meanwhile: ``cpu_NAME`` in seconds and ``rss_NAME``, the peak in bytes; and ``wall``. The
    dictionary is filled at the end."""
    values: dict[str, float] = {}
    for pids in processes.values():
        for pid in pids:
            forget(pid)
    before = {name: sum(map(cpu, pids)) for name, pids in processes.items()}
    began = time.monotonic()
    yield values
    values.setdefault("wall", time.monotonic() - began)
    for name, pids in processes.items():
        values[f"cpu_{name}"] = sum(map(cpu, pids)) - before[name]
        values[f"rss_{name}"] = sum(map(peak, pids))


def make_file(path: Path, size: int) -> Path:
    """A file of random bytes: allocated, incompressible, in memory or on its way to the disk. They are those of a
    cipher with a new key, which are made several times as fast as the kernel's."""
    cipher = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16))).encryptor()
    plain = memoryview(bytes(min(_PIECE, size)))
    with path.open("wb") as file:
        for begin in range(0, size, _PIECE):
            file.write(cipher.update(plain[: size - begin]))
    return path


def size_text(size: int) -> str:
    """``64 MiB`` rather than ``64.0 MiB``."""
    return format_size(size).replace(".0 ", " ")


def warm(size: int) -> None:
    """Touch memory once: where a machine hands out its own memory lazily, the first touch of a page is slow."""
    block = bytearray(64 * MIB)
    folder = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp")
    path = folder / f"warm-{os.getpid()}"
    try:
        with path.open("wb") as file:
            for _ in range(math.ceil(size / len(block))):
                file.write(block)
    finally:
        path.unlink(missing_ok=True)


def machine(tools: Mapping[str, str]) -> dict[str, str]:
    """What the figures were made on, and the versions of ``tools``."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("model name", "Model"))
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / GIB:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
        **tools,
    }
