"""The node as Python sees it: join, add, get, open, and what is known. The command line does nothing that is not here.

async with Node(NodeSettings(home=…)) as node:
    added = await node.add(Path("big.nwb"))
    got = await node.get(str(added.uri), Path("copy.nwb"))
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from entrepot.adapters.hub_client import HubClient
from entrepot.adapters.metrics import Metrics
from entrepot.adapters.store import Added as Stored
from entrepot.adapters.store import Entry, Size, Store, Verification
from entrepot.adapters.transfer import Transfers
from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.invite import Invite
from entrepot.core.uri import StreamUri, courtesy_name
from entrepot.services.adding import Adding, one_ahead
from entrepot.services.connections import Connections
from entrepot.services.control import DaemonStatus
from entrepot.services.daemon_client import DaemonClient
from entrepot.services.estimate import Info
from entrepot.services.fetching import Fetched, Getter
from entrepot.services.gathering import AT_ONCE, Gathering, Wish, planned
from entrepot.services.hubs import Hubs, JoinedChannel, JoinedHub, channels_of, host_of, with_channels
from entrepot.services.inquiry import Inquiry, Story
from entrepot.services.keychain import Keychain
from entrepot.services.lifetime import Lifetime
from entrepot.services.output import prepared, taken
from entrepot.services.progress import Kind, Meter, OnProgress
from entrepot.services.reading import RemoteFile
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings, default_home
from entrepot.services.targets import Meant, Target, meant_by

_MAX_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Joined:
    """A hub and channel that this node is in now. ``channel`` is the one of the invite."""

    hub_url: str
    host: str
    channels: tuple[str, ...]
    node_public: str
    name: str
    channel: str
    rights: str


@dataclass(frozen=True, slots=True)
class Added:
    """A file that is a stream now. ``sha256`` in hexadecimal; ``served``: a daemon runs and was told; ``told``: so was
    its hub."""

    uri: StreamUri
    stream: StreamId
    length: int
    sha256: str | None
    name: str
    unchanged: bool
    served: bool
    told: bool = False


@dataclass(frozen=True, slots=True)
class Got:
    """A stream that is a file now. ``how`` the output got its bytes: ``moved``, ``reflink``, ``copied``, ``linked``, or
    ``there``: it was this stream's unchanged file already, and nothing was done. ``fetched_bytes`` of the file
    came now, ``from_bucket_bytes`` of them lay in the bucket already: plain bytes, whatever the codec made of them.
    ``transfer``: what this get is called in the logs of everybody who took part; None if nobody did."""

    path: Path
    stream: StreamId
    length: int
    how: str
    fetched_bytes: int
    from_bucket_bytes: int
    transfer: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """This node at one hub."""

    host: str
    url: str
    hub_public: str
    node_public: str
    name: str
    channels: tuple[JoinedChannel, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """How this node stands. ``daemon`` None: none runs, nothing is offered."""

    home: Path
    size: Size
    daemon: DaemonStatus | None
    hubs: tuple[JoinedHub, ...]


class Node:
    """A node with its home, store and hubs. An async context manager; may be opened and closed from other tasks.

    Without ``settings`` its home is :func:`default_home`, whatever the environment says: that is for entry points.
    Opening does not touch the network; a hub is asked when it is needed and not before. Errors are those of
    :mod:`entrepot.core.errors`. ``metrics`` is told what is moved.
    """

    def __init__(self, settings: NodeSettings | None = None, *, metrics: Metrics | None = None) -> None:
        settings = settings or NodeSettings(home=default_home())
        self.settings = settings
        self.daemon = DaemonClient(settings)
        self._keys = Keychain(settings.seed_file)
        self._hubs = Hubs(settings.hubs_file)
        self._store = Store(settings.store_folder, settings.store)
        self._transfers = Transfers(settings.transfer_settings(), metrics)
        self._connections = Connections(settings, self._hubs, self._keys)
        self._inquiry = Inquiry(self._store, self._connections)
        self._lifetime: Lifetime[Node] | None = None
        self._getting: dict[StreamId, asyncio.Lock] = {}

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Opens the store. Raises ``corrupt-store``, ``unsupported``, ``unreadable``."""
        if self._lifetime is not None:
            raise InvalidInput("a node can be opened once")
        self._lifetime = Lifetime(self._opened)
        await self._lifetime.start()
        return self

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Node]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._store)
            await stack.enter_async_context(self._transfers)
            stack.push_async_callback(self._connections.aclose)
            yield self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends sessions and transfers and closes the store. May be called again."""
        if self._lifetime is not None:
            await self._lifetime.aclose()

    # -- membership ---------------------------------------------------------------------------------------------

    async def join(self, invite_url: str, *, name: str | None = None) -> Joined:
        """Take up an invite under ``name``: if none is given, the name that this node has there already, else this
        machine's. May be repeated.

        Raises ``invalid-token``, ``bad-invite``, ``expired``, ``hub-unreachable``.
        """
        invite = Invite.parse(invite_url, plain=self.settings.hub.plain)
        key = await self._keys.hub_key(invite.hub_public)
        known = [hub.name for hub in await self._hubs.list() if hub.public == invite.hub_public]
        if name is None:
            name = known[0] if known else await asyncio.to_thread(_machine_name)
        client_settings = self.settings.hub_settings(invite.url)
        async with HubClient(invite.url, key, invite.hub_public, client_settings) as client:
            joined = await client.join(invite, name)
            info = await client.session()
        bare = JoinedHub(invite.url, invite.hub_public, host_of(invite.url), info.name, key.public)
        hub = with_channels(bare, channels_of(bare, info.channels))
        await self._hubs.put(hub)
        await self._connections.drop(hub)  # its login knows nothing of the new channel
        await self.daemon.poke()
        return Joined(
            hub.url,
            hub.host,
            tuple(channel.name for channel in hub.channels),
            key.public,
            joined.name,
            joined.channel,
            joined.rights,
        )

    async def whoami(self) -> tuple[Identity, ...]:
        """This node at each hub it has joined, as last heard."""
        return tuple(
            Identity(hub.host, hub.url, hub.public, hub.node, hub.name, hub.channels) for hub in await self._hubs.list()
        )

    # -- sharing ------------------------------------------------------------------------------------------------

    async def add(
        self,
        path: Path | str,
        *,
        channel: str | None = None,
        hub: str | None = None,
        copy: bool = False,
        progress: OnProgress | None = None,
    ) -> Added:
        """Make a file a stream of a channel (the only one joined, if none is named) and tell a running daemon.

        The file is linked where it lies, or copied into the store with ``copy``. Works without the hub, which is asked
        only for a channel that is not known here. Raises ``not-joined``, ``ambiguous``, ``no-right``,
        ``hub-unreachable``, and what :meth:`Store.add` raises.
        """
        found = await self._provided(channel, hub)
        meter = self._meter("hash", progress)
        added = await self._store.add(
            Path(path),
            channel=found.scope,
            lock=found.lock,
            copy=copy,
            progress=None if progress is None else meter.count,
        )
        meter.close()
        return _added(found, added, *await self.daemon.tell([added.stream]))

    async def add_many(
        self,
        paths: Iterable[Path | str],
        *,
        channel: str | None = None,
        hub: str | None = None,
        copy: bool = False,
        progress: OnProgress | None = None,
    ) -> AsyncGenerator[tuple[Path, Added | EntrepotError]]:
        """As :meth:`add` for many files, small ones together: each path with what it came to, in their order.

        What is wrong with one file stands in its place; what is wrong with the channel is raised. ``progress`` counts
        the bytes of all files. A running daemon is told of many files in one message.
        """
        found = await self._provided(channel, hub)
        meter = self._meter("hash", progress)
        adding = Adding(
            self._store, [Path(path) for path in paths], found, copy=copy, meter=meter if progress else None
        )
        async with contextlib.aclosing(adding.batches()) as batches, contextlib.aclosing(one_ahead(batches)) as ahead:
            async for batch in ahead:
                held = [one.stream for _, one in batch if not isinstance(one, EntrepotError)]
                with adding.telling(len(held)):
                    served, told = await self.daemon.tell(held) if held else (False, False)
                for path, one in batch:
                    yield path, one if isinstance(one, EntrepotError) else _added(found, one, served, told)
        meter.close()

    async def _provided(self, channel: str | None, hub: str | None) -> JoinedChannel:
        """The channel that is meant, in which this node may provide."""
        found = await self._connections.channel(channel, hub)
        if not found.provides:
            with contextlib.suppress(EntrepotError):  # it may have been granted meanwhile
                await self._connections.refresh(found.hub)
                found = await self._hubs.channel(found.name, found.hub.host)
        if not found.provides:
            raise Denied(
                f"this node may not provide in {found.name}",
                kind="no-right",
                hint="Ask the channel's owner for the right to provide.",
                channel=found.name,
            )
        return found

    async def remove(self, target: Target, *, force: bool = False) -> bool:
        """Forget a stream; linked files stay. Raises ``no-such-stream``, and without ``force`` ``in-use`` for a pinned
        one and ``last-copy`` where nobody else is known to hold it. Returns whether it is gone."""
        meant = await self._meant(target)
        return await self._store.remove(meant.stream, force=force, held_elsewhere=self._held_elsewhere)

    async def _held_elsewhere(self, stream: StreamId) -> bool:
        """Whether a hub knows another holder, or has all of it in a bucket."""
        scopes = await self._store.scopes(stream)
        opening = (await self._store.entry(stream)).opening
        for hub in await self._hubs.list():
            for channel in hub.channels:
                if channel.scope not in scopes:
                    continue
                with contextlib.suppress(EntrepotError):
                    session = await self._connections.session(hub)
                    info = await session.client.stream_info(channel.name, stream)
                    if any(holder.name != session.name for holder in info.holders):
                        return True
                    if opening.length and info.objects >= Geometry(opening.length, channel.lock).object_count:
                        return True
        return False

    # -- getting ------------------------------------------------------------------------------------------------

    async def get(
        self,
        target: Target,
        output: Path | str | None = None,
        *,
        force: bool = False,
        channel: str | None = None,
        hub: str | None = None,
        deadline: float | None = None,
        wait: float | None = None,
        progress: OnProgress | None = None,
    ) -> Got:
        """Make a stream the file ``output`` (``./NAME`` if none is given, ``output/NAME`` if it is a folder: text that
        ends with a slash is one, and is made), verified, with one copy on the disk.

        ``target`` is a URI, a stream id, or ``sha256:…`` of a stream that is here. What is here already is not fetched
        again, and what is complete here needs no hub. ``deadline``: seconds without a verified byte after which it
        fails with the reason. ``wait``: stay for so many seconds until a holder comes online; the want stays with the
        hub meanwhile. An output that is this stream already stays as it is, also with ``force``; for anything else that
        is there it raises ``exists`` without it. ``no-such-file`` for an output without a folder, ``denied`` for one
        whose folder cannot be written to.
        """
        meant = await self._meant(target, channel, hub)
        path, there = await asyncio.to_thread(prepared, output, meant.name or meant.stream.hex)
        got, came = await self._obtain(meant, path, force, deadline, wait, progress, there)
        if came:
            await self.daemon.poke([meant.stream])
        return got

    async def get_many(
        self,
        targets: Iterable[Target],
        folder: Path | str | None = None,
        *,
        force: bool = False,
        channel: str | None = None,
        hub: str | None = None,
        deadline: float | None = None,
        wait: float | None = None,
        at_once: int = AT_ONCE,
        progress: OnProgress | None = None,
    ) -> AsyncGenerator[tuple[Target, Got | EntrepotError]]:
        """As :meth:`get` for many streams, ``at_once`` at a time, into ``folder`` (``.`` if none is given; made if
        it is not there): each target with what it came to, as they end. What is wrong with one stands in its place.

        Before anything is fetched it raises ``invalid-uri`` for a target that is none, and ``invalid-input`` where two
        streams would be the same file. A target that is named twice is got once. ``progress`` counts the bytes of all.
        """
        meant = [(target, await self._meant(target, channel, hub)) for target in targets]
        wishes = await asyncio.to_thread(planned, meant, Path(folder or "."))
        known = await self._store.known([wish.meant.stream for wish in wishes])
        meter = self._meter("get", progress)

        async def get(wish: Wish, path: Path, moving: OnProgress | None) -> Got:
            new = wish.meant.stream not in known and wish.meant.stream not in self._getting
            return (await self._obtain(wish.meant, path, force, deadline, wait, moving, wish.taken, new=new))[0]

        gathering = Gathering(wishes, get, self.daemon.poke, meter=meter if progress else None, at_once=at_once)
        async with contextlib.aclosing(gathering.results()) as results:
            async for wish, result in results:
                yield wish.target, result
        meter.close()

    async def _obtain(
        self,
        meant: Meant,
        path: Path,
        force: bool,
        deadline: float | None,
        wait: float | None,
        progress: OnProgress | None,
        there: bool,
        *,
        new: bool = False,
    ) -> tuple[Got, bool]:
        """The stream as this file, and whether anything of it came. ``there``: something is at ``path``. ``new``:
        nothing of the stream is in the store."""
        async with self._getting.setdefault(meant.stream, asyncio.Lock()):
            if there:
                meter = self._meter("hash", progress)
                if await self._store.lies_at(meant.stream, path, progress=meter.count if progress else None):
                    meter.close()
                    entry = await self._store.entry(meant.stream)
                    return Got(path, meant.stream, entry.opening.length, "there", 0, 0), False
                if not force:
                    raise taken(path)
            known = not new and bool(await self._store.scopes(meant.stream))
            how = await self._export_held(meant, path, force) if known else None
            if how is not None:
                entry = await self._store.entry(meant.stream)
                return Got(path, meant.stream, entry.opening.length, how, 0, 0), False
            fetched = await self._fetch(meant, deadline, wait, progress, whole=not known)
            if fetched.small is None:
                how = (await self._store.export(meant.stream, path, force)).value
            else:
                how = (await self._store.place(fetched.small, fetched.scope, meant.name or "", path, force)).value
        length = fetched.opening.length
        moved = fetched.fetched_bytes, fetched.from_bucket_bytes
        return Got(path, meant.stream, length, how, *moved, fetched.transfer), True

    async def _export_held(self, meant: Meant, path: Path, force: bool) -> str | None:
        """Make the file of what is complete here, and tell how; None if it is not."""
        try:
            return (await self._store.export(meant.stream, path, force)).value
        except (NotFound, Conflict) as error:
            if error.kind not in {"no-such-stream", "changed"}:
                raise
            return None

    async def _fetch(
        self, meant: Meant, deadline: float | None, wait: float | None, progress: OnProgress | None, *, whole: bool
    ) -> Fetched:
        for again in (True, False):
            session, found = await self._connect(meant)
            getter = Getter(
                session,
                found,
                meant.stream,
                self._store,
                self._transfers,
                self.settings,
                name=meant.name or "",
                keep=wait is not None,
                whole=whole,
                memory=True,
                deadline=wait if wait is not None else deadline,
                progress=progress,
            )
            try:
                return await getter.run()
            except EntrepotError as error:
                error.data = {**error.data, "transfer": getter.transfer}  # what an admin asks for
                if error.kind != "stale-lock" or not again:
                    raise
                await session.refresh()
        raise AssertionError

    async def open(
        self,
        target: Target,
        *,
        channel: str | None = None,
        hub: str | None = None,
        deadline: float | None = None,
    ) -> RemoteFile:
        """A stream to read from anywhere in it; only the miniblocks that are read come. Close it."""
        meant = await self._meant(target, channel, hub)
        opening = await self._opening(meant, deadline)
        return RemoteFile(
            meant.stream,
            opening,
            self._store,
            self._transfers,
            self.settings,
            lambda: self._connect(meant),
            name=meant.name,
            deadline=deadline,
        )

    async def cat(
        self,
        target: Target,
        offset: int = 0,
        length: int | None = None,
        *,
        channel: str | None = None,
        hub: str | None = None,
        deadline: float | None = None,
    ) -> AsyncGenerator[bytes]:
        """The bytes of a stream in order, verified, while those behind are still on their way."""
        async with await self.open(target, channel=channel, hub=hub, deadline=deadline) as file:
            pieces = file.stream_range(offset, length)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece

    async def _opening(self, meant: Meant, deadline: float | None) -> Opening:
        with contextlib.suppress(NotFound):
            return (await self._store.entry(meant.stream)).opening
        for again in (True, False):
            session, found = await self._connect(meant)
            getter = Getter(
                session,
                found,
                meant.stream,
                self._store,
                self._transfers,
                self.settings,
                spans=(),
                deadline=deadline,
            )
            try:
                return (await getter.run()).opening
            except Conflict as error:
                if error.kind != "stale-lock" or not again:
                    raise
                await session.refresh()
        raise AssertionError

    async def _connect(self, meant: Meant) -> tuple[Session, JoinedChannel]:
        """The session and channel to ask. Raises ``not-joined``, ``ambiguous``, ``no-right``, ``hub-unreachable``."""
        if meant.local_only:
            raise NotFound(
                f"{meant.stream} is not complete here, and an alias is not asked for elsewhere",
                kind="no-such-stream",
                hint="Use its URI.",
                stream=str(meant.stream),
            )
        session, found = await self._connections.enter(meant.channel, meant.host)
        if not found.reads:
            raise Denied(
                f"this node may not fetch from {found.name}",
                kind="no-right",
                hint="Ask the channel's owner for the right to request.",
                channel=found.name,
            )
        return session, found

    # -- what is known ------------------------------------------------------------------------------------------

    async def info(self, target: Target, *, channel: str | None = None, hub: str | None = None) -> Info:
        """What is known of a stream here and at its hub, and what a get would take. Fetches nothing.

        A hub that cannot be reached is told in ``hub_reason``. Raises ``no-such-stream`` if nobody knows it.
        """
        return await self._inquiry.info(await self._meant(target, channel, hub))

    async def why(self, target: Target, *, channel: str | None = None, hub: str | None = None) -> Story:
        """What happened to a stream at its hub: who asked, offered, uploaded, what it waited for, what it cost.

        Raises ``no-such-stream`` if the hub has never heard of it, ``hub-unreachable``, ``not-joined``, ``no-right``.
        """
        return await self._inquiry.why(await self._meant(target, channel, hub))

    async def entries(self, channel: str | None = None, hub: str | None = None) -> list[Entry]:
        """All streams in the store, or those of one channel, in the order of ids."""
        scope = None if channel is None and hub is None else (await self._hubs.channel(channel, hub)).scope
        found: list[Entry] = []
        after: StreamId | None = None
        while page := await self._store.streams(scope, after):
            found += page
            after = page[-1].stream
        return found

    async def uri_of(self, entry: Entry) -> StreamUri | None:
        """A URI for a stream of the store: of the first channel it belongs to that is still joined."""
        for hub in await self._hubs.list():
            for channel in hub.channels:
                if channel.scope in entry.scopes:
                    return StreamUri(channel.name, hub.host, entry.stream, courtesy_name(entry.name))
        return None

    async def status(self) -> Status:
        """What the store takes, how the daemon stands, which hubs were joined."""
        daemon = None
        with contextlib.suppress(NotFound, RetryLater):
            daemon = await self.daemon.status()
        return Status(self.settings.home, await self._store.size(), daemon, await self._hubs.list())

    async def verify(self, target: Target | None = None, *, progress: OnProgress | None = None) -> list[Verification]:
        """Hash what is held again, one stream or (None) all of them. Raises ``no-such-stream``."""
        if target is not None:
            streams: Sequence[StreamId] = [(await self._meant(target)).stream]
        else:
            streams = [entry.stream for entry in await self.entries()]
        found = []
        for stream in streams:
            meter = self._meter("hash", progress)
            found.append(await self._store.verify(stream, progress=None if progress is None else meter.count))
            meter.close()
        return found

    # -- inside -------------------------------------------------------------------------------------------------

    def _meter(self, kind: Kind, progress: OnProgress | None) -> Meter:
        return Meter(kind, progress, asyncio.get_running_loop())

    async def _meant(self, target: Target, channel: str | None = None, hub: str | None = None) -> Meant:
        return await meant_by(self._store, target, channel, hub)


def _added(channel: JoinedChannel, stored: Stored, served: bool, told: bool) -> Added:
    uri = StreamUri(channel.name, channel.hub.host, stored.stream, courtesy_name(stored.name))
    sha256 = None if stored.sha256 is None else stored.sha256.hex()
    return Added(uri, stored.stream, stored.length, sha256, stored.name, stored.unchanged, served, told)


def _machine_name() -> str:
    """This machine's name as a node's name: 1 to 64 printable characters."""
    name = unicodedata.normalize("NFC", socket.gethostname().partition(".")[0])
    shown = "".join(c for c in name if c.isprintable()).strip()[:_MAX_NAME].strip()
    return shown or "node"
