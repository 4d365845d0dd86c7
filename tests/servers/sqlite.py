"""SQLite databases of hubs: each test gets one of its own, copied from one that was migrated once in this process.

All migrations take more than a tenth of a second. That they make what is declared is shown by
``tests/integration/test_migrations.py``.
"""

from __future__ import annotations

import os
import tempfile
import threading
from functools import cache
from pathlib import Path

import pytest

from entrepot_hub.adapters.database import Database
from entrepot_hub.services import identity
from entrepot_hub.services.settings import Listen

_making = threading.Lock()


@cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "empty.db")
        database = Database(f"sqlite:///{path}")
        try:
            database.migrate_now()
        finally:
            database.close()
        return path.read_bytes()


def migrated(path: Path) -> str:
    """The URL of a new database with the hub's tables, at ``path``, where nothing is yet. Blocking."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(_empty())
    return f"sqlite:///{path}"


class _Copied(Database):
    """A database that comes into being as a copy."""

    def migrate_now(self, revision: str = "head") -> None:
        assert self.file is not None
        migrated(self.file)


def new_hub(folder: Path, url: str, listen: Listen, nats_listen: Listen) -> str:
    """Set up a hub, as ``entrepot-hub init`` does; its public key. Blocking."""
    with _making, pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "Database", _Copied)
        return identity.create_hub(folder, url, listen, nats_listen).hub_public
