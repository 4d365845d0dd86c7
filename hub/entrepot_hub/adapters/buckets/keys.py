"""A bucket's keys as people keep them, and as the hub seals them.

What is taken depends on where the bucket is. Beside our own form (JSON or TOML) each provider's own files are read as
they come: nobody should have to retype a secret. No error shows anything of what was given, not even a field's name.
"""

from __future__ import annotations

import base64
import binascii
import configparser
import json
import tomllib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from entrepot.core.errors import Corrupt, InvalidInput
from entrepot_hub.adapters.buckets.credentials import (
    AzureClient,
    AzureKey,
    Credentials,
    GcsAmbient,
    GcsServiceAccount,
    S3Ambient,
    S3Credentials,
)
from entrepot_hub.adapters.buckets.location import AzureLocation, FolderLocation, GcsLocation, Location, S3Location

#: The longest document in bytes; a service account's, in base64, is about 3,200.
MAX_KEYS: Final = 32768

_S3_HINT: Final = 'Write {"access_key": "…", "secret_key": "…"}, or {"ambient": true} for the machine\'s own identity.'
_GCS_HINT: Final = 'Give the service account\'s JSON file as downloaded, or {"ambient": true} for workload identity.'
_AZURE_HINT: Final = (
    'Write {"key": "…"}, or {"tenant": "…", "client": "…", "secret": "…"}, or give the account\'s connection string.'
)

#: What the same thing is called in files of AWS (its command line's, STS, IAM), MinIO and River.
_S3_NAMES: Final = {
    "access_key": "access_key",
    "secret_key": "secret_key",
    "session_token": "session_token",
    "expires": "expires",
    "role": "role",
    "external_id": "external_id",
    "aws_access_key_id": "access_key",
    "aws_secret_access_key": "secret_key",
    "aws_session_token": "session_token",
    "role_arn": "role",
    "access_key_id": "access_key",
    "secret_access_key": "secret_key",
    "AccessKeyId": "access_key",
    "SecretAccessKey": "secret_key",
    "SessionToken": "session_token",
    "Expiration": "expires",
    "accessKey": "access_key",
    "secretKey": "secret_key",
}
#: What stands beside them in those files and is of no use here.
_S3_BESIDE: Final = frozenset(
    {"Version", "UserName", "Status", "CreateDate", "AccountId", "region", "output", "url", "api", "path"}
)
_STS_BESIDE: Final = frozenset(
    {
        "AssumedRoleUser",
        "Audience",
        "PackedPolicySize",
        "Provider",
        "ResponseMetadata",
        "SourceIdentity",
        "SubjectFromWebIdentityToken",
    }
)
_AZURE_NAMES: Final = {
    "account": "account",
    "key": "key",
    "tenant": "tenant",
    "client": "client",
    "secret": "secret",
    "AccountName": "account",
    "AccountKey": "key",
    "appId": "client",
    "password": "secret",
    "clientId": "client",
    "clientSecret": "secret",
    "tenantId": "tenant",
}
_AZURE_BESIDE: Final = frozenset(
    {
        "displayName",
        "name",
        "subscriptionId",
        "activeDirectoryEndpointUrl",
        "resourceManagerEndpointUrl",
        "activeDirectoryGraphResourceId",
        "sqlManagementEndpointUrl",
        "galleryEndpointUrl",
        "managementEndpointUrl",
    }
)
_CONNECTION_BESIDE: Final = frozenset({"QueueEndpoint", "TableEndpoint", "FileEndpoint"})
_AZURE_SUFFIX: Final = "core.windows.net"


def parse_keys(document: bytes, location: Location) -> Credentials:
    """The keys of the bucket at ``location``, from a document of at most :data:`MAX_KEYS` bytes.

    S3: ours (``access_key``, ``secret_key``, ``session_token``, ``expires`` in unix seconds or ISO 8601, ``role``,
    ``external_id``) in JSON or TOML, a credentials file of AWS, an answer of ``sts assume-role``, ``iam
    create-access-key`` or a ``credential_process``, or MinIO's file. Google: a service account's JSON, plain or in
    base64. Azure: ours (``account``, ``key``, or ``tenant``, ``client``, ``secret``), a connection string, or an answer
    of ``az ad sp create-for-rbac``; the account may be left to the URL. ``{"ambient": true}`` is the machine's own
    identity.
    Raises ``InvalidInput(invalid-setting)``, never showing what was given.
    """
    match location:
        case FolderLocation():
            raise InvalidInput("a folder needs no keys", kind="invalid-setting")
        case S3Location():
            keys: Credentials = _s3(document)
        case GcsLocation():
            keys = _gcs(document)
        case AzureLocation():
            keys = _azure(document, location)
    location.settings(keys)
    return keys


