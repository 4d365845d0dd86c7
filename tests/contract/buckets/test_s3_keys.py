"""Keys that end, roles and the machine's own keys, against a server that knows roles: URLs never outlive their keys."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from botocore.credentials import Credentials
from tests.contract.buckets.conftest import s3_settings
from tests.contract.buckets.requests import digest_of, send
from tests.servers.ministack import S3Server
from tests.servers.process import free_port

from entrepot.core.errors import Denied, RetryLater
from entrepot_hub.adapters.buckets.credentials import S3Ambient, S3Credentials
from entrepot_hub.adapters.buckets.s3 import S3Bucket
from entrepot_hub.adapters.buckets.s3_client import make_sts_client
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

DATA = b"some bytes"
NOW = 1_800_000_000.0
EXTERNAL = "an-external-id"

pytestmark = pytest.mark.blocking


def life_of(url: str) -> int:
    """The seconds that a URL says it lives."""
    return int(parse_qs(urlsplit(url).query)["X-Amz-Expires"][0])


def plain(server: S3Server, service: str) -> Any:
    """A client of the server's administrator."""
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


@pytest.fixture(scope="session")
def role(ministack: S3Server) -> str:
    """The ARN of a role that may do everything in one bucket, for who knows its external id."""
    iam = plain(ministack, "iam")
    trust = {
        "Effect": "Allow",
        "Principal": {"AWS": "*"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": EXTERNAL}},
    }
    may = {"Effect": "Allow", "Action": "s3:*", "Resource": ["arn:aws:s3:::roles", "arn:aws:s3:::roles/*"]}
    made = iam.create_role(RoleName="hub", AssumeRolePolicyDocument=policy(trust))
    iam.put_role_policy(RoleName="hub", PolicyName="bucket", PolicyDocument=policy(may))
    iam.close()
    arn: str = made["Role"]["Arn"]
    return arn


def policy(statement: dict[str, Any]) -> str:
    """A policy of one statement."""
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def with_role(server: S3Server, role: str, external: str | None = EXTERNAL) -> S3Settings:
    """The bucket "roles", reached by that role."""
    pair = S3Credentials(access_key=server.access_key, secret_key=server.secret_key, role=role, external_id=external)
    return replace(s3_settings(server, bucket="roles"), credentials=pair)


async def test_a_role_is_assumed_and_serves(ministack: S3Server, role: str) -> None:
    """A bucket of a role's is used with the keys that the role gives, which are in every URL; others have no say."""
    async with S3Bucket(with_role(ministack, role), name="role") as bucket:
        signed = await bucket.sign_put("a/key", len(DATA), digest_of(DATA), 300)
        assert ministack.access_key not in signed.url
        assert "X-Amz-Security-Token" in signed.url
        assert (await send(signed, DATA)).accepted
        assert (await send(await bucket.sign_get("a/key", None, 300))).body == DATA
        assert await bucket.delete("a/key")
    outside = replace(with_role(ministack, role), bucket="of-others", create=False)
    async with S3Bucket(s3_settings(ministack, bucket="of-others"), name="others"):
        bucket = S3Bucket(outside, name="outside")
        with pytest.raises(Denied):
            await bucket.create("a/key", DATA)
        await bucket.aclose()


async def test_a_role_that_may_not_be_assumed_is_denied(ministack: S3Server, role: str) -> None:
    """A wrong external id, or a role that is not there, is a denial with a hint, for URLs and for calls."""
    for settings in (with_role(ministack, role, "wrong"), with_role(ministack, role + "-absent")):
        bucket = S3Bucket(settings, name="denied")
        for call in (bucket.sign_get("k", None, 60), bucket.head("k"), bucket.start()):
            with pytest.raises(Denied) as caught:
                await call
            assert EXTERNAL not in str(caught.value)
            assert "role" in caught.value.message
        await bucket.aclose()


async def test_nobody_gives_roles_out(ministack: S3Server, role: str) -> None:
    """Where roles are given out by nobody who answers, signing waits for later."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    bucket = S3Bucket(replace(with_role(ministack, role), sts_endpoint=nowhere, attempts=1), name="nowhere")
    with pytest.raises(RetryLater) as caught:
        await bucket.sign_get("k", None, 60)
    assert caught.value.kind == "bucket-unreachable"
    await bucket.aclose()


async def test_a_role_is_assumed_once_for_all_and_again_before_it_ends(
    ministack: S3Server, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty-two first signatures assume a role once; ten minutes before its end it is assumed anew, once; a refusal
    then does no harm as long as the old keys last; no URL outlives them."""
    made: list[S3Settings] = []
    place = "entrepot_hub.adapters.buckets.s3_keys.make_sts_client"

    def count(settings: S3Settings, credentials: Credentials) -> Any:
        made.append(settings)
        return make_sts_client(settings, credentials)

    def refuse(*_: object) -> Any:
        raise OSError("away")

    monkeypatch.setattr(place, count)
    now = [time.time()]
    bucket = S3Bucket(with_role(ministack, role), name="once", clock=lambda: now[0])

    async def many() -> set[str]:
        signed = await asyncio.gather(*(bucket.sign_get(f"k{i}", None, 60) for i in range(32)))
        return {parse_qs(urlsplit(one.url).query)["X-Amz-Credential"][0] for one in signed}

    (first,) = await many()
    assert len(made) == 1
    now[0] += 3600 - 700
    assert await many() == {first}
    long = await bucket.sign_get("k", None, 3600)
    assert 600 < life_of(long.url) <= 700
    assert long.expires_at == pytest.approx(now[0] + life_of(long.url))
    now[0] += 200
    monkeypatch.setattr(place, refuse)
    assert await many() == {first}
    now[0] += 400
    monkeypatch.setattr(place, count)
    await many()  # one renews, the others go on meanwhile
    assert first not in await many()
    assert len(made) == 2
    await bucket.aclose()


@pytest.mark.parametrize("left", [3600.0, 90.5, 61.0])
async def test_a_url_ends_with_its_keys(left: float) -> None:
    """Of keys that end, no URL lives longer; what it says of its end is true. Keys without an end do not matter."""
    pair = S3Credentials(access_key="A", secret_key="S", session_token="T", expires=NOW + left)
    settings = replace(s3_settings(S3Server("http://127.0.0.1:1")), credentials=pair)
    bucket = S3Bucket(settings, name="ending", clock=lambda: NOW)
    for signed in (
        await bucket.sign_put("k", 1, bytes(32), 900),
        await bucket.sign_get("k", "e", 900),
    ):
        assert life_of(signed.url) == min(900, int(left))
        assert signed.expires_at == NOW + min(900, int(left))
    endless = replace(settings, credentials=replace(pair, expires=None))
    assert life_of((await S3Bucket(endless, name="endless").sign_get("k", None, 900)).url) == 900


@pytest.mark.parametrize("left", [59.0, 0.0, -1000.0])
async def test_keys_at_their_end_sign_nothing(left: float) -> None:
    """With less than a minute left, keys that nobody can renew are told as ended, with a hint, and nothing is asked."""
    pair = S3Credentials(access_key="A", secret_key="hidden", session_token="T", expires=NOW + left)
    settings = replace(s3_settings(S3Server("http://127.0.0.1:1")), credentials=pair)
    bucket = S3Bucket(settings, name="ended", clock=lambda: NOW)
    for call in (bucket.sign_put("k", 1, bytes(32), 900), bucket.sign_get("k", None, 60), bucket.head("k")):
        with pytest.raises(Denied) as caught:
            await call
        assert caught.value.kind == "expired"
        assert caught.value.hint
        assert "hidden" not in repr(caught.value)
    await bucket.aclose()


ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAFOREIGN",
    "AWS_SECRET_ACCESS_KEY": "foreign",
    "AWS_SESSION_TOKEN": "foreign",
    "AWS_REGION": "eu-foreign-1",
    "AWS_DEFAULT_REGION": "eu-foreign-1",
    "AWS_PROFILE": "absent",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
    "AWS_CA_BUNDLE": "/absent/ca.pem",
    "AWS_USE_DUALSTACK_ENDPOINT": "true",
    "AWS_USE_FIPS_ENDPOINT": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported",
    "AWS_MAX_ATTEMPTS": "9",
    "AWS_RETRY_MODE": "adaptive",
    "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": "legacy",
}
CONFIG = """[default]
region = eu-foreign-1
aws_access_key_id = AKIAFOREIGN
aws_secret_access_key = foreign
endpoint_url = http://127.0.0.1:1
s3 =
    addressing_style = virtual
    payload_signing_enabled = true
"""


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that is set up for something else, by environment and by files."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".aws").mkdir()
    for name in ("config", "credentials"):
        (tmp_path / ".aws" / name).write_text(CONFIG)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


