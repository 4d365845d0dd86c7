"""The SQL ledger's objects: what lies in the bucket, what it is charged, what leaves it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import batched
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.ledger_rows import (
    CHUNK,
    LIVE_NOW,
    READY_NOW,
    Account,
    LedgerRows,
    Slot,
    account,
    find_object,
    keep_account,
    keep_grants,
    keep_objects,
    key_of,
    live_grants,
    to_grant,
    to_object,
    to_slot,
)
from entrepot_hub.adapters.steady import steady
from entrepot_hub.core.eviction import ONLINE, Candidate, arrived, choose, left
from entrepot_hub.core.ledger import (
    LIVE,
    Found,
    GrantRecord,
    ObjectRecord,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    Usage,
    charge,
)
from entrepot_hub.core.members import NodeStatus
from entrepot_hub.core.transitions import STRIKE_WINDOW, cleared, disgraced, evicted, nothing, settled
from entrepot_hub.core.wishes import Front, Read, Ready, Wish, Wishes, latest, unlacked, untold, yielding

#: Candidates for eviction that are looked at together.
_PAGE: Final = 64

_o, _g, _c, _r, _w = t.objects.c, t.grants.c, t.channels.c, t.reads.c, t.wants.c
_h, _n, _m = t.holders.c, t.nodes.c, t.memberships.c

_NOW: Final[sa.BindParameter[float]] = sa.bindparam("now")
_GRACE: Final[sa.BindParameter[float]] = sa.bindparam("grace")
_GRANTS_OF: Final = steady(
    sa.select(t.grants).where(_g.object_id == sa.bindparam("at_object")).order_by(_g.id).with_for_update()
)
_MAY_LAND: Final = sa.and_(_o.put_until > 0, _o.put_until + _GRACE >= _NOW)
_STALE: Final = steady(
    sa.select(t.objects, _c.name.label("channel"))
    .join(t.channels, _c.id == _o.channel_id)
    .where(
        # Written out for the partial index.
        _o.status.in_(
            [sa.literal_column("'reserved'"), sa.literal_column("'evicting'"), sa.literal_column("'tombstone'")]
        ),
        sa.or_(
            _o.status == ObjectStatus.EVICTING.value,
            sa.and_(_o.status == ObjectStatus.TOMBSTONE.value, ~_MAY_LAND),
            sa.and_(
                _o.status == ObjectStatus.RESERVED.value,
                sa.or_(_o.tombstone, ~_MAY_LAND),
                ~sa.exists().where(_g.object_id == _o.id, LIVE_NOW),
            ),
        ),
    )
    .order_by(_o.id)
    .limit(sa.bindparam("most"))
)
_STALE_IN: Final = steady(_STALE.where(_c.name == sa.bindparam("name")))
_READY_PAGE: Final = steady(
    sa.select(t.objects)
    .where(
        _o.channel_id == sa.bindparam("channel"),
        READY_NOW,
        # Written so that the index is entered at the place where the last page ended.
        _o.standing >= sa.bindparam("low"),
        sa.or_(_o.standing > sa.bindparam("low"), _o.ready_number < sa.bindparam("before")),
        ~sa.exists().where(t.pins.c.channel_id == _o.channel_id, t.pins.c.stream == _o.stream),
    )
    .order_by(_o.standing, _o.ready_number.desc())
    .limit(_PAGE)
)
_ONLINE: Final = steady(
    sa.select(_h.stream, sa.func.count().label("holders"))
    .join(t.nodes, _n.public == _h.node)
    .join(t.memberships, sa.and_(_m.channel_id == _h.channel_id, _m.node == _h.node))
    .where(
        _h.channel_id == sa.bindparam("channel"),
        _h.stream.in_(sa.bindparam("streams", expanding=True)),
        _n.status == NodeStatus.ACTIVE.value,
        _m.revoked_at.is_(None),
        sa.or_(_n.seen_at.is_(None), _n.seen_at > sa.bindparam("since")),
    )
    .group_by(_h.stream)
)
_READS_OF: Final = steady(sa.select(t.reads).where(_r.object_id.in_(sa.bindparam("ids", expanding=True))))
_ACTIVE_WANTS: Final = steady(
    sa.select(_w.lock, _w.stream, _w.node, _w.ranges, _w.window).where(
        _w.channel_id == sa.bindparam("channel"), _w.until > _NOW
    )
)
_LEASED: Final = steady(
    sa.select(_o.id, _o.lock, _o.stream, _o.number, _o.size, _o.ready_number, _r.node, _r.until)
    .join(t.reads, _r.object_id == _o.id)
    .where(_o.channel_id == sa.bindparam("channel"), READY_NOW, _r.until > _NOW, ~_r.got)
    .order_by(_o.ready_number, _r.node)
)
_END_READS: Final = steady(
    sa.update(t.reads).where(_r.object_id.in_(sa.bindparam("ids", expanding=True)), _r.until > _NOW).values(until=_NOW)
)
_FORGET_READS: Final = steady(sa.delete(t.reads).where(_r.object_id == sa.bindparam("at_object")))
_RAISE: Final = steady(sa.update(t.objects).where(_o.id == sa.bindparam("at_id")).values(standing=sa.bindparam("to")))
_EVICT: Final = steady(
    sa.update(t.objects)
    .where(_o.id.in_(sa.bindparam("ids", expanding=True)))
    .values(status=ObjectStatus.EVICTING.value)
)
_SUMMARY: Final = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_o.size), 0)).where(
    _o.channel_id == sa.bindparam("channel"),
    _o.stream == sa.bindparam("at_stream"),
    _o.lock == sa.bindparam("at_lock"),
    READY_NOW,
)
_USAGE: Final = (
    sa.select(_o.status, sa.func.count().label("objects"), sa.func.coalesce(sa.func.sum(_o.size), 0).label("bytes"))
    .where(_o.channel_id == sa.bindparam("channel"))
    .group_by(_o.status)
)


class SqlObjects(LedgerRows):
    """The bucket as the ledger knows it."""

    def view(self, ref: ObjectRef) -> ObjectView:
        """See ``Ledger.view``."""
        with self._transaction() as connection:
            slot = find_object(connection, account(connection, ref.channel), ref)
            return ObjectView(nothing(ref)) if slot is None else _view(connection, slot)

    def settle(self, ref: ObjectRef, found: Found | None, now: float, grace: float) -> ObjectView | None:
        """See ``Ledger.settle``."""
        with self._transaction() as connection:
            of = account(connection, ref.channel, "own")
            slot = find_object(connection, of, ref)
            if slot is None:
                return ObjectView(nothing(ref)) if found is None else None
            rows = connection.execute(_GRANTS_OF, {"at_object": slot.id})
            grants = {grant.grant: grant for grant in (to_grant(row, ref) for row in rows)}
            settlement = settled(slot.record, list(grants.values()), found, now, grace, of.free)
            if settlement is None:
                return None
            grants.update((grant.grant, grant) for grant in settlement.grants)
            keep_grants(connection, settlement.grants)
            if settlement.record != slot.record:
                self._change(connection, of, slot, settlement.record, settlement.cost)
            live = next((grant for grant in grants.values() if grant.status in LIVE), None)
            return ObjectView(settlement.record, live)

    def clear_tombstone(self, ref: ObjectRef, now: float) -> None:
        """See ``Ledger.clear_tombstone``."""
        del now
        with self._transaction() as connection:
            of = account(connection, ref.channel, "own")
            slot = find_object(connection, of, ref)
            if slot is not None and slot.record.tombstone:
                self._change(connection, of, slot, cleared(slot.record))

    def stale(self, now: float, grace: float, limit: int = 100, channel: str | None = None) -> list[ObjectRecord]:
        """See ``Ledger.stale``."""
        values = {"now": now, "grace": grace, "most": max(limit, 0)}
        with self._transaction() as connection:
            if channel is None:
                rows = connection.execute(_STALE, values)
            else:
                rows = connection.execute(_STALE_IN, values | {"name": channel})
            return [to_object(row, row.channel) for row in rows]

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
        with self._transaction() as connection:
            of = account(connection, channel, "own")
            met: dict[int, ObjectRecord] = {}
            lacked: list[Candidate[int]] = []
            candidates = unlacked(_candidates(connection, of, now, met), lacked)
            choice = choose(candidates, max(need, wish), limit, of.level, now)
            chosen = list(choice.chosen)
            short = need - sum(met[key].size for key in chosen)
            if short > 0 and len(chosen) < limit:
                wishes = _wanted(connection, of, now)
                if _yield_leases(connection, of, wishes, now, head, stalled):
                    lacked = []
                    for _ in unlacked(_candidates(connection, of, now, met), lacked):
                        pass
                found = _readied(connection, lacked, met)
                if head is not None:
                    found = [ready for ready in found if not untold(ready, wishes)]
                chosen += latest(found, wishes, short, limit - len(chosen))
            if not chosen:
                return []
            if choice.raised:
                connection.execute(_RAISE, [{"at_id": key, "to": standing} for key, standing in choice.raised])
            for part in batched(chosen, CHUNK):
                connection.execute(_EVICT, {"ids": list(part)})
            of.level = choice.level
            keep_account(connection, of)
            return [replace(met[key], status=ObjectStatus.EVICTING) for key in chosen]

    def condemn(self, ref: ObjectRef, etag: str | None, now: float) -> ObjectRecord | None:
        """See ``Ledger.condemn``."""
        del now
        with self._transaction() as connection:
            of = account(connection, ref.channel, "own")
            slot = find_object(connection, of, ref)
            if slot is None or slot.record.status is not ObjectStatus.READY:
                return None
            if etag is not None and slot.record.etag != etag:
                return None
            slot.record = replace(slot.record, status=ObjectStatus.EVICTING)
            keep_objects(connection, [slot])
            rows = connection.execute(_GRANTS_OF, {"at_object": slot.id})
            keep_grants(connection, disgraced(to_grant(row, ref) for row in rows))
            return slot.record

    def evict_end(self, ref: ObjectRef, tombstone: bool, now: float) -> None:
        """See ``Ledger.evict_end``."""
        del now
        with self._transaction() as connection:
            of = account(connection, ref.channel, "own")
            slot = find_object(connection, of, ref)
            if slot is not None and slot.record.status is ObjectStatus.EVICTING:
                self._change(connection, of, slot, evicted(slot.record, tombstone))

    def summary(self, channel: str, stream: bytes, lock: bytes) -> tuple[int, int]:
        """See ``Ledger.summary``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            count, size = connection.execute(_SUMMARY, {"channel": of.id, "at_stream": stream, "at_lock": lock}).one()
            return int(count), int(size)

    def usage(self, channel: str) -> Usage:
        """See ``Ledger.usage``."""
        with self._transaction() as connection:
            of = account(connection, channel, "share")
            rows = {row.status: row for row in connection.execute(_USAGE, {"channel": of.id})}
            stored = [rows[status] for status in (ObjectStatus.READY, ObjectStatus.EVICTING) if status in rows]
            reserved = rows.get(ObjectStatus.RESERVED)
            return Usage(
                quota=of.quota,
                charged=of.charged,
                stored=sum(int(row.bytes) for row in stored),
                reserved=0 if reserved is None else int(reserved.bytes),
                objects=sum(int(row.objects) for row in stored),
            )

    def prune(self, before: float, limit: int = 10_000) -> int:
        """See ``Ledger.prune``."""
        h = t.strikes.c
        old = [
            (t.wants, _w.until < before),
            (t.reads, _r.until < before),
            (t.strikes, h.at < before - STRIKE_WINDOW),
            (t.grants, sa.and_(~LIVE_NOW, _g.put_until < before, _g.lease_until < before, _g.granted_at < before)),
            (
                t.objects,
                sa.and_(
                    _o.status == ObjectStatus.ABSENT.value,
                    _o.put_until < before,
                    ~sa.exists().where(_g.object_id == _o.id),
                ),
            ),
        ]
        gone = 0
        with self._transaction() as connection:
            for table, over in old:
                where = over
                if table is not t.reads:
                    some = sa.select(table.c.id).where(over).order_by(table.c.id).limit(max(limit, 0))
                    where = table.c.id.in_(some)
                gone += connection.execute(sa.delete(table).where(where)).rowcount
        return gone

    def _change(
        self, connection: Connection, of: Account, slot: Slot, record: ObjectRecord, cost: float | None = None
    ) -> None:
        """Write an object's new record, with what it changes in the channel's account and read leases."""
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
            connection.execute(_FORGET_READS, {"at_object": slot.id})
        keep_objects(connection, [slot])
        keep_account(connection, of)


