"""Who sends a request: its signature, its age, its nonce, and what the hub knows of the key.

Only routes of the API ask for a signature; bulk routes (``/bucket/…``) carry theirs in the URL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from entrepot.core.errors import Denied, InvalidInput, NotFound
from entrepot.core.signing import SAFE_METHODS, WINDOW, verify_request
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.members import Node, NodeStatus

if TYPE_CHECKING:
    from entrepot_hub.services.web.shedding import Shedding


@dataclass(frozen=True, slots=True)
class Caller:
    """A node that signed a request, and the request's body."""

    node: Node
    body: bytes


class Signatures:
    """Checks signatures against the hub's own addresses, whatever the ``Host`` of the request says.

    ``urls`` are the hub's origins, ``clock`` tells unix seconds; ``shedding`` hears whom each request counts for.
    """

    def __init__(self, registry: Registry, urls: Sequence[str], clock: Callable[[], float], shedding: Shedding) -> None:
        self._registry = registry
        self._urls = tuple(urls)
        self._clock = clock
        self._shedding = shedding

    async def caller(self, request: web.Request) -> Caller:
        """The active node that signed this request.

        Raises :class:`Denied`: ``bad-signature``, ``clock-skew``, ``denied`` (a key this hub does not know),
        ``suspended``, ``replayed``. RetryLater: ``too-many-requests``.
        """
        try:
            return await self._caller(request)
        except Denied:
            self._shedding.stranger(request)
            raise

    async def _caller(self, request: web.Request) -> Caller:
        body = await read_body(request)
        path = request.raw_path
        if not path.startswith("/"):
            raise InvalidInput("a request names a path of the hub")
        now = self._clock()
        urls = [origin + path for origin in self._urls]
        signed = verify_request(request.method, urls, request.headers, body, now=now)
        self._shedding.stranger(request, signed.node)  # keys can be made up: the database is asked for so many only
        try:
            node = await self._registry.node(signed.node)
        except NotFound:
            node = None
        if node is None or node.public != signed.node:
            raise Denied("this hub does not know your key", hint="Join first: ask an owner of a channel for an invite.")
        if node.status is not NodeStatus.ACTIVE:
            raise Denied(
                "this node is suspended at the hub", kind="suspended", hint="Ask the hub's admin.", node=node.name
            )
        self._shedding.caller(request, node.public)
        if request.method not in SAFE_METHODS:
            # The request is too old a window after it was made; its maker's clock may be a window ahead.
            until = signed.created + 2 * WINDOW + 1
            try:
                await self._registry.nonce(node.public, signed.nonce, expires=until, now=now)
            except Denied:
                self._shedding.repeated(request, node.public)
                raise
        return Caller(node, body)


async def read_body(request: web.Request) -> bytes:
    """The whole body, of at most the application's limit."""
    try:
        return await request.read()
    except (web.RequestPayloadError, ConnectionError) as error:
        raise InvalidInput(f"the request's body did not arrive: {type(error).__name__}") from None


def decode_body[T](request: web.Request, body: bytes, kind: type[T]) -> T:
    """The body as JSON of this form, strictly. Raises :class:`InvalidInput` (``invalid-message``)."""
    if request.content_type != "application/json":
        raise InvalidInput("a request's body is application/json", kind="invalid-message")
    try:
        return msgspec.json.decode(body, type=kind, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error)[:300]  # it may quote the name of a field
        raise InvalidInput(f"the request's body is not as it should be: {reason}", kind="invalid-message") from None
