"""Joining: the page behind an invite's URL, and the request that takes it up."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from entrepot.core.api import Joined, JoinRequest
from entrepot.core.errors import Denied, InvalidInput
from entrepot.core.invite import Invite, split_token
from entrepot.core.subjects import check_node
from entrepot_hub.services.web.context import WebContext
from entrepot_hub.services.web.errors import json_answer
from entrepot_hub.services.web.shedding import Shedding
from entrepot_hub.services.web.signatures import decode_body, read_body

#: A name that reads like a public key could pass for another node.
_LIKE_A_KEY: Final = re.compile(r"[A-Z][A-Z2-7]{55}")


class JoinRoutes:
    """``GET /j/<token>`` explains an invite and changes nothing; ``POST /v1/join`` takes it up."""

    def __init__(self, context: WebContext, shedding: Shedding) -> None:
        self._context = context
        self._shedding = shedding

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [web.get("/j/{token}", self.explain), web.post("/v1/join", self.join)]

    async def explain(self, request: web.Request) -> web.Response:
        """What an invite is and the command that takes it up, as plain text. The invite is not looked up."""
        invite = Invite(self._context.settings.urls[0], *split_token(request.match_info["token"]))
        if invite.hub_public != self._context.identity.hub_public:
            raise Denied("this invite is for another hub", kind="bad-invite", hint="Ask for a new invite.")
        return web.Response(
            text=(
                "This is an invite to a channel of an entrepot hub.\n"
                "Whoever has this address can join: treat it like a password.\n"
                "\n"
                "With Python 3.12 or later, on the machine that shall join:\n"
                "\n"
                "    pip install entrepot\n"
                f"    entrepot join {invite.join_url()}\n"
            ),
            content_type="text/plain",
        )

    async def join(self, request: web.Request) -> web.Response:
        """Let the node in that proves to know the invite's secret. The same key may repeat it."""
        body = await read_body(request)
        asked = decode_body(request, body, JoinRequest)
        check_node(asked.node)
        if _LIKE_A_KEY.fullmatch(asked.name):
            raise InvalidInput("a node's name cannot be a public key", hint="Give it a name that people can read.")
        hub_public = self._context.identity.hub_public
        with self._shedding.joining(request, asked.invite):
            member = await self._context.registry.redeem(
                asked.invite,
                node=asked.node,
                mac=bytes.fromhex(asked.mac),
                hub_public=hub_public,
                name=asked.name,
                now=self._context.clock(),
            )
        return json_answer(
            Joined(hub=hub_public, channel=member.channel, rights=str(member.rights), name=member.node.name)
        )
