"""How records of the ledger change: pure functions that every :class:`~entrepot_hub.core.ledger.Ledger` applies.

They take records and give new ones; which rows to read, lock and write is the ledger's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from entrepot.core.errors import Conflict, Internal
from entrepot_hub.core.eviction import measured
from entrepot_hub.core.ledger import (
    BAD_OBJECT,
    LIVE,
    Found,
    GrantOutcome,
    GrantRecord,
    GrantStatus,
    ObjectRecord,
    ObjectRef,
    ObjectStatus,
    Proposal,
    Refusal,
    charge,
    matching,
    may_land,
)

_ENDS = frozenset({GrantStatus.FAILED, GrantStatus.LAPSED, GrantStatus.CANCELLED})

#: Seconds for which a strike counts.
STRIKE_WINDOW = 3600.0


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a look into the bucket changes: the object's record and those of its grants that are new. ``cost``: what the
    upload of an object that has arrived cost."""

    record: ObjectRecord
    grants: tuple[GrantRecord, ...] = ()
    cost: float | None = None


def nothing(ref: ObjectRef) -> ObjectRecord:
    """The record of an object of which nothing is known."""
    return ObjectRecord(ref, ObjectStatus.ABSENT)


def opened(proposal: Proposal, now: float) -> GrantRecord:
    """The grant that a proposal becomes."""
    return GrantRecord(
        grant=proposal.grant,
        ref=proposal.ref,
        node=proposal.node,
        session=proposal.session,
        status=GrantStatus.OFFERED,
        length=proposal.size,
        digest=None,
        lease_until=proposal.lease_until,
        put_until=0.0,
        granted_at=now,
        transfer=proposal.transfer,
    )


def reserved(record: ObjectRecord | None, proposal: Proposal) -> ObjectRecord:
    """The object after a grant: RESERVED at the granted size, or at what an earlier grant could still put there. A
    tombstone at its key is not forgotten."""
    before = nothing(proposal.ref) if record is None else record
    return replace(before, status=ObjectStatus.RESERVED, size=max(proposal.size, charge(before)))


def repeated(proposal: Proposal, known: GrantRecord) -> GrantOutcome:
    """The outcome of a proposal whose grant was made before: the same grant while it lives, else HELD."""
    same = known.status in LIVE and (known.ref, known.node, known.session) == (
        proposal.ref,
        proposal.node,
        proposal.session,
    )
    return GrantOutcome(proposal, known, None if same else Refusal.HELD)


def ended(grant: GrantRecord, status: GrantStatus, reason: str | None) -> GrantRecord:
    """A live grant, over: FAILED, LAPSED or CANCELLED, with the kind of the error that ended it."""
    if status not in _ENDS:
        raise Internal(f"a grant does not end as {status}")
    return replace(grant, status=status, reason=reason)


def lapsed(grant: GrantRecord, now: float) -> bool:
    """Whether the grant's lease is over, marked so or not."""
    return grant.lease_until <= now


def held_by(grant: GrantRecord | None, node: str, now: float) -> GrantRecord:
    """The grant, if it is live, this node's and not lapsed; Conflict (stale-grant) otherwise."""
    if grant is None or grant.status not in LIVE or grant.node != node or lapsed(grant, now):
        raise stale_grant(grant)
    return grant


def accepted(
    grant: GrantRecord, digest: bytes, lease_until: float, put_until: float, now: float, length: int | None = None
) -> GrantRecord:
    """The grant after an accept, for an object of ``length`` bytes (None: as long as was granted). Its lease never
    outlives the PUT URL. A repeated accept changes nothing: only progress renews a lease, or an object could be held
    for ever without a byte.

    Raises Conflict (stale-grant) for another digest or length than before, or a longer one than was granted.
    """
    size = grant.length if length is None else length
    if (grant.digest is not None and grant.digest != digest) or not 0 < size <= grant.length:
        raise stale_grant(grant)
    if grant.status is GrantStatus.ACCEPTED:
        if size != grant.length:
            raise stale_grant(grant)
        return grant
    return replace(
        grant,
        status=GrantStatus.ACCEPTED,
        length=size,
        digest=digest,
        lease_until=min(lease_until, put_until),
        put_until=put_until,
        accepted_at=now,
    )


def shrunk(record: ObjectRecord, grants: Iterable[GrantRecord]) -> ObjectRecord:
    """The object once one of its ``grants`` was accepted for less than was reserved: reserved is what the longest of
    those can put there for which a PUT was ever signed."""
    longest = max((grant.length for grant in grants if grant.put_until > 0), default=record.size)
    if record.status is not ObjectStatus.RESERVED:
        return record
    return replace(record, size=min(record.size, longest))


def stale_grant(grant: GrantRecord | None) -> Conflict:
    """The error for a grant that no longer gives its node anything."""
    return Conflict(
        "this grant is not yours or over",
        kind="stale-grant",
        hint="Another provider may upload the object now; nothing needs to be done",
        status=None if grant is None else grant.status.value,
    )


def shortened(grant: GrantRecord, lease_until: float) -> GrantRecord:
    """The lease ends at ``lease_until`` if that is sooner."""
    return replace(grant, lease_until=min(grant.lease_until, lease_until))


