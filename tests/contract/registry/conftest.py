"""A registry on each engine, with a channel ``demo`` and a node ``UANNA…``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.servers.postgres import PostgreSQL, running_postgres
from tests.servers.sqlite import migrated

from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.database import Database, DatabaseSettings
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.sealing import MasterKey

HUB = "AHUB"
ANNA, BERT = "UANNA" + "A" * 51, "UBERT" + "B" * 51
QUOTA = 64 << 20


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        found = Database(await asyncio.to_thread(migrated, tmp_path / "hub.db"))
    else:
        server: PostgreSQL = request.getfixturevalue("postgres")
        found = Database(await asyncio.to_thread(server.migrated), DatabaseSettings(workers=4))
    async with found:
        yield found


@pytest.fixture
async def registry(database: Database) -> Registry:
    made = Registry(database, MasterKey(b"m" * 32))
    await made.create_channel(
        "demo", quota=QUOTA, lock=SchemaLock("demo"), bucket="s3://bucket", prefix="p", credentials=b"sealed",
        binds={"length": True}, now=1.0, actor="admin",
    )  # fmt: skip
    await made.add_node(ANNA, "anna", now=1.0)
    return made
