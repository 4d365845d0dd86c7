"""Buckets as the programs that this project comes from write them down: every spelling, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import Denied, InvalidInput, NotFound
from entrepot_hub.adapters.buckets.credentials import AzureClient, AzureKey, GcsAmbient, S3Ambient, S3Credentials
from entrepot_hub.adapters.buckets.keys import parse_keys
from entrepot_hub.adapters.buckets.location import (
    AzureLocation,
    FolderLocation,
    GcsLocation,
    S3Location,
    parse_location,
)
from entrepot_hub.core.origins import Origin, find_origin
from entrepot_hub.services.origins import origin_of_environment, origin_of_file, with_keys

pytestmark = pytest.mark.blocking

DATA = Path(__file__).resolve().parents[2] / "data" / "origins"
SECRET = "wJalrXUtnFEMI-very-secret"
RIVER = "RIVER_EXTERNAL_MEDIA_STREAM_STORAGE_"
AWS = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-west-1"}
STORE = {"S3_BUCKET_IN": "media", "S3_BUCKET_OUT": "media"}
AZURE = {"storage_driver_url": "azblob://lab", "AZURE_STORAGE_ACCOUNT": "acct1"}
CLIENT = {"AZURE_CLIENT_ID": "id", "AZURE_CLIENT_SECRET": SECRET, "AZURE_TENANT_ID": "tenant.example"}


def keys_of(origin: Origin) -> object:
    assert origin.credentials is not None
    return parse_keys(origin.credentials.encode(), parse_location(origin.url))


def refused(values: Mapping[str, object], side: object = None) -> str:
    """What is said when these values are refused; it holds no secret."""
    with pytest.raises(InvalidInput) as caught:
        find_origin(values, side)  # type: ignore[arg-type]
    said = f"{caught.value} {caught.value.hint}"
    assert caught.value.kind == "invalid-setting"
    assert SECRET not in f"{said} {caught.value!r} {caught.value.data}"
    return said


def block(**fields: object) -> dict[str, object]:
    return {"external_media_stream_storage": fields}


S3_BLOCK = {"region": "us-east-1", "bucket": "lab", "access_key_id": "AKIA", "secret_access_key": SECRET}
GCS_BLOCK = {"bucket": "lab", "json_credentials": SECRET}


# --- verbatim -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["river-s3.yaml", "river-s3.env"])
def test_river_on_s3(name: str) -> None:
    """River's block and its variables are one bucket, and that the switch means nothing is said."""
    origin = origin_of_file(DATA / name)
    assert parse_location(origin.url) == S3Location(bucket="your-hot-data-bucket", region="us-east-1")
    assert keys_of(origin) == S3Credentials(access_key="AKIA...", secret_key="...redacted...")
    assert [note.split()[0] for note in origin.notes] == ["enable_migration_existing_streams"]


@pytest.mark.parametrize("name", ["river-gcs.yaml", "river-gcs.env"])
def test_river_on_google(name: str) -> None:
    """The service account's document comes through as it stands."""
    origin = origin_of_file(DATA / name)
    assert parse_location(origin.url) == GcsLocation(bucket="your-hot-data-bucket")
    assert json.loads(origin.credentials or "") == {"type": "service_account", "...": "..."}
    assert len(origin.notes) == 1


def test_audius_in_a_folder() -> None:
    """A folder has no keys."""
    origin = origin_of_file(DATA / "audius-file.env")
    assert parse_location(origin.url) == FolderLocation(path=Path("/my/directory"))
    assert (origin.credentials, origin.credentials_file, origin.notes) == (None, None, ())


def test_audius_on_s3() -> None:
    """The region is the URL's, or that of the environment."""
    origin = origin_of_file(DATA / "audius-s3.env")
    assert parse_location(origin.url) == S3Location(bucket="my-bucket", region="us-west-1")
    assert keys_of(origin) == S3Credentials(access_key="<my-access-key-id>", secret_key="<my-secret-access-key>")
    origin = origin_of_file(DATA / "audius-override.env")
    assert parse_location(origin.url) == S3Location(bucket="my-s3-bucket", region="us-west-2")
    assert keys_of(origin) == S3Credentials(access_key="X" * 20, secret_key="X" * 40)