def _view(connection: Connection, slot: Slot) -> ObjectView:
    live: GrantRecord | None = next(iter(live_grants(connection, [slot]).values()), None)
    return ObjectView(slot.record, live)


def _candidates(
    connection: Connection, of: Account, now: float, met: dict[int, ObjectRecord]
) -> Iterator[Candidate[int]]:
    """Ready objects that are not pinned and have no live read lease, by standing; noted in ``met``."""
    wanted = _wanted(connection, of, now)
    low, before = -1.0, 0
    while rows := connection.execute(_READY_PAGE, {"channel": of.id, "low": low, "before": before}).all():
        low, before = rows[-1].standing, rows[-1].ready_number
        slots = {row.id: to_slot(row, of.name) for row in rows}
        leased: set[int] = set()
        got: set[tuple[int, str]] = set()
        for read in connection.execute(_READS_OF, {"ids": list(slots)}):
            if read.until > now:
                leased.add(read.object_id)
            if read.got:
                got.add((read.object_id, read.node))
        streams = {slot.record.ref.stream for slot in slots.values()}
        values = {"channel": of.id, "streams": sorted(streams), "since": now - ONLINE}
        holders = {bytes(row.stream): row.holders for row in connection.execute(_ONLINE, values)}
        for key, slot in slots.items():
            if key not in leased:
                met[key] = slot.record
                yield Candidate(
                    key=key,
                    place=slot.ready_number,
                    size=slot.record.size,
                    standing=slot.merit.standing,
                    visits=slot.merit.visits,
                    wanted=any((key, node) not in got for node in wanted.get(key_of(slot.record.ref), ())),
                    cost=slot.merit.cost,
                    holders=holders.get(slot.record.ref.stream, 0),
                    used_at=slot.record.used_at,
                )


