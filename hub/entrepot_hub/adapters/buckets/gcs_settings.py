"""How a bucket on Google Cloud Storage is reached."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import GcsAmbient, GcsServiceAccount
from entrepot_hub.adapters.buckets.interface import Binds, check_prefix

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,99}")
_PRIVATE_KEY: Final = "-----BEGIN "
#: The largest document of a service account in characters; a real one has 2,400.
_MAX_DOCUMENT: Final = 20_000

#: Google's own servers.
DEFAULT_ENDPOINT: Final = "https://storage.googleapis.com"

#: Where Google gives tokens, as its key files say and have said.
GOOGLES_TOKENS: Final = frozenset({"https://oauth2.googleapis.com/token", "https://accounts.google.com/o/oauth2/token"})

#: What Google Cloud Storage holds as documented in 2026: ``x-goog-content-length-range``, ``Content-MD5`` and
#: ``x-goog-if-generation-match`` as signed headers of a PUT, generations as preconditions of everything else.
DOCUMENTED: Final = Binds(
    length=True,
    digest=True,
    create_only=True,
    expiry=True,
    head_digest=True,
    get_if=True,
    delete_if=True,
    replace_if=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsSettings:
    """``bucket``, reached by the hub at ``endpoint`` (none: Google's) and by nodes at ``public_endpoint`` (none: the
    same).

    ``create``: make the bucket at the start if it is missing, in ``project`` (none: the credentials' own), at
    ``location`` and in ``storage_class`` (none: Google's default), without soft delete, for what is evicted must not
    be billed for another week.
    ``connect_timeout`` and ``read_timeout`` in seconds; ``attempts`` per request; ``threads`` that work at once.
    Raises ``InvalidInput(invalid-setting)``, also for a service account's document that is none; no part of the
    document shows in the error.
    """

    bucket: str
    credentials: GcsServiceAccount | GcsAmbient
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    project: str | None = None
    location: str | None = None
    storage_class: str | None = None
    create: bool = False
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    attempts: int = 3
    threads: int = 16

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        if not _BUCKET.fullmatch(self.bucket):
            raise InvalidInput(f"not a bucket's name: {self.bucket[:100]!a}", kind="invalid-setting")
        for name in ("project", "location", "storage_class"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise InvalidInput(f"not a {name}: {value[:100]!a}", kind="invalid-setting")
        for endpoint in (self.endpoint, self.public_endpoint):
            if endpoint is not None:
                _check_endpoint(endpoint)
        if min(self.connect_timeout, self.read_timeout, self.attempts, self.threads) <= 0:
            raise InvalidInput("time-outs, attempts and threads are greater than nothing", kind="invalid-setting")
        if isinstance(self.credentials, GcsServiceAccount):
            parse_service_account(self.credentials, self.endpoint)

    @property
    def base(self) -> str:
        """Where the hub itself asks."""
        return (self.endpoint or DEFAULT_ENDPOINT).rstrip("/")

    @property
    def public_base(self) -> str:
        """What stands before ``/<bucket>/<key>`` in the URLs that nodes get."""
        return (self.public_endpoint or self.base).rstrip("/")

    @property
    def deadline(self) -> float:
        """Seconds after which a call with all its repetitions is given up."""
        return self.attempts * (self.connect_timeout + self.read_timeout)


def parse_service_account(account: GcsServiceAccount, endpoint: str | None = None) -> Mapping[str, Any]:
    """The fields of a service account's document. Raises ``InvalidInput(invalid-setting)``, which shows nothing of
    it.

    The document names the server that the hub asks for tokens: Google's, or, for a bucket at an ``endpoint`` of its
    own, one on that host or on this machine, as emulators are.

    That the private key is one is found when it is first used: reading it takes some milliseconds.
    """
    if len(account.document) > _MAX_DOCUMENT:
        raise _bad("it is too long")
    try:
        fields = json.loads(account.document)
    except (ValueError, RecursionError):
        # Not chained: the error of the parser carries the document.
        raise _bad("it is not JSON") from None
    if not isinstance(fields, dict):
        raise _bad("it is not a JSON object")
    if fields.get("type") != "service_account":
        raise _bad("its type is not 'service_account'")
    for name in ("client_email", "private_key", "token_uri"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise _bad(f"{name} is missing")
    if not fields["private_key"].lstrip().startswith(_PRIVATE_KEY):
        raise _bad("private_key is not a key in PEM format")
    if fields["client_email"] != account.client_email:
        raise _bad("its client_email is another than was stated")
    if fields["token_uri"] not in GOOGLES_TOKENS and not _is_beside(fields["token_uri"], endpoint):
        raise _bad("token_uri is not Google's")
    return fields


def _is_beside(url: str, endpoint: str | None) -> bool:
    """Whether tokens come from the host of an endpoint that was stated, or from this machine."""
    try:
        parts, host = urlsplit(url), urlsplit(endpoint or "").hostname
        if host is None or parts.scheme not in {"http", "https"} or parts.hostname is None or "@" in parts.netloc:
            return False
    except ValueError:
        return False
    if parts.hostname in {host, "localhost"}:
        return True
    try:
        return ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False


def _bad(reason: str) -> InvalidInput:
    return InvalidInput(
        f"this is no key of a Google service account: {reason}",
        kind="invalid-setting",
        hint="Give the whole JSON file as it was downloaded",
    )


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
        parts = urlsplit("")
    # The signature covers bucket and key as the whole path, so nothing may stand before them.
    if not valid or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise InvalidInput(
            f"an endpoint is http(s)://host[:port], without user, path, query or fragment: {endpoint[:200]!a}",
            kind="invalid-setting",
        )
