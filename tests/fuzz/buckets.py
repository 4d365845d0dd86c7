"""Decoders of where a bucket is, of its keys, of signed URLs, and of what providers answer."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, cast
from urllib.parse import parse_qsl

from tests.fuzz.core import DATA, HUB, NOW, URL
from tests.fuzz.targets import Target, chosen, each, finished, text_of

from entrepot.core.errors import InvalidInput, NotFound, to_wire
from entrepot_hub.adapters.buckets import folder_web, gcs_facts, keys, location
from entrepot_hub.adapters.buckets.credentials import GcsServiceAccount
from entrepot_hub.adapters.buckets.folder_urls import Permission, UrlSigner
from entrepot_hub.adapters.buckets.gcs_link import Answer
from entrepot_hub.adapters.buckets.gcs_settings import parse_service_account
from entrepot_hub.adapters.buckets.interface import Entry
from entrepot_hub.adapters.configuration import read_configuration
from entrepot_hub.core.origins import Origin, find_origin
from entrepot_hub.services import origins
from entrepot_hub.services.vault import Vault

# --- buckets: where they are, their keys, signed URLs -------------------------------------------------------------


def run_location(data: bytes) -> object:
    """A bucket's URL has one spelling that leads to the same place."""
    found = location.parse_location(text_of(data))
    spelled = location.spell_location(found)
    assert location.parse_location(spelled) == found
    assert location.spell_location(location.parse_location(spelled)) == spelled
    return found


PLACES = [
    "s3://bucket/prefix?region=us-east-1&endpoint=http://10.0.0.5:9000&public_endpoint=https://s3.example.org",
    "gs://bucket/prefix",
    "azblob://container/prefix?account=name",
    "file:///srv/entrepot?prefix=lab",
    "s3://bucket?region=auto&profile=r2&addressing=path&digest=md5&create=true&endpoint=https://a.r2.cloudflarestorage.com",
    "azblob://container?account=devstoreaccount1&endpoint=http://127.0.0.1:10000/devstoreaccount1",
]


@cache
def _places() -> list[location.Location]:
    return [location.parse_location(url) for url in PLACES]


def run_keys(data: bytes) -> object:
    """A bucket's keys: what is taken can be sealed and comes back; an error shows nothing of what was given."""
    place, rest = chosen(data, _places())
    try:
        found = keys.parse_keys(rest, place)
    except InvalidInput as error:
        if error.kind != "invalid-setting" or "hushhush" in json.dumps(to_wire(error)):
            raise AssertionError("the error shows what was given") from error
        raise
    repr(found)
    assert "hushhush" not in repr(found)
    assert isinstance(found.label, str)
    assert keys.decode_keys(keys.encode_keys(found)) == found
    return found


