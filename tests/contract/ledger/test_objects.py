"""What every ledger promises about what lies in the bucket: settling, evicting, tombstones, upkeep."""

from __future__ import annotations

import pytest
from tests.contract.ledger.conftest import QUOTA
from tests.contract.ledger.exchange import (
    DIGEST,
    GRACE,
    LOCK,
    OTHER,
    STREAM,
    charged,
    found,
    granted,
    order,
    proposal,
    ready,
    ref,
    status,
    uploading,
)

from entrepot_hub.core.ledger import Found, GrantStatus, Ledger, ObjectStatus, Refusal, Usage


def test_nothing_is_known_of_a_new_object(ledger: Ledger) -> None:
    """An object nobody granted is ABSENT, and a look that finds nothing there changes nothing."""
    view = ledger.view(ref())
    assert (view.record.status, view.record.size, view.grant) == (ObjectStatus.ABSENT, 0, None)
    assert ledger.settle(ref(), None, 10.0, GRACE) == view
    assert ledger.settle(ref(), found(), 10.0, GRACE) is None


def test_a_found_object_answers_its_grant(ledger: Ledger) -> None:
    """The object becomes READY with what was found and granted; the grant is DONE."""
    grant = uploading(ledger, ref())
    view = ledger.settle(ref(), found(), 12.0, GRACE)
    assert view is not None
    record = view.record
    assert (record.status, record.size, record.etag, record.digest) == (ObjectStatus.READY, 100, "e1", DIGEST)
    assert (record.uploader, record.used_at, view.grant) == ("A", 12.0, None)
    done = ledger.find_grant(grant.grant)
    assert done is not None
    assert done.status is GrantStatus.DONE
    assert charged(ledger) == 100
    assert ledger.settle(ref(), found(), 99.0, GRACE) == view


def test_a_bucket_that_shows_no_digest_is_matched_by_length(ledger: Ledger) -> None:
    """Without a digest in the HEAD the length decides, and the granted digest is kept."""
    uploading(ledger, ref())
    view = ledger.settle(ref(), found(digest=None), 12.0, GRACE)
    assert view is not None
    assert view.record.digest == DIGEST


@pytest.mark.parametrize(("second", "digest", "credited"), [
    ("B", None, None), ("A", None, "A"), ("B", DIGEST, "B"),
])  # fmt: skip
def test_nobody_is_credited_where_two_nodes_could_have_put_it(
    ledger: Ledger, second: str, digest: bytes | None, credited: str | None
) -> None:
    """Without a digest in the HEAD an object is ascribed to a node only if no other one's URL could have brought it."""
    uploading(ledger, ref(), node="A")
    ledger.lapse(20.0)
    uploading(ledger, ref(), 21.0, node=second)
    view = ledger.settle(ref(), found(digest=digest), 22.0, GRACE)
    assert view is not None
    assert (view.record.status, view.record.uploader) == (ObjectStatus.READY, credited)


@pytest.mark.parametrize("case", ["length", "digest", "expired", "never accepted"])
def test_what_answers_to_no_grant_is_not_taken(ledger: Ledger, case: str) -> None:
    """Wrong bytes at the key are the caller's to delete: None, and nothing changes."""
    if case == "never accepted":
        granted(ledger, ref())
    else:
        uploading(ledger, ref())
    before = ledger.view(ref())
    looked = {"length": found(99), "digest": found(digest=bytes(32))}.get(case, found())
    now = 961.0 if case == "expired" else 12.0
    assert ledger.settle(ref(), looked, now, GRACE) is None
    assert ledger.view(ref()) == before


def test_a_lapsed_upload_that_landed_counts(ledger: Ledger) -> None:
    """What an expired lease uploaded while its URL was good is taken, and its successor cancelled."""
    first = uploading(ledger, ref())
    ledger.lapse(20.0)
    second = uploading(ledger, ref(), 21.0, node="B")
    ledger.end_grant(second.grant, GrantStatus.FAILED, None, 22.0)
    third = granted(ledger, ref(), 23.0, node="C", until=33.0)
    view = ledger.settle(ref(), found(), 24.0, GRACE)
    assert view is not None
    assert (view.record.uploader, view.grant) == ("B", None)
    ends = [grant.status for grant in map(ledger.find_grant, (first.grant, second.grant, third.grant)) if grant]
    assert ends == [GrantStatus.LAPSED, GrantStatus.DONE, GrantStatus.CANCELLED]
    assert charged(ledger) == 100


