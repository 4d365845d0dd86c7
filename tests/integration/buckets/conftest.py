"""One hub with a channel on every kind of bucket, each made as its owner would: by the command, with keys in a file.

Making and probing six buckets takes seconds, so hub, servers and buckets are the session's, and all tests of this
folder run on one event loop; every test makes channels of its own on them. Nodes reach each bucket through a relay,
which sees every transfer: to the cloud kinds as the bucket's public endpoint, to the folder as the hub's own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from tests.contract.buckets.requests import make
from tests.integration.buckets.looks import AzureLook, FolderLook, GcsLook, Look, S3Look
from tests.integration.node.conftest import Site
from tests.servers import azurite
from tests.servers.gcs import run_gcs
from tests.servers.grid import Content, Grid, Peer
from tests.servers.ministack import S3Server, run_ministack
from tests.servers.rclone import run_rclone
from tests.servers.relay import Passage, Relay

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Grant, Signed
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import Usage
from entrepot_hub.services.settings import DATABASE_NAME

KINDS = ("folder", "ministack", "ministack-md5", "rclone", "azurite", "gcs")
#: What does not hold of a kind's uploads; the digest that its grants name, where that is not SHA-256.
UNBOUND: Mapping[str, frozenset[str]] = {
    "rclone": frozenset({"digest", "create_only"}),
    "azurite": frozenset({"length", "digest"}),
}
DIGESTS = {"ministack-md5": "md5", "gcs": "md5"}
#: The relays take what lies under this for requests to a bucket; folders are served there too.
BUCKET = "bucket"
#: Seconds that a signed GET lives here: short, so that a test can let one end.
GET_URL = 3.0
OBJECT = 65_536

#: The event loop of the hub.
one_loop = pytest.mark.asyncio(loop_scope="session")


class LossyRelay(Relay):
    """A relay that can lose the answers to uploads that were taken: so many of the next ones (``lose``)."""

    lose = 0

    async def _answers(
        self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, current: list[Passage | None]
    ) -> None:
        await super()._answers(cast("asyncio.StreamReader", _Lossy(self, back, current)), writer, current)


class _Lossy:
    """The bytes that come back on a connection, which end where an answer is lost."""

    def __init__(self, relay: LossyRelay, reader: asyncio.StreamReader, current: list[Passage | None]) -> None:
        self._relay = relay
        self._reader = reader
        self._current = current

    async def read(self, count: int) -> bytes:
        piece, passage = await self._reader.read(count), self._current[0]
        if self._relay.lose and passage is not None and passage.method == "PUT" and piece[9:12] in (b"200", b"201"):
            self._relay.lose -= 1
            return b""
        return piece


@dataclass(frozen=True)
class Place:
    """A kind's bucket: its URL and keys as its owner has them, and a look into it past the hub."""

    kind: str
    url: str
    prefix: str
    look: Look
    relay: LossyRelay = field(repr=False)
    keys: str | None = field(default=None, repr=False)

    def binds(self, name: str) -> bool:
        """Whether its uploads are held to that."""
        return name not in UNBOUND.get(self.kind, ())

    @property
    def digest(self) -> str:
        """The digest that its grants name."""
        return DIGESTS.get(self.kind, "sha256")


