"""The proxy in front of fake-gcs-server is strict: it takes what Google documents and nothing else."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from aiohttp.test_utils import make_mocked_request
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from tests.contract.buckets.requests import make
from tests.servers.gcs import GcsServer, run_gcs
from tests.servers.gcs_proxy import EMAIL, Refused, verify

from entrepot_hub.adapters.buckets.gcs import GcsBucket
from entrepot_hub.adapters.buckets.gcs_settings import DOCUMENTED, GcsSettings

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC).timestamp()
PATH = "/bucket/lock/stream/00000000"
MD5 = base64.b64encode(hashlib.md5(b"x").digest()).decode()
HEADERS = {
    "content-md5": MD5,
    "host": "storage.googleapis.com",
    "x-goog-content-length-range": "1,1",
    "x-goog-if-generation-match": "0",
}


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    """The service account's key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """The fake server behind the proxy."""
    with run_gcs(tmp_path_factory.mktemp("gcs")) as running:
        yield running


def sign(
    key: rsa.RSAPrivateKey,
    *,
    method: str = "PUT",
    path: str = PATH,
    headers: dict[str, str] = HEADERS,
    at: float = NOW,
    expires: str = "60",
    email: str = EMAIL,
    names: str | None = None,
) -> str:
    """A signed path and query, put together by hand from Google's page on canonical requests."""
    date = datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{date[:8]}/auto/storage/goog4_request"
    names = ";".join(sorted(headers)) if names is None else names
    fields = [
        ("X-Goog-Algorithm", "GOOG4-RSA-SHA256"),
        ("X-Goog-Credential", f"{email}/{scope}"),
        ("X-Goog-Date", date),
        ("X-Goog-Expires", expires),
        ("X-Goog-SignedHeaders", names),
    ]
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields)
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
    message = f"GOOG4-RSA-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = key.sign(message.encode(), padding.PKCS1v15(), hashes.SHA256()).hex()
    return f"{path}?{query}&X-Goog-Signature={signature}"


def judged(
    key: rsa.RSAPrivateKey, target: str, *, method: str = "PUT", headers: dict[str, str] = HEADERS, now: float = NOW + 1
) -> str | None:
    """The code with which the proxy refuses the request, ``None`` if it takes it."""
    request = make_mocked_request(method, target, headers=headers)
    try:
        verify(request, key.public_key(), now)
    except Refused as refused:
        return refused.code
    return None


async def test_a_good_request_is_taken(key: rsa.RSAPrivateKey) -> None:
    """What was signed and sent as signed is taken, until the second in which it expires."""
    target = sign(key)
    assert judged(key, target) is None
    assert judged(key, target, now=NOW + 59) is None
    assert judged(key, target, now=NOW + 60) == "ExpiredToken"


async def test_another_signature_is_refused(key: rsa.RSAPrivateKey) -> None:
    """Another key, another method, another path and a changed signature do not match."""
    target = sign(key)
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert judged(stranger, target) == "SignatureDoesNotMatch"
    assert judged(key, target, method="GET") == "SignatureDoesNotMatch"
    assert judged(key, target.replace("00000000?", "00000001?")) == "SignatureDoesNotMatch"
    assert judged(key, target[:-1] + ("0" if target[-1] != "0" else "1")) == "SignatureDoesNotMatch"
    assert judged(key, target[:-1]) == "SignatureDoesNotMatch"
    assert judged(key, target + "&generation=5") == "SignatureDoesNotMatch"
    assert judged(key, target + "&X-Goog-Expires=60") == "InvalidArgument"


@pytest.mark.parametrize("name", sorted(set(HEADERS) - {"host"}))
async def test_a_signed_header_is_neither_dropped_nor_changed(key: rsa.RSAPrivateKey, name: str) -> None:
    """A signed header has to be there with the value that was signed."""
    target = sign(key)
    assert judged(key, target, headers={k: v for k, v in HEADERS.items() if k != name}) == "MalformedSecurityHeader"
    assert judged(key, target, headers=HEADERS | {name: "2,2"}) == "SignatureDoesNotMatch"


async def test_every_header_of_googles_has_to_be_signed(key: rsa.RSAPrivateKey) -> None:
    """A header that means something to Google is refused unless it was signed; others may be added."""
    target = sign(key)
    assert judged(key, target, headers=HEADERS | {"x-goog-acl": "public-read"}) == "MalformedSecurityHeader"
    assert judged(key, target, headers=HEADERS | {"x-amz-acl": "public-read"}) == "MalformedSecurityHeader"
    assert judged(key, target, headers=HEADERS | {"range": "bytes=0-1", "content-type": "a/b"}) is None


