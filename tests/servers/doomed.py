"""Processes of ours that die at the Nth thing they write: nothing is said, nothing is cleaned up.

What counts as a step, and may be the last: right before a transaction with a change in it is committed and right after;
before a file is made, written, cut, synced, linked, moved or removed, and before a folder is made. Only below
the folders that are named, and only what the process itself asks the system for.

:class:`Nursery` starts them. They are forks of a process that has everything imported, which saves a second for each,
and are told when to die through a few bytes of shared memory, so that a hub may serve for a while first.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

#: The step to die at (0: do not count), which only the watcher sets; steps until now, which the process counts.
_FIELDS: Final = struct.Struct("=qq")
_NTH: Final = slice(0, 8)
_COUNT: Final = slice(8, 16)
_NEVER: Final = 1 << 40
_TIMEOUT: Final = 120.0
#: What is imported once for all.
_IMPORTED: Final = {
    "entrepot": ["entrepot.cli.main", "entrepot.services.blocking", "entrepot.services.daemon"],
    "entrepot-hub": ["alembic.command", "alembic.config", "entrepot_hub.cli.access", "entrepot_hub.services.hub"],
}
_CHANGES: Final = ("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "ALTER", "DROP")


class Doom:
    """When a process dies, as itself and those who watch it see it."""

    def __init__(self, path: Path, *, make: bool = False) -> None:
        if make:
            path.write_bytes(bytes(_FIELDS.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _FIELDS.size)

    def arm(self, nth: int | None) -> None:
        """Count from now on, and die at the Nth step; None: only count."""
        self._shared[:] = _FIELDS.pack(0, 0)
        self._shared[:] = _FIELDS.pack(_NEVER if nth is None else nth, 0)

    def disarm(self) -> None:
        """Count no more."""
        self._shared[_NTH] = bytes(8)

    @property
    def steps(self) -> int:
        """How many steps there were."""
        return int(_FIELDS.unpack(self._shared[:])[1])

    @property
    def reached(self) -> bool:
        """Whether the Nth step was reached: then nobody lives to count on."""
        nth, count = _FIELDS.unpack(self._shared[:])
        return bool(nth) and count >= nth

    def step(self) -> None:
        """One more, and the last one if it is the Nth."""
        nth, count = _FIELDS.unpack(self._shared[:])
        if nth:
            self._shared[_COUNT] = struct.pack("=q", count + 1)
            if count + 1 >= nth:
                os.kill(os.getpid(), signal.SIGKILL)


class Nursery:
    """Starts one doomed process at a time. ``program``: ``entrepot`` or ``entrepot-hub``."""

    def __init__(self, program: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"{program}.log"
        self._shared = folder / f"{program}.doom"
        self.doom = Doom(self._shared, make=True)
        self.pid = 0
        self._mother = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.doomed", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )

    def start(self, below: Sequence[Path], *words: str | Path, **environment: str) -> int:
        """Start one that counts what it writes below these folders; its id."""
        order = [
            [str(path) for path in below],
            [str(word) for word in words],
            environment,
            str(self._log),
            str(self._shared),
        ]
        assert self._mother.stdin is not None
        self._mother.stdin.write(json.dumps(order) + "\n")
        self._mother.stdin.flush()
        self.pid = self._number()
        return self.pid

    def ended(self) -> int:
        """Wait for its end: the exit code, or less than 0 for a signal."""
        code = self._number()
        self.pid = 0
        return code

    def run(self, below: Sequence[Path], *words: str | Path, nth: int | None = None, **environment: str) -> int:
        """Run one to its end, or to its Nth step."""
        self.doom.arm(nth)
        self.start(below, *words, **environment)
        code = self.ended()
        self.doom.disarm()
        return code

    @property
    def running(self) -> bool:
        """Whether one runs."""
        if not self.pid:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def said(self) -> str:
        """What the last one wrote on stdout and stderr."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End what runs, and the process behind it."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
        assert self._mother.stdin is not None
        assert self._mother.stdout is not None
        self._mother.stdin.close()
        try:
            self._mother.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._mother.kill()
            self._mother.wait()
        self._mother.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _number(self) -> int:
        assert self._mother.stdout is not None
        return int(self._mother.stdout.readline())


