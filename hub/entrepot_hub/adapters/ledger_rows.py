"""Rows of the ledger's tables as records, and the locks and look-ups that all parts of the SQL ledger share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import batched
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from entrepot.core.errors import NotFound
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.steady import Lane, steady
from entrepot_hub.core.eviction import Merit
from entrepot_hub.core.ledger import LIVE, GrantRecord, GrantStatus, ObjectRecord, ObjectRef, ObjectStatus

#: Values per statement: well under what the engines take.
CHUNK: Final = 500

type Key = tuple[bytes, bytes, int]

_o, _g, _c = t.objects.c, t.grants.c, t.channels.c

#: Written out, not bound: the engines use a partial index only where they can see that its condition holds.
LIVE_NOW: Final = _g.status.in_([sa.literal_column(f"'{status.value}'") for status in sorted(LIVE)])
READY_NOW: Final = _o.status == sa.literal_column("'ready'")

_ACCOUNT: Final = steady(
    sa.select(_c.id, _c.quota, _c.charged, _c.ready_count, _c.level, _c.evicted).where(_c.name == sa.bindparam("name"))
)
_ACCOUNT_SHARED: Final = steady(_ACCOUNT.with_for_update(read=True))
_ACCOUNT_LOCKED: Final = steady(_ACCOUNT.with_for_update(key_share=True))
_ACCOUNTS: Final = {None: _ACCOUNT, "share": _ACCOUNT_SHARED, "own": _ACCOUNT_LOCKED}
_SET_ACCOUNT: Final = steady(
    sa.update(t.channels)
    .where(_c.id == sa.bindparam("at_id"))
    .values(
        charged=sa.bindparam("new_charged"),
        ready_count=sa.bindparam("new_ready_count"),
        level=sa.bindparam("new_level"),
        evicted=sa.bindparam("new_evicted"),
    )
)
_STATUS: Final = {status.value: status for status in ObjectStatus}
_GRANT_STATUS: Final = {status.value: status for status in GrantStatus}
_OBJECT: Final = steady(
    sa.select(t.objects).where(
        _o.channel_id == sa.bindparam("channel"),
        _o.lock == sa.bindparam("at_lock"),
        _o.stream == sa.bindparam("at_stream"),
        _o.number == sa.bindparam("at_number"),
    )
)
_OBJECTS: Final = steady(
    sa.select(t.objects).where(
        _o.channel_id == sa.bindparam("channel"),
        _o.lock == sa.bindparam("at_lock"),
        _o.stream == sa.bindparam("at_stream"),
        _o.number.in_(sa.bindparam("numbers", expanding=True)),
    )
)
_LIVE_GRANTS: Final = steady(sa.select(t.grants).where(_g.object_id.in_(sa.bindparam("ids", expanding=True)), LIVE_NOW))
_SET_OBJECT: Final = steady(
    sa.update(t.objects)
    .where(_o.id == sa.bindparam("at_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in (
        "status", "size", "digest", "etag", "put_until", "tombstone", "used_at", "uploader", "ready_number",
        "visits", "cost", "standing", "left_at"
    )})
)  # fmt: skip
_SET_GRANT: Final = steady(
    sa.update(t.grants)
    .where(_g.grant == sa.bindparam("at_grant"))
    .values({name: sa.bindparam(f"new_{name}") for name in (
        "status", "length", "digest", "lease_until", "put_until", "accepted_at", "sent", "sent_at", "reason"
    )})
)  # fmt: skip


@dataclass(slots=True)
class Account:
    """A channel's row, as far as the ledger changes it."""

    id: int
    name: str
    quota: int
    charged: int
    ready_count: int
    level: float
    evicted: int

    @property
    def free(self) -> int:
        """Quota − charged, in bytes; less than nothing when the quota was lowered."""
        return self.quota - self.charged


@dataclass(slots=True)
class Slot:
    """An object's row: its record with what only the table knows. ``id`` is None for one not in the table yet."""

    id: int | None
    record: ObjectRecord
    ready_number: int = 0
    merit: Merit = field(default_factory=Merit)


