"""``/metrics`` for Prometheus: on the admin's socket and, if the settings say so, at an address of its own; never where
nodes ask. And the measure of what nodes ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from aiohttp import web

from entrepot.core.errors import RetryLater
from entrepot_hub.adapters.metrics import CONTENT_TYPE, Metrics, Stopwatch
from entrepot_hub.services.settings import Listen
from entrepot_hub.services.web.errors import faults
from entrepot_hub.services.web.health import Readiness

if TYPE_CHECKING:
    from entrepot_hub.services.overview import Overview

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_TIME: Final = 10.0  # seconds for one scrape
_CLOSED: Final = 499  # the status of an answer that nobody waited for


def measured(metrics: Metrics) -> Callable[..., Awaitable[web.StreamResponse]]:
    """A middleware that tells how each request was answered and how long that took. It goes outside all others, so
    that it sees the status that errors become."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        watch, status = Stopwatch(), _CLOSED
        try:
            answer = await handler(request)
            status = answer.status
            return answer
        finally:
            resource = request.match_info.route.resource  # the pattern: a path may hold a secret
            route = "none" if resource is None else resource.canonical
            method = request.method if route != "none" else "any"
            metrics.requested(method, route, status, watch.seconds)

    return middleware


class MetricsRoutes:
    """``GET /metrics``."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [web.get("/metrics", self.metrics)]

    async def metrics(self, _request: web.Request) -> web.Response:
        """Everything, in Prometheus' text form."""
        async with asyncio.timeout(_TIME):
            body = await self._overview.exposition()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


class MetricsServer:
    """Serves ``/metrics``, ``/healthz`` and ``/readyz`` at an address, while entered. For a closed network: nobody has
    to say who they are."""

    def __init__(self, listen: Listen, overview: Overview, readiness: Readiness) -> None:
        self._listen = listen
        self._app = web.Application(middlewares=[faults(_TIME)])
        self._app.router.add_routes([*MetricsRoutes(overview).routes(), *readiness.routes()])
        self._stack = AsyncExitStack()
        self.port = listen.port  #: the port it listens at; known once entered if the settings say 0

    async def __aenter__(self) -> Self:
        """Raises RetryLater if the address cannot be had."""
        runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=1.0, auto_decompress=False)
        self._stack.push_async_callback(runner.cleanup)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._listen.host, self._listen.port).start()
        except OSError as error:
            await self._stack.aclose()
            raise RetryLater(
                f"the hub cannot listen for metrics at {self._listen}: {error.strerror}",
                hint="Is another program using the port?",
                listen=str(self._listen),
            ) from None
        self.port = int(runner.addresses[0][1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        await self._stack.aclose()
