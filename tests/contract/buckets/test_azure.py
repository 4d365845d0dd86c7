"""What is particular to Azure: what the holder of a create-only URL can still do, an application's keys, the facts."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import ipaddress
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core.credentials import AccessToken
from azure.storage.blob import ContainerClient, CorsRule, RetentionPolicy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.contract.buckets.conftest import azure_settings
from tests.contract.buckets.requests import digest_of, send
from tests.servers.azurite import AzureServer, run_azurite

from entrepot.core.errors import Corrupt, InvalidInput, RetryLater
from entrepot_hub.adapters.buckets import Bucket
from entrepot_hub.adapters.buckets.azure import MAX_PUT, AzureBucket
from entrepot_hub.adapters.buckets.azure_account import KEY_LEFT, KEY_LIFE
from entrepot_hub.adapters.buckets.azure_settings import AzureSettings
from entrepot_hub.adapters.buckets.credentials import AzureClient
from entrepot_hub.adapters.buckets.probe import send as try_once

DATA = bytes(i * 7 % 251 for i in range(5000))
TENANT = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def kind() -> str:
    """This file is about one kind of bucket."""
    return "azurite"


def names(container: ContainerClient, prefix: str) -> list[tuple[str, bool]]:
    """What lies below the prefix, and whether it is a snapshot, by an independent listing."""
    found = container.list_blobs(name_starts_with=prefix, include=["snapshots"])
    return sorted((blob.name.removeprefix(f"{prefix}/"), blob.snapshot is not None) for blob in found)


@pytest.fixture
def container(azurite: AzureServer) -> Iterator[ContainerClient]:
    """The library's own client of the suite's container."""
    credential = {"account_name": azurite.account, "account_key": azurite.key}
    with ContainerClient(azurite.endpoint, "contract", credential=credential) as client:
        yield client


@pytest.mark.parametrize("way", ["delete", "tombstone"])
async def test_snapshots_by_the_uploader_do_not_stay(
    bucket: Bucket, base: str, container: ContainerClient, way: str
) -> None:
    """A create-only URL can take a snapshot, which would keep the bytes: it leaves along with the object."""
    signed = await bucket.sign_put(f"{base}/a", len(DATA), digest_of(DATA), 300)
    assert (await send(signed, DATA)).accepted
    snapshot = signed.url.replace("?", "?comp=snapshot&")
    assert (await send(signed, url=snapshot, headers={"Content-Length": "0"})).accepted
    assert await asyncio.to_thread(names, container, base) == [("a", False), ("a", True)]
    if way == "delete":
        assert await bucket.delete(f"{base}/a")
        assert await asyncio.to_thread(names, container, base) == []
    else:
        tombstone = await bucket.put_tombstone(f"{base}/a")
        assert await asyncio.to_thread(names, container, base) == [("a", False)]
        # A snapshot of the tombstone leaves when the tombstone is put again.
        assert (await send(signed, url=snapshot, headers={"Content-Length": "0"})).accepted
        assert await bucket.put_tombstone(f"{base}/a") == tombstone
        assert await asyncio.to_thread(names, container, base) == [("a", False)]


@pytest.mark.parametrize("with_etag", [True, False])
async def test_what_the_uploader_archived_is_corrupt_and_can_go(bucket: Bucket, base: str, with_etag: bool) -> None:
    """An uploader may name the archive tier: the hub's look says so, and a tombstone takes its place."""
    key = f"{base}/a"
    signed = await bucket.sign_put(key, len(DATA), digest_of(DATA), 300)
    assert (await send(signed, DATA, headers={**signed.headers, "x-ms-access-tier": "Archive"})).accepted
    head = await bucket.head(key)
    assert head is not None
    assert head.length == len(DATA)
    with pytest.raises(Corrupt) as caught:
        await bucket.read(key, 0, 10)
    assert caught.value.kind == "corrupt-object"
    assert (await bucket.put_tombstone(key, head.etag if with_etag else None)).length == 0
    assert not (await send(signed, DATA)).accepted


async def test_blobs_of_other_types_are_objects_too(bucket: Bucket, base: str) -> None:
    """A create-only URL can make a page blob of any length: it shows at its length and can be replaced and removed."""
    key = f"{base}/a"
    signed = await bucket.sign_put(key, len(DATA), digest_of(DATA), 300)
    page = {"Content-Length": "0", "x-ms-blob-type": "PageBlob", "x-ms-blob-content-length": "1048576"}
    assert (await send(signed, headers=page)).accepted
    head = await bucket.head(key)
    assert head is not None
    assert head.length == 1 << 20
    assert (await bucket.put_tombstone(key, head.etag)).length == 0
    assert await bucket.delete(key)


