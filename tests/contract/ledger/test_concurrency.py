"""Many threads, and many hubs, at one ledger: the quota and the one live grant hold all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.contract.ledger.conftest import QUOTA
from tests.contract.ledger.exchange import DIGEST, GRACE, charged, found, proposal, ready, ref, status, uploading

from entrepot.core.errors import RetryLater
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import GrantOutcome, GrantRecord, ObjectStatus, Refusal

THREADS = 8


def at_once[T](*work: Callable[[], T]) -> list[T]:
    """What the functions give when all threads start together. The first error is raised."""
    barrier = threading.Barrier(len(work))
    results: list[T] = []
    errors: list[BaseException] = []

    def run(one: Callable[[], T]) -> None:
        barrier.wait(30)
        try:
            results.append(one())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def test_grants_made_at_once_stay_under_the_quota(database: Database) -> None:
    """Every thread wants other objects, together more than fits: exactly the quota is granted."""
    ledger = SqlLedger(database)

    def work(thread: int) -> list[GrantOutcome]:
        outcomes: list[GrantOutcome] = []
        for batch in range(4):
            numbers = [thread * 100 + batch * 4 + place for place in range(4)]
            outcomes += ledger.grant([proposal(ref(number), size=20) for number in numbers], 10.0)
        return outcomes

    outcomes = list(chain(*at_once(*(lambda n=n: work(n) for n in range(THREADS)))))
    made = [outcome for outcome in outcomes if outcome.refusal is None]
    assert len(made) == QUOTA // 20
    assert {outcome.refusal for outcome in outcomes} == {None, Refusal.OVER}
    assert charged(ledger) == QUOTA


def test_grants_of_the_same_objects_have_one_winner_each(database: Database) -> None:
    """Every thread wants the same objects, in another order: one live grant each, which all are shown."""
    ledger = SqlLedger(database)

    def work(thread: int) -> list[GrantOutcome]:
        numbers = [(thread + place) % 8 for place in range(8)]
        return ledger.grant([proposal(ref(number), size=20, node=f"n{thread}") for number in numbers], 10.0)

    outcomes = list(chain(*at_once(*(lambda n=n: work(n) for n in range(THREADS)))))
    winners = [outcome for outcome in outcomes if outcome.refusal is None]
    assert len(winners) == 8
    shown: dict[int, set[bytes]] = {}
    for outcome in outcomes:
        assert outcome.grant is not None
        shown.setdefault(outcome.proposal.ref.number, set()).add(outcome.grant.grant)
    assert all(len(grants) == 1 for grants in shown.values())
    assert charged(ledger) == 160


def test_several_hubs_at_one_channel_keep_the_account(database: Database) -> None:
    """Granting, accepting, settling, evicting at once: afterwards the account is what the objects say."""
    ledger = SqlLedger(database)

    def work(thread: int) -> int:
        for number in range(12):
            of = ref(number)
            (outcome,) = ledger.grant([proposal(of, node=f"n{thread}")], 10.0)
            if outcome.refusal is None and outcome.grant is not None:
                ledger.accept(outcome.grant.grant, f"n{thread}", DIGEST, 20.0, 900.0, 11.0)
                ledger.settle(of, found(), 12.0, GRACE)
            for record in ledger.evict_begin("demo", 100, 13.0, GRACE, 1):
                ledger.evict_end(record.ref, thread % 2 == 0, 13.0)
            ledger.lapse(14.0)
        return thread

    at_once(*(lambda n=n: work(n) for n in range(4)))
    assert charged(ledger) <= QUOTA
    with database.transaction() as connection:
        live = connection.execute(sa.select(t.grants.c.object_id).where(t.grants.c.status == "accepted"))
        assert len(live.all()) == 0


def test_a_lapse_and_an_accept_at_once_agree(database: Database) -> None:
    """Each lapsed grant is returned to one of those who swept, so one hub hands the object on."""
    ledger = SqlLedger(database)
    ledger.grant([proposal(ref(number), size=10, until=20.0) for number in range(50)], 10.0)
    swept: list[list[GrantRecord]] = at_once(*(lambda: ledger.lapse(20.0, 20) for _ in range(4)))
    swept.append(ledger.lapse(20.0))
    names = [grant.grant for part in swept for grant in part]
    assert len(names) == len(set(names)) == 50


def test_a_leased_object_is_not_evicted_under_its_reader(database: Database) -> None:
    """Lending and evicting at once: whatever was lent stays, or was leaving before it was lent."""
    ledger = SqlLedger(database)
    for number in range(8):
        ready(ledger, ref(number))

    def lend(number: int) -> None:
        ledger.lend([ref(number)], ["B"], 50.0, 12.0)

    def evict() -> None:
        ledger.evict_begin("demo", 100, 12.0, GRACE)

    at_once(*(lambda n=n: lend(n) for n in range(8)), *([evict] * 4))
    with database.transaction() as connection:
        o, r = t.objects.c, t.reads.c
        leased = connection.execute(sa.select(o.number, o.status).join(t.reads, r.object_id == o.id)).all()
    assert all(row.status == ObjectStatus.READY.value for row in leased)


_CRASHING = """
import sys
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import Found, GrantStatus, ObjectRef, Proposal