def test_audius_on_google() -> None:
    """The keys are in the file that the variable names."""
    origin = origin_of_file(DATA / "audius-gcs.env")
    assert parse_location(origin.url) == GcsLocation(bucket="my-bucket")
    assert (origin.credentials, origin.credentials_file) == (None, "/path/to/creds.json")
    with pytest.raises(NotFound, match=r"/path/to/creds\.json"):
        with_keys(origin)


def test_audius_on_azure() -> None:
    """The example of its documentation has neither account nor keys: each that is missing is named in turn."""
    with pytest.raises(InvalidInput, match="AZURE_STORAGE_ACCOUNT is missing"):
        origin_of_file(DATA / "audius-azure.env")
    values = {"storage_driver_url": "azblob://my-container", "AZURE_STORAGE_ACCOUNT": "acct1"} | CLIENT
    origin = origin_of_environment(values)
    assert parse_location(origin.url) == AzureLocation(container="my-container", account="acct1")
    assert keys_of(origin) == AzureClient(account="acct1", client="id", secret=SECRET, tenant="tenant.example")


def test_a_store_with_one_bucket() -> None:
    """In and out of the same name are one bucket."""
    origin = origin_of_file(DATA / "store-minio.env")
    assert parse_location(origin.url) == S3Location(bucket="media", region="us-east-1", endpoint="http://minio:9000")
    assert keys_of(origin) == S3Credentials(access_key="minioadmin", secret_key="minioadmin")


def test_a_store_with_two_buckets() -> None:
    """A channel has one: which, has to be said."""
    with pytest.raises(InvalidInput, match="two buckets") as caught:
        origin_of_file(DATA / "store-two.env")
    assert "--origin-bucket in" in str(caught.value.hint)
    for side in ("in", "out"):
        assert parse_location(origin_of_file(DATA / "store-two.env", side).url) == S3Location(
            bucket=f"media-{side}",
            region="auto",
            endpoint="https://0123456789abcdef.r2.cloudflarestorage.com",
            profile="r2",
        )


# --- River --------------------------------------------------------------------------------------------------------


def test_the_block_stands_among_others(tmp_path: Path) -> None:
    """In a whole configuration the block is found, also deeper, in capitals, and with the other backend left empty."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "port: 5157\nlog: &log {level: info}\nother: *log\nnode:\n"
        "  External_Media_Stream_Storage:\n"
        "    GCS_storage: {bucket: '', json_credentials: ''}\n"
        "    aws_s3: {Region: us-east-1, bucket: lab, access_key_id: AKIA, secret_access_key: s}\n"
    )
    origin = origin_of_file(path)
    assert (origin.url, origin.notes) == ("s3://lab?region=us-east-1", ())


def test_the_older_variables_are_read_too() -> None:
    """River still takes names with two underscores between the parts; the same value twice does no harm."""
    older = {f"EXTERNAL_MEDIA_STREAM_STORAGE__AWS_S3__{name.upper()}": value for name, value in S3_BLOCK.items()}
    newer = {f"{RIVER}AWS_S3_{name.upper()}": value for name, value in S3_BLOCK.items()}
    mixed = {f"{RIVER}_AWS_S3__{name.upper()}": value for name, value in S3_BLOCK.items()}
    assert find_origin(older) == find_origin(newer) == find_origin(mixed) == find_origin(older | newer)
    assert f"{RIVER}AWS_S3_BUCKET" not in refused(older | newer | {f"{RIVER}AWS_S3_BUCKET": "other"})
    assert "aws_s3.bucket is given twice" in refused(older | newer | {f"{RIVER}AWS_S3_BUCKET": "other"})


def test_credentials_may_be_written_as_yaml() -> None:
    """A service account's fields that were not put into a text are the same document."""
    origin = find_origin(block(gcs_storage={"bucket": "lab", "json_credentials": {"type": "service_account"}}))
    assert json.loads(origin.credentials or "") == {"type": "service_account"}