async def test_an_upload_that_is_half_closed_leaves_nothing(bucket: Bucket, base: str) -> None:
    """An upload whose sender ends after fewer bytes than it announced does not show."""
    signed = await bucket.sign_put(f"{base}/a", len(DATA), digest_of(DATA), 300)
    assert not (await try_once(signed, DATA[:-1])).accepted
    assert await bucket.head(f"{base}/a") is None
    assert (await send(signed, DATA)).accepted


async def test_a_digest_that_the_uploader_claims_is_not_shown(
    bucket: Bucket, base: str, container: ContainerClient
) -> None:
    """The MD5 that Azure shows of a page blob is the uploader's invention, so the driver shows no digest at all."""
    key, invented = f"{base}/a", bytes(16)
    signed = await bucket.sign_put(key, 512, digest_of(bytes(512)), 300)
    page = {"Content-Length": "0", "x-ms-blob-type": "PageBlob", "x-ms-blob-content-length": "512"}
    claimed = {"x-ms-blob-content-md5": base64.b64encode(invented).decode()}
    assert (await send(signed, headers=page | claimed)).accepted
    found = await asyncio.to_thread(container.get_blob_client(key).get_blob_properties)
    assert bytes(found.content_settings.content_md5 or b"") == invented
    head = await bucket.head(key)
    assert head is not None
    assert (head.length, head.digest) == (512, None)


async def test_a_page_begins_where_it_is_asked_to(bucket: Bucket, base: str) -> None:
    """A page far behind the beginning is right whether or not the server begins there; other names do not show."""
    keys = [f"{base}/{number:03}" for number in range(40)]
    await asyncio.gather(*(bucket.create(key, b"x") for key in keys))
    listing = await bucket.list(base, keys[36], 2)
    assert ([entry.key for entry in listing.entries], listing.next) == (keys[37:39], keys[38])
    listing = await bucket.list(base, keys[38], 2)
    assert ([entry.key for entry in listing.entries], listing.next) == (keys[39:], None)
    assert (await bucket.list(base, keys[39])).entries == ()


async def test_blobs_that_are_no_keys_do_not_show(bucket: Bucket, base: str, container: ContainerClient) -> None:
    """Somebody else's blobs with odd names are passed over, on every page."""
    for name in ("a b", "b", "ü", "~"):
        await asyncio.to_thread(container.upload_blob, f"{base}/{name}", b"x")
    found, after = [], None
    while True:
        listing = await bucket.list(base, after, 1)
        found += [entry.key for entry in listing.entries]
        if (after := listing.next) is None:
            break
    assert found == [f"{base}/b", f"{base}/~"]


async def test_an_object_is_at_most_what_one_put_takes(bucket: Bucket, base: str) -> None:
    """No URL is signed for more bytes than Azure takes in one PUT."""
    await bucket.sign_put(f"{base}/a", MAX_PUT, digest_of(b""), 60)
    with pytest.raises(InvalidInput):
        await bucket.sign_put(f"{base}/a", MAX_PUT + 1, digest_of(b""), 60)


async def test_the_facts_are_what_was_set(azurite: AzureServer) -> None:
    """Soft delete, CORS and public access show as they are set; what the service does not tell is named with why."""
    async with AzureBucket(azure_settings(azurite, container="facts"), name="facts") as bucket:
        before = await bucket.examine()
        assert (before.versioning, "versioning" in before.unknown) == (None, True)
        await bucket.probe(expiry=False)
        facts = await bucket.examine()
        assert (facts.soft_delete, facts.cors, facts.public_read, facts.public_write) == (0.0, False, False, False)
        assert (facts.versioning, facts.object_lock) == (False, False)
        assert facts.storage_class is not None
        assert facts.clock_skew is not None
        assert abs(facts.clock_skew) < 60
        assert set(facts.unknown) == {"region", "lifecycle"}

        service = bucket._account.service()
        try:
            await asyncio.to_thread(
                service.set_service_properties,
                delete_retention_policy=RetentionPolicy(enabled=True, days=7),
                cors=[CorsRule(["https://example.org"], ["GET", "HEAD"])],
            )
            await asyncio.to_thread(
                service.get_container_client("facts").set_container_access_policy, {}, public_access="blob"
            )
            facts = await bucket.examine()
        finally:
            await asyncio.to_thread(
                service.set_service_properties, delete_retention_policy=RetentionPolicy(enabled=False), cors=[]
            )
        assert (facts.soft_delete, facts.cors, facts.public_read) == (7 * 86400.0, True, True)