# ---- in the processes


def _count_files(below: tuple[str, ...], step: Callable[[], None]) -> None:
    """Steps before whatever changes a file below the folders."""
    writing = os.O_WRONLY | os.O_RDWR

    def counts(place: Any) -> bool:
        if isinstance(place, int):
            try:
                place = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return False
        # The databases and their journals have transactions.
        path = os.path.abspath(os.fsdecode(place))
        return path.startswith(below) and ".db" not in os.path.basename(path) and not path.endswith(".log")

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            makes = isinstance(given[2], int) and given[2] & writing and given[2] & os.O_CREAT
            if makes and not isinstance(given[0], int) and counts(given[0]):
                step()
        elif event in ("os.link", "os.rename"):
            if counts(given[1]):
                step()
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fcntl.ioctl") and counts(given[0]):
            step()

    sys.addaudithook(heard)
    for name in ("write", "pwrite", "fsync", "fdatasync"):
        _step_before(os, name, counts, step)


def _step_before(place: Any, name: str, counts: Callable[[Any], bool], step: Callable[[], None]) -> None:
    """Has a function of a module step before it does its work, where its first argument counts."""
    real = getattr(place, name)

    def doomed(*given: Any, **named: Any) -> Any:
        if counts(given[0]):
            step()
        return real(*given, **named)

    setattr(place, name, doomed)


def _count_transactions_of_sqlalchemy(step: Callable[[], None]) -> None:
    import sqlalchemy as sa
    from sqlalchemy.engine.default import DefaultDialect

    changed: set[int] = set()

    def note(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(_CHANGES):
            changed.add(id(connection.connection.dbapi_connection))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    real = DefaultDialect.do_commit

    def commit(self: Any, connection: Any) -> None:
        counted = id(getattr(connection, "dbapi_connection", connection)) in changed
        changed.discard(id(getattr(connection, "dbapi_connection", connection)))
        if counted:
            step()
        real(self, connection)
        if counted:
            step()

    setattr(DefaultDialect, "do_commit", commit)  # noqa: B010


def _count_transactions_of_sqlite(step: Callable[[], None]) -> None:
    class Connection(sqlite3.Connection):
        changes = 0

        def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                self.changes = self.total_changes
            counted = sql == "COMMIT" and self.total_changes != self.changes
            if counted:
                step()
            found = super().execute(sql, *given)
            if counted:
                step()
            return found

    real = sqlite3.connect

    def connect(*given: Any, **named: Any) -> Any:
        return real(*given, **named, factory=Connection)

    sqlite3.connect = connect


def _step_of_renames(below: tuple[str, ...], step: Callable[[], None]) -> None:
    """The node's rename that never replaces goes past Python."""
    from entrepot.adapters import files

    _step_before(files, "_rename_new", lambda path: str(path).startswith(below), step)


def _become(
    program: str, below: Sequence[str], words: Sequence[str], environment: dict[str, str], log: str, doom: str
) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(out, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(environment)
    step = Doom(Path(doom)).step
    if program == "entrepot":
        _count_transactions_of_sqlite(step)
        _step_of_renames(tuple(below), step)
    else:
        _count_transactions_of_sqlalchemy(step)
    _count_files(tuple(below), step)
    sys.argv = [program, *words]
    module = importlib.import_module("entrepot.cli.main" if program == "entrepot" else "entrepot_hub.cli.main")
    raise SystemExit(module.main())


def _mother(program: str) -> None:
    for name in _IMPORTED[program]:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(program, *json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _mother(sys.argv[1])
