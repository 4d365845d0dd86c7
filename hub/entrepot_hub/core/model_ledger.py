"""The ledger in plain dictionaries: for the simulator, and as the model that the SQL ledger is compared with.

Pure and deterministic. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from entrepot.core import ranges
from entrepot.core.errors import NotFound
from entrepot.core.identifiers import Opening, StreamKind
from entrepot_hub.core.eviction import Candidate, arrived, choose, left, visited
from entrepot_hub.core.ledger import (
    LIVE,
    Found,
    GrantOutcome,
    GrantRecord,
    GrantStatus,
    HolderRecord,
    ObjectRecord,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    Place,
    Proposal,
    Refusal,
    Usage,
    WantOrder,
    WantRecord,
    WantView,
    charge,
    judge,
    renewed,
)
from entrepot_hub.core.members import Rights
from entrepot_hub.core.model_holdings import ModelHoldings
from entrepot_hub.core.model_rows import Channel as _Channel
from entrepot_hub.core.model_rows import Slot as _Slot
from entrepot_hub.core.model_rows import Want as _Want
from entrepot_hub.core.model_rows import lend_to as _lease
from entrepot_hub.core.model_rows import readied, wishes_of
from entrepot_hub.core.transitions import (
    STRIKE_WINDOW,
    accepted,
    adopted,
    cleared,
    disgraced,
    ended,
    evicted,
    held_by,
    lapsed,
    nothing,
    opened,
    repeated,
    reserved,
    restless,
    restored,
    settled,
    shortened,
    shrunk,
)
from entrepot_hub.core.wishes import Front, Wishes, latest, unlacked, untold, yielding

_MAX_RANGES = 64
_DEFAULT_RIGHTS = Rights.parse("request,provide")


class ModelLedger(ModelHoldings):
    """:class:`entrepot_hub.core.ledger.Ledger` in memory."""

    def __init__(self) -> None:
        self._slots: dict[ObjectRef, _Slot] = {}
        #: The objects of each stream: nothing here looks at all objects for the sake of one stream.
        self._streams: dict[tuple[str, bytes], dict[ObjectRef, _Slot]] = {}
        self._grants: dict[bytes, GrantRecord] = {}
        self._live: dict[bytes, None] = {}
        self._cursor = 0
        super().__init__()

    # -- set up ----------------------------------------------------------------------------------------------

    def add_channel(self, name: str, quota: int) -> None:
        """A channel of this name; a known one gets the new quota, in bytes."""
        if name in self._channels:
            self._channels[name].quota = quota
        else:
            self._channels[name] = _Channel(name, quota)

    def add_member(self, channel: str, node: str, name: str, rights: Rights = _DEFAULT_RIGHTS) -> None:
        """The node is a member with these rights."""
        self._channel(channel).members[node] = name, rights

    def remove_member(self, channel: str, node: str) -> None:
        """The node has no rights any more."""
        self._channel(channel).members.pop(node, None)

    # -- wants and holders -----------------------------------------------------------------------------------

    def want(self, order: WantOrder, numbers: Sequence[int], read_until: float, now: float) -> WantView:
        """See ``Ledger.want``."""
        of = self._channel(order.channel)
        before = of.wants.get((order.stream, order.node))
        if before is None:
            self._cursor += 1
            of.wants[order.stream, order.node] = _Want(self._cursor, WantRecord(order, now, now))
        else:
            before.record = WantRecord(order, before.record.created_at, now)
        for ref, known in self._stream(order.channel, order.stream).items():
            if ref.lock != order.lock or ref.number not in numbers:
                known.reads.pop(order.node, None)
        views: dict[int, ObjectView] = {}
        for number in dict.fromkeys(numbers):
            ref = ObjectRef(order.channel, order.lock, order.stream, number)
            slot = self._slots.get(ref)
            if slot is not None and slot.record.status is ObjectStatus.READY:
                slot.record = replace(slot.record, used_at=now)
                until, got = slot.reads.get(order.node, (0.0, False))
                if got or until <= now:
                    slot.merit = visited(slot.merit, of.level)
                _lease(slot, order.node, read_until)
            views[number] = self._view(ref)
        own = [slot for ref, slot in self._stream(order.channel, order.stream).items() if ref.lock == order.lock]
        ready = [slot.record.ref.number for slot in own if slot.record.status is ObjectStatus.READY]
        uploading = [slot.record.ref.number for slot in own if self._live_of(slot) is not None]
        return WantView(
            opening=of.openings.get(order.stream),
            objects=tuple(views[number] for number in numbers),
            ready=ranges.of_numbers(sorted(ready), _MAX_RANGES),
            uploading=ranges.of_numbers(sorted(uploading), _MAX_RANGES),
        )

    def unwant(self, channel: str, stream: bytes, node: str) -> bool:
        """See ``Ledger.unwant``."""
        of = self._channel(channel)
        for slot in self._stream(channel, stream).values():
            slot.reads.pop(node, None)
        return of.wants.pop((stream, node), None) is not None

    def wants(self, channel: str, stream: bytes, now: float) -> list[WantRecord]:
        """See ``Ledger.wants``."""
        of = self._channel(channel)
        found = [w for (s, _), w in of.wants.items() if s == stream and w.record.order.until > now]
        found.sort(key=lambda want: (want.record.created_at, want.cursor))
        return [want.record for want in found]

    def open_wants(self, now: float, channel: str | None, after: int, limit: int) -> list[tuple[int, WantRecord]]:
        """See ``Ledger.open_wants``."""
        among = list(self._channels.values()) if channel is None else [self._channel(channel)]
        found = [
            (want.cursor, want.record)
            for of in among
            for want in of.wants.values()
            if want.cursor > after and want.record.order.until > now
        ]
        return sorted(found, key=lambda pair: pair[0])[: max(limit, 0)]

    def learn(self, channel: str, stream: bytes, opening: Opening) -> None:
        """See ``Ledger.learn``."""
        self._channel(channel).openings.setdefault(stream, opening)

    def opening(self, channel: str, stream: bytes) -> Opening | None:
        """See ``Ledger.opening``."""
        return self._channel(channel).openings.get(stream)

    def hold(self, channel: str, streams: Sequence[tuple[bytes, Opening]], node: str, now: float) -> None:
        """See ``Ledger.hold``."""
        of = self._channel(channel)
        for stream, opening in streams:
            of.openings.setdefault(stream, opening)
            of.holders.setdefault(stream, {})[node] = now

    def unhold(self, channel: str, stream: bytes, node: str) -> None:
        """See ``Ledger.unhold``."""
        self._channel(channel).holders.get(stream, {}).pop(node, None)

    def holders(self, channel: str, stream: bytes, limit: int = 32) -> list[HolderRecord]:
        """See ``Ledger.holders``."""
        of = self._channel(channel)
        kind = StreamKind(stream[0])
        found = [
            HolderRecord(node, of.members[node][0], seen_at)
            for node, seen_at in of.holders.get(stream, {}).items()
            if node in of.members and of.members[node][1].may_provide(kind)
        ]
        found.sort(key=lambda holder: (-holder.seen_at, holder.node))
        return found[: max(limit, 0)]

    # -- grants ----------------------------------------------------------------------------------------------

    def grant(self, proposals: Sequence[Proposal], now: float) -> list[GrantOutcome]:
        """See ``Ledger.grant``."""
        for proposal in proposals:
            self._channel(proposal.ref.channel)
        return [self._judged(proposal, now) for proposal in proposals]

    def _judged(self, proposal: Proposal, now: float) -> GrantOutcome:
        known = self._grants.get(proposal.grant)
        if known is not None:
            return repeated(proposal, known)
        of = self._channel(proposal.ref.channel)
        slot = self._slots.get(proposal.ref)
        live = None if slot is None else self._live_of(slot)
        record = None if slot is None else slot.record
        refusal, amount = judge(proposal, record, live, of.quota - of.charged)
        if refusal is not None:
            return GrantOutcome(proposal, live if refusal is Refusal.HELD else None, refusal, amount)
        if slot is None:
            slot = self._slots[proposal.ref] = _Slot(nothing(proposal.ref))
            self._streams.setdefault((proposal.ref.channel, proposal.ref.stream), {})[proposal.ref] = slot
        slot.record = reserved(slot.record, proposal)
        of.charged += amount
        grant = opened(proposal, now)
        slot.grants.append(grant.grant)
        self._keep(grant)
        return GrantOutcome(proposal, grant)

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
        before = held_by(self._grants.get(grant), node, now)
        after = accepted(before, digest, lease_until, put_until, now, length)
        self._keep(after)
        slot = self._slots[after.ref]
        slot.record = replace(slot.record, put_until=max(slot.record.put_until, after.put_until))
        if after.length != before.length:
            record = shrunk(slot.record, [self._grants[name] for name in slot.grants])
            self._change(self._channel(after.ref.channel), slot, record)
        return ObjectView(slot.record, after)

    def progress(self, grant: bytes, node: str, sent: int, lease: float, floor: float, now: float) -> GrantRecord:
        """See ``Ledger.progress``."""
        after = renewed(held_by(self._grants.get(grant), node, now), sent, now, lease, floor)
        self._keep(after)
        return after

    def end_grant(self, grant: bytes, status: GrantStatus, reason: str | None, now: float) -> GrantRecord | None:
        """See ``Ledger.end_grant``."""
        del now
        if grant not in self._live:
            return None
        after = ended(self._grants[grant], status, reason)
        self._keep(after)
        return after

    def find_grant(self, grant: bytes) -> GrantRecord | None:
        """See ``Ledger.find_grant``."""
        return self._grants.get(grant)

    def lapse(self, now: float, limit: int = 1000) -> list[GrantRecord]:
        """See ``Ledger.lapse``."""
        over = [self._grants[grant] for grant in self._live if lapsed(self._grants[grant], now)]
        over.sort(key=lambda grant: grant.lease_until)
        result = [ended(grant, GrantStatus.LAPSED, "deadline") for grant in over[: max(limit, 0)]]
        for grant in result:
            self._keep(grant)
        return result

    def uploading(self, sessions: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """See ``Ledger.uploading``."""
        return {(self._grants[grant].node, self._grants[grant].session) for grant in self._live}.intersection(sessions)

    def shorten(self, node: str, session: str, lease_until: float, now: float) -> list[GrantRecord]:
        """See ``Ledger.shorten``."""
        del now
        return self._of_session(node, session, lambda grant: shortened(grant, lease_until))

    def restore(self, node: str, session: str, lease_until: float, now: float) -> list[GrantRecord]:
        """See ``Ledger.restore``."""
        return self._of_session(node, session, lambda grant: restored(grant, lease_until, now))

    def _of_session(self, node: str, session: str, change: Callable[[GrantRecord], GrantRecord]) -> list[GrantRecord]:
        live = [self._grants[grant] for grant in self._live]
        changed = [change(grant) for grant in live if (grant.node, grant.session) == (node, session)]
        for grant in changed:
            self._keep(grant)
        return changed

    # -- what lies in the bucket -----------------------------------------------------------------------------

    def view(self, ref: ObjectRef) -> ObjectView:
        """See ``Ledger.view``."""
        self._channel(ref.channel)
        return self._view(ref)

    def settle(self, ref: ObjectRef, found: Found | None, now: float, grace: float) -> ObjectView | None:
        """See ``Ledger.settle``."""
        of = self._channel(ref.channel)
        slot = self._slots.get(ref)
        if slot is None:
            return ObjectView(nothing(ref)) if found is None else None
        grants = [self._grants[grant] for grant in slot.grants]
        settlement = settled(slot.record, grants, found, now, grace, of.quota - of.charged)
        if settlement is None:
            return None
        for grant in settlement.grants:
            self._keep(grant)
        self._change(of, slot, settlement.record, settlement.cost)
        return self._view(ref)

    def adopt(self, ref: ObjectRef, found: Found, opening: Opening, now: float) -> ObjectView | None:
        """See ``Ledger.adopt``."""
        of, slot = self._channel(ref.channel), self._slots.get(ref)
        before = nothing(ref) if slot is None else slot.record
        after = adopted(before, found, now, of.quota - of.charged)
        if after is None:
            return None
        if slot is None:
            slot = self._slots[ref] = _Slot(before)
            self._streams.setdefault((ref.channel, ref.stream), {})[ref] = slot
        self._change(of, slot, after)
        self.learn(ref.channel, ref.stream, opening)
        return self._view(ref)

    def charted(
        self, channel: str, lock: bytes, after: Place | None, through: Place | None, limit: int = 1000
    ) -> list[ObjectView]:
        """See ``Ledger.charted``."""
        self._channel(channel)
        places = sorted(
            (ref.stream, ref.number)
            for ref, slot in self._slots.items()
            if (ref.channel, ref.lock) == (channel, lock) and slot.record.status is not ObjectStatus.ABSENT
        )
        inside = [p for p in places if (after is None or p > after) and (through is None or p <= through)]
        return [self._view(ObjectRef(channel, lock, *place)) for place in inside[: max(limit, 0)]]

    def clear_tombstone(self, ref: ObjectRef, now: float) -> None:
        """See ``Ledger.clear_tombstone``."""
        del now
        of, slot = self._channel(ref.channel), self._slots.get(ref)
        if slot is not None and slot.record.tombstone:
            self._change(of, slot, cleared(slot.record))

    def stale(self, now: float, grace: float, limit: int = 100, channel: str | None = None) -> list[ObjectRecord]:
        """See ``Ledger.stale``."""
        found = (
            slot.record
            for slot in self._slots.values()
            if channel in {None, slot.record.ref.channel}
            and restless(slot.record, self._live_of(slot) is not None, now, grace)
        )
        return [record for record, _ in zip(found, range(max(limit, 0)), strict=False)]

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
        del grace
        of = self._channel(channel)
        lacked: list[Candidate[ObjectRef]] = []
        choice = choose(unlacked(self._candidates(of, now), lacked), max(need, wish), limit, of.level, now)
        chosen = list(choice.chosen)
        short = need - sum(self._slots[ref].record.size for ref in chosen)
        if short > 0 and len(chosen) < limit:
            wishes = wishes_of(of, now)
            if self._yield_leases(of, wishes, now, head, stalled):
                lacked = []
                for _ in unlacked(self._candidates(of, now), lacked):
                    pass
            found = [readied(self._slots[c.key]) for c in lacked]
            if head is not None:
                found = [ready for ready in found if not untold(ready, wishes)]
            chosen += latest(found, wishes, short, limit - len(chosen))
        if not chosen:
            return []
        for ref, standing in choice.raised:
            self._slots[ref].merit = replace(self._slots[ref].merit, standing=standing)
        for ref in chosen:
            self._slots[ref].record = replace(self._slots[ref].record, status=ObjectStatus.EVICTING)
        of.level = choice.level
        return [self._slots[ref].record for ref in chosen]

    def _has_objects(self, channel: str, stream: bytes) -> bool:
        return bool(self._stream(channel, stream))

    def _quota(self, channel: str) -> int:
        return self._channel(channel).quota

    def _stored(self, channel: str, stream: bytes) -> tuple[int, int]:
        held = {ObjectStatus.READY, ObjectStatus.EVICTING}
        sizes = [s.record.size for s in self._stream(channel, stream).values() if s.record.status in held]
        return len(sizes), sum(sizes)

    def _yield_leases(
        self, of: _Channel, wishes: Wishes, now: float, head: Front | None, stalled: Collection[Front]
    ) -> bool:
        if head is None and not stalled:
            return False
        leased = [
            readied(slot)
            for ref, slot in self._slots.items()
            if ref.channel == of.name
            and slot.record.status is ObjectStatus.READY
            and any(until > now and not got for until, got in slot.reads.values())
        ]
        leased.sort(key=lambda ready: ready.place)
        ending = yielding(leased, wishes, of.quota, now, head, stalled)
        for ready in ending:
            reads = self._slots[ready.key].reads
            reads.update({node: (min(until, now), got) for node, (until, got) in reads.items()})
        return bool(ending)

    def condemn(self, ref: ObjectRef, etag: str | None, now: float) -> ObjectRecord | None:
        """See ``Ledger.condemn``."""
        del now
        self._channel(ref.channel)
        slot = self._slots.get(ref)
        if slot is None or slot.record.status is not ObjectStatus.READY:
            return None
        if etag is not None and slot.record.etag != etag:
            return None
        slot.record = replace(slot.record, status=ObjectStatus.EVICTING)
        for grant in disgraced(self._grants[grant] for grant in slot.grants):
            self._keep(grant)
        return slot.record

    def evict_end(self, ref: ObjectRef, tombstone: bool, now: float) -> None:
        """See ``Ledger.evict_end``."""
        del now
        of, slot = self._channel(ref.channel), self._slots.get(ref)
        if slot is not None and slot.record.status is ObjectStatus.EVICTING:
            self._change(of, slot, evicted(slot.record, tombstone))

    def got(self, channel: str, stream: bytes, node: str, numbers: Sequence[int], now: float) -> None:
        """See ``Ledger.got``."""
        self._channel(channel)
        wanted = set(numbers)
        for ref, slot in self._stream(channel, stream).items():
            if ref.number in wanted and node in slot.reads:
                slot.reads[node] = min(slot.reads[node][0], now), True

    def lend(self, refs: Sequence[ObjectRef], nodes: Sequence[str], until: float, now: float) -> None:
        """See ``Ledger.lend``."""
        del now
        for ref in refs:
            self._channel(ref.channel)
        for ref in refs:
            slot = self._slots.get(ref)
            if slot is not None and slot.record.status is ObjectStatus.READY:
                for node in nodes:
                    _lease(slot, node, until)

    def summary(self, channel: str, stream: bytes, lock: bytes) -> tuple[int, int]:
        """See ``Ledger.summary``."""
        self._channel(channel)
        sizes = [
            slot.record.size
            for ref, slot in self._stream(channel, stream).items()
            if ref.lock == lock and slot.record.status is ObjectStatus.READY
        ]
        return len(sizes), sum(sizes)

    def usage(self, channel: str) -> Usage:
        """See ``Ledger.usage``."""
        of = self._channel(channel)
        records = [slot.record for ref, slot in self._slots.items() if ref.channel == channel]
        stored = [r.size for r in records if r.status in {ObjectStatus.READY, ObjectStatus.EVICTING}]
        held = [r.size for r in records if r.status is ObjectStatus.RESERVED]
        return Usage(of.quota, of.charged, sum(stored), sum(held), len(stored))

    def strike(self, channel: str, node: str, reason: str, now: float) -> int:
        """See ``Ledger.strike``."""
        del reason
        of = self._channel(channel)
        of.strikes.append((node, now))
        return sum(1 for who, at in of.strikes if who == node and at > now - STRIKE_WINDOW)

    def prune(self, before: float, limit: int = 10_000) -> int:
        """See ``Ledger.prune``."""
        gone = 0
        for of in self._channels.values():
            past = [key for key, want in of.wants.items() if want.record.order.until < before]
            for key in past:
                del of.wants[key]
            strikes = [strike for strike in of.strikes if strike[1] >= before - STRIKE_WINDOW]
            gone += len(past) + len(of.strikes) - len(strikes)
            of.strikes = strikes
        for slot in self._slots.values():
            over = [node for node, (until, _) in slot.reads.items() if until < before]
            for node in over:
                del slot.reads[node]
            gone += len(over)
        return gone + self._prune_grants(before, limit) + self._prune_objects(before, limit)

    # -- inside ----------------------------------------------------------------------------------------------

    def _prune_grants(self, before: float, limit: int) -> int:
        old = [
            grant
            for grant in self._grants.values()
            if grant.status not in LIVE and max(grant.put_until, grant.lease_until, grant.granted_at) < before
        ][: max(limit, 0)]
        for grant in old:
            del self._grants[grant.grant]
            self._slots[grant.ref].grants.remove(grant.grant)
        return len(old)

    def _prune_objects(self, before: float, limit: int) -> int:
        old = [
            ref
            for ref, slot in self._slots.items()
            if slot.record.status is ObjectStatus.ABSENT and slot.record.put_until < before and not slot.grants
        ][: max(limit, 0)]
        for ref in old:
            del self._slots[ref]
            del self._streams[ref.channel, ref.stream][ref]
        return len(old)

    def _channel(self, name: str) -> _Channel:
        found = self._channels.get(name)
        if found is None:
            raise NotFound(f"there is no channel {name}", kind="no-such-channel", channel=name)
        return found

    def _stream(self, channel: str, stream: bytes) -> dict[ObjectRef, _Slot]:
        return self._streams.get((channel, stream), {})

    def _keep(self, grant: GrantRecord) -> None:
        self._grants[grant.grant] = grant
        if grant.status in LIVE:
            self._live[grant.grant] = None
        else:
            self._live.pop(grant.grant, None)

    def _live_of(self, slot: _Slot) -> GrantRecord | None:
        return next((self._grants[grant] for grant in reversed(slot.grants) if grant in self._live), None)

    def _view(self, ref: ObjectRef) -> ObjectView:
        slot = self._slots.get(ref)
        return ObjectView(nothing(ref)) if slot is None else ObjectView(slot.record, self._live_of(slot))

    def _change(self, of: _Channel, slot: _Slot, record: ObjectRecord, cost: float | None = None) -> None:
        before = slot.record
        slot.record = record
        of.charged += charge(record) - charge(before)
        if record.status is ObjectStatus.READY and before.status is not ObjectStatus.READY:
            of.ready_count += 1
            slot.ready_number = of.ready_count
            slot.merit = arrived(slot.merit, cost, of.level, of.evicted, of.quota)
        if before.status is ObjectStatus.EVICTING and record.status is not ObjectStatus.EVICTING:
            of.evicted += before.size
            slot.merit = left(slot.merit, of.evicted)
        if record.status is not ObjectStatus.READY and before.status in {ObjectStatus.READY, ObjectStatus.EVICTING}:
            slot.reads.clear()

    def _candidates(self, of: _Channel, now: float) -> Iterator[Candidate[ObjectRef]]:
        wanted = wishes_of(of, now)
        ready = [
            slot
            for ref, slot in self._slots.items()
            if ref.channel == of.name and slot.record.status is ObjectStatus.READY
        ]
        ready.sort(key=lambda slot: (slot.merit.standing, -slot.ready_number))
        for slot in ready:
            ref = slot.record.ref
            if self._is_pinned(ref) or any(until > now for until, _ in slot.reads.values()):
                continue
            waiting = any(
                not slot.reads.get(node, (0.0, False))[1] for node in wanted.get((ref.lock, ref.stream, ref.number), ())
            )
            holders = self._holders_online(of.members, of.holders.get(ref.stream, ()), now)
            record, merit = slot.record, slot.merit
            yield Candidate(
                ref,
                slot.ready_number,
                record.size,
                merit.standing,
                merit.visits,
                waiting,
                merit.cost,
                holders,
                record.used_at,
            )
