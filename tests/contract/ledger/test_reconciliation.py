"""What a comparison of bucket and ledger needs of a ledger."""

from __future__ import annotations

from hashlib import sha256

import pytest
from tests.contract.ledger.conftest import QUOTA, World

from entrepot.core.errors import NotFound
from entrepot.core.identifiers import Opening
from entrepot_hub.core.ledger import Found, Ledger, ObjectRef, ObjectStatus, Proposal

LOCK = b"\x01" * 8
OPENING = Opening(1 << 20, bytes(32))


def ref(name: str, number: int = 0, channel: str = "demo") -> ObjectRef:
    return ObjectRef(channel, LOCK, b"\xff" + sha256(name.encode()).digest()[:31], number)


def found(length: int = 400, etag: str = "e1") -> Found:
    return Found(length, etag, None)


def test_what_nobody_knew_is_taken_in(ledger: Ledger) -> None:
    """An adopted object is ready, charged and has no uploader; its stream's opening is known."""
    at = ref("a", 3)
    view = ledger.adopt(at, found(), OPENING, 10.0)
    assert view is not None
    assert view == ledger.view(at)
    record = view.record
    assert (record.status, record.size, record.etag, record.uploader) == (ObjectStatus.READY, 400, "e1", None)
    usage = ledger.usage("demo")
    assert (usage.charged, usage.stored, usage.objects) == (400, 400, 1)
    assert ledger.opening("demo", at.stream) == OPENING
    assert ledger.summary("demo", at.stream, LOCK) == (1, 400)


def test_only_where_nothing_is_known(ledger: Ledger) -> None:
    """An object that is ready, granted or leaving is not taken in again, and nothing changes."""
    at = ref("a")
    ledger.adopt(at, found(), OPENING, 10.0)
    assert ledger.adopt(at, found(etag="e2"), OPENING, 11.0) is None
    ledger.condemn(at, None, 12.0)
    assert ledger.adopt(at, found(etag="e2"), OPENING, 13.0) is None
    granted = ref("b")
    ledger.grant([Proposal(granted, b"g" * 16, "A", "s" * 16, 500, 20.0)], 10.0)
    assert ledger.adopt(granted, found(500), OPENING, 11.0) is None
    assert ledger.usage("demo").charged == 900


def test_never_over_the_quota(ledger: Ledger) -> None:
    """What does not fit is not taken in; what fits to the byte is."""
    assert ledger.adopt(ref("a"), found(QUOTA + 1), OPENING, 10.0) is None
    assert ledger.adopt(ref("a"), found(0), OPENING, 10.0) is None
    assert ledger.adopt(ref("a"), found(QUOTA), OPENING, 10.0) is not None
    assert ledger.adopt(ref("b"), found(1), OPENING, 10.0) is None
    assert ledger.usage("demo").charged == QUOTA


def test_an_adopted_object_is_evicted_like_any_other(ledger: Ledger) -> None:
    """It has its place among the ready ones."""
    ledger.adopt(ref("a"), found(), OPENING, 10.0)
    assert [record.ref for record in ledger.evict_begin("demo", 1, 11.0, 10.0)] == [ref("a")]
    ledger.evict_end(ref("a"), False, 12.0)
    assert ledger.usage("demo").charged == 0
    assert ledger.adopt(ref("a"), found(), OPENING, 13.0) is not None


def test_the_chart_is_in_the_order_of_keys(ledger: Ledger) -> None:
    """Objects come by stream and number between two places, page by page, absent and foreign ones left out."""
    refs = sorted((ref(name, number) for name in "abc" for number in (0, 7, 300)), key=lambda r: (r.stream, r.number))
    for at in reversed(refs):
        ledger.adopt(at, found(10), OPENING, 10.0)
    ledger.adopt(ref("a", channel="other"), found(10), OPENING, 10.0)
    ledger.adopt(ObjectRef("demo", b"\x02" * 8, refs[0].stream, 1), found(10), OPENING, 10.0)
    ledger.condemn(refs[4], None, 11.0)
    ledger.evict_end(refs[4], False, 11.0)
    left = [at for at in refs if at != refs[4]]
    assert [view.record.ref for view in ledger.charted("demo", LOCK, None, None)] == left
    place = [(at.stream, at.number) for at in refs]
    assert [v.record.ref for v in ledger.charted("demo", LOCK, place[1], place[6])] == [*refs[2:4], *refs[5:7]]
    assert [v.record.ref for v in ledger.charted("demo", LOCK, place[4], None, 2)] == refs[5:7]
    assert ledger.charted("demo", LOCK, None, (b"", 0)) == []
    assert ledger.charted("demo", LOCK, place[8], None) == []


def test_the_chart_shows_live_grants_and_tombstones(ledger: Ledger) -> None:
    """What is under way is told by its grant, and a key that is held by a tombstone is there."""
    at = ref("a")
    ledger.grant([Proposal(at, b"g" * 16, "A", "s" * 16, 500, 20.0)], 10.0)
    (view,) = ledger.charted("demo", LOCK, None, None)
    assert view == ledger.view(at)
    assert view.grant is not None
    other = ref("b")
    ledger.adopt(other, found(), OPENING, 10.0)
    ledger.condemn(other, None, 11.0)
    ledger.evict_end(other, True, 11.0)
    statuses = {view.record.ref: view.record.status for view in ledger.charted("demo", LOCK, None, None)}
    assert statuses == {at: ObjectStatus.RESERVED, other: ObjectStatus.TOMBSTONE}


def test_an_unknown_channel(world: World) -> None:
    """Both say that there is none."""
    with pytest.raises(NotFound):
        world.ledger.charted("nothing", LOCK, None, None)
    with pytest.raises(NotFound):
        world.ledger.adopt(ref("a", channel="nothing"), found(), OPENING, 1.0)
