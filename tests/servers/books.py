"""What a hub's database says of its channels, read beside the hub: the account of one channel, added up anew."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.adapters.tables import channels, grants, objects

_CHARGED = ("reserved", "ready", "evicting")
_LIVE = ("offered", "accepted")


@dataclass(frozen=True)
class Books:
    """A channel's account. ``sizes``: bytes by status of the objects, ``counts``: how many; ``live``: grants;
    ``loose``: bytes reserved for which neither a grant lives nor a signed PUT could still land."""

    quota: int
    charged: int
    sizes: dict[str, int]
    counts: dict[str, int]
    live: int
    loose: int

    @property
    def reserved(self) -> int:
        """Bytes reserved for what is not there yet."""
        return self.sizes.get("reserved", 0)

    def check(self) -> None:
        """What holds at every instant: stored + reserved ≤ quota, and the sum is right."""
        assert self.charged == sum(self.sizes.get(status, 0) for status in _CHARGED), self
        assert self.charged <= self.quota, self


class Ledger:
    """The database behind ``url``, of SQLAlchemy."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)

    def books(self, channel: str = "demo") -> Books:
        """A channel's account at one instant."""
        with self._engine.connect() as connection:
            # All that follows sees one state of the database.
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            else:
                connection.exec_driver_sql("BEGIN")
            row = connection.execute(
                sa.select(channels.c.id, channels.c.quota, channels.c.charged).where(channels.c.name == channel)
            ).one()
            found = connection.execute(
                sa.select(objects.c.status, sa.func.count(), sa.func.sum(objects.c.size))
                .where(objects.c.channel_id == row.id)
                .group_by(objects.c.status)
            ).all()
            live = connection.execute(
                sa.select(sa.func.count()).select_from(grants).where(grants.c.status.in_(_LIVE))
            ).scalar_one()
            loose = connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(objects.c.size), 0)).where(
                    objects.c.channel_id == row.id,
                    objects.c.status == "reserved",
                    objects.c.put_until + ExchangeSettings().put_grace <= time.time(),
                    ~sa.exists().where(grants.c.object_id == objects.c.id, grants.c.status.in_(_LIVE)),
                )
            ).scalar_one()
        sizes = {status: int(size) for status, _, size in found}
        counts = {status: count for status, count, _ in found}
        return Books(row.quota, row.charged, sizes, counts, live, int(loose))

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()


@contextlib.contextmanager
def opened(url: str) -> Iterator[Ledger]:
    """The database, and gone."""
    ledger = Ledger(url)
    try:
        yield ledger
    finally:
        ledger.close()
