"""Usage, limits and prices in the database, on SQLite and PostgreSQL; and the metering over it."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
import sqlalchemy as sa

from entrepot.core.errors import NotFound, RetryLater
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database, DatabaseSettings
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.adapters.sql_usage import SqlUsage
from entrepot_hub.core.ledger import Found, ObjectRecord, ObjectRef, ObjectStatus, Proposal
from entrepot_hub.core.limits import WHOLE, Limits
from entrepot_hub.core.prices import BUILT_IN, with_prices
from entrepot_hub.core.usage import DAY, HUB, NOTHING, Place, Tally, month_days, total
from entrepot_hub.services.metering import Metering, MeteringSettings

#: Tests look into the database beside the metering, on its loop.
pytestmark = pytest.mark.blocking

NOW = 20_000.0 * DAY + 1000
TODAY = 20_000


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def usage(database: Database) -> SqlUsage:
    return SqlUsage(database)


def charge(database: Database, size: int, channel: str = "demo") -> None:
    """Have so many bytes lie in the bucket."""
    with database.transaction() as connection:
        where = t.channels.c.name == channel
        connection.execute(sa.update(t.channels).where(where).values(charged=size))


def record(size: int, *, node: str = "A", channel: str = "demo", number: int = 0) -> ObjectRecord:
    ref = ObjectRef(channel, b"l" * 8, b"\xff" * 32, number)
    return ObjectRecord(ref, ObjectStatus.READY, size=size, uploader=node)


def everything(usage: SqlUsage, channel: str = "demo") -> Tally:
    return total(tally for _, _, tally in usage.report(channel, 0, 100_000))


def audited(database: Database, action: str) -> list[tuple[str, dict]]:
    with database.transaction() as connection:
        rows = connection.execute(sa.select(t.audit).where(t.audit.c.action == action).order_by(t.audit.c.id))
        return [(row.actor, row.detail) for row in rows]


def test_counts_are_added_to_what_is_there(usage: SqlUsage) -> None:
    """Twice the same counts are twice as much; nodes, days and channels stay apart; a gone channel is dropped."""
    counts: dict[Place, Tally] = {
        ("demo", "A", TODAY): Tally(uploads=1, uploaded=10),
        ("demo", "B", TODAY): Tally(downloads=2, downloaded=20, byte_seconds=0.5),
        ("demo", "A", TODAY - 1): Tally(deletes=3),
        ("other", "A", TODAY): Tally(evicted=4),
        ("gone", "A", TODAY): Tally(evicted=4),
    }
    usage.add(counts)
    usage.add(counts)
    usage.add({})
    assert usage.report("demo", TODAY - 1, TODAY + 1) == [
        ("A", TODAY - 1, Tally(deletes=6)),
        ("A", TODAY, Tally(uploads=2, uploaded=20)),
        ("B", TODAY, Tally(downloads=4, downloaded=40, byte_seconds=1.0)),
    ]
    assert usage.report("demo", TODAY, TODAY) == []
    assert everything(usage, "other") == Tally(evicted=8)


def test_nothing_is_lost_between_hubs(database: Database, usage: SqlUsage) -> None:
    """Four hubs add to the same rows at once, in any order: every count is there once."""
    chance = random.Random(7)
    places: list[Place] = [("demo", node, TODAY + day) for node in ("", "A", "B", "C") for day in range(2)]
    batches = [
        {place: Tally(uploads=1, uploaded=chance.randrange(1 << 40)) for place in chance.sample(places, 6)}
        for _ in range(40)
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda batch: retried(lambda: SqlUsage(database).add(batch)), batches))
    assert everything(usage) == total(tally for batch in batches for tally in batch.values())


def retried(work) -> None:
    """Run it as ``Database.run`` does: again when another process has the file locked."""
    for _ in range(50):
        try:
            return work()
        except RetryLater:
            continue
    raise AssertionError("the database was locked for good")


def test_bytes_stored_are_counted_from_the_first_sample_on(database: Database, usage: SqlUsage) -> None:
    """The first sample only begins; later ones count what lay there since, over midnight and over restarts."""
    charge(database, 500)
    usage.sample("demo", NOW)
    assert everything(usage) == NOTHING
    usage.sample("demo", NOW + 10)
    charge(database, 100)
    SqlUsage(database).sample("demo", NOW + DAY)  # a hub was away for nearly a day, and 100 bytes lay there
    found = {day: tally.byte_seconds for _, day, tally in usage.report("demo", TODAY, TODAY + 2)}
    rest = TODAY * DAY + DAY - (NOW + 10)
    assert found == {TODAY: 5000 + 100 * rest, TODAY + 1: 100 * 1000.0}
    usage.sample("demo", NOW)  # a clock that went back
    assert sum(found.values()) == everything(usage).byte_seconds
    with pytest.raises(NotFound):
        usage.sample("none", NOW)


def test_a_second_is_counted_by_one_hub(database: Database, usage: SqlUsage) -> None:
    """Hubs that look at the same moments, and at others between, count every second once."""
    charge(database, 1000)
    usage.sample("demo", NOW)
    moments = [NOW + step for step in range(1, 41) for _ in range(2)]
    random.Random(3).shuffle(moments)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda at: retried(lambda: SqlUsage(database).sample("demo", at)), moments))
    assert everything(usage).byte_seconds == 1000 * 40


def test_limits_are_kept_shown_and_lifted(database: Database, usage: SqlUsage) -> None:
    """A row comes back as it was set, every change is in the audit log, and lifting all removes it."""
    whole = Limits(day_up=1, day_down=2, objects=3, stream=1 << 50, budget=Decimal("20.1"))
    usage.set_limits("demo", WHOLE, whole, now=NOW, actor="admin")
    usage.set_limits("demo", "*", Limits(day_up=5), now=NOW, actor="admin")
    usage.set_limits("demo", "*", Limits(day_down=6), now=NOW, actor="admin")
    assert usage.limits("demo") == {WHOLE: whole, "*": Limits(day_down=6)}
    assert usage.limits("other") == {}
    assert usage.budgeted() == ["demo"]
    usage.set_limits("demo", WHOLE, Limits(), now=NOW, actor="U1")
    assert usage.limits("demo") == {"*": Limits(day_down=6)}
    assert usage.budgeted() == []
    changes = audited(database, "channel.limit")
    assert changes[0] == (
        "admin",
        {"node": "", "up-per-day": 1, "down-per-day": 2, "objects": 3, "largest-stream": 1 << 50, "budget": "20.1"},
    )
    assert changes[2] == ("admin", {"node": "*", "up-per-day": None, "down-per-day": 6})
    assert changes[3][0] == "U1"


def test_an_account_has_what_limits_are_checked_against(database: Database, usage: SqlUsage) -> None:
    """Today's counts by node, the month's sum, and the objects of each uploader, as far as a limit asks."""
    usage.add({("demo", "A", TODAY): Tally(uploaded=10), ("demo", "A", TODAY - 1): Tally(uploaded=5)})
    month = month_days("2024-10")
    assert month[0] <= TODAY - 1
    assert usage.account("demo", TODAY, month).today == {}
    usage.set_limits("demo", WHOLE, Limits(objects=9, budget=Decimal(1)), now=NOW, actor="admin")
    ledger = SqlLedger(database)
    for number, node in enumerate("AAB"):
        ref, grant = ObjectRef("demo", b"l" * 8, b"\xff" * 32, number), bytes([number]) * 16
        ledger.grant([Proposal(ref, grant, node, "s", 10, NOW + 10)], NOW)
        ledger.accept(grant, node, b"d" * 32, NOW + 10, NOW + 900, NOW)
        assert ledger.settle(ref, Found(10, f"e{number}", b"d" * 32), NOW + 1, 300) is not None
    account = usage.account("demo", TODAY, month)
    assert account.today == {"A": Tally(uploaded=10)}
    assert account.month == Tally(uploaded=15)
    assert account.objects == {WHOLE: 3, "A": 2, "B": 1}


def test_a_mark_is_told_once_a_month(database: Database, usage: SqlUsage) -> None:
    """Whoever notes a part of a budget first tells of it; another month, or another budget, begins anew."""
    detail = {"spent": "10", "budget": "20"}
    assert usage.mark("demo", "2026-11", 50, now=NOW, detail=detail)
    assert not usage.mark("demo", "2026-11", 50, now=NOW, detail=detail)
    assert usage.mark("demo", "2026-11", 80, now=NOW, detail=detail)
    assert usage.mark("demo", "2026-12", 50, now=NOW, detail=detail)
    usage.unmark("demo", "2026-11")
    assert usage.mark("demo", "2026-11", 50, now=NOW, detail=detail)
    assert [detail["percent"] for _, detail in audited(database, "channel.budget")] == [50, 80, 50, 50]


def test_prices_are_kept_and_reset(database: Database, usage: SqlUsage) -> None:
    """A changed list comes back exactly, replaces itself, and goes."""
    dear = with_prices(BUILT_IN["aws"], {"egress": "0.123456789012"}, currency="EUR", as_of="2026-11-21", source="x")
    usage.set_prices("aws", BUILT_IN["r2"], now=NOW, actor="admin")
    usage.set_prices("aws", dear, now=NOW, actor="admin")
    assert usage.prices() == {"aws": dear}
    assert usage.price_basis("demo") == ("file:///demo", {"aws": dear})
    assert usage.reset_prices("aws", now=NOW, actor="admin")
    assert not usage.reset_prices("aws", now=NOW, actor="admin")
    assert usage.prices() == {}
    assert len(audited(database, "price.set")) == 2
    assert len(audited(database, "price.reset")) == 1


# -- metering --------------------------------------------------------------------------------------------------


def test_what_is_counted_survives_a_restart(database: Database, usage: SqlUsage) -> None:
    """Counts of two hubs in turn and at once, kept when each ends: all of them are there, each once."""

    async def hub(seed: int) -> None:
        metering, chance = Metering(database, Clock()), random.Random(seed)
        for number in range(200):
            kind = chance.randrange(4)
            if kind == 0:
                metering.arrived(record(10, node="A"))
            elif kind == 1:
                metering.told(record(10, number=number), "B", NOW + 600)
            elif kind == 2:
                metering.evicted(record(10))
            else:
                metering.requested("demo", "b")
            expected[kind] += 1
            if chance.random() < 0.1:
                await metering.flush()
        await metering.aclose()
        await metering.aclose()

    async def main() -> None:
        await asyncio.gather(hub(1), hub(2))
        await hub(3)

    expected = [0, 0, 0, 0]
    asyncio.run(main())
    found = everything(usage)
    assert (found.uploads, found.uploaded, found.requests_a) == (expected[0], 10 * expected[0], expected[0])
    assert (found.downloads, found.downloaded) == (expected[1], 10 * expected[1])
    assert found.requests_b == expected[1] + expected[3]
    assert found.evicted == 10 * expected[2]


def test_a_url_told_again_counts_nothing(database: Database, usage: SqlUsage) -> None:
    """A reader is counted once per object and URL; another reader, and a URL that replaced the first, count anew."""

    async def main() -> None:
        metering = Metering(database, Clock())
        for node, until in [("A", 600), ("A", 600), ("B", 600), ("A", 900), ("A", 900)]:
            metering.told(record(10), node, NOW + until)
        await metering.flush()

    asyncio.run(main())
    assert everything(usage) == Tally(downloads=3, downloaded=30, requests_b=3)


def test_what_is_remembered_as_told_is_bounded(database: Database) -> None:
    """Neither many reads nor the passing of time make the memory of them grow."""

    async def main() -> None:
        clock = Clock()
        metering = Metering(database, clock, MeteringSettings(told=10))
        for number in range(100):
            metering.told(record(10, number=number), "A", NOW + 600)
        assert len(metering._told) == 10
        clock.now += 1000
        metering.told(record(10), "A", NOW + 1600)
        assert len(metering._told) == 1

    asyncio.run(main())


def test_counts_wait_while_the_database_is_away(database: Database, usage: SqlUsage) -> None:
    """What the database does not take is kept in memory and written later, once."""

    class Failing(SqlUsage):
        broken = True

        def add(self, counts) -> None:
            if self.broken:
                raise RetryLater("away")
            super().add(counts)

    async def main() -> None:
        metering = Metering(database, Clock())
        metering.usage = failing = Failing(database)
        metering.arrived(record(10))
        for _ in range(3):
            with pytest.raises(RetryLater):
                await metering.flush()
        metering.arrived(record(10))
        failing.broken = False
        await metering.flush()
        await metering.flush()

    asyncio.run(main())
    assert everything(usage) == Tally(uploads=2, uploaded=20, requests_a=2)


def test_a_batch_that_ends_late_is_not_written_twice(database: Database, usage: SqlUsage) -> None:
    """The caller stops waiting while the database still writes: the batch is neither lost nor repeated."""
    go, begun = threading.Event(), threading.Event()

    class Slow(SqlUsage):
        def add(self, counts) -> None:
            begun.set()
            assert go.wait(20)
            super().add(counts)

    async def main() -> None:
        hasty = Database(
            database._url.render_as_string(hide_password=False).replace("+pysqlite", ""),
            DatabaseSettings(workers=2, deadline=0.05),
        )
        async with hasty:
            metering = Metering(hasty, Clock())
            metering.usage = Slow(hasty)
            metering.arrived(record(10))
            with pytest.raises(RetryLater):
                await metering.flush()
            assert await asyncio.to_thread(begun.wait, 20)
            metering.arrived(record(10))
            await metering.flush()  # the first is still under way: nothing is sent beside it
            go.set()
        metering._database = database
        metering.usage = SqlUsage(database)
        await metering.flush()

    asyncio.run(main())
    assert everything(usage) == Tally(uploads=2, uploaded=20, requests_a=2)


def test_a_standing_holds_all_that_was_seen(database: Database, usage: SqlUsage) -> None:
    """What is in the database, what waits in memory and what comes later all count towards a limit, once."""

    async def main() -> None:
        clock = Clock()
        here, there = Metering(database, clock), Metering(database, clock)
        usage.set_limits("demo", WHOLE, Limits(day_down=100), now=NOW, actor="admin")
        there.told(record(30), "A", NOW + 600)
        await there.flush()
        here.told(record(30), "A", NOW + 600)
        assert (await here.standing("demo")).down == {WHOLE: 60, "A": 60}
        assert await here.may_read("demo", "A") is None
        here.told(record(40, number=1), "B", NOW + 600)
        refusal = await here.may_read("demo", "C")
        assert refusal is not None
        assert refusal.data["used"] == 100
        await here.flush()
        assert (await here.standing("demo")).down[WHOLE] == 100
        assert await there.may_read("demo", "A") is not None  # it looks for the first time
        clock.now += DAY
        assert await here.may_read("demo", "C") is None  # another day
        usage.set_limits("demo", WHOLE, Limits(), now=NOW, actor="admin")
        here.forget("demo")
        assert not (await here.standing("demo")).limited

    asyncio.run(main())


def test_a_budget_is_told_at_its_marks_and_stops_at_the_last(database: Database, usage: SqlUsage) -> None:
    """50, 80 and 100 % stand in the audit log once each, in the warnings at once, and then nothing is signed."""

    async def main() -> None:
        clock = Clock()
        metering = Metering(database, clock)
        priced = with_prices(BUILT_IN["folder"], {"egress": "1"}, currency="EUR", as_of="", source="")
        usage.set_prices("folder", priced, now=NOW, actor="admin")
        usage.set_limits("demo", WHOLE, Limits(budget=Decimal(10)), now=NOW, actor="admin")
        gib = 1 << 30
        for number, (share, told, marks) in enumerate(
            [(4, 0, []), (2, 1, [50]), (3, 1, [50, 80]), (1, 1, [50, 80, 100]), (1, 1, [50, 80, 100])]
        ):
            metering.told(record(share * gib, number=number), "A", NOW + 600)
            clock.now += 10
            await metering.sample()
            assert len(metering.warnings()) == told
            assert [detail["percent"] for _, detail in audited(database, "channel.budget")] == marks
        assert "110 %" in metering.warnings()[0]
        refusal = await metering.may_read("demo")
        assert refusal is not None
        assert refusal.kind == "over-budget"
        assert "11.00 of 10 EUR" in refusal.message
        ref = ObjectRef("demo", b"l" * 8, b"\xff" * 32, 9)
        refused = await metering.refused((Proposal(ref, b"g" * 16, "B", "s", 10, NOW),), None)
        assert [(each.nobody, each.error.kind) for each in refused] == [(True, "over-budget")]
        assert await metering.may_read("other") is None
        usage.set_limits("demo", WHOLE, Limits(), now=NOW, actor="admin")
        metering.forget()
        await metering.sample()
        assert metering.warnings() == ()
        assert await metering.may_read("demo") is None

    asyncio.run(main())


def test_the_hub_itself_is_nobody_in_the_report(database: Database, usage: SqlUsage) -> None:
    """Requests of the hub stand under its own row, writes, looks and deletes apart."""

    async def main() -> None:
        metering = Metering(database, Clock())
        for kind in ("a", "b", "b", "delete"):
            metering.requested("demo", kind)
        await metering.flush()

    asyncio.run(main())
    assert usage.report("demo", TODAY, TODAY + 1) == [
        (HUB, TODAY, Tally(requests_a=1, requests_b=2, deletes=1)),
    ]