# --- S3 ---------------------------------------------------------------------------------------------------------


def _s3(document: bytes) -> S3Credentials | S3Ambient:
    given = _unwrapped(_fields(document, _S3_HINT))
    ambient = given.pop("ambient", False)
    fields = _renamed(given, _S3_NAMES, _S3_BESIDE, _S3_HINT)
    expires = _moment(fields.pop("expires", None))
    texts = _texts(fields, _S3_HINT)
    role, external_id = texts.get("role"), texts.get("external_id")
    if ambient is True:
        if texts.keys() - {"role", "external_id"} or expires is not None:
            raise _refusal("the machine's own identity needs no keys", _S3_HINT)
        return S3Ambient(role=role, external_id=external_id)
    if ambient is not False or not {"access_key", "secret_key"} <= texts.keys():
        raise _refusal("these are no keys of a bucket: an access key and a secret key are needed", _S3_HINT)
    return S3Credentials(
        access_key=texts["access_key"],
        secret_key=texts["secret_key"],
        session_token=texts.get("session_token"),
        expires=expires,
        role=role,
        external_id=external_id,
    )


def _unwrapped(given: dict[str, Any]) -> dict[str, Any]:
    """What stands in the wrapping of STS, of IAM, or of the only or the default profile of a credentials file."""
    for wrapping in ("Credentials", "AccessKey"):
        inner = given.get(wrapping)
        if isinstance(inner, dict) and not given.keys() - _STS_BESIDE - {wrapping}:
            return dict(inner)
    if given and all(isinstance(value, dict) for value in given.values()):
        if "default" not in given and len(given) > 1:
            raise _refusal("these keys have several profiles, none of them called default", _S3_HINT)
        return dict(given.get("default") or next(iter(given.values())))
    return given


def _moment(value: object) -> float | None:
    """Unix seconds, of a number or of ISO 8601 with a time zone."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise _no_moment()
        return value.timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e11:
        return float(value)
    raise _no_moment()


def _no_moment() -> InvalidInput:
    return _refusal("the end of temporary keys is in unix seconds or in ISO 8601 with a time zone", _S3_HINT)


# --- Google -----------------------------------------------------------------------------------------------------


def _gcs(document: bytes) -> GcsServiceAccount | GcsAmbient:
    text = document.strip()
    if not text.startswith(b"{"):
        text = _plain(text)
    given = _fields(text, _GCS_HINT)
    if given.get("ambient") is True:
        texts = _texts({name: value for name, value in given.items() if name != "ambient"}, _GCS_HINT)
        if texts.keys() - {"client_email"}:
            raise _refusal("the machine's own identity needs no keys", _GCS_HINT)
        return GcsAmbient(client_email=texts.get("client_email"))
    if given.get("type") != "service_account":
        raise _refusal("these are no keys of a Google service account", _GCS_HINT)
    email = given.get("client_email")
    if not isinstance(email, str) or not email:
        raise _refusal("this service account's file lacks its client_email", _GCS_HINT)
    return GcsServiceAccount(document=text.decode(), client_email=email)


def _plain(text: bytes) -> bytes:
    """What was written in base64, in lines or in one."""
    try:
        return base64.b64decode(b"".join(text.split()).replace(b"-", b"+").replace(b"_", b"/"), validate=True).strip()
    except binascii.Error:
        return text


# --- Azure ------------------------------------------------------------------------------------------------------


def _azure(document: bytes, location: AzureLocation) -> AzureKey | AzureClient:
    text = document.strip()
    if b"AccountName=" in text and not text.startswith(b"{") and b"\n" not in text:
        given = _connection(text, location)
    else:
        given = _fields(text, _AZURE_HINT)
    if given.get("ambient") is True:
        raise _refusal("on Azure the machine's own identity cannot be used", _AZURE_HINT)
    texts = _texts(_renamed(given, _AZURE_NAMES, _AZURE_BESIDE, _AZURE_HINT), _AZURE_HINT)
    account = texts.pop("account", location.account)
    if account != location.account:
        raise _refusal("the keys are of another storage account than the bucket's URL", _AZURE_HINT)
    if texts.keys() == {"key"}:
        return AzureKey(account=account, key=texts["key"])
    if texts.keys() == {"tenant", "client", "secret"}:
        return AzureClient(account=account, tenant=texts["tenant"], client=texts["client"], secret=texts["secret"])
    raise _refusal("these are no keys of a storage account", _AZURE_HINT)


def _connection(text: bytes, location: AzureLocation) -> dict[str, Any]:
    """The parts of a connection string that are keys. Where it leads must be where the URL leads."""
    pairs = [part.partition("=") for part in text.decode(errors="replace").split(";") if part.strip()]
    given = {name.strip(): value.strip() for name, _, value in pairs}
    if len(given) != len(pairs):
        raise _refusal("this connection string has a part twice", _AZURE_HINT)
    if "SharedAccessSignature" in given:
        raise _refusal("a shared access signature cannot sign: the account's key is needed", _AZURE_HINT)
    protocol = given.pop("DefaultEndpointsProtocol", "https")
    suffix = given.pop("EndpointSuffix", _AZURE_SUFFIX)
    account = given.get("AccountName", "")
    leads_to = given.pop("BlobEndpoint", f"{protocol}://{account}.blob.{suffix}").rstrip("/")
    if _server(leads_to) != _server(location.endpoint or f"https://{location.account}.blob.{_AZURE_SUFFIX}"):
        raise _refusal(
            "the connection string leads to another server than the bucket's URL",
            "Add &endpoint= to the URL, with the BlobEndpoint of the connection string.",
        )
    return {name: value for name, value in given.items() if name not in _CONNECTION_BESIDE}


def _server(url: str) -> tuple[str, str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ("", "", "")
    return parts.scheme.lower(), parts.netloc.lower(), parts.path.rstrip("/")


# --- documents --------------------------------------------------------------------------------------------------


def _fields(document: bytes, hint: str) -> dict[str, Any]:
    """The fields of a document in JSON, TOML, or the form of AWS's credentials file."""
    if len(document) > MAX_KEYS:
        raise _refusal("these are no keys of a bucket: they are too long", hint)
    try:
        text = document.decode("utf-8-sig")
        given = json.loads(text, object_pairs_hook=_once) if text.lstrip()[:1] == "{" else _toml_or_ini(text)
    except (ValueError, RecursionError, configparser.Error):
        given = None
    if not isinstance(given, dict) or not given:
        raise _refusal("these are no keys of a bucket", hint)
    return given


