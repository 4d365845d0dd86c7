"""Statements that go to SQLite directly give what SQLAlchemy gives."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from entrepot.core.errors import Internal, NotFound, RetryLater
from entrepot_hub.adapters import steady as module
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database, DatabaseSettings
from entrepot_hub.adapters.ledger_rows import account, keep_account
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.adapters.steady import steady

WANTS = steady(sa.select(t.wants).order_by(t.wants.c.id))
NEW_WANT = steady(sa.insert(t.wants).returning(t.wants.c.id, t.wants.c.stream))
SOME = steady(sa.select(t.wants.c.id).where(t.wants.c.window.in_(sa.bindparam("windows", expanding=True))))
KEPT = steady(sa.update(t.wants).where(t.wants.c.window > sa.bindparam("least")).values(keep=True))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    found.migrate_now()
    yield found
    found.close()


def want(number: int) -> dict[str, Any]:
    return {
        "channel_id": 1, "stream": bytes([number]) * 32, "node": "U", "lock": b"l", "ranges": [[0, number]],
        "window": number, "until": float(number), "keep": number % 2 == 0, "transfer": None, "created_at": 1.5,
        "heard_at": 2.0,
    }  # fmt: skip


def made(connection: Any, count: int) -> list[Any]:
    connection.execute(sa.text("INSERT INTO buckets (id, url, prefix, binds) VALUES (1, 'u', '', '{}')"))
    connection.execute(
        sa.text(
            "INSERT INTO channels (id, name, quota, lock, bucket_id, public_read, created_at) "
            "VALUES (1, 'demo', 1, 'l', 1, 0, 0)"
        )
    )
    return list(connection.execute(NEW_WANT, [want(number) for number in range(count)]))


def test_rows_are_the_same_by_both_ways(database: Database) -> None:
    """Lists, truth values, numbers, bytes and NULL come back as SQLAlchemy gives them, by the same names."""
    with database.transaction() as plain, database.lane() as lane:
        assert [tuple(row) for row in made(lane, 3)] == [(n + 1, bytes([n]) * 32) for n in range(3)]
        direct, usual = list(lane.execute(WANTS)), list(plain.execute(WANTS))
        assert [tuple(row) for row in direct] == [tuple(row) for row in usual]
        assert [row._asdict() for row in direct] == [row._asdict() for row in usual]
        assert [[type(value) for value in row] for row in direct] == [[type(value) for value in row] for row in usual]


@pytest.mark.parametrize("count", [0, 1, 3, 16, 40])
def test_lists_of_any_length(database: Database, count: int) -> None:
    """A list of values may have any length, none included."""
    with database.lane() as lane:
        made(lane, 50)
        found = lane.execute(SOME, {"windows": list(range(count))}).scalars()
        assert sorted(found) == [number + 1 for number in range(count)]


def test_changes_are_counted(database: Database) -> None:
    """Whoever changes rows is told how many."""
    with database.lane() as lane:
        made(lane, 5)
        assert lane.execute(KEPT, {"least": 2}).rowcount == 2
        assert sum(row.keep for row in lane.execute(WANTS)) == 4


def test_one_row_is_one_row(database: Database) -> None:
    """Several rows where one is expected are a mistake of ours, and so is none."""
    with database.lane() as lane:
        assert lane.execute(WANTS).one_or_none() is None
        with pytest.raises(Internal):
            lane.execute(WANTS).one()
        made(lane, 2)
        with pytest.raises(Internal):
            lane.execute(WANTS).one_or_none()


def test_an_insert_of_nothing_leaves_the_next_as_it_is(database: Database) -> None:
    """How a statement was run once, with no rows at all, is not how it is run with some."""
    with database.lane() as lane:
        assert made(lane, 0) == []
        assert len(list(lane.execute(NEW_WANT, [want(1), want(2)]))) == 2


def test_a_channel_is_read_once(database: Database) -> None:
    """What a transaction knows of a channel is what it kept of it: neither what it thought of and did not keep, nor
    what was so before somebody else's statement."""
    with database.lane() as lane:
        made(lane, 0)
        of = account(lane, "demo")
        of.charged = 5
        keep_account(lane, of)
        of.charged = 6
        assert account(lane, "demo").charged == 5
        lane.execute(sa.text("UPDATE channels SET charged = 7"))
        assert account(lane, "demo").charged == 7
        with database.transaction() as connection:
            assert account(lane, "demo").charged == 7
            connection.execute(sa.text("UPDATE channels SET charged = 8"))
            assert account(lane, "demo").charged == 8
    with database.transaction() as connection:
        connection.execute(sa.text("DELETE FROM channels"))
    with database.lane() as lane, pytest.raises(NotFound):
        account(lane, "demo")


def test_a_failed_transaction_of_steady_statements_is_undone(database: Database) -> None:
    """Where SQLAlchemy had no part in it, too; and the next transaction is begun as any."""
    with database.lane() as lane:
        made(lane, 2)

    def change(trouble: Exception | None) -> None:
        with database.lane() as lane:
            lane.execute(KEPT, {"least": -1})
            if trouble is not None:
                raise trouble
            lane.execute(NEW_WANT, want(0))  # there is one already

    with pytest.raises(NotFound):
        change(NotFound("not here"))
    with pytest.raises(Internal):
        change(None)
    with database.lane() as lane:
        assert [row.keep for row in lane.execute(WANTS)] == [True, False]
        assert lane.execute(KEPT, {"least": 0}).rowcount == 1


def test_threads_take_turns(tmp_path: Path) -> None:
    """While one thread has a transaction another waits for it, and is told that it is busy if it takes too long."""
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}", DatabaseSettings(busy=0.05))
    database.migrate_now()

    def ask() -> int:
        with database.lane() as lane:
            return len(lane.execute(WANTS).all())

    with ThreadPoolExecutor(1) as threads:
        with database.lane(), pytest.raises(RetryLater) as caught:
            threads.submit(ask).result(30)
        assert caught.value.kind == "busy"
        assert threads.submit(ask).result(30) == 0
    database.close()


def test_every_steady_statement_can_be_compiled(database: Database) -> None:
    """None of those that the ledger keeps has a type or a form that only SQLAlchemy can serve."""
    SqlLedger(database)
    with database.transaction() as connection:
        raw: Any = connection.connection.driver_connection
        for statement, plan in list(module._STEADY.items()):
            values: dict[str, Any] = {name: [1] for name in module._lists_of(statement)}
            if isinstance(statement, sa.Insert):
                values = dict.fromkeys(statement.table.c.keys())
            compiled = plan._compiled(values)
            assert compiled is not None
            raw.execute(f"EXPLAIN {compiled._text}", [None] * compiled._text.count("?"))
