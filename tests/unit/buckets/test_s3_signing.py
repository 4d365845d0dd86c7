"""The hub's own signatures are botocore's, byte for byte."""

from __future__ import annotations

import datetime as dt
from urllib.parse import parse_qsl, urlsplit

import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrepot_hub.adapters.buckets.s3_signing import Signer

BASES = [
    "http://127.0.0.1:9000/bucket",
    "https://bucket.s3.eu-central-1.amazonaws.com",
    "https://s3.example.org:443/bucket",
    "http://[::1]:9000/bucket",
    "https://Example.ORG:8443/some/path/bucket",
]
WORD = st.text("abcXYZ019+/=", min_size=1, max_size=40)
PAIRS = st.builds(ReadOnlyCredentials, WORD, WORD, st.none() | WORD)
KEYS = st.from_regex(r"[A-Za-z0-9_~-]{1,20}(/[A-Za-z0-9_~.-]{0,20}x){0,3}", fullmatch=True)
HEADERS = st.dictionaries(
    st.sampled_from(["Content-Length", "If-None-Match", "x-amz-checksum-sha256", "If-Match", "Range"]),
    st.sampled_from(["*", '"abc"', "bytes=0-9", "YWJj/+=", "17"]),
)
NOW = st.integers(1_700_000_000, 1_900_000_000)


def at(patch: pytest.MonkeyPatch, now: int) -> None:
    """Have botocore sign at this moment."""
    patch.setattr(botocore.auth, "get_current_datetime", lambda: dt.datetime.fromtimestamp(now, dt.UTC))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=st.sampled_from(BASES), pair=PAIRS, key=KEYS, headers=HEADERS, life=st.integers(1, 604800), now=NOW)
def test_urls_are_signed_as_by_botocore(
    base: str,
    pair: ReadOnlyCredentials,
    key: str,
    headers: dict[str, str],
    life: int,
    now: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is signed into a URL, it asks for the same under the same signature as botocore's."""
    at(monkeypatch, now)
    request = AWSRequest("PUT", f"{base}/{key}", headers=dict(headers))
    S3SigV4QueryAuth(pair, "s3", "eu-central-1", expires=life).add_auth(request)
    made = urlsplit(Signer(base, "eu-central-1").url(pair, "PUT", key, headers, life, now))
    expected = urlsplit(str(request.url))
    assert made[:3] == expected[:3]
    assert dict(parse_qsl(made.query)) == dict(parse_qsl(expected.query))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=st.sampled_from(BASES), pair=PAIRS, key=KEYS, headers=HEADERS, now=NOW)
def test_headers_are_signed_as_by_botocore(
    base: str, pair: ReadOnlyCredentials, key: str, headers: dict[str, str], now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of the hub bears the headers that botocore would give it, and no others."""
    at(monkeypatch, now)
    request = AWSRequest("GET", f"{base}/{key}", headers=dict(headers))
    S3SigV4Auth(pair, "s3", "eu-central-1").add_auth(request)
    assert Signer(base, "eu-central-1").headers(pair, "GET", key, headers, now) == dict(request.headers.items())


def test_other_keys_and_another_day_sign_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept from one signature to the next is the key of that secret and that day alone."""
    base = BASES[0]
    signer = Signer(base, "x")
    for secret, now in [("a", 1_800_000_000), ("b", 1_800_000_000), ("b", 1_800_090_000), ("a", 1_800_090_000)]:
        at(monkeypatch, now)
        pair = ReadOnlyCredentials("K", secret, None)
        request = AWSRequest("GET", f"{base}/k", headers={})
        S3SigV4QueryAuth(pair, "s3", "x", expires=60).add_auth(request)
        expected = dict(parse_qsl(urlsplit(str(request.url)).query))
        assert dict(parse_qsl(urlsplit(signer.url(pair, "GET", "k", {}, 60, now)).query)) == expected
