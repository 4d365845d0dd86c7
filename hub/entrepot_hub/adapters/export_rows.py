"""The hub's tables as an export's document and back: who may do what, with all that is sealed in clear in between."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot.core.errors import Conflict
from entrepot_hub.adapters import tables as t
from entrepot_hub.core.export import (
    AuditPart,
    BucketPart,
    ChannelPart,
    Document,
    InvitePart,
    KeyPart,
    LimitPart,
    MarkPart,
    MemberPart,
    NodePart,
    PinPart,
    PricePart,
    RedemptionPart,
    SettingPart,
    UsagePart,
)
from entrepot_hub.core.master_keys import MasterKeys
from entrepot_hub.core.sealing import SEAL_RANDOM, MasterKey, bucket_place, invite_place, seal

#: Settings that belong to one database and are no part of what the hub is.
_OWN: Final = ("master", "rebuild")
_OWN_BEGINNING: Final = "rebuild:"
_DAY: Final = 86_400
#: Rows that one statement writes.
_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How much of the past an export holds: lines of the audit log, the latest; seconds of usage."""

    audit: int = 10_000
    usage: float = 62 * 86_400.0


def read_document(
    connection: Connection,
    keys: MasterKeys,
    *,
    hub: str,
    identity: bytes,
    settings: str,
    now: float,
    history: History,
) -> Document:
    """The document of this instant. The transaction must not have been used before: on PostgreSQL it is told to see
    one state of the database. Raises Denied for a secret that none of the keys opens, Corrupt."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    rows = _Rows(connection)
    buckets = rows.all(t.buckets, t.buckets.c.id)
    places = {row.id: place for place, row in enumerate(buckets)}
    names = {row.id: row.name for row in rows.all(t.channels, t.channels.c.id)}
    since = int((now - history.usage) // _DAY)
    return Document(
        made_at=now,
        hub=hub,
        identity=identity,
        settings=settings,
        buckets=[
            BucketPart(
                url=row.url, prefix=row.prefix, binds=row.binds, credentials=_open(keys, row.credentials, row.url)
            )
            for row in buckets
        ],
        keys=[
            rows.part(KeyPart, row, bucket=places[row.bucket_id]) for row in rows.all(t.bucket_keys, t.bucket_keys.c.id)
        ],
        channels=[
            rows.part(ChannelPart, row, bucket=places[row.bucket_id]) for row in rows.all(t.channels, t.channels.c.id)
        ],
        nodes=[rows.part(NodePart, row) for row in rows.all(t.nodes, t.nodes.c.public)],
        members=[rows.part(MemberPart, row, channel=names[row.channel_id]) for row in rows.all(t.memberships)],
        invites=[
            rows.part(
                InvitePart,
                row,
                channel=names[row.channel_id],
                proof=keys.unseal(bytes(row.proof), associated=invite_place(row.id)),
            )
            for row in rows.all(t.invites)
        ],
        redemptions=[rows.part(RedemptionPart, row) for row in rows.all(t.redemptions)],
        pins=[
            rows.part(PinPart, row, channel=names[row.channel_id], stream=bytes(row.stream), kind=row._mapping["class"])
            for row in rows.all(t.pins)
        ],
        limits=[rows.part(LimitPart, row, channel=names[row.channel_id]) for row in rows.all(t.limits)],
        prices=[rows.part(PricePart, row) for row in rows.all(t.prices)],
        usage=[
            rows.part(UsagePart, row, channel=names[row.channel_id])
            for row in rows.all(t.usage, where=t.usage.c.day >= since)
        ],
        marks=[rows.part(MarkPart, row, channel=names[row.channel_id]) for row in rows.all(t.budget_marks)],
        audit=[rows.part(AuditPart, row) for row in reversed(rows.latest(t.audit, t.audit.c.id, history.audit))],
        values=[
            SettingPart(key=row.key, value=bytes(row.value))
            for row in rows.all(t.settings)
            if row.key not in _OWN and not row.key.startswith(_OWN_BEGINNING)
        ],
    )


def write_document(connection: Connection, document: Document, master: MasterKey, now: float) -> None:
    """Put the document into a database that holds nothing, everything sealed under ``master``. What is stored in
    channels is metered from ``now`` on. Conflict (``exists``) if there is something."""
    if not holds_nothing(connection):
        raise Conflict(
            "the database is not empty: what it holds is not overwritten",
            kind="exists",
            hint="Give the hub an empty database, or keep this one.",
        )

    def put(table: sa.Table, rows: list[dict[str, Any]]) -> None:
        for start in range(0, len(rows), _PAGE):
            connection.execute(sa.insert(table), rows[start : start + _PAGE])

    def made(table: sa.Table, values: dict[str, Any]) -> int:
        return int(connection.execute(sa.insert(table).returning(table.c.id), values).scalar_one())

    buckets = [
        made(
            t.buckets,
            {
                "url": part.url,
                "prefix": part.prefix,
                "binds": part.binds,
                "credentials": _seal(master, part.credentials, bucket_place(part.url)),
            },
        )
        for part in document.buckets
    ]
    channels = {
        part.name: made(
            t.channels,
            _values(part, "bucket") | {"bucket_id": buckets[part.bucket], "metered_at": now},
        )
        for part in document.channels
    }

    def placed(part: Any) -> dict[str, Any]:
        return _values(part, "channel") | {"channel_id": channels[part.channel]}

    put(t.bucket_keys, [_values(part, "bucket") | {"bucket_id": buckets[part.bucket]} for part in document.keys])
    put(t.nodes, [_values(part) for part in document.nodes])
    put(t.memberships, [placed(part) for part in document.members])
    put(
        t.invites,
        [placed(part) | {"proof": _seal(master, part.proof, invite_place(part.id))} for part in document.invites],
    )
    put(t.redemptions, [_values(part) for part in document.redemptions])
    put(
        t.pins,
        [{k: v for k, v in placed(part).items() if k != "kind"} | {"class": part.kind} for part in document.pins],
    )
    put(t.limits, [placed(part) for part in document.limits])
    put(t.prices, [_values(part) for part in document.prices])
    put(t.usage, [placed(part) for part in document.usage])
    put(t.budget_marks, [placed(part) for part in document.marks])
    put(t.audit, [_values(part) for part in document.audit])
    put(t.settings, [_values(part) for part in document.values])
    if connection.dialect.name == "postgresql" and document.audit:
        # Rows that bring their ids along do not move the sequence on.
        last = max(part.id for part in document.audit)
        connection.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence("audit", "id"), last)))


def holds_nothing(connection: Connection) -> bool:
    """Whether the database knows no channel, node, bucket, setting or line of the audit log."""
    return _empty(connection, t.channels, t.nodes, t.buckets, t.audit, t.settings)


def knows_nobody(connection: Connection) -> bool:
    """Whether the database knows no channel, node or bucket, whatever a hub without any noted in it. Reads no table
    that an older version lacks."""
    return _empty(connection, t.channels, t.nodes, t.buckets)


def _empty(connection: Connection, *tables: sa.Table) -> bool:
    one = sa.select(sa.literal(1)).limit(1)
    return all(connection.execute(one.select_from(table)).first() is None for table in tables)


def wipe(connection: Connection) -> None:
    """Empty every table of the hub."""
    for table in reversed(t.metadata.sorted_tables):
        connection.execute(sa.delete(table))


class _Rows:
    """Rows of tables, as parts of a document."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self, table: sa.Table, *order: sa.Column[Any], where: Any = None) -> list[sa.Row[Any]]:
        """All rows, in the order of their key."""
        query = sa.select(table).order_by(*(order or tuple(table.primary_key.columns)))
        return list(self._connection.execute(query if where is None else query.where(where)))

    def latest(self, table: sa.Table, order: sa.Column[Any], limit: int) -> list[sa.Row[Any]]:
        """The last rows, the latest first."""
        return list(self._connection.execute(sa.select(table).order_by(order.desc()).limit(max(limit, 0))))

    @staticmethod
    def part[P: msgspec.Struct](form: type[P], row: sa.Row[Any], /, **other: Any) -> P:
        """A part with the columns of the same names, and these fields."""
        taken = row._mapping
        return form(**{name: other[name] if name in other else taken[name] for name in form.__struct_fields__})


def _values(part: msgspec.Struct, *without: str) -> dict[str, Any]:
    """The columns of a row."""
    return {name: getattr(part, name) for name in part.__struct_fields__ if name not in without}


def _open(keys: MasterKeys, blob: bytes | None, url: str) -> bytes | None:
    return None if blob is None else keys.unseal(bytes(blob), associated=bucket_place(url))


def _seal(master: MasterKey, secret: bytes | None, place: bytes) -> bytes | None:
    if secret is None:
        return None
    return seal(secret, key=master, associated=place, random=secrets.token_bytes(SEAL_RANDOM))
