"""What goes out to Google Cloud Storage: headers, URLs, who signs, and for how long."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import google.auth.iam
import pytest
from google.auth.compute_engine import _metadata
from tests.contract.buckets.requests import send
from tests.servers.gcs import GcsServer, run_gcs

from entrepot.core.errors import Denied, InvalidInput
from entrepot_hub.adapters.buckets.credentials import GcsAmbient, GcsServiceAccount
from entrepot_hub.adapters.buckets.gcs import MAX_SIGNED_BY_IAM, GcsBucket
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings

DATA = b"some bytes"
MD5 = hashlib.md5(DATA, usedforsecurity=False).digest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """The fake server behind the proxy."""
    with run_gcs(tmp_path_factory.mktemp("gcs")) as running:
        yield running


@pytest.fixture
def settings(server: GcsServer) -> GcsSettings:
    """A bucket on it."""
    return GcsSettings(bucket="signing", endpoint=server.endpoint, credentials=server.credentials, create=True)


@pytest.fixture
async def bucket(settings: GcsSettings) -> AsyncIterator[GcsBucket]:
    """The bucket, started."""
    async with GcsBucket(settings, name="signing") as bucket:
        yield bucket


def fields_of(url: str) -> dict[str, str]:
    """The query of a URL."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


async def test_the_headers_of_a_put(bucket: GcsBucket, server: GcsServer) -> None:
    """A PUT carries digest, range of lengths and create-only, all of them signed, and arrives with just these."""
    signed = await bucket.sign_put("headers/put", len(DATA), MD5, 300)
    assert signed.headers == {
        "Content-Length": "10",
        "Content-MD5": base64.b64encode(MD5).decode(),
        "x-goog-content-length-range": "10,10",
        "x-goog-if-generation-match": "0",
    }
    fields = fields_of(signed.url)
    assert fields["X-Goog-SignedHeaders"] == "content-md5;host;x-goog-content-length-range;x-goog-if-generation-match"
    assert fields["X-Goog-Expires"] == "300"
    assert (await send(signed, DATA)).accepted
    method, path, arrived = server.control.signed_requests[-1]
    assert (method, path) == ("PUT", "/signing/headers/put")
    assert arrived.keys() - {"Host"} == signed.headers.keys()


async def test_the_headers_of_a_get(bucket: GcsBucket, server: GcsServer) -> None:
    """A GET carries nothing, or with an etag a signed If-Match."""
    await bucket.create("headers/get", DATA)
    signed = await bucket.sign_get("headers/get", None, 300)
    assert signed.headers == {}
    assert fields_of(signed.url)["X-Goog-SignedHeaders"] == "host"
    signed = await bucket.sign_get("headers/get", MD5.hex(), 300)
    assert signed.headers == {"If-Match": f'"{MD5.hex()}"'}
    assert fields_of(signed.url)["X-Goog-SignedHeaders"] == "host;if-match"
    assert (await send(signed)).body == DATA
    assert not (await send(signed, headers={})).accepted
    assert server.control.signed_requests[-1][2].keys() - {"Host"} == signed.headers.keys()


async def test_nodes_are_sent_to_googles_host_without_an_endpoint(settings: GcsSettings) -> None:
    """Without an endpoint URLs lead to Google's; with a public one there, whatever the hub's own is."""
    assert isinstance(settings.credentials, GcsServiceAccount)
    document = changed(settings.credentials.document, token_uri="https://oauth2.googleapis.com/token")
    google = replace(settings, endpoint=None, credentials=replace(settings.credentials, document=document))
    bucket = GcsBucket(google, name="google")
    assert (await bucket.sign_get("k", None, 60)).url.startswith("https://storage.googleapis.com/signing/k?")
    await bucket.aclose()
    bucket = GcsBucket(replace(settings, public_endpoint="https://files.example.org/"), name="public")
    assert (await bucket.sign_get("k", None, 60)).url.startswith("https://files.example.org/signing/k?")
    await bucket.aclose()


async def test_an_object_without_an_md5_is_pinned_by_its_generation(bucket: GcsBucket, server: GcsServer) -> None:
    """The etag of an object whose ETag over HTTP is no MD5 names its generation, for every call that takes one."""
    await bucket.create("pinned", DATA)
    generation = fields_of((await bucket.sign_get("pinned", "generation-5", 60)).url)["generation"]
    assert generation == "5"
    server.control.without_md5.add("pinned")
    try:
        head = await bucket.head("pinned")
        assert head is not None
        assert (head.etag.startswith("generation-"), head.digest) == (True, None)
        assert [entry.etag for entry in (await bucket.list("pinned")).entries] == [head.etag]
        signed = await bucket.sign_get("pinned", head.etag, 60)
        assert (await send(signed)).body == DATA
        assert await bucket.read("pinned", 0, 4, head.etag) == DATA[:4]
        await bucket.put_tombstone("pinned", head.etag)
        assert (await send(signed)).status == 404
    finally:
        server.control.without_md5.clear()


