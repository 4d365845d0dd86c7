"""The SQL ledger's wants, openings, holders, read leases and strikes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import batched
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from entrepot.core.identifiers import Opening, StreamKind
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.ledger_rows import (
    CHUNK,
    LIVE_NOW,
    READY_NOW,
    Account,
    LedgerRows,
    Slot,
    account,
    find_objects,
    key_of,
    live_grants,
)
from entrepot_hub.adapters.steady import steady
from entrepot_hub.core.eviction import visited
from entrepot_hub.core.ledger import (
    HolderRecord,
    ObjectRecord,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    WantOrder,
    WantRecord,
    WantView,
)
from entrepot_hub.core.members import NodeStatus, Right, provide_right
from entrepot_hub.core.transitions import STRIKE_WINDOW, nothing

#: Ranges of ready and of uploading objects in one answer to a want.
MAX_RANGES: Final = 64

_o, _g, _c, _w, _r = t.objects.c, t.grants.c, t.channels.c, t.wants.c, t.reads.c
_h, _m, _n = t.holders.c, t.memberships.c, t.nodes.c


def _islands(where: sa.ColumnElement[bool]) -> sa.Select[int, int]:
    """Runs of consecutive object numbers of one stream as (first, last), ascending."""
    run = (_o.number - sa.func.row_number().over(order_by=_o.number)).label("run")
    numbered = (
        sa.select(_o.number, run)
        .where(
            _o.channel_id == sa.bindparam("channel"),
            _o.lock == sa.bindparam("at_lock"),
            _o.stream == sa.bindparam("at_stream"),
            where,
        )
        .subquery()
    )
    first = sa.func.min(numbered.c.number)
    return sa.select(first, sa.func.max(numbered.c.number)).group_by(numbered.c.run).order_by(first).limit(MAX_RANGES)


_READY_RANGES: Final = steady(_islands(READY_NOW))
#: Whatever has a live grant is RESERVED.
_UPLOADING_RANGES: Final = steady(
    _islands(sa.and_(_o.status == sa.literal_column("'reserved'"), sa.exists().where(_g.object_id == _o.id, LIVE_NOW)))
)
_OPENING: Final = steady(
    sa.select(t.streams.c.length, t.streams.c.root).where(
        t.streams.c.channel_id == sa.bindparam("channel"), t.streams.c.stream == sa.bindparam("at_stream")
    )
)
_TOUCH: Final = steady(
    sa.update(t.objects).where(_o.id.in_(sa.bindparam("ids", expanding=True))).values(used_at=sa.bindparam("at"))
)
#: The objects of these that the node is reading already, having been told of them.
_READING: Final = steady(
    sa.select(_r.object_id).where(
        _r.object_id.in_(sa.bindparam("ids", expanding=True)),
        _r.node == sa.bindparam("at_node"),
        _r.until > sa.bindparam("now"),
        ~_r.got,
    )
)
_VISIT: Final = steady(
    sa.update(t.objects)
    .where(_o.id == sa.bindparam("at_id"))
    .values(visits=sa.bindparam("new_visits"), standing=sa.bindparam("new_standing"))
)
_WANTS: Final = sa.select(t.wants, _c.name.label("channel")).join(t.channels, _c.id == _w.channel_id)
_STREAM_WANTS: Final = steady(
    _WANTS.where(
        _w.channel_id == sa.bindparam("at_channel"),
        _w.stream == sa.bindparam("at_stream"),
        _w.until > sa.bindparam("now"),
    ).order_by(_w.created_at, _w.id)
)
_OPEN_WANTS: Final = steady(
    _WANTS.where(_w.until > sa.bindparam("now"), _w.id > sa.bindparam("after"))
    .order_by(_w.id)
    .limit(sa.bindparam("most"))
)
_CHANNEL_WANTS: Final = steady(_OPEN_WANTS.where(_w.channel_id == sa.bindparam("at_channel")))


#: The read leases of a node on objects of a stream.
_LEASES: Final = sa.and_(
    _r.node == sa.bindparam("at_node"),
    _r.object_id.in_(
        sa.select(_o.id).where(_o.channel_id == sa.bindparam("channel"), _o.stream == sa.bindparam("at_stream"))
    ),
)
_FORGET_STREAM: Final = steady(sa.delete(t.reads).where(_LEASES))
_FORGET_ELSEWHERE: Final = steady(
    sa.delete(t.reads).where(
        _r.node == sa.bindparam("at_node"),
        _r.object_id.in_(
            sa.select(_o.id).where(
                _o.channel_id == sa.bindparam("channel"),
                _o.stream == sa.bindparam("at_stream"),
                sa.or_(
                    _o.lock != sa.bindparam("at_lock"),
                    _o.number.not_in(sa.bindparam("numbers", expanding=True)),
                ),
            )
        ),
    )
)
_FORGET_WANT: Final = steady(
    sa.delete(t.wants).where(
        _w.channel_id == sa.bindparam("channel"),
        _w.stream == sa.bindparam("at_stream"),
        _w.node == sa.bindparam("at_node"),
    )
)
_GOT: Final = steady(
    sa.update(t.reads)
    .where(
        _r.node == sa.bindparam("at_node"),
        _r.object_id.in_(
            sa.select(_o.id).where(
                _o.channel_id == sa.bindparam("channel"),
                _o.stream == sa.bindparam("at_stream"),
                _o.number.in_(sa.bindparam("numbers", expanding=True)),
            )
        ),
    )
    .values(got=True, until=sa.case((_r.until > sa.bindparam("now"), sa.bindparam("now")), else_=_r.until))
)
_HOLDERS: Final = steady(
    sa.select(_h.node, _n.name, _h.seen_at)
    .join(t.nodes, _n.public == _h.node)
    .join(t.memberships, sa.and_(_m.channel_id == _h.channel_id, _m.node == _h.node))
    .where(
        _h.channel_id == sa.bindparam("channel"),
        _h.stream == sa.bindparam("at_stream"),
        _n.status == NodeStatus.ACTIVE.value,
        _m.revoked_at.is_(None),
        sa.or_(_m.rights.contains(sa.bindparam("right")), _m.rights.contains(Right.OWNER.value)),
    )
    .order_by(_h.seen_at.desc(), _h.node)
    .limit(sa.bindparam("most"))
)


@dataclass(frozen=True, slots=True)
class _Upserts:
    """What the engines write each in their own words."""

    want: Any
    read: Any
    holder: Any
    stream: Any


@cache
def _upserts(*, sqlite: bool) -> _Upserts:
    insert = sqlite_insert if sqlite else postgresql_insert
    want, read, holder = insert(t.wants), insert(t.reads), insert(t.holders)
    renewed = ("lock", "ranges", "window", "until", "keep", "transfer", "heard_at")
    longest = sa.case((read.excluded.until > _r.until, read.excluded.until), else_=_r.until)
    return _Upserts(
        steady(
            want.on_conflict_do_update(
                index_elements=["channel_id", "stream", "node"], set_={name: want.excluded[name] for name in renewed}
            )
        ),
        steady(
            read.on_conflict_do_update(
                index_elements=["object_id", "node"], set_={"until": longest, "got": read.excluded.got}
            )
        ),
        steady(
            holder.on_conflict_do_update(
                index_elements=["channel_id", "stream", "node"], set_={"seen_at": holder.excluded.seen_at}
            )
        ),
        steady(insert(t.streams).on_conflict_do_nothing()),
    )


class SqlWants(LedgerRows):
    """Who asks for what, who holds what, who is reading what."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._upserts = _upserts(sqlite=database.is_sqlite)

    def want(self, order: WantOrder, numbers: Sequence[int], read_until: float, now: float) -> WantView:
        """See ``Ledger.want``."""
        with self._transaction() as connection:
            of = account(connection, order.channel, "share")
            self._keep_want(connection, of.id, order, now)
            here = {"channel": of.id, "at_stream": order.stream, "at_node": order.node}
            apart = {"at_lock": order.lock, "numbers": list(dict.fromkeys(numbers))}
            connection.execute(_FORGET_ELSEWHERE if numbers else _FORGET_STREAM, here | (apart if numbers else {}))
            keys = ((order.lock, order.stream, number) for number in dict.fromkeys(numbers))
            slots = {slot.record.ref.number: slot for slot in find_objects(connection, of, keys)}
            ready = [slot for slot in slots.values() if slot.record.status is ObjectStatus.READY]
            if ready:
                self._visit(connection, of, ready, order.node, now)
                self._lease(connection, ready, [order.node], read_until)
            live = live_grants(connection, slots.values())

            def view(number: int) -> ObjectView:
                slot = slots.get(number)
                if slot is None:
                    return ObjectView(nothing(ObjectRef(order.channel, order.lock, order.stream, number)))
                return ObjectView(_touched(slot.record, now), live.get(slot.id or 0))

            place = {"channel": of.id, "at_lock": order.lock, "at_stream": order.stream}
            return WantView(
                opening=_opening(connection, of.id, order.stream),
                objects=tuple(view(number) for number in numbers),
                ready=tuple((first, last) for first, last in connection.execute(_READY_RANGES, place)),
                uploading=tuple((first, last) for first, last in connection.execute(_UPLOADING_RANGES, place)),
            )

    def unwant(self, channel: str, stream: bytes, node: str) -> bool:
        """See ``Ledger.unwant``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            here = {"channel": of.id, "at_stream": stream, "at_node": node}
            connection.execute(_FORGET_STREAM, here)
            return bool(connection.execute(_FORGET_WANT, here).rowcount)

    def wants(self, channel: str, stream: bytes, now: float) -> list[WantRecord]:
        """See ``Ledger.wants``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            values = {"at_channel": of.id, "at_stream": stream, "now": now}
            return [_to_want(row) for row in connection.execute(_STREAM_WANTS, values)]

    def open_wants(self, now: float, channel: str | None, after: int, limit: int) -> list[tuple[int, WantRecord]]:
        """See ``Ledger.open_wants``."""
        with self._transaction() as connection:
            values: dict[str, Any] = {"now": now, "after": after, "most": max(limit, 0)}
            statement = _OPEN_WANTS
            if channel is not None:
                statement = _CHANNEL_WANTS
                values["at_channel"] = account(connection, channel).id
            return [(row.id, _to_want(row)) for row in connection.execute(statement, values)]

    def learn(self, channel: str, stream: bytes, opening: Opening) -> None:
        """See ``Ledger.learn``."""
        with self._transaction() as connection:
            self._learn(connection, account(connection, channel).id, [(stream, opening)])

    def opening(self, channel: str, stream: bytes) -> Opening | None:
        """See ``Ledger.opening``."""
        with self._transaction() as connection:
            return _opening(connection, account(connection, channel).id, stream)

    def largest_stream(self, channel: str) -> int:
        """Bytes of the largest stream that is known in the channel; 0 without any."""
        with self._transaction() as connection:
            of = account(connection, channel)
            query = sa.select(sa.func.coalesce(sa.func.max(t.streams.c.length), 0))
            return int(connection.execute(query.where(t.streams.c.channel_id == of.id)).scalar_one())

    def hold(self, channel: str, streams: Sequence[tuple[bytes, Opening]], node: str, now: float) -> None:
        """See ``Ledger.hold``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            held = dict(streams)
            if not held:
                return
            self._learn(connection, of.id, sorted(held.items()))
            rows = [{"channel_id": of.id, "stream": stream, "node": node, "seen_at": now} for stream in sorted(held)]
            connection.execute(self._upserts.holder, rows)

    def unhold(self, channel: str, stream: bytes, node: str) -> None:
        """See ``Ledger.unhold``."""
        with self._transaction() as connection:
            h = t.holders.c
            of = account(connection, channel)
            connection.execute(sa.delete(t.holders).where(h.channel_id == of.id, h.stream == stream, h.node == node))

    def holders(self, channel: str, stream: bytes, limit: int = 32) -> list[HolderRecord]:
        """See ``Ledger.holders``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            values = {
                "channel": of.id,
                "at_stream": stream,
                "right": provide_right(StreamKind(stream[0])).value,
                "most": max(limit, 0),
            }
            rows = connection.execute(_HOLDERS, values)
            return [HolderRecord(row.node, row.name, row.seen_at) for row in rows]

    def got(self, channel: str, stream: bytes, node: str, numbers: Sequence[int], now: float) -> None:
        """See ``Ledger.got``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            for part in batched(dict.fromkeys(numbers), CHUNK):
                here = {"channel": of.id, "at_stream": stream, "at_node": node, "now": now}
                connection.execute(_GOT, here | {"numbers": list(part)})

    def lend(self, refs: Sequence[ObjectRef], nodes: Sequence[str], until: float, now: float) -> None:
        """See ``Ledger.lend``."""
        del now
        with self._transaction() as connection:
            for channel in sorted({ref.channel for ref in refs}):
                of = account(connection, channel, "share")
                keys = dict.fromkeys(key_of(ref) for ref in refs if ref.channel == channel)
                slots = find_objects(connection, of, keys)
                ready = [slot for slot in slots if slot.record.status is ObjectStatus.READY]
                self._lease(connection, ready, list(dict.fromkeys(nodes)), until)

    def strike(self, channel: str, node: str, reason: str, now: float) -> int:
        """See ``Ledger.strike``."""
        s = t.strikes.c
        with self._transaction() as connection:
            of = account(connection, channel)
            connection.execute(sa.insert(t.strikes).values(channel_id=of.id, node=node, reason=reason, at=now))
            count = sa.select(sa.func.count()).where(s.channel_id == of.id, s.node == node, s.at > now - STRIKE_WINDOW)
            return int(connection.execute(count).scalar_one())

    def _visit(self, connection: Connection, of: Account, ready: Sequence[Slot], node: str, now: float) -> None:
        """The node reads these objects; those that it does not read already it visits."""
        ids = [slot.id for slot in ready]
        connection.execute(_TOUCH, {"ids": ids, "at": now})
        reading = set(connection.execute(_READING, {"ids": ids, "at_node": node, "now": now}).scalars())
        merits = {slot.id: visited(slot.merit, of.level) for slot in ready if slot.id not in reading}
        if merits:
            values = [{"at_id": i, "new_visits": m.visits, "new_standing": m.standing} for i, m in merits.items()]
            connection.execute(_VISIT, values)

    def _keep_want(self, connection: Connection, channel_id: int, order: WantOrder, now: float) -> None:
        connection.execute(
            self._upserts.want,
            {
                "channel_id": channel_id,
                "stream": order.stream,
                "node": order.node,
                "lock": order.lock,
                "ranges": [list(pair) for pair in order.ranges],
                "window": order.window,
                "until": order.until,
                "keep": order.keep,
                "transfer": order.transfer,
                "created_at": now,
                "heard_at": now,
            },
        )

    def _lease(self, connection: Connection, slots: Sequence[Slot], nodes: Sequence[str], until: float) -> None:
        """Read leases until then or, where there is a longer one, as long as that."""
        rows = [
            {"object_id": slot.id, "node": node, "until": until, "got": False}
            for slot in sorted(slots, key=lambda slot: slot.id or 0)
            for node in nodes
        ]
        if not rows:
            return
        connection.execute(self._upserts.read, rows)

    def _learn(self, connection: Connection, channel_id: int, streams: Sequence[tuple[bytes, Opening]]) -> None:
        connection.execute(
            self._upserts.stream,
            [
                {"channel_id": channel_id, "stream": stream, "length": opening.length, "root": opening.root}
                for stream, opening in streams
            ],
        )


def _touched(record: ObjectRecord, now: float) -> ObjectRecord:
    return replace(record, used_at=now) if record.status is ObjectStatus.READY else record


def _opening(connection: Connection, channel_id: int, stream: bytes) -> Opening | None:
    row = connection.execute(_OPENING, {"channel": channel_id, "at_stream": stream}).one_or_none()
    return None if row is None else Opening(row.length, bytes(row.root))


def _to_want(row: sa.Row[Any]) -> WantRecord:
    order = WantOrder(
        channel=row.channel,
        lock=bytes(row.lock),
        stream=bytes(row.stream),
        node=row.node,
        ranges=tuple((first, last) for first, last in row.ranges),
        window=row.window,
        until=row.until,
        keep=row.keep,
        transfer=None if row.transfer is None else bytes(row.transfer),
    )
    return WantRecord(order, row.created_at, row.heard_at)
