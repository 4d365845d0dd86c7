"""The ledgers that the contract is held against, each with two channels and three members."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.servers.postgres import PostgreSQL, running_postgres

from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.database import Database, DatabaseSettings
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import Ledger
from entrepot_hub.core.members import Rights
from entrepot_hub.core.model_ledger import ModelLedger
from entrepot_hub.core.sealing import MasterKey

QUOTA = 1000
ENGINES = ["model", "sqlite", "postgres"]


@dataclass
class World:
    """A ledger and what it takes to change what stands around it."""

    ledger: Ledger
    database: Database | None = None

    def set_quota(self, channel: str, quota: int) -> None:
        if isinstance(self.ledger, ModelLedger):
            self.ledger.add_channel(channel, quota)
        else:
            asyncio.run(_registry(self.database).set_quota(channel, quota, now=1.0, actor="admin"))

    def set_rights(self, channel: str, node: str, rights: str) -> None:
        if isinstance(self.ledger, ModelLedger):
            self.ledger.add_member(channel, node, f"name of {node}", Rights.parse(rights))
        else:
            registry = _registry(self.database)
            asyncio.run(registry.grant_rights(channel, node, Rights.parse(rights), now=1.0, actor="admin"))

    def see(self, node: str, now: float) -> None:
        """The node was heard."""
        if isinstance(self.ledger, ModelLedger):
            self.ledger.see(node, now)
        else:
            asyncio.run(_registry(self.database).seen({node: now}))

    def revoke(self, channel: str, node: str) -> None:
        if isinstance(self.ledger, ModelLedger):
            self.ledger.remove_member(channel, node)
        else:
            asyncio.run(_registry(self.database).revoke(channel, node, now=2.0, actor="admin"))


def _registry(database: Database | None) -> Registry:
    assert database is not None
    return Registry(database, MasterKey(bytes(32)))


async def populate(database: Database, quota: int = QUOTA) -> None:
    """Channels ``demo`` and ``other``, members A, B and C."""
    registry = _registry(database)
    for name in ("demo", "other"):
        lock = SchemaLock(name, object=0)
        await registry.create_channel(name, quota=quota, lock=lock, bucket=f"file:///{name}", now=1.0, actor="admin")
        for node in "ABC":
            await registry.add_node(node, f"name of {node}", now=1.0)
            await registry.grant_rights(name, node, Rights.parse("request,provide"), now=1.0, actor="admin")


def model(quota: int = QUOTA) -> ModelLedger:
    """The same in memory."""
    ledger = ModelLedger()
    for name in ("demo", "other"):
        ledger.add_channel(name, quota)
        for node in "ABC":
            ledger.add_member(name, node, f"name of {node}")
    return ledger


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A populated SQLite database to copy."""
    path = tmp_path_factory.mktemp("template") / "hub.db"
    database = Database(f"sqlite:///{path}")
    database.migrate_now()
    asyncio.run(populate(database))
    database.close()
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A populated database on each engine."""
    if request.param == "sqlite":
        path = tmp_path / "hub.db"
        path.write_bytes(request.getfixturevalue("migrated_sqlite").read_bytes())
        found = Database(f"sqlite:///{path}")
    else:
        found = Database(request.getfixturevalue("postgres").migrated(), DatabaseSettings(workers=8))
        asyncio.run(populate(found))
    yield found
    found.close()


@pytest.fixture(params=ENGINES)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A populated ledger of each kind."""
    if request.param == "model":
        yield World(model())
        return
    if request.param == "sqlite":
        path = tmp_path / "hub.db"
        path.write_bytes(request.getfixturevalue("migrated_sqlite").read_bytes())
        found = Database(f"sqlite:///{path}")
    else:
        found = Database(request.getfixturevalue("postgres").migrated(), DatabaseSettings(workers=2))
        asyncio.run(populate(found))
    yield World(SqlLedger(found), found)
    found.close()


@pytest.fixture
def ledger(world: World) -> Ledger:
    return world.ledger
