"""Whatever bytes a server sends in the place of a provider's answer, or a disk in the place of the catalogue: a driver,
a node and a store give what was asked for, or one of our errors. Over real sockets and files, through the libraries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.buckets.conftest import azure_settings, s3_settings
from tests.fuzz.mutations import inputs
from tests.fuzz.targets import check_tellable
from tests.servers.azurite import AzureServer
from tests.servers.ministack import S3Server

from entrepot.adapters.store import Store, StoreSettings
from entrepot.core.errors import EntrepotError
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.buckets import Bucket
from entrepot_hub.adapters.buckets.azure import AzureBucket
from entrepot_hub.adapters.buckets.credentials import GcsServiceAccount
from entrepot_hub.adapters.buckets.gcs import GcsBucket
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings
from entrepot_hub.adapters.buckets.s3 import S3Bucket

pytestmark = pytest.mark.blocking

#: A hundred times as many in the long profile.
EXAMPLES = 25 * max(settings().max_examples // 50, 1)
NAME = "some/key"
CALLS: dict[str, Callable[[Bucket], Awaitable[object]]] = {
    "head": lambda bucket: bucket.head(NAME),
    "read": lambda bucket: bucket.read(NAME, 0, 10),
    "delete": lambda bucket: bucket.delete(NAME),
    "create": lambda bucket: bucket.create(NAME, b"x"),
    "list": lambda bucket: bucket.list(""),
    "examine": lambda bucket: bucket.examine(),
}


class Liar:
    """Answers every request with the same bytes and hangs up; to whoever asks for a token it gives one."""

    def __init__(self) -> None:
        self.answer = b""
        self.endpoint = ""

    async def give(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            token = answer(200, b'{"access_token":"t","expires_in":3600}', "Content-Type: application/json")
            writer.write(token if head.startswith(b"POST /token") else self.answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


@contextmanager
def lying() -> Iterator[Liar]:
    """One that runs in a thread of its own."""
    liar, loop = Liar(), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(liar.give, "127.0.0.1", 0))
    liar.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        server.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    try:
        yield liar
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def answer(status: int, body: bytes, *headers: str) -> bytes:
    """A whole answer."""
    head = "\r\n".join([f"HTTP/1.1 {status} X", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""])
    return head.encode() + body


DATE = "Date: Sat, 21 Nov 2026 12:00:00 GMT"
_LIST = (
    b"<ListBucketResult><Contents><Key>some/key</Key><Size>3</Size><ETag>&quot;e&quot;</ETag>"
    b"<LastModified>2026-11-21T12:00:00Z</LastModified></Contents></ListBucketResult>"
)
_BLOBS = (
    b"<EnumerationResults><Blobs><Blob><Name>some/key</Name><Properties><Etag>e</Etag>"
    b"<Content-Length>3</Content-Length><Last-Modified>Sat, 21 Nov 2026 12:00:00 GMT</Last-Modified></Properties>"
    b"</Blob></Blobs><NextMarker/></EnumerationResults>"
)
_OBJECT = {
    "name": NAME,
    "size": "3",
    "generation": "1",
    "md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==",
    "updated": "2026-11-21T12:00:00Z",
}
_ERROR = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>m</Message></Error>"
_JSON = "Content-Type: application/json"
_RANGE = "Content-Range: bytes 0-2/3"
_KNOWN = ('ETag: "e"', "Last-Modified: Sat, 21 Nov 2026 12:00:00 GMT", DATE)
SAMPLES = {
    "s3": [
        answer(200, _LIST, "Content-Type: application/xml", DATE),
        answer(206, b"abc", *_KNOWN, _RANGE),
        answer(200, b"", *_KNOWN),
        answer(503, _ERROR, "Retry-After: 1"),
        answer(503, _ERROR, "Retry-After: Mon, 01 Jan 99999999999 00:00:00 GMT"),
        answer(404, b""),
    ],
    "azure": [
        answer(200, _BLOBS, "Content-Type: application/xml", DATE),
        answer(206, b"abc", *_KNOWN, _RANGE, "x-ms-blob-type: BlockBlob"),
        answer(201, b"", *_KNOWN),
        answer(404, b"", "x-ms-error-code: BlobNotFound"),
        answer(200, b"", "Date: Mon, 01 Jan 99999999999 00:00:00 GMT"),
    ],
    "gcs": [
        answer(200, json.dumps(_OBJECT).encode(), _JSON, DATE),
        answer(200, json.dumps({"items": [_OBJECT], "nextPageToken": "t"}).encode(), _JSON),
        answer(206, b"abc", *_KNOWN, _RANGE),
        answer(403, b'{"error":{"code":403,"message":"m","errors":[{"reason":"forbidden"}]}}', _JSON),
        answer(200, b"{}", _JSON, "Date: Mon, 01 Jan 99999999999 00:00:00 GMT"),
    ],
}


def bucket_of(kind: str, endpoint: str) -> Bucket:
    """A bucket at this endpoint, asked once."""
    if kind == "s3":
        return S3Bucket(
            replace(s3_settings(S3Server(endpoint)), attempts=1, create=False, read_timeout=1.0), name="away"
        )
    if kind == "azure":
        return AzureBucket(
            replace(azure_settings(AzureServer(endpoint)), attempts=1, create=False, read_timeout=1.0), name="away"
        )
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    document: dict[str, Any] = {
        "type": "service_account",
        "client_email": "hub@project.iam.gserviceaccount.com",
        "private_key": key.decode(),
        "token_uri": f"{endpoint}/token",
    }
    account = GcsServiceAccount(document=json.dumps(document), client_email=document["client_email"])
    return GcsBucket(
        GcsSettings(
            bucket="away", endpoint=endpoint, credentials=account, attempts=1, connect_timeout=1, read_timeout=1
        ),
        name="away",
    )


# The libraries leave the socket of an answer that makes no sense to the garbage collector, whenever that comes.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", SAMPLES)
def test_any_answer_of_a_provider_is_understood_or_refused(kind: str, report: Callable[..., None]) -> None:
    """A driver takes any bytes for an answer: no error but ours comes out, and none that cannot be told."""
    count = 0
    with lying() as liar, asyncio.Runner() as runner:
        bucket = bucket_of(kind, liar.endpoint)

        async def ask(call: str) -> None:
            try:
                async with asyncio.timeout(60):
                    await CALLS[call](bucket)
            except EntrepotError as error:
                check_tellable(error)

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(inputs(SAMPLES[kind]), st.sampled_from(sorted(CALLS)))
        def search(data: bytes, call: str) -> None:
            nonlocal count
            count += 1
            liar.answer = data
            runner.run(ask(call))

        try:
            search()
        finally:
            runner.run(bucket.aclose())
    report("fuzz", decoder=f"answers of {kind}", inputs=count, outcome="a value or our error")


def test_any_file_in_place_of_the_catalogue_is_used_or_refused(tmp_path: Path, report: Callable[..., None]) -> None:
    """A store whose catalogue was damaged opens and answers, or says that it is damaged; it never fails otherwise."""
    home = tmp_path / "store"
    setting = StoreSettings(reserve=0)
    content = tmp_path / "file"
    content.write_bytes(b"x" * 40_000)
    count = 0

    async def make() -> bytes:
        async with Store(home, setting) as store:
            await store.add(content, channel="hub/demo", lock=SchemaLock("demo"))
        [found] = [path for path in home.rglob("*") if path.is_file() and path.read_bytes()[:6] == b"SQLite"]
        places.append(found)
        return found.read_bytes()

    async def use() -> None:
        try:
            async with Store(home, setting) as store:
                await store.size()
                for held in await store.streams():
                    await store.entry(held.stream)
                    await store.verify(held.stream)
        except EntrepotError as error:
            check_tellable(error)

    places: list[Path] = []
    with asyncio.Runner() as runner:
        good = runner.run(make())

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(inputs([good]))
        def search(data: bytes) -> None:
            nonlocal count
            count += 1
            for path in places[0].parent.glob(f"{places[0].name}*"):
                path.unlink()
            places[0].write_bytes(data)
            runner.run(use())

        search()
    report("fuzz", decoder="catalogue of a store", inputs=count, outcome="a value or our error")
