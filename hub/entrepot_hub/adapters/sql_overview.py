"""What the hub's tables say of this moment, for people and for Prometheus. Reads only, through the indices of what is
open, so that it costs the same however much lies in the buckets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.ledger_rows import LIVE_NOW
from entrepot_hub.adapters.sql_rebuild import held_back

_c, _w, _o, _g, _n = t.channels.c, t.wants.c, t.objects.c, t.grants.c, t.nodes.c

_CHANNELS: Final = (
    sa.select(_c.id, _c.name, _c.quota, _c.charged, _o.size.label("held"))
    .select_from(t.channels.outerjoin(t.objects, held_back(_c.id)))
    .order_by(_c.name)
)
#: The list of states is that of the partial index, written out as there.
_RESERVED: Final = (
    sa.select(_o.channel_id, sa.func.sum(_o.size).label("bytes"))
    .where(
        _o.status.in_([sa.literal_column(f"'{status}'") for status in ("reserved", "evicting", "tombstone")]),
        _o.status == "reserved",
    )
    .group_by(_o.channel_id)
)
_WANTS: Final = (
    sa.select(_w.channel_id, sa.func.count().label("count"))
    .where(_w.until > sa.bindparam("now"))
    .group_by(_w.channel_id)
)
_UPLOADING: Final = (
    sa.select(_o.channel_id, sa.func.count().label("count"))
    .select_from(t.grants.join(t.objects, _g.object_id == _o.id))
    .where(LIVE_NOW)
    .group_by(_o.channel_id)
)
_UPLOADS: Final = (
    sa.select(
        _c.name.label("channel"),
        _o.stream,
        _o.number,
        _g.node,
        _g.sent,
        _g.length,
        _g.granted_at,
        _g.accepted_at,
        _g.lease_until,
        _g.transfer,
    )
    .select_from(t.grants.join(t.objects, _g.object_id == _o.id).join(t.channels, _o.channel_id == _c.id))
    .where(LIVE_NOW)
    .order_by(_g.id)
    .limit(sa.bindparam("most"))
)
_NAMES: Final = sa.select(_n.public, _n.name).where(_n.public.in_(sa.bindparam("nodes", expanding=True)))


@dataclass(frozen=True, slots=True)
class ChannelState:
    """A channel now. Bytes, of which ``held`` are the part of ``reserved`` that is held back after a rebuilding; counts
    of open wants and live grants."""

    name: str
    quota: int
    stored: int
    reserved: int
    held: int
    wants: int
    uploads: int


@dataclass(frozen=True, slots=True)
class UploadState:
    """A live grant. ``accepted_at`` is 0 until it is accepted."""

    channel: str
    stream: bytes
    number: int
    node: str
    sent: int
    length: int
    granted_at: float
    accepted_at: float
    lease_until: float
    transfer: bytes | None


class SqlOverview:
    """Every method is one transaction; callers run it off the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def channels(self, now: float) -> list[ChannelState]:
        """All channels, by name."""
        with self._database.transaction() as connection:
            reserved = {row.channel_id: int(row.bytes) for row in connection.execute(_RESERVED)}
            wants = {row[0]: int(row[1]) for row in connection.execute(_WANTS, {"now": now})}
            uploads = {row[0]: int(row[1]) for row in connection.execute(_UPLOADING)}
            return [
                ChannelState(
                    name=row.name,
                    quota=row.quota,
                    stored=row.charged - reserved.get(row.id, 0),
                    reserved=reserved.get(row.id, 0),
                    held=row.held or 0,
                    wants=wants.get(row.id, 0),
                    uploads=uploads.get(row.id, 0),
                )
                for row in connection.execute(_CHANNELS)
            ]

    def uploads(self, most: int) -> list[UploadState]:
        """Live grants, the oldest first, at most so many."""
        with self._database.transaction() as connection:
            return [
                UploadState(
                    channel=row.channel,
                    stream=bytes(row.stream),
                    number=row.number,
                    node=row.node,
                    sent=row.sent,
                    length=row.length,
                    granted_at=row.granted_at,
                    accepted_at=row.accepted_at,
                    lease_until=row.lease_until,
                    transfer=None if row.transfer is None else bytes(row.transfer),
                )
                for row in connection.execute(_UPLOADS, {"most": most})
            ]

    def names(self, nodes: Iterable[str]) -> Mapping[str, str]:
        """What these nodes are called, by key."""
        with self._database.transaction() as connection:
            return {row.public: row.name for row in connection.execute(_NAMES, {"nodes": list(nodes)})}
