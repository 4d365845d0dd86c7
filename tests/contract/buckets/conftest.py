"""One bucket of each kind, each on a real server: a folder served by aiohttp, ministack, rclone, Azurite, GCS's."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from tests.servers.azurite import AzureServer, run_azurite
from tests.servers.gcs import GcsServer, run_gcs
from tests.servers.ministack import S3Server, run_ministack
from tests.servers.rclone import run_rclone

from entrepot_hub.adapters.buckets import Bucket, DigestKind
from entrepot_hub.adapters.buckets.azure import AzureBucket
from entrepot_hub.adapters.buckets.azure_settings import AzureSettings
from entrepot_hub.adapters.buckets.credentials import AzureKey, S3Credentials
from entrepot_hub.adapters.buckets.folder import FolderBucket, FolderSettings
from entrepot_hub.adapters.buckets.folder_web import FolderWeb
from entrepot_hub.adapters.buckets.gcs import GcsBucket
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings
from entrepot_hub.adapters.buckets.s3 import S3Bucket
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

KINDS = ("folder", "ministack", "ministack-md5", "rclone", "azurite", "gcs")


def s3_settings(server: S3Server, bucket: str = "contract") -> S3Settings:
    """A bucket of this name on a server of the tests, made if it is missing."""
    return S3Settings(
        bucket=bucket,
        region=server.region,
        endpoint=server.endpoint,
        credentials=S3Credentials(access_key=server.access_key, secret_key=server.secret_key),
        create=True,
    )


def azure_settings(server: AzureServer, container: str = "contract") -> AzureSettings:
    """A container of this name on a server of the tests, made if it is missing."""
    return AzureSettings(
        container=container,
        endpoint=server.endpoint,
        credentials=AzureKey(account=server.account, key=server.key),
        create=True,
    )


def gcs_settings(server: GcsServer, bucket: str = "contract") -> GcsSettings:
    """A bucket of this name on a server of the tests, made if it is missing."""
    return GcsSettings(bucket=bucket, endpoint=server.endpoint, credentials=server.credentials, create=True)


@asynccontextmanager
async def serve_folder(path: Path, settings: FolderSettings | None = None) -> AsyncIterator[FolderBucket]:
    """A folder bucket in ``path``, served on loopback."""
    buckets: dict[str, FolderBucket] = {}
    app = web.Application()
    app.router.add_routes(FolderWeb(buckets.get).routes())
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with FolderBucket(
            path, name="b1", secret=b"k" * 32, public_url=f"http://{host}:{port}", settings=settings
        ) as bucket:
            buckets[bucket.name] = bucket
            yield bucket
    finally:
        await runner.cleanup()


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The S3 server that holds what it promises."""
    with run_ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The S3 server that does not."""
    with run_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """The Azure Blob server."""
    with run_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """The server that speaks Google Cloud Storage, behind the proxy that checks signatures."""
    with run_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def probed() -> Iterator[dict[str, Bucket]]:
    """The cloud buckets of this session by kind, each probed once. They belong to no event loop."""
    buckets: dict[str, Bucket] = {}
    yield buckets
    for bucket in buckets.values():
        asyncio.run(bucket.aclose())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of bucket in turn."""
    return str(request.param)


@pytest.fixture
async def bucket(
    kind: str, probed: dict[str, Bucket], request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Bucket]:
    """A bucket whose ``binds`` were found by its own probe."""
    if kind == "folder":
        async with serve_folder(tmp_path / "bucket") as folder:
            yield folder
        return
    if kind not in probed:
        made: Bucket
        server = request.getfixturevalue(kind.removesuffix("-md5"))
        if kind == "azurite":
            made = AzureBucket(azure_settings(server), name=kind)
        elif kind == "gcs":
            made = GcsBucket(gcs_settings(server), name=kind)
        else:
            digest: DigestKind = "md5" if kind.endswith("-md5") else "sha256"
            made = S3Bucket(replace(s3_settings(server, bucket=kind), digest=digest), name=kind)
        await made.start()
        await made.probe()
        probed[kind] = made
    found = probed[kind]
    yield found
    if isinstance(found, S3Bucket) and found._looks is not None:
        await found._looks.aclose()  # its connections belong to this test's event loop
        found._looks = None


@pytest.fixture
def base() -> str:
    """A prefix of this test's own: servers are shared."""
    return f"t/{secrets.token_hex(8)}"


async def until_there(bucket: Bucket, key: str) -> None:
    """Wait until the object shows, at most twenty seconds."""
    end = time.monotonic() + 20
    while await bucket.head(key) is None:
        if time.monotonic() > end:
            raise AssertionError(f"{key} does not show")
        await asyncio.sleep(0.02)
