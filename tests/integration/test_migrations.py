"""Migrations on both engines: up from nothing, down again, and nothing left that the tables do not say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from tests.servers.postgres import PostgreSQL, running_postgres

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.database import MIGRATIONS, Database
from entrepot_hub.adapters.tables import metadata


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgreSQL]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'a 100% odd name.db'}"
    else:
        url = request.getfixturevalue("postgres").empty()
    found = Database(url)
    yield found
    found.close()


def names(database: Database) -> set[str]:
    with database.transaction() as connection:
        return set(sa.inspect(connection).get_table_names())


def test_up_and_down(database: Database) -> None:
    """From an empty database to all tables, again without effect, down to none, and up once more."""
    database.migrate_now()
    database.migrate_now()
    assert names(database) == {*metadata.tables, "alembic_version"}
    database.migrate_now("base")
    assert names(database) == {"alembic_version"}
    database.migrate_now()
    assert names(database) == {*metadata.tables, "alembic_version"}


def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    """Alembic finds no difference between a migrated database and the tables of this version."""
    database.migrate_now()
    options: dict[str, Any] = {"compare_type": True, "compare_server_default": True}
    with database.transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_every_partial_index_is_partial(database: Database) -> None:
    """The one live grant per object is held by a partial unique index on either engine."""
    database.migrate_now()
    grant = {"object_id": 1, "node": "A", "session": "s", "length": 1, "lease_until": 1.0, "put_until": 0.0,
             "granted_at": 1.0, "accepted_at": 0.0, "sent": 0, "sent_at": 0.0}  # fmt: skip
    with database.transaction() as connection:
        indices = {index["name"]: index for index in sa.inspect(connection).get_indexes("grants")}
        assert indices["uq_grants_live_object_id"]["unique"]
        if database.is_sqlite:
            connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
            insert = sa.insert(metadata.tables["grants"])
            connection.execute(insert, [{"grant": b"1", "status": "failed", **grant}])
            connection.execute(insert, [{"grant": b"2", "status": "failed", **grant}])
            connection.execute(insert, [{"grant": b"3", "status": "accepted", **grant}])
            with pytest.raises(sa.exc.IntegrityError):
                connection.execute(insert, [{"grant": b"4", "status": "offered", **grant}])
            connection.execute(sa.delete(metadata.tables["grants"]))


async def test_hubs_that_start_together_migrate_once(database: Database) -> None:
    """Two migrations at once both succeed."""
    import asyncio

    await asyncio.gather(database.migrate(), database.migrate())
    assert await database.run(lambda connection: "objects" in sa.inspect(connection).get_table_names())


def test_a_newer_database_is_refused(database: Database) -> None:
    """A revision that this version does not know is no reason to touch anything."""
    database.migrate_now()
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InvalidInput) as caught:
        database.migrate_now()
    assert caught.value.kind == "unsupported"
    assert names(database) == {*metadata.tables, "alembic_version"}


def test_the_migrations_lie_in_the_package() -> None:
    """They are files of entrepot_hub, so the wheel ships them."""
    import entrepot_hub

    package = Path(entrepot_hub.__file__).parent
    assert MIGRATIONS.is_relative_to(package)
    assert (MIGRATIONS / "env.py").is_file()
    assert list((MIGRATIONS / "versions").glob("r*.py"))