async def test_the_machine_s_settings_do_not_reach_a_bucket(ministack: S3Server, role: str, foreign: Path) -> None:
    """With keys of its own, plain or for a role, a bucket works as if the machine had no settings for AWS at all."""
    for settings in (s3_settings(ministack), with_role(ministack, role)):
        async with S3Bucket(settings, name="own") as bucket:
            key = f"k{secrets.token_hex(4)}"
            assert await bucket.create(key, DATA)
            signed = await bucket.sign_get(key, None, 60)
            assert (await send(signed)).body == DATA
            assert "FOREIGN" not in signed.url
            assert "foreign" not in signed.url


@pytest.mark.parametrize("where", ["environment", "file", "process"])
async def test_the_machine_s_own_keys_are_found(
    ministack: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A bucket that is to be reached by what the machine may do finds keys in the environment, a file or a program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    if where == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ministack.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ministack.secret_key)
    elif where == "file":
        text = f"[default]\naws_access_key_id={ministack.access_key}\naws_secret_access_key={ministack.secret_key}\n"
        (tmp_path / ".aws" / "credentials").write_text(text)
    else:
        answer = {"Version": 1, "AccessKeyId": ministack.access_key, "SecretAccessKey": ministack.secret_key}
        (tmp_path / "keys.json").write_text(json.dumps(answer))
        (tmp_path / ".aws" / "config").write_text(f"[default]\ncredential_process = cat {tmp_path}/keys.json\n")
    settings = replace(s3_settings(ministack, bucket="ambient"), credentials=S3Ambient())
    async with S3Bucket(settings, name="ambient") as bucket:
        key = f"k{secrets.token_hex(4)}"
        signed = await bucket.sign_put(key, len(DATA), digest_of(DATA), 300)
        assert ministack.access_key in signed.url
        assert (await send(signed, DATA)).accepted
        assert await bucket.read(key, 0, 100) == DATA


