"""Where a bucket is, as people write it, and the one way in which the hub writes it.

    file:///srv/entrepot?prefix=lab
    s3://bucket/prefix?region=eu-central-1
    s3://bucket/prefix?region=us-east-1&endpoint=http://10.0.0.5:9000&public_endpoint=https://s3.example.org
    gs://bucket/prefix (or gcs://)
    azblob://container/prefix?account=name

Keys are never part of it: they are sealed elsewhere and passed apart. Nothing here needs a provider's library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.azure_settings import AzureSettings
from entrepot_hub.adapters.buckets.credentials import (
    AzureClient,
    AzureKey,
    Credentials,
    GcsAmbient,
    GcsServiceAccount,
    S3Ambient,
    S3Credentials,
)
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings
from entrepot_hub.adapters.buckets.interface import DigestKind, check_key
from entrepot_hub.adapters.buckets.s3_profiles import PROFILES, ProfileName
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

type Addressing = Literal["path", "virtual"]

#: The longest URL of a bucket in characters.
MAX_URL: Final = 2000

_HOST = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]")

_ADDRESSING: Final[Mapping[str, Addressing]] = {"path": "path", "virtual": "virtual"}
_PROFILES: Final[Mapping[str, ProfileName]] = {name: name for name in PROFILES}
_DIGESTS: Final[Mapping[str, DigestKind]] = {"sha256": "sha256", "md5": "md5"}
_YES_NO: Final[Mapping[str, bool]] = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderLocation:
    """A directory of the hub's machine; keys may begin with ``prefix``. ``create``: make it if it is missing."""

    path: Path
    prefix: str = ""
    create: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """A bucket on an S3 server; the fields are those of :class:`S3Settings`."""

    bucket: str
    region: str
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    addressing: Addressing | None = None
    profile: ProfileName | None = None
    digest: DigestKind | None = None
    create: bool = False

    def settings(self, credentials: Credentials) -> S3Settings:
        """All that the driver needs. Raises ``InvalidInput(invalid-setting)``, also for keys of another provider."""
        if not isinstance(credentials, S3Credentials | S3Ambient):
            raise _other_keys("an S3 bucket")
        return S3Settings(
            bucket=self.bucket,
            region=self.region,
            credentials=credentials,
            prefix=self.prefix,
            endpoint=self.endpoint,
            public_endpoint=self.public_endpoint,
            addressing=self.addressing,
            profile=self.profile,
            digest=self.digest,
            create=self.create,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsLocation:
    """A bucket of Google Cloud Storage. ``project``, ``location`` and ``storage_class`` count when it is made."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    project: str | None = None
    location: str | None = None
    storage_class: str | None = None
    create: bool = False

    def settings(self, credentials: Credentials) -> GcsSettings:
        """All that the driver needs. Raises ``InvalidInput(invalid-setting)``, also for keys of another provider."""
        if not isinstance(credentials, GcsServiceAccount | GcsAmbient):
            raise _other_keys("a Google bucket")
        return GcsSettings(
            bucket=self.bucket,
            credentials=credentials,
            prefix=self.prefix,
            endpoint=self.endpoint,
            public_endpoint=self.public_endpoint,
            project=self.project,
            location=self.location,
            storage_class=self.storage_class,
            create=self.create,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureLocation:
    """A container of Azure Blob Storage, in a storage account: the same name in another account is another place."""

    container: str
    account: str
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    create: bool = False

    def settings(self, credentials: Credentials) -> AzureSettings:
        """All that the driver needs. Raises ``InvalidInput(invalid-setting)``, also for keys of another provider or
        of another account."""
        if not isinstance(credentials, AzureKey | AzureClient):
            raise _other_keys("an Azure container")
        if credentials.account != self.account:
            raise InvalidInput("the keys are of another storage account than the URL", kind="invalid-setting")
        return AzureSettings(
            container=self.container,
            credentials=credentials,
            prefix=self.prefix,
            endpoint=self.endpoint,
            public_endpoint=self.public_endpoint,
            create=self.create,
        )


type Location = FolderLocation | S3Location | GcsLocation | AzureLocation


def parse_location(url: str) -> Location:
    """Read a bucket's URL. Raises ``InvalidInput(invalid-setting)`` for anything that is not exactly one."""
    if len(url) > MAX_URL or not url.isprintable():
        raise _bad("it is too long or has control characters")
    try:
        parts = urlsplit(url)
        query = (
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True, errors="strict") if parts.query else []
        )
        path = unquote(parts.path, errors="strict")
    except ValueError:
        # What the parser says quotes the text, and somebody may have put a key into it.
        raise _bad("it is not well formed") from None
    fields = _Fields(query)
    # A secret key may hold slashes: what stands before the @ need not be where a password does.
    if "@" in parts.netloc or ("@" in path and parts.scheme != "file"):
        raise _bad("keys do not belong into it")
    if parts.fragment:
        raise _bad("it has a fragment")
    read = _SCHEMES.get(parts.scheme)
    if read is None:
        raise _bad(f"{parts.scheme[:20]!a} is no kind of bucket that is known here")
    place = read(parts.netloc, path, fields)
    fields.finish()
    if len(spell_location(place)) > MAX_URL:
        raise _bad("it is too long")
    return place