# --- an application's keys -------------------------------------------------------------------------------


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Token:
    """Gets tokens as Entra ID gives them, but for the signature, which Azurite does not look at."""

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        assert scopes == ("https://storage.azure.com/.default",)
        now = int(dt.datetime.now(dt.UTC).timestamp())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": f"https://sts.windows.net/{TENANT}/",
            "tid": TENANT,
            "oid": TENANT,
            "iat": now,
            "nbf": now - 60,
            "exp": now + 3600,
        }
        parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)] + [b"unsigned"]
        return AccessToken(".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), now + 3600)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cert.pem`` and ``key.pem`` for loopback, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "azurite")])
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))
    return folder


def ends(url: str) -> tuple[float, float]:
    """When the signature and the key that made it end, in unix seconds."""
    query = parse_qs(urlsplit(url).query)
    return tuple(dt.datetime.fromisoformat(query[name][0]).timestamp() for name in ("se", "ske"))  # type: ignore[return-value]


@pytest.mark.blocking
async def test_an_application_signs_with_a_key_that_is_renewed_early(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One key is fetched for all, renewed while the old one lives and used until it ends when it cannot be renewed; no
    URL outlives it; and the application may do all that the driver does."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "cert.pem"))
    oauth = ("--oauth", "basic", "--cert", certificate / "cert.pem", "--key", certificate / "key.pem")
    clock = Clock(float(int(dt.datetime.now(dt.UTC).timestamp())))
    began, fetched = clock.now, []
    with run_azurite(tmp_path, *oauth, scheme="https") as server:
        settings = AzureSettings(
            container="contract",
            endpoint=server.endpoint,
            credentials=AzureClient(account=server.account, tenant=TENANT, client="c", secret="hidden"),
            create=True,
            attempts=1,
        )
        bucket = AzureBucket(settings, name="app", token=Token(), clock=clock)
        fetch = bucket._account._fetched
        monkeypatch.setattr(bucket._account, "_fetched", lambda now: fetched.append(now) or fetch(now))  # type: ignore[func-returns-value]

        signed = await asyncio.gather(*(bucket.sign_get("a", None, 3600) for _ in range(20)))
        assert len(fetched) == 1
        assert {ends(one.url) for one in signed} == {(began + 3600, began + KEY_LIFE)}
        assert {one.expires_at for one in signed} == {began + 3600}
        assert parse_qs(urlsplit(signed[0].url).query)["sp"] == ["r"]
        await bucket.start()
        assert await bucket.create("a", DATA)
        assert await bucket.read("a", 10, 10) == DATA[10:20]
        assert [entry.key for entry in (await bucket.list("")).entries] == ["a"]
        assert (await bucket.put_tombstone("a")).length == 0
        assert await bucket.delete("a")
        assert len(fetched) == 1
        long = await bucket.sign_put("a", 1, digest_of(b"x"), 7 * 86400)
        assert ends(long.url) == (began + KEY_LIFE, began + KEY_LIFE)
        assert long.expires_at == began + KEY_LIFE

        clock.now = renewed = began + KEY_LIFE - KEY_LEFT + 1
        await asyncio.gather(*(bucket.sign_get("a", None, 60) for _ in range(20)))
        assert len(fetched) == 2
        assert ends((await bucket.sign_get("a", None, 60)).url) == (renewed + 60, renewed + KEY_LIFE)

    clock.now = renewed + KEY_LIFE - 100
    for _ in range(3):
        assert ends((await bucket.sign_get("a", None, 3600)).url) == (renewed + KEY_LIFE, renewed + KEY_LIFE)
    assert len(fetched) == 3  # tried once, then not again for a while
    clock.now += 61
    await bucket.sign_get("a", None, 3600)
    assert len(fetched) == 4
    clock.now = renewed + KEY_LIFE
    with pytest.raises(RetryLater):
        await bucket.sign_get("a", None, 3600)
    await bucket.aclose()


async def test_urls_have_the_name_that_nodes_use(azurite: AzureServer) -> None:
    """URLs are signed for the public endpoint, and only for https where it is https; the hub uses its own."""
    settings = replace(azure_settings(azurite), public_endpoint="https://blobs.example.org/entrepottests/")
    async with AzureBucket(settings, name="public") as bucket:
        signed = await bucket.sign_get("a", None, 60)
        assert signed.url.startswith("https://blobs.example.org/entrepottests/contract/a?")
        assert parse_qs(urlsplit(signed.url).query)["spr"] == ["https"]
        assert (await bucket.probe(expiry=False)).create_only