async def test_the_machine_s_own_keys_end_too(
    ministack: S3Server, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary keys that the machine gets from a program say when they end, and URLs end with them."""
    sts = plain(ministack, "sts")
    got = sts.assume_role(RoleArn=role, RoleSessionName="machine", ExternalId=EXTERNAL, DurationSeconds=1800)[
        "Credentials"
    ]
    sts.close()
    ends = got["Expiration"].timestamp()
    answer = {"Version": 1, **got, "Expiration": got["Expiration"].isoformat()}
    (tmp_path / ".aws").mkdir()
    (tmp_path / "keys.json").write_text(json.dumps(answer))
    (tmp_path / ".aws" / "config").write_text(f"[default]\ncredential_process = cat {tmp_path}/keys.json\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = replace(s3_settings(ministack, bucket="roles"), credentials=S3Ambient())
    async with S3Bucket(settings, name="ambient") as bucket:
        signed = await bucket.sign_put("of/machine", len(DATA), digest_of(DATA), 7200)
        assert life_of(signed.url) <= 1800
        assert signed.expires_at <= ends
        assert (await send(signed, DATA)).accepted
        assert await bucket.delete("of/machine")


async def test_a_machine_without_keys_is_told(
    ministack: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the machine has no keys, half of a pair or an absent profile, that is a denial with a hint."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    settings = replace(s3_settings(ministack), credentials=S3Ambient())

    async def told(change: Callable[[], None]) -> None:
        change()
        bucket = S3Bucket(settings, name="without")
        with pytest.raises(Denied) as caught:
            await bucket.sign_get("k", None, 60)
        assert caught.value.hint
        with pytest.raises(Denied):
            await bucket.head("k")
        await bucket.aclose()

    await told(lambda: None)
    await told(lambda: monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    await told(lambda: monkeypatch.setenv("AWS_PROFILE", "absent"))
