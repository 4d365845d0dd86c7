"""What the hub's admin, and a channel's owner, can do: one code for the socket, the API and the command line.

Every operation is a method that takes one request and gives one answer, both plain values. What takes rights
away is told to :class:`Changes` at once, so that a running hub cuts the node off in seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import msgspec

from entrepot.core.api import ChannelDetail, ChannelView, InviteView, MemberView, NewInvite
from entrepot.core.errors import Conflict
from entrepot.core.invite import ID_LENGTH, SECRET_LENGTH
from entrepot.core.invite import Invite as InviteUrl
from entrepot.core.lock import SchemaLock
from entrepot.core.nkeys import KeyKind, decode_public
from entrepot_hub.core.members import Channel, Invite, Member, Node, Rights, check_channel_name
from entrepot_hub.services.custody import key_view, safe_at
from entrepot_hub.services.desk import Desk, Operation, Request, View

if TYPE_CHECKING:  # a command that asks a running hub has no use for a database
    from entrepot_hub.adapters.registry import Registry
    from entrepot_hub.services.vault import Vault

ADMIN: Final = "admin"

Name = Annotated[str, msgspec.Meta(max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Nothing(Request, frozen=True, kw_only=True):
    """A question without details."""


class ChannelCreate(Request, frozen=True, kw_only=True):
    """A new channel; sizes in bytes, ``object`` 0 for whole streams. ``credentials``: the bucket's keys, a
    secret. ``create_bucket``: make the bucket if it is missing. ``if_missing``: one of this name on this bucket is what
    was asked for, however it was made."""

    name: Name
    bucket: Text
    quota: Size = 10 << 30
    miniblock: Size = 1 << 20
    object: Size = 4 << 20
    codec: Annotated[str, msgspec.Meta(max_length=16)] = "none"
    public_read: bool = False
    credentials: Annotated[str, msgspec.Meta(max_length=32768)] | None = None
    create_bucket: bool = False
    if_missing: bool = False

    def __repr__(self) -> str:
        return f"ChannelCreate({self.name}, {self.bucket}, credentials={'***' if self.credentials else None})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # Struct has one of its own, which shows every field, and rich prefers it to repr.
        return [("name", self.name), ("bucket", self.bucket)]


class ChannelNamed(Request, frozen=True, kw_only=True):
    """A channel."""

    name: Name


class InviteCreate(Request, frozen=True, kw_only=True):
    """An invite for ``uses`` nodes, good for ``life`` seconds."""

    name: Name
    uses: int = 1
    life: Annotated[float, msgspec.Meta(gt=0, le=366 * 86_400)] = 7 * 86_400
    rights: Text = "request,provide"


class MemberGrant(Request, frozen=True, kw_only=True):
    """A node (its name, its key, or the beginning of either) gets exactly these rights."""

    name: Name
    node: Name
    rights: Text


class MemberRevoke(Request, frozen=True, kw_only=True):
    """A node loses all rights in a channel."""

    name: Name
    node: Name


class NodeNamed(Request, frozen=True, kw_only=True):
    """A node: its name, its key, or the beginning of either."""

    node: Name


class AuditPage(Request, frozen=True, kw_only=True):
    """Up to ``limit`` lines after the one with id ``after``."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1000


class MadeChannel(ChannelView, frozen=True, kw_only=True):
    """A channel that was asked for. ``made`` False: it was there already."""

    made: bool


class NodeView(View, frozen=True, kw_only=True):
    """A node as the hub knows it."""

    node: str
    name: str
    status: str
    created_at: float
    seen_at: float | None


