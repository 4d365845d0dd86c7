"""A real hub (SQLite, folder bucket, its own nats-server) and peers that speak the exchange by hand.

A :class:`Peer` has a real key, joined by a real invite and talks over real HTTP and NATS, but decides itself
what to say and when: late, twice, forged or never. Whole nodes come from ``entrepot.services``.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from tests.servers.sqlite import new_hub

from entrepot.adapters.bus import Bus, BusSettings
from entrepot.adapters.bus import Message as BusMessage
from entrepot.adapters.hub_client import HubClient
from entrepot.core import subjects
from entrepot.core.api import SessionInfo
from entrepot.core.codec import Packer
from entrepot.core.errors import RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.format import encode_header
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.invite import Invite
from entrepot.core.keyring import Credentials, derive_node_key
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher
from entrepot.core.messages import (
    Accept,
    AcceptReply,
    Ack,
    Added,
    Done,
    Grant,
    Message,
    ObjectState,
    Offer,
    Seek,
    Signed,
    State,
    Want,
    WantReply,
    decode,
    encode,
)
from entrepot_hub.services.hub import Hub
from entrepot_hub.services.settings import Listen, load_settings

QUICK = BusSettings(backoff_first=0.02, backoff_longest=0.2, refresh_grace=1.0)
#: Small objects make many of them out of little data.
SMALL = {"miniblock": 16384, "object": 65536}


def free_port() -> int:
    """A TCP port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Content:
    """A stream that a peer holds: its bytes and all that follows from them."""

    data: bytes
    lock: SchemaLock
    opening: Opening = field(init=False)
    stream: StreamId = field(init=False)
    nodes: bytes = field(init=False)
    geometry: Geometry = field(init=False)

    def __post_init__(self) -> None:
        hasher = StreamHasher(self.lock.level)
        hasher.update(self.data)
        hashed = hasher.finish()
        self.opening, self.nodes = hashed.opening, hashed.nodes
        self.stream = self.opening.stream_id()
        self.geometry = Geometry(len(self.data), self.lock)

    def header(self, number: int) -> bytes:
        """The header of an object."""
        lengths = [len(block) for block in self.stored(number)]
        return encode_header(self.stream, self.opening, self.lock, number, self.nodes, stored_lengths=lengths)

    def stored(self, number: int) -> list[bytes]:
        """The stored miniblocks of an object, packed where the lock says so and it pays."""
        spans = map(self.geometry.miniblock_span, self.geometry.miniblocks_of(number))
        plain = [self.data[offset : offset + length] for offset, length in spans]
        return plain if self.lock.codec == "none" else [Packer().pack(block) or block for block in plain]

    def object(self, number: int) -> bytes:
        """A whole object as it lies in the bucket."""
        return self.header(number) + b"".join(self.stored(number))

    def digest(self, number: int) -> bytes:
        """The SHA-256 of a whole object."""
        return hashlib.sha256(self.object(number)).digest()