def key_samples() -> list[bytes]:
    """The forms of each provider."""
    account = {
        "type": "service_account",
        "client_email": "hub@project.iam.gserviceaccount.com",
        "private_key": "-----BEGIN PRIVATE KEY-----\nhushhush\n-----END PRIVATE KEY-----\n",
        "private_key_id": "0123456789abcdef",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    connection = (
        "DefaultEndpointsProtocol=https;AccountName=name;AccountKey=aHVzaGh1c2g=;EndpointSuffix=core.windows.net"
    )
    forms = [
        (0, json.dumps({"access_key": "AK", "secret_key": "hushhush", "expires": "2026-11-21T12:00:00+01:00"})),
        (0, "[default]\naws_access_key_id = AK\naws_secret_access_key = hushhush\n"),
        (0, 'access_key = "AK"\nsecret_key = "hushhush"\nexpires = 2026-11-21T12:00:00Z\n'),
        (
            0,
            json.dumps(
                {"Credentials": {"AccessKeyId": "A", "SecretAccessKey": "hushhush", "Expiration": "2026-11-21"}}
            ),
        ),
        (0, '{"ambient": true, "role": "arn:aws:iam::1:role/x"}'),
        (1, json.dumps(account)),
        (1, '{"ambient": true}'),
        (2, connection),
        (2, '{"tenant": "t", "client": "c", "secret": "hushhush"}'),
        (2, '{"key": "aHVzaGh1c2g="}'),
        (5, '{"key": "aHVzaGh1c2g="}'),
    ]
    return [bytes([at]) + text.encode() for at, text in forms]


def run_sealed_keys(data: bytes) -> object:
    """What came out of a seal: keys that are sealed to the same."""
    found = keys.decode_keys(data)
    assert keys.decode_keys(keys.encode_keys(found)) == found
    return found


def sealed_key_samples() -> list[bytes]:
    """One of each provider, and the first form."""
    found = [keys.encode_keys(keys.parse_keys(sample[1:], _places()[sample[0]])) for sample in key_samples()[:1]]
    return [*found, b'{"access_key":"a","secret_key":"b"}', b'{"kind":"gcs-ambient","keys":{"client_email":null}}']


def run_service_account(data: bytes) -> object:
    """The document of a Google service account."""
    account = GcsServiceAccount(
        document=data.decode("utf-8", "replace"), client_email="hub@project.iam.gserviceaccount.com"
    )
    assert isinstance(account.label, str)
    return parse_service_account(account, "http://127.0.0.1:4443")


def run_origin(data: bytes) -> object:
    """Another program's configuration file, as far as a bucket and its keys."""
    name, rest = chosen(data, ("c.yaml", "c.toml", "c.json", ".env"))
    values = read_configuration(rest, name)
    found: Origin | None = None
    for side in (None, "in"):
        try:
            found = find_origin(values, cast("Any", side))
        except InvalidInput:
            continue
    if found is None:
        return None
    place = location.parse_location(found.url)
    if found.credentials is not None:
        keys.parse_keys(origins.keys_of(found.credentials.encode("utf-8", "replace")).encode(), place)
    return place


def origin_samples() -> list[bytes]:
    """The files of the data folder, and some of each kind."""
    files = sorted((DATA / "origins").glob("*.*"))
    kinds = {".env": 3, ".yaml": 0}
    found = [bytes([kinds[path.suffix]]) + path.read_bytes() for path in files if path.suffix in kinds]
    block = {"external_media_stream_storage": {"gcs_storage": {"bucket": "b", "json_credentials": '{"ambient": true}'}}}
    toml = (
        b'[a.external_media_stream_storage.aws_s3]\nregion="x"\nbucket="b"\naccess_key_id="a"\nsecret_access_key="s"\n'
    )
    return [
        *found,
        b"\x02" + json.dumps(block).encode(),
        b"\x01" + toml,
        b"\x00a: !!int 7\nb: 2001-12-14t21:59:43.10-05:00\nc: &x [1, 2]\nd: *x\ne: 1:30:00.5\nf: !!binary aGVsbG8=\n",
    ]


def run_environment(data: bytes) -> object:
    """The same out of an environment."""
    lines = [line.partition("=") for line in text_of(data).split("\n") if "=" in line]
    found = origins.origin_of_environment({name: value for name, _, value in lines})
    return location.parse_location(found.url)


def environment_samples() -> list[bytes]:
    """Each of the programs' own examples."""
    return [path.read_bytes() for path in sorted((DATA / "origins").glob("*.env"))]


@cache
def signer() -> UrlSigner:
    """Of a folder bucket."""
    return UrlSigner("store", URL, b"0123456789abcdef")


def run_folder_url(data: bytes) -> object:
    """A signed URL of a folder bucket: it permits what it was signed for."""
    method, rest = chosen(data, ("GET", "PUT"))
    key, _, query = text_of(rest).partition("?")
    found = signer().verify(method, key, parse_qsl(query, keep_blank_values=True, errors="surrogateescape"), NOW)
    assert f"{URL}/bucket/store/{key}?" in signer().sign(found)
    assert (found.key, found.method) == (key, method)
    assert found in _permissions()
    return found


@cache
def _permissions() -> list[Permission]:
    end = int(NOW) + 60
    return [
        Permission(method="GET", key="lab/k1", expires=end),
        Permission(method="PUT", key="lab/k1", expires=end, length=5, digest=bytes(32)),
        Permission(method="GET", key="lab/k1", expires=end, etag="e1"),
    ]


def folder_url_samples() -> list[bytes]:
    """A GET, a PUT, a GET of one etag."""
    return each(range(2), [signer().sign(each_).partition("/store/")[2].encode() for each_ in _permissions()])


def run_byte_range(data: bytes) -> object:
    """The Range header of a GET of a folder bucket: a part of the object, or none."""
    entry = Entry(key="k", length=100, etag="e", modified=NOW)
    offset, count = folder_web._range([text_of(line) for line in data.split(b"\n")], entry)
    assert 0 <= offset < offset + count <= entry.length
    return offset, count


# --- what servers answer ---


def run_google_facts(data: bytes) -> object:
    """What is said to be a Google bucket's record, policy and list."""
    found: list[bytes] = data.split(b"\n", 2)

    def ask(path: str, *_: str, **__: str) -> Any:
        at = {"": 0, "/iam": 1}.get(path, 2)
        return Answer(found[at] if at < len(found) else b"").fields()

    link = cast("Any", type("Link", (), {"ask": None, "skew": lambda _self: None})())
    try:
        return gcs_facts._examine(ask, link.skew(), "lab", {})
    except (AttributeError, TypeError, ValueError):
        # ``examine`` turns these, and no others, into an error of ours.
        return None


def google_samples() -> list[bytes]:
    """A bucket with everything set."""
    record = {
        "location": "EU",
        "storageClass": "STANDARD",
        "autoclass": {"enabled": True},
        "versioning": {"enabled": True},
        "softDeletePolicy": {"retentionDurationSeconds": "604800"},
        "retentionPolicy": {"retentionPeriod": "60"},
        "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": False}},
        "lifecycle": {
            "rule": [
                {"action": {"type": "Delete"}, "condition": {"age": 3, "matchesPrefix": ["lab"]}},
                {"action": {"type": "SetStorageClass", "storageClass": "COLD"}, "condition": {"createdBefore": "x"}},
            ]
        },
        "cors": [{}],
    }
    policy = {"bindings": [{"role": "roles/storage.objectViewer", "members": ["user:a"]}]}
    return [b"\n".join(json.dumps(part).encode() for part in (record, policy, {"items": [{"entity": "allUsers"}]}))]


