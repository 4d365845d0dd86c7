"""What every ledger promises about grants: one live one per object, under the quota, fenced by its id."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.ledger.conftest import QUOTA, World
from tests.contract.ledger.exchange import (
    DIGEST,
    GRACE,
    charged,
    found,
    grant_id,
    granted,
    proposal,
    ready,
    ref,
    status,
    uploading,
)

from entrepot.core.errors import Conflict, Internal
from entrepot_hub.core.ledger import GrantStatus, Ledger, ObjectStatus, Refusal


def test_a_grant_reserves_its_bytes(ledger: Ledger) -> None:
    """Granting makes the object RESERVED at the granted size and charges it."""
    asked = proposal(ref())
    (outcome,) = ledger.grant([asked], 10.0)
    assert outcome.proposal == asked
    assert (outcome.refusal, outcome.short) == (None, 0)
    grant = outcome.grant
    assert grant is not None
    assert (grant.grant, grant.ref, grant.node, grant.session) == (asked.grant, ref(), "A", "s1")
    assert (grant.status, grant.length, grant.lease_until, grant.granted_at) == (GrantStatus.OFFERED, 100, 20.0, 10.0)
    view = ledger.view(ref())
    assert (view.record.status, view.record.size, view.grant) == (ObjectStatus.RESERVED, 100, grant)
    assert ledger.find_grant(grant.grant) == grant
    assert charged(ledger) == 100


def test_a_grant_names_the_transfer_that_it_was_made_for(ledger: Ledger) -> None:
    """From the proposal through accept to the end, so that everybody's logs can name it."""
    (outcome,) = ledger.grant([replace(proposal(ref()), transfer=b"transfer")], 10.0)
    assert outcome.grant is not None
    accepted = ledger.accept(outcome.grant.grant, "A", DIGEST, 20.0, 900.0, 11.0).grant
    assert accepted is not None
    ended = ledger.end_grant(accepted.grant, GrantStatus.FAILED, "x", 12.0)
    assert ended is not None
    assert outcome.grant.transfer == accepted.transfer == ended.transfer == b"transfer"


def test_granting_nothing_is_fine(ledger: Ledger) -> None:
    """No proposals, no outcomes."""
    assert ledger.grant([], 10.0) == []


def test_a_second_grant_of_an_object_is_refused_while_one_lives(ledger: Ledger) -> None:
    """The live grant is shown to whoever wanted another, in one batch as in two."""
    first, second = ledger.grant([proposal(ref()), proposal(ref(), node="B")], 10.0)
    third = ledger.grant([proposal(ref(), node="C")], 10.0)[0]
    assert first.refusal is None
    assert (second.refusal, third.refusal) == (Refusal.HELD, Refusal.HELD)
    assert first.grant == second.grant == third.grant
    assert charged(ledger) == 100


def test_repeating_a_proposal_gives_the_same_grant(ledger: Ledger) -> None:
    """A proposal whose answer was lost may be made again, and charges nothing twice."""
    asked = proposal(ref())
    first = ledger.grant([asked], 10.0)
    assert ledger.grant([asked], 11.0) == first
    assert charged(ledger) == 100


def test_a_grant_that_ended_is_not_made_again(ledger: Ledger) -> None:
    """The id of an ended grant gives nothing any more, not even to another node or object."""
    asked = proposal(ref())
    ledger.grant([asked], 10.0)
    ledger.end_grant(asked.grant, GrantStatus.FAILED, "busy", 11.0)
    outcomes = ledger.grant([asked, proposal(ref(1), grant=asked.grant)], 12.0)
    assert [outcome.refusal for outcome in outcomes] == [Refusal.HELD, Refusal.HELD]
    assert status(ledger, ref(1)) is ObjectStatus.ABSENT


def test_grants_stop_at_the_quota(ledger: Ledger) -> None:
    """Proposals are judged in order; what does not fit is told how many bytes are missing."""
    outcomes = ledger.grant([proposal(ref(n), size=300) for n in range(4)] + [proposal(ref(9), size=100)], 10.0)
    assert [outcome.refusal for outcome in outcomes] == [None, None, None, Refusal.OVER, None]
    assert outcomes[3].short == 200
    assert outcomes[3].grant is None
    assert status(ledger, ref(3)) is ObjectStatus.ABSENT
    assert charged(ledger) == QUOTA


