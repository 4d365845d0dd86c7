"""The sessions of a node that is no daemon: opened when a hub is needed, kept until the node closes.

What ``hubs.json`` says of channels is what the hubs said last. Before a channel is said to be missing, its hub is
asked again: the node may have been let in meanwhile, and no daemon was there to hear of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from entrepot.adapters.hub_client import HubClient
from entrepot.core.errors import Denied, NotFound
from entrepot.services.hubs import Hubs, JoinedChannel, JoinedHub, channels_of, with_channels
from entrepot.services.keychain import Keychain
from entrepot.services.lifetime import Lifetime
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings

#: Seconds for which a name goes on to mean the channel it meant: of many files, not each has ``hubs.json`` read again.
_MEANT_FOR: Final = 1.0


class Connections:
    """One session for each hub that is asked for. Close it."""

    def __init__(self, settings: NodeSettings, hubs: Hubs, keys: Keychain) -> None:
        self._settings = settings
        self._hubs = hubs
        self._keys = keys
        self._open: dict[str, tuple[Lifetime[Session], Session]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._meant: dict[tuple[str | None, str | None], tuple[float, str, JoinedChannel]] = {}

    async def session(self, hub: JoinedHub) -> Session:
        """The session with this hub. Raises ``hub-unreachable`` or Denied as the hub answers."""
        async with self._locks.setdefault(hub.public, asyncio.Lock()):
            found = self._open.get(hub.public)
            if found is not None and not found[0].ended:
                return found[1]
            key = await self._keys.hub_key(hub.public)
            known = await self._hubs.find(hub.public) or hub  # a channel names its hub without channels
            lifetime = Lifetime(lambda: Session(known, key, self._settings, kind="command", hubs=self._hubs))
            session = await lifetime.start()
            self._open[hub.public] = (lifetime, session)
            return session

    async def refresh(self, hub: JoinedHub) -> None:
        """Ask this hub for the node's name, channels and rights, and keep them in ``hubs.json``. Opens no session.

        Raises RetryLater (``hub-unreachable``) or Denied as the hub answers.
        """
        found = self._open.get(hub.public)
        if found is not None and not found[0].ended:
            if found[1].expelled is None:
                await found[1].refresh()  # its login has to have the new rights
                return
            await self.drop(hub)
        key = await self._keys.hub_key(hub.public)
        async with HubClient(hub.url, key, hub.public, self._settings.hub_settings(hub.url)) as client:
            info = await client.session()
        bare = JoinedHub(hub.url, hub.public, hub.host, info.name, key.public)
        channels = channels_of(bare, info.channels)
        known = await self._hubs.find(hub.public)
        if known is None or (bare, channels) != (known, known.channels):
            await self._hubs.put(with_channels(bare, channels))

    async def channel(self, name: str | None, host: str | None = None) -> JoinedChannel:
        """As :meth:`Hubs.channel`, but the hubs that could have a channel that is not known are asked before it is
        said to be missing.

        Raises ``not-joined``, ``ambiguous``; Denied ``no-right`` when the hubs say that this node is no member; and,
        when that cannot be known, what asking raised: ``hub-unreachable``, ``suspended``.
        """
        try:
            return await self._hubs.channel(name, host)
        except NotFound as error:
            if error.kind != "no-such-channel":
                raise
        hubs = [hub for hub in await self._hubs.list() if host in {None, hub.host}]
        results = await asyncio.gather(*(self.refresh(hub) for hub in hubs), return_exceptions=True)
        try:
            return await self._hubs.channel(name, host)
        except NotFound as error:
            if error.kind != "no-such-channel":
                raise
        for result in results:
            if isinstance(result, BaseException):
                raise result
        raise _no_member(name, hubs)

    async def enter(self, name: str | None, host: str | None = None) -> tuple[Session, JoinedChannel]:
        """The session and the channel that are meant, with the rights that the hub has told this session. Raises as
        :meth:`channel` and :meth:`session`."""
        found = self._entered(name, host)
        if found is not None:
            return found
        known = await self.channel(name, host)
        session = await self.session(known.hub)
        if known.name not in session.channels:
            await session.refresh()
        told = session.channels.get(known.name)
        if told is None:
            raise _no_member(known.name, [session.hub])
        self._meant[name, host] = asyncio.get_running_loop().time() + _MEANT_FOR, known.hub.public, told
        return session, told

    def _entered(self, name: str | None, host: str | None) -> tuple[Session, JoinedChannel] | None:
        """What :meth:`enter` gave a moment ago, if the session is still there and has told nothing else since."""
        until, public, channel = self._meant.get((name, host), (0.0, "", None))
        lifetime, session = self._open.get(public, (None, None))
        if lifetime is None or session is None or lifetime.ended or session.expelled is not None:
            return None
        if channel is None or until < asyncio.get_running_loop().time():
            return None
        return (session, channel) if session.channels.get(channel.name) is channel else None

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


def _no_member(name: str | None, hubs: Sequence[JoinedHub]) -> Denied:
    where = ", ".join(hub.host for hub in hubs)
    return Denied(
        f"this node is not (or no longer) a member of {name or 'any channel'} at {where}",
        kind="no-right",
        hint="Ask the channel's owner for an invite or, after a revocation, for your rights back.",
        channel=name,
    )
