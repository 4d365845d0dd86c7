"""What the rounds make of sessions that fall silent, at all or to this hub, and of nodes that lose their rights."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot_hub.core.effects import Propose, Review, SendGrant, SendSeek
from entrepot_hub.core.ledger import (
    GrantOutcome,
    GrantRecord,
    GrantStatus,
    ObjectRecord,
    ObjectStatus,
    ObjectView,
    WantOrder,
)
from entrepot_hub.core.round import DOUBT
from entrepot_hub.core.rounds import Rounds

LOCK = SchemaLock("demo")
OPENING = Opening(20 * LOCK.object, b"\x07" * 32)
STREAM = OPENING.stream_id().raw


def granted(*, slots: int) -> tuple[Rounds, list[GrantRecord]]:
    """A reader wants eight objects; a holder that offers so many slots was granted as many."""
    source = count(1)
    rounds = Rounds(ExchangeSettings(), lambda: next(source).to_bytes(16))
    order = WantOrder("demo", LOCK.id, STREAM, "reader", ((0, 19),), 8, 60.0, False)
    rounds.wanted(order, LOCK, OPENING, [], [], 10, 1.0)
    rounds.offered("demo", STREAM, ("holder", "a" * 16), OPENING, ((0, 19),), slots, 1.0)
    (proposed,) = [effect for effect in rounds.tick(1.1) if isinstance(effect, Propose)]
    grants = [
        GrantRecord(
            p.grant, p.ref, p.node, p.session, GrantStatus.OFFERED, p.size, None, p.lease_until, 0.0, granted_at=1.1
        )
        for p in proposed.proposals
    ]
    outcomes = [GrantOutcome(p, g, None) for p, g in zip(proposed.proposals, grants, strict=True)]
    rounds.judged(outcomes, 1.1)
    return rounds, grants


def test_a_silent_session_is_granted_nothing_until_it_offers_again() -> None:
    """A lease lapsed though its object had arrived: the slot that came free is not granted to the session that does not
    speak; it is sought, and its next offer counts again."""
    rounds, grants = granted(slots=4)
    assert len(grants) == 4
    rounds.silent(grants[0], 11.2)
    after = rounds.arrived(grants[0].ref, grants[0], 11.2)
    assert not [effect for effect in after if isinstance(effect, Propose)]
    assert [effect for effect in [*after, *rounds.tick(11.3)] if isinstance(effect, SendSeek)]
    again = rounds.offered("demo", STREAM, ("holder", "a" * 16), OPENING, ((0, 19),), 4, 11.4)
    assert [effect for effect in [*again, *rounds.tick(11.5)] if isinstance(effect, Propose)]


def test_an_expelled_node_loses_its_offers_grants_and_wants() -> None:
    """A node that lost its rights: its live grants are named to be ended, nothing more is proposed to it, and what it
    wanted is not sought any more; another channel is none of this."""
    rounds, grants = granted(slots=4)
    assert rounds.expelled("holder", "other") == ((), ())
    assert rounds.expelled("reader", "demo") == ((), (("demo", STREAM),))
    ended, wanted = rounds.expelled("holder", None)
    assert {grant.grant for grant in ended} == {grant.grant for grant in grants}
    assert wanted == ()
    for grant in grants:
        assert not [effect for effect in rounds.ended(grant, None, 2.0) if isinstance(effect, Propose | SendSeek)]


def test_what_another_hub_heard_of_a_grant_is_asked_of_the_ledger() -> None:
    """A holder speaks to any hub: one that hears nothing of its grants asks, frees what is over, and neither sends a
    grant again that was accepted elsewhere nor keeps its holder from the next objects."""
    rounds, grants = granted(slots=4)
    asked = 1.1 + ExchangeSettings().lease / DOUBT
    assert not [effect for effect in rounds.tick(asked - 0.1) if isinstance(effect, Review)]
    assert (rounds.timer() or 0.0) <= asked
    (review,) = [effect for effect in rounds.tick(asked) if isinstance(effect, Review)]
    assert {grant.grant for grant in review.grants} == {grant.grant for grant in grants}
    arrived, failed, taken, queued = grants
    views = {
        arrived.grant: ObjectView(ObjectRecord(arrived.ref, ObjectStatus.READY, uploader="holder")),
        failed.grant: ObjectView(ObjectRecord(failed.ref, ObjectStatus.RESERVED)),
        taken.grant: ObjectView(
            ObjectRecord(taken.ref, ObjectStatus.RESERVED),
            replace(taken, status=GrantStatus.ACCEPTED, accepted_at=2.0),
        ),
        queued.grant: ObjectView(ObjectRecord(queued.ref, ObjectStatus.RESERVED), queued),
    }
    effects = rounds.reviewed(review.grants, [views[grant.grant] for grant in review.grants], asked)
    (proposed,) = [effect for effect in effects if isinstance(effect, Propose)]
    assert failed.ref in {proposal.ref for proposal in proposed.proposals}
    assert arrived.ref not in {proposal.ref for proposal in proposed.proposals}
    later = [*effects, *rounds.tick(asked + 1.0)]
    assert [effect.grant.grant for effect in later if isinstance(effect, SendGrant)] == [queued.grant]


def test_a_review_changes_nothing_of_what_was_heard_meanwhile() -> None:
    """The ledger answered before a grant ended here: what it said then is old."""
    rounds, grants = granted(slots=1)
    asked = 1.1 + ExchangeSettings().lease / DOUBT
    (review,) = [effect for effect in rounds.tick(asked) if isinstance(effect, Review)]
    rounds.arrived(grants[0].ref, grants[0], asked)
    rounds.reviewed(review.grants, [ObjectView(ObjectRecord(grants[0].ref, ObjectStatus.RESERVED), grants[0])], asked)
    assert rounds.is_ready(grants[0].ref)
    assert not [effect for effect in rounds.tick(asked + 1.0) if isinstance(effect, SendGrant)]
