"""The hubs that this node has joined, and the channels it knows there: ``hubs.json``.

The file is a cache of what the hubs said last, so that adding a file, printing a URI or naming a channel works
while a hub cannot be reached. It is replaced in one step and read strictly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from entrepot.adapters.documents import read_document, write_document
from entrepot.core.api import ChannelInfo, ChannelName, NodeName, PublicKey, Size, Text
from entrepot.core.errors import Conflict, Corrupt, EntrepotError, InvalidInput, NotFound
from entrepot.core.lock import SchemaLock
from entrepot.core.uri import check_hub

_VERSION: Final = 1
_LIMIT: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class JoinedChannel:
    """A channel at a hub that was joined. ``rights`` are the hub's words, for example ``request:files,read``;
    ``quota`` in bytes."""

    hub: JoinedHub = field(repr=False)
    name: str
    lock: SchemaLock
    rights: str
    quota: int = 0
    public_read: bool = False

    @property
    def scope(self) -> str:
        """What the store calls this channel: streams are offered nowhere but in their scopes."""
        return f"{self.hub.public}/{self.name}"

    @property
    def words(self) -> frozenset[str]:
        """The rights one by one."""
        return frozenset(self.rights.split(","))

    @property
    def provides(self) -> bool:
        """Whether this node may provide anything there."""
        return any(word == "owner" or word.startswith("provide:") for word in self.words)

    @property
    def reads(self) -> bool:
        """Whether this node may ask for anything there."""
        return any(word in {"owner", "read"} or word.startswith("request:") for word in self.words)


@dataclass(frozen=True, slots=True)
class JoinedHub:
    """A hub that was joined: its origin, its public key (text), its host as a URI shows it, and this node's name and
    public key there."""

    url: str
    public: str
    host: str
    name: str
    node: str
    channels: tuple[JoinedChannel, ...] = field(default=(), repr=False, compare=False)


class _Channel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: ChannelName
    lock: Text
    rights: Text
    quota: Size
    public_read: bool


class _Hub(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Text
    hub: PublicKey
    node: PublicKey
    name: NodeName
    channels: tuple[_Channel, ...]


class _Version(msgspec.Struct):
    version: int


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    hubs: tuple[_Hub, ...]


def host_of(url: str) -> str:
    """The host and port of a hub's origin as a URI carries them."""
    return check_hub(url.partition("://")[2])


def channels_of(hub: JoinedHub, infos: Iterable[ChannelInfo]) -> tuple[JoinedChannel, ...]:
    """The channels that a hub's session named. Raises InvalidInput for a lock that cannot be (a newer hub's)."""
    found = []
    for info in infos:
        lock = SchemaLock.parse(info.lock)
        if lock.hex != info.lock_id or lock.channel != info.name:
            raise InvalidInput(f"the hub named channel {info.name} with the lock of another", kind="invalid-lock")
        found.append(JoinedChannel(hub, info.name, lock, info.rights, info.quota, info.public_read))
    return tuple(found)


class Hubs:
    """The joined hubs as ``path`` keeps them. Every question reads the file, which another process may change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = asyncio.Lock()

    async def list(self) -> tuple[JoinedHub, ...]:
        """All joined hubs, in the order of joining. Raises ``corrupt-store``, ``unsupported``."""
        return await asyncio.to_thread(self._read)

    async def put(self, hub: JoinedHub) -> None:
        """Adds a hub, or replaces what was known of the one with its key or its address."""
        async with self._writing:
            await asyncio.to_thread(self._put, hub)

    async def find(self, public: str) -> JoinedHub | None:
        """The hub with this public key."""
        return next((hub for hub in await self.list() if hub.public == public), None)

    async def channel(self, name: str | None, host: str | None = None) -> JoinedChannel:
        """The one channel that is meant. Without a name: the only one there is.

        Raises ``not-joined`` (nothing joined, or not the hub at ``host``), ``no-such-channel``, ``ambiguous``.
        """
        hubs = await self.list()
        if host is not None:
            hubs = tuple(hub for hub in hubs if hub.host == host)
        if not hubs:
            what = "this node has joined no hub yet" if host is None else f"this node has not joined the hub {host}"
            raise NotFound(
                what, kind="not-joined", hint="Ask for an invite, then: entrepot join <invite URL>", hub=host
            )
        found = [channel for channel in _channels(hubs) if name is None or channel.name == name]
        if len(found) == 1:
            return found[0]
        if not found:
            where = ", ".join(hub.host for hub in hubs)
            raise NotFound(
                f"this node is in no channel{'' if name is None else f' {name}'} at {where}",
                kind="no-such-channel",
                hint="Ask the channel's owner for an invite. Channels are listed by: entrepot whoami",
                channel=name,
            )
        listed = ", ".join(f"{channel.name}@{channel.hub.host}" for channel in found)
        raise Conflict(
            f"several channels fit: {listed}",
            kind="ambiguous",
            hint="Name the channel and, if several hubs have it, the hub.",
            channels=listed,
        )

    def _put(self, hub: JoinedHub) -> None:
        old = self._read()
        fitting = [other for other in old if other.public == hub.public or other.url == hub.url]
        kept = (
            [hub if other is fitting[0] else other for other in old if other not in fitting[1:]]
            if fitting
            else [
                *old,
                hub,
            ]
        )
        document = _Document(version=_VERSION, hubs=tuple(_written(each) for each in kept))
        data = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        write_document(self._path, data)

    def _read(self) -> tuple[JoinedHub, ...]:
        data = read_document(self._path, _LIMIT)
        if data is None:
            return ()
        try:
            if msgspec.json.decode(data, type=_Version).version != _VERSION:
                raise InvalidInput(
                    f"{self._path} was written by a newer version of entrepot", kind="unsupported", hint="Upgrade it."
                )
            document = msgspec.json.decode(data, type=_Document)
            return tuple(_read_hub(hub) for hub in document.hubs)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._damaged(str(error)) from None
        except EntrepotError as error:
            if error.kind == "unsupported":
                raise
            raise self._damaged(error.message) from None

    def _damaged(self, reason: str) -> Corrupt:
        return Corrupt(
            f"{self._path} is damaged: {reason[:300]}",
            kind="corrupt-store",
            hint="Move it aside and join your hubs again: an invite may be repeated by the same node.",
            path=str(self._path),
        )


def _channels(hubs: Iterable[JoinedHub]) -> Iterator[JoinedChannel]:
    for hub in hubs:
        yield from hub.channels


def _written(hub: JoinedHub) -> _Hub:
    return _Hub(
        url=hub.url,
        hub=hub.public,
        node=hub.node,
        name=hub.name,
        channels=tuple(
            _Channel(
                name=channel.name,
                lock=channel.lock.canonical().decode(),
                rights=channel.rights,
                quota=channel.quota,
                public_read=channel.public_read,
            )
            for channel in hub.channels
        ),
    )


def _read_hub(hub: _Hub) -> JoinedHub:
    bare = JoinedHub(hub.url, hub.hub, host_of(hub.url), hub.name, hub.node)
    return with_channels(
        bare,
        tuple(
            JoinedChannel(bare, each.name, SchemaLock.parse(each.lock), each.rights, each.quota, each.public_read)
            for each in hub.channels
        ),
    )


def with_channels(hub: JoinedHub, channels: Iterable[JoinedChannel]) -> JoinedHub:
    """The hub with these channels; they name the hub without any."""
    return JoinedHub(hub.url, hub.public, hub.host, hub.name, hub.node, tuple(channels))