def test_channels_have_accounts_of_their_own(ledger: Ledger) -> None:
    """One batch over two channels charges each with its own."""
    outcomes = ledger.grant([proposal(ref(0, channel=name), size=900) for name in ("other", "demo")], 10.0)
    assert [outcome.refusal for outcome in outcomes] == [None, None]
    assert (charged(ledger), charged(ledger, "other")) == (900, 900)


def test_what_is_ready_or_leaving_is_not_granted(ledger: Ledger) -> None:
    """READY and EVICTING objects need no upload now."""
    ready(ledger, ref(0))
    ready(ledger, ref(1))
    ledger.condemn(ref(1), None, 11.0)
    outcomes = ledger.grant([proposal(ref(0)), proposal(ref(1))], 12.0)
    assert [outcome.refusal for outcome in outcomes] == [Refusal.READY, Refusal.BUSY]


def test_a_successor_takes_over_the_reservation(world: World) -> None:
    """After a failure the next grant charges nothing again, even when the quota was lowered meanwhile."""
    ledger = world.ledger
    first = uploading(ledger, ref())
    ledger.end_grant(first.grant, GrantStatus.FAILED, "deadline", 11.0)
    assert charged(ledger) == 100
    world.set_quota("demo", 50)
    second = granted(ledger, ref(), 12.0, node="B")
    assert charged(ledger) == 100
    assert ledger.view(ref()).grant == second
    assert ledger.view(ref()).record.put_until == 900.0
    (over,) = ledger.grant([proposal(ref(1), size=10)], 12.0)
    assert (over.refusal, over.short) == (Refusal.OVER, 10)


def test_accept_names_digest_and_url(ledger: Ledger) -> None:
    """Accepting keeps the digest and the end of the URL, on grant and object."""
    grant = granted(ledger, ref())
    view = ledger.accept(grant.grant, "A", DIGEST, 21.0, 900.0, 11.0)
    assert view.grant is not None
    assert (view.grant.status, view.grant.digest) == (GrantStatus.ACCEPTED, DIGEST)
    assert (view.grant.lease_until, view.grant.put_until, view.grant.accepted_at) == (21.0, 900.0, 11.0)
    assert view.record.put_until == 900.0
    assert ledger.view(ref()) == view


def test_a_lease_never_outlives_its_url(ledger: Ledger) -> None:
    """A lease asked for longer than the URL ends with the URL."""
    grant = granted(ledger, ref())
    view = ledger.accept(grant.grant, "A", DIGEST, 50.0, 30.0, 11.0)
    assert view.grant is not None
    assert view.grant.lease_until == 30.0
    assert ledger.progress(grant.grant, "A", 50, 100.0, 0.0, 12.0).lease_until == 30.0


def test_repeating_an_accept_renews_nothing(ledger: Ledger) -> None:
    """The same digest again gives the same grant: neither its lease nor its URL lasts longer for it."""
    grant = uploading(ledger, ref())
    view = ledger.accept(grant.grant, "A", DIGEST, 25.0, 800.0, 15.0)
    assert view.grant is not None
    assert (view.grant.lease_until, view.grant.put_until, view.record.put_until) == (20.0, 900.0, 900.0)
    assert view.grant.accepted_at == 10.0


def test_an_accept_for_less_gives_back_the_rest(ledger: Ledger) -> None:
    """A grant accepted for fewer bytes than were reserved shrinks with its object's reservation, at once and once: the
    rest can be granted, and what lands is matched by the exact length."""
    usage = ledger.usage("demo")
    (first,) = ledger.grant([proposal(ref(), size=usage.quota)], 10.0)
    assert first.grant is not None
    (over,) = ledger.grant([proposal(ref(1), size=50)], 10.0)
    assert over.refusal is Refusal.OVER
    for _ in range(2):
        view = ledger.accept(first.grant.grant, "A", DIGEST, 20.0, 900.0, 11.0, usage.quota - 50)
        assert view.grant is not None
        assert (view.grant.length, view.record.size, charged(ledger)) == (*[usage.quota - 50] * 3,)
        assert ledger.view(ref()) == view
    (second,) = ledger.grant([proposal(ref(1), size=50)], 12.0)
    assert second.refusal is None
    assert charged(ledger) == usage.quota
    for wrong in (usage.quota, usage.quota - 50 - 1):
        assert ledger.settle(ref(), found(wrong), 13.0, GRACE) is None
    settled = ledger.settle(ref(), found(usage.quota - 50), 13.0, GRACE)
    assert settled is not None
    assert (settled.record.status, charged(ledger)) == (ObjectStatus.READY, usage.quota)


