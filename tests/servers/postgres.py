"""A private PostgreSQL from the machine's own binaries: a folder of its own, a Unix socket, no port.

Each test gets a database of its own, cloned from a template that was migrated once: about 10 ms.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from entrepot_hub.adapters.database import Database, DatabaseSettings

START_TIMEOUT = 60.0
_TEMPLATE = "migrated"


class PostgreSQL:
    """A running server; ``url(name)`` names a database in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self._migrated = False

    def url(self, name: str) -> str:
        """The URL of a database here."""
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def empty(self) -> str:
        """The URL of a new database without tables."""
        return self.url(self._create(None))

    def migrated(self) -> str:
        """The URL of a new database with the hub's tables."""
        if not self._migrated:
            database = Database(self.url(self._create(None, _TEMPLATE)), DatabaseSettings(workers=1))
            database.migrate_now()
            database.close()
            self._migrated = True
        return self.url(self._create(_TEMPLATE))

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create(self, template: str | None, name: str | None = None) -> str:
        name = name or f"test{next(self._numbers)}"
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        connection = psycopg.connect(self.url("postgres"), autocommit=True)
        try:
            connection.execute(statement)
        finally:
            connection.close()
        return name


@contextmanager
def running_postgres() -> Iterator[PostgreSQL]:
    """Start a server, end it afterwards. Skips the test where the machine has no PostgreSQL."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed here")
    folder = Path(tempfile.mkdtemp(prefix="entrepot-pg-", dir="/tmp"))
    user = _user()
    owner: dict[str, Any] = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    process: subprocess.Popen[bytes] | None = None
    try:
        with (folder / "log").open("wb") as log:
            subprocess.run(
                [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"],
                check=True,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                **owner,
            )
            options = ["listen_addresses=", "fsync=off", "max_connections=60", "shared_buffers=16MB"]
            process = subprocess.Popen(
                [
                    *(binaries / "postgres", "-D", folder / "data", "-k", folder),
                    *(part for option in options for part in ("-c", option)),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                **owner,
            )
        server = PostgreSQL(folder)
        end = time.monotonic() + START_TIMEOUT
        while not server.ready():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL does not start:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.02)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    found = shutil.which("postgres")
    if found is not None and (Path(found).resolve().parent / "initdb").exists():
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3])
    return installed[-1].parent if installed else None


def _user() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: then another user runs it."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("there is no user that could run PostgreSQL")
