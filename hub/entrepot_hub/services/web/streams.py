"""What the hub knows of a stream and what happened to it, for members who may read or provide; and how they find out
whether they reach the bucket."""

from __future__ import annotations

from aiohttp import web

from entrepot.core.api import HolderInfo, StreamInfo
from entrepot.core.errors import Denied, NotFound
from entrepot.core.identifiers import StreamId
from entrepot_hub.core.ledger import Ledger
from entrepot_hub.core.members import Channel, check_channel_name
from entrepot_hub.services.urls import read_trial
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
        return [
            web.get("/v1/channels/{channel}/streams/{stream}", self.stream),
            web.get("/v1/channels/{channel}/streams/{stream}/timeline", self.timeline),
            web.get("/v1/channels/{channel}/trial", self.trial),
        ]

    async def stream(self, request: web.Request) -> web.Response:
        """Opening, holders, how much of it is in the bucket, and how many wait for it."""
        channel = await self._channel(request)
        return json_answer(await self._info(channel, StreamId.parse(request.match_info["stream"])))

    async def timeline(self, request: web.Request) -> web.Response:
        """What happened to the stream, and why whoever waits for it waits."""
        channel = await self._channel(request)
        stream = StreamId.parse(request.match_info["stream"])
        info = await self._info(channel, stream)
        return json_answer(await self._context.timelines.of(channel.name, stream, info))

    async def trial(self, request: web.Request) -> web.Response:
        """A signed GET of the object that marks the bucket as the hub's."""
        channel = await self._channel(request)
        context = self._context
        return json_answer(await read_trial(await context.channels.channel(channel.name), context.clock()))

    async def _channel(self, request: web.Request) -> Channel:
        """The channel that is meant, for a caller who may read or provide there."""
        caller = await self._signatures.caller(request)
        name = check_channel_name(request.match_info["channel"])
        channel, member = await membership(self._context.registry, name, caller.node.public)
        if not (member.rights.may_read or member.rights.may_provide_any):
            raise Denied("your rights in this channel do not include reading", kind="no-right", channel=name)
        return channel

    async def _info(self, channel: Channel, stream: StreamId) -> StreamInfo:
        context = self._context
        now = context.clock()
        return await context.database.call(look_up, context.ledger, context.presence, channel, stream, now)


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
