"""What every ledger promises about wants, openings, holders, read leases and strikes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.ledger.conftest import World
from tests.contract.ledger.exchange import (
    FEED,
    GRACE,
    OPENING,
    OTHER,
    STREAM,
    found,
    granted,
    order,
    proposal,
    ready,
    ref,
    uploading,
)

from entrepot.core.errors import NotFound
from entrepot.core.identifiers import Opening
from entrepot_hub.core.ledger import Ledger, ObjectStatus


def test_a_want_is_answered_with_each_object_in_the_asked_order(ledger: Ledger) -> None:
    """Absent, uploading and ready objects come back as asked, with the ranges of the whole stream."""
    ledger.learn("demo", STREAM, OPENING)
    for number in (0, 1, 3):
        ready(ledger, ref(number))
    grant = uploading(ledger, ref(5))
    offered = granted(ledger, ref(6))
    view = ledger.want(order(), [5, 0, 2, 0, 6], 50.0, 12.0)
    assert view.opening == OPENING
    assert [v.record.ref.number for v in view.objects] == [5, 0, 2, 0, 6]
    assert [v.record.status.value for v in view.objects] == ["reserved", "ready", "absent", "ready", "reserved"]
    assert [v.grant for v in view.objects] == [grant, None, None, None, offered]
    assert view.ready == ((0, 1), (3, 3))
    assert view.uploading == ((5, 6),)


def test_a_want_says_nothing_of_other_streams_and_locks(ledger: Ledger) -> None:
    """Objects of another stream or another schema lock are not in the answer."""
    ready(ledger, ref(0, OTHER))
    ready(ledger, ref(0, lock=b"otherone"))
    view = ledger.want(order(), [0], 50.0, 12.0)
    assert view.objects[0].record.status is ObjectStatus.ABSENT
    assert view.opening is None
    assert (view.ready, view.uploading) == ((), ())


def test_ready_objects_of_a_want_are_marked_used(ledger: Ledger) -> None:
    """Asking for a ready object says that it is in use."""
    ready(ledger, ref(0))
    (view,) = ledger.want(order(), [0], 50.0, 12.0).objects
    assert view.record.used_at == 12.0
    assert ledger.view(ref(0)).record == view.record


def test_an_answer_holds_at_most_64_ranges(ledger: Ledger) -> None:
    """A stream full of holes does not make an answer of any size."""
    for number in range(0, 140, 2):
        granted(ledger, ref(number), size=1)
    view = ledger.want(order(), [], 50.0, 12.0)
    assert view.uploading == tuple((number, number) for number in range(0, 128, 2))


def test_repeating_a_want_renews_it(ledger: Ledger) -> None:
    """A repeated want keeps when it was made and takes the new wish, once only."""
    ledger.want(order(until=20.0), [], 50.0, 10.0)
    ledger.want(order(until=30.0, ranges=((3, 4), (0, 1)), keep=True), [], 50.0, 15.0)
    (want,) = ledger.wants("demo", STREAM, 16.0)
    assert want.order == order(until=30.0, ranges=((3, 4), (0, 1)), keep=True)
    assert (want.created_at, want.heard_at) == (10.0, 15.0)


def test_wants_are_listed_oldest_first_until_they_end(ledger: Ledger) -> None:
    """Only wants of this stream whose end is still to come are listed."""
    ledger.want(order(node="B", until=20.0), [], 50.0, 11.0)
    ledger.want(order(node="A", until=30.0), [], 50.0, 10.0)
    ledger.want(order(node="C", stream=OTHER), [], 50.0, 10.0)
    ledger.want(order(node="C", channel="other"), [], 50.0, 10.0)
    assert [want.order.node for want in ledger.wants("demo", STREAM, 12.0)] == ["A", "B"]
    assert [want.order.node for want in ledger.wants("demo", STREAM, 20.0)] == ["A"]


def test_unwant_forgets_the_want_once(ledger: Ledger) -> None:
    """Forgetting says whether there was anything to forget."""
    ledger.want(order(), [], 50.0, 10.0)
    assert ledger.unwant("demo", STREAM, "B")
    assert not ledger.unwant("demo", STREAM, "B")
    assert ledger.wants("demo", STREAM, 11.0) == []


def test_unwant_ends_the_read_leases(ledger: Ledger) -> None:
    """What nobody reads any more may be evicted."""
    ready(ledger, ref(0))
    ledger.want(order(), [0], 50.0, 12.0)
    assert ledger.evict_begin("demo", 1, 13.0, GRACE) == []
    ledger.unwant("demo", STREAM, "B")
    assert [record.ref for record in ledger.evict_begin("demo", 1, 13.0, GRACE)] == [ref(0)]


def test_a_want_names_its_latest_transfer(ledger: Ledger) -> None:
    """A second get of the same stream by the same node is another transfer of the one want."""
    for transfer in (b"transfer", b"the next"):
        ledger.want(replace(order(), transfer=transfer), [0], 50.0, 10.0)
        assert [want.order.transfer for _, want in ledger.open_wants(10.0, "demo", 0, 9)] == [transfer]


def test_open_wants_come_in_pages(ledger: Ledger) -> None:
    """Following the cursor visits each open want once, in all channels or in one."""
    for number in range(5):
        channel = "demo" if number % 2 == 0 else "other"
        ledger.want(order(node=f"n{number}", channel=channel, until=30.0), [], 50.0, 10.0)
    ledger.want(order(node="over", until=5.0), [], 50.0, 4.0)
    seen, after = [], 0
    while page := ledger.open_wants(10.0, None, after, 2):
        assert len(page) <= 2
        assert all(cursor > after for cursor, _ in page)
        after = page[-1][0]
        seen += [want.order.node for _, want in page]
    assert seen == ["n0", "n1", "n2", "n3", "n4"]
    assert [want.order.node for _, want in ledger.open_wants(10.0, "other", 0, 9)] == ["n1", "n3"]


def test_an_opening_is_learnt_once_per_channel(ledger: Ledger) -> None:
    """An opening is known in the channel where it was learnt, however often."""
    assert ledger.opening("demo", STREAM) is None
    ledger.learn("demo", STREAM, OPENING)
    ledger.learn("demo", STREAM, OPENING)
    assert ledger.opening("demo", STREAM) == OPENING
    assert ledger.opening("other", STREAM) is None


def test_the_longest_stream_has_an_opening(ledger: Ledger) -> None:
    """A length of 2^63 − 1 bytes survives."""
    longest = Opening(2**63 - 1, bytes(32))
    ledger.learn("demo", STREAM, longest)
    assert ledger.opening("demo", STREAM) == longest


def test_holders_come_latest_first(ledger: Ledger) -> None:
    """Who said last that it holds the stream comes first, with its name, up to the limit."""
    for at, node in ((1.0, "A"), (3.0, "B"), (2.0, "C"), (4.0, "A")):
        ledger.hold("demo", [(STREAM, OPENING), (OTHER, OPENING)], node, at)
    assert [(h.node, h.name, h.seen_at) for h in ledger.holders("demo", STREAM)] == [
        ("A", "name of A", 4.0),
        ("B", "name of B", 3.0),
        ("C", "name of C", 2.0),
    ]
    assert [h.node for h in ledger.holders("demo", OTHER, 2)] == ["A", "B"]
    assert ledger.opening("demo", OTHER) == OPENING
    assert ledger.holders("other", STREAM) == []


def test_holding_nothing_changes_nothing(ledger: Ledger) -> None:
    """An empty list of streams is fine."""
    ledger.hold("demo", [], "A", 1.0)
    assert ledger.holders("demo", STREAM) == []


def test_who_no_longer_holds_a_stream_is_left_out(ledger: Ledger) -> None:
    """Unhold takes one node from one stream, and may be repeated."""
    for node in "AB":
        ledger.hold("demo", [(STREAM, OPENING)], node, 1.0)
    ledger.unhold("demo", STREAM, "A")
    ledger.unhold("demo", STREAM, "A")
    assert [h.node for h in ledger.holders("demo", STREAM)] == ["B"]


def test_holders_are_members_that_may_provide(world: World) -> None:
    """A revoked member, a stranger, and one without the right to provide are no holders."""
    ledger = world.ledger
    for node in ("A", "B", "C", "stranger"):
        ledger.hold("demo", [(STREAM, OPENING), (FEED, OPENING)], node, 1.0)
    world.revoke("demo", "A")
    world.set_rights("demo", "B", "request,read,keeper")
    assert [h.node for h in ledger.holders("demo", STREAM)] == ["C"]
    assert ledger.holders("demo", FEED) == []
    world.set_rights("demo", "A", "provide:feeds")
    world.set_rights("demo", "B", "owner")
    assert [h.node for h in ledger.holders("demo", STREAM)] == ["B", "C"]
    assert [h.node for h in ledger.holders("demo", FEED)] == ["A", "B"]


def test_a_read_lease_keeps_an_object(ledger: Ledger) -> None:
    """An object that was lent stays until the lease is over; a shorter one does not cut it."""
    ready(ledger, ref(0))
    ledger.lend([ref(0), ref(1)], ["B", "C"], 50.0, 12.0)
    ledger.lend([ref(0)], ["B"], 20.0, 12.0)
    assert ledger.evict_begin("demo", 1, 49.0, GRACE) == []
    assert len(ledger.evict_begin("demo", 1, 50.0, GRACE)) == 1


def test_got_ends_the_read_lease_of_that_node(ledger: Ledger) -> None:
    """An object is free to go when everybody who was lent it has got it."""
    ready(ledger, ref(0))
    ledger.lend([ref(0)], ["B", "C"], 50.0, 12.0)
    ledger.got("demo", STREAM, "B", [0, 5], 13.0)
    ledger.got("demo", STREAM, "B", [0], 13.0)
    assert ledger.evict_begin("demo", 1, 14.0, GRACE) == []
    ledger.got("demo", STREAM, "C", [0], 14.0)
    assert len(ledger.evict_begin("demo", 1, 14.0, GRACE)) == 1


def test_only_ready_objects_are_lent(ledger: Ledger) -> None:
    """A lease on what is not there yet does not outlive its arrival."""
    uploading(ledger, ref(0))
    ledger.lend([ref(0)], ["B"], 50.0, 12.0)
    ledger.settle(ref(0), found(), 13.0, GRACE)
    assert len(ledger.evict_begin("demo", 1, 14.0, GRACE)) == 1


def test_strikes_count_for_an_hour(ledger: Ledger) -> None:
    """The answer is how many strikes of this node here are younger than an hour."""
    assert ledger.strike("demo", "A", "corrupt-object", 100.0) == 1
    assert ledger.strike("demo", "A", "corrupt-object", 200.0) == 2
    assert ledger.strike("demo", "B", "corrupt-object", 200.0) == 1
    assert ledger.strike("other", "A", "corrupt-object", 200.0) == 1
    assert ledger.strike("demo", "A", "corrupt-object", 3700.0) == 2


def test_an_unknown_channel_is_an_error_everywhere(ledger: Ledger) -> None:
    """Every method that names a channel says so when there is none."""
    gone = ref(channel="nowhere")
    calls = [
        lambda: ledger.want(order(channel="nowhere"), [0], 1.0, 1.0),
        lambda: ledger.unwant("nowhere", STREAM, "A"),
        lambda: ledger.wants("nowhere", STREAM, 1.0),
        lambda: ledger.open_wants(1.0, "nowhere", 0, 1),
        lambda: ledger.learn("nowhere", STREAM, OPENING),
        lambda: ledger.opening("nowhere", STREAM),
        lambda: ledger.hold("nowhere", [(STREAM, OPENING)], "A", 1.0),
        lambda: ledger.unhold("nowhere", STREAM, "A"),
        lambda: ledger.holders("nowhere", STREAM),
        lambda: ledger.grant([proposal(ref()), proposal(gone)], 1.0),
        lambda: ledger.view(gone),
        lambda: ledger.settle(gone, None, 1.0, GRACE),
        lambda: ledger.clear_tombstone(gone, 1.0),
        lambda: ledger.evict_begin("nowhere", 1, 1.0, GRACE),
        lambda: ledger.condemn(gone, None, 1.0),
        lambda: ledger.evict_end(gone, False, 1.0),
        lambda: ledger.got("nowhere", STREAM, "A", [0], 1.0),
        lambda: ledger.lend([gone], ["A"], 1.0, 1.0),
        lambda: ledger.summary("nowhere", STREAM, b"lock" * 2),
        lambda: ledger.usage("nowhere"),
        lambda: ledger.strike("nowhere", "A", "corrupt", 1.0),
    ]
    for call in calls:
        with pytest.raises(NotFound) as caught:
            call()
        assert caught.value.kind == "no-such-channel"
    assert ledger.usage("demo").charged == 0
