"""Where the programs that this project comes from write their bucket down, read as what they mean.

Three families of spellings, each as its own documentation has it:

- River's (Towns) ``external_media_stream_storage`` with ``gcs_storage`` or ``aws_s3``, as a block of a file or as
  variables that begin with ``RIVER_EXTERNAL_MEDIA_STREAM_STORAGE_``;
- Audius's ``storage_driver_url``, a URL of Go's CDK, with the variables of AWS, Google or Azure beside it;
- ``S3_ENDPOINT_URL``, ``S3_BUCKET_IN``, ``S3_BUCKET_OUT`` and ``AWS_REGION``, with AWS's keys.

Exactly one bucket must come out: none, two, or a part of one is an error that names the field, never its value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, urlsplit

from entrepot.core.errors import InvalidInput

type Side = Literal["in", "out"]
type Values = Mapping[str, object]

_RIVER_BLOCK: Final = "external_media_stream_storage"
_RIVER_PREFIXES: Final = ("RIVER_EXTERNAL_MEDIA_STREAM_STORAGE_", "EXTERNAL_MEDIA_STREAM_STORAGE_")
_RIVER_FIELDS: Final = {
    "gcs_storage": ("bucket", "json_credentials"),
    "aws_s3": ("region", "bucket", "access_key_id", "secret_access_key"),
}
_RIVER_SWITCH: Final = "enable_migration_existing_streams"
_DRIVER_URLS: Final = ("storage_driver_url", "audius_storage_driver_url", "openaudio_storage_driver_url")
_DRIVERS: Final = {"file": "file", "s3": "s3", "gcs": "gs", "azure": "azblob"}
_ENDPOINT_PROFILES: Final = {
    "amazonaws.com": "aws",
    "amazonaws.com.cn": "aws",
    "r2.cloudflarestorage.com": "r2",
    "wasabisys.com": "wasabi",
    "storage.googleapis.com": "gcs",
}
_AMBIENT: Final = '{"ambient": true}'
_DEPTH: Final = 20
#: What mends anything that is wrong with what is written down.
_MEND: Final = "Mend it where it is written down, or name the bucket by --bucket, with --credentials-file for its keys."


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A bucket that was found: its URL; its keys as a document, or the file that holds them, or neither (a folder);
    and what its user should know."""

    url: str
    credentials: str | None = field(default=None, repr=False)
    credentials_file: str | None = None
    notes: tuple[str, ...] = ()


def find_origin(values: Values, side: Side | None = None, *, where: str = "there") -> Origin:
    """The one bucket that is written down in ``values``: what a file holds, or the environment. ``where`` names it.

    ``side`` chooses where there is a bucket for what comes in and another for what goes out. What is empty counts as
    not given. Raises ``InvalidInput(invalid-setting)``, which names the field and shows no value.
    """
    flat = {name: value for name, value in values.items() if not isinstance(value, Mapping | list)}
    blocks = list(_blocks(values, _RIVER_BLOCK, _DEPTH))
    variables = _river_variables(flat)
    drivers = [name for name in flat if name.casefold() in _DRIVER_URLS and _given(flat, name) is not None]
    sides = [name for name in ("S3_BUCKET_IN", "S3_BUCKET_OUT") if _given(flat, name) is not None]
    found = [_RIVER_BLOCK] * len(blocks) + ([_RIVER_PREFIXES[0] + "…"] if variables else []) + drivers + sides[:1]
    if not found:
        raise _wrong(
            f"no bucket is written down {where}",
            f"Known are {_RIVER_BLOCK}, {_RIVER_PREFIXES[0]}…, storage_driver_url, S3_BUCKET_IN and S3_BUCKET_OUT.",
        )
    if len(found) > 1:
        raise _wrong(
            f"more than one bucket is written down {where}: {found[0]} and {found[1]}",
            "A channel has one bucket: leave the others out, or name it by --bucket and --credentials-file.",
        )
    if side is not None and not sides:
        raise _wrong("only S3_BUCKET_IN and S3_BUCKET_OUT can be chosen from")
    if blocks:
        return _river(blocks[0], "")
    if variables:
        return _river(variables, _RIVER_PREFIXES[0])
    return _driver(drivers[0], flat) if drivers else _store(flat, side)


# --- River --------------------------------------------------------------------------------------------------------


def _blocks(values: Values, name: str, depth: int) -> Iterator[object]:
    """The blocks of this name in a file, wherever they stand; River does not mind capitals."""
    for key, value in values.items():
        if isinstance(key, str) and key.casefold() == name:
            yield value
        elif isinstance(value, Mapping) and depth > 0:
            yield from _blocks(value, name, depth - 1)