def test_an_upload_still_under_way_is_waited_for(ledger: Ledger) -> None:
    """Nothing found while a grant lives changes nothing."""
    uploading(ledger, ref())
    before = ledger.view(ref())
    assert ledger.settle(ref(), None, 12.0, GRACE) == before


def test_bytes_are_free_once_nothing_can_land(ledger: Ledger) -> None:
    """A reservation is released when its URL is over, not when its lease is."""
    grant = uploading(ledger, ref())
    ledger.end_grant(grant.grant, GrantStatus.FAILED, None, 12.0)
    assert ledger.settle(ref(), None, 960.0, GRACE) == ledger.view(ref())
    assert charged(ledger) == 100
    view = ledger.settle(ref(), None, 960.1, GRACE)
    assert view is not None
    assert (view.record.status, view.record.size) == (ObjectStatus.ABSENT, 0)
    assert charged(ledger) == 0


def test_a_grant_without_a_url_frees_its_bytes_at_once(ledger: Ledger) -> None:
    """Nothing can land where nothing was ever signed."""
    grant = granted(ledger, ref())
    ledger.end_grant(grant.grant, GrantStatus.LAPSED, None, 20.0)
    assert ledger.settle(ref(), None, 20.0, GRACE) == ledger.view(ref())
    assert status(ledger, ref()) is ObjectStatus.ABSENT
    assert charged(ledger) == 0


def test_a_ready_object_that_is_missing_is_forgotten(ledger: Ledger) -> None:
    """READY and gone: reserved as long as an old URL could put it back, then absent."""
    ready(ledger, ref(0))
    ready(ledger, ref(1), put_until=15.0)
    lost = ledger.settle(ref(0), None, 100.0, GRACE)
    gone = ledger.settle(ref(1), None, 100.0, GRACE)
    assert lost is not None
    assert gone is not None
    assert (lost.record.status, lost.record.size, lost.record.etag) == (ObjectStatus.RESERVED, 100, None)
    assert (gone.record.status, gone.record.size, gone.record.etag) == (ObjectStatus.ABSENT, 0, None)
    assert charged(ledger) == 100
    back = ledger.settle(ref(0), found(etag="e2"), 101.0, GRACE)
    assert back is not None
    assert (back.record.status, back.record.etag) == (ObjectStatus.READY, "e2")
    assert charged(ledger) == 100


def test_what_vanished_is_reserved_as_long_as_anything_that_may_still_land(ledger: Ledger) -> None:
    """Somebody else deletes a short object while the URL of a longer one lives: the longer one is reserved, though it
    does not fit the quota any more, and nothing is granted until it does."""
    quota = ledger.usage("demo").quota
    size = quota - 100
    first = uploading(ledger, ref(), size=size)
    ledger.lapse(20.0)
    second = granted(ledger, ref(), 21.0, node="B", size=size)
    ledger.accept(second.grant, "B", DIGEST, 31.0, 900.0, 22.0, 30)
    assert ledger.settle(ref(), found(30), 23.0, GRACE) is not None
    assert charged(ledger) == 30
    ready(ledger, ref(1), size=quota - 30)
    lost = ledger.settle(ref(), None, 24.0, GRACE)
    assert lost is not None
    assert (lost.record.status, lost.record.size) == (ObjectStatus.RESERVED, first.length)
    assert charged(ledger) == size + quota - 30
    (over,) = ledger.grant([proposal(ref(2), size=1)], 24.0)
    assert over.refusal is Refusal.OVER
    (again,) = ledger.grant([proposal(ref(), size=size)], 24.0)
    assert again.refusal is None  # it is reserved already
    assert again.grant is not None
    ledger.end_grant(again.grant.grant, GrantStatus.FAILED, None, 25.0)
    late = ledger.settle(ref(), found(size), 25.0, GRACE)
    assert late is not None
    assert (late.record.status, charged(ledger)) == (ObjectStatus.READY, size + quota - 30)
    assert ledger.settle(ref(), None, 960.1, GRACE) is not None
    assert charged(ledger) == quota - 30


