"""Rows of the registry's tables as records, and the look-ups that its methods share, all inside one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot.core.errors import Conflict, Denied, NotFound
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters import sql_rebuild
from entrepot_hub.adapters import tables as t
from entrepot_hub.core.members import BucketRecord, Channel, Invite, Member, Node, NodeStatus, Rights

#: Shortest beginning of a public key or name that may stand for the whole.
_SHORTEST_PREFIX: Final = 4

CHANNELS: Final = (
    sa.select(
        t.channels,
        t.buckets.c.url,
        t.buckets.c.prefix,
        t.buckets.c.binds,
        t.buckets.c.credentials,
        t.objects.c.size.label("held"),
        t.settings.c.value.label("rebuilding"),
    )
    .join(t.buckets, t.buckets.c.id == t.channels.c.bucket_id)
    .outerjoin(t.objects, sql_rebuild.held_back(t.channels.c.id))
    .outerjoin(t.settings, sql_rebuild.rebuilding_of(t.channels.c.name))
)
MEMBERS: Final = (
    sa.select(
        t.channels.c.name.label("channel"),
        t.nodes,
        t.memberships.c.rights,
        t.memberships.c.granted_at,
        t.memberships.c.revoked_at,
    )
    .join(t.channels, t.channels.c.id == t.memberships.c.channel_id)
    .join(t.nodes, t.nodes.c.public == t.memberships.c.node)
)
INVITES: Final = sa.select(t.invites, t.channels.c.name.label("channel")).join(
    t.channels, t.channels.c.id == t.invites.c.channel_id
)


def keep_bucket(
    connection: Connection, url: str, prefix: str, credentials: bytes | None, binds: dict[str, bool]
) -> int:
    """The id of the bucket of this URL and prefix, made known if it is new; credentials replace older ones."""
    known = connection.execute(
        sa.select(t.buckets.c.id).where(t.buckets.c.url == url, t.buckets.c.prefix == prefix)
    ).scalar()
    if known is None:
        made = connection.execute(
            sa.insert(t.buckets)
            .values(url=url, prefix=prefix, credentials=credentials, binds=binds)
            .returning(t.buckets.c.id)
        )
        return int(made.scalar_one())
    if credentials is not None:
        values = {"credentials": credentials, "binds": binds}
        connection.execute(sa.update(t.buckets).where(t.buckets.c.id == known).values(values))
    return int(known)


def find_channel_id(connection: Connection, name: str) -> int:
    """The row id of a channel; NotFound (no-such-channel)."""
    found = connection.execute(sa.select(t.channels.c.id).where(t.channels.c.name == name)).scalar()
    if found is None:
        raise NotFound(f"there is no channel {name}", kind="no-such-channel", channel=name)
    return int(found)


def find_channel(connection: Connection, name: str) -> Channel:
    """A channel; NotFound (no-such-channel)."""
    row = connection.execute(CHANNELS.where(t.channels.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no channel {name}", kind="no-such-channel", channel=name)
    return to_channel(row)


def known_node(connection: Connection, public: str) -> Node:
    """The node of exactly this public key; NotFound (no-such-node)."""
    row = connection.execute(sa.select(t.nodes).where(t.nodes.c.public == public)).one_or_none()
    if row is None:
        raise NotFound("the hub knows no such node", kind="no-such-node", node=public)
    return to_node(row)


def find_node(connection: Connection, text: str) -> Node:
    """See ``Registry.node``."""
    node = t.nodes.c
    exact = connection.execute(sa.select(t.nodes).where(sa.or_(node.public == text, node.name == text)).limit(2)).all()
    found: Sequence[sa.Row[Any]] = [row for row in exact if row.public == text] or exact
    if not found and len(text) >= _SHORTEST_PREFIX:
        begins = sa.or_(node.public.startswith(text, autoescape=True), node.name.startswith(text, autoescape=True))
        found = connection.execute(sa.select(t.nodes).where(begins).limit(2)).all()
    if not found:
        raise NotFound(f"the hub knows no node {text!r}", kind="no-such-node", node=text)
    if len(found) > 1:
        raise Conflict(f"several nodes fit {text!r}", kind="ambiguous", hint="Name it by its public key", node=text)
    return to_node(found[0])


def find_member(connection: Connection, channel: str, node: str) -> Member:
    """See ``Registry.member``."""
    row = connection.execute(MEMBERS.where(t.channels.c.name == channel, t.nodes.c.public == node)).one_or_none()
    if row is None:
        find_channel_id(connection, channel)
        raise Denied(
            f"the node is no member of {channel}",
            kind="no-right",
            hint="Ask an owner of the channel for an invite",
            channel=channel,
        )
    return to_member(row)


def write_audit(
    connection: Connection, now: float, actor: str, action: str, subject: str, detail: Mapping[str, object]
) -> None:
    """Append a line to the audit log."""
    connection.execute(
        sa.insert(t.audit).values(at=now, actor=actor, action=action, subject=subject, detail=dict(detail))
    )


def to_channel(row: sa.Row[Any]) -> Channel:
    """The record of a row of :data:`CHANNELS`."""
    credentials = None if row.credentials is None else bytes(row.credentials)
    return Channel(
        name=row.name,
        quota=row.quota,
        lock=SchemaLock.parse(row.lock),
        bucket=BucketRecord(row.bucket_id, row.url, row.prefix, row.binds, credentials),
        public_read=row.public_read,
        created_at=row.created_at,
        charged=row.charged,
        held=row.held or 0,
        held_until=sql_rebuild.held_until(row.rebuilding) if row.held else None,
    )


def to_node(row: sa.Row[Any]) -> Node:
    """The record of a row of ``nodes``."""
    return Node(row.public, row.name, NodeStatus(row.status), row.created_at, row.seen_at)


def to_member(row: sa.Row[Any]) -> Member:
    """The record of a row of :data:`MEMBERS`."""
    return Member(row.channel, to_node(row), Rights.parse(row.rights), row.granted_at, row.revoked_at)


def to_invite(row: sa.Row[Any]) -> Invite:
    """The record of a row of :data:`INVITES`."""
    return Invite(
        id=row.id,
        channel=row.channel,
        rights=Rights.parse(row.rights),
        uses=row.uses,
        used=row.used,
        created_at=row.created_at,
        expires=row.expires,
        revoked_at=row.revoked_at,
    )
