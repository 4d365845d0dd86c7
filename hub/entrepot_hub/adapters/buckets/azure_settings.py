"""How a container of Azure Blob Storage is reached."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import AzureClient, AzureKey
from entrepot_hub.adapters.buckets.interface import Binds, check_prefix

_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_DIRECTORY = re.compile(r"[A-Za-z0-9.-]{1,200}")

#: What Azure is documented to hold of a PUT that is signed by a shared access signature: the key and the end, and with
#: the permission "create" alone that nothing is replaced. It signs no headers, so neither length nor digest; and the
#: MD5 that HEAD shows may be what the uploader claimed.
BINDS: Final = Binds(
    length=False,
    digest=False,
    create_only=True,
    expiry=True,
    head_digest=False,
    get_if=True,
    delete_if=True,
    replace_if=True,
)

#: Where applications of the national clouds get their tokens, by the end of the host that holds the blobs.
_AUTHORITIES: Final = {
    ".chinacloudapi.cn": "https://login.chinacloudapi.cn",
    ".usgovcloudapi.net": "https://login.microsoftonline.us",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSettings:
    """``container`` of the account that ``credentials`` name, reached by the hub at ``endpoint`` (none: the account's
    own in the public cloud) and by nodes at ``public_endpoint`` (none: the same).

    ``create``: make the container at the start if it is missing. ``connect_timeout`` and ``read_timeout`` in seconds;
    ``attempts`` per request; ``threads`` that work at once, each on a connection of its own.
    """

    container: str
    credentials: AzureKey | AzureClient
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    create: bool = False
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    attempts: int = 3
    threads: int = 10

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        if not _CONTAINER.fullmatch(self.container):
            raise _bad(
                f"not a container's name: {self.container[:100]!a}",
                "It has 3 to 63 small letters, digits and single hyphens",
            )
        if not _ACCOUNT.fullmatch(self.credentials.account):
            raise _bad(f"not a storage account's name: {self.credentials.account[:100]!a}")
        for endpoint in (self.endpoint, self.public_endpoint):
            if endpoint is not None:
                _check_endpoint(endpoint)
        if isinstance(self.credentials, AzureKey):
            _check_key(self.credentials.key)
        else:
            _check_client(self.credentials)
            if urlsplit(self.base).scheme != "https":
                raise _bad("an application's tokens go over https only", "State an https endpoint, or use a key")
        if min(self.connect_timeout, self.read_timeout) <= 0 or min(self.attempts, self.threads) < 1:
            raise _bad("time-outs, attempts and threads are positive")

    @property
    def base(self) -> str:
        """The account's address, as the hub reaches it."""
        return (self.endpoint or f"https://{self.credentials.account}.blob.core.windows.net").rstrip("/")

    @property
    def public_base(self) -> str:
        """What stands before ``/<key>`` in the URLs that nodes get."""
        return f"{(self.public_endpoint or self.base).rstrip('/')}/{self.container}"

    @property
    def deadline(self) -> float:
        """Seconds after which an answer is given up."""
        return self.attempts * (self.connect_timeout + self.read_timeout)

    @property
    def authority(self) -> str:
        """Where an application's tokens come from."""
        host = urlsplit(self.base).hostname or ""
        for ending, authority in _AUTHORITIES.items():
            if host.endswith(ending):
                return authority
        return "https://login.microsoftonline.com"


def _check_key(key: str) -> None:
    try:
        base64.b64decode(key, validate=True)
    except ValueError:
        # Without a cause: it would carry the key.
        raise _bad("a storage account's key is base64", "Copy key1 or key2 of the account as it is") from None


def _check_client(client: AzureClient) -> None:
    if not _DIRECTORY.fullmatch(client.tenant):
        raise _bad("a tenant is an id or a domain")
    if not client.client or not client.secret:
        raise _bad("an application needs its id and a secret")


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
        parts = urlsplit("")
    if not valid or parts.query or parts.fragment or parts.username is not None:
        raise _bad(
            f"an endpoint is http(s)://host[:port][/account], without user, query or fragment: {endpoint[:200]!a}"
        )


def _bad(reason: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(reason, kind="invalid-setting", hint=hint)