def test_a_smaller_successor_gives_back_nothing_that_may_land(ledger: Ledger) -> None:
    """A grant of fewer bytes leaves what its predecessor's URL can still put there reserved."""
    uploading(ledger, ref())
    ledger.lapse(20.0)
    granted(ledger, ref(), 21.0, node="B", size=60)
    assert (ledger.view(ref()).record.size, charged(ledger)) == (100, 100)


def test_a_ready_object_that_changed_is_matched_anew(ledger: Ledger) -> None:
    """Another etag: taken if it answers a grant, else the caller deletes it and the record stays meanwhile."""
    ready(ledger, ref())
    view = ledger.settle(ref(), found(etag="e2"), 12.0, GRACE)
    assert view is not None
    assert view.record.etag == "e2"
    assert ledger.settle(ref(), found(99, etag="e3"), 13.0, GRACE) is None
    assert ledger.view(ref()) == view


def test_what_was_released_is_taken_only_where_it_fits(ledger: Ledger) -> None:
    """The quota holds even when something lands after its bytes were given to another."""
    ready(ledger, ref(0))
    assert [record.ref for record in ledger.evict_begin("demo", 1, 11.0, GRACE)] == [ref(0)]
    ledger.evict_end(ref(0), False, 11.0)
    big = granted(ledger, ref(1), 12.0, size=QUOTA - 50)
    assert ledger.settle(ref(0), found(), 13.0, GRACE) is None
    assert charged(ledger) == QUOTA - 50
    ledger.end_grant(big.grant, GrantStatus.FAILED, None, 13.0)
    ledger.settle(ref(1), None, 13.0, GRACE)
    view = ledger.settle(ref(0), found(), 13.0, GRACE)
    assert view is not None
    assert view.record.status is ObjectStatus.READY
    assert charged(ledger) == 100


def test_condemning_a_ready_object_makes_it_leave(ledger: Ledger) -> None:
    """Only the object with that etag leaves; twice is as good as once; bytes are free when it is gone."""
    ready(ledger, ref())
    assert ledger.condemn(ref(), "another", 11.0) is None
    record = ledger.condemn(ref(), "e1", 11.0)
    assert record is not None
    assert record.status is ObjectStatus.EVICTING
    assert ledger.condemn(ref(), "e1", 11.0) is None
    assert charged(ledger) == 100
    ledger.evict_end(ref(), False, 12.0)
    ledger.evict_end(ref(), True, 12.0)
    assert status(ledger, ref()) is ObjectStatus.ABSENT
    assert charged(ledger) == 0


def test_what_was_condemned_is_not_taken_again_by_its_old_url(ledger: Ledger) -> None:
    """A PUT URL outlives its object: the same bytes put there again answer to no grant, a successor's do."""
    first = uploading(ledger, ref())
    assert ledger.settle(ref(), found(), 12.0, GRACE) is not None
    assert ledger.condemn(ref(), "e1", 13.0) is not None
    ledger.evict_end(ref(), True, 14.0)
    ended = ledger.find_grant(first.grant)
    assert ended is not None
    assert (ended.status, ended.reason) == (GrantStatus.FAILED, "bad-object")
    ledger.clear_tombstone(ref(), 15.0)
    assert ledger.settle(ref(), found(etag="e2"), 16.0, GRACE) is None
    uploading(ledger, ref(), 17.0, node="B")
    view = ledger.settle(ref(), found(etag="e3"), 18.0, GRACE)
    assert view is not None
    assert (view.record.status, view.record.uploader) == (ObjectStatus.READY, "B")


def test_a_look_does_not_stop_an_eviction(ledger: Ledger) -> None:
    """An object that is leaving stays so whatever is found at its key."""
    ready(ledger, ref())
    ledger.condemn(ref(), None, 11.0)
    before = ledger.view(ref())
    for looked in (found(), found(etag="e2"), None):
        assert ledger.settle(ref(), looked, 12.0, GRACE) == before


