"""The invariants, said independently of the code that keeps them, and looked at after every change.

======================  =========================================================================================
one-grant               an object has at most one live grant
quota                   stored + reserved bytes are at most the quota, and the account is the sum of the objects
bucket-quota            the bytes that lie in the bucket are at most the quota (create-only buckets that bind lengths)
uncharged               what lies, or could still land, at a key is charged (the same buckets)
url                     no signed PUT can begin later than the ledger knows
stale-grant             only a live, unlapsed grant of the node itself is accepted or makes progress
fake-progress           a lease is renewed by growing bytes of the object alone, and never past its URL
unverified              an object becomes ready only if it answers to an accepted, unexpired grant; a ready object is
                        what lies at the key, and the right bytes unless its holder lied or the bucket shows no digest
released                bytes are released only when the key holds nothing and nothing can land there
archive                 no object of class archive is chosen to leave, nor vanishes
slander                 no object is condemned whose bytes are right
leased                  nothing leaves that somebody has a live read lease on
revoked                 who was revoked is granted nothing any more
lost-want               a hub that starts takes up every want of the ledger
bad-bytes               no reader takes other bytes than the stream's
mistake                 no exception but entrepot's own, and no answer of kind ``internal``
hammer                  no reader says wants without a pause, whatever fails
no-end                  every get ends by its deadline, in ready or in a stated reason
not-served              once faults stop, every honest reader gets everything that an honest holder has
unrest                  in the end the account is what lies in the bucket, and nothing is reserved, leaving or entombed
======================  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from tests.simulation.bucket import Place, short
from tests.simulation.content import CHANNEL, LOCK
from tests.simulation.loop import VirtualLoop
from tests.simulation.process import EPOCH
from tests.simulation.trace import Trace

from entrepot.core.identifiers import StreamId
from entrepot.core.keys import object_key
from entrepot_hub.core.ledger import (
    Found,
    GrantOutcome,
    GrantRecord,
    GrantStatus,
    ObjectRecord,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    Proposal,
)
from entrepot_hub.core.model_ledger import ModelLedger
from entrepot_hub.core.wishes import Front

_LIVE: Final = (GrantStatus.OFFERED, GrantStatus.ACCEPTED)
_CHARGED: Final = (ObjectStatus.RESERVED, ObjectStatus.READY, ObjectStatus.EVICTING)
#: So many seconds after a revocation nothing is granted to the node any more: memberships are believed for a moment.
TRUST: Final = 3.0


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


class Watch:
    """Looks at ledger and bucket. ``failed`` is told of the first violation."""

    def __init__(self, loop: VirtualLoop, place: Place, grace: float, failed: Callable[[Violation], None]) -> None:
        self._loop = loop
        self._place = place
        self._grace = grace
        self._failed = failed
        self.ledger: WatchedLedger
        self.truth: dict[str, bytes] = {}  # the right bytes of each key
        self.poisoned: set[bytes] = set()  # digests of what liars uploaded
        self.bad: set[str] = set()  # keys where a liar put other bytes
        self.revoked: dict[str, float] = {}
        self.archive: set[bytes] = set()
        self.kept: set[str] = set()  # keys of archive objects that were ready
        #: A hub signs with the time at which it was asked: what stands still or takes long in between moves the end of
        #: a URL, and so does a clock that is off. ``put_grace`` covers that.
        self.slack = 0.3
        self.changes = 0

    def fail(self, invariant: str, detail: str) -> None:
        """It does not hold."""
        self._failed(Violation(invariant, detail))

    def look(self) -> None:
        """All that must hold at every instant."""
        ledger, blobs, binds = self.ledger, self._place.blobs, self._place.binds
        self.changes += 1
        of = ledger._channels[CHANNEL]
        total = 0
        firm = binds.create_only and binds.length
        now = EPOCH + self._loop.time()
        landing: dict[str, int] = {}
        ends: dict[str, float] = {}
        if firm:
            gone = []
            for url, permit in self._place.permits.items():
                if permit.until < now and not permit.under_way:
                    gone.append(url)
                    continue
                ends[permit.key] = max(ends.get(permit.key, 0.0), permit.until)
                if permit.key not in blobs:
                    landing[permit.key] = max(landing.get(permit.key, 0), permit.length)
            for url in gone:
                del self._place.permits[url]
        for ref, slot in ledger._slots.items():
            record = slot.record
            charge = record.size if record.status in _CHARGED else 0
            total += charge
            live = [g for g in slot.grants if ledger._grants[g].status in _LIVE]
            if len(live) > 1:
                self.fail("one-grant", f"{len(live)} live grants of object {ref.number}")
            key = key_of(ref)
            blob = blobs.get(key)
            lies = 0 if blob is None else len(blob.data)
            wild = key in self._place.touched
            if firm and not wild and charge < max(lies, landing.get(key, 0)):
                self.fail(
                    "uncharged",
                    f"object {short(key)} is {record.status.value}, charged {charge}; {lies} bytes lie there, "
                    f"{landing.get(key, 0)} could land",
                )
            if key in ends and ends[key] > record.put_until + self.slack:
                self.fail(
                    "url",
                    f"a PUT of {short(key)} can begin until {ends[key]:.3f}, the ledger says {record.put_until:.3f}",
                )
            if record.status is ObjectStatus.READY and not wild and firm:
                if blob is None or blob.etag != record.etag:
                    there = "nothing" if blob is None else blob.etag
                    self.fail("unverified", f"object {short(key)} is ready as {record.etag}; there lies {there}")
                elif blob.data != self.truth[key] and key not in self.bad and binds.head_digest:
                    self.fail("unverified", f"object {short(key)} is ready with wrong bytes")
            if key in self.kept and (blob is None or not blob.data):
                self.fail("archive", f"archive object {short(key)} is gone")
            if ref.stream in self.archive and record.status is ObjectStatus.READY and key not in self.bad:
                self.kept.add(key)
        if total != of.charged:
            self.fail("quota", f"the account says {of.charged}, the objects {total} bytes")
        if total > of.quota:
            self.fail("quota", f"{total} of {of.quota} bytes are charged")
        if firm and not self._place.touched and self._place.bytes() > of.quota:
            self.fail("bucket-quota", f"{self._place.bytes()} bytes lie in the bucket, {of.quota} may")

    def quiet(self) -> None:
        """What must hold when nothing has happened for long."""
        ledger = self.ledger
        for ref, slot in ledger._slots.items():
            key, record = key_of(ref), slot.record
            blob = self._place.blobs.get(key)
            lies = 0 if blob is None else len(blob.data)
            charge = record.size if record.status in _CHARGED else 0
            if record.status not in (ObjectStatus.READY, ObjectStatus.ABSENT):
                self.fail("unrest", f"object {short(key)} stays {record.status.value}")
            if record.tombstone or (blob is not None and not blob.data):
                self.fail("unrest", f"a tombstone stays at {short(key)}")
            if charge != lies:
                self.fail("unrest", f"object {short(key)} is charged {charge} and has {lies} bytes")
            for grant in slot.grants:
                if ledger._grants[grant].status in _LIVE:
                    self.fail("unrest", f"a grant of object {short(key)} stays live")
        known = {key_of(ref) for ref in ledger._slots}
        for key in self._place.blobs:
            if key not in known:
                self.fail("unrest", f"nobody knows of {short(key)}")


class WatchedLedger(ModelLedger):
    """The model ledger, each change of which is compared with what may change."""

    def __init__(self, watch: Watch, place: Place, trace: Trace, loop: VirtualLoop) -> None:
        super().__init__()
        self._watch = watch
        self._place = place
        self._trace = trace
        self._loop = loop
        self.dirty = False
        watch.ledger = self

    def _note(self, text: str) -> None:
        self.dirty = True
        self._trace.add(self._loop.time(), "ledger", text)

    def grant(self, proposals: Sequence[Proposal], now: float) -> list[GrantOutcome]:
        """See ``Ledger.grant``."""
        outcomes = super().grant(proposals, now)
        for outcome in outcomes:
            what = outcome.grant.grant.hex()[-6:] if outcome.grant is not None else "-"
            ref, node = outcome.proposal.ref, outcome.proposal.node
            verdict = "granted" if outcome.refusal is None else outcome.refusal.value
            self._note(f"propose {short(key_of(ref))} to {node[1:7]}: {verdict} {what}")
            since = self._watch.revoked.get(node)
            if outcome.refusal is None and since is not None and self._loop.time() > since + TRUST:
                self._watch.fail("revoked", f"a node that was revoked at {since:.3f} was granted an object")
        return outcomes

    def accept(
        self,
        grant: bytes,
        node: str,
        digest: bytes,
        lease_until: float,
        put_until: float,
        now: float,
        length: int | None = None,
    ) -> ObjectView:
        """See ``Ledger.accept``."""
        before = self._grants.get(grant)
        view = super().accept(grant, node, digest, lease_until, put_until, now, length)
        self._note(f"accept {grant.hex()[-6:]} of {short(key_of(view.record.ref))}")
        self._fresh(before, node, now)
        return view

    def progress(self, grant: bytes, node: str, sent: int, lease: float, floor: float, now: float) -> GrantRecord:
        """See ``Ledger.progress``."""
        before = self._grants.get(grant)
        after = super().progress(grant, node, sent, lease, floor, now)
        self._note(f"progress {grant.hex()[-6:]} {sent}")
        self._fresh(before, node, now)
        if before is not None and after.lease_until > before.lease_until:
            since = max(now - max(before.sent_at, before.accepted_at), 0.0)
            enough = sent == before.length or sent - before.sent >= floor * since
            if not before.sent < sent <= before.length or not enough or after.lease_until > after.put_until:
                self._watch.fail("fake-progress", f"a lease was renewed by {before.sent} to {sent} bytes")
        return after

    def settle(self, ref: ObjectRef, found: Found | None, now: float, grace: float) -> ObjectView | None:
        """See ``Ledger.settle``."""
        slot = self._slots.get(ref)
        before = None if slot is None else slot.record
        grants = [] if slot is None else [self._grants[grant] for grant in slot.grants]
        view = super().settle(ref, found, now, grace)
        saw = "nothing" if found is None else f"{found.length} bytes {found.etag}"
        became = "to be deleted" if view is None else view.record.status.value
        self._note(f"settle {short(key_of(ref))}: {saw} -> {became}")
        if view is None:
            return None
        after = view.record
        new = after.status is ObjectStatus.READY and (
            before is None or before.status is not ObjectStatus.READY or before.etag != after.etag
        )
        if new and (found is None or not any(self._answers(found, grant, now, grace) for grant in grants)):
            self._watch.fail("unverified", f"object {short(key_of(ref))} became ready and answers to no grant")
        if before is not None and before.status is ObjectStatus.RESERVED and after.status is ObjectStatus.ABSENT:
            waits = any(grant.status in _LIVE for grant in grants)
            if waits or (before.put_until > 0 and now <= before.put_until + grace):
                self._watch.fail("released", f"object {short(key_of(ref))} was released while it could land")
        return view

    def evict_begin(
        self,
        channel: str,
        need: int,
        now: float,
        grace: float,
        limit: int = 64,
        *,
        wish: int = 0,
        head: Front | None = None,
        stalled: Collection[Front] = (),
    ) -> list[ObjectRecord]:
        """See ``Ledger.evict_begin``."""
        chosen = super().evict_begin(channel, need, now, grace, limit, wish=wish, head=head, stalled=stalled)
        for record in chosen:
            self._note(f"evict {short(key_of(record.ref))}")
            if record.ref.stream in self._watch.archive:
                self._watch.fail("archive", f"archive object {short(key_of(record.ref))} was chosen to leave")
            if any(until > now and not got for until, got in self._slots[record.ref].reads.values()):
                self._watch.fail("leased", f"object {short(key_of(record.ref))} was chosen while it is read")
        return chosen

    def evict_end(self, ref: ObjectRef, tombstone: bool, now: float) -> None:
        """See ``Ledger.evict_end``."""
        slot = self._slots.get(ref)
        leaving = slot is not None and slot.record.status is ObjectStatus.EVICTING
        super().evict_end(ref, tombstone, now)
        key = key_of(ref)
        self._note(f"evicted {short(key)}" + (", entombed" if tombstone else ""))
        blob = self._place.blobs.get(key)
        firm = self._place.binds.create_only and key not in self._place.touched
        if leaving and firm and blob is not None and blob.data:
            self._watch.fail("released", f"object {short(key)} was released and lies in the bucket")
        self._watch.bad.discard(key)

    def condemn(self, ref: ObjectRef, etag: str | None, now: float) -> ObjectRecord | None:
        """See ``Ledger.condemn``."""
        record = super().condemn(ref, etag, now)
        if record is not None:
            key = key_of(ref)
            self._note(f"condemn {short(key)}")
            wrong = self._place.blobs.get(key)
            if wrong is not None and wrong.data == self._watch.truth[key] and wrong.etag == record.etag:
                self._watch.fail("slander", f"object {short(key)} was condemned though it is right")
        return record

    def end_grant(self, grant: bytes, status: GrantStatus, reason: str | None, now: float) -> GrantRecord | None:
        """See ``Ledger.end_grant``."""
        after = super().end_grant(grant, status, reason, now)
        if after is not None:
            self._note(f"end {grant.hex()[-6:]} {status.value} {reason}")
        return after

    def lapse(self, now: float, limit: int = 1000) -> list[GrantRecord]:
        """See ``Ledger.lapse``."""
        over = super().lapse(now, limit)
        for grant in over:
            self._note(f"lapse {grant.grant.hex()[-6:]} of {short(key_of(grant.ref))}")
        return over

    def _change(self, *args: Any, **more: Any) -> None:
        self.dirty = True
        super()._change(*args, **more)

    def _fresh(self, before: GrantRecord | None, node: str, now: float) -> None:
        """The grant was one that its node could use."""
        if before is None or before.status not in _LIVE or before.node != node or before.lease_until <= now:
            stood = "unknown" if before is None else before.status.value
            self._watch.fail("stale-grant", f"a grant that was {stood} was used")

    @staticmethod
    def _answers(found: Found, grant: GrantRecord, now: float, grace: float) -> bool:
        return (
            grant.digest is not None
            and grant.reason != "bad-object"
            and grant.put_until > 0
            and now <= grant.put_until + grace
            and grant.length == found.length
            and found.digest in (None, grant.digest)
        )


_keys: dict[ObjectRef, str] = {}


def key_of(ref: ObjectRef) -> str:
    """Where the object lies."""
    key = _keys.get(ref)
    if key is None:
        if len(_keys) > 10_000:
            _keys.clear()
        key = _keys[ref] = object_key("", ref.lock, StreamId(ref.stream), ref.number)
    return key


def truth_of(contents: Sequence[Any]) -> dict[str, bytes]:
    """The right bytes of every object of these streams, by key."""
    return {
        key_of(ObjectRef(CHANNEL, LOCK.id, each.stream.raw, number)): data
        for each in contents
        for number, data in enumerate(each.objects)
    }