async def test_the_host_is_signed(key: rsa.RSAPrivateKey) -> None:
    """A URL serves the host for which it was signed, and one without a signed host serves none."""
    assert judged(key, sign(key), headers=HEADERS | {"host": "elsewhere.example"}) == "SignatureDoesNotMatch"
    without = {name: value for name, value in HEADERS.items() if name != "host"}
    assert judged(key, sign(key, headers=without)) == "MalformedSecurityHeader"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"at": NOW + 3600}, "AccessDenied"),
        ({"expires": "604801"}, "AuthorizationQueryParametersError"),
        ({"expires": "0"}, "AuthorizationQueryParametersError"),
        ({"expires": "-1"}, "InvalidArgument"),
        ({"email": "another@entrepot-tests.iam.gserviceaccount.com"}, "InvalidArgument"),
        (
            {"names": "host;content-md5;x-goog-content-length-range;x-goog-if-generation-match"},
            "MalformedSecurityHeader",
        ),
    ],
)
async def test_odd_parameters_are_refused(key: rsa.RSAPrivateKey, change: dict, code: str) -> None:
    """Dates ahead, lives out of bounds, other accounts and unsorted headers are refused though well signed."""
    assert judged(key, sign(key, **change)) == code


async def test_without_a_signature_or_a_token_nothing_is_open(server: GcsServer) -> None:
    """Neither API answers somebody who shows nothing, or a token that was not given out."""
    for method in ("GET", "PUT", "DELETE", "HEAD"):
        assert make(method, f"{server.endpoint}/bucket/key?x=y", {"Content-Length": "0"}).status == 403
    for headers in ({}, {"Authorization": "Bearer made-up"}):
        assert make("GET", f"{server.endpoint}/storage/v1/b/bucket?x=y", headers).status == 401


@pytest.mark.parametrize(
    ("change", "body", "status", "code"),
    [
        ({}, b"x", 200, b""),
        ({}, b"y", 400, b"BadDigest"),
        ({"x-goog-content-length-range": "2,9"}, b"x", 400, b"EntityTooSmall"),
        ({"x-goog-content-length-range": "0,0"}, b"x", 400, b"EntityTooLarge"),
        ({"x-goog-content-length-range": "1"}, b"x", 400, b"InvalidArgument"),
        ({"content-md5": "?"}, b"x", 400, b"InvalidDigest"),
        ({"x-goog-if-generation-match": "7"}, b"x", 412, b"PreconditionFailed"),
    ],
)
async def test_what_headers_say_is_enforced(
    server: GcsServer, change: dict[str, str], body: bytes, status: int, code: bytes
) -> None:
    """Well-signed uploads are taken only as their headers say, and what is refused leaves nothing."""
    control, host = server.control, server.endpoint.removeprefix("http://")
    headers = HEADERS | {"host": host} | change
    path = f"/strict/{hashlib.sha256(repr((change, body)).encode()).hexdigest()}"
    make_bucket(server, "strict")
    target = sign(server.key, path=path, headers=headers, at=time.time())
    sent = {name: value for name, value in headers.items() if name != "host"} | {"Content-Length": str(len(body))}
    reply = make("PUT", server.endpoint + target, sent, body)
    assert (reply.status, code in reply.body) == (status, True)
    get = sign(server.key, method="GET", path=path, headers={"host": host}, at=time.time())
    assert make("GET", server.endpoint + get, {}).status == (200 if status == 200 else 404)
    assert control.signed_requests[-1][:2] == ("GET", path)


async def test_without_the_proxy_the_probe_finds_what_is_not_bound(server: GcsServer) -> None:
    """On the fake server alone, which checks no signature, the probe takes back what Google documents."""
    settings = GcsSettings(bucket="bare", endpoint=server.bare, credentials=server.credentials, create=True)
    async with GcsBucket(settings, name="bare") as bucket:
        assert bucket.binds == DOCUMENTED
        binds = await bucket.probe("x", expiry=False)
        assert bucket.binds == binds
        listed = await bucket.list("")
    assert not any((binds.length, binds.digest, binds.create_only, binds.get_if, binds.delete_if))
    assert binds.head_digest
    assert listed.entries == ()


def make_bucket(server: GcsServer, name: str) -> None:
    """Make a bucket on the server, or leave it as it is."""
    server.control.valid_tokens["of-the-test"] = time.time() + 60
    body = f'{{"name":"{name}"}}'.encode()
    headers = {
        "Authorization": "Bearer of-the-test",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    make("POST", f"{server.endpoint}/storage/v1/b?project=p", headers, body)
