"""Bucket URLs: what people write, what it means, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.adapters.buckets.location import FolderLocation, S3Location, open_bucket, parse_location
from entrepot_hub.adapters.buckets.s3 import S3Bucket
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

KEYS = S3Credentials(access_key="AKIA", secret_key="hidden")


def test_a_folder() -> None:
    """A file URL is an absolute folder, percent-encoded as usual, with an optional prefix."""
    assert parse_location("file:///srv/a%20b") == FolderLocation(path=Path("/srv/a b"))
    assert parse_location("file://localhost/srv?prefix=x/y") == FolderLocation(path=Path("/srv"), prefix="x/y")


def test_an_s3_bucket() -> None:
    """An S3 URL names bucket, prefix and region, and how the server is reached."""
    assert parse_location("s3://lab/a/b/?region=eu-west-1") == S3Location(
        bucket="lab", prefix="a/b", region="eu-west-1"
    )
    assert parse_location(
        "s3://lab?region=auto&endpoint=http://10.0.0.5:9000&public_endpoint=https%3A%2F%2Fs3.example.org"
        "&addressing=path&profile=generic&create=true"
    ) == S3Location(
        bucket="lab",
        region="auto",
        endpoint="http://10.0.0.5:9000",
        public_endpoint="https://s3.example.org",
        addressing="path",
        profile="generic",
        create=True,
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "srv",
        "/srv",
        "http://lab?region=x",
        "file:srv",
        "file:///",
        "file:///srv/../etc",
        "file:///srv%00",
        "file://other/srv",
        "file:///srv?x=1",
        "file:///srv?prefix=../x",
        "file:///srv#f",
        "s3://lab",
        "s3://?region=x",
        "s3://l?region=x",
        "s3://user:pass@lab?region=x",
        "s3://lab?region=x&region=y",
        "s3://lab?region=",
        "s3://lab?region=a%20b",
        "s3://lab?region=x&secret_key=s",
        "s3://lab?region=x&create=yes",
        "s3://lab?region=x&profile=minio",
        "s3://lab?region=x&endpoint=10.0.0.5:9000",
        "s3://lab?region=x&endpoint=http://u:p@h",
        "s3://lab?region=x&endpoint=http://h:99999",
        "s3://lab?region=x&endpoint=",
        "s3://lab/a//b?region=x",
        "s3://lab/.hidden?region=x",
        "s3://lab/ä?region=x",
        "s3://[lab?region=x",
        "s3://lab?region",
        "file:///srv\n",
    ],
)
def test_what_is_no_location(url: str) -> None:
    """Anything else is refused with a reason, and no secret can be part of it."""
    with pytest.raises(InvalidInput):
        parse_location(url)


@given(st.text(max_size=60), st.sampled_from(["", "file://", "s3://", "s3://lab?region=x&", "s3://lab/"]))
def test_any_text_is_a_location_or_refused(text: str, start: str) -> None:
    """No text raises anything but InvalidInput."""
    try:
        location = parse_location(start + text)
    except InvalidInput:
        return
    assert isinstance(location, (FolderLocation, S3Location))


async def test_opening() -> None:
    """Each location opens as its driver with its prefix, without touching anything; missing parts are
    named."""
    folder = open_bucket("file:///no/such/place?prefix=p", name="f", secret=b"s" * 16, public_url="http://h")
    assert isinstance(folder, FolderBucket)
    assert folder.prefix == "p"
    s3 = open_bucket("s3://lab/p?region=x", name="s", credentials=KEYS)
    assert isinstance(s3, S3Bucket)
    assert s3.prefix == "p"
    for bucket in (folder, s3):
        await bucket.aclose()
    for url in ("file:///srv", "s3://lab?region=x"):
        with pytest.raises(InvalidInput):
            open_bucket(url, name="n")


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        (S3Settings(bucket="lab", region="eu-west-1", credentials=KEYS), "https://lab.s3.eu-west-1.amazonaws.com"),
        (S3Settings(bucket="a.b", region="eu-west-1", credentials=KEYS), "https://s3.eu-west-1.amazonaws.com/a.b"),
        (S3Settings(bucket="lab", region="cn-north-1", credentials=KEYS), "https://lab.s3.cn-north-1.amazonaws.com.cn"),
        (
            S3Settings(bucket="lab", region="auto", endpoint="https://r2.example", credentials=KEYS),
            "https://r2.example/lab",
        ),
        (
            S3Settings(
                bucket="lab", region="x", endpoint="http://in:9000", public_endpoint="https://out/s3/", credentials=KEYS
            ),
            "https://out/s3/lab",
        ),
        (
            S3Settings(bucket="lab", region="x", endpoint="http://in:9000", addressing="virtual", credentials=KEYS),
            "http://lab.in:9000",
        ),
    ],
)
async def test_what_signed_urls_begin_with(settings: S3Settings, base: str) -> None:
    """The bucket's name stands in the host or the path, and URLs are for the endpoint that nodes reach."""
    bucket = S3Bucket(settings, name="n")
    signed = await bucket.sign_put("a/b", 5, bytes(32), 60)
    assert signed.url.startswith(f"{base}/a/b?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
    assert "X-Amz-SignedHeaders=content-length%3Bhost%3Bif-none-match%3Bx-amz-checksum-sha256" in signed.url
    await bucket.aclose()


def test_only_amazon_is_believed_before_a_probe() -> None:
    """Without a look, Amazon's S3 binds everything and any other server only the expiry."""
    amazon = S3Settings(bucket="lab", region="x", credentials=KEYS).binds
    other = S3Settings(bucket="lab", region="x", endpoint="http://h", credentials=KEYS).binds
    assert amazon.length
    assert amazon.create_only
    assert (other.length, other.create_only, other.expiry) == (False, False, True)
    assert amazon & other == other
