"""The journal of streams in the hub's database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry_rows import find_channel_id
from entrepot_hub.core.journal import EventKind, Run

_e, _c = t.events.c, t.channels.c
_INSERT: Final = sa.insert(t.events).returning(_e.id)
_UPDATE: Final = (
    sa.update(t.events)
    .where(_e.id == sa.bindparam("at_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in ("until", "first", "last", "count", "bytes", "seconds")})
)
_LATEST: Final = (
    sa.select(t.events)
    .where(_e.channel_id == sa.bindparam("channel"), _e.stream == sa.bindparam("at_stream"))
    .order_by(_e.id.desc())
    .limit(sa.bindparam("most"))
)


class SqlEvents:
    """Every method is one transaction; callers run it off the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"SqlEvents({self._database!r})"

    def keep(self, runs: Sequence[Run]) -> dict[int, int]:
        """Write runs, the new ones as new rows: the row ids of these, by their place in ``runs``. Runs of a channel
        that is gone are dropped with it; so is what was forgotten meanwhile."""
        made: dict[int, int] = {}
        with self._database.transaction() as connection:
            names = {run.channel for run in runs}
            ids = {row.name: row.id for row in connection.execute(sa.select(_c.id, _c.name).where(_c.name.in_(names)))}
            known = [_changes(run) for run in runs if run.row is not None]
            if known:
                connection.execute(_UPDATE, known)
            for place, run in enumerate(runs):
                if run.row is None and run.channel in ids:
                    made[place] = connection.execute(_INSERT, _values(run, ids[run.channel])).scalar_one()
        return made

    def of(self, channel: str, stream: bytes, limit: int = 500) -> list[Run]:
        """The latest runs of a stream, in the order in which they began. NotFound (``no-such-channel``)."""
        with self._database.transaction() as connection:
            key = find_channel_id(connection, channel)
            rows = connection.execute(_LATEST, {"channel": key, "at_stream": stream, "most": limit})
            return sorted((_to_run(row, channel) for row in rows), key=lambda run: (run.at, run.row or 0))

    def prune(self, before: float, of_channel: int, limit: int = 10_000) -> int:
        """Forget what ended before ``before``, and of each channel all but about the latest ``of_channel`` runs; at
        most ``limit`` of either. How many."""
        with self._database.transaction() as connection:
            old = sa.select(_e.id).where(_e.until < before).order_by(_e.until).limit(limit)
            gone = _forget(connection, old)
            for (channel,) in connection.execute(sa.select(_c.id)).all():
                edge = connection.execute(
                    sa.select(_e.id).where(_e.channel_id == channel).order_by(_e.id.desc()).offset(of_channel).limit(1)
                ).scalar_one_or_none()
                if edge is not None:
                    over = sa.select(_e.id).where(_e.channel_id == channel, _e.id <= edge).limit(limit)
                    gone += _forget(connection, over)
            return gone


def _forget(connection: Connection, which: sa.Select[int]) -> int:
    ids = list(connection.execute(which).scalars())
    if ids:
        connection.execute(sa.delete(t.events).where(_e.id == sa.bindparam("gone")), [{"gone": i} for i in ids])
    return len(ids)


def _changes(run: Run) -> dict[str, Any]:
    return {
        "at_id": run.row,
        "new_until": run.until,
        "new_first": run.first,
        "new_last": run.last,
        "new_count": run.count,
        "new_bytes": run.bytes,
        "new_seconds": run.seconds,
    }


def _values(run: Run, channel_id: int) -> dict[str, Any]:
    return {
        "channel_id": channel_id,
        "stream": run.stream,
        "kind": run.kind.value,
        "node": run.node,
        "transfer": run.transfer,
        "at": run.at,
        "until": run.until,
        "first": run.first,
        "last": run.last,
        "count": run.count,
        "bytes": run.bytes,
        "seconds": run.seconds,
        "detail": dict(run.detail),
    }


def _to_run(row: sa.Row[Any], channel: str) -> Run:
    return Run(
        channel=channel,
        stream=bytes(row.stream),
        kind=EventKind(row.kind),
        node=row.node,
        transfer=None if row.transfer is None else bytes(row.transfer),
        detail=tuple(row.detail.items()),
        at=row.at,
        until=row.until,
        first=row.first,
        last=row.last,
        count=row._mapping["count"],  # a row has a method of this name
        bytes=row.bytes,
        seconds=row.seconds,
        row=row.id,
        fresh=False,
    )