def test_a_reservation_covers_the_longest_that_may_land(ledger: Ledger) -> None:
    """A successor's grant reserves all it may need again, and its accept gives back no byte that the first one's URL
    may still put there."""
    first = granted(ledger, ref())
    ledger.accept(first.grant, "A", DIGEST, 20.0, 900.0, 11.0, 70)
    assert charged(ledger) == 70
    ledger.lapse(20.0)
    second = granted(ledger, ref(), 21.0, node="B")
    assert charged(ledger) == 100
    view = ledger.accept(second.grant, "B", DIGEST, 31.0, 900.0, 22.0, 30)
    assert view.grant is not None
    assert (view.grant.length, view.record.size, charged(ledger)) == (30, 70, 70)
    assert ledger.settle(ref(), found(70), 23.0, GRACE) is not None
    assert charged(ledger) == 70


@pytest.mark.parametrize("length", [101, 0, 60])
def test_an_accept_for_another_length_is_refused(ledger: Ledger, length: int) -> None:
    """More than was granted, nothing, or another length than before: it is not this grant."""
    grant = uploading(ledger, ref())
    before = ledger.view(ref())
    with pytest.raises(Conflict) as caught:
        ledger.accept(grant.grant, "A", DIGEST, 25.0, 800.0, 12.0, length)
    assert caught.value.kind == "stale-grant"
    assert ledger.view(ref()) == before
    assert charged(ledger) == 100


@pytest.mark.parametrize("case", ["unknown", "other node", "lapsed", "other digest", "ended", "done"])
def test_a_stale_accept_is_refused(ledger: Ledger, case: str) -> None:
    """Whoever does not hold the grant now gets nothing, and nothing changes."""
    grant = uploading(ledger, ref())
    name, node, digest, now = grant.grant, "A", DIGEST, 12.0
    match case:
        case "unknown":
            name = grant_id()
        case "other node":
            node = "B"
        case "lapsed":
            now = grant.lease_until
        case "other digest":
            digest = bytes(32)
        case "ended":
            ledger.end_grant(name, GrantStatus.CANCELLED, None, 11.0)
        case "done":
            ledger.settle(ref(), found(), 11.0, GRACE)
    before = ledger.view(ref())
    with pytest.raises(Conflict) as caught:
        ledger.accept(name, node, digest, 99.0, 999.0, now)
    assert caught.value.kind == "stale-grant"
    assert ledger.view(ref()) == before


def test_progress_renews_by_growing_bytes_only(ledger: Ledger) -> None:
    """Bytes above the floor rate renew the lease; fewer, repeated or impossible ones do not."""
    grant = uploading(ledger, ref())
    after = ledger.progress(grant.grant, "A", 30, 10.0, 5.0, 15.0)
    assert (after.sent, after.sent_at, after.lease_until) == (30, 15.0, 25.0)
    for sent in (30, 10, 101, 31):
        assert ledger.progress(grant.grant, "A", sent, 10.0, 5.0, 18.0) == after
    assert ledger.find_grant(grant.grant) == after


def test_progress_of_a_stale_grant_is_refused(ledger: Ledger) -> None:
    """Progress after the lease is over, or of another's grant, is told to stop."""
    grant = uploading(ledger, ref())
    for node, now in (("B", 11.0), ("A", 20.0)):
        with pytest.raises(Conflict) as caught:
            ledger.progress(grant.grant, node, 50, 10.0, 0.0, now)
        assert caught.value.kind == "stale-grant"


def test_a_grant_ends_once(ledger: Ledger) -> None:
    """The first end counts; the reservation stays until the bucket was looked at."""
    grant = uploading(ledger, ref())
    ended = ledger.end_grant(grant.grant, GrantStatus.FAILED, "disk-full", 12.0)
    assert ended is not None
    assert (ended.status, ended.reason) == (GrantStatus.FAILED, "disk-full")
    assert ledger.end_grant(grant.grant, GrantStatus.CANCELLED, None, 13.0) is None
    assert ledger.end_grant(grant_id(), GrantStatus.CANCELLED, None, 13.0) is None
    assert ledger.find_grant(grant.grant) == ended
    assert ledger.view(ref()).grant is None
    assert charged(ledger) == 100


def test_a_grant_does_not_end_as_live(ledger: Ledger) -> None:
    """Ending as OFFERED or DONE is a mistake of the caller's."""
    grant = granted(ledger, ref())
    with pytest.raises(Internal):
        ledger.end_grant(grant.grant, GrantStatus.DONE, None, 12.0)
    assert ledger.view(ref()).grant == grant