def _toml_or_ini(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        reader = configparser.ConfigParser(interpolation=None, default_section="")
        reader.read_string(text)
        return {name: dict(section) for name, section in reader.items() if name}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError
    return fields


def _renamed(given: Mapping[str, Any], names: Mapping[str, str], beside: Iterable[str], hint: str) -> dict[str, Any]:
    """The fields by our names; what is empty was not given."""
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name in beside or value in ("", None):
            continue
        if name not in names or names[name] in fields:
            raise _refusal("these are no keys of a bucket: a field is unknown, or is there twice", hint)
        fields[names[name]] = value
    return fields


def _texts(fields: Mapping[str, Any], hint: str) -> dict[str, str]:
    """The fields, if each is a text that could stand in a header."""
    if not all(isinstance(value, str) and value.isascii() and value.isprintable() for value in fields.values()):
        raise _refusal("these are no keys of a bucket: a field is no plain text", hint)
    return dict(fields)


def _refusal(reason: str, hint: str) -> InvalidInput:
    return InvalidInput(reason, kind="invalid-setting", hint=hint)


# --- sealed -----------------------------------------------------------------------------------------------------

_KINDS: Final[Mapping[str, type[Any]]] = {
    "s3": S3Credentials,
    "s3-ambient": S3Ambient,
    "gcs": GcsServiceAccount,
    "gcs-ambient": GcsAmbient,
    "azure-key": AzureKey,
    "azure-client": AzureClient,
}


class _Stored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies in the seal. Another version of it is another number."""

    version: Literal[1] = 1
    kind: str
    keys: msgspec.Raw


class _FirstStored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lay in the seal before there were several kinds of keys."""

    access_key: str
    secret_key: str
    session_token: str | None = None


def encode_keys(keys: Credentials) -> bytes:
    """The keys as they go into a seal: JSON with a version and a kind."""
    kind = next(name for name, form in _KINDS.items() if isinstance(keys, form))
    return msgspec.json.encode(_Stored(kind=kind, keys=msgspec.Raw(msgspec.json.encode(keys))))


def decode_keys(data: bytes) -> Credentials:
    """The keys that :func:`encode_keys`, or the first version of this hub, wrote. Raises ``Corrupt`` for anything else,
    not showing it."""
    keys: Credentials | None = None
    try:
        if "kind" in msgspec.json.decode(data, type=dict[str, msgspec.Raw]):
            stored = msgspec.json.decode(data, type=_Stored)
            if stored.kind in _KINDS:
                keys = msgspec.json.decode(stored.keys, type=_KINDS[stored.kind])
        else:
            first = msgspec.json.decode(data, type=_FirstStored)
            keys = S3Credentials(
                access_key=first.access_key, secret_key=first.secret_key, session_token=first.session_token
            )
    except (msgspec.MsgspecError, ValueError, InvalidInput):
        keys = None
    if keys is None:
        raise Corrupt("the sealed keys of a bucket are of a form that is not known here")
    return keys
