"""A channel as its members see it, and what its owners may change from anywhere."""

from __future__ import annotations

from aiohttp import web

from entrepot.core.api import ChannelInfo, GrantRequest, InviteRequest
from entrepot.core.errors import Denied, NotFound
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.members import Channel, Member, check_channel_name
from entrepot_hub.services.administration import (
    Administration,
    ChannelNamed,
    InviteCreate,
    MemberGrant,
    MemberRevoke,
)
from entrepot_hub.services.web.errors import json_answer
from entrepot_hub.services.web.signatures import Caller, Signatures, decode_body


class ChannelRoutes:
    """What owners do with their channel, signed, through the same code as the admin's socket."""

    def __init__(self, registry: Registry, signatures: Signatures, administration: Administration) -> None:
        self._registry = registry
        self._signatures = signatures
        self._administration = administration

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [
            web.get("/v1/channels/{channel}", self.show),
            web.post("/v1/channels/{channel}/invites", self.invite),
            web.put("/v1/channels/{channel}/members/{node}", self.grant),
            web.delete("/v1/channels/{channel}/members/{node}", self.revoke),
        ]

    async def show(self, request: web.Request) -> web.Response:
        """The channel, its members and its invites."""
        channel, caller = await self._owner(request)
        return json_answer(await self._administration.show_channel(ChannelNamed(name=channel), caller.node.public))

    async def invite(self, request: web.Request) -> web.Response:
        """A new invite; its URL is in the answer, this once."""
        channel, caller = await self._owner(request)
        asked = decode_body(request, caller.body, InviteRequest)
        create = InviteCreate(name=channel, uses=asked.uses, life=asked.life, rights=asked.rights)
        return json_answer(await self._administration.create_invite(create, caller.node.public))

    async def grant(self, request: web.Request) -> web.Response:
        """Exactly these rights for a node."""
        channel, caller = await self._owner(request)
        asked = decode_body(request, caller.body, GrantRequest)
        node = await self._member(channel, request.match_info["node"])
        grant = MemberGrant(name=channel, node=node, rights=asked.rights)
        return json_answer(await self._administration.grant(grant, caller.node.public))

    async def revoke(self, request: web.Request) -> web.Response:
        """No rights any more for a node."""
        channel, caller = await self._owner(request)
        node = await self._member(channel, request.match_info["node"])
        revoke = MemberRevoke(name=channel, node=node)
        return json_answer(await self._administration.revoke(revoke, caller.node.public))

    async def _owner(self, request: web.Request) -> tuple[str, Caller]:
        caller = await self._signatures.caller(request)
        name = check_channel_name(request.match_info["channel"])
        _, member = await membership(self._registry, name, caller.node.public)
        if not member.rights.owns:
            raise Denied(f"only an owner of {name} may do this", kind="no-right", hint="Ask an owner.", channel=name)
        return name, caller

    async def _member(self, channel: str, text: str) -> str:
        """The public key of a member, present or past, by key or name: an owner learns of no other nodes."""
        nodes = [member.node for member in await self._registry.members(channel)]
        exact = [node.public for node in nodes if node.public == text]
        found = exact or [node.public for node in nodes if node.name == text]
        if len(found) != 1:
            what = "no member is" if not found else "several members are"
            raise NotFound(
                f"{what} called {text[:64]!r} in {channel}",
                kind="no-such-node",
                hint="Name it by its public key.",
                channel=channel,
            )
        return found[0]


async def membership(registry: Registry, channel: str, node: str) -> tuple[Channel, Member]:
    """The channel and a node's place in it; a stranger cannot tell a channel from none.

    Raises NotFound (``no-such-channel``).
    """
    for found, member in await registry.channels_of(node):
        if found.name == channel:
            return found, member
    raise NotFound(
        f"you are in no channel {channel} at this hub",
        kind="no-such-channel",
        hint="Ask its owner for an invite.",
        channel=channel,
    )


def channel_info(channel: Channel, member: Member) -> ChannelInfo:
    """The channel for this member."""
    return ChannelInfo(
        name=channel.name,
        lock=channel.lock.canonical().decode(),
        lock_id=channel.lock.hex,
        rights=str(member.rights),
        quota=channel.quota,
        public_read=channel.public_read,
    )
