"""``GET /v1/channels/{channel}/streams/{id}``: what the hub knows of a stream, for members who may read."""

from __future__ import annotations

from aiohttp import web

from entrepot.core.api import HolderInfo, StreamInfo
from entrepot.core.errors import Denied, NotFound
from entrepot.core.identifiers import StreamId
from entrepot_hub.core.ledger import Ledger
from entrepot_hub.core.members import Channel, check_channel_name
from entrepot_hub.services.web.channels import membership
from entrepot_hub.services.web.context import Presence, WebContext
from entrepot_hub.services.web.errors import json_answer
from entrepot_hub.services.web.signatures import Signatures


class StreamRoutes:
    """What is where, without wanting it."""

    def __init__(self, context: WebContext, signatures: Signatures) -> None:
        self._context = context
        self._signatures = signatures

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [web.get("/v1/channels/{channel}/streams/{stream}", self.stream)]

    async def stream(self, request: web.Request) -> web.Response:
        """Opening, holders, how much of it is in the bucket, and how many wait for it."""
        caller = await self._signatures.caller(request)
        name = check_channel_name(request.match_info["channel"])
        stream = StreamId.parse(request.match_info["stream"])
        channel, member = await membership(self._context.registry, name, caller.node.public)
        if not (member.rights.may_read or member.rights.may_provide_any):
            raise Denied("your rights in this channel do not include reading", kind="no-right", channel=name)
        context = self._context
        now = context.clock()
        info = await context.database.call(look_up, context.ledger, context.presence, channel, stream, now)
        return json_answer(info)


def look_up(ledger: Ledger, presence: Presence, channel: Channel, stream: StreamId, now: float) -> StreamInfo:
    """What the ledger knows of the stream. NotFound (``no-such-stream``) if that is nothing."""
    opening = ledger.opening(channel.name, stream.raw)
    holders = ledger.holders(channel.name, stream.raw)
    objects, size = ledger.summary(channel.name, stream.raw, channel.lock.id)
    wants = ledger.wants(channel.name, stream.raw, now)
    if opening is None and not holders and not objects and not wants:
        raise NotFound(
            "nobody in this channel has told the hub of this stream",
            kind="no-such-stream",
            hint="Is it the right channel, and was the stream added to it?",
            channel=channel.name,
            stream=str(stream),
        )
    return StreamInfo(
        opening=None if opening is None else opening.encode().hex(),
        holders=tuple(
            HolderInfo(name=holder.name, online=presence.online(holder.node), last_seen=holder.seen_at)
            for holder in holders
        ),
        objects=objects,
        bytes=size,
        wanted_by=len(wants),
    )
