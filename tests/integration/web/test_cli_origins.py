"""``entrepot-hub channel create`` on every kind of bucket, written down in every way, as its users run it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.web.test_cli import Command
from tests.servers.azurite import AzureServer, run_azurite
from tests.servers.gcs import GcsServer, run_gcs
from tests.servers.ministack import S3Server, run_ministack

pytestmark = [pytest.mark.blocking, pytest.mark.usefixtures("brief_probe")]  # looks at files

SECRET = "wJalrXUtnFEMI-very-secret"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests tells of a bucket."""
    for name in list(os.environ):
        if name.casefold().startswith(("aws_", "azure_", "google_", "s3_", "river_", "storage_driver")):
            monkeypatch.delenv(name)


@pytest.fixture
def hub(tmp_path: Path) -> Command:
    """The command with a hub and no channel."""
    command = Command(tmp_path / "hub")
    command("init", "--url", "http://127.0.0.1:8480")
    return command


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server without buckets."""
    with run_ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """A Google server without buckets."""
    with run_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """An Azure server without containers."""
    with run_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


def made_by(hub: Command, *words: str, **variables: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    how: dict[str, Any] = {**variables}
    answer: Any = hub.json(*words, **how)
    return dict(answer)


def unseen(hub: Command, secret: str) -> None:
    """The secret lies in no file of the hub, as it is or as JSON writes it."""
    for path in hub.home.rglob("*"):
        if path.is_file():
            for form in (secret, json.dumps(secret)[1:-1]):
                assert form.encode() not in path.read_bytes()


def test_a_store_in_the_environment(hub: Command, s3: S3Server) -> None:
    """Bucket and keys come from variables; the bucket is made once, and only because it was asked for."""
    variables = {
        "S3_ENDPOINT_URL": s3.endpoint,
        "S3_BUCKET_IN": "store-in",
        "S3_BUCKET_OUT": "store-out",
        "AWS_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
    }
    create = ("channel", "create", "media", "--bucket-from-env")
    assert "--origin-bucket in" in hub.error(*create, code=2, **variables)["hint"]
    missing = hub.error(*create, "--origin-bucket", "out", code=2, **variables)
    assert missing["kind"] == "invalid-setting"
    made = made_by(hub, *create, "--origin-bucket", "out", "--create-bucket", **variables)
    assert made["bucket"] == f"s3://store-out?region={s3.region}&endpoint={s3.endpoint}"
    again = made_by(hub, *create, "--origin-bucket", "out", "--if-missing", "--create-bucket", **variables)
    assert (made["made"], again["made"]) == (True, False)
    unseen(hub, s3.secret_key)


def test_a_bucket_of_google(hub: Command, gcs: GcsServer, tmp_path: Path) -> None:
    """An Audius node's variables name a URL and a file of keys; the channel's bucket is made."""
    keys = tmp_path / "creds.json"
    keys.write_text(gcs.document)
    file = tmp_path / "override.env"
    file.write_text(
        f'AUDIUS_STORAGE_DRIVER_URL="gcs://audius-bucket?prefix=node/&endpoint={gcs.endpoint}"\n'
        f'GOOGLE_APPLICATION_CREDENTIALS="{keys}"\n'
    )
    create = ("channel", "create", "audius", "--bucket-from", str(file))
    assert hub.error(*create, code=2)["kind"] == "invalid-setting"
    made = made_by(hub, *create, "--create-bucket")
    assert made["bucket"] == f"gs://audius-bucket/node?endpoint={gcs.endpoint}"
    unseen(hub, json.loads(gcs.document)["private_key"])


def test_a_container_of_azure(hub: Command, azurite: AzureServer) -> None:
    """A URL and a connection string; what the provider does not enforce is said."""
    string = f"AccountName={azurite.account};AccountKey={azurite.key};BlobEndpoint={azurite.endpoint}"
    url = f"azblob://lab-cache/p?account={azurite.account}&endpoint={azurite.endpoint}"
    create = ("channel", "create", "lab", "--bucket", url, "--credentials-stdin")
    assert hub.error(*create, stdin=string, code=2)["kind"] == "invalid-setting"
    done = hub(*create, "--create-bucket", stdin=string)
    assert f"on {url}" in done.stdout
    assert "uploads of another length are taken" in done.stderr
    unseen(hub, azurite.key)


def test_a_folder_is_made_when_asked(hub: Command, tmp_path: Path) -> None:
    """Without being asked nothing is made, for the folder may be a disk that is not there."""
    url = (tmp_path / "a" / "b").as_uri()
    error = hub.error("channel", "create", "one", "--bucket", url, code=2)
    assert (error["kind"], "--create-bucket" in error["hint"]) == ("invalid-setting", True)
    assert not (tmp_path / "a").exists()
    assert made_by(hub, "channel", "create", "one", "--bucket", url + "?create=true")["bucket"] == url
    assert hub.error("channel", "create", "two", "--bucket", url, "--credentials-stdin", stdin="{}", code=2)
    second = made_by(hub, "channel", "create", "two", "--bucket-from-env", storage_driver_url=url)
    assert second["bucket"] == url


def test_keys_given_apart_go_first(hub: Command, s3: S3Server, tmp_path: Path) -> None:
    """Keys of the file or the pipe are used, not those beside the URL; wrong ones are refused unseen."""
    variables: dict[str, Any] = {
        "storage_driver_url": f"s3://apart?region={s3.region}&endpoint={s3.endpoint}&create=true",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    done = hub("channel", "create", "apart", "--bucket-from-env", code=4, **variables)
    assert SECRET not in done.stdout + done.stderr
    keys = json.dumps({"access_key": s3.access_key, "secret_key": s3.secret_key})
    hub("channel", "create", "apart", "--bucket-from-env", "--credentials-stdin", stdin=keys, **variables)
    file = tmp_path / "river.yaml"
    file.write_text(f"external_media_stream_storage: {{gcs_storage: {{bucket: lab, json_credentials: '{SECRET}'}}}}\n")
    done = hub("channel", "create", "river", "--bucket-from", str(file), code=2)
    assert SECRET not in done.stdout + done.stderr
    unseen(hub, SECRET)


def test_the_identity_of_the_machine(hub: Command, s3: S3Server, tmp_path: Path) -> None:
    """Where no keys are named, what the machine has is used, and that is said; nothing of it is kept by the hub."""
    (tmp_path / "aws").write_text(
        f"[default]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    done = hub(
        *("channel", "create", "own", "--bucket-from-env", "--create-bucket"),
        S3_ENDPOINT_URL=s3.endpoint,
        S3_BUCKET_IN="own",
        S3_BUCKET_OUT="own",
        AWS_REGION=s3.region,
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "aws"),
    )
    assert "the hub uses the identity of its own machine" in done.stderr
    unseen(hub, s3.secret_key)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "one of --bucket"),
        (("--bucket", "file:///x", "--bucket-from-env"), "one of --bucket"),
        (("--bucket-from", "x.yaml", "--bucket-from-env"), "one of --bucket"),
        (("--bucket", "file:///x", "--origin-bucket", "in"), "--origin-bucket goes with"),
        (("--bucket-from-env", "--origin-bucket", "both"), "in or out"),
        (("--bucket-from-env",), "no bucket is written down"),
    ],
)
def test_a_bucket_is_named_in_one_way(hub: Command, words: tuple[str, ...], said: str) -> None:
    """None, or two ways at once, is an error of the command's words."""
    assert said in hub.error("channel", "create", "demo", *words, code=2)["message"]


def test_files_that_are_not_there(hub: Command, tmp_path: Path) -> None:
    """A configuration, or a file of keys that it names, that is missing is told by its name."""
    error = hub.error("channel", "create", "demo", "--bucket-from", str(tmp_path / "no.yaml"), code=3)
    assert (error["kind"], "no.yaml" in error["message"]) == ("no-such-file", True)
    keys = str(tmp_path / "no.json")
    variables = {"storage_driver_url": "gs://lab", "GOOGLE_APPLICATION_CREDENTIALS": keys}
    error = hub.error("channel", "create", "demo", "--bucket-from-env", code=3, **variables)
    assert (error["kind"], keys in error["message"]) == ("no-such-file", True)