@dataclass
class Yard:
    """The hub and its places, and what a test looks at."""

    grid: Grid
    places: dict[str, Place]
    skipped: dict[str, str]
    made: dict[str, Any] = field(default_factory=dict)

    def place(self, kind: str) -> Place:
        """The place of a kind; the test is skipped where its server cannot be had."""
        if kind in self.skipped:
            pytest.skip(self.skipped[kind])
        return self.places[kind]

    async def channel(self, place: Place, purpose: str, *, quota: int = 1 << 30) -> SchemaLock:
        """A further channel on a kind's bucket."""
        return await self.grid.channel(name_of(place.kind) + purpose, bucket=place.url, quota=quota)

    async def usage(self, channel: str) -> Usage:
        """A channel's account, read from the database by another connection."""

        def look() -> Usage:
            database = Database(f"sqlite:///{self.grid.folder / 'hub' / DATABASE_NAME}")
            try:
                return SqlLedger(database).usage(channel)
            finally:
                database.close()

        return await asyncio.to_thread(look)

    async def rows(self, question: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the hub's database."""

        def look() -> list[tuple[Any, ...]]:
            with closing(sqlite3.connect(self.grid.folder / "hub" / DATABASE_NAME, timeout=20)) as connection:
                return list(connection.execute(question, values))

        return await asyncio.to_thread(look)

    async def strikes(self, peer: Peer) -> list[str]:
        """The reasons of a node's strikes."""
        return [reason for (reason,) in await self.rows("select reason from strikes where node = ?", peer.node)]

    async def there(self, place: Place, lock: SchemaLock) -> dict[tuple[str, int], int]:
        """What lies in the bucket of a channel by stream and number: bytes, 0 of a tombstone."""
        top = f"{place.prefix}/{lock.hex}/"
        found = await asyncio.to_thread(place.look.sizes, top)
        return {(key.split("/")[-2], int(key[-8:], 16)): size for key, size in found.items()}

    async def balanced(self, place: Place, lock: SchemaLock) -> Usage:
        """Once what is leaving has left, the ledger says that exactly that is stored in a channel which the bucket
        holds, and all of it is charged. The account."""
        end = asyncio.get_running_loop().time() + 20
        while True:
            usage = await self.usage(lock.channel)
            sizes = [size for size in (await self.there(place, lock)).values() if size]
            assert usage.charged == usage.stored + usage.reserved <= usage.quota
            if (usage.stored, usage.objects) == (sum(sizes), len(sizes)):
                return usage
            assert asyncio.get_running_loop().time() < end, (usage, sizes)
            await asyncio.sleep(0.05)

    async def reconciled(self, lock: SchemaLock, *, dry_run: bool = False) -> dict[str, int]:
        """A whole comparison of a channel's bucket with the ledger: what was found, by its word."""
        found: dict[str, int] = {}
        cursor = None
        while True:
            page = await self.grid.admin("channel.reconcile", name=lock.channel, dry_run=dry_run, cursor=cursor)
            for word, count in page["counts"].items():
                found[word] = found.get(word, 0) + count
            cursor = page["cursor"]
            if cursor is None:
                return found


def name_of(kind: str) -> str:
    """The name of a kind's first channel."""
    return kind.replace("-", "")


def key_of(place: Place, content: Content, number: int) -> str:
    """An object's key, put together by the words of the design."""
    return f"{place.prefix}/{content.lock.hex}/{content.stream}/{number:08x}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def yard(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Yard]:
    """The hub with a channel on each kind of bucket."""
    folder = tmp_path_factory.mktemp("yard")
    grid = Grid(folder, ExchangeSettings(disconnect_grace=0.3, get_url=GET_URL))
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        places = {place.kind: place for place in _places(stack, grid, folder, skipped)}
        found = Yard(grid, places, skipped)
        try:
            await grid.start()
            async with asyncio.TaskGroup() as group:
                for place in places.values():
                    group.create_task(_owner_makes(found, place, folder))
            yield found
        finally:
            await grid.aclose()


def _places(stack: ExitStack, grid: Grid, folder: Path, skipped: dict[str, str]) -> Iterator[Place]:
    def relay(port: int) -> LossyRelay:
        made = LossyRelay(port).start()
        stack.callback(made.close)
        return made

    def place(kind: str, url: str, prefix: str, look: Look, by: LossyRelay, keys: dict[str, str] | str | None) -> Place:
        stack.callback(look.close)
        return Place(kind, url, prefix, look, by, keys if keys is None or isinstance(keys, str) else json.dumps(keys))

    to_hub = relay(grid.port)
    grid.url = f"http://127.0.0.1:{to_hub.port}"
    root = folder / "goods"
    yield place("folder", f"{root.as_uri()}?prefix=lab/one", "lab/one", FolderLook(root), to_hub, None)

    for run, kinds in ((run_ministack, ("ministack", "ministack-md5")), (run_rclone, ("rclone",))):
        (home := folder / kinds[0]).mkdir()
        server: S3Server = stack.enter_context(run(home))
        to_bucket = relay(port_of(server.endpoint))
        for kind in kinds:
            url = f"s3://{BUCKET}/lab/{kind}?region={server.region}&{_both(server.endpoint, to_bucket)}"
            url += "&digest=md5" if kind.endswith("-md5") else ""
            keys = {"access_key": server.access_key, "secret_key": server.secret_key}
            yield place(kind, url, f"lab/{kind}", S3Look(server, BUCKET), to_bucket, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(azurite, "ACCOUNT", BUCKET)  # paths begin with the account
        (home := folder / "azurite").mkdir()
        try:
            azure = azurite.AzureServer(stack.enter_context(azurite.run_azurite(home)).endpoint, BUCKET)
        except pytest.skip.Exception as reason:
            skipped["azurite"] = str(reason)
        else:
            to_bucket = relay(port_of(azure.endpoint))
            url = f"azblob://goods/lab/one?account={BUCKET}&{_both(azure.endpoint, to_bucket)}"
            yield place("azurite", url, "lab/one", AzureLook(azure, "goods"), to_bucket, {"key": azure.key})

    (home := folder / "gcs").mkdir()
    google = stack.enter_context(run_gcs(home))
    to_bucket = relay(port_of(google.endpoint))
    url = f"gs://{BUCKET}/lab/one?{_both(google.endpoint, to_bucket)}"
    yield place("gcs", url, "lab/one", GcsLook(google, BUCKET), to_bucket, google.document)


def port_of(endpoint: str) -> int:
    """The port of an endpoint."""
    found = urlsplit(endpoint).port
    assert found is not None
    return found


def _both(endpoint: str, relay: Relay) -> str:
    public = endpoint.replace(f":{port_of(endpoint)}", f":{relay.port}")
    return f"endpoint={endpoint}&public_endpoint={public}"


async def _owner_makes(yard: Yard, place: Place, folder: Path) -> None:
    """The bucket's owner makes a channel beside the running hub."""
    words = ["channel", "create", name_of(place.kind), "--bucket", place.url, "--create-bucket", "--json"]
    words += ["--miniblock", "16K", "--object", "64K", "--folder", str(yard.grid.folder / "hub")]
    if place.keys is not None:
        file = folder / f"{place.kind}.keys"
        file.write_text(place.keys)
        file.chmod(0o600)
        words += ["--credentials-file", str(file)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "entrepot_hub.cli.main",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, (place.kind, out.decode(), err.decode())
    yard.made[place.kind] = json.loads(out)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, yard: Yard) -> Place:
    """Each kind's bucket in turn."""
    return yard.place(request.param)


@pytest_asyncio.fixture(loop_scope="session")
async def site(yard: Yard, empty_home: Path) -> AsyncIterator[Site]:
    """Machines of this test's own."""
    made = Site(yard.grid, empty_home / secrets.token_hex(4))
    try:
        yield made
    finally:
        await made.aclose()


def stream(lock: SchemaLock, length: int) -> Content:
    """A stream of random bytes."""
    return Content(os.urandom(length), lock)


async def put(signed: Signed, data: bytes) -> int:
    """PUT these bytes, whatever was signed, with their true length; the status, 0 without one."""
    headers = dict(signed.headers) | {"Content-Length": str(len(data))}
    return (await asyncio.to_thread(make, "PUT", signed.url, headers, data)).status


type Upload = Callable[[Signed, Grant], Coroutine[Any, Any, None]]


async def serve(peer: Peer, content: Content, upload: Upload, numbers: tuple[int, int] | None = None) -> None:
    """Offer a stream (or these objects of it) whenever it is sought, and do this with every URL that is granted, until
    cancelled."""
    sought, served = 0, set[bytes]()
    while True:
        for _, seek in peer.seeks[sought:]:
            if seek.stream == content.stream.raw:
                await peer.offer(content, seek, numbers=numbers)
        sought = len(peer.seeks)
        for grant in [g for g in peer.grants if g.grant not in served and g.stream == content.stream.raw]:
            served.add(grant.grant)
            await take(peer, content, grant, upload)
        await asyncio.sleep(0.01)


async def take(peer: Peer, content: Content, grant: Grant, upload: Upload) -> None:
    """Accept a grant with the right header and the right digest of the kind that it asks for, do this with the URL, and
    report it done."""
    digest = hashlib.new(grant.digest, content.object(grant.number), usedforsecurity=False).digest()
    reply = await peer.accept(content, grant, digest=digest)
    if reply.put is not None:
        await upload(reply.put, grant)
        await peer.done(content, grant)


def honest(content: Content, urls: dict[int, Signed] | None = None) -> Upload:
    """Uploads the right bytes; the PUT URLs go into ``urls``."""

    async def upload(signed: Signed, grant: Grant) -> None:
        if urls is not None:
            urls[grant.number] = signed
        await put(signed, content.object(grant.number))

    return upload


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


@asynccontextmanager
async def watched(yard: Yard, place: Place, lock: SchemaLock) -> AsyncIterator[list[int]]:
    """The bytes of a channel in its bucket, sampled meanwhile and at the end by one who knows nothing of the hub."""
    samples: list[int] = []

    async def sample() -> None:
        samples.append(sum((await yard.there(place, lock)).values()))

    async def go_on() -> None:
        while True:
            await sample()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(go_on())
    try:
        yield samples
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await sample()