@pytest.mark.parametrize("backend", ["aws_s3", "gcs_storage"])
def test_a_part_of_a_backend_names_what_is_missing(backend: str) -> None:
    """Each field that is left out or empty is named, in the file's words and, for variables, in theirs."""
    whole = S3_BLOCK if backend == "aws_s3" else GCS_BLOCK
    for name in whole:
        for part in ({k: v for k, v in whole.items() if k != name}, whole | {name: ""}, whole | {name: None}):
            assert f"{backend}.{name} is missing" in refused(block(**{backend: part}))
        variables: dict[str, object] = {
            f"{RIVER}{backend.upper()}_{k.upper()}": v for k, v in whole.items() if k != name
        }
        assert f"({RIVER}{backend.upper()}_{name.upper()})" in refused(variables)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (block(), "neither gcs_storage nor aws_s3"),
        (block(aws_s3=None, gcs_storage={}), "neither gcs_storage nor aws_s3"),
        (block(enable_migration_existing_streams=True), "neither gcs_storage nor aws_s3"),
        ({f"{RIVER}ENABLE_MIGRATION_EXISTING_STREAMS": "true"}, "neither gcs_storage nor aws_s3"),
        (block(aws_s3=S3_BLOCK, gcs_storage=GCS_BLOCK), "gcs_storage and aws_s3 are both given"),
        (block(aws_s3=S3_BLOCK, gcs_storage={"bucket": "lab"}), "gcs_storage and aws_s3 are both given"),
        (block(aws_s3=S3_BLOCK, azure={"x": SECRET}), "external_media_stream_storage.azure is unknown"),
        (block(aws_s3=S3_BLOCK | {"endpoint": SECRET}), "aws_s3.endpoint is unknown"),
        (block(aws_s3=S3_BLOCK | {"Region": SECRET}), "aws_s3 has a field twice"),
        (block(aws_s3=S3_BLOCK | {"bucket": 5}), "aws_s3.bucket is no text"),
        (block(aws_s3=[SECRET]), "aws_s3 is no block"),
        ({"external_media_stream_storage": SECRET}, "is no block"),
        (block(gcs_storage={"bucket": "lab", "json_credentials": {"a": {"b": SECRET}}}), "is no JSON document"),
        (block(aws_s3=S3_BLOCK, enable_migration_existing_streams=SECRET), "is true or false"),
        ({f"{RIVER}AWS_S3_ENDPOINT": SECRET}, "AWS_S3_ENDPOINT is unknown"),
        ({"a": block(aws_s3=S3_BLOCK), "b": block(aws_s3=S3_BLOCK)}, "more than one"),
        ({**block(aws_s3=S3_BLOCK), f"{RIVER}AWS_S3_BUCKET": "lab"}, "more than one"),
    ],
)
def test_river_with_other_than_one_backend(values: dict[str, object], said: str) -> None:
    """None, two, or something else than a backend is refused by name."""
    assert said in refused(values)


# --- Audius -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["storage_driver_url", "STORAGE_DRIVER_URL", "AUDIUS_STORAGE_DRIVER_URL"])
@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://lab", S3Location(bucket="lab", region="eu-west-1")),
        ("s3://lab?region=us-east-2&prefix=a/b/", S3Location(bucket="lab", region="us-east-2", prefix="a/b")),
        (
            "s3://lab?endpoint=minio:9000&disableSSL=true&s3ForcePathStyle=true&awssdk=v2",
            S3Location(bucket="lab", region="eu-west-1", endpoint="http://minio:9000", addressing="path"),
        ),
        (
            "s3://lab?endpoint=https%3A%2F%2Fs3.eu-west-1.wasabisys.com&use_path_style=true&hostname_immutable=true",
            S3Location(
                bucket="lab",
                region="eu-west-1",
                endpoint="https://s3.eu-west-1.wasabisys.com",
                addressing="path",
                profile="wasabi",
            ),
        ),
        (
            "s3://lab?endpoint=https://storage.googleapis.com&region=auto",
            S3Location(bucket="lab", region="auto", endpoint="https://storage.googleapis.com", profile="gcs"),
        ),
        ("gs://lab", GcsLocation(bucket="lab")),
        ("gcs://lab?prefix=a/", GcsLocation(bucket="lab", prefix="a")),
        ("azblob://lab?storage_account=acct2", AzureLocation(container="lab", account="acct2")),
        (
            "azblob://lab?domain=blob.core.chinacloudapi.cn",
            AzureLocation(container="lab", account="acct1", endpoint="https://acct1.blob.core.chinacloudapi.cn"),
        ),
        (
            "azblob://lab?domain=localhost:10001&protocol=http&localemu=true",
            AzureLocation(container="lab", account="acct1", endpoint="http://localhost:10001/acct1"),
        ),
        ("file:///data/blobs?create_dir=true&metadata=skip", FolderLocation(path=Path("/data/blobs"), create=True)),
        ("file://localhost/a%20b", FolderLocation(path=Path("/a b"))),
    ],
)
def test_urls_of_gos_cdk(name: str, url: str, location: object) -> None:
    """What that library takes in a bucket's URL is understood or refused, never dropped where it matters."""
    values = AWS | {"AZURE_STORAGE_ACCOUNT": "acct1", "AZURE_STORAGE_KEY": "c2VjcmV0", name: url}
    assert parse_location(find_origin(values).url) == location