def _river_variables(flat: Values) -> dict[str, dict[str, object] | object]:
    """The block that the variables amount to: River takes ``RIVER_A_B_FIELD`` and, as it used to, ``A__B__FIELD``."""
    known: dict[str, tuple[str, ...]] = {_RIVER_SWITCH.upper(): (_RIVER_SWITCH,)}
    for backend, names in _RIVER_FIELDS.items():
        for name in names:
            known[f"{backend}_{name}".upper()] = (backend, name)
            known[f"{backend}__{name}".upper()] = (backend, name)
    block: dict[str, dict[str, object] | object] = {}
    for variable in flat:
        prefix = next((prefix for prefix in _RIVER_PREFIXES if variable.startswith(prefix)), None)
        if prefix is None or _given(flat, variable) is None:
            continue
        path = known.get(variable.removeprefix(prefix).removeprefix("_"))
        if path is None:
            raise _wrong(f"{variable[:100]} is unknown")
        into = block if len(path) == 1 else block.setdefault(path[0], {})
        assert isinstance(into, dict)
        if into.setdefault(path[-1], flat[variable]) != flat[variable]:
            raise _wrong(f"{'.'.join(path)} is given twice, by two variables")
    return block


def _river(block: object, prefix: str) -> Origin:
    if not isinstance(block, Mapping):
        raise _wrong(f"{_RIVER_BLOCK} is no block of fields")
    block = _small(block, _RIVER_BLOCK)
    notes = _switch(block.pop(_RIVER_SWITCH, None))
    backends: dict[str, dict[str, str]] = {}
    for backend, inner in block.items():
        if backend not in _RIVER_FIELDS:
            raise _wrong(f"{_RIVER_BLOCK}.{backend[:50]} is unknown")
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise _wrong(f"{backend} is no block of fields")
        fields = {name: _text(f"{backend}.{name}", value) for name, value in _small(inner, backend).items()}
        if unknown := fields.keys() - set(_RIVER_FIELDS[backend]):
            raise _wrong(f"{backend}.{min(unknown)[:50]} is unknown")
        if given := {name: value for name, value in fields.items() if value}:
            backends[backend] = given
    if len(backends) > 1:
        raise _wrong("gcs_storage and aws_s3 are both given", "Exactly one of them is used.")
    if not backends:
        raise _wrong("neither gcs_storage nor aws_s3 is given", "Exactly one of them is needed.")
    (backend, fields) = next(iter(backends.items()))
    for name in _RIVER_FIELDS[backend]:
        if name not in fields:
            variable = f" ({prefix}{backend.upper()}_{name.upper()})" if prefix else ""
            raise _wrong(f"{backend}.{name} is missing{variable}")
    if backend == "gcs_storage":
        return Origin(
            url=_url("gs", fields["bucket"], "", {}), credentials=fields["json_credentials"], notes=tuple(notes)
        )
    return Origin(
        url=_url("s3", fields["bucket"], "", {"region": fields["region"]}),
        credentials=_document(access_key=fields["access_key_id"], secret_key=fields["secret_access_key"]),
        notes=tuple(notes),
    )


def _switch(value: object) -> list[str]:
    if value is None or value == "":
        return []
    if not isinstance(value, bool) and str(value).strip().casefold() not in {"true", "false", "1", "0"}:
        raise _wrong(f"{_RIVER_SWITCH} is true or false")
    return [f"{_RIVER_SWITCH} has no meaning here yet: streams that River stored stay where they are."]


def _small(block: Mapping[str, object], name: str) -> dict[str, object]:
    """The block with its names in small letters, as River reads them."""
    small = {str(key).casefold(): value for key, value in block.items()}
    if len(small) != len(block):
        raise _wrong(f"{name} has a field twice")
    return small


# --- Audius -------------------------------------------------------------------------------------------------------


