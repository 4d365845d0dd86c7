"""Hubs with channels on real S3 servers: ministack, rclone, and one that checks nothing.

A channel on S3 is made (and probed, which takes seconds) once for each server; every test starts its hub from a copy of
that hub's folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from botocore.config import Config
from tests.contract.buckets.requests import make
from tests.integration.node.conftest import Site
from tests.integration.s3.relay import Relay, run_relay
from tests.servers.careless import run_careless
from tests.servers.grid import SMALL, Content, Grid, Peer
from tests.servers.ministack import S3Server, run_ministack
from tests.servers.rclone import run_rclone

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Grant, Signed
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import Usage
from entrepot_hub.services.settings import DATABASE_NAME, FILE_NAME

KINDS = ("ministack", "rclone", "careless")
#: Those that check signatures and so the end of a URL.
CHECKING = ("ministack", "rclone")
PREFIX = "lab/one"
BUCKET = "demo"


def credentials(server: S3Server, **other: str) -> str:
    """The keys of a server as an owner hands them in."""
    return json.dumps({"access_key": server.access_key, "secret_key": server.secret_key} | other)


def location(server: S3Server, prefix: str = PREFIX, **more: str) -> str:
    """The URL of the tests' bucket on a server."""
    fields = {"region": server.region, "endpoint": server.endpoint, "create": "true"} | more
    return f"s3://{BUCKET}/{prefix}?" + "&".join(f"{name}={quote(value, safe=':/')}" for name, value in fields.items())