def spell_location(place: Location) -> str:
    """The one spelling of a location: ``parse_location`` gives it back."""
    match place:
        case FolderLocation():
            base = f"file://{quote(str(place.path))}"
            fields: dict[str, str | None] = {"prefix": place.prefix or None}
        case S3Location():
            base = f"s3://{_joined(place.bucket, place.prefix)}"
            fields = {
                "region": place.region,
                "endpoint": place.endpoint,
                "public_endpoint": place.public_endpoint,
                "addressing": place.addressing,
                "profile": place.profile,
                "digest": place.digest,
            }
        case GcsLocation():
            base = f"gs://{_joined(place.bucket, place.prefix)}"
            fields = {
                "endpoint": place.endpoint,
                "public_endpoint": place.public_endpoint,
                "project": place.project,
                "location": place.location,
                "storage_class": place.storage_class,
            }
        case AzureLocation():
            base = f"azblob://{_joined(place.container, place.prefix)}"
            fields = {
                "account": place.account,
                "endpoint": place.endpoint,
                "public_endpoint": place.public_endpoint,
            }
    fields["create"] = "true" if place.create else None
    query = "&".join(f"{name}={quote(value, safe='/:')}" for name, value in fields.items() if value is not None)
    return f"{base}?{query}" if query else base


class _Fields:
    """The fields of a URL's query, each taken once."""

    def __init__(self, query: list[tuple[str, str]]) -> None:
        self._left = dict(query)
        if len(self._left) != len(query):
            raise _bad("a field is given twice")
        if any(not value.isprintable() or " " in value for value in self._left.values()):
            raise _bad("a field has blanks or control characters")

    def text(self, name: str) -> str | None:
        """A field, or none."""
        return self._left.pop(name, None)

    def choice[T](self, name: str, choices: Mapping[str, T]) -> T | None:
        """One of several, or none."""
        value = self.text(name)
        if value is None:
            return None
        if value not in choices:
            raise _bad(f"{name} is one of {', '.join(choices)}")
        return choices[value]

    def create(self) -> bool:
        """Whether the bucket is to be made."""
        return self.choice("create", _YES_NO) or False

    def endpoint(self, name: str) -> str | None:
        """The address of a server, without a slash at its end, the host in small letters."""
        value = self.text(name)
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        whole = parts.scheme in {"http", "https"} and _HOST.fullmatch(host) is not None and port != 0
        if not whole or parts.query or parts.fragment or "@" in parts.netloc or set(value) & set("?#\\"):
            raise _bad(f"its {name} is not http(s)://host[:port], without user, query and fragment")
        return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"

    def finish(self) -> None:
        """See that nothing is left."""
        if self._left:
            raise _bad(f"unknown field {min(self._left)[:50]!a}")