class AuditView(View, frozen=True, kw_only=True):
    """A line of the audit log."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, object]


class Status(View, frozen=True, kw_only=True):
    """The hub at a glance. ``checks``: what it needs, and whether that is ``ok``; empty when it does not
    run. ``nats``: where nodes are told to find the bus; ``warnings``: what they will stumble over, in sentences.
    ``held`` of the ``charged`` bytes are held back after a rebuilding, until ``held_until`` at the latest."""

    hub: str
    urls: tuple[str, ...]
    running: bool
    channels: int
    nodes: int
    quota: int
    charged: int
    checks: dict[str, str]
    nats: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    held: int = 0
    held_until: float | None = None


class Changes(Protocol):
    """Who must know of a change at once: the running hub."""

    async def on_revoked(self, node: str, channel: str | None) -> None:
        """The node (public key) lost rights: in this channel, or (None) all of them."""
        ...

    async def on_granted(self, node: str, channel: str | None) -> None:
        """The node gained rights: in this channel, or (None) it is no longer suspended."""
        ...

    async def on_channel(self, channel: str) -> None:
        """A channel was made."""
        ...


class NoChanges:
    """Nobody runs who would have to know."""

    async def on_revoked(self, node: str, channel: str | None) -> None:
        """Takes effect when the hub starts: JWTs are made from the rights of that moment."""

    async def on_granted(self, node: str, channel: str | None) -> None:
        """Nothing to do."""

    async def on_channel(self, channel: str) -> None:
        """Nothing to do."""


class Administration:
    """The operations. The first of ``urls`` goes into invites; ``bus`` tells where nodes are told to find NATS, and
    what is wrong with that; ``checks`` looks at what the running hub needs; ``actor`` of every method is who asks:
    ``admin``, or an owner's public key."""

    def __init__(
        self,
        registry: Registry,
        vault: Vault,
        *,
        hub_public: str,
        urls: tuple[str, ...],
        clock: Callable[[], float],
        changes: Changes | None = None,
        bus: Callable[[], tuple[tuple[str, ...], tuple[str, ...]]] | None = None,
        checks: Callable[[], Awaitable[Mapping[str, str]]] | None = None,
    ) -> None:
        self._registry = registry
        self._vault = vault
        self._hub_public = hub_public
        self._hub_key = decode_public(hub_public, KeyKind.OPERATOR)[1]
        self._urls = urls
        self._clock = clock
        self._changes: Changes = changes or NoChanges()
        self._bus = bus
        self._checks = checks

    # -- channels --------------------------------------------------------------------------------------------

    async def create_channel(self, asked: ChannelCreate, actor: str = ADMIN) -> MadeChannel:
        """Put a channel on a bucket, once it is clear that the bucket can be used. Conflict (``exists``, also with
        ``if_missing`` for one on another bucket; ``in-use``), and what the bucket raises."""
        check_channel_name(asked.name)
        lock = SchemaLock(asked.name, asked.codec, miniblock=asked.miniblock, object=asked.object)
        url, prefix = self._vault.locate(asked.bucket)
        known = await self._registry.channels()
        there = next((channel for channel in known if channel.name == asked.name), None)
        if there is not None:
            same = self._same_place(there.bucket.url, url)
            if asked.if_missing and same:
                return _made_channel(there, made=False)
            raise Conflict(
                f"there is a channel {asked.name} already" + ("" if same else f", on {there.bucket.url}"),
                kind="exists",
                channel=asked.name,
            )
        shared = next((channel.bucket for channel in known if self._same_place(channel.bucket.url, url)), None)
        if shared is not None:
            url = shared.url  # what its keys are sealed for
        sealed = None if asked.credentials is None else self._vault.seal(url, asked.credentials.encode())
        if sealed is not None and shared is not None and self._vault.same(url, sealed, shared.credentials):
            sealed = None  # the keys that it has
        label = None if sealed is None else self._vault.credentials(url, sealed).label
        if shared is not None and sealed is None:
            binds = dict(shared.binds)
        else:
            create = asked.create_bucket or self._vault.creates(asked.bucket)
            binds = await self._vault.survey(url, sealed, create=create)
        channel = await self._registry.create_channel(
            asked.name,
            quota=asked.quota,
            lock=lock,
            bucket=url,
            prefix=prefix,
            credentials=sealed,
            label=label,
            safe_at=safe_at(self._clock()),
            binds=binds,
            public_read=asked.public_read,
            now=self._clock(),
            actor=actor,
        )
        await self._changes.on_channel(channel.name)
        return _made_channel(channel, made=True)

    def _same_place(self, known: str, url: str) -> bool:
        """Whether a known bucket is at ``url``, also one whose URL was written down as somebody spelled it."""
        return known == url or self._vault.locate(known)[0] == url

    async def list_channels(self, _asked: Nothing, _actor: str = ADMIN) -> list[ChannelView]:
        """All channels, by name."""
        return [_channel_view(channel) for channel in await self._registry.channels()]

    async def show_channel(self, asked: ChannelNamed, _actor: str = ADMIN) -> ChannelDetail:
        """One channel with its members and invites. NotFound (``no-such-channel``)."""
        channel = await self._registry.channel(asked.name)
        keys = await self._registry.bucket_keys(channel.bucket.id)
        return ChannelDetail(
            channel=_channel_view(channel),
            key=next((key_view(key) for key in keys if key.retired_at is None), None),
            members=[_member_view(member) for member in await self._registry.members(asked.name)],
            invites=[_invite_view(invite) for invite in await self._registry.invites(asked.name)],
        )

    async def create_invite(self, asked: InviteCreate, actor: str = ADMIN) -> NewInvite:
        """A new invite. Its secret is in the answer and kept nowhere."""
        now = self._clock()
        secret, name = secrets.token_bytes(SECRET_LENGTH), secrets.token_bytes(ID_LENGTH)
        invite = await self._registry.create_invite(
            asked.name,
            Rights.parse(asked.rights),
            uses=asked.uses,
            expires=now + asked.life,
            secret=secret,
            now=now,
            actor=actor,
            invite_id=name,
        )
        url = InviteUrl(self._urls[0], name, secret, self._hub_key).join_url()
        return NewInvite(invite=_invite_view(invite), url=url)

    # -- members ---------------------------------------------------------------------------------------------

    async def grant(self, asked: MemberGrant, actor: str = ADMIN) -> MemberView:
        """Give a known node exactly these rights; what it loses by that is revoked at once."""
        rights = Rights.parse(asked.rights)
        node = await self._registry.node(asked.node)
        before = next((m for m in await self._registry.members(asked.name) if m.node.public == node.public), None)
        member = await self._registry.grant_rights(asked.name, node.public, rights, now=self._clock(), actor=actor)
        lost = before is not None and before.revoked_at is None and before.rights.granted - rights.granted
        if lost:
            await self._changes.on_revoked(node.public, asked.name)
        else:
            await self._changes.on_granted(node.public, asked.name)
        return _member_view(member)

    async def revoke(self, asked: MemberRevoke, actor: str = ADMIN) -> MemberView:
        """Take all rights in the channel from a node. Repeating it tells the running hub again."""
        node = await self._registry.node(asked.node)
        member = await self._registry.revoke(asked.name, node.public, now=self._clock(), actor=actor)
        await self._changes.on_revoked(node.public, asked.name)
        return _member_view(member)

    # -- nodes -----------------------------------------------------------------------------------------------

    async def list_nodes(self, _asked: Nothing, _actor: str = ADMIN) -> list[NodeView]:
        """All nodes, by name."""
        return [_node_view(node) for node in await self._registry.nodes()]

    async def suspend(self, asked: NodeNamed, actor: str = ADMIN) -> NodeView:
        """The node can do nothing at this hub until it is resumed."""
        found = await self._registry.node(asked.node)
        node = await self._registry.suspend(found.public, now=self._clock(), actor=actor)
        await self._changes.on_revoked(node.public, None)
        return _node_view(node)

    async def resume(self, asked: NodeNamed, actor: str = ADMIN) -> NodeView:
        """Undo :meth:`suspend`."""
        found = await self._registry.node(asked.node)
        node = await self._registry.resume(found.public, now=self._clock(), actor=actor)
        await self._changes.on_granted(node.public, None)
        return _node_view(node)

    # -- the hub ---------------------------------------------------------------------------------------------

    async def audit(self, asked: AuditPage, _actor: str = ADMIN) -> list[AuditView]:
        """A page of the audit log, oldest line first."""
        entries = await self._registry.audit_log(asked.after, asked.limit)
        return [
            AuditView(
                id=entry.id,
                at=entry.at,
                actor=entry.actor,
                action=entry.action,
                subject=entry.subject,
                detail=dict(entry.detail),
            )
            for entry in entries
        ]

    async def status(self, _asked: Nothing, _actor: str = ADMIN) -> Status:
        """The hub at a glance."""
        channels = await self._registry.channels()
        checks = {} if self._checks is None else dict(await self._checks())
        nats, warnings = ((), ()) if self._bus is None else self._bus()  # after the checks: it tells what they found
        return Status(
            hub=self._hub_public,
            urls=self._urls,
            running=self._checks is not None,
            channels=len(channels),
            nodes=len(await self._registry.nodes()),
            quota=sum(channel.quota for channel in channels),
            charged=sum(channel.charged for channel in channels),
            held=sum(channel.held for channel in channels),
            held_until=max((channel.held_until or 0.0 for channel in channels), default=0.0) or None,
            checks=checks,
            nats=nats,
            warnings=warnings,
        )