async def send(signed: Signed, body: bytes = b"") -> tuple[int, bytes]:
    """Make a signed request as a node would, in a thread: status and body."""

    def call() -> tuple[int, bytes]:
        parts = urlsplit(signed.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
        try:
            connection.request(signed.method, f"{parts.path}?{parts.query}", body or None, dict(signed.headers))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def until[T](look: Callable[[], T], seconds: float = 20.0) -> T:
    """The first true value of ``look()``; fails after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not (found := look()):
            await asyncio.sleep(0.01)
        return found


class Peer:
    """One session of one node, driven by a test."""

    def __init__(self, grid: Grid, seed: bytes, name: str) -> None:
        self.grid = grid
        self.name = name
        self.seed = seed
        self.key = derive_node_key(seed, grid.hub_public)
        self.session = secrets.token_hex(8)
        self.client = HubClient(grid.url, self.key, grid.hub_public)
        self.info: SessionInfo | None = None
        self.bus: Bus | None = None
        self.grants: list[Grant] = []
        self.seeks: list[tuple[str, Seek]] = []
        self.states: list[ObjectState] = []
        self.openings: list[bytes] = []
        self.uploaded: list[int] = []
        self.patience = 10.0  # seconds that an answer may take
        self._stack = AsyncExitStack()

    @property
    def node(self) -> str:
        return self.key.public

    async def renew(self) -> None:
        self.info = await self.client.session()

    async def connect(self, *, hear: bool = True) -> None:
        """Open the bus; with ``hear`` listen for seeks and grants as a daemon does."""
        await self.renew()
        assert self.info is not None
        self.bus = await self._stack.enter_async_context(
            Bus(
                self.info.nats,
                name=subjects.connection_name(self.session, "daemon"),
                inbox_prefix=self.info.inbox,
                credentials=lambda: Credentials(self.info.jwt if self.info else "", self.key),
                renew=self.renew,
                settings=QUICK,
                on_error=lambda error, where: None,
            )
        )
        await self.bus.wait_connected(10)
        if hear:
            await self.bus.subscribe(subjects.grant(self.node, self.session), self._granted)
            await self.bus.subscribe(subjects.node_seek(self.node), self._sought)
            for channel in self.info.channels:
                if "provide" in channel.rights or "owner" in channel.rights:
                    await self.bus.subscribe(subjects.channel_seek(channel.name), self._sought)

    async def disconnect(self) -> None:
        """Close the bus, as if the process ended."""
        await self._stack.aclose()
        self.bus = None

    def _granted(self, message: BusMessage) -> None:
        self.grants.append(decode(Grant, message.payload))

    def _sought(self, message: BusMessage) -> None:
        self.seeks.append((message.subject, decode(Seek, message.payload)))

    async def follow(self, channel: str, stream: StreamId) -> None:
        """Subscribe to the states of a stream."""

        def heard(message: BusMessage) -> None:
            state = decode(State, message.payload)
            self.states.extend(state.objects)
            if state.opening is not None:
                self.openings.append(state.opening)

        assert self.bus is not None
        await self.bus.subscribe(subjects.state(channel, str(stream)), heard)

    def state(self, number: int) -> ObjectState | None:
        """The last state heard of an object."""
        return next((state for state in reversed(self.states) if state.number == number), None)

    async def ask[A: Message](self, channel: str, verb: str, message: Message, answer: type[A]) -> A:
        """Say a verb and have the hub's answer."""
        assert self.bus is not None
        subject = subjects.hub_verb(channel, verb, self.node)
        return decode(answer, await self.bus.request(subject, encode(message), self.patience))

    async def want(
        self,
        content: Content,
        ranges: tuple[tuple[int, int], ...] = ((0, 63),),
        *,
        window: int = 8,
        deadline: float = 60.0,
        keep: bool = False,
        channel: str | None = None,
    ) -> WantReply:
        """Want objects of a stream."""
        message = Want(
            lock=content.lock.id,
            stream=content.stream.raw,
            session=self.session,
            ranges=ranges,
            window=window,
            deadline=int(deadline * 1000),
            keep=keep,
        )
        return await self.ask(channel or content.lock.channel, "want", message, WantReply)

    async def offer(
        self, content: Content, seek: Seek, *, slots: int = 4, numbers: tuple[int, int] | None = None
    ) -> None:
        """Offer all objects of a stream (or a range of them) to the hub that sought it."""
        last = content.geometry.object_count - 1
        message = Offer(
            lock=content.lock.id,
            stream=content.stream.raw,
            session=self.session,
            opening=content.opening.encode(),
            ranges=() if last < 0 else (numbers or (0, last),),
            slots=slots,
        )
        assert self.bus is not None
        await self.bus.publish(subjects.hub_offer(content.lock.channel, seek.hub, self.node), encode(message))

    async def added(self, content: Content) -> Ack:
        """Tell the hub that this node holds the stream."""
        message = Added(
            lock=content.lock.id,
            session=self.session,
            streams=((content.stream.raw, content.opening.encode()),),
        )
        return await self.ask(content.lock.channel, "added", message, Ack)

    async def sought(self, content: Content, after: int = 0) -> Seek:
        """The next seek for a stream."""

        def look() -> Seek | None:
            return next((s for _, s in self.seeks[after:] if s.stream == content.stream.raw), None)

        found = await until(look)
        assert found is not None
        return found

    async def granted(self, number: int, after: int = 0) -> Grant:
        """The next grant for an object."""
        found = await until(lambda: next((g for g in self.grants[after:] if g.number == number), None))
        assert found is not None
        return found

    async def accept(
        self, content: Content, grant: Grant, *, header: bytes | None = None, digest: bytes | None = None
    ) -> AcceptReply:
        """Take a grant."""
        message = Accept(
            lock=content.lock.id,
            grant=grant.grant,
            session=self.session,
            header=content.header(grant.number) if header is None else header,
            digest=content.digest(grant.number) if digest is None else digest,
        )
        return await self.ask(content.lock.channel, "accept", message, AcceptReply)

    async def done(self, content: Content, grant: Grant) -> Ack:
        """Say that the upload ended."""
        return await self.ask(content.lock.channel, "done", Done(lock=content.lock.id, grant=grant.grant), Ack)

    async def upload(self, content: Content, grant: Grant) -> Ack:
        """Accept, PUT and report one object, as an honest provider does."""
        reply = await self.accept(content, grant)
        assert reply.put is not None, reply
        status, body = await send(reply.put, content.object(grant.number))
        assert status in (200, 201, 204), (status, body)
        return await self.done(content, grant)

    async def serve_all(self, content: Content) -> None:
        """Offer the stream whenever it is sought and upload whatever is granted, until cancelled; what the hub found
        uploaded is listed in ``uploaded``."""
        answered, taken = 0, set[bytes]()
        while True:
            for _, seek in self.seeks[answered:]:
                answered += 1
                if seek.stream == content.stream.raw:
                    await self.offer(content, seek)
            for grant in [g for g in self.grants if g.grant not in taken]:
                try:
                    reply = await self.accept(content, grant)
                    if reply.put is not None:
                        status, _ = await send(reply.put, content.object(grant.number))
                        if status == 200:
                            self.uploaded.append(grant.number)
                        await self.done(content, grant)
                except RetryLater:
                    continue  # no answer: said again, as a provider does
                taken.add(grant.grant)
            await asyncio.sleep(0.01)

    async def provide(self, content: Content, count: int | None = None) -> None:
        """Serve every grant of a stream, as it comes, until so many objects are up."""
        done: set[bytes] = set()
        total = content.geometry.object_count if count is None else count
        while len(done) < total:
            grant = await until(lambda: next((g for g in self.grants if g.grant not in done), None))
            assert grant is not None
            await self.upload(content, grant)
            done.add(grant.grant)


class Grid:
    """A hub in this process, its folder under ``folder``, and what tests do to it."""

    def __init__(self, folder: Path, exchange: ExchangeSettings | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.nats_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.exchange = exchange or ExchangeSettings()
        self.hub_public = ""
        self.hub: Hub | None = None
        self._stack = AsyncExitStack()
        self._peers: list[Peer] = []

    @property
    def socket(self) -> Path:
        return self.folder / "hub" / "hub.sock"

    async def prepare(self, more: str = "") -> None:
        """Set the hub up, unless that was done, with ``more`` lines of TOML at the end of its settings."""
        if not self.hub_public:
            self.hub_public = await asyncio.to_thread(
                new_hub,
                self.folder / "hub",
                self.url,
                Listen("127.0.0.1", self.port),
                Listen("127.0.0.1", self.nats_port),
            )
            with (self.folder / "hub" / "hub.toml").open("a") as file:
                file.write(more)

    async def start(self) -> None:
        """Start the hub; the first time, set it up."""
        await self.prepare()
        settings = await asyncio.to_thread(load_settings, self.folder / "hub")
        self.hub = await self._stack.enter_async_context(Hub(settings, exchange=self.exchange))

    async def stop(self) -> None:
        """Stop the hub and its nats-server."""
        await self._stack.aclose()
        self.hub = None

    async def aclose(self) -> None:
        """Stop everything."""
        for peer in self._peers:
            await peer.disconnect()
            await peer.client.aclose()
        await self.stop()

    async def admin(self, operation: str, **fields: Any) -> Any:
        """An operation through the hub's socket."""
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as http_session,
            http_session.post(f"http://hub/admin/{operation}", json=fields) as response,
        ):
            answer = await response.json()
            assert response.status == 200, answer
            return answer

    async def channel(
        self, name: str = "demo", *, quota: int = 1 << 30, bucket: str | None = None, **fields: Any
    ) -> SchemaLock:
        """Make a channel with small objects over a folder bucket of its own; its schema lock."""
        place = self.folder / f"bucket-{name}"
        await asyncio.to_thread(place.mkdir, exist_ok=True)
        shape = SMALL | fields
        await self.admin("channel.create", name=name, bucket=bucket or f"file://{place}", quota=quota, **shape)
        return SchemaLock(
            name, str(shape.get("codec", "none")), miniblock=int(shape["miniblock"]), object=int(shape["object"])
        )

    async def invite(self, channel: str = "demo", rights: str = "request,provide", uses: int = 100) -> str:
        """The URL of a new invite."""
        return str((await self.admin("channel.invite", name=channel, rights=rights, uses=uses))["url"])

    async def peer(
        self,
        name: str,
        *channels: str,
        rights: str = "request,provide",
        seed: bytes | None = None,
        connect: bool = True,
        hear: bool = True,
    ) -> Peer:
        """A new peer that joined these channels and is connected. A ``seed`` of another peer makes a further
        session of the same node."""
        peer = Peer(self, seed or os.urandom(32), name)
        self._peers.append(peer)
        await peer.client.__aenter__()
        for channel in channels or ("demo",):
            await peer.client.join(Invite.parse(await self.invite(channel, rights)), name)
        if connect:
            await peer.connect(hear=hear)
        return peer

    def objects(self, channel: str = "demo") -> dict[str, int]:
        """Keys in a channel's folder bucket and their lengths, tombstones too."""
        root = self.folder / f"bucket-{channel}"
        return {
            str(path.relative_to(root)): path.stat().st_size
            for path in root.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
        }


@asynccontextmanager
async def running_grid(folder: Path, exchange: ExchangeSettings | None = None) -> AsyncIterator[Grid]:
    """A grid with a running hub."""
    grid = Grid(folder, exchange)
    try:
        await grid.start()
        yield grid
    finally:
        await grid.aclose()
