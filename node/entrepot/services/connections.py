"""The sessions of a node that is no daemon: opened when a hub is needed, kept until the node closes."""

from __future__ import annotations

import asyncio

from entrepot.services.hubs import Hubs, JoinedHub
from entrepot.services.keychain import Keychain
from entrepot.services.lifetime import Lifetime
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings


class Connections:
    """One session for each hub that is asked for. Close it."""

    def __init__(self, settings: NodeSettings, hubs: Hubs, keys: Keychain) -> None:
        self._settings = settings
        self._hubs = hubs
        self._keys = keys
        self._open: dict[str, tuple[Lifetime[Session], Session]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def session(self, hub: JoinedHub) -> Session:
        """The session with this hub. Raises ``hub-unreachable`` or Denied as the hub answers."""
        async with self._locks.setdefault(hub.public, asyncio.Lock()):
            found = self._open.get(hub.public)
            if found is not None and not found[0].ended:
                return found[1]
            key = await self._keys.hub_key(hub.public)
            lifetime = Lifetime(lambda: Session(hub, key, self._settings, kind="command", hubs=self._hubs))
            session = await lifetime.start()
            self._open[hub.public] = (lifetime, session)
            return session

    async def drop(self, hub: JoinedHub) -> None:
        """End the session with this hub, if there is one: the next is set up anew."""
        found = self._open.pop(hub.public, None)
        if found is not None:
            await found[0].aclose()

    async def aclose(self) -> None:
        """End all of them. May be called again."""
        opened, self._open = self._open, {}
        results = await asyncio.gather(*(lifetime.aclose() for lifetime, _ in opened.values()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