def _asked[R: Request, A](
    method: Callable[[Administration, R, str], Awaitable[A]],
) -> Callable[[Desk, R, str], Awaitable[A]]:
    """The method as an operation calls it."""
    return lambda desk, asked, actor: method(desk.administration, asked, actor)


#: Channels, members, nodes and the hub itself.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    "channel.list": Operation(Nothing, list[ChannelView], _asked(Administration.list_channels)),
    "channel.invite": Operation(InviteCreate, NewInvite, _asked(Administration.create_invite)),
    "channel.grant": Operation(MemberGrant, MemberView, _asked(Administration.grant)),
    "channel.revoke": Operation(MemberRevoke, MemberView, _asked(Administration.revoke)),
    "node.list": Operation(Nothing, list[NodeView], _asked(Administration.list_nodes)),
    "node.suspend": Operation(NodeNamed, NodeView, _asked(Administration.suspend)),
    "node.resume": Operation(NodeNamed, NodeView, _asked(Administration.resume)),
    "audit": Operation(AuditPage, list[AuditView], _asked(Administration.audit)),
    "status": Operation(Nothing, Status, _asked(Administration.status)),
}


def _channel_view(channel: Channel) -> ChannelView:
    return ChannelView(
        name=channel.name,
        bucket=channel.bucket.url,
        quota=channel.quota,
        charged=channel.charged,
        lock=channel.lock.hex,
        miniblock=channel.lock.miniblock,
        object=channel.lock.object,
        codec=channel.lock.codec,
        public_read=channel.public_read,
        created_at=channel.created_at,
        binds=dict(channel.bucket.binds),
        held=channel.held,
        held_until=channel.held_until,
    )


def _made_channel(channel: Channel, *, made: bool) -> MadeChannel:
    return MadeChannel(**msgspec.structs.asdict(_channel_view(channel)), made=made)


def _member_view(member: Member) -> MemberView:
    return MemberView(
        channel=member.channel,
        node=member.node.public,
        name=member.node.name,
        rights=str(member.rights),
        active=member.active,
        granted_at=member.granted_at,
        revoked_at=member.revoked_at,
    )


def _invite_view(invite: Invite) -> InviteView:
    return InviteView(
        id=invite.id,
        channel=invite.channel,
        rights=str(invite.rights),
        uses=invite.uses,
        used=invite.used,
        expires=invite.expires,
        revoked_at=invite.revoked_at,
    )


def _node_view(node: Node) -> NodeView:
    return NodeView(
        node=node.public,
        name=node.name,
        status=node.status.value,
        created_at=node.created_at,
        seen_at=node.seen_at,
    )
