"""Where a bucket is, as people write it, and how it is opened.

    file:///srv/entrepot
    s3://bucket/prefix?region=eu-central-1
    s3://bucket/prefix?region=us-east-1&endpoint=http://10.0.0.5:9000&public_endpoint=https://s3.example.org

Keys are never part of it: they are sealed elsewhere and passed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.folder import FolderBucket, FolderSettings
from entrepot_hub.adapters.buckets.interface import Bucket, check_key
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

_S3_FIELDS: Final = frozenset({"region", "endpoint", "public_endpoint", "addressing", "profile", "create"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderLocation:
    """A directory of the hub's machine; keys may begin with ``prefix``."""

    path: Path
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """A bucket on an S3 server; the fields are those of :class:`S3Settings`."""

    bucket: str
    region: str
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    addressing: Literal["path", "virtual"] | None = None
    profile: Literal["aws", "generic"] | None = None
    create: bool = False

    def settings(self, credentials: S3Credentials) -> S3Settings:
        """All that the driver needs. Raises ``InvalidInput(invalid-setting)``."""
        return S3Settings(
            bucket=self.bucket,
            region=self.region,
            credentials=credentials,
            prefix=self.prefix,
            endpoint=self.endpoint,
            public_endpoint=self.public_endpoint,
            addressing=self.addressing,
            profile=self.profile,
            create=self.create,
        )


type Location = FolderLocation | S3Location


def parse_location(url: str) -> Location:
    """Read a bucket's URL. Raises ``InvalidInput(invalid-setting)`` for anything that is not exactly one."""
    if len(url) > 2000 or not url.isprintable():
        raise _bad("it is too long or has control characters")
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError as error:
        raise _bad(str(error)) from error
    fields = dict(query)
    if len(fields) != len(query):
        raise _bad("a field is given twice")
    if "@" in parts.netloc:
        raise _bad("keys do not belong into it")
    if parts.fragment:
        raise _bad("it has a fragment")
    match parts.scheme:
        case "file":
            return _folder(parts.netloc, unquote(parts.path), fields)
        case "s3":
            return _s3(parts.netloc, parts.path, fields)
        case _:
            raise _bad(f"{parts.scheme[:20]!a} is no kind of bucket that is known here")


def open_bucket(
    location: str | Location,
    *,
    name: str,
    credentials: S3Credentials | None = None,
    secret: bytes | None = None,
    public_url: str | None = None,
    folder: FolderSettings | None = None,
    clock: Callable[[], float] = time.time,
) -> Bucket:
    """The bucket at a location, not started yet; ``name`` is the hub's for it.

    An S3 bucket needs ``credentials``; a folder needs the hub's ``public_url`` and a ``secret`` of at least
    16 bytes that signs its URLs. Raises ``InvalidInput(invalid-setting)``.
    """
    place = parse_location(location) if isinstance(location, str) else location
    if isinstance(place, FolderLocation):
        if secret is None or public_url is None:
            raise InvalidInput("a folder bucket needs a secret and the hub's public URL", kind="invalid-setting")
        return FolderBucket(
            place.path,
            name=name,
            secret=secret,
            public_url=public_url,
            prefix=place.prefix,
            settings=folder,
            clock=clock,
        )
    if credentials is None:
        raise InvalidInput("an S3 bucket needs an access key and a secret key", kind="invalid-setting")
    # boto3 takes a third of a second to import, and who serves folders never needs it.
    from entrepot_hub.adapters.buckets.s3 import S3Bucket

    return S3Bucket(place.settings(credentials), name=name, clock=clock)


def _folder(host: str, path: str, fields: dict[str, str]) -> FolderLocation:
    if host not in {"", "localhost"}:
        raise _bad("a folder is on the hub's own machine: file:///path")
    unknown = fields.keys() - {"prefix"}
    if unknown:
        raise _bad(f"unknown field {min(unknown)[:50]!a}")
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or "\0" in path or len(pure.parts) < 2:
        raise _bad("a folder needs an absolute path below the root, without '..'")
    return FolderLocation(path=Path(path), prefix=_prefix(fields.get("prefix", "")))


def _s3(bucket: str, path: str, fields: dict[str, str]) -> S3Location:
    unknown = fields.keys() - _S3_FIELDS
    if unknown:
        raise _bad(f"unknown field {min(unknown)[:50]!a}")
    if "region" not in fields:
        raise _bad("the region is missing ('auto' for R2)")
    location = S3Location(
        bucket=bucket,
        region=fields["region"],
        prefix=_prefix(path.strip("/")),
        endpoint=fields.get("endpoint"),
        public_endpoint=fields.get("public_endpoint"),
        addressing=_choice(fields, "addressing", {None: None, "path": "path", "virtual": "virtual"}),
        profile=_choice(fields, "profile", {None: None, "aws": "aws", "generic": "generic"}),
        create=_choice(fields, "create", {None: False, "true": True, "false": False}),
    )
    location.settings(S3Credentials(access_key="checked", secret_key="elsewhere"))
    return location


def _choice[T](fields: dict[str, str], name: str, choices: dict[str | None, T]) -> T:
    value = fields.get(name)
    if value not in choices:
        known = ", ".join(sorted(choice for choice in choices if choice is not None))
        raise _bad(f"{name} is one of {known}")
    return choices[value]


def _prefix(text: str) -> str:
    return check_key(text) if text else ""


def _bad(reason: str) -> InvalidInput:
    return InvalidInput(
        f"this is no bucket's URL: {reason}",
        kind="invalid-setting",
        hint="For example file:///srv/entrepot or s3://bucket/prefix?region=eu-central-1",
    )