ledger = SqlLedger(Database(sys.argv[1]))
stream, number = b"\\xff" + bytes(31), 0
while True:
    refs = [ObjectRef("demo", b"lock" * 2, stream, number + place) for place in range(4)]
    names = [(number + place).to_bytes(16) for place in range(4)]
    ledger.grant([Proposal(r, n, "A", "s1", 100, 20.0) for r, n in zip(refs, names)], 10.0)
    for place in range(4):
        ledger.accept(names[place], "A", bytes(32), 20.0, 900.0, 11.0)
        ledger.settle(refs[place], Found(100, "e", None), 12.0, 60.0)
        print(number + place, flush=True)
    for record in ledger.evict_begin("demo", 400, 13.0, 60.0):
        ledger.evict_end(record.ref, False, 13.0)
    number += 4
"""


@pytest.mark.parametrize("settled", [1, 6, 19])
def test_a_killed_hub_leaves_a_consistent_ledger(migrated_sqlite: Path, tmp_path: Path, settled: int) -> None:
    """After SIGKILL in the middle the account is right, what was answered is there, and work goes on."""
    path = tmp_path / "hub.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    with subprocess.Popen([sys.executable, "-c", _CRASHING, f"sqlite:///{path}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        last = -1
        while last < settled:
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        printed = [int(line) for line in process.stdout.read().split()]
    last = printed[-1] if printed else last
    database = Database(f"sqlite:///{path}")
    try:
        with database.transaction() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        ledger = SqlLedger(database)
        assert charged(ledger) <= QUOTA
        assert status(ledger, ref(last)) in {ObjectStatus.READY, ObjectStatus.EVICTING, ObjectStatus.ABSENT}
        done = ledger.find_grant(last.to_bytes(16))
        assert done is not None
        assert done.status.value == "done"
        ledger.evict_begin("demo", QUOTA, 14.0, GRACE)
        for record in ledger.stale(2000.0, GRACE):
            ledger.evict_end(record.ref, False, 14.0)
        uploading(ledger, ref(9999), 1000.0)
    finally:
        database.close()


def test_a_locked_database_is_busy(migrated_sqlite: Path, tmp_path: Path) -> None:
    """While another process holds the file, the caller is told to try later."""
    from entrepot_hub.adapters.database import DatabaseSettings

    path = tmp_path / "hub.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    first, second = (Database(f"sqlite:///{path}", DatabaseSettings(busy=0.05)) for _ in range(2))
    try:
        with first.transaction(), pytest.raises(RetryLater) as caught:
            SqlLedger(second).usage("demo")
        assert caught.value.kind == "busy"
        assert SqlLedger(second).usage("demo").charged == 0
    finally:
        first.close()
        second.close()
