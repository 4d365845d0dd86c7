"""The hub's tables, for SQLite and PostgreSQL alike.

Times are seconds since the epoch as doubles; sizes and lengths are bytes; ids of streams, locks and grants are raw
bytes; nodes are public keys as text. Any change here needs a revision in ``migrations/versions``.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

#: SQLite counts rows up only in columns of type INTEGER.
RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _channel(*, primary_key: bool = False) -> sa.Column[int]:
    return sa.Column("channel_id", RowId, sa.ForeignKey("channels.id"), nullable=False, primary_key=primary_key)


buckets: Final = sa.Table(
    "buckets",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("binds", sa.JSON, nullable=False),
    sa.Column("credentials", sa.LargeBinary),
    sa.UniqueConstraint("url", "prefix"),
)

#: ``charged`` is the sum of what the channel's objects count against ``quota``, kept in the same transactions.
#: ``ready_count`` numbers objects as they become ready; ``level`` and ``evicted`` (bytes, in all) are
#: what eviction remembers of the channel.
#: ``metered_at``: until when the bytes stored are in ``usage``.
channels: Final = sa.Table(
    "channels",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("quota", sa.BigInteger, nullable=False),
    sa.Column("lock", sa.Text, nullable=False),
    sa.Column("bucket_id", RowId, sa.ForeignKey("buckets.id"), nullable=False),
    sa.Column("public_read", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("charged", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("ready_count", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("level", sa.Double, nullable=False, server_default="0"),
    sa.Column("evicted", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("metered_at", sa.Double, nullable=False, server_default="0"),
    sa.CheckConstraint("charged >= 0", name="charged"),
    sa.CheckConstraint("quota >= 0", name="quota"),
)

nodes: Final = sa.Table(
    "nodes",
    metadata,
    sa.Column("public", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double),
    sa.Index(None, "name"),
)

memberships: Final = sa.Table(
    "memberships",
    metadata,
    _channel(primary_key=True),
    sa.Column("node", sa.Text, sa.ForeignKey("nodes.public"), primary_key=True),
    sa.Column("rights", sa.Text, nullable=False),
    sa.Column("granted_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
    sa.Index(None, "node"),
)

#: ``proof`` is the sealed key that a joining node proves to know; the invite's secret itself is never stored.
invites: Final = sa.Table(
    "invites",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _channel(),
    sa.Column("rights", sa.Text, nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("used", sa.Integer, nullable=False, server_default="0"),
    sa.Column("proof", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
    sa.Index(None, "channel_id"),
    sa.CheckConstraint("used <= uses", name="used"),
)

#: Which node used which invite, so that it may repeat it without another use.
redemptions: Final = sa.Table(
    "redemptions",
    metadata,
    sa.Column("invite", sa.Text, sa.ForeignKey("invites.id"), primary_key=True),
    sa.Column("node", sa.Text, sa.ForeignKey("nodes.public"), primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
)

nonces: Final = sa.Table(
    "nonces",
    metadata,
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("nonce", sa.Text, primary_key=True),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Index(None, "expires"),
)

audit: Final = sa.Table(
    "audit",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

settings: Final = sa.Table(
    "settings",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

streams: Final = sa.Table(
    "streams",
    metadata,
    _channel(primary_key=True),
    sa.Column("stream", sa.LargeBinary, primary_key=True),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
)

holders: Final = sa.Table(
    "holders",
    metadata,
    _channel(primary_key=True),
    sa.Column("stream", sa.LargeBinary, primary_key=True),
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("seen_at", sa.Double, nullable=False),
    sa.Index(None, "channel_id", "node", "seen_at"),
)

wants: Final = sa.Table(
    "wants",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    _channel(),
    sa.Column("stream", sa.LargeBinary, nullable=False),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("lock", sa.LargeBinary, nullable=False),
    sa.Column("ranges", sa.JSON, nullable=False),
    sa.Column("window", sa.Integer, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("keep", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("heard_at", sa.Double, nullable=False),
    sa.Column("transfer", sa.LargeBinary),
    sa.UniqueConstraint("channel_id", "stream", "node"),
    sa.Index(None, "until"),
    sqlite_autoincrement=True,
)

#: ``ready_number`` orders a channel's objects by when they became ready (0: never). ``visits``, ``cost`` (seconds),
#: ``standing`` and ``left_at`` (the channel's ``evicted`` at its last eviction) are what eviction remembers of it.
objects: Final = sa.Table(
    "objects",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    _channel(),
    sa.Column("lock", sa.LargeBinary, nullable=False),
    sa.Column("stream", sa.LargeBinary, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("etag", sa.Text),
    sa.Column("put_until", sa.Double, nullable=False),
    sa.Column("tombstone", sa.Boolean, nullable=False),
    sa.Column("used_at", sa.Double, nullable=False),
    sa.Column("uploader", sa.Text),
    sa.Column("ready_number", sa.BigInteger, nullable=False),
    sa.Column("visits", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cost", sa.Double, nullable=False, server_default="4"),
    sa.Column("standing", sa.Double, nullable=False, server_default="0"),
    sa.Column("left_at", sa.BigInteger),
    sa.UniqueConstraint("channel_id", "lock", "stream", "number"),
    sa.Index(None, "channel_id", "stream"),
    sqlite_autoincrement=True,
)
#: The runs of ready and of reserved numbers of a stream are read from this index alone.
sa.Index("ix_objects_runs", objects.c.channel_id, objects.c.lock, objects.c.stream, objects.c.status, objects.c.number)
sa.Index(
    "ix_objects_standing",
    objects.c.channel_id,
    objects.c.standing,
    objects.c.ready_number.desc(),
    sqlite_where=objects.c.status == sa.literal_column("'ready'"),
    postgresql_where=objects.c.status == sa.literal_column("'ready'"),
)
_RESTLESS = objects.c.status.in_(
    [sa.literal_column("'reserved'"), sa.literal_column("'evicting'"), sa.literal_column("'tombstone'")]
)
sa.Index("ix_objects_restless", objects.c.id, sqlite_where=_RESTLESS, postgresql_where=_RESTLESS)

grants: Final = sa.Table(
    "grants",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("grant", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("object_id", RowId, sa.ForeignKey("objects.id", ondelete="CASCADE"), nullable=False),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("session", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("lease_until", sa.Double, nullable=False),
    sa.Column("put_until", sa.Double, nullable=False),
    sa.Column("granted_at", sa.Double, nullable=False),
    sa.Column("accepted_at", sa.Double, nullable=False),
    sa.Column("sent", sa.BigInteger, nullable=False),
    sa.Column("sent_at", sa.Double, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("transfer", sa.LargeBinary),
    sa.Index(None, "object_id"),
    sqlite_autoincrement=True,
)
_LIVE = grants.c.status.in_([sa.literal_column("'accepted'"), sa.literal_column("'offered'")])
#: The fence of the whole exchange: at most one live grant per object.
sa.Index("uq_grants_live_object_id", grants.c.object_id, unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE)
sa.Index("ix_grants_live_lease_until", grants.c.lease_until, sqlite_where=_LIVE, postgresql_where=_LIVE)
sa.Index("ix_grants_live_session", grants.c.node, grants.c.session, sqlite_where=_LIVE, postgresql_where=_LIVE)

#: A read lease of a node on a ready object; ``got``: it has fetched and verified it.
reads: Final = sa.Table(
    "reads",
    metadata,
    sa.Column("object_id", RowId, sa.ForeignKey("objects.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("got", sa.Boolean, nullable=False),
)

strikes: Final = sa.Table(
    "strikes",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    _channel(),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Index(None, "channel_id", "node", "at"),
)

#: Streams whose objects are never evicted. ``class``: "pin" (somebody asked for it) or "archive" (the bucket is their
#: home).
pins: Final = sa.Table(
    "pins",
    metadata,
    _channel(primary_key=True),
    sa.Column("stream", sa.LargeBinary, primary_key=True),
    sa.Column("class", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

#: What happened to streams, for people who ask why: the journal. One row is a run of like events between ``at`` and
#: ``until``: objects ``first`` to ``last`` (NULL: of the stream as a whole), ``count`` events, ``bytes`` and
#: ``seconds`` in all. ``node``: who did it, or for whom it was done; ``detail``: why.
events: Final = sa.Table(
    "events",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    _channel(),
    sa.Column("stream", sa.LargeBinary, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("node", sa.Text),
    sa.Column("transfer", sa.LargeBinary),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("first", sa.BigInteger),
    sa.Column("last", sa.BigInteger),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Index("ix_events_stream", "channel_id", "stream", "id"),
    sa.Index("ix_events_order", "channel_id", "id"),
    sa.Index(None, "until"),
    sqlite_autoincrement=True,
)

#: What a channel's traffic came to by node and day (whole UTC days since the epoch). Node "" is the hub itself.
#: ``uploads`` and ``uploaded`` (bytes): objects that arrived; ``downloads`` and ``downloaded``: signed for reading, an
#: upper bound of what was read; ``requests_a`` writes and lists, ``requests_b`` looks and reads, ``deletes``: requests
#: to the provider; ``evicted``: bytes; ``byte_seconds``: bytes stored times seconds.
usage: Final = sa.Table(
    "usage",
    metadata,
    _channel(primary_key=True),
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("uploads", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("uploaded", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("downloads", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("downloaded", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("requests_a", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("requests_b", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("deletes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("evicted", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("byte_seconds", sa.Double, nullable=False, server_default="0"),
)

#: What a channel, or a node in it, may use at most; NULL is no limit. Node "" is the whole channel, "*" each node that
#: has no row of its own. ``day_up`` and ``day_down``: bytes per UTC day; ``objects`` in the bucket; ``stream``: bytes
#: of the largest stream; ``budget``: money per UTC month, of the channel alone.
limits: Final = sa.Table(
    "limits",
    metadata,
    _channel(primary_key=True),
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("day_up", sa.BigInteger),
    sa.Column("day_down", sa.BigInteger),
    sa.Column("objects", sa.BigInteger),
    sa.Column("stream", sa.BigInteger),
    sa.Column("budget", sa.Double),
)

#: Which part of a month's budget (in percent) was told to be used up already; ``month``: "2026-11".
budget_marks: Final = sa.Table(
    "budget_marks",
    metadata,
    _channel(primary_key=True),
    sa.Column("month", sa.Text, primary_key=True),
    sa.Column("percent", sa.Integer, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
)

#: Prices that the admin changed, by the name of a price list (a provider, or "channel:<name>").
prices: Final = sa.Table(
    "prices",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("prices", sa.JSON, nullable=False),
    sa.Column("changed_at", sa.Double, nullable=False),
)

#: The keys that a bucket has had, without the keys. ``label`` is the part of a key that is no secret. ``safe_at``: from
#: when no URL signed with a retired one is valid any more, so that it may be deleted at the provider.
bucket_keys: Final = sa.Table(
    "bucket_keys",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("bucket_id", RowId, sa.ForeignKey("buckets.id"), nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("set_at", sa.Double, nullable=False),
    sa.Column("set_by", sa.Text, nullable=False),
    sa.Column("used_at", sa.Double),
    sa.Column("retired_at", sa.Double),
    sa.Column("safe_at", sa.Double),
    sa.Index(None, "bucket_id"),
    sqlite_autoincrement=True,
)

#: Comparisons of bucket and ledger. ``cursor``: the key after which an unfinished one goes on; ``counts``: what was
#: found and done so far.
reconciliations: Final = sa.Table(
    "reconciliations",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    _channel(),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Column("cursor", sa.Text),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Index(None, "channel_id", "started_at"),
    sqlite_autoincrement=True,
)