def _driver(name: str, flat: Values) -> Origin:
    """A URL of Go's CDK. Its fields are translated where ours have other names; the rest is for our own parser."""
    try:
        parts = urlsplit(_text(name, flat[name]))
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        raise _wrong(f"{name} is no URL") from None
    fields = dict(query)
    if len(fields) != len(query) or "@" in parts.netloc or parts.fragment:
        raise _wrong(f"{name} has a field twice, a user or a fragment")
    scheme = "gs" if parts.scheme == "gcs" else parts.scheme
    if scheme not in _DRIVERS.values():
        raise _wrong(
            f"{name} is none of file://, s3://, gs://, gcs:// and azblob://",
            "For a server that speaks S3 write s3://bucket?region=…&endpoint=https://…",
        )
    driver = next((variable for variable in flat if variable.casefold() == "storage_driver"), None)
    chosen = None if driver is None else _given(flat, driver)
    if chosen is not None and _DRIVERS.get(chosen) != scheme:
        raise _wrong(f"{driver} names another kind of bucket than {name}")
    prefix = fields.pop("prefix", "").strip("/")
    if scheme == "file":
        if fields.pop("create_dir", "false") == "true":
            fields["create"] = "true"
        for useless in ("metadata", "no_tmp_dir"):
            fields.pop(useless, None)
        if parts.netloc not in {"", "localhost"}:
            raise _wrong(f"{name} needs three slashes: file:///path")
        return Origin(
            url=_url("file", "", parts.path.lstrip("/"), {**fields, **({"prefix": prefix} if prefix else {})})
        )
    path = "/".join(part for part in (parts.path.strip("/"), prefix) if part)
    match scheme:
        case "s3":
            return _s3_driver(name, parts.netloc, path, fields, flat)
        case "gs":
            return _gs_driver(parts.netloc, path, fields, flat)
        case _:
            return _azure_driver(name, parts.netloc, path, fields, flat)


def _s3_driver(name: str, bucket: str, path: str, fields: dict[str, str], flat: Values) -> Origin:
    plain = "true" in {fields.pop("disableSSL", ""), fields.pop("disable_https", "")}
    if "true" in {fields.pop("s3ForcePathStyle", ""), fields.pop("use_path_style", "")}:
        fields["addressing"] = "path"
    for useless in ("awssdk", "hostname_immutable"):
        fields.pop(useless, None)
    endpoint = fields.pop("endpoint", None) or _given(flat, "AWS_ENDPOINT_URL_S3") or _given(flat, "AWS_ENDPOINT_URL")
    if endpoint is not None and "://" not in endpoint:
        endpoint = f"{'http' if plain else 'https'}://{endpoint}"
    region = fields.pop("region", None) or _region(flat)
    if region is None:
        raise _wrong(f"AWS_REGION is missing, and {name} has no region= either", "For R2 the region is auto.")
    credentials, notes = _aws_keys(flat)
    return Origin(
        url=_url("s3", bucket, path, {"region": region} | _reached(endpoint) | fields),
        credentials=credentials,
        notes=notes,
    )


def _gs_driver(bucket: str, path: str, fields: dict[str, str], flat: Values) -> Origin:
    url = _url("gs", bucket, path, fields)
    keys = _given(flat, "GOOGLE_APPLICATION_CREDENTIALS")
    if keys is None:
        return Origin(url=url, credentials=_AMBIENT, notes=(_own_identity("GOOGLE_APPLICATION_CREDENTIALS"),))
    if keys.startswith("{"):
        return Origin(url=url, credentials=keys)
    return Origin(url=url, credentials_file=keys)


def _azure_driver(name: str, container: str, path: str, fields: dict[str, str], flat: Values) -> Origin:
    account = (
        fields.pop("storage_account", None) or fields.pop("account", None) or _given(flat, "AZURE_STORAGE_ACCOUNT")
    )
    if account is None:
        raise _wrong(f"AZURE_STORAGE_ACCOUNT is missing, and {name} has no storage_account= either")
    domain = fields.pop("domain", None) or _given(flat, "AZURE_STORAGE_DOMAIN")
    protocol = fields.pop("protocol", None) or _given(flat, "AZURE_STORAGE_PROTOCOL") or "https"
    local = fields.pop("localemu", "") == "true"
    if domain is not None and "endpoint" not in fields:
        fields["endpoint"] = f"{protocol}://{domain}/{account}" if local else f"{protocol}://{account}.{domain}"
    keys_file = fields.pop("cred_path", None)
    url = _url("azblob", container, path, {"account": account} | fields)
    if _given(flat, "AZURE_STORAGE_SAS_TOKEN") is not None:
        raise _wrong(
            "AZURE_STORAGE_SAS_TOKEN cannot be used: nothing can be signed with it",
            "Give AZURE_STORAGE_KEY, or AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID.",
        )
    client = {
        "client": _given(flat, "AZURE_CLIENT_ID"),
        "secret": _given(flat, "AZURE_CLIENT_SECRET"),
        "tenant": _given(flat, "AZURE_TENANT_ID"),
    }
    ways = {
        "cred_path": keys_file,
        "AZURE_STORAGE_KEY": _given(flat, "AZURE_STORAGE_KEY"),
        "AZURE_STORAGE_CONNECTION_STRING": _given(flat, "AZURE_STORAGE_CONNECTION_STRING"),
        "AZURE_CLIENT_ID": next((value for value in client.values() if value is not None), None),
    }
    given = [way for way, value in ways.items() if value is not None]
    if len(given) > 1:
        raise _wrong(f"{given[0]} and {given[1]} are both given", "Exactly one kind of keys is used.")
    if not given:
        raise _wrong(
            "AZURE_STORAGE_KEY is missing, and so are AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID"
        )
    match given[0]:
        case "cred_path":
            return Origin(url=url, credentials_file=keys_file)
        case "AZURE_STORAGE_KEY":
            return Origin(url=url, credentials=_document(account=account, key=ways["AZURE_STORAGE_KEY"]))
        case "AZURE_STORAGE_CONNECTION_STRING":
            return Origin(url=url, credentials=ways["AZURE_STORAGE_CONNECTION_STRING"])
    for variable, value in zip(
        ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"), client.values(), strict=True
    ):
        if value is None:
            raise _wrong(f"{variable} is missing")
    return Origin(url=url, credentials=_document(account=account, **client))