def _folder(host: str, path: str, fields: _Fields) -> FolderLocation:
    if host not in {"", "localhost"}:
        raise _bad("a folder is on the hub's own machine: file:///path")
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or not path.isprintable() or len(pure.parts) < 2:
        raise _bad("a folder needs an absolute path below the root, without '..'")
    return FolderLocation(
        path=Path("/", *pure.parts[1:]),
        prefix=_prefix(fields.text("prefix") or ""),
        create=fields.create(),
    )


def _s3(bucket: str, path: str, fields: _Fields) -> S3Location:
    region = fields.text("region")
    if region is None:
        raise _bad("the region is missing ('auto' for R2)")
    location = S3Location(
        bucket=bucket,
        region=region,
        prefix=_prefix(path.strip("/")),
        endpoint=fields.endpoint("endpoint"),
        public_endpoint=fields.endpoint("public_endpoint"),
        addressing=fields.choice("addressing", _ADDRESSING),
        profile=fields.choice("profile", _PROFILES),
        digest=fields.choice("digest", _DIGESTS),
        create=fields.create(),
    )
    with _hinted("s3://bucket/prefix?region=eu-central-1"):
        location.settings(S3Credentials(access_key="checked", secret_key="elsewhere"))
    return location


def _gcs(bucket: str, path: str, fields: _Fields) -> GcsLocation:
    location = GcsLocation(
        bucket=bucket,
        prefix=_prefix(path.strip("/")),
        endpoint=fields.endpoint("endpoint"),
        public_endpoint=fields.endpoint("public_endpoint"),
        project=fields.text("project"),
        location=fields.text("location"),
        storage_class=fields.text("storage_class"),
        create=fields.create(),
    )
    with _hinted("gs://bucket/prefix"):
        location.settings(GcsAmbient())
    return location


def _azure(container: str, path: str, fields: _Fields) -> AzureLocation:
    account = fields.text("account")
    if account is None:
        raise _bad("the storage account is missing: azblob://container?account=name")
    location = AzureLocation(
        container=container,
        account=account,
        prefix=_prefix(path.strip("/")),
        endpoint=fields.endpoint("endpoint"),
        public_endpoint=fields.endpoint("public_endpoint"),
        create=fields.create(),
    )
    with _hinted("azblob://container/prefix?account=name"):
        location.settings(AzureKey(account=account, key="bm9uZQ=="))
    return location


_SCHEMES: Final[Mapping[str, Callable[[str, str, _Fields], Location]]] = {
    "file": _folder,
    "s3": _s3,
    "gs": _gcs,
    "gcs": _gcs,
    "azblob": _azure,
}


def _prefix(text: str) -> str:
    return check_key(text) if text else ""


def _joined(bucket: str, prefix: str) -> str:
    return f"{bucket}/{prefix}" if prefix else bucket


@contextmanager
def _hinted(example: str) -> Iterator[None]:
    """What is wrong with a field, with an example if its settings give no hint of their own."""
    try:
        yield
    except InvalidInput as error:
        if error.hint is not None:
            raise
        hint = f"For example {example}; names have 3 or more small letters, digits and hyphens."
        raise InvalidInput(error.message, kind=error.kind, hint=hint, **error.data) from None


def _other_keys(what: str) -> InvalidInput:
    return InvalidInput(
        f"these keys are not for {what}",
        kind="invalid-setting",
        hint="Give the keys that belong to the kind of bucket that the URL names.",
    )


def _bad(reason: str) -> InvalidInput:
    return InvalidInput(
        f"this is no bucket's URL: {reason}",
        kind="invalid-setting",
        hint="For example file:///srv/entrepot, s3://bucket/prefix?region=eu-central-1, gs://bucket or "
        "azblob://container?account=name",
    )
