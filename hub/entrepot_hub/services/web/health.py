"""``/healthz``: the process answers. ``/readyz``: what it needs answers too, looked at anew at most once a
second. What only some of its work needs (a bucket) is told, and makes it no less ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, Literal

import msgspec
from aiohttp import web

from entrepot.core.errors import EntrepotError
from entrepot_hub.services.web.errors import json_answer

#: Looks whether something that the hub needs can be reached; raises one of our errors if not.
type Probe = Callable[[], Awaitable[None]]

_FRESH: Final = 1.0  # seconds for which a look counts
_PATIENCE: Final = 3.0  # seconds that a look may take
#: What is told of something that fails of which the hub can do without.
DEGRADED: Final = "degraded"


class Alive(msgspec.Struct, frozen=True):
    """``GET /healthz``."""

    status: Literal["ok"] = "ok"


class Ready(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``GET /readyz``: what was looked at, each ``ok``, ``degraded`` or the kind of an error; ``warnings``: what is set
    up so that nodes will stumble over it."""

    ready: bool
    checks: dict[str, str]
    warnings: list[str] = []


class Readiness:
    """Looks at everything that the hub needs, all at once, and remembers the outcome for a second.

    ``probes`` by name (``database``, ``nats``, ``bucket``); ``clock`` is monotonic. Concurrent askers share
    one look. ``warnings``: names of what is set up so that nodes will stumble over it, though the hub works.
    ``lesser``: probes whose failure leaves the hub ``degraded`` and ready.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        clock: Callable[[], float],
        warnings: Callable[[], Sequence[str]] = tuple,
        lesser: Collection[str] = (),
    ) -> None:
        self._lesser = frozenset(lesser)
        self._warnings = warnings
        self._probes = dict(probes)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._seen_at = float("-inf")
        self._seen: dict[str, str] = {}

    async def look(self) -> Mapping[str, str]:
        """``ok``, ``degraded`` or the kind of the error, by name. Kinds only: this is for everybody to read."""
        async with self._lock:
            if self._clock() - self._seen_at >= _FRESH:
                names = list(self._probes)
                found = await asyncio.gather(*(self._one(self._probes[name]) for name in names))
                self._seen = {
                    name: DEGRADED if state != "ok" and name in self._lesser else state
                    for name, state in zip(names, found, strict=True)
                }
                self._seen_at = self._clock()
            return self._seen

    async def _one(self, probe: Probe) -> str:
        try:
            async with asyncio.timeout(_PATIENCE):
                await probe()
        except EntrepotError as error:
            return error.kind
        except TimeoutError:
            return "deadline"
        return "ok"

    async def healthz(self, _request: web.Request) -> web.Response:
        """The process runs and answers."""
        return json_answer(Alive())

    async def readyz(self, _request: web.Request) -> web.Response:
        """200 when all that the hub needs is there, else 503 with what is not. Neither a warning nor what is degraded
        is a reason for 503."""
        seen = await self.look()
        ready = all(state in {"ok", DEGRADED} for state in seen.values())
        answer = Ready(ready=ready, checks=dict(seen), warnings=list(self._warnings()))
        return json_answer(answer, status=200 if ready else 503)

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [web.get("/healthz", self.healthz), web.get("/readyz", self.readyz)]
