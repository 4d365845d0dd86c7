"""Bucket URLs: what people write, what it means, how the hub writes it, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import AzureKey, GcsAmbient, S3Credentials
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.adapters.buckets.interface import Bucket
from entrepot_hub.adapters.buckets.location import (
    AzureLocation,
    FolderLocation,
    GcsLocation,
    Location,
    S3Location,
    parse_location,
    spell_location,
)
from entrepot_hub.adapters.buckets.opening import open_bucket
from entrepot_hub.adapters.buckets.s3 import S3Bucket
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

KEYS = S3Credentials(access_key="AKIA", secret_key="hidden")


def test_a_folder() -> None:
    """A file URL is an absolute folder, percent-encoded as usual, with an optional prefix."""
    assert parse_location("file:///srv/a%20b") == FolderLocation(path=Path("/srv/a b"))
    assert parse_location("file://localhost/srv?prefix=x/y") == FolderLocation(path=Path("/srv"), prefix="x/y")
    assert parse_location("file:////srv//a/?create=true") == FolderLocation(path=Path("/srv/a"), create=True)


def test_an_s3_bucket() -> None:
    """An S3 URL names bucket, prefix and region, and how the server is reached."""
    assert parse_location("s3://lab/a/b/?region=eu-west-1") == S3Location(
        bucket="lab", prefix="a/b", region="eu-west-1"
    )
    assert parse_location(
        "s3://lab?region=auto&endpoint=http://10.0.0.5:9000&public_endpoint=https%3A%2F%2Fs3.example.org"
        "&addressing=path&profile=minio&digest=md5&create=true"
    ) == S3Location(
        bucket="lab",
        region="auto",
        endpoint="http://10.0.0.5:9000",
        public_endpoint="https://s3.example.org",
        addressing="path",
        profile="minio",
        digest="md5",
        create=True,
    )


def test_a_google_bucket() -> None:
    """A Google URL names bucket and prefix under either of its two schemes, and what counts when it is made."""
    assert parse_location("gs://lab") == parse_location("gcs://lab") == GcsLocation(bucket="lab")
    assert parse_location(
        "gcs://lab/a/b?endpoint=http://127.0.0.1:9000/&public_endpoint=https://gcs.example.org"
        "&project=p-1&location=EU&storage_class=STANDARD&create=false"
    ) == GcsLocation(
        bucket="lab",
        prefix="a/b",
        endpoint="http://127.0.0.1:9000",
        public_endpoint="https://gcs.example.org",
        project="p-1",
        location="EU",
        storage_class="STANDARD",
    )


def test_an_azure_container() -> None:
    """An Azure URL names container, prefix and storage account."""
    assert parse_location("azblob://lab/a?account=acct1") == AzureLocation(container="lab", account="acct1", prefix="a")
    assert parse_location(
        "azblob://lab?account=acct1&endpoint=http://127.0.0.1:10000/acct1&public_endpoint=http://out/acct1&create=true"
    ) == AzureLocation(
        container="lab",
        account="acct1",
        endpoint="http://127.0.0.1:10000/acct1",
        public_endpoint="http://out/acct1",
        create=True,
    )


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("file://localhost//srv/a%20b/?prefix=x%2Fy", "file:///srv/a%20b?prefix=x/y"),
        (
            "s3://lab/p/?create=true&endpoint=HTTP://Host:9000/&region=x",
            "s3://lab/p?region=x&endpoint=http://host:9000&create=true",
        ),
        ("s3://lab?region=x&endpoint=http://[::1]:9", "s3://lab?region=x&endpoint=http://%5B::1%5D:9"),
        ("gcs://lab/", "gs://lab"),
        ("azblob://lab/p?create=false&account=acct1", "azblob://lab/p?account=acct1"),
    ],
)
def test_there_is_one_spelling(written: str, spelled: str) -> None:
    """However a bucket was written, the hub writes it in one way, so two spellings are one bucket."""
    assert spell_location(parse_location(written)) == spelled
    assert parse_location(spelled) == parse_location(written)


_segments = st.text("abcXYZ019_~-", min_size=1, max_size=8)
_prefixes = st.lists(_segments, max_size=3).map("/".join)
_endpoints = st.none() | st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(["s3.example.org", "127.0.0.1", "[::1]"]),
    st.sampled_from(["", ":9000", ":1"]),
    st.sampled_from(["", "/s3", "/a b+&=?#%/c".replace(" ", "").replace("?", "").replace("#", "")]),
)
_bare_endpoints = _endpoints.map(lambda text: text and "/".join(text.split("/")[:3]))
_folders = st.lists(
    st.text(
        st.characters(codec="utf-8", categories=["L", "N", "P", "S"], exclude_characters="/"), min_size=1, max_size=9
    ),
    min_size=1,
    max_size=4,
).filter(lambda parts: not {".", ".."} & set(parts))
_locations = st.one_of(
    st.builds(FolderLocation, path=_folders.map(lambda p: Path("/", *p)), prefix=_prefixes, create=st.booleans()),
    st.builds(
        S3Location,
        bucket=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{1,30}[A-Za-z0-9]", fullmatch=True),
        region=st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True),
        prefix=_prefixes,
        endpoint=_endpoints,
        public_endpoint=_endpoints,
        addressing=st.sampled_from([None, "path", "virtual"]),
        profile=st.sampled_from([None, "aws", "gcs", "wasabi"]),
        digest=st.sampled_from([None, "sha256", "md5"]),
        create=st.booleans(),
    ),
    st.builds(
        GcsLocation,
        bucket=st.from_regex(r"[a-z0-9][a-z0-9._-]{1,30}[a-z0-9]", fullmatch=True),
        prefix=_prefixes,
        endpoint=_bare_endpoints,
        public_endpoint=_bare_endpoints,
        project=st.none() | st.just("example.org:p-1"),
        location=st.none() | st.just("europe-west3"),
        storage_class=st.none() | st.just("STANDARD"),
        create=st.booleans(),
    ),
    st.builds(
        AzureLocation,
        container=st.from_regex(r"[a-z0-9]{3,20}", fullmatch=True),
        account=st.from_regex(r"[a-z0-9]{3,24}", fullmatch=True),
        prefix=_prefixes,
        endpoint=_endpoints,
        public_endpoint=_endpoints,
        create=st.booleans(),
    ),
)


@given(_locations)
def test_what_is_spelled_is_read_back(location: Location) -> None:
    """Every location survives being written and read."""
    assert parse_location(spell_location(location)) == location


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
        "s3://lab?region=x&profile=floppy",
        "s3://lab?region=x&profile=r2",
        "s3://lab?region=x&digest=crc32",
        "s3://lab?region=x&endpoint=http://h%0A",
        "s3://lab?region=x&endpoint=http://h%20x",
        "s3://lab?region=x&endpoint=http://h/?a=b",
        "s3://lab:80?region=x",
        "gs://",
        "gs://L",
        "gs://Lab",
        "gs://lab?region=x",
        "gs://lab?location=a/b",
        "gs://lab?endpoint=http://h/path",
        "gs://u@lab",
        "azblob://lab",
        "azblob://lab?account=",
        "azblob://lab?account=Acct",
        "azblob://la--b?account=acct1",
        "azblob://$web?account=acct1",
        "azblob://lab?account=acct1&key=c2VjcmV0",
        "file:///srv%0A",
        "file:///%ff",
        "file:///" + "ä" * 600,
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


@pytest.mark.parametrize(
    "url", ["s3://lab?hunter2", "s3://[hunter2", "s3://u:hunter2@lab?region=x", "s3://lab?region=x#hunter2"]
)
def test_a_key_in_the_wrong_place_is_not_repeated(url: str) -> None:
    """Somebody who writes a key into the URL does not find it in the error."""
    with pytest.raises(InvalidInput) as caught:
        parse_location(url)
    assert "hunter2" not in f"{caught.value!r} {caught.value.hint} {caught.value.__cause__!r}"


def test_reading_a_url_needs_no_library_of_a_provider() -> None:
    """A hub that serves folders loads none, and a URL is checked without any."""
    program = (
        "import sys\n"
        "from entrepot_hub.adapters.buckets.location import parse_location\n"
        "import entrepot_hub.adapters.buckets.opening, entrepot_hub.adapters.buckets.keys\n"
        "for url in ('s3://lab?region=x', 'gs://lab', 'azblob://lab?account=acct1'): parse_location(url)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('boto3', 'botocore', 'google', 'azure')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@given(
    st.text(max_size=60),
    st.sampled_from(["", "file://", "s3://", "s3://lab?region=x&", "s3://lab/", "gs://", "gs://lab?", "azblob://lab?"]),
)
def test_any_text_is_a_location_or_refused(text: str, start: str) -> None:
    """No text raises anything but InvalidInput, and what is a location can be written down."""
    try:
        location = parse_location(start + text)
    except InvalidInput:
        return
    assert parse_location(spell_location(location)) == location


async def test_opening() -> None:
    """Each location opens as its driver with its prefix, without touching anything; missing parts are
    named."""
    folder = open_bucket("file:///no/such/place?prefix=p", name="f", secret=b"s" * 16, public_url="http://h")
    assert isinstance(folder, FolderBucket)
    assert folder.prefix == "p"
    s3 = open_bucket("s3://lab/p?region=x", name="s", credentials=KEYS)
    assert isinstance(s3, S3Bucket)
    assert s3.prefix == "p"
    gcs = open_bucket("gs://lab/p", name="g", credentials=GcsAmbient())
    azure = open_bucket("azblob://lab/p?account=acct1", name="a", credentials=AzureKey(account="acct1", key="c2VjcmV0"))
    assert (gcs.prefix, azure.prefix, type(gcs).__name__, type(azure).__name__) == (
        "p",
        "p",
        "GcsBucket",
        "AzureBucket",
    )
    for bucket in (folder, s3, gcs, azure):
        await bucket.aclose()
    for url in ("file:///srv", "s3://lab?region=x", "gs://lab", "azblob://lab?account=acct1"):
        with pytest.raises(InvalidInput):
            open_bucket(url, name="n")


@pytest.mark.parametrize(
    ("url", "keys"),
    [
        ("s3://lab?region=x", GcsAmbient()),
        ("gs://lab", KEYS),
        ("azblob://lab?account=acct1", KEYS),
        ("azblob://lab?account=acct1", AzureKey(account="acct2", key="c2VjcmV0")),
    ],
)
def test_keys_of_another_provider_open_nothing(url: str, keys: S3Credentials | GcsAmbient | AzureKey) -> None:
    """A bucket is opened with keys of its own provider and account only."""
    with pytest.raises(InvalidInput, match="keys are"):
        open_bucket(url, name="n", credentials=keys)


@pytest.mark.parametrize("url", ["s3://bu?region=a", "gs://bu"])
def test_a_name_that_is_none_has_an_example_beside_it(url: str) -> None:
    """Who wrote a bucket's name that cannot be is told how one looks."""
    with pytest.raises(InvalidInput) as caught:
        parse_location(url)
    assert url.partition("bu")[0] in str(caught.value.hint)


@pytest.mark.blocking
async def test_a_missing_folder_is_made_only_when_that_was_asked(tmp_path: Path) -> None:
    """A folder that is not there may be a disk that is not mounted: it is an error that says what to do."""

    def bucket(*, create: bool) -> Bucket:
        place = FolderLocation(path=tmp_path / "a" / "b", create=create)
        return open_bucket(place, name="f", secret=b"s" * 16, public_url="http://h")

    missing = bucket(create=False)
    with pytest.raises(InvalidInput, match="there is no folder") as caught:
        await missing.start()
    await missing.aclose()
    assert "--create-bucket" in str(caught.value.hint)
    assert not (tmp_path / "a").exists()
    for create in (True, False):
        async with bucket(create=create) as made:
            assert await made.create("key", b"x") is create


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
