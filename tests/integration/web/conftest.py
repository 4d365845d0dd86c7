"""A real hub's web server on loopback over a real SQLite database; only the exchange is not there."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers.sqlite import migrated

from entrepot.adapters.hub_client import HubClient, HubClientSettings
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.invite import Invite
from entrepot.core.keyring import derive_node_key
from entrepot.core.nkeys import SigningKey
from entrepot.core.signing import sign_request
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.adapters.sql_usage import SqlUsage
from entrepot_hub.core.members import Rights
from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity
from entrepot_hub.core.sealing import MasterKey
from entrepot_hub.services.administration import Administration, ChannelCreate, InviteCreate
from entrepot_hub.services.bucket_keeper import BucketKeeper
from entrepot_hub.services.channels import Channels
from entrepot_hub.services.desk import Desk
from entrepot_hub.services.journal import Journal
from entrepot_hub.services.settings import HubSettings, LimitSettings, Listen
from entrepot_hub.services.timeline import Timelines
from entrepot_hub.services.vault import Vault
from entrepot_hub.services.web.app import WebServer, admin_app, node_app
from entrepot_hub.services.web.context import WebContext
from entrepot_hub.services.web.health import Readiness


@dataclass
class Clock:
    """The machine's time, moved at will."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Heard:
    """Presence and changes as a running hub keeps them, in memory."""

    nodes_online: set[str] = field(default_factory=set)
    revocations: dict[str, int] = field(default_factory=dict)
    revoked: list[tuple[str, str | None]] = field(default_factory=list)
    granted: list[tuple[str, str | None]] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)

    def online(self, node: str) -> bool:
        return node in self.nodes_online

    def revoked_at(self, node: str) -> int | None:
        return self.revocations.get(node)

    async def on_revoked(self, node: str, channel: str | None) -> None:
        self.revoked.append((node, channel))

    async def on_granted(self, node: str, channel: str | None) -> None:
        self.granted.append((node, channel))

    async def on_channel(self, channel: str) -> None:
        self.channels.append(channel)


@dataclass
class Served:
    """A hub that answers at ``url``."""

    settings: HubSettings
    identity: NatsIdentity
    database: Database
    registry: Registry
    ledger: SqlLedger
    administration: Administration
    clock: Clock
    heard: Heard

    @property
    def url(self) -> str:
        return self.settings.urls[0]

    @property
    def hub_public(self) -> str:
        return self.identity.hub_public

    def key(self, seed: bytes | None = None) -> SigningKey:
        """The key of a node, a new one unless its seed is named."""
        return derive_node_key(seed or secrets.token_bytes(32), self.hub_public)

    @asynccontextmanager
    async def client(
        self, key: SigningKey, *, clock: Callable[[], float] = time.time, url: str | None = None
    ) -> AsyncIterator[HubClient]:
        async with HubClient(
            url or self.url, key, self.hub_public, HubClientSettings(timeout=10), clock=clock
        ) as client:
            yield client

    async def channel(self, name: str = "demo") -> str:
        """A new channel in a folder."""
        bucket = (self.settings.folder / f"bucket-{name}").as_uri()
        await self.administration.create_channel(ChannelCreate(name=name, bucket=bucket, create_bucket=True))
        return name

    async def invite(self, channel: str = "demo", **how: Any) -> Invite:
        """A new invite."""
        made = await self.administration.create_invite(InviteCreate(name=channel, **how))
        return Invite.parse(made.url)

    async def member(self, channel: str = "demo", rights: str = "request,provide", name: str = "lab") -> SigningKey:
        """A new node with rights in a channel."""
        key = self.key()
        await self.registry.add_node(key.public, name, now=self.clock())
        await self.registry.grant_rights(channel, key.public, Rights.parse(rights), now=self.clock(), actor="test")
        return key


