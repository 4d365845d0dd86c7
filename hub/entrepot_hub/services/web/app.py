"""The hub's web applications: one for nodes, one for the admin, and the server that listens for both."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from entrepot.core.api import MAX_REQUEST
from entrepot.core.errors import InvalidInput, RetryLater
from entrepot_hub.adapters.metrics import Metrics
from entrepot_hub.core.addresses import check_networks
from entrepot_hub.core.rates import Rate
from entrepot_hub.services.administration import Administration
from entrepot_hub.services.desk import Desk
from entrepot_hub.services.settings import HubSettings, LimitSettings
from entrepot_hub.services.web.admin import AdminRoutes, AdminSocket
from entrepot_hub.services.web.channels import ChannelRoutes
from entrepot_hub.services.web.context import WebContext
from entrepot_hub.services.web.errors import faults
from entrepot_hub.services.web.health import Readiness
from entrepot_hub.services.web.join import JoinRoutes
from entrepot_hub.services.web.metrics import measured
from entrepot_hub.services.web.openapi import OpenApiRoutes
from entrepot_hub.services.web.session import VERSION, SessionRoutes
from entrepot_hub.services.web.shedding import Doorway, Shedding, SheddingSettings
from entrepot_hub.services.web.signatures import Signatures
from entrepot_hub.services.web.streams import StreamRoutes

#: Paths whose handlers move bulk bytes: they check their own signatures and their own time.
BULK_PATHS: Final = ("/bucket/",)

_ADMIN_TIME: Final = 120.0  # seconds for one operation: surveying a bucket takes its time
_KEEP_ALIVE: Final = 75.0
_FIRST_REQUEST: Final = 10.0  # seconds that a new connection has for its TLS, and then for its first request
_SHUTDOWN: Final = 5.0
_BACKLOG: Final = 512
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_HSTS: Final = "max-age=31536000"


def node_app(
    context: WebContext,
    administration: Administration,
    readiness: Readiness,
    *,
    more: Iterable[web.RouteDef] = (),
    metrics: Metrics | None = None,
) -> web.Application:
    """The application for nodes. ``more``: routes of other features, such as those of folder buckets; ``metrics`` is
    told of every request."""
    settings = context.settings
    shedding = Shedding(shedding_settings(settings.limits), clock=time.monotonic, bulk=BULK_PATHS)
    app = web.Application(
        client_max_size=MAX_REQUEST,
        middlewares=[
            measured(metrics or Metrics()),
            faults(settings.limits.request, unlimited=BULK_PATHS),
            shedding.middleware,
        ],
    )
    signatures = Signatures(context.registry, settings.urls, context.clock, shedding)
    app.router.add_routes(
        [
            *readiness.routes(),
            *JoinRoutes(context, shedding).routes(),
            *SessionRoutes(context, signatures).routes(),
            *OpenApiRoutes(settings.urls, VERSION).routes(),
            *StreamRoutes(context, signatures).routes(),
            *ChannelRoutes(context.registry, signatures, administration).routes(),
            *more,
        ]
    )
    app.on_response_prepare.append(_headers(secure=settings.secure))
    return app


def shedding_settings(limits: LimitSettings) -> SheddingSettings:
    """What ``[limits]`` of the settings means for requests."""
    return SheddingSettings(
        node=Rate(limits.node_rate, limits.node_burst),
        address=Rate(limits.address_rate, limits.address_burst),
        joins=Rate(limits.joins_rate, limits.joins_burst),
        of_one=limits.requests_of_one,
        at_once=limits.requests,
        bulk_of_one=limits.transfers_of_one,
        bulk=limits.transfers,
        proxies=limits.proxies,
    )


def admin_app(desk: Desk, more: Iterable[web.RouteDef] = ()) -> web.Application:
    """The application behind the admin's socket. ``more``: routes beside the operations."""
    app = web.Application(client_max_size=MAX_REQUEST, middlewares=[faults(_ADMIN_TIME)])
    app.router.add_routes([*AdminRoutes(desk).routes(), *more])
    return app


class WebServer:
    """Listens for nodes at the settings' address and for the admin at the folder's socket, while entered.

    Requests under way have five seconds to end when it is left. No access log: a path may hold an invite.
    """

    def __init__(self, settings: HubSettings, nodes: web.Application, admin: web.Application) -> None:
        self._settings = settings
        self._nodes = nodes
        self._admin = admin
        self._stack = AsyncExitStack()
        self.port = settings.listen.port  #: the port it listens at; known once entered if the settings say 0

    async def __aenter__(self) -> Self:
        """Raises Conflict (``in-use``) if a hub runs in this folder, RetryLater if the address cannot be
        had."""
        try:
            await self._start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening and let requests end. Idempotent."""
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self._settings
        socket = await self._stack.enter_async_context(AdminSocket(settings.socket))
        context = None
        if settings.tls is not None:
            context = await asyncio.to_thread(_tls, settings)
        admin, nodes = await self._runner(self._admin), await self._runner(self._nodes)
        assert socket.socket is not None
        site: web.BaseSite = web.SockSite(admin, socket.socket)
        await site.start()
        serve = nodes.server
        assert serve is not None
        doorway = Doorway(
            serve,
            most=settings.limits.connections,
            of_one=settings.limits.connections_of_one,
            proxies=check_networks(settings.limits.proxies),
            patience=_FIRST_REQUEST,
        )
        try:
            listening = await asyncio.get_running_loop().create_server(
                doorway,
                settings.listen.host,
                settings.listen.port,
                ssl=context,
                ssl_handshake_timeout=None if context is None else _FIRST_REQUEST,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise RetryLater(
                f"the hub cannot listen at {settings.listen}: {error.strerror}",
                hint="Is another program using the port?",
                listen=str(settings.listen),
            ) from None
        self._stack.callback(listening.close)
        self.port = int(listening.sockets[0].getsockname()[1])

    async def _runner(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE,
            shutdown_timeout=_SHUTDOWN,
            # Else four megabytes from a stranger become four gigabytes in the event loop, whatever is answered.
            auto_decompress=False,
        )
        self._stack.push_async_callback(runner.cleanup)
        await runner.setup()
        return runner


def _headers(*, secure: bool) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def prepare(_request: web.Request, response: web.StreamResponse) -> None:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers["Server"] = "entrepot"
        if secure:
            response.headers.setdefault("Strict-Transport-Security", _HSTS)

    return prepare


def _tls(settings: HubSettings) -> ssl.SSLContext:
    assert settings.tls is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.folder / settings.tls.certificate, settings.folder / settings.tls.key)
    except OSError as error:
        raise InvalidInput(
            f"the hub's certificate cannot be used: {error.strerror or error}", kind="invalid-setting"
        ) from None
    return context