def test_a_tombstone_holds_the_key(ledger: Ledger) -> None:
    """A tombstone charges nothing, counts as nothing there, survives a grant, and goes when it was deleted."""
    ready(ledger, ref())
    ledger.condemn(ref(), None, 11.0)
    ledger.evict_end(ref(), True, 11.0)
    view = ledger.view(ref())
    assert (view.record.status, view.record.tombstone, view.record.put_until) == (ObjectStatus.TOMBSTONE, True, 900.0)
    assert charged(ledger) == 0
    assert ledger.settle(ref(), found(0, "t", None), 12.0, GRACE) == view
    grant = uploading(ledger, ref(), 13.0)
    assert ledger.view(ref()).record.tombstone
    assert ledger.settle(ref(), found(0, "t", None), 13.0, GRACE) == ledger.view(ref())
    ledger.clear_tombstone(ref(), 14.0)
    record = ledger.view(ref()).record
    assert (record.status, record.tombstone) == (ObjectStatus.RESERVED, False)
    settled = ledger.settle(ref(), found(), 15.0, GRACE)
    assert settled is not None
    assert settled.record.uploader == grant.node


def test_a_tombstone_outlives_a_failed_successor(ledger: Ledger) -> None:
    """A reservation over a tombstone that comes to nothing is a tombstone again, so that it is cleared up."""
    ready(ledger, ref())
    ledger.condemn(ref(), None, 11.0)
    ledger.evict_end(ref(), True, 11.0)
    grant = granted(ledger, ref(), 12.0)
    ledger.end_grant(grant.grant, GrantStatus.LAPSED, None, 20.0)
    view = ledger.settle(ref(), None, 1000.0, GRACE)
    assert view is not None
    assert view.record.status is ObjectStatus.TOMBSTONE
    ledger.clear_tombstone(ref(), 1001.0)
    ledger.clear_tombstone(ref(), 1001.0)
    assert status(ledger, ref()) is ObjectStatus.ABSENT


def test_a_successor_that_never_accepted_gives_its_bytes_back(ledger: Ledger) -> None:
    """While a tombstone holds the key nothing can land there: a reservation over it that nobody serves is looked after
    at once, and the look that sees the tombstone releases it. One that is served stays, and so does one whose tombstone
    is gone."""
    uploading(ledger, ref())
    ledger.settle(ref(), found(), 11.0, GRACE)
    ledger.condemn(ref(), None, 11.0)
    ledger.evict_end(ref(), True, 11.0)
    grant = granted(ledger, ref(), 12.0)
    tombstone = Found(0, "e0", None)
    assert ledger.stale(13.0, GRACE) == []
    ledger.settle(ref(), tombstone, 13.0, GRACE)
    assert status(ledger, ref()) is ObjectStatus.RESERVED
    ledger.end_grant(grant.grant, GrantStatus.LAPSED, None, 22.0)
    assert [record.ref for record in ledger.stale(23.0, GRACE)] == [ref()]
    ledger.settle(ref(), None, 23.0, GRACE)
    assert (status(ledger, ref()), charged(ledger)) == (ObjectStatus.RESERVED, 100)
    ledger.settle(ref(), tombstone, 24.0, GRACE)
    assert (status(ledger, ref()), charged(ledger)) == (ObjectStatus.TOMBSTONE, 0)
    assert ledger.stale(25.0, GRACE) == []


def test_a_tombstone_that_may_be_on_its_way_out_holds_nothing(ledger: Ledger) -> None:
    """Once a successor has accepted, its tombstone is being cleared away: that it is still seen releases nothing until
    that successor's URL is over."""
    uploading(ledger, ref())
    ledger.settle(ref(), found(), 11.0, GRACE)
    ledger.condemn(ref(), None, 11.0)
    ledger.evict_end(ref(), True, 11.0)
    grant = granted(ledger, ref(), 12.0)
    ledger.accept(grant.grant, "A", DIGEST, 22.0, 300.0, 13.0)
    ledger.end_grant(grant.grant, GrantStatus.LAPSED, None, 23.0)
    tombstone = Found(0, "e0", None)
    ledger.settle(ref(), tombstone, 24.0, GRACE)
    assert (status(ledger, ref()), charged(ledger)) == (ObjectStatus.RESERVED, 100)
    ledger.settle(ref(), tombstone, 901.0 + GRACE, GRACE)
    assert (status(ledger, ref()), charged(ledger)) == (ObjectStatus.TOMBSTONE, 0)


