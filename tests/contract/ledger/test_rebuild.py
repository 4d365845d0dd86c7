"""What a rebuilding needs of the ledger: bytes that are held back for uploads that nobody remembers."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
from tests.contract.ledger.conftest import QUOTA

from entrepot.core.identifiers import Opening
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.adapters.sql_rebuild import Held, Rebuilding
from entrepot_hub.core.ledger import Found, ObjectRef, ObjectStatus, Proposal, Refusal

LOCK = b"\x01" * 8
OPENING = Opening(1 << 20, bytes(32))
NOW, UNTIL, GRACE = 1000.0, 2000.0, 300.0
STATE = Rebuilding(until=UNTIL, strict=False)


@pytest.fixture
def ledger(database: Database) -> SqlLedger:
    """A ledger whose channels are about to be rebuilt."""
    found = SqlLedger(database)
    found.begin_rebuild(["demo", "other"], "export", STATE, NOW)
    return found


def ref(name: str) -> ObjectRef:
    return ObjectRef("demo", LOCK, b"\xff" + sha256(name.encode()).digest()[:31], 0)


def adopt(ledger: SqlLedger, name: str, length: int, *, beyond: bool = True) -> bool:
    """Whether an object of this length was taken in."""
    return ledger.adopt(ref(name), Found(length, "e", None), OPENING, NOW, beyond=beyond) is not None


def charged(ledger: SqlLedger) -> int:
    return ledger.usage("demo").charged


def test_before_the_listing_was_read_nothing_is_free(ledger: SqlLedger) -> None:
    """All of the quota is held back, so that nothing is granted; what is taken in comes out of that, and what is more
    than the quota is taken in nevertheless."""
    assert charged(ledger) == QUOTA
    (refused,) = ledger.grant([Proposal(ref("x"), b"g" * 16, "A", "s" * 16, 1, NOW + 10)], NOW)
    assert refused.refusal is Refusal.OVER
    assert adopt(ledger, "a", 400)
    assert charged(ledger) == QUOTA
    assert adopt(ledger, "b", 700)
    assert charged(ledger) == 1100
    assert ledger.held("demo") == Held(0, UNTIL)
    assert ledger.held("other") == Held(QUOTA, UNTIL)


@pytest.mark.parametrize("strict", [False, True])
def test_afterwards_a_part_of_what_is_free_is_held_back(ledger: SqlLedger, strict: bool) -> None:
    """Half of it, or all where the admin wants the quota kept strictly, until no URL of before can land any more."""
    ledger.begin_rebuild(["demo"], "export", Rebuilding(until=UNTIL, strict=strict), NOW)
    adopt(ledger, "a", 400)
    assert not ledger.note_rebuild("demo", "some/key", {"adopted": 1}, NOW).done
    assert charged(ledger) == QUOTA
    state = ledger.note_rebuild("demo", None, {"adopted": 1}, NOW)
    assert state.done
    assert ledger.rebuilding("demo") == state
    held = 600 if strict else 300
    assert (charged(ledger), ledger.held("demo")) == (400 + held, Held(held, UNTIL))
    assert ledger.stale(UNTIL + GRACE, GRACE) == []
    (left,) = ledger.stale(UNTIL + GRACE + 1, GRACE, channel="demo")
    ledger.settle(left.ref, None, UNTIL + GRACE + 1, GRACE)
    assert (charged(ledger), ledger.held("demo")) == (400, None)


def test_what_lands_later_comes_out_of_what_is_held_back(ledger: SqlLedger) -> None:
    """An upload of before that nobody remembers is taken in even where the channel is full otherwise, as far as bytes
    are held back for it; beyond them the quota holds."""
    adopt(ledger, "a", 400)
    ledger.note_rebuild("demo", None, {}, NOW)
    ledger.grant([Proposal(ref("x"), b"g" * 16, "A", "s" * 16, 300, NOW + 10)], NOW)
    assert charged(ledger) == QUOTA
    assert adopt(ledger, "late", 200, beyond=False)
    assert (charged(ledger), ledger.held("demo")) == (QUOTA, Held(100, UNTIL))
    assert not adopt(ledger, "later", 200, beyond=False)
    assert (charged(ledger), ledger.held("demo")) == (QUOTA, Held(100, UNTIL))


def test_what_was_taken_in_may_land_again(ledger: SqlLedger) -> None:
    """As long as a URL of before may live, the key of an object that leaves is held by a tombstone, as that of any
    other; a tombstone that was found is one."""
    adopt(ledger, "a", 400)
    assert ledger.view(ref("a")).record.put_until == UNTIL
    ledger.entomb(ref("t"), UNTIL)
    ledger.entomb(ref("a"), UNTIL)  # of which more is known than that
    assert ledger.view(ref("a")).record.status is ObjectStatus.READY
    record = ledger.view(ref("t")).record
    assert (record.status, record.tombstone, record.put_until) == (ObjectStatus.TOMBSTONE, True, UNTIL)
    (stale,) = ledger.stale(UNTIL + GRACE + 1, GRACE, channel="demo")
    assert stale == replace(record)


def test_a_rebuilding_is_done_once(ledger: SqlLedger) -> None:
    """Another hub that is still at an earlier page does not open it again; the export stays known."""
    ledger.note_rebuild("demo", None, {"adopted": 3}, NOW)
    again = ledger.note_rebuild("demo", "some/key", {"adopted": 1}, NOW)
    assert again.done
    assert again.counts == {"adopted": 3}
    assert ledger.rebuilt_from() == ("export", False)
    ledger.use_rebuilt()
    assert ledger.rebuilt_from() == ("export", True)
    assert ledger.rebuilding("other") == STATE


def test_late_is_not_held_back(ledger: SqlLedger) -> None:
    """Where the listing ends after the last URL of before, all that is free is free."""
    adopt(ledger, "a", 400)
    ledger.note_rebuild("demo", None, {}, UNTIL + 1)
    assert charged(ledger) == 400
