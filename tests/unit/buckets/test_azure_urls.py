"""What URLs an account's key signs, compared with what Azure documents of service signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest

from entrepot_hub.adapters.buckets import SignedRequest
from entrepot_hub.adapters.buckets.azure import AzureBucket
from entrepot_hub.adapters.buckets.azure_settings import AzureSettings
from entrepot_hub.adapters.buckets.credentials import AzureKey

SECRET = b"a key of the tests"
SETTINGS = AzureSettings(
    container="cache", credentials=AzureKey(account="acme01", key=base64.b64encode(SECRET).decode())
)
NOW = 1_800_000_000.75


async def signed(settings: AzureSettings, method: str, expires: int = 60) -> SignedRequest:
    """A URL of this method for the blob ``a/b~c``."""
    bucket = AzureBucket(settings, name="n", clock=lambda: NOW)
    try:
        if method == "PUT":
            return await bucket.sign_put("a/b~c", 7, bytes(32), expires)
        return await bucket.sign_get("a/b~c", "0x8DC", expires)
    finally:
        await bucket.aclose()


def fields(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query, strict_parsing=True).items()}


@pytest.mark.parametrize(("method", "permission"), [("PUT", "c"), ("GET", "r")])
async def test_a_url_is_signed_as_documented(method: str, permission: str) -> None:
    """The signature is the HMAC over permission, end, blob, protocol, version and kind of resource, and nothing else
    is allowed by it."""
    request = await signed(SETTINGS, method)
    assert request.url.startswith("https://acme01.blob.core.windows.net/cache/a/b~c?")
    found = fields(request.url)
    signature = found.pop("sig")
    version = found.pop("sv")
    assert found == {"sp": permission, "se": "2027-01-15T08:01:00Z", "sr": "b", "spr": "https"}
    text = "\n".join([
        permission, "", found["se"], "/blob/acme01/cache/a/b~c", "", "", "https", version, "b", "", "", "", "", "", "",
        "",
    ])  # fmt: skip
    assert base64.b64decode(signature) == hmac.digest(SECRET, text.encode(), hashlib.sha256)


async def test_a_url_lives_no_longer_than_it_says() -> None:
    """The end in the URL has whole seconds and is the stated one, at most the asked one."""
    for expires in (1, 60, 7 * 86400):
        request = await signed(SETTINGS, "GET", expires)
        assert request.expires_at == int(NOW + expires)


async def test_what_is_sent_along() -> None:
    """A PUT says length, kind of blob and that nothing may be there; a GET which content it wants."""
    put, get = await signed(SETTINGS, "PUT"), await signed(SETTINGS, "GET")
    assert put.headers == {"Content-Length": "7", "If-None-Match": "*", "x-ms-blob-type": "BlockBlob"}
    assert get.headers == {"If-Match": '"0x8DC"'}


async def test_http_is_signed_for_where_the_endpoint_is_http() -> None:
    """An emulator without TLS can be used; a URL for https cannot be used over http."""
    plain = replace(SETTINGS, endpoint="http://127.0.0.1:10000/acme01")
    assert "spr" not in fields((await signed(plain, "GET")).url)
    public = replace(plain, public_endpoint="https://blobs.example.org/acme01")
    assert fields((await signed(public, "GET")).url)["spr"] == "https"