def _wanted(connection: Connection, of: Account, now: float) -> Wishes:
    """What the nodes with an active want lack."""
    return Wishes(
        (
            bytes(row.lock),
            bytes(row.stream),
            Wish(row.node, tuple((first, last) for first, last in row.ranges), row.window),
        )
        for row in connection.execute(_ACTIVE_WANTS, {"channel": of.id, "now": now})
    )


def _readied(
    connection: Connection, candidates: Sequence[Candidate[int]], met: Mapping[int, ObjectRecord]
) -> list[Ready[int]]:
    """These candidates with their reads."""
    reads: dict[int, list[Read]] = {}
    for part in batched((candidate.key for candidate in candidates), CHUNK):
        for row in connection.execute(_READS_OF, {"ids": list(part)}):
            reads.setdefault(row.object_id, []).append(Read(row.node, row.until, row.got))
    return [Ready(c.key, key_of(met[c.key].ref), c.size, c.place, tuple(reads.get(c.key, ()))) for c in candidates]


def _yield_leases(
    connection: Connection, of: Account, wishes: Wishes, now: float, head: Front | None, stalled: Collection[Front]
) -> bool:
    """End the read leases that give way to ``head``; whether there were any."""
    if head is None and not stalled:
        return False
    objects: dict[int, Ready[int]] = {}
    for row in connection.execute(_LEASED, {"channel": of.id, "now": now}):
        name = (bytes(row.lock), bytes(row.stream), row.number)
        read = Read(row.node, row.until, False)
        before = objects.get(row.id)
        reads = (read,) if before is None else (*before.reads, read)
        objects[row.id] = Ready(row.id, name, row.size, row.ready_number, reads)
    ending = [ready.key for ready in yielding(objects.values(), wishes, of.quota, now, head, stalled)]
    for part in batched(ending, CHUNK):
        connection.execute(_END_READS, {"ids": list(part), "now": now})
    return bool(ending)