def test_an_endpoint_of_the_environment_counts() -> None:
    """Where AWS's own variables name a server, the bucket is not looked for at Amazon."""
    values = AWS | {"storage_driver_url": "s3://lab", "AWS_ENDPOINT_URL_S3": "http://minio:9000"}
    assert "endpoint=http://minio:9000" in find_origin(values).url


def test_without_keys_the_machine_has_an_identity_of_its_own() -> None:
    """As the cloud's own libraries do; and it is said."""
    origin = find_origin({"storage_driver_url": "s3://lab", "AWS_REGION": "x"})
    assert keys_of(origin) == S3Ambient()
    assert "AWS_ACCESS_KEY_ID" in origin.notes[0]
    origin = find_origin({"storage_driver_url": "gs://lab", "GOOGLE_APPLICATION_CREDENTIALS": ""})
    assert keys_of(origin) == GcsAmbient()
    assert "GOOGLE_APPLICATION_CREDENTIALS" in origin.notes[0]


def test_temporary_keys_keep_their_token() -> None:
    """The session's token is part of the keys."""
    origin = find_origin(AWS | STORE | {"AWS_SESSION_TOKEN": "token"})
    assert keys_of(origin) == S3Credentials(access_key="AKIA", secret_key=SECRET, session_token="token")


def test_keys_of_azure_in_four_ways(tmp_path: Path) -> None:
    """A key, a connection string, an application, or a file that the URL names."""
    key = AzureKey(account="acct1", key="c2VjcmV0")
    assert keys_of(find_origin(AZURE | {"AZURE_STORAGE_KEY": "c2VjcmV0"})) == key
    text = "DefaultEndpointsProtocol=https;AccountName=acct1;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net"
    assert keys_of(find_origin(AZURE | {"AZURE_STORAGE_CONNECTION_STRING": text})) == key
    assert isinstance(keys_of(find_origin(AZURE | CLIENT)), AzureClient)
    path = tmp_path / "creds.json"
    path.write_text('{"AccountName": "acct1", "AccountKey": "c2VjcmV0"}')
    url = f"azblob://lab?cred_path={path}"
    assert keys_of(with_keys(find_origin({**AZURE, "storage_driver_url": url}))) == key