class _Marked:
    """A bucket with a mark of its owner."""

    prefix = "lab"

    def __init__(self, mark: bytes) -> None:
        self._mark = mark

    async def read(self, _key: str, offset: int, length: int) -> bytes:
        if not self._mark:
            raise NotFound("no mark", kind="no-such-object")
        return self._mark[offset : offset + length]


def run_mark(data: bytes) -> object:
    """The mark of a prefix's owner: a name, or one that cannot be read."""
    owner = finished(Vault.owner(cast("Any", _Marked(data))))
    assert owner is None or owner == "?" or isinstance(owner, str)
    return owner


def _hub(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"entrepot_hub.{module}:{name}" for name in names)


TARGETS: tuple[Target, ...] = (
    Target(
        name="bucket's URL",
        run=run_location,
        samples=lambda: [url.encode() for url in PLACES],
        covers=_hub("adapters.buckets.location", "parse_location"),
        main=True,
    ),
    Target(
        name="bucket's keys",
        run=run_keys,
        samples=key_samples,
        covers=_hub("adapters.buckets.keys", "parse_keys", "decode_keys"),
        main=True,
    ),
    Target(
        name="bucket's keys out of a seal",
        run=run_sealed_keys,
        samples=sealed_key_samples,
        covers=_hub("adapters.buckets.keys", "decode_keys"),
    ),
    Target(
        name="service account",
        run=run_service_account,
        samples=lambda: [key_samples()[5][1:]],
        covers=_hub("adapters.buckets.gcs_settings", "parse_service_account"),
    ),
    Target(
        name="another program's configuration",
        run=run_origin,
        samples=origin_samples,
        covers=(*_hub("adapters.configuration", "read_configuration"), *_hub("adapters.buckets.keys", "parse_keys")),
        main=True,
    ),
    Target(name="environment", run=run_environment, samples=environment_samples, covers=()),
    Target(
        name="signed URL of a folder",
        run=run_folder_url,
        samples=folder_url_samples,
        covers=_hub("adapters.buckets.folder_urls", "UrlSigner.verify"),
        main=True,
    ),
    Target(
        name="range of a GET",
        run=run_byte_range,
        samples=lambda: [b"bytes=0-9", b"bytes=5-", b"bytes=-5"],
        covers=(),
    ),
    Target(name="Google's answer", run=run_google_facts, samples=google_samples, covers=()),
    Target(name="owner's mark", run=run_mark, samples=lambda: [b'{"hub":"%s"}' % HUB.encode()], covers=()),
)
