"""Scenario ``profile`` of ``scripts/bench transfer``: where the processor time of each process goes.

py-spy looks into running processes a hundred times a second and notes which function each busy thread is in. Work that
is done in C (hashes, system calls, SQLite) counts for the Python function that asked for it. py-spy takes time itself,
so these runs are not compared with others.
"""

from __future__ import annotations

import collections
import contextlib
import filecmp
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from scripts.bench_bed import Bed, Plan, run_get
from scripts.bench_gauge import GIB, KIB, MIB, Row, make_file, size_text
from scripts.bench_runs import BENCH, MADE

_RATE = 100  # looks a second
_END = 60.0  # seconds that py-spy may take to write what it saw
_MODULES, _FUNCTIONS = 12, 8  # so many of the most are kept
_OURS = ("entrepot", "entrepot_hub")
#: What threads are in that were woken and wait for a core, or for the interpreter's lock.
WAKING = "waking up"
_WAITS = frozenset(
    {
        ("selectors", "EpollSelector.select"),
        ("concurrent", "_worker"),
        ("threading", "Condition.wait"),
        ("threading", "Event.wait"),
        ("queue", "Queue.get"),
    }
)
_FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^()]*?)(:\d+)?\)")


def profile(plan: Plan) -> None:
    """A stream, many small files and many small objects: who of ours spends its time on what."""
    program = spy()
    if program is None:
        plan.add(Row("profile", "", "py-spy", 0, lacks=f"there is no py-spy: {MADE}"))
        return
    size = plan.size(GIB, 64 * MIB)
    with plan.part("profile", case := f"{size_text(size)}, rclone"), Bed("rclone", quota=2 * size + GIB) as bed:
        file = make_file(bed.folder / "stream.bin", size)
        _looked(plan, program, case, bed, [file], bed.folder / "got.bin")
    count = 200 if plan.quick else 1000
    with plan.part("profile", case := f"{count:,} × 4 KiB, rclone"), Bed("rclone") as bed:
        files = [make_file(bed.folder / f"{number:05}.bin", 4 * KIB) for number in range(count)]
        (target := bed.folder / "got").mkdir()
        _looked(plan, program, case, bed, files, target)
    size = plan.size(32 * MIB, 4 * MIB)
    case = f"{size // (16 * KIB):,} objects of 16 KiB, rclone"
    with plan.part("profile", case), Bed("rclone", miniblock=16 * KIB, object=16 * KIB) as bed:
        file = make_file(bed.folder / "small.bin", size)
        _looked(plan, program, case, bed, [file], bed.folder / "got.bin")


def spy() -> Path | None:
    """py-spy, if it is there."""
    found = BENCH / "bin" / "py-spy"
    return found if found.exists() else None


def _looked(plan: Plan, program: Path, case: str, bed: Bed, files: Sequence[Path], target: Path) -> None:
    """Get these files while all Pythons of ours are looked into."""
    plan.say(case)
    lab, laptop = bed.machine("lab"), bed.machine("laptop")
    uris = lab.add(*files)
    lab.up()
    (listed := bed.folder / "uris").write_text("\n".join(uris))
    found = {name: bed.folder / f"{name}.raw" for name in ("requester", "provider", "hub")}
    pids = bed.processes(lab)
    with _looking(program, {found[name]: pids[name][0] for name in ("provider", "hub")}):
        used = run_get(laptop, ["--from-file", listed], target, before=_words(program, found["requester"]))
    # py-spy ends well even if the command did not.
    got = [target / file.name if target.is_dir() else target for file in files]
    if not all(one.exists() and filecmp.cmp(file, one, shallow=False) for file, one in zip(files, got, strict=True)):
        raise RuntimeError("what was looked at did not bring all files")
    plan.say(f"{case}: {used.wall:.1f} s while looked at")
    for name, path in found.items():
        plan.add(Row("profile", case, name, 0, shares(path.read_text(encoding="utf-8").splitlines())))


def _words(program: Path, path: Path, *more: str) -> list[str | Path]:
    # Without --nonblocking it stops the process for each look, which wakes threads that wait and makes them look busy.
    words: list[str | Path] = [
        program,
        "record",
        "--nonblocking",
        "--rate",
        str(_RATE),
        "--format",
        "raw",
        "--output",
        path,
    ]
    return [*words, *(more or ("--",))]


@contextlib.contextmanager
def _looking(program: Path, pids: Mapping[Path, int]) -> Iterator[None]:
    """Look into processes meanwhile; what was seen is in these files afterwards. Raises ``RuntimeError``."""
    with contextlib.ExitStack() as stack:
        lookers = []
        for path, pid in pids.items():
            with path.with_suffix(".log").open("wb") as log:
                words = _words(program, path, "--pid", str(pid))
                looker = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(_end, looker)
            lookers.append((looker, path))
        time.sleep(1)  # until they have found their way
        yield
        for looker, path in lookers:
            looker.send_signal(signal.SIGINT)
            try:
                looker.wait(_END)
            except subprocess.TimeoutExpired:
                raise RuntimeError("py-spy does not end") from None
            if not path.exists():
                said = path.with_suffix(".log").read_text(errors="replace")
                raise RuntimeError(f"py-spy saw nothing: {said[-300:]}")


def _end(looker: subprocess.Popen[bytes]) -> None:
    if looker.poll() is None:
        looker.kill()
    looker.wait()


def shares(lines: Iterable[str]) -> dict[str, float]:
    """What the stacks in py-spy's raw format come to: ``samples``, and of them the share that was spent in a module
    (``module NAME``; of foreign packages in the whole package) and in a function (``function NAME``) itself;
    :data:`WAKING` for both."""
    modules: collections.Counter[str] = collections.Counter()
    functions: collections.Counter[str] = collections.Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frame = _FRAME.fullmatch(stack.rpartition(";")[2])
        if not count.isdigit() or frame is None:
            continue
        module = _module(frame["file"])
        waking = (module, frame["function"]) in _WAITS
        modules[WAKING if waking else module] += int(count)
        functions[WAKING if waking else f"{module}: {frame['function']}"] += int(count)
    total = modules.total()
    values: dict[str, float] = {"samples": total}
    for kind, counter, most in (("module", modules, _MODULES), ("function", functions, _FUNCTIONS)):
        for name, found in counter.most_common(most):
            values[f"{kind} {name}"] = round(found / total, 4)
    return values


def _module(file: str) -> str:
    """``entrepot.core.lock`` of ours, ``sqlalchemy`` of others; nothing of where this machine keeps it."""
    if file.startswith("<frozen "):
        return file.removeprefix("<frozen ").rstrip(">").partition(".")[0]
    if file.startswith("<") or not file.endswith(".py"):
        return "generated code"
    parts = file.removesuffix(".py").split("/")
    for ours in _OURS:
        if ours in parts:
            return ".".join(parts[parts.index(ours) :])
    return parts[-1] if file.startswith("/") else parts[0]