class LedgerRows:
    """Base of the SQL ledger's parts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._database!r})"

    def _transaction(self) -> AbstractContextManager[Connection]:
        return self._database.lane()

    def _insert(self, table: sa.Table) -> Any:
        return sqlite.insert(table) if self._database.is_sqlite else postgresql.insert(table)


def account(connection: Connection, name: str, lock: str | None = None) -> Account:
    """The channel's account; NotFound (no-such-channel) without one.

    ``lock`` on PostgreSQL: "own" keeps out whoever owns or shares it until this transaction ends, "share" whoever
    would own it. (SQLite's transactions exclude each other anyway.)
    """
    known = connection.known if isinstance(connection, Lane) else None
    if known is not None and (found := known.get(name)) is not None:
        return Account(*found)
    row = connection.execute(_ACCOUNTS[lock], {"name": name}).one_or_none()
    if row is None:
        raise NotFound(f"there is no channel {name}", kind="no-such-channel", channel=name)
    key, quota, charged, ready_count, level, evicted = row
    if known is not None:
        known[name] = (key, name, quota, charged, ready_count, level, evicted)
    return Account(key, name, quota, charged, ready_count, level, evicted)


def keep_account(connection: Connection, kept: Account) -> None:
    """Write back an account that this transaction owns."""
    connection.execute(
        _SET_ACCOUNT,
        {
            "at_id": kept.id,
            "new_charged": kept.charged,
            "new_ready_count": kept.ready_count,
            "new_level": kept.level,
            "new_evicted": kept.evicted,
        },
    )
    if isinstance(connection, Lane) and connection.known is not None:
        connection.known[kept.name] = (
            kept.id, kept.name, kept.quota, kept.charged, kept.ready_count, kept.level, kept.evicted
        )  # fmt: skip


def key_of(ref: ObjectRef) -> Key:
    """What names an object within its channel."""
    return ref.lock, ref.stream, ref.number


def find_object(connection: Connection, of: Account, ref: ObjectRef) -> Slot | None:
    """The object's row."""
    values = {"channel": of.id, "at_lock": ref.lock, "at_stream": ref.stream, "at_number": ref.number}
    row = connection.execute(_OBJECT, values).one_or_none()
    return None if row is None else to_slot(row, of.name)


def find_objects(connection: Connection, of: Account, keys: Iterable[Key]) -> Iterator[Slot]:
    """The rows of these objects, as far as there are any: one statement per stream.

    One for all streams, by row values, would be shorter, but SQLite then reads the whole channel.
    """
    streams: dict[tuple[bytes, bytes], list[int]] = {}
    for lock, stream, number in keys:
        streams.setdefault((lock, stream), []).append(number)
    for (lock, stream), numbers in streams.items():
        place = {"channel": of.id, "at_lock": lock, "at_stream": stream}
        for part in batched(numbers, CHUNK):
            for row in connection.execute(_OBJECTS, {**place, "numbers": list(part)}):
                yield to_slot(row, of.name)


def live_grants(connection: Connection, slots: Iterable[Slot]) -> dict[int, GrantRecord]:
    """The live grants of these objects, by the row id of the object."""
    refs = {slot.id: slot.record.ref for slot in slots if slot.id is not None}
    found: dict[int, GrantRecord] = {}
    for part in batched(refs, CHUNK):
        for row in connection.execute(_LIVE_GRANTS, {"ids": list(part)}):
            found[row.object_id] = to_grant(row, refs[row.object_id])
    return found


def keep_objects(connection: Connection, slots: Sequence[Slot]) -> None:
    """Write back objects that are in the table already."""
    if slots:
        connection.execute(_SET_OBJECT, [_object_values(slot) for slot in slots])


def keep_grants(connection: Connection, grants: Sequence[GrantRecord]) -> None:
    """Write back grants that are in the table already."""
    if grants:
        connection.execute(_SET_GRANT, [_grant_values(grant) for grant in grants])


def new_object(slot: Slot, channel_id: int) -> dict[str, Any]:
    """The values of a row for an object that is not in the table yet."""
    record = slot.record
    return {
        "channel_id": channel_id,
        "lock": record.ref.lock,
        "stream": record.ref.stream,
        "number": record.ref.number,
        "status": record.status.value,
        "size": record.size,
        "digest": record.digest,
        "etag": record.etag,
        "put_until": record.put_until,
        "tombstone": record.tombstone,
        "used_at": record.used_at,
        "uploader": record.uploader,
        "ready_number": slot.ready_number,
        "visits": slot.merit.visits,
        "cost": slot.merit.cost,
        "standing": slot.merit.standing,
        "left_at": slot.merit.left_at,
    }


def to_object(row: sa.Row[Any], channel: str) -> ObjectRecord:
    """The record of a row of ``objects``, which may go on after the table's columns."""
    return to_slot(row, channel).record


def to_slot(row: sa.Row[Any], channel: str) -> Slot:
    """The slot of such a row."""
    (
        key, _, lock, stream, number, status, size, digest, etag, put_until, tombstone, used_at, uploader, ready_number,
        visits, cost, standing, left_at, *_
    ) = cast(Sequence[Any], row)  # fmt: skip
    ref = ObjectRef(channel, bytes(lock), bytes(stream), number)
    digest = None if digest is None else bytes(digest)
    record = ObjectRecord(ref, _STATUS[status], size, digest, etag, put_until, tombstone, used_at, uploader)
    return Slot(key, record, ready_number, Merit(visits, cost, standing, left_at))


def to_grant(row: sa.Row[Any], ref: ObjectRef) -> GrantRecord:
    """The record of a row of ``grants``."""
    return GrantRecord(
        grant=bytes(row.grant),
        ref=ref,
        node=row.node,
        session=row.session,
        status=_GRANT_STATUS[row.status],
        length=row.length,
        digest=None if row.digest is None else bytes(row.digest),
        lease_until=row.lease_until,
        put_until=row.put_until,
        granted_at=row.granted_at,
        accepted_at=row.accepted_at,
        sent=row.sent,
        sent_at=row.sent_at,
        reason=row.reason,
        transfer=None if row.transfer is None else bytes(row.transfer),
    )


def _object_values(slot: Slot) -> dict[str, Any]:
    record = slot.record
    return {
        "at_id": slot.id,
        "new_status": record.status.value,
        "new_size": record.size,
        "new_digest": record.digest,
        "new_etag": record.etag,
        "new_put_until": record.put_until,
        "new_tombstone": record.tombstone,
        "new_used_at": record.used_at,
        "new_uploader": record.uploader,
        "new_ready_number": slot.ready_number,
        "new_visits": slot.merit.visits,
        "new_cost": slot.merit.cost,
        "new_standing": slot.merit.standing,
        "new_left_at": slot.merit.left_at,
    }


def _grant_values(grant: GrantRecord) -> dict[str, Any]:
    return {
        "at_grant": grant.grant,
        "new_status": grant.status.value,
        "new_length": grant.length,
        "new_digest": grant.digest,
        "new_lease_until": grant.lease_until,
        "new_put_until": grant.put_until,
        "new_accepted_at": grant.accepted_at,
        "new_sent": grant.sent,
        "new_sent_at": grant.sent_at,
        "new_reason": grant.reason,
    }