class Owner:
    """The bucket's owner with a client of another make: looks and changes things behind the hub's back."""

    def __init__(self, server: S3Server) -> None:
        self._client = boto3.client(
            "s3",
            region_name=server.region,
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async def sizes(self, prefix: str = PREFIX) -> dict[str, int]:
        """Keys below a prefix and their lengths, tombstones too, without the mark and its like."""
        found = await asyncio.to_thread(self._client.list_objects_v2, Bucket=BUCKET, Prefix=prefix)
        names = {item["Key"]: item["Size"] for item in found.get("Contents", [])}
        return {key: size for key, size in names.items() if not key.rpartition("/")[2].startswith(".")}

    async def of(self, content: Content, prefix: str = PREFIX) -> dict[int, int]:
        """The stream's objects that hold something, by number."""
        found = await self.sizes(f"{prefix}/{content.lock.hex}/{content.stream}/")
        return {int(key[-8:], 16): size for key, size in found.items() if size}

    async def put(self, content: Content, number: int, data: bytes, prefix: str = PREFIX) -> None:
        """Replace an object."""
        key = key_of(content, number, prefix)
        await asyncio.to_thread(self._client.put_object, Bucket=BUCKET, Key=key, Body=data)

    async def delete(self, content: Content, number: int, prefix: str = PREFIX) -> None:
        """Remove an object."""
        key = key_of(content, number, prefix)
        await asyncio.to_thread(self._client.delete_object, Bucket=BUCKET, Key=key)

    async def clear(self, prefix: str) -> None:
        """Remove all objects, marks excepted: a hub that knows nothing of them would take them in."""
        for key in await self.sizes(prefix):
            await asyncio.to_thread(self._client.delete_object, Bucket=BUCKET, Key=key)

    def close(self) -> None:
        self._client.close()


def key_of(content: Content, number: int, prefix: str = PREFIX) -> str:
    """An object's key."""
    return f"{prefix}/{content.lock.hex}/{content.stream}/{number:08x}"


@dataclass
class Ground:
    """A server, a relay in front of it, and the folder of a hub with the channels ``demo`` (straight to the server) and
    ``relayed`` (through the relay), as their making answered."""

    kind: str
    server: S3Server
    relay: Relay
    owner: Owner
    folder: Path
    port: int = 0
    nats_port: int = 0
    hub_public: str = ""
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The bucket of ``demo``."""
        return location(self.server)

    async def prepare(self, turn: asyncio.Lock) -> None:
        """Make the hub and its channels. ``turn``: alembic migrates one database at a time."""
        grid = Grid(self.folder)
        try:
            async with turn:
                await grid.start()
            urls = {
                "demo": self.url,
                "relayed": location(self.server, "lab/two", public_endpoint=self.relay.endpoint),
            }
            async with asyncio.TaskGroup() as group:
                for name, url in urls.items():
                    group.create_task(self._channel(grid, name, url))
            self.port, self.nats_port, self.hub_public = grid.port, grid.nats_port, grid.hub_public
        finally:
            await grid.aclose()

    async def _channel(self, grid: Grid, name: str, url: str) -> None:
        await grid.channel(name, bucket=url, credentials=credentials(self.server))
        self.answers[name] = await grid.admin("channel.show", name=name)

    def copy(self, folder: Path, exchange: ExchangeSettings | None) -> Grid:
        """A hub of this ground for one test, on ports of its own, not started."""
        grid = Grid(folder, exchange)
        shutil.copytree(self.folder / "hub", folder / "hub", ignore=shutil.ignore_patterns("*.sock"))
        os.chmod(folder / "hub", 0o700)
        path = folder / "hub" / FILE_NAME
        text = path.read_text().replace(f":{self.port}", f":{grid.port}")
        path.write_text(text.replace(f":{self.nats_port}", f":{grid.nats_port}"))
        grid.hub_public = self.hub_public
        return grid


@pytest.fixture(scope="session")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Ground]]:
    """The ground of each kind."""
    made: dict[str, Ground] = {}
    with ExitStack() as stack:
        for kind in KINDS:
            folder = tmp_path_factory.mktemp(kind)
            run = {"ministack": run_ministack, "rclone": run_rclone, "careless": lambda _: run_careless()}[kind]
            server = stack.enter_context(run(folder))
            relay = stack.enter_context(run_relay(server.endpoint))
            made[kind] = Ground(kind, server, relay, Owner(server), folder)
            stack.callback(made[kind].owner.close)

        async def prepare() -> None:
            turn = asyncio.Lock()
            async with asyncio.TaskGroup() as group:
                for ground in made.values():
                    group.create_task(ground.prepare(turn))

        with ThreadPoolExecutor(1) as apart:  # the loops of tests are left alone
            apart.submit(lambda: asyncio.run(prepare())).result()
        yield made


@pytest.fixture(params=KINDS)
def ground(request: pytest.FixtureRequest, grounds: Mapping[str, Ground]) -> Ground:
    """Each kind in turn."""
    found = grounds[request.param]
    found.relay.troubles.clear()
    found.relay.seen.clear()
    return found


@dataclass
class Stage:
    """A running hub on a ground, and what a test does there."""

    ground: Ground
    grid: Grid
    site: Site
    folder: Path

    @property
    def owner(self) -> Owner:
        return self.ground.owner

    @property
    def lock(self) -> SchemaLock:
        """The schema lock of the channel ``demo``."""
        return SchemaLock("demo", miniblock=SMALL["miniblock"], object=SMALL["object"])

    def content(self, length: int = 2 * 65536 + 5000) -> Content:
        """A stream of random bytes in the channel ``demo``."""
        return Content(os.urandom(length), self.lock)

    async def usage(self, channel: str = "demo") -> Usage:
        """The channel's account, read from the database by another connection."""

        def look() -> Usage:
            database = Database(f"sqlite:///{self.grid.folder / 'hub' / DATABASE_NAME}")
            try:
                return SqlLedger(database).usage(channel)
            finally:
                database.close()

        return await asyncio.to_thread(look)

    async def balanced(self, *contents: Content, prefix: str = PREFIX) -> Usage:
        """Once what is leaving has left, the ledger says that exactly that is stored which the bucket holds of these
        streams (all that the test moved in their channel), and all of it is charged. The account."""
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            usage = await self.usage(contents[0].lock.channel)
            there = [size for content in contents for size in (await self.owner.of(content, prefix)).values()]
            assert usage.charged == usage.stored + usage.reserved <= usage.quota
            if (usage.stored, usage.objects) == (sum(there), len(there)):
                return usage
            assert asyncio.get_running_loop().time() < deadline, (usage, there)
            await asyncio.sleep(0.05)

    async def strikes(self, peer: Peer) -> list[str]:
        """The reasons of a node's strikes."""
        return [reason for node, reason in await self._strikes() if node == peer.node]

    async def reports(self) -> list[str]:
        """The nodes that have a strike for a false report."""
        return [node for node, reason in await self._strikes() if reason == "false-report"]

    async def _strikes(self) -> list[tuple[str, str]]:
        def look() -> list[tuple[str, str]]:
            with closing(sqlite3.connect(self.grid.folder / "hub" / DATABASE_NAME)) as connection:
                return list(connection.execute("select node, reason from strikes"))

        return await asyncio.to_thread(look)


@pytest.fixture
def stage(ground: Ground, tmp_path: Path, empty_home: Path) -> Callable[..., Any]:
    """What starts a hub on the ground, with these settings of the exchange, as a context manager."""

    @asynccontextmanager
    async def start(**exchange: float) -> AsyncIterator[Stage]:
        settings = replace(ExchangeSettings(disconnect_grace=0.3, lease=5.0), **exchange)  # type: ignore[arg-type]
        grid = await asyncio.to_thread(ground.copy, tmp_path, settings)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(grid.aclose)
            for prefix in (PREFIX, "lab/two"):
                await ground.owner.clear(prefix)
            await grid.start()
            site = Site(grid, empty_home / secrets.token_hex(4))
            stack.push_async_callback(site.aclose)
            yield Stage(ground, grid, site, tmp_path)

    return start


async def put(signed: Signed, data: bytes) -> int:
    """PUT these bytes, whatever was signed, with their true length; the status, 0 without one."""
    headers = dict(signed.headers) | {"Content-Length": str(len(data))}
    return (await asyncio.to_thread(make, "PUT", signed.url, headers, data)).status


async def serve(peer: Peer, content: Content, urls: dict[int, Signed] | None = None) -> None:
    """Offer a stream whenever it is sought and upload what is granted, until cancelled; the PUT URLs go into
    ``urls``."""
    sought, served = 0, set[bytes]()
    while True:
        for _, seek in peer.seeks[sought:]:
            if seek.stream == content.stream.raw:
                await peer.offer(content, seek)
        sought = len(peer.seeks)
        for grant in [grant for grant in peer.grants if grant.grant not in served]:
            served.add(grant.grant)
            await upload(peer, content, grant, {} if urls is None else urls)
        await asyncio.sleep(0.01)


async def upload(peer: Peer, content: Content, grant: Grant, urls: dict[int, Signed]) -> None:
    """Upload what was granted, if it still is."""
    reply = await peer.accept(content, grant)
    if reply.put is not None:
        urls[grant.number] = reply.put
        await put(reply.put, content.object(grant.number))
        await peer.done(content, grant)


@asynccontextmanager
async def helping(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Others are at work meanwhile; what goes wrong with them is raised here."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def content_of(path: Path) -> bytes:
    """A file's bytes, read in a thread."""
    return await asyncio.to_thread(path.read_bytes)