def test_stale_lists_what_wants_looking_after(ledger: Ledger) -> None:
    """Dead reservations, leaving objects and old tombstones; nothing that is alive or could still land."""
    ended = [uploading(ledger, ref(0)), granted(ledger, ref(1))]
    for grant in ended:
        ledger.end_grant(grant.grant, GrantStatus.FAILED, None, 11.0)
    granted(ledger, ref(2))
    ready(ledger, ref(3))
    ready(ledger, ref(4))
    ready(ledger, ref(5))
    for number in (4, 5):
        ledger.condemn(ref(number), None, 12.0)
    ledger.evict_end(ref(5), True, 12.0)
    assert [record.ref.number for record in ledger.stale(13.0, GRACE)] == [1, 4]
    assert [record.ref.number for record in ledger.stale(960.0, GRACE)] == [1, 4]
    assert [record.ref.number for record in ledger.stale(960.1, GRACE)] == [0, 1, 4, 5]
    later = ledger.stale(1000.0, GRACE)
    assert [record.ref.number for record in later] == [0, 1, 4, 5]
    assert later == [ledger.view(record.ref).record for record in later]
    assert ledger.stale(1000.0, GRACE, 2) == later[:2]


def test_a_stream_is_summed_up(ledger: Ledger) -> None:
    """Count and bytes of what is READY of one stream under one lock."""
    ready(ledger, ref(0))
    ready(ledger, ref(1), size=50)
    ready(ledger, ref(0, OTHER))
    granted(ledger, ref(2))
    assert ledger.summary("demo", STREAM, LOCK) == (2, 150)
    assert ledger.summary("demo", STREAM, b"otherone") == (0, 0)


def test_usage_adds_up(ledger: Ledger) -> None:
    """Stored is ready or leaving, reserved is granted; together they are charged."""
    ready(ledger, ref(0))
    ready(ledger, ref(1), size=50)
    ledger.condemn(ref(1), None, 11.0)
    granted(ledger, ref(2), size=30)
    assert ledger.usage("demo") == Usage(QUOTA, 180, 150, 30, 2)
    assert ledger.usage("other") == Usage(QUOTA, 0, 0, 0, 0)


def test_pruning_forgets_only_what_is_over(ledger: Ledger) -> None:
    """Ended grants, absent objects, past wants and leases go; what lives or could land stays."""
    over = granted(ledger, ref(0))
    ledger.end_grant(over.grant, GrantStatus.LAPSED, None, 20.0)
    ledger.settle(ref(0), None, 20.0, GRACE)
    landing = uploading(ledger, ref(1))
    ledger.end_grant(landing.grant, GrantStatus.FAILED, None, 20.0)
    live = granted(ledger, ref(2))
    ready(ledger, ref(3))
    ledger.want(order(until=20.0), [3], 30.0, 11.0)
    ledger.want(order(node="C", until=2000.0), [], 30.0, 11.0)
    ledger.strike("demo", "A", "corrupt", 10.0)
    views = [ledger.view(ref(number)) for number in (1, 2, 3)]
    assert ledger.prune(100.0) == 4  # a want, a lease, a grant, an object
    assert ledger.prune(100.0) == 0
    assert ledger.find_grant(over.grant) is None
    assert ledger.find_grant(landing.grant) is not None
    assert ledger.find_grant(live.grant) == live
    assert [ledger.view(ref(number)) for number in (1, 2, 3)] == views
    assert [want.order.node for want in ledger.wants("demo", STREAM, 12.0)] == ["C"]
    assert ledger.grant([proposal(ref(0))], 101.0)[0].refusal is None
    assert ledger.prune(10_000.0) >= 2
