"""The SQL ledger's holdings: what is forgotten of who holds what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import batched

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.ledger_rows import CHUNK, LedgerRows, account
from entrepot_hub.core.holdings import kept

_h, _n, _o, _s = t.holders.c, t.nodes.c, t.objects.c, t.streams.c


class SqlHoldings(LedgerRows):
    """What is remembered of who holds what, and of streams at all."""

    def thin_holders(self, channel: str, of_member: int, of_channel: int, limit: int = 10_000) -> int:
        """See ``Ledger.thin_holders``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            count = sa.select(_h.node, sa.func.count().label("many")).where(_h.channel_id == of.id).group_by(_h.node)
            counts = {row.node: int(row.many) for row in connection.execute(count)}
            gone = 0
            for node, keep in sorted(kept(counts, of_member, of_channel).items()):
                most = min(counts[node] - keep, limit - gone)
                if most <= 0:
                    continue
                own = sa.and_(_h.channel_id == of.id, _h.node == node)
                oldest = sa.select(_h.stream).where(own).order_by(_h.seen_at, _h.stream).limit(most)
                gone += connection.execute(sa.delete(t.holders).where(own, _h.stream.in_(oldest))).rowcount
            return gone

    def forget_absent(self, before: float, limit: int = 10_000) -> int:
        """See ``Ledger.forget_absent``."""
        heard = sa.exists().where(_n.public == _h.node, _n.seen_at >= before)
        key = (_h.channel_id, _h.stream, _h.node)
        some = sa.select(*key).where(_h.seen_at < before, ~heard).limit(limit)
        with self._transaction() as connection:
            gone = 0
            for part in batched(connection.execute(some).all(), CHUNK // 3):
                # Said again meanwhile, it stays.
                which = sa.and_(sa.tuple_(*key).in_([tuple(row) for row in part]), _h.seen_at < before)
                gone += connection.execute(sa.delete(t.holders).where(which)).rowcount
            return gone

    def forget_streams(self, channel: str, after: bytes, limit: int = 1000) -> tuple[int, bytes | None]:
        """See ``Ledger.forget_streams``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            query = sa.select(_s.stream).where(_s.channel_id == of.id, _s.stream > after)
            page = [bytes(raw) for raw in connection.execute(query.order_by(_s.stream).limit(limit)).scalars()]
            if not page:
                return 0, None
            needed = set(_needed(connection, of.id, after, page[-1]))
            needless = [stream for stream in page if stream not in needed]
            for part in batched(needless, CHUNK):
                connection.execute(sa.delete(t.streams).where(_s.channel_id == of.id, _s.stream.in_(part)))
            return len(needless), page[-1] if len(page) == limit else None


def _needed(connection: Connection, channel: int, after: bytes, through: bytes) -> Iterator[bytes]:
    """The streams between these two, the second included, that somebody holds or wants, that are pinned, or of whose
    objects anything is known."""
    for table in (t.holders, t.wants, t.pins):
        c = table.c
        there = sa.select(c.stream).where(c.channel_id == channel, c.stream > after, c.stream <= through).distinct()
        yield from (bytes(raw) for raw in connection.execute(there).scalars())
    # Objects are found by lock first: a channel has had few.
    lock: bytes | None = b""
    while lock is not None:
        query = sa.select(_o.lock).where(_o.channel_id == channel, _o.lock > lock).order_by(_o.lock).limit(1)
        found = connection.execute(query).scalar_one_or_none()
        lock = None if found is None else bytes(found)
        if lock is not None:
            there = (
                sa.select(_o.stream)
                .where(_o.channel_id == channel, _o.lock == lock, _o.stream > after, _o.stream <= through)
                .distinct()
            )
            yield from (bytes(raw) for raw in connection.execute(there).scalars())