def test_leases_lapse_in_order(ledger: Ledger) -> None:
    """Grants whose lease is over end as LAPSED, the first ones first, as many as asked for."""
    for number, until in ((0, 22.0), (1, 21.0), (2, 40.0), (3, 23.0)):
        granted(ledger, ref(number), until=until)
    assert ledger.lapse(20.0) == []
    assert [grant.ref.number for grant in ledger.lapse(23.0, 2)] == [1, 0]
    (last,) = ledger.lapse(23.0)
    assert (last.ref.number, last.status) == (3, GrantStatus.LAPSED)
    assert ledger.find_grant(last.grant) == last
    assert ledger.lapse(23.0) == []
    assert ledger.view(ref(2)).grant is not None


def test_a_disconnected_session_loses_its_leases_sooner(ledger: Ledger) -> None:
    """Only live grants of that session are shortened, and none is lengthened."""
    mine, short = granted(ledger, ref(0)), granted(ledger, ref(1), until=11.0)
    other, foreign = granted(ledger, ref(2), session="s2"), granted(ledger, ref(3), node="B")
    over = granted(ledger, ref(4))
    ledger.end_grant(over.grant, GrantStatus.FAILED, None, 10.0)
    changed = ledger.shorten("A", "s1", 12.0, 10.0)
    assert [(grant.grant, grant.lease_until) for grant in changed] == [(mine.grant, 12.0), (short.grant, 11.0)]
    assert ledger.shorten("A", "s1", 12.0, 10.0) == changed
    assert ledger.find_grant(other.grant) == other
    assert ledger.find_grant(foreign.grant) == foreign


def test_a_session_that_is_back_keeps_its_grants(ledger: Ledger) -> None:
    """Leases are at least as long as before, not past the URL; a lapsed one does not come back to life."""
    mine, over, near = granted(ledger, ref(0)), granted(ledger, ref(1)), uploading(ledger, ref(2), put_until=15.0)
    ledger.shorten("A", "s1", 13.0, 10.0)
    assert ledger.lapse(12.0) == []
    ledger.end_grant(over.grant, GrantStatus.FAILED, None, 12.0)
    restored = ledger.restore("A", "s1", 22.0, 12.5)
    assert [(grant.grant, grant.lease_until) for grant in restored] == [(mine.grant, 22.0), (near.grant, 15.0)]
    ledger.shorten("A", "s1", 14.0, 13.0)
    assert {grant.lease_until for grant in ledger.restore("A", "s1", 30.0, 14.0)} == {14.0}


def test_sessions_that_upload_are_told_from_those_that_do_not(ledger: Ledger) -> None:
    """Of any number of sessions those with live grants are found, and only those that were asked for."""
    granted(ledger, ref(0))
    granted(ledger, ref(1), session="s2")
    over = granted(ledger, ref(2), node="B")
    ledger.end_grant(over.grant, GrantStatus.FAILED, None, 10.0)
    many = [("A", f"made-up-{number}") for number in range(2000)] + [(f"N{number}", "s1") for number in range(2000)]
    assert ledger.uploading([*many, ("A", "s1"), ("B", "s1")]) == {("A", "s1")}
    assert ledger.uploading([]) == set()


def test_objects_are_looked_after_in_the_order_in_which_they_were_granted(ledger: Ledger) -> None:
    """Grants of several channels made together are swept in their own order, not channel by channel."""
    refs = [ref(0, channel="other"), ref(1), ref(2, channel="other"), ref(3)]
    ledger.grant([proposal(of) for of in refs], 10.0)
    ledger.lapse(21.0)
    assert [record.ref for record in ledger.stale(22.0, GRACE, 3)] == refs[:3]


def test_one_channel_is_looked_after_whatever_lies_in_another(ledger: Ledger) -> None:
    """With a channel given its own objects are listed, however many of another one come before them."""
    refs = [ref(0, channel="other"), ref(1, channel="other"), ref(2), ref(3)]
    ledger.grant([proposal(of) for of in refs], 10.0)
    ledger.lapse(21.0)
    assert [record.ref for record in ledger.stale(22.0, GRACE, 2, "demo")] == refs[2:]
    assert [record.ref for record in ledger.stale(22.0, GRACE, 1, "other")] == refs[:1]
    assert ledger.stale(22.0, GRACE, 2, "unknown") == []
