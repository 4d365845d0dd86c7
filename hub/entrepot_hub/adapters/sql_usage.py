"""Usage, limits, prices and told budgets in the hub's database.

Counts are only ever added to, in the statement that writes them, so several hubs on one database lose nothing to each
other. What lies in the bucket is turned into byte-seconds from ``channels.charged`` and ``channels.metered_at`` with
the channel's row locked: a second is counted by one hub, and also when none ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry_rows import find_channel, find_channel_id, write_audit
from entrepot_hub.core.ledger import ObjectStatus
from entrepot_hub.core.limits import LIMITS, WHOLE, WORDS, Limits
from entrepot_hub.core.prices import PriceList, as_document, from_document
from entrepot_hub.core.usage import COUNTS, HUB, NOTHING, Place, Tally, stored_since

_c, _u, _l, _m, _p, _o = t.channels.c, t.usage.c, t.limits.c, t.budget_marks.c, t.prices.c, t.objects.c

#: In the bucket, as far as the hub knows.
_THERE: Final = (ObjectStatus.READY.value, ObjectStatus.EVICTING.value)
_METERED: Final = (
    sa.select(_c.id, _c.charged, _c.metered_at).where(_c.name == sa.bindparam("name")).with_for_update(key_share=True)
)
_SET_METERED: Final = sa.update(t.channels).where(_c.id == sa.bindparam("at_id")).values(metered_at=sa.bindparam("at"))


@dataclass(frozen=True, slots=True)
class Account:
    """What limits are checked against. ``today`` by node; ``month``: all of the month so far; ``objects`` in the bucket
    by uploader, with :data:`WHOLE` for all, where a limit asks for them."""

    limits: Mapping[str, Limits]
    today: Mapping[str, Tally]
    month: Tally
    objects: Mapping[str, int]


class SqlUsage:
    """Every method is one transaction; callers run it off the event loop. Unknown channels raise NotFound
    (``no-such-channel``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"SqlUsage({self._database!r})"

    # -- counts ----------------------------------------------------------------------------------------------

    def add(self, counts: Mapping[Place, Tally]) -> None:
        """Add these to what is there. Counts of a channel that is gone are dropped with it."""
        with self._database.transaction() as connection:
            names = {name for name, _, _ in counts}
            ids = {row.name: row.id for row in connection.execute(sa.select(_c.id, _c.name).where(_c.name.in_(names)))}
            # In one order, so that two hubs wait for each other's rows and never in a circle.
            rows = sorted((ids[name], node, day, name) for name, node, day in counts if name in ids)
            self._add(connection, [(key, node, day, counts[name, node, day]) for key, node, day, name in rows])

    def sample(self, channel: str, now: float) -> None:
        """Count the bytes that lie in the bucket since the last sample. The first sample of a channel only begins."""
        with self._database.transaction() as connection:
            row = connection.execute(_METERED, {"name": channel}).one_or_none()
            if row is None:
                find_channel_id(connection, channel)
                return
            if row.metered_at >= now:
                return  # another hub was quicker, or a clock went back: nothing is counted twice
            connection.execute(_SET_METERED, {"at_id": row.id, "at": now})
            if row.metered_at and row.charged:
                parts = stored_since(row.charged, row.metered_at, now)
                self._add(connection, [(row.id, HUB, day, Tally(byte_seconds=size)) for day, size in parts.items()])

    def report(self, channel: str, first: int, after: int) -> list[tuple[str, int, Tally]]:
        """Node, day and counts of the days from ``first`` to before ``after``, by day and node."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                sa.select(t.usage)
                .where(_u.channel_id == find_channel_id(connection, channel), _u.day >= first, _u.day < after)
                .order_by(_u.day, _u.node)
            )
            return [(row.node, row.day, _to_tally(row)) for row in rows]

    def channels(self) -> list[str]:
        """The names of all channels."""
        with self._database.transaction() as connection:
            return list(connection.execute(sa.select(_c.name).order_by(_c.name)).scalars())

    # -- limits ----------------------------------------------------------------------------------------------

    def budgeted(self) -> list[str]:
        """The names of the channels that have a budget."""
        with self._database.transaction() as connection:
            named = sa.select(_c.name).join(t.limits, _l.channel_id == _c.id).where(_l.budget.is_not(None))
            return list(connection.execute(named.order_by(_c.name)).scalars())

    def account(self, channel: str, day: int, month: tuple[int, int]) -> Account:
        """The limits and what they are checked against: of ``day``, and of the days of ``month`` (first, one after).
        Without limits nothing else is looked up."""
        with self._database.transaction() as connection:
            key = find_channel_id(connection, channel)
            limits = _limits(connection, key)
            if not limits:
                return Account(limits, {}, NOTHING, {})
            today = connection.execute(sa.select(t.usage).where(_u.channel_id == key, _u.day == day))
            spent = NOTHING
            if any(each.budget is not None for each in limits.values()):
                sums = [sa.func.coalesce(sa.func.sum(_u[name]), 0).label(name) for name in COUNTS]
                within = sa.and_(_u.channel_id == key, _u.day >= month[0], _u.day < month[1])
                spent = _to_tally(connection.execute(sa.select(*sums).where(within)).one())
            objects: dict[str, int] = {}
            if any(each.objects is not None for each in limits.values()):
                counted = sa.select(_o.uploader, sa.func.count().label("count")).where(
                    _o.channel_id == key, _o.status.in_(_THERE)
                )
                for row in connection.execute(counted.group_by(_o.uploader)):
                    number = int(row[1])
                    objects[WHOLE] = objects.get(WHOLE, 0) + number
                    if row.uploader is not None:
                        objects[row.uploader] = number
            return Account(limits, {row.node: _to_tally(row) for row in today}, spent, objects)

    def limits(self, channel: str) -> dict[str, Limits]:
        """The limits of a channel, by row."""
        with self._database.transaction() as connection:
            return _limits(connection, find_channel_id(connection, channel))

    def set_limits(self, channel: str, row: str, limits: Limits, *, now: float, actor: str) -> None:
        """Put these limits in the place of a row's; with none at all the row goes."""
        with self._database.transaction() as connection:
            key = find_channel_id(connection, channel)
            before = _limits(connection, key).get(row, Limits())
            values: dict[str, Any] = {name: getattr(limits, name) for name in LIMITS}
            if limits.budget is not None:
                values["budget"] = float(limits.budget)
            if limits:
                upsert = self._insert(t.limits).values(channel_id=key, node=row, **values)
                connection.execute(upsert.on_conflict_do_update(index_elements=["channel_id", "node"], set_=values))
            else:
                connection.execute(sa.delete(t.limits).where(_l.channel_id == key, _l.node == row))
            detail: dict[str, object] = {"node": row}
            for name, word in WORDS.items():
                old, new = getattr(before, name), getattr(limits, name)
                if old != new:
                    detail[word] = str(new) if isinstance(new, Decimal) else new
            write_audit(connection, now, actor, "channel.limit", channel, detail)

    def mark(self, channel: str, month: str, percent: int, *, now: float, detail: Mapping[str, object]) -> bool:
        """Note, also in the audit log, that so much of a month's budget is used up; False if that was noted before."""
        with self._database.transaction() as connection:
            key = find_channel_id(connection, channel)
            insert = self._insert(t.budget_marks).values(channel_id=key, month=month, percent=percent, at=now)
            if connection.execute(insert.on_conflict_do_nothing().returning(_m.percent)).one_or_none() is None:
                return False
            write_audit(connection, now, "hub", "channel.budget", channel, {"percent": percent, **detail})
            return True

    def unmark(self, channel: str, month: str) -> None:
        """Forget what was told of a month's budget: it is another one now."""
        with self._database.transaction() as connection:
            key = find_channel_id(connection, channel)
            connection.execute(sa.delete(t.budget_marks).where(_m.channel_id == key, _m.month == month))

    # -- prices ----------------------------------------------------------------------------------------------

    def prices(self) -> dict[str, PriceList]:
        """The price lists that were changed, by name."""
        with self._database.transaction() as connection:
            return {row.name: from_document(row.prices) for row in connection.execute(sa.select(t.prices))}

    def price_basis(self, channel: str) -> tuple[str, dict[str, PriceList]]:
        """What a channel's prices follow from: its bucket's URL, and the lists that were changed."""
        with self._database.transaction() as connection:
            return find_channel(connection, channel).bucket.url, self.prices()

    def set_prices(self, name: str, prices: PriceList, *, now: float, actor: str) -> None:
        """Keep a price list."""
        with self._database.transaction() as connection:
            values = {"prices": as_document(prices), "changed_at": now}
            upsert = self._insert(t.prices).values(name=name, **values)
            connection.execute(upsert.on_conflict_do_update(index_elements=["name"], set_=values))
            write_audit(connection, now, actor, "price.set", name, as_document(prices))

    def reset_prices(self, name: str, *, now: float, actor: str) -> bool:
        """Forget a changed price list; False if there was none."""
        with self._database.transaction() as connection:
            gone = connection.execute(sa.delete(t.prices).where(_p.name == name)).rowcount > 0
            if gone:
                write_audit(connection, now, actor, "price.reset", name, {})
            return gone

    # -- how -------------------------------------------------------------------------------------------------

    def _insert(self, table: sa.Table) -> Any:
        return sqlite.insert(table) if self._database.is_sqlite else postgresql.insert(table)

    def _add(self, connection: Connection, rows: list[tuple[int, str, int, Tally]]) -> None:
        if not rows:
            return
        upsert = self._insert(t.usage)
        more = {name: _u[name] + upsert.excluded[name] for name in COUNTS}
        connection.execute(
            upsert.on_conflict_do_update(index_elements=["channel_id", "node", "day"], set_=more),
            [
                {"channel_id": key, "node": node, "day": day, **{name: getattr(tally, name) for name in COUNTS}}
                for key, node, day, tally in rows
            ],
        )


def _limits(connection: Connection, channel_id: int) -> dict[str, Limits]:
    rows = connection.execute(sa.select(t.limits).where(_l.channel_id == channel_id))
    return {
        row.node: Limits(
            day_up=row.day_up,
            day_down=row.day_down,
            objects=row.objects,
            stream=row.stream,
            budget=None if row.budget is None else _money(row.budget),
        )
        for row in rows
    }


def _money(amount: float) -> Decimal:
    """The amount as it was written: the shortest text that means this double, without an empty fraction."""
    found = Decimal(repr(amount))
    return found.quantize(Decimal(1)) if found == found.to_integral_value() else found


def _to_tally(row: sa.Row[Any]) -> Tally:
    counts: dict[str, Any] = {name: int(getattr(row, name)) for name in COUNTS if name != "byte_seconds"}
    return Tally(**counts, byte_seconds=float(row.byte_seconds))
