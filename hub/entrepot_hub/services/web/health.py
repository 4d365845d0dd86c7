"""``/healthz``: the process answers. ``/readyz``: what it needs answers too, looked at anew at most once a
second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from aiohttp import web

from entrepot.core.errors import EntrepotError
from entrepot_hub.services.web.errors import json_answer

#: Looks whether something that the hub needs can be reached; raises one of our errors if not.
type Probe = Callable[[], Awaitable[None]]

_FRESH: Final = 1.0  # seconds for which a look counts
_PATIENCE: Final = 3.0  # seconds that a look may take


class Readiness:
    """Looks at everything that the hub needs, all at once, and remembers the outcome for a second.

    ``probes`` by name (``database``, ``nats``, ``bucket``); ``clock`` is monotonic. Concurrent askers share
    one look. ``warnings``: names of what is set up so that nodes will stumble over it, though the hub works.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        clock: Callable[[], float],
        warnings: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._warnings = warnings
        self._probes = dict(probes)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._seen_at = float("-inf")
        self._seen: dict[str, str] = {}

    async def look(self) -> Mapping[str, str]:
        """``ok`` or the kind of the error, by name. Kinds only: this is for everybody to read."""
        async with self._lock:
            if self._clock() - self._seen_at >= _FRESH:
                names = list(self._probes)
                found = await asyncio.gather(*(self._one(self._probes[name]) for name in names))
                self._seen = dict(zip(names, found, strict=True))
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
        return json_answer({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.Response:
        """200 when all that the hub needs is there, else 503 with what is not. A warning is no reason for 503."""
        seen = await self.look()
        ready = all(state == "ok" for state in seen.values())
        answer: dict[str, object] = {"ready": ready, "checks": seen}
        if warnings := self._warnings():
            answer["warnings"] = list(warnings)
        return json_answer(answer, status=200 if ready else 503)

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [web.get("/healthz", self.healthz), web.get("/readyz", self.readyz)]
