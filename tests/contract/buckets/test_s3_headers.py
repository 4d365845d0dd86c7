"""What really goes out over https, header by header, for each profile: by the hub, and by a node on a signed URL."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import http.client
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.servers.careless import BUCKET, Asked, run_careless

from entrepot.core.errors import RetryLater
from entrepot_hub.adapters.buckets import SignedRequest
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.s3 import S3Bucket
from entrepot_hub.adapters.buckets.s3_profiles import ProfileName
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

DATA = bytes(i * 7 % 251 for i in range(5000))
MD5 = hashlib.md5(DATA, usedforsecurity=False).digest()
SHA256 = hashlib.sha256(DATA).digest()


@dataclass(frozen=True)
class Case:
    """A profile as an owner would use it, the host that has to be asked, and what stands before the key."""

    profile: ProfileName
    region: str
    host: str
    before: str
    endpoint: str | None = None


CASES = [
    Case("aws", "eu-central-1", f"{BUCKET}.s3.eu-central-1.amazonaws.com", "/"),
    Case("aws", "cn-north-1", f"{BUCKET}.s3.cn-north-1.amazonaws.com.cn", "/"),
    Case("wasabi", "eu-central-2", f"{BUCKET}.s3.eu-central-2.wasabisys.com", "/"),
    Case("gcs", "auto", "storage.googleapis.com", f"/{BUCKET}/"),
    Case("r2", "auto", "acc.r2.cloudflarestorage.com", f"/{BUCKET}/", "https://acc.r2.cloudflarestorage.com"),
    Case("minio", "us-east-1", "minio.example.org", f"/{BUCKET}/", "https://minio.example.org"),
    Case("generic", "garage", "s3.example.org", f"/{BUCKET}/", "https://s3.example.org"),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A file with an authority of our own, and a server's side of TLS with a certificate for every case's host."""
    folder = tmp_path_factory.mktemp("tls")
    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "server")]

    def built(i: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(names[i])
            .issuer_name(names[0])
            .public_key(keys[i].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=i == 0, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[i].public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )

    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"], False
    )
    only = x509.KeyUsage(digital_signature=True, key_cert_sign=True, encipher_only=False, decipher_only=False, **usage)
    root = built(0).add_extension(only, critical=True).sign(keys[0], hashes.SHA256())
    hosts = x509.SubjectAlternativeName([x509.DNSName(case.host) for case in CASES])
    leaf = built(1).add_extension(hosts, critical=False).sign(keys[0], hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(root.public_bytes(pem))
    (folder / "server.pem").write_bytes(
        keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return folder / "ca.pem", context


@pytest.fixture(params=CASES, ids=lambda case: f"{case.profile}-{case.region}")
def case(request: pytest.FixtureRequest) -> Case:
    """Each profile in turn."""
    found: Case = request.param
    return found


@pytest.fixture
async def bucket(
    case: Case, authority: tuple[Path, ssl.SSLContext], asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Bucket]:
    """A bucket of that profile; every name on the internet leads to a server of ours that writes everything down."""
    ca, tls = authority
    with run_careless(asked, tls=tls) as server:
        port = urlsplit(server.endpoint).port

        def lead_here(host: str, _port: Any, *args: Any, **kwargs: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", lead_here)
        settings = S3Settings(
            bucket=BUCKET,
            region=case.region,
            endpoint=case.endpoint,
            profile=case.profile,
            credentials=S3Credentials(access_key="AKIATEST", secret_key="s"),
            prefix="p",
            ca=ca,
        )
        async with S3Bucket(settings, name="headers") as bucket:
            yield bucket


@pytest.fixture
def asked() -> list[Asked]:
    """What the server was asked."""
    return []


def put(signed: SignedRequest, data: bytes, ca: Path) -> int:
    """A PUT as a node makes it: the signed headers and no others but Host."""
    parts = urlsplit(signed.url)
    trusted = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection(parts.netloc, timeout=30, context=trusted)
    connection.putrequest("PUT", f"{parts.path}?{parts.query}", skip_accept_encoding=True)
    for name, value in signed.headers.items():
        connection.putheader(name, value)
    connection.endheaders(data)
    status = connection.getresponse().status
    connection.close()
    return status


def nothing_odd(request: Asked, case: Case) -> None:
    """What R2, Google and others stumble over is not there, and the request went to the right host."""
    names = set(request.headers) | {name.lower() for name in parse_qs(urlsplit(request.path).query)}
    assert request.headers["host"] == case.host
    assert (
        not {"x-amz-trailer", "x-amz-sdk-checksum-algorithm", "transfer-encoding", "x-amz-decoded-content-length"}
        & names
    )
    assert not [name for name in names if re.match(r"x-amz-checksum-crc|x-amz-checksum-sha1", name)]
    assert "expect" not in request.headers  # not everybody answers it, and boto3 then waits
    assert "aws-chunked" not in request.headers.get("content-encoding", "")
    assert "STREAMING" not in request.headers.get("x-amz-content-sha256", "")
    amazons, googles = ([name for name in names if name.startswith(start)] for start in ("x-amz-", "x-goog-"))
    assert not (amazons and googles)


async def test_what_the_hub_sends(bucket: S3Bucket, case: Case, asked: list[Asked]) -> None:
    """The hub's own calls are signed by Version 4 for the region and say nothing that a provider may refuse."""
    assert await bucket.create("p/.entrepot", b"mine")
    tombstone = await bucket.put_tombstone("p/gone")
    assert (await bucket.head("p/gone")) is not None
    assert len((await bucket.list("p/")).entries) == 2
    assert await bucket.read("p/.entrepot", 0, 100) == b"mine"
    assert await bucket.delete("p/gone", tombstone.etag)
    assert {request.method for request in asked} == {"GET", "HEAD", "PUT", "DELETE"}
    for request in asked:
        nothing_odd(request, case)
        signature = request.headers["authorization"]
        scope = rf"Credential=AKIATEST/\d{{8}}/{case.region}/s3/aws4_request,"
        assert re.match(rf"AWS4-HMAC-SHA256 {scope} SignedHeaders=[a-z0-9;-]+, Signature=[0-9a-f]{{64}}$", signature)
        covered = signature.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        assert {"host", "x-amz-date", "x-amz-content-sha256"} <= set(covered)
        assert "accept-encoding" not in covered  # Google's front end changes it
        body = hashlib.sha256(request.body).hexdigest()
        # Over TLS the body need not be signed; what is said of it must be true.
        assert request.headers["x-amz-content-sha256"] in {body, "UNSIGNED-PAYLOAD"}
    created, emptied = (request for request in asked if request.method == "PUT")
    assert urlsplit(created.path).path == f"{case.before}p/.entrepot"
    assert created.headers.get("if-none-match") == (None if case.profile == "gcs" else "*")
    assert (created.body, emptied.body) == (b"mine", b"")
    looks = [request for request in asked if request.method == "HEAD"]
    mode = "ENABLED" if bucket.digest_kind == "sha256" else None
    assert all(request.headers.get("x-amz-checksum-mode") == mode for request in looks)


async def test_what_a_node_sends(
    bucket: S3Bucket, case: Case, asked: list[Asked], authority: tuple[Path, ssl.SSLContext]
) -> None:
    """A signed PUT has exactly the headers that the profile's provider can be held to, each of them signed."""
    asked.clear()
    digest = SHA256 if bucket.digest_kind == "sha256" else MD5
    signed = await bucket.sign_put("p/object", len(DATA), digest, 300)
    assert await asyncio.to_thread(put, signed, DATA, authority[0]) == 200
    (request,) = asked
    nothing_odd(request, case)
    parts = urlsplit(request.path)
    assert parts.path == f"{case.before}p/object"
    named = (
        {"x-amz-checksum-sha256": b64encode(SHA256).decode()}
        if case.profile in {"aws", "minio", "generic"}
        else {"content-md5": b64encode(MD5).decode()}
    )
    condition = {} if case.profile == "gcs" else {"if-none-match": "*"}
    assert request.headers == {"host": case.host, "content-length": str(len(DATA)), **condition, **named}
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert query["X-Amz-SignedHeaders"].split(";") == sorted(request.headers)
    assert re.fullmatch(rf"AKIATEST/\d{{8}}/{case.region}/s3/aws4_request", query["X-Amz-Credential"])
    assert set(query) == {
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-Signature",
        "X-Amz-SignedHeaders",
    }
    assert (query["X-Amz-Algorithm"], query["X-Amz-Expires"]) == ("AWS4-HMAC-SHA256", "300")


async def test_an_authority_that_is_not_named_is_not_trusted(
    authority: tuple[Path, ssl.SSLContext], asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the file a private authority is refused, once, with a hint."""
    with run_careless(asked, tls=authority[1]) as server:
        settings = S3Settings(
            bucket=BUCKET,
            region="x",
            endpoint=server.endpoint,
            credentials=S3Credentials(access_key="a", secret_key="s"),
        )
        bucket = S3Bucket(settings, name="untrusted")
        with pytest.raises(RetryLater) as caught:
            await bucket.head("k")
        await bucket.aclose()
    assert caught.value.hint is not None
    assert "authority" in caught.value.hint
    assert asked == []
