"""Who is connected to the bus, by its own events; and what follows for leases when a session goes or comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from entrepot_hub.adapters.accounts import ConnectionEvent
from entrepot_hub.services.arbiter import Arbiter

#: A node that was heard so many seconds ago counts as online where no event told otherwise (a hub that was restarted
#: beside a running NATS server sees no connects).
HEARD = 90.0


class Presence:
    """Connections by session. ``spawn`` runs work in the background; ``revocations`` is where revocations stand."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        grace: float,
        revocations: Callable[[], Mapping[str, int]],
    ) -> None:
        self._clock = clock
        self._spawn = spawn
        self._grace = grace
        self._revocations = revocations
        self._connections: dict[tuple[str, str], set[str]] = {}
        self._heard: dict[str, float] = {}
        self._arbiter: Arbiter | None = None

    def serve(self, arbiter: Arbiter) -> None:
        """Tell this arbiter from now on."""
        self._arbiter = arbiter

    @property
    def sessions(self) -> int:
        """Sessions that are connected, as far as is known."""
        return len(self._connections)

    def online(self, node: str) -> bool:
        """Whether a session of this node is connected, as far as is known."""
        if any(public == node for public, _ in self._connections):
            return True
        return self._clock() < self._heard.get(node, float("-inf")) + HEARD

    def revoked_at(self, node: str) -> int | None:
        """Unix second of the node's last revocation on the bus, if it is still remembered."""
        return self._revocations().get(node)

    def heard(self, node: str) -> None:
        """A message of this node came in."""
        if len(self._heard) > 100_000:
            self._heard.clear()
        self._heard[node] = self._clock()

    def heard_since(self, moment: float) -> dict[str, float]:
        """When each node was last heard, for those heard after ``moment`` (unix seconds). One that is connected,
        however quiet, is heard now."""
        heard = {node: at for node, at in self._heard.items() if at > moment}
        return heard | dict.fromkeys((node for node, _ in self._connections), self._clock())

    def happened(self, event: ConnectionEvent) -> None:
        """A connection began or ended."""
        if event.session is None:
            return
        key = (event.node, event.session)
        if event.connected:
            known = key in self._connections
            self._connections.setdefault(key, set()).add(event.connection)
            if not known:
                self._spawn(self._came(*key))
            return
        left = self._connections.get(key)
        if left is None:
            self._heard.pop(event.node, None)
            self._spawn(self._left(*key))
            return
        left.discard(event.connection)
        if not left:
            del self._connections[key]
            self._heard.pop(event.node, None)
            self._spawn(self._left(*key))

    async def _came(self, node: str, session: str) -> None:
        if self._arbiter is not None:
            await self._arbiter.session_came(node, session)

    async def _left(self, node: str, session: str) -> None:
        if self._arbiter is None:
            return
        await self._arbiter.session_left(node, session)
        await asyncio.sleep(self._grace)
        if (node, session) not in self._connections:
            self._arbiter.rounds.departed((node, session), self._clock())
            await self._arbiter.session_left(node, session)  # grants that were on their way when it left