def test_the_file_of_googles_keys_is_read(tmp_path: Path) -> None:
    """The document may also stand in the variable itself; the file's name may be wrong, or a folder's."""
    path = tmp_path / "creds.json"
    path.write_text('{"type": "service_account"}')
    values = {"storage_driver_url": "gs://lab", "GOOGLE_APPLICATION_CREDENTIALS": str(path)}
    read = with_keys(find_origin(values))
    inline = with_keys(find_origin(values | {"GOOGLE_APPLICATION_CREDENTIALS": path.read_text()}))
    assert read == inline
    assert "service_account" not in repr(read)
    with pytest.raises(Denied, match="cannot be read"):
        with_keys(find_origin(values | {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path)}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "no bucket is written down"),
        (AWS, "no bucket is written down"),
        ({"storage_driver_url": ""}, "no bucket is written down"),
        ({"storage_driver_url": "s3://lab"}, "AWS_REGION is missing"),
        (AWS | {"storage_driver_url": "s3://lab", "AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY is missing"),
        (AWS | {"storage_driver_url": "s3://lab", "AWS_ACCESS_KEY_ID": ""}, "AWS_ACCESS_KEY_ID is missing"),
        (
            {"storage_driver_url": "s3://lab", "AWS_REGION": "x", "AWS_SESSION_TOKEN": SECRET},
            "AWS_ACCESS_KEY_ID is missing",
        ),
        (AWS | {"storage_driver_url": f"s3://u:{SECRET}@lab"}, "a user"),
        (AWS | {"storage_driver_url": f"s3://lab?{SECRET}"}, "is no URL"),
        (AWS | {"storage_driver_url": f"s3://[{SECRET}"}, "is no URL"),
        (AWS | {"storage_driver_url": "https://minio:9000/lab"}, "none of file://"),
        (AWS | {"storage_driver_url": "mem://"}, "none of file://"),
        (AWS | {"storage_driver_url": "file://data/blobs"}, "file:///path"),
        (AWS | {"storage_driver_url": "s3://lab", "storage_driver": "gcs"}, "storage_driver names another kind"),
        (AWS | STORE | {"storage_driver_url": "s3://lab"}, "storage_driver_url and S3_BUCKET_IN"),
        ({"storage_driver_url": "gs://lab", "AUDIUS_STORAGE_DRIVER_URL": "gs://lab"}, "more than one"),
        (AZURE, "AZURE_STORAGE_KEY is missing"),
        (AZURE | {"AZURE_STORAGE_ACCOUNT": ""}, "AZURE_STORAGE_ACCOUNT is missing"),
        (AZURE | {"AZURE_STORAGE_SAS_TOKEN": SECRET}, "AZURE_STORAGE_SAS_TOKEN cannot be used"),
        (AZURE | CLIENT | {"AZURE_STORAGE_KEY": SECRET}, "AZURE_STORAGE_KEY and AZURE_CLIENT_ID are both given"),
        (AZURE | CLIENT | {"AZURE_CLIENT_ID": ""}, "AZURE_CLIENT_ID is missing"),
        (AZURE | CLIENT | {"AZURE_CLIENT_SECRET": ""}, "AZURE_CLIENT_SECRET is missing"),
        (AZURE | CLIENT | {"AZURE_TENANT_ID": ""}, "AZURE_TENANT_ID is missing"),
    ],
)
def test_audius_with_other_than_one_backend(values: dict[str, object], said: str) -> None:
    """None, two, or a part of one is refused by name."""
    assert said in refused(values)


# --- everything in S3 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "side", "said"),
    [
        (AWS | {"S3_BUCKET_IN": "a"}, None, "S3_BUCKET_OUT is missing"),
        (AWS | {"S3_BUCKET_OUT": "a"}, None, "S3_BUCKET_IN is missing"),
        (AWS | {"S3_BUCKET_OUT": "a"}, "in", "S3_BUCKET_IN is missing"),
        (AWS | STORE | {"AWS_REGION": ""}, None, "AWS_REGION is missing"),
        (AWS | STORE | {"AWS_SECRET_ACCESS_KEY": ""}, None, "AWS_SECRET_ACCESS_KEY is missing"),
        (AWS | {"S3_ENDPOINT_URL": "http://minio:9000"}, None, "no bucket is written down"),
        (AWS | {"storage_driver_url": "s3://lab"}, "in", "can be chosen from"),
    ],
)
def test_a_store_with_other_than_one_backend(values: dict[str, object], side: str | None, said: str) -> None:
    """None or a part of one is refused by name."""
    assert said in refused(values, side)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"storage_driver_url": "file:///a", "S3_BUCKET_IN": "b"},
        {"external_media_stream_storage": {"aws_s3": {"bucket": "lab"}}},
    ],
)
def test_whatever_is_wrong_has_a_mend(values: dict[str, object]) -> None:
    """None, two, and a part of one: each error says what to do; of variables it says where it looked."""
    with pytest.raises(InvalidInput) as caught:
        find_origin(values)
    assert caught.value.hint
    with pytest.raises(InvalidInput, match="in the environment"):
        origin_of_environment({})


def test_a_side_needs_no_other() -> None:
    """Who asks for one of the two buckets need not have the other."""
    assert find_origin(AWS | {"S3_BUCKET_OUT": "a", "AWS_DEFAULT_REGION": "y"}, "out").url == "s3://a?region=eu-west-1"


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just(SECRET),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["aws_s3", "gcs_storage", "bucket", "region", "json_credentials", "secret_access_key", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*AWS, *STORE, *AZURE, *CLIENT, "external_media_stream_storage", f"{RIVER}AWS_S3_BUCKET", "x"]),
        _values,
        max_size=8,
    )
)
def test_any_values_are_an_origin_or_refused(values: dict[str, object]) -> None:
    """Nothing raises anything but InvalidInput, and no refusal shows a secret."""
    said = ""
    try:
        said = repr(find_origin(values))
    except InvalidInput as error:
        said = f"{error} {error.hint}"
    assert SECRET not in said.partition("credentials_file")[0]
