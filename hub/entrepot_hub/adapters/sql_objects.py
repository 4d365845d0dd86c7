"""The SQL ledger's objects: what lies in the bucket, what it is charged, what leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import batched
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot.core import ranges
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.ledger_rows import (
    CHUNK,
    LIVE_NOW,
    READY_NOW,
    Account,
    Key,
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
from entrepot_hub.core.eviction import Candidate, sieve
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
from entrepot_hub.core.transitions import STRIKE_WINDOW, cleared, evicted, nothing, settled

#: Candidates for eviction that are looked at together.
_PAGE: Final = 64

_o, _g, _c, _r, _w = t.objects.c, t.grants.c, t.channels.c, t.reads.c, t.wants.c

_NOW: Final[sa.BindParameter[float]] = sa.bindparam("now")
_GRACE: Final[sa.BindParameter[float]] = sa.bindparam("grace")
_GRANTS_OF: Final = (
    sa.select(t.grants).where(_g.object_id == sa.bindparam("at_object")).order_by(_g.id).with_for_update()
)
_MAY_LAND: Final = sa.and_(_o.put_until > 0, _o.put_until + _GRACE >= _NOW)
_STALE: Final = (
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
                ~_MAY_LAND,
                ~sa.exists().where(_g.object_id == _o.id, LIVE_NOW),
            ),
        ),
    )
    .order_by(_o.id)
    .limit(sa.bindparam("most"))
)
_READY_PAGE: Final = (
    sa.select(t.objects)
    .where(
        _o.channel_id == sa.bindparam("channel"),
        READY_NOW,
        _o.ready_number > sa.bindparam("after"),
        _o.ready_number <= sa.bindparam("last"),
    )
    .order_by(_o.ready_number)
    .limit(_PAGE)
)
_READS_OF: Final = sa.select(t.reads).where(_r.object_id.in_(sa.bindparam("ids", expanding=True)))
_ACTIVE_WANTS: Final = sa.select(_w.lock, _w.stream, _w.node, _w.ranges, _w.window).where(
    _w.channel_id == sa.bindparam("channel"), _w.until > _NOW
)
_FORGET_READS: Final = sa.delete(t.reads).where(_r.object_id == sa.bindparam("at_object"))
_CLEAR_VISITED: Final = sa.update(t.objects).where(_o.id.in_(sa.bindparam("ids", expanding=True))).values(visited=False)
_EVICT: Final = (
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
                self._change(connection, of, slot, settlement.record)
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

    def stale(self, now: float, grace: float, limit: int = 100) -> list[ObjectRecord]:
        """See ``Ledger.stale``."""
        with self._transaction() as connection:
            rows = connection.execute(_STALE, {"now": now, "grace": grace, "most": max(limit, 0)})
            return [to_object(row, row.channel) for row in rows]

    def evict_begin(self, channel: str, need: int, now: float, grace: float, limit: int = 64) -> list[ObjectRecord]:
        """See ``Ledger.evict_begin``."""
        del grace
        with self._transaction() as connection:
            of = account(connection, channel, "own")
            met: dict[int, ObjectRecord] = {}
            choice = sieve(_candidates(connection, of, now, met), need, limit, of.hand)
            if not choice.chosen:
                return []
            for part in batched(choice.cleared, CHUNK):
                connection.execute(_CLEAR_VISITED, {"ids": list(part)})
            for part in batched(choice.chosen, CHUNK):
                connection.execute(_EVICT, {"ids": list(part)})
            of.hand = choice.hand
            keep_account(connection, of)
            return [replace(met[key], status=ObjectStatus.EVICTING) for key in choice.chosen]

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

    def _change(self, connection: Connection, of: Account, slot: Slot, record: ObjectRecord) -> None:
        """Write an object's new record, with what it changes in the channel's account and read leases."""
        before = slot.record
        slot.record = record
        of.charged += charge(record) - charge(before)
        if record.status is ObjectStatus.READY and before.status is not ObjectStatus.READY:
            of.ready_count += 1
            slot.ready_number = of.ready_count
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
    """Ready objects without a live read lease as the hand meets them, once around; noted in ``met``."""
    wanted = _wanted(connection, of, now)
    for after, last in ((of.hand, of.ready_count), (0, of.hand)):
        place = after
        while rows := connection.execute(_READY_PAGE, {"channel": of.id, "after": place, "last": last}).all():
            place = rows[-1].ready_number
            slots = {row.id: to_slot(row, of.name) for row in rows}
            leased: set[int] = set()
            got: set[tuple[int, str]] = set()
            for read in connection.execute(_READS_OF, {"ids": list(slots)}):
                if read.until > now:
                    leased.add(read.object_id)
                if read.got:
                    got.add((read.object_id, read.node))
            for key, slot in slots.items():
                if key not in leased:
                    met[key] = slot.record
                    waiting = any((key, node) not in got for node in wanted.get(key_of(slot.record.ref), ()))
                    yield Candidate(key, slot.ready_number, slot.record.size, slot.record.visited, waiting)


def _wanted(connection: Connection, of: Account, now: float) -> dict[Key, list[str]]:
    """Objects inside the window of an active want, with the nodes that want them."""
    wanted: dict[Key, list[str]] = {}
    for row in connection.execute(_ACTIVE_WANTS, {"channel": of.id, "now": now}):
        for number in ranges.front(((first, last) for first, last in row.ranges), row.window):
            wanted.setdefault((bytes(row.lock), bytes(row.stream), number), []).append(row.node)
    return wanted
