"""``POST /v1/session``: all that a node needs to work, for the life of one JWT. ``GET /v1/hub``: which hub
this is."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from entrepot.core.api import HubInfo, SessionInfo, SessionRequest
from entrepot.core.errors import InvalidInput
from entrepot.core.invite import hub_statement, is_loopback
from entrepot_hub.core.addresses import check_networks, is_local
from entrepot_hub.core.members import Rights
from entrepot_hub.services.web.channels import channel_info
from entrepot_hub.services.web.context import WebContext
from entrepot_hub.services.web.errors import json_answer
from entrepot_hub.services.web.signatures import Signatures, decode_body

VERSION: Final = version("entrepot")
_CHALLENGE: Final = re.compile(r"[0-9a-f]{32}")


class SessionRoutes:
    """What a node asks first."""

    def __init__(self, context: WebContext, signatures: Signatures) -> None:
        self._context = context
        self._signatures = signatures
        self._proxies = check_networks(context.settings.limits.proxies)

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [web.get("/v1/hub", self.hub), web.post("/v1/session", self.session)]

    async def hub(self, request: web.Request) -> web.Response:
        """The hub's public key, version and clock; challenged at one of its own addresses, the proof that it is it."""
        context, proof = self._context, ""
        challenge, address = request.query.get("challenge"), request.query.get("address")
        if challenge is not None:
            if _CHALLENGE.fullmatch(challenge) is None:
                raise InvalidInput("a challenge has 32 hex digits", kind="invalid-message")
            if address in context.settings.urls and self._leads_here(request, address):
                proof = context.identity.operator.sign(hub_statement(bytes.fromhex(challenge), address)).hex()
        return json_answer(HubInfo(hub=context.identity.hub_public, version=VERSION, time=context.clock(), proof=proof))

    def _leads_here(self, request: web.Request, address: str) -> bool:
        """Whether this address can have led the asker to this hub. ``localhost`` is everybody's own machine: what
        answers there is this hub only for who asks from here, and another program could pass the question on. A hub
        with no other address is for trials: it may be in a container, whose doors look like strangers."""
        if not _is_loopback(address) or all(map(_is_loopback, self._context.settings.urls)):
            return True
        return is_local(request.remote, request.headers.getall("X-Forwarded-For", ()), self._proxies)

    async def session(self, request: web.Request) -> web.Response:
        """A fresh NATS login for the rights that the node has now, and its channels."""
        context = self._context
        caller = await self._signatures.caller(request)
        decode_body(request, caller.body, SessionRequest)
        now, node = context.clock(), caller.node
        channels = await context.registry.channels_of(node.public)
        await context.registry.seen({node.public: now})
        life = context.settings.jwt_life
        after = context.presence.revoked_at(node.public)
        jwt = context.identity.user_jwt(
            node.public,
            [(channel.name, bus_rights(member.rights)) for channel, member in channels],
            now,
            life,
            after=after,
        )
        return json_answer(
            SessionInfo(
                hub=context.identity.hub_public,
                node=node.public,
                name=node.name,
                jwt=jwt,
                jwt_expires=int(now) + life,
                nats=tuple(context.nats_urls()),
                inbox=f"_INBOX.{node.public}",
                instance=context.instance,
                channels=tuple(channel_info(channel, member) for channel, member in channels),
                time=now,
            )
        )


def _is_loopback(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def bus_rights(rights: Rights) -> tuple[str, ...]:
    """The words by which the bus lets a member speak: what it may do with each kind the exchange checks."""
    words = {"read": rights.may_read, "request": rights.may_request_any, "provide": rights.may_provide_any}
    return tuple(word for word, given in words.items() if given)
