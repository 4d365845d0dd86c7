"""How S3 settings turn into hosts, digests and claims, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import S3Ambient, S3Credentials
from entrepot_hub.adapters.buckets.s3_profiles import PROFILES
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

PAIR = S3Credentials(access_key="a", secret_key="hidden", session_token="hidden", external_id="hidden")


def settings(**given: Any) -> S3Settings:
    """Settings of a bucket "bucket" in eu-central-1."""
    filled: dict[str, Any] = {"bucket": "bucket", "region": "eu-central-1", "credentials": PAIR}
    return S3Settings(**(filled | given))


@pytest.mark.parametrize(
    ("given", "base", "roles"),
    [
        ({}, "https://bucket.s3.eu-central-1.amazonaws.com", "https://sts.eu-central-1.amazonaws.com"),
        ({"bucket": "a.b"}, "https://s3.eu-central-1.amazonaws.com/a.b", "https://sts.eu-central-1.amazonaws.com"),
        (
            {"region": "cn-north-1"},
            "https://bucket.s3.cn-north-1.amazonaws.com.cn",
            "https://sts.cn-north-1.amazonaws.com.cn",
        ),
        ({"addressing": "path"}, "https://s3.eu-central-1.amazonaws.com/bucket", None),
        ({"profile": "wasabi"}, "https://bucket.s3.eu-central-1.wasabisys.com", None),
        ({"profile": "gcs", "region": "auto"}, "https://storage.googleapis.com/bucket", None),
        ({"endpoint": "http://h:9000/x/"}, "http://h:9000/x/bucket", "http://h:9000/x/"),
        ({"endpoint": "https://h", "addressing": "virtual"}, "https://bucket.h", "https://h"),
        ({"endpoint": "https://h", "sts_endpoint": "https://sts"}, "https://h/bucket", "https://sts"),
        ({"endpoint": "https://h", "profile": "r2"}, "https://h/bucket", "https://h"),
    ],
)
def test_where_the_hub_goes(given: dict[str, Any], base: str, roles: str | None) -> None:
    """Provider, region, endpoint and addressing make the hub's and, unless another is given, the nodes' address."""
    made = settings(**given)
    assert made.hub_base == base
    assert made.public_base == base
    assert roles is None or made.roles_endpoint == roles
    other = settings(**given, public_endpoint="https://public.example")
    assert other.hub_base == base
    assert other.public_base in {
        "https://public.example/" + made.bucket,
        f"https://{made.bucket}.public.example",
    }


def test_what_is_assumed_of_a_provider() -> None:
    """Amazon is taken at its word, an unknown server for nothing but expiry; a digest can be chosen."""
    assert settings().traits is PROFILES["aws"]
    assert settings(endpoint="https://h").traits is PROFILES["generic"]
    assert settings(endpoint="https://h").digest_kind == "sha256"
    assert settings(endpoint="https://h", digest="md5").digest_kind == "md5"
    assert [name for name, traits in PROFILES.items() if traits.digest == "md5"] == ["r2", "wasabi", "gcs"]
    assert not settings(profile="gcs").binds.create_only
    assert not settings(endpoint="https://h").binds.length


@pytest.mark.parametrize(
    "given",
    [
        {"bucket": "a/b"},
        {"bucket": ""},
        {"region": ""},
        {"region": "a b"},
        {"prefix": "ä"},
        {"profile": "r2"},
        {"profile": "minio"},
        {"profile": "generic"},
        {"endpoint": "h:9000"},
        {"endpoint": "https://user@h"},
        {"public_endpoint": "https://h?x=y"},
        {"sts_endpoint": "ftp://h"},
        {"ca": Path("ca.pem")},
    ],
)
def test_what_is_refused(given: dict[str, Any]) -> None:
    """Names, regions and addresses that cannot be are told when the settings are made."""
    with pytest.raises(InvalidInput):
        settings(**given)


def test_no_secret_shows() -> None:
    """Whatever the credentials are, their secrets are not in the settings' repr."""
    for credentials in (PAIR, S3Ambient(role="arn", external_id="hidden")):
        assert "hidden" not in repr(settings(credentials=credentials))
