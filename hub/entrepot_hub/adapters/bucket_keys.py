"""Which keys a bucket has and had: their labels, by whom and when, never the keys themselves."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.registry_rows import write_audit
from entrepot_hub.core.members import BucketKey

_k: Final = t.bucket_keys.c


def put_key(connection: Connection, bucket: int, label: str, *, now: float, actor: str, safe_at: float) -> None:
    """The bucket (by the id of its row) has a new key; the one it had is retired, and needed until ``safe_at``."""
    connection.execute(
        sa.update(t.bucket_keys)
        .where(_k.bucket_id == bucket, _k.retired_at.is_(None))
        .values(retired_at=now, safe_at=safe_at)
    )
    connection.execute(sa.insert(t.bucket_keys).values(bucket_id=bucket, label=label, set_at=now, set_by=actor))


def use_key(connection: Connection, bucket: int, label: str, channel: str, *, now: float, actor: str) -> None:
    """The bucket's key was opened, for this channel: noted with it and in the audit log. A key of a time before keys
    were noted is noted now; who set it is not known (``""``)."""
    known = connection.execute(
        sa.update(t.bucket_keys).where(_k.bucket_id == bucket, _k.retired_at.is_(None)).values(used_at=now)
    )
    if not known.rowcount:
        first = sa.select(sa.func.min(t.channels.c.created_at)).where(t.channels.c.bucket_id == bucket)
        since = connection.execute(first).scalar()
        values = {"bucket_id": bucket, "label": label, "set_at": since or now, "set_by": "", "used_at": now}
        connection.execute(sa.insert(t.bucket_keys).values(values))
    write_audit(connection, now, actor, "credentials.use", channel, {"key": label})


def find_keys(connection: Connection, bucket: int) -> list[BucketKey]:
    """The keys of a bucket, the present one first, then the latest."""
    rows = connection.execute(sa.select(t.bucket_keys).where(_k.bucket_id == bucket).order_by(_k.id.desc()))
    return [_to_key(row) for row in rows]


def _to_key(row: sa.Row[Any]) -> BucketKey:
    return BucketKey(row.label, row.set_at, row.set_by, row.used_at, row.retired_at, row.safe_at)