def restored(grant: GrantRecord, lease_until: float, now: float) -> GrantRecord:
    """The lease is at least ``lease_until`` again, never past the PUT URL; a lapsed one stays lapsed."""
    if lapsed(grant, now):
        return grant
    end = min(lease_until, grant.put_until) if grant.status is GrantStatus.ACCEPTED else lease_until
    return replace(grant, lease_until=max(grant.lease_until, end))


def absent(record: ObjectRecord) -> ObjectRecord:
    """The object once nothing (or nothing but a tombstone that was there before) lies at its key."""
    return replace(
        record,
        status=ObjectStatus.TOMBSTONE if record.tombstone else ObjectStatus.ABSENT,
        size=0,
        digest=None,
        etag=None,
        uploader=None,
    )


def evicted(record: ObjectRecord, tombstone: bool) -> ObjectRecord:
    """An EVICTING object once it is gone."""
    return absent(replace(record, tombstone=tombstone))


def cleared(record: ObjectRecord) -> ObjectRecord:
    """The record once the tombstone at its key was deleted."""
    without = replace(record, tombstone=False)
    return absent(without) if record.status is ObjectStatus.TOMBSTONE else without


def settled(
    record: ObjectRecord,
    grants: Sequence[GrantRecord],
    found: Found | None,
    now: float,
    grace: float,
    free: int,
) -> Settlement | None:
    """What follows from a look that found ``found`` at the key; None when it answers to no grant.

    ``grants`` are all grants of the object, ``free`` the channel's quota − charged: something that was released and
    landed all the same is taken in only where it fits. An EVICTING object stays EVICTING: its eviction decides.
    """
    status = record.status
    if status is ObjectStatus.EVICTING:
        return Settlement(record)
    if found is None or (found.length == 0 and record.tombstone):
        return Settlement(_missed(record, grants, now, grace, held=found is not None))
    if status is ObjectStatus.READY and record.etag == found.etag:
        return Settlement(record)
    able = matching(found, grants, now, grace)
    if not able:
        return None
    match = able[0]
    # Without a digest nobody knows which of several URLs was used: nobody is credited, and nobody blamed.
    sure = found.digest is not None or all(grant.node == match.node for grant in able)
    more = found.length - charge(record)
    if more > 0 and more > free:
        return None
    ended = [replace(match, status=GrantStatus.DONE, reason=None)] if match.status is not GrantStatus.DONE else []
    ended += [
        replace(grant, status=GrantStatus.CANCELLED)
        for grant in grants
        if grant.status in LIVE and grant.grant != match.grant
    ]
    ready = replace(
        record,
        status=ObjectStatus.READY,
        size=found.length,
        digest=match.digest,
        etag=found.etag,
        tombstone=False,
        used_at=now,
        uploader=match.node if sure else None,
    )
    return Settlement(ready, tuple(ended), measured(now - match.accepted_at))


def disgraced(grants: Iterable[GrantRecord]) -> list[GrantRecord]:
    """The grants that a condemned object may have come by, ended such that it answers to none of them when it is put
    there again: a URL outlives its object."""
    return [
        replace(grant, status=GrantStatus.FAILED, reason=BAD_OBJECT)
        for grant in grants
        if grant.status is GrantStatus.DONE and grant.reason != BAD_OBJECT
    ]


def adopted(record: ObjectRecord, found: Found, now: float, free: int) -> ObjectRecord | None:
    """The object once what lies at its key was taken in, by its header alone; None where that may not be."""
    if record.status is not ObjectStatus.ABSENT or not 0 < found.length <= free:
        return None
    return replace(
        record,
        status=ObjectStatus.READY,
        size=found.length,
        digest=found.digest,
        etag=found.etag,
        used_at=now,
        uploader=None,
    )


def _longest(grants: Iterable[GrantRecord], now: float, grace: float) -> int:
    """Bytes of the longest object that one of the grants could still put there, whatever became of the grant."""
    return max((g.length for g in grants if g.put_until > 0 and now <= g.put_until + grace), default=0)


def _missed(
    record: ObjectRecord, grants: Sequence[GrantRecord], now: float, grace: float, *, held: bool
) -> ObjectRecord:
    """``held``: a tombstone was seen at the key. Nothing can land there while it is there: as long as nobody was
    granted the object since and accepted, who may be clearing it away just now."""
    clearing = any(
        grant.status in _ENDS
        and grant.reason != BAD_OBJECT  # that one was done once
        and grant.accepted_at > 0
        and now <= grant.put_until + grace
        for grant in grants
    )
    lands = may_land(record, now, grace) and (clearing or not held)
    if record.status is ObjectStatus.READY:
        gone = absent(record)
        if not lands:
            return gone
        # Somebody else took it away: whoever was granted it before may put a longer one there than it was.
        return replace(gone, status=ObjectStatus.RESERVED, size=max(record.size, _longest(grants, now, grace)))
    if record.status is ObjectStatus.RESERVED and not lands and all(g.status not in LIVE for g in grants):
        return absent(record)
    return record


def restless(record: ObjectRecord, live: bool, now: float, grace: float) -> bool:
    """Whether the object wants looking after (see ``Ledger.stale``); ``live``: it has a live grant."""
    match record.status:
        case ObjectStatus.EVICTING:
            return True
        case ObjectStatus.RESERVED:
            return not live and (record.tombstone or not may_land(record, now, grace))
        case ObjectStatus.TOMBSTONE:
            return not may_land(record, now, grace)
        case _:
            return False