@dataclass
class Raw:
    """A request as it goes out, for tests that spoil it on its way."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes

    async def send(self, http: aiohttp.ClientSession) -> tuple[int, dict]:
        async with http.request(self.method, self.url, data=self.body or None, headers=self.headers) as response:
            return response.status, await response.json()


type MakeHub = Callable[..., Awaitable[Served]]


@pytest.fixture
async def make_hub(tmp_path: Path) -> AsyncIterator[MakeHub]:
    """Starts hubs; ``more`` are routes besides, ``checks`` what ``/readyz`` looks at, ``public`` addresses besides."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:
        count = 0

        async def make(
            *,
            more: list[web.RouteDef] | None = None,
            checks: Mapping[str, Callable[[], Awaitable[None]]] | None = None,
            limits: LimitSettings | None = None,
            readiness_clock: Callable[[], float] = time.monotonic,
            warnings: tuple[str, ...] = (),
            lesser: tuple[str, ...] = (),
            public: tuple[str, ...] = (),
        ) -> Served:
            nonlocal count
            count += 1
            folder = tmp_path / f"hub{count}"
            folder.mkdir(mode=0o700)
            port = free_port()
            settings = HubSettings(
                folder=folder,
                urls=(f"http://127.0.0.1:{port}", "http://localhost", *public),
                listen=Listen("127.0.0.1", port),
                limits=limits or LimitSettings(),
            )
            # SQLAlchemy looks at the file system as it is set up.
            database = await asyncio.to_thread(lambda: Database(migrated(folder / "hub.db")))
            await stack.enter_async_context(database)
            master = MasterKey(secrets.token_bytes(32))
            identity = NatsIdentity.create(secrets.token_bytes(RANDOM_LENGTH))
            clock, heard = Clock(), Heard()
            registry, ledger = Registry(database, master), SqlLedger(database)
            readiness = Readiness(checks or {}, readiness_clock, lambda: warnings, lesser)
            vault = Vault(master, identity.hub_public, settings.urls[0], clock)
            channels = await stack.enter_async_context(
                Channels(registry, lambda record: vault.open(record.bucket), clock)
            )
            administration = Administration(
                registry,
                vault,
                hub_public=identity.hub_public,
                urls=settings.urls,
                clock=clock,
                changes=heard,
                checks=readiness.look,
            )
            context = WebContext(
                settings=settings,
                identity=identity,
                database=database,
                registry=registry,
                ledger=ledger,
                presence=heard,
                nats_urls=lambda: ("nats://127.0.0.1:4222",),
                instance="00112233aabbccdd",
                clock=clock,
                timelines=Timelines(
                    database=database,
                    registry=registry,
                    usage=SqlUsage(database),
                    journal=Journal(database, clock),
                    reason=lambda *_: None,
                    clock=clock,
                ),
                channels=channels,
            )
            desk = Desk(
                administration=administration,
                registry=registry,
                database=database,
                ledger=ledger,
                vault=vault,
                channels=channels,
                keeper=BucketKeeper(database, ledger, channels, ExchangeSettings(), clock),
                settings=settings,
                clock=clock,
            )
            nodes = node_app(context, administration, readiness, more=more or [])
            await stack.enter_async_context(WebServer(settings, nodes, admin_app(desk)))
            return Served(settings, identity, database, registry, ledger, administration, clock, heard)

        yield make


@pytest.fixture
async def hub(make_hub: MakeHub) -> Served:
    """One hub with the channel ``demo``."""
    served = await make_hub()
    await served.channel()
    return served


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


@pytest.fixture
def signed() -> Callable[..., Raw]:
    """Builds a well signed request."""

    def build(
        key: SigningKey,
        url: str,
        *,
        method: str = "POST",
        body: bytes = b"{}",
        nonce: str | None = None,
        now: float | None = None,
    ) -> Raw:
        headers = {"Content-Type": "application/json"} if body else {}
        sign_request(
            method,
            url,
            headers,
            body,
            key=key,
            nonce=nonce or secrets.token_urlsafe(16),
            now=time.time() if now is None else now,
        )
        return Raw(method, url, headers, body)

    return build


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
