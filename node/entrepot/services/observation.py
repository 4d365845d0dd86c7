"""What can be seen of a running daemon from outside: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import web

from entrepot.adapters.bus_state import BusStats
from entrepot.adapters.metrics import CONTENT_TYPE, NodeMetrics
from entrepot.core.errors import EntrepotError, InvalidInput, RetryLater
from entrepot.core.invite import is_loopback
from entrepot.services.control import DaemonStatus

_PATIENCE: Final = 3.0  # seconds that the store may take
_BEAT: Final = 0.25  # seconds between two looks at the event loop's lateness
_REMEMBERED: Final = 15.0  # seconds for which the worst is told
_LATE: Final = 2.0  # lateness that is told as degraded
_DEGRADED: Final = "degraded"


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """Where ``/metrics`` is served besides the daemon's socket. ``anywhere``: to others than this machine too."""

    host: str
    port: int
    anywhere: bool = False

    @classmethod
    def parse(cls, text: str, *, anywhere: bool = False) -> MetricsAddress:
        """From ``host:port``, ``[…]`` around IPv6. Raises InvalidInput (``invalid-setting``), also for an address that
        leads beyond this machine unless that is meant."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) > 65535:
            raise InvalidInput(
                f"{text[:100]!r} is no address to listen at",
                kind="invalid-setting",
                hint="Write host:port, for example 127.0.0.1:9465.",
            )
        if not anywhere and not is_loopback(host):
            raise InvalidInput(
                f"{host[:100]} leads beyond this machine, and anybody there could read the metrics",
                kind="invalid-setting",
                hint="Use 127.0.0.1, or say --metrics-anywhere.",
            )
        return cls(host, int(port), anywhere)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the daemon tells of itself for a look: its status, the buses of its sessions by their ids, and the seeks
    that each session has dropped."""

    status: DaemonStatus
    buses: dict[str, BusStats]
    dropped: dict[str, float]


class Observation:
    """Of one daemon. ``look`` tells how it stands; it may take as long as the store takes."""

    def __init__(self, metrics: NodeMetrics, look: Callable[[], Awaitable[Seen]]) -> None:
        self.metrics = metrics
        self._look = look
        self._lags: deque[tuple[float, float]] = deque()

    async def watch(self) -> None:
        """See how late the event loop is, for ever."""
        while True:
            due = time.monotonic() + _BEAT
            await asyncio.sleep(_BEAT)
            now = time.monotonic()
            lag = max(now - due, 0.0)
            self.metrics.lag(lag)
            self._lags.append((now, lag))
            while self._lags[0][0] < now - _REMEMBERED:
                self._lags.popleft()

    async def checks(self) -> dict[str, str]:
        """How it stands, by name: ``ok``, ``degraded`` or what is wrong. ``hubs`` is wrong where none is up of those
        that were joined."""
        late = max((lag for _, lag in self._lags), default=0.0) > _LATE
        found = {"event-loop": _DEGRADED if late else "ok"}
        try:
            async with asyncio.timeout(_PATIENCE):
                states = [hub.state for hub in (await self._look()).status.hubs]
        except EntrepotError as error:
            return found | {"store": error.kind}
        except TimeoutError:
            return found | {"store": "deadline"}
        found["store"] = "ok"
        found["hubs"] = "ok"
        if any(state != "up" for state in states):
            found["hubs"] = _DEGRADED if "up" in states else states[0]
        return found

    async def exposition(self) -> bytes:
        """Everything there is to scrape."""
        metrics = self.metrics
        seen = await self._look()
        status = seen.status
        metrics.runs(status.version)
        metrics.streams.set(status.streams)
        metrics.stored.set(status.stored_bytes)
        metrics.linked.set(status.linked_bytes)
        metrics.uploading.set(sum(len(hub.uploads) for hub in status.hubs))
        metrics.set_hubs(hub.state for hub in status.hubs)
        metrics.reach(metrics.dropped, seen.dropped)
        metrics.reach(metrics.connects, {name: bus.connects for name, bus in seen.buses.items()})
        metrics.reach(metrics.losses, {name: bus.losses for name, bus in seen.buses.items()})
        metrics.reach(metrics.bus_dropped, {name: bus.dropped for name, bus in seen.buses.items()})
        process = await asyncio.to_thread(metrics.process)
        return metrics.exposition() + process

    # -- over HTTP ------------------------------------------------------------------------------------------------

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [
            web.get("/metrics", self._metrics),
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
        ]

    @contextlib.asynccontextmanager
    async def serving(self, address: MetricsAddress | None) -> AsyncIterator[int | None]:
        """Serve them at an address while entered; its port. RetryLater if the address cannot be had."""
        if address is None:
            yield None
            return
        app = web.Application()
        app.router.add_routes(self.routes())
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, address.host, address.port).start()
            except OSError as error:
                raise RetryLater(
                    f"metrics cannot be served at {address.host}:{address.port}: {error.strerror}",
                    hint="Is another program using the port?",
                ) from None
            yield int(runner.addresses[0][1])
        finally:
            await runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=await self.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        checks = await self.checks()
        ready = all(state in {"ok", _DEGRADED} for state in checks.values())
        return _json({"ready": ready, "checks": checks}, status=200 if ready else 503)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
