"""Comparing the bucket with the SQL ledger: what should lie there, what is taken in, how far a comparison is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from entrepot.core.identifiers import Opening
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.ledger_rows import Slot, account, find_object, live_grants, new_object, to_slot
from entrepot_hub.adapters.sql_objects import SqlObjects
from entrepot_hub.adapters.sql_rebuild import SqlRebuild
from entrepot_hub.adapters.sql_wants import SqlWants
from entrepot_hub.core.ledger import Found, ObjectRef, ObjectStatus, ObjectView, Place
from entrepot_hub.core.transitions import adopted, nothing

_o, _n = t.objects.c, t.reconciliations.c

_LAST: Final = (
    sa.select(t.reconciliations)
    .where(_n.channel_id == sa.bindparam("channel"))
    .order_by(_n.started_at.desc(), _n.id.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Run:
    """A comparison of a channel's bucket with the ledger. ``cursor``: the key after which it goes on; ``counts``: what
    was found so far, and under ``at`` when that was noted."""

    id: int
    started_at: float
    ended_at: float | None
    cursor: str | None
    counts: dict[str, float]


class SqlReconciliation(SqlWants, SqlObjects, SqlRebuild):
    """The ledger's side of a reconciliation."""

    def adopt(
        self, ref: ObjectRef, found: Found, opening: Opening, now: float, *, beyond: bool = False
    ) -> ObjectView | None:
        """See ``Ledger.adopt``. What is held back gives way to it; with ``beyond``, in a rebuilding, so
        does the quota: eviction brings the channel below it again."""
        with self._transaction() as connection:
            of = account(connection, ref.channel, "own")
            slot = find_object(connection, of, ref)
            before = nothing(ref) if slot is None else slot.record
            held = self._held(connection, of)
            after = adopted(before, found, now, found.length if beyond else of.free + held.size)
            if after is None:
                return None
            if held.until:
                self._give_back(connection, of, found.length)
                after = replace(after, put_until=held.until)
            if slot is None:
                values = new_object(Slot(None, before), of.id)
                row = connection.execute(sa.insert(t.objects).returning(_o.id), values).one()
                slot = Slot(row.id, before)
            self._change(connection, of, slot, after)
            self.learn(ref.channel, ref.stream, opening)
            return ObjectView(after)

    def charted(
        self, channel: str, lock: bytes, after: Place | None, through: Place | None, limit: int = 1000
    ) -> list[ObjectView]:
        """See ``Ledger.charted``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            query = sa.select(t.objects).where(
                _o.channel_id == of.id, _o.lock == lock, _o.status != ObjectStatus.ABSENT.value
            )
            if after is not None:
                query = query.where(sa.or_(_o.stream > after[0], (_o.stream == after[0]) & (_o.number > after[1])))
            if through is not None:
                query = query.where(
                    sa.or_(_o.stream < through[0], (_o.stream == through[0]) & (_o.number <= through[1]))
                )
            rows = connection.execute(query.order_by(_o.stream, _o.number).limit(max(limit, 0)))
            slots = [to_slot(row, channel) for row in rows]
            live = live_grants(connection, slots)
            return [ObjectView(slot.record, None if slot.id is None else live.get(slot.id)) for slot in slots]

    # -- runs ---------------------------------------------------------------------------------------------------

    def last_run(self, channel: str) -> Run | None:
        """The channel's latest run, ended or not."""
        with self._transaction() as connection:
            row = connection.execute(_LAST, {"channel": account(connection, channel).id}).one_or_none()
            return None if row is None else _to_run(row)

    def claim_run(self, channel: str, now: float, period: float, patience: float) -> Run | None:
        """A run that is due is this hub's: a new one if the last began ``period`` seconds ago or there is none, or one
        that was left unfinished and has not moved for ``patience`` seconds. None: nothing is due."""
        with self._transaction() as connection:
            of = account(connection, channel, "own")
            row = connection.execute(_LAST, {"channel": of.id}).one_or_none()
            last = None if row is None else _to_run(row)
            if last is not None and last.ended_at is None:
                if now < last.counts.get("at", last.started_at) + patience:
                    return None
                return self._noted(connection, last, last.cursor, last.counts, now, ended=False)
            if last is not None and now < last.started_at + period:
                return None
            values = {"channel_id": of.id, "started_at": now, "counts": {"at": now}}
            made = connection.execute(sa.insert(t.reconciliations).returning(t.reconciliations), values).one()
            return _to_run(made)

    def note_run(self, run: Run, cursor: str | None, counts: dict[str, float], now: float, *, ended: bool) -> Run:
        """How far a run has come."""
        with self._transaction() as connection:
            return self._noted(connection, run, cursor, counts, now, ended=ended)

    @staticmethod
    def _noted(
        connection: sa.Connection, run: Run, cursor: str | None, counts: dict[str, float], now: float, *, ended: bool
    ) -> Run:
        values = {"cursor": cursor, "counts": counts | {"at": now}, "ended_at": now if ended else None}
        connection.execute(sa.update(t.reconciliations).where(_n.id == run.id).values(values))
        return Run(run.id, run.started_at, now if ended else None, cursor, counts | {"at": now})


def _to_run(row: sa.Row[Any]) -> Run:
    return Run(row.id, row.started_at, row.ended_at, row.cursor, dict(row.counts))