async def test_a_large_create_is_create_only_too(bucket: GcsBucket) -> None:
    """What the library sends in several requests is written once, whole, and then left alone."""
    data = bytes(9 << 20)
    assert await bucket.create("large", data) is True
    before = await bucket.head("large")
    assert await bucket.create("large", b"+" + data) is False
    assert await bucket.head("large") == before
    assert before is not None
    assert before.length == len(data)


async def test_signing_with_a_key_asks_nobody(settings: GcsSettings) -> None:
    """With the key of a service account a URL is signed though nothing can be reached, before and after closing."""
    bucket = GcsBucket(replace(settings, endpoint="http://127.0.0.1:1"), name="alone")
    before = await bucket.sign_put("k", 10, MD5, 7 * 86400)
    await bucket.aclose()
    after = await bucket.sign_get("k", None, 60)
    assert (before.method, after.method) == ("PUT", "GET")
    assert before.expires_at - after.expires_at > 6 * 86400


@pytest.fixture
def cloud(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsServer:
    """This machine is one in Google's cloud: it has a metadata server, and the IAM service is at hand."""
    host = server.endpoint.removeprefix("http://")
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", host)
    monkeypatch.setenv("GCE_METADATA_IP", host)
    monkeypatch.setenv("GCE_METADATA_MTLS_MODE", "none")
    monkeypatch.setattr(
        google.auth.iam, "_IAM_SIGN_ENDPOINT", server.endpoint + "/v1/projects/-/serviceAccounts/{}:signBlob"
    )
    return server


async def test_a_workload_identity_signs_through_iam(cloud: GcsServer, settings: GcsSettings) -> None:
    """Without a key the machine's identity serves: its token opens the bucket, and the IAM service signs, for at most
    twelve hours."""
    async with GcsBucket(replace(settings, credentials=GcsAmbient()), name="ambient") as bucket:
        before = cloud.control.blobs_signed
        signed = await bucket.sign_put("ambient", len(DATA), MD5, 7 * 86400)
        assert (await send(signed, DATA)).accepted
        assert cloud.control.blobs_signed == before + 1
        assert fields_of(signed.url)["X-Goog-Expires"] == str(MAX_SIGNED_BY_IAM)
        assert await bucket.read("ambient", 0, 100) == DATA
        named = GcsBucket(replace(settings, credentials=GcsAmbient(client_email=cloud.client_email)), name="named")
        assert (await send(await named.sign_get("ambient", None, 60))).body == DATA
        await named.aclose()


async def test_an_identity_that_may_not_sign_is_told(cloud: GcsServer, settings: GcsSettings) -> None:
    """Without the right to sign a URL is refused with the role that is lacking."""
    cloud.control.denied.add("iam.serviceAccounts.signBlob")
    try:
        async with GcsBucket(replace(settings, credentials=GcsAmbient()), name="ambient") as bucket:
            with pytest.raises(Denied) as caught:
                await bucket.sign_get("k", None, 60)
    finally:
        cloud.control.denied.clear()
    assert "signBlob" in (caught.value.hint or "")


async def test_a_machine_without_an_identity_is_told(settings: GcsSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside Google's cloud, without a key, the setting is wrong, and the hint says what to give."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    bucket = GcsBucket(replace(settings, credentials=GcsAmbient()), name="nowhere")
    with pytest.raises(InvalidInput) as caught:
        await bucket.start()
    await bucket.aclose()
    assert caught.value.kind == "invalid-setting"


async def test_constructing_does_nothing(settings: GcsSettings) -> None:
    """A bucket that was only made has no thread, and closing it is enough."""
    names = {thread.name for thread in threading.enumerate()}
    bucket = GcsBucket(settings, name="idle")
    assert {thread.name for thread in threading.enumerate()} == names
    await bucket.aclose()


def changed(document: str, **change: Any) -> str:
    """The document with fields set, or left out (``None``)."""
    fields = json.loads(document) | change
    return json.dumps({name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    "change",
    [
        {"type": "authorized_user"},
        {"type": None},
        {"client_email": None},
        {"client_email": "someone-else@x.iam.gserviceaccount.com"},
        {"private_key": None},
        {"private_key": "hidden-key"},
        {"private_key": 5},
        {"token_uri": None},
        {"token_uri": "file:///etc/passwd"},
        {"token_uri": "https://oauth2.googleapis.com.example.org/token"},
        {"token_uri": "http://169.254.169.254/token"},
        {"token_uri": "http://127.0.0.1@example.org/token"},
    ],
)
def test_a_wrong_document_is_refused_unseen(server: GcsServer, settings: GcsSettings, change: dict[str, Any]) -> None:
    """A document that is no service account's is a wrong setting, and nothing of it shows."""
    account = GcsServiceAccount(document=changed(server.document, **change), client_email=server.client_email)
    refuse(settings, account, "hidden-key")


@pytest.mark.parametrize(
    ("endpoint", "token_uri", "accepted"),
    [
        (None, "https://oauth2.googleapis.com/token", True),
        (None, "https://accounts.google.com/o/oauth2/token", True),
        (None, "https://oauth2.googleapis.com/other", False),
        (None, "http://127.0.0.1:1/token", False),
        (None, "https://example.org/token", False),
        ("https://example.org", "https://example.org:8443/token", True),
        ("https://example.org", "https://oauth2.googleapis.com/token", True),
        ("https://example.org", "http://localhost/token", True),
        ("https://example.org", "http://[::1]:1/token", True),
        ("https://example.org", "http://10.0.0.1/token", False),
        ("https://example.org", "https://evil.example.org/token", False),
        ("https://example.org", "http://[/token", False),
    ],
)
def test_tokens_come_from_google_or_from_beside_the_endpoint(
    server: GcsServer, endpoint: str | None, token_uri: str, accepted: bool
) -> None:
    """A key file leads the hub to no other server than Google's, or that of the endpoint, or one on this machine if
    there is an endpoint."""
    account = replace(server.credentials, document=changed(server.document, token_uri=token_uri))
    if accepted:
        assert GcsSettings(bucket="tokens", endpoint=endpoint, credentials=account).endpoint == endpoint
        return
    with pytest.raises(InvalidInput) as caught:
        GcsSettings(bucket="tokens", endpoint=endpoint, credentials=account)
    assert caught.value.kind == "invalid-setting"


@pytest.mark.parametrize("document", ["", "hidden", "[]", '{"a":', "[" * 9999, "x" * 30_000])
def test_what_is_no_document_is_refused_unseen(settings: GcsSettings, document: str) -> None:
    """Neither nonsense nor nesting gets further than the settings."""
    refuse(settings, GcsServiceAccount(document=document, client_email="a@b"), "hidden")


def refuse(settings: GcsSettings, account: GcsServiceAccount, secret: str) -> None:
    """The settings refuse the account without showing the secret, in the error or in what it was raised from."""
    with pytest.raises(InvalidInput) as caught:
        replace(settings, credentials=account)
    assert caught.value.kind == "invalid-setting"
    assert secret not in f"{caught.value} {caught.value.hint} {caught.value.data} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


async def test_a_broken_key_is_told_when_it_is_used(server: GcsServer, settings: GcsSettings) -> None:
    """A private key that cannot be read is a wrong setting, and nothing of it shows."""
    broken = "-----BEGIN PRIVATE KEY-----\nhiddenhidden\n-----END PRIVATE KEY-----\n"
    account = GcsServiceAccount(document=changed(server.document, private_key=broken), client_email=server.client_email)
    bucket = GcsBucket(replace(settings, credentials=account), name="broken")
    with pytest.raises(InvalidInput) as caught:
        await bucket.sign_get("k", None, 60)
    await bucket.aclose()
    assert "hidden" not in f"{caught.value} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    "change",
    [
        {"bucket": "Has-Capitals"},
        {"bucket": "a/b"},
        {"bucket": ""},
        {"endpoint": "ftp://x"},
        {"endpoint": "https://host/path"},
        {"endpoint": "https://user@host"},
        {"public_endpoint": "https://host?x=y"},
        {"project": "a b"},
        {"location": "eu/1"},
        {"storage_class": ""},
        {"prefix": "ä"},
        {"attempts": 0},
        {"read_timeout": 0.0},
    ],
)
def test_settings_out_of_bounds_are_refused(settings: GcsSettings, change: dict[str, Any]) -> None:
    """Names, endpoints and numbers that cannot be are refused before anything is done."""
    with pytest.raises(InvalidInput):
        replace(settings, **change)


async def test_no_secret_shows(settings: GcsSettings, server: GcsServer) -> None:
    """Neither settings, nor buckets, nor signed requests show a secret in their repr."""
    bucket = GcsBucket(settings, name="n")
    signed = await bucket.sign_get("a", "e", 60)
    await bucket.aclose()
    secret = json.loads(server.document)["private_key"]
    for thing in (settings, settings.credentials, bucket, signed):
        assert "PRIVATE" not in repr(thing)
        assert "Signature" not in repr(thing)
        assert secret not in repr(thing)