# --- everything in S3 ---------------------------------------------------------------------------------------------


def _store(flat: Values, side: Side | None) -> Origin:
    """Two buckets, one to work from and one to write to. They are one where their names are the same."""
    buckets = {name: _given(flat, f"S3_BUCKET_{name.upper()}") for name in ("in", "out")}
    for name, bucket in buckets.items():
        if bucket is None and side in {None, name}:
            raise _wrong(f"S3_BUCKET_{name.upper()} is missing")
    if side is None and buckets["in"] != buckets["out"]:
        raise _wrong(
            "S3_BUCKET_IN and S3_BUCKET_OUT are two buckets",
            "A channel has one: choose by --origin-bucket in or --origin-bucket out.",
        )
    region = _region(flat)
    if region is None:
        raise _wrong("AWS_REGION is missing", "For R2 the region is auto; for MinIO it is us-east-1 unless it was set.")
    credentials, notes = _aws_keys(flat)
    return Origin(
        url=_url("s3", buckets[side or "in"] or "", "", {"region": region} | _reached(_given(flat, "S3_ENDPOINT_URL"))),
        credentials=credentials,
        notes=notes,
    )


# --- in common ----------------------------------------------------------------------------------------------------


def _aws_keys(flat: Values) -> tuple[str, tuple[str, ...]]:
    """AWS's keys as a document. Without any, the machine's own identity, as AWS's libraries do."""
    access_key, secret_key = _given(flat, "AWS_ACCESS_KEY_ID"), _given(flat, "AWS_SECRET_ACCESS_KEY")
    token = _given(flat, "AWS_SESSION_TOKEN")
    if access_key is None and secret_key is None and token is None:
        return _AMBIENT, (_own_identity("AWS_ACCESS_KEY_ID"),)
    for variable, value in (("AWS_ACCESS_KEY_ID", access_key), ("AWS_SECRET_ACCESS_KEY", secret_key)):
        if value is None:
            raise _wrong(f"{variable} is missing")
    return _document(access_key=access_key, secret_key=secret_key, session_token=token), ()


def _region(flat: Values) -> str | None:
    return _given(flat, "AWS_REGION") or _given(flat, "AWS_DEFAULT_REGION")


def _reached(endpoint: str | None) -> dict[str, str]:
    """The fields for a server, and for the provider that is known by its address."""
    if endpoint is None:
        return {}
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:
        host = ""
    known = (kind for name, kind in _ENDPOINT_PROFILES.items() if host == name or host.endswith("." + name))
    profile = next(known, None)
    return {"endpoint": endpoint} | ({} if profile is None else {"profile": profile})


def _own_identity(variable: str) -> str:
    return f"{variable} is not given: the hub uses the identity of its own machine."


def _document(**fields: str | None) -> str:
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def _url(scheme: str, bucket: str, path: str, fields: Mapping[str, str]) -> str:
    base = f"{scheme}://{quote(bucket, safe='')}{'/' + path if path else ''}"
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='/:')}" for name, value in fields.items())
    return f"{base}?{query}" if query else base


def _given(flat: Values, name: str) -> str | None:
    """A value that is there and not empty."""
    return _text(name, flat.get(name)) or None


def _text(name: str, value: object) -> str:
    """A value as text; a JSON document that was written as YAML is one too."""
    if value is None:
        return ""
    if isinstance(value, Mapping) and name.endswith(".json_credentials"):
        if all(isinstance(item, str) for item in value.values()):
            return json.dumps(value)
        raise _wrong(f"{name} is no JSON document")
    if not isinstance(value, str):
        raise _wrong(f"{name} is no text", "Put it into quotes.")
    if any("\ud800" <= char <= "\udfff" for char in value):  # bytes of an environment that are no UTF-8
        raise _wrong(f"{name} is no text")
    return value.strip()


def _wrong(reason: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(reason, kind="invalid-setting", hint=hint or _MEND)
