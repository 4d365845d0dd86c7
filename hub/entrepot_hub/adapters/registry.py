"""Channels, nodes, members, invites, nonces and the audit log: who may do what, kept in the hub's database.

Every change of these writes its line of the audit log in the same transaction: ``actor`` is who asked for it, a
node's public key or a word for somebody at the hub's machine (``admin``).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from hmac import compare_digest
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from entrepot.core.errors import Conflict, Denied, InvalidInput, NotFound
from entrepot.core.invite import ID_LENGTH, join_mac, proof_key
from entrepot.core.lock import SchemaLock
from entrepot.core.units import format_size
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.bucket_keys import find_keys, put_key, use_key
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry_rows import (
    CHANNELS,
    INVITES,
    MEMBERS,
    find_channel,
    find_channel_id,
    find_member,
    find_node,
    keep_bucket,
    known_node,
    to_channel,
    to_invite,
    to_member,
    to_node,
    write_audit,
)
from entrepot_hub.adapters.sealed_rows import sealed_now, sealing_key
from entrepot_hub.core.master_keys import MasterKeys
from entrepot_hub.core.members import (
    AuditEntry,
    BucketKey,
    Channel,
    Invite,
    Member,
    Node,
    NodeStatus,
    Rights,
    check_channel_name,
    check_node_name,
)
from entrepot_hub.core.sealing import SEAL_RANDOM, MasterKey, bucket_place, invite_place, seal

#: The smallest quota of a channel, in objects: less cannot keep a transfer moving.
SMALLEST_QUOTA: Final = 4
_MAX_QUOTA: Final = 2**62
_MAX_USES: Final = 100_000
_MAX_NONCE: Final = 256
_MAX_PAGE: Final = 1000


class Registry:
    """Who may do what. ``master`` seals the proof keys of invites; ``random`` gives fresh random bytes."""

    def __init__(
        self, database: Database, master: MasterKey | MasterKeys, random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._database = database
        self.keys = MasterKeys.of(master)
        self._random = random

    def __repr__(self) -> str:
        return f"Registry({self._database!r})"

    # -- channels --------------------------------------------------------------------------------------------

    async def create_channel(
        self,
        name: str,
        *,
        quota: int,
        lock: SchemaLock,
        bucket: str,
        prefix: str = "",
        credentials: bytes | None = None,
        label: str | None = None,
        safe_at: float | None = None,
        binds: Mapping[str, bool] | None = None,
        public_read: bool = False,
        now: float,
        actor: str,
    ) -> Channel:
        """A new channel over the bucket at this URL (without secrets); ``credentials`` are sealed by the caller,
        ``label`` and ``safe_at`` as for :meth:`set_bucket`.

        A bucket's URL and prefix together belong to one channel's record; a channel that names the same pair shares
        it, and gives it new credentials when it has any. Raises Conflict (exists) for a name that is taken.
        """
        check_channel_name(name)
        if lock.channel != name:
            raise InvalidInput("the schema lock names another channel", kind="invalid-lock", channel=name)
        _check_quota(quota, lock)

        def work(connection: Connection) -> Channel:
            sealed = sealed_now(connection, self.keys, credentials, bucket_place(bucket))
            bucket_id = keep_bucket(connection, bucket, prefix, sealed, dict(binds or {}))
            if label is not None:
                put_key(connection, bucket_id, label, now=now, actor=actor, safe_at=now if safe_at is None else safe_at)
            values = {
                "name": name,
                "quota": quota,
                "lock": lock.canonical().decode(),
                "bucket_id": bucket_id,
                "public_read": public_read,
                "created_at": now,
            }
            if not self._insert_new(connection, t.channels, values):
                raise Conflict(f"there is a channel {name} already", kind="exists", channel=name)
            detail = {"quota": quota, "lock": lock.hex, "bucket": bucket, "prefix": prefix, "public_read": public_read}
            detail |= {} if label is None else {"key": label}
            write_audit(connection, now, actor, "channel.create", name, detail)
            return find_channel(connection, name)

        return await self._database.run(work)

    async def channel(self, name: str) -> Channel:
        """The channel, or NotFound (no-such-channel)."""
        return await self._database.run(find_channel, name)

    async def channels(self) -> list[Channel]:
        """All channels, by name."""

        def work(connection: Connection) -> list[Channel]:
            return [to_channel(row) for row in connection.execute(CHANNELS.order_by(t.channels.c.name))]

        return await self._database.run(work)

    async def set_quota(self, name: str, quota: int, *, now: float, actor: str) -> Channel:
        """Change a channel's quota in bytes. It may be less than what is charged: then nothing new is granted until
        objects have left."""

        def work(connection: Connection) -> Channel:
            before = find_channel(connection, name)
            _check_quota(quota, before.lock)
            connection.execute(sa.update(t.channels).where(t.channels.c.name == name).values(quota=quota))
            write_audit(connection, now, actor, "channel.quota", name, {"quota": quota, "before": before.quota})
            return find_channel(connection, name)

        return await self._database.run(work)

    async def set_public_read(self, name: str, public_read: bool, *, now: float, actor: str) -> Channel:
        """Declare whether anybody may read the channel's bucket without a signed URL."""

        def work(connection: Connection) -> Channel:
            find_channel(connection, name)
            connection.execute(sa.update(t.channels).where(t.channels.c.name == name).values(public_read=public_read))
            write_audit(connection, now, actor, "channel.public-read", name, {"public_read": public_read})
            return find_channel(connection, name)

        return await self._database.run(work)

    async def set_bucket(
        self,
        name: str,
        *,
        credentials: bytes | None,
        binds: Mapping[str, bool],
        label: str | None = None,
        safe_at: float | None = None,
        now: float,
        actor: str,
    ) -> Channel:
        """Replace the sealed credentials (None: none are needed) and what the channel's bucket is known to bind.

        ``label`` is the part of the new key that is no secret; the one before is needed at the provider until
        ``safe_at``. All channels on this bucket have the new ones."""

        def work(connection: Connection) -> Channel:
            bucket = find_channel(connection, name).bucket
            sealed = sealed_now(connection, self.keys, credentials, bucket_place(bucket.url))
            connection.execute(
                sa.update(t.buckets).where(t.buckets.c.id == bucket.id).values(credentials=sealed, binds=dict(binds))
            )
            detail = {"bucket": bucket.url, "prefix": bucket.prefix}
            if label is not None:
                put_key(connection, bucket.id, label, now=now, actor=actor, safe_at=now if safe_at is None else safe_at)
                detail["key"] = label
            write_audit(connection, now, actor, "channel.bucket", name, detail)
            return find_channel(connection, name)

        return await self._database.run(work)

    async def bucket_keys(self, bucket: int) -> list[BucketKey]:
        """The keys that a bucket (by the id of its record) has and had, the present one first."""
        return await self._database.run(find_keys, bucket)

    async def use_key(self, channel: Channel, label: str, *, now: float, actor: str) -> None:
        """Note that the key of a channel's bucket was opened."""
        await self._database.run(use_key, channel.bucket.id, label, channel.name, now=now, actor=actor)

    async def set_binds(self, name: str, binds: Mapping[str, bool], *, now: float, actor: str) -> Channel:
        """Keep what the channel's bucket was found to bind."""

        def work(connection: Connection) -> Channel:
            before = find_channel(connection, name).bucket
            connection.execute(sa.update(t.buckets).where(t.buckets.c.id == before.id).values(binds=dict(binds)))
            changed = {key: bound for key, bound in binds.items() if before.binds.get(key) != bound}
            write_audit(connection, now, actor, "channel.binds", name, dict(changed))
            return find_channel(connection, name)

        return await self._database.run(work)

    # -- nodes -----------------------------------------------------------------------------------------------

    async def add_node(self, public: str, name: str, *, now: float) -> Node:
        """The node of this public key, made known if it is new. A known node takes the new name."""
        check_node_name(name)
        return await self._database.run(self._keep_node, public, name, now)

    async def node(self, text: str) -> Node:
        """The node of this public key or name, or of the only key or name that begins so (4 characters or more).

        Raises NotFound (no-such-node), Conflict (ambiguous) when several fit.
        """
        return await self._database.run(find_node, text)

    async def nodes(self) -> list[Node]:
        """All nodes, by name."""

        def work(connection: Connection) -> list[Node]:
            order = sa.select(t.nodes).order_by(t.nodes.c.name, t.nodes.c.public)
            return [to_node(row) for row in connection.execute(order)]

        return await self._database.run(work)

    async def suspend(self, node: str, *, now: float, actor: str) -> Node:
        """The node may do nothing until it is resumed; its memberships stay."""
        return await self._database.run(self._set_status, node, NodeStatus.SUSPENDED, now, actor)

    async def resume(self, node: str, *, now: float, actor: str) -> Node:
        """Undo :meth:`suspend`."""
        return await self._database.run(self._set_status, node, NodeStatus.ACTIVE, now, actor)

    async def seen(self, when: Mapping[str, float]) -> None:
        """These nodes (public keys) were heard at these times; an earlier time than the known one changes nothing."""
        if not when:
            return

        def work(connection: Connection) -> None:
            seen = t.nodes.c.seen_at
            connection.execute(
                sa.update(t.nodes)
                .where(t.nodes.c.public == sa.bindparam("node"))
                .where(sa.or_(seen.is_(None), seen < sa.bindparam("at")))
                .values(seen_at=sa.bindparam("at")),
                [{"node": node, "at": at} for node, at in sorted(when.items())],
            )

        await self._database.run(work)

    # -- members ---------------------------------------------------------------------------------------------

    async def member(self, channel: str, node: str) -> Member:
        """The member of this public key, active or not. NotFound (no-such-channel); Denied (no-right) for a node that
        never was one."""
        return await self._database.run(find_member, channel, node)

    async def members(self, channel: str) -> list[Member]:
        """All members of a channel, revoked ones too, by name."""

        def work(connection: Connection) -> list[Member]:
            find_channel_id(connection, channel)
            order = MEMBERS.where(t.channels.c.name == channel).order_by(t.nodes.c.name, t.nodes.c.public)
            return [to_member(row) for row in connection.execute(order)]

        return await self._database.run(work)

    async def channels_of(self, node: str) -> list[tuple[Channel, Member]]:
        """The channels in which this node (public key) has rights now, by name; none when it is suspended."""

        def work(connection: Connection) -> list[tuple[Channel, Member]]:
            rows = connection.execute(
                MEMBERS.where(
                    t.nodes.c.public == node,
                    t.nodes.c.status == NodeStatus.ACTIVE,
                    t.memberships.c.revoked_at.is_(None),
                )
            )
            found = {member.channel: member for member in map(to_member, rows)}
            if not found:
                return []
            order = CHANNELS.where(t.channels.c.name.in_(found)).order_by(t.channels.c.name)
            return [(channel, found[channel.name]) for channel in map(to_channel, connection.execute(order))]

        return await self._database.run(work)

    async def grant_rights(self, channel: str, node: str, rights: Rights, *, now: float, actor: str) -> Member:
        """A known node (public key) has exactly these rights in the channel from now on, revoked before or not."""
        if not rights:
            raise InvalidInput("name at least one right", hint="To take all rights away, revoke the member")

        def work(connection: Connection) -> Member:
            channel_id = find_channel_id(connection, channel)
            public = known_node(connection, node).public
            self._keep_member(connection, channel_id, public, rights, now)
            write_audit(connection, now, actor, "member.grant", channel, {"node": public, "rights": str(rights)})
            return find_member(connection, channel, public)

        return await self._database.run(work)

    async def revoke(self, channel: str, node: str, *, now: float, actor: str) -> Member:
        """The member (public key) loses all rights in the channel. Revoking again changes nothing."""

        def work(connection: Connection) -> Member:
            before = find_member(connection, channel, node)
            if before.revoked_at is None:
                connection.execute(
                    sa.update(t.memberships)
                    .where(
                        t.memberships.c.channel_id == find_channel_id(connection, channel), t.memberships.c.node == node
                    )
                    .values(revoked_at=now)
                )
                write_audit(
                    connection, now, actor, "member.revoke", channel, {"node": node, "rights": str(before.rights)}
                )
            return find_member(connection, channel, node)

        return await self._database.run(work)

    # -- invites ---------------------------------------------------------------------------------------------

    async def create_invite(
        self,
        channel: str,
        rights: Rights,
        *,
        uses: int,
        expires: float,
        secret: bytes,
        now: float,
        actor: str,
        invite_id: bytes | None = None,
    ) -> Invite:
        """An invite to a channel; ``secret`` (16 bytes) goes into its URL and is not kept: only the key that
        proves it is, sealed. ``Invite.id`` is 32 hex digits, drawn here when ``invite_id`` (16 bytes) is not given."""
        if not rights:
            raise InvalidInput("name at least one right")
        if not 1 <= uses <= _MAX_USES:
            raise InvalidInput(f"an invite may be used 1 to {_MAX_USES} times", uses=uses)
        if expires <= now:
            raise InvalidInput("an invite cannot expire before it is made")
        name = (self._random(ID_LENGTH) if invite_id is None else invite_id).hex()
        key = proof_key(secret)
        random = self._random(SEAL_RANDOM)

        def work(connection: Connection) -> Invite:
            master = sealing_key(connection, self.keys)
            proof = seal(key, key=master, associated=invite_place(name), random=random)
            connection.execute(
                sa.insert(t.invites).values(
                    id=name,
                    channel_id=find_channel_id(connection, channel),
                    rights=str(rights),
                    uses=uses,
                    proof=proof,
                    created_at=now,
                    expires=expires,
                )
            )
            detail = {"invite": name, "rights": str(rights), "uses": uses, "expires": expires}
            write_audit(connection, now, actor, "invite.create", channel, detail)
            return to_invite(connection.execute(INVITES.where(t.invites.c.id == name)).one())

        return await self._database.run(work)

    async def invites(self, channel: str) -> list[Invite]:
        """All invites of a channel, latest first."""

        def work(connection: Connection) -> list[Invite]:
            find_channel_id(connection, channel)
            order = sa.desc(t.invites.c.created_at), t.invites.c.id
            return [
                to_invite(row)
                for row in connection.execute(INVITES.where(t.channels.c.name == channel).order_by(*order))
            ]

        return await self._database.run(work)

    async def revoke_invite(self, channel: str, invite: str, *, now: float, actor: str) -> None:
        """The invite lets nobody in any more. NotFound when the channel has none of this id."""

        def work(connection: Connection) -> None:
            done = connection.execute(
                sa.update(t.invites)
                .where(t.invites.c.id == invite, t.invites.c.channel_id == find_channel_id(connection, channel))
                .values(revoked_at=sa.func.coalesce(t.invites.c.revoked_at, now))
            )
            if not done.rowcount:
                raise NotFound("the channel has no such invite", channel=channel)
            write_audit(connection, now, actor, "invite.revoke", channel, {"invite": invite})

        await self._database.run(work)

    async def redeem(self, invite: str, *, node: str, mac: bytes, hub_public: str, name: str, now: float) -> Member:
        """A node joins by an invite: ``mac`` is :func:`entrepot.core.invite.join_proof` over its public key and the
        hub's.

        It becomes known, gains the invite's rights (those it has stay) and uses the invite up once; the same key may
        repeat it. Every failure is the same Denied (bad-invite): no such invite, expired, used up, revoked, a wrong
        proof, a suspended node, or a member who was revoked after the invite was made.
        """
        check_node_name(name)

        def work(connection: Connection) -> Member:
            lock = INVITES.where(t.invites.c.id == invite).with_for_update(of=t.invites)
            row = connection.execute(lock).one_or_none()
            if row is None or not self._proves(row.proof, invite, node, hub_public, mac):
                raise _bad_invite()
            asked = to_invite(row)
            if asked.revoked_at is not None or asked.expires <= now:
                raise _bad_invite()
            before = connection.execute(
                MEMBERS.where(t.channels.c.name == asked.channel, t.memberships.c.node == node)
            ).one_or_none()
            member = None if before is None else to_member(before)
            if member is not None and member.revoked_at is not None and member.revoked_at >= asked.created_at:
                raise _bad_invite()
            repeated = connection.execute(
                sa.select(t.redemptions.c.at).where(t.redemptions.c.invite == invite, t.redemptions.c.node == node)
            ).one_or_none()
            if repeated is None and asked.used >= asked.uses:
                raise _bad_invite()
            if self._keep_node(connection, node, name, now).status is not NodeStatus.ACTIVE:
                raise _bad_invite()
            if repeated is None:
                self._use(connection, asked, node, member, now)
            return find_member(connection, asked.channel, node)

        return await self._database.run(work)

    # -- nonces, log, settings -------------------------------------------------------------------------------

    async def nonce(self, node: str, nonce: str, *, expires: float, now: float) -> None:
        """Note that the node signed a request with this nonce; Denied (replayed) if it did before. It is remembered
        until ``expires``, after which the request's age alone must refuse it."""
        if len(nonce) > _MAX_NONCE:
            raise InvalidInput(f"a nonce has at most {_MAX_NONCE} characters")

        def work(connection: Connection) -> None:
            connection.execute(sa.delete(t.nonces).where(t.nonces.c.expires < now))
            values = {"node": node, "nonce": nonce, "expires": expires}
            if not self._insert_new(connection, t.nonces, values):
                raise Denied("this signed request was sent before", kind="replayed", hint="Sign each request anew")

        await self._database.run(work)

    async def audit(
        self, actor: str, action: str, subject: str, detail: Mapping[str, object] | None = None, *, now: float
    ) -> None:
        """Append a line to the audit log: what was changed or which secret was used, by whom."""
        await self._database.run(write_audit, now, actor, action, subject, detail or {})

    async def audit_log(self, after: int = 0, limit: int = 100) -> list[AuditEntry]:
        """Up to ``limit`` (at most 1,000) lines with an id above ``after``, oldest first."""

        def work(connection: Connection) -> list[AuditEntry]:
            rows = connection.execute(
                sa.select(t.audit)
                .where(t.audit.c.id > after)
                .order_by(t.audit.c.id)
                .limit(min(max(limit, 0), _MAX_PAGE))
            )
            return [AuditEntry(row.id, row.at, row.actor, row.action, row.subject, row.detail) for row in rows]

        return await self._database.run(work)

    async def setting(self, key: str) -> bytes | None:
        """A value of the hub's own, such as its sealed identity."""

        def work(connection: Connection) -> bytes | None:
            found = connection.execute(sa.select(t.settings.c.value).where(t.settings.c.key == key)).scalar()
            return None if found is None else bytes(found)

        return await self._database.run(work)

    async def set_setting(self, key: str, value: bytes, *, create: bool = False) -> None:
        """Keep a value of the hub's own. With ``create``, Conflict (exists) when there is one already."""

        def work(connection: Connection) -> None:
            if self._insert_new(connection, t.settings, {"key": key, "value": value}):
                return
            if create:
                raise Conflict(f"the hub has a {key} already", kind="exists", key=key)
            connection.execute(sa.update(t.settings).where(t.settings.c.key == key).values(value=value))

        await self._database.run(work)

    # -- inside a transaction --------------------------------------------------------------------------------

    def _insert(self, table: sa.Table) -> Any:
        return sqlite.insert(table) if self._database.is_sqlite else postgresql.insert(table)

    def _insert_new(self, connection: Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
        """Insert a row; False when one with the same key is there already."""
        insert = self._insert(table).values(values).on_conflict_do_nothing().returning(sa.literal(1))
        return connection.execute(insert).first() is not None

    def _keep_node(self, connection: Connection, public: str, name: str, now: float) -> Node:
        insert = self._insert(t.nodes).values(public=public, name=name, status=NodeStatus.ACTIVE, created_at=now)
        connection.execute(insert.on_conflict_do_update(index_elements=["public"], set_={"name": insert.excluded.name}))
        return known_node(connection, public)

    def _set_status(self, connection: Connection, node: str, status: NodeStatus, now: float, actor: str) -> Node:
        before = known_node(connection, node)
        if before.status is not status:
            connection.execute(sa.update(t.nodes).where(t.nodes.c.public == node).values(status=status))
            action = "node.suspend" if status is NodeStatus.SUSPENDED else "node.resume"
            write_audit(connection, now, actor, action, node, {"name": before.name})
        return known_node(connection, node)

    def _keep_member(self, connection: Connection, channel_id: int, node: str, rights: Rights, now: float) -> None:
        insert = self._insert(t.memberships).values(
            channel_id=channel_id, node=node, rights=str(rights), granted_at=now, revoked_at=None
        )
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=["channel_id", "node"],
                set_={"rights": str(rights), "granted_at": now, "revoked_at": None},
            )
        )

    def _use(self, connection: Connection, invite: Invite, node: str, member: Member | None, now: float) -> None:
        connection.execute(sa.insert(t.redemptions).values(invite=invite.id, node=node, at=now))
        connection.execute(sa.update(t.invites).where(t.invites.c.id == invite.id).values(used=t.invites.c.used + 1))
        kept = member.rights if member is not None and member.revoked_at is None else Rights()
        rights = kept | invite.rights
        self._keep_member(connection, find_channel_id(connection, invite.channel), node, rights, now)
        detail = {"invite": invite.id, "rights": str(rights)}
        write_audit(connection, now, node, "member.join", invite.channel, detail)

    def _proves(self, proof: bytes, invite: str, node: str, hub_public: str, mac: bytes) -> bool:
        key = self.keys.unseal(bytes(proof), associated=invite_place(invite))
        return compare_digest(join_mac(key, node, hub_public), mac)


def _bad_invite() -> Denied:
    return Denied(
        "this invite does not let you in",
        kind="bad-invite",
        hint="It may be mistyped, used up, expired or withdrawn: ask for a new one",
    )


def _check_quota(quota: int, lock: SchemaLock) -> None:
    smallest = max(SMALLEST_QUOTA * lock.object, 1)
    if not smallest <= quota <= _MAX_QUOTA:
        raise InvalidInput(
            f"the smallest quota of this channel is {format_size(smallest)} ({SMALLEST_QUOTA} objects)",
            kind="invalid-setting",
            hint=f"Give a quota of at least {smallest} bytes.",
            quota=quota,
            smallest=smallest,
        )
