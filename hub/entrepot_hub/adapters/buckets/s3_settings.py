"""How a bucket that speaks the S3 protocol is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.interface import Binds, check_prefix

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")

#: What providers are known to hold before anything was tried. "aws" is Amazon's S3 as documented in 2025:
#: conditional writes with If-None-Match and If-Match, conditional deletes, checksums on upload and in HEAD.
#: "generic" is any other server: the signature binds what every SigV4 server checks, the rest has to be found
#: by a probe.
PROFILES: Final = {
    "aws": Binds(
        length=True,
        digest=True,
        create_only=True,
        expiry=True,
        head_digest=True,
        get_if=True,
        delete_if=True,
        replace_if=True,
    ),
    "generic": Binds(
        length=False,
        digest=False,
        create_only=False,
        expiry=True,
        head_digest=False,
        get_if=False,
        delete_if=False,
        replace_if=False,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """``bucket`` in ``region``, reached by the hub at ``endpoint`` (none: Amazon's) and by nodes at
    ``public_endpoint`` (none: the same). The region is always stated, "auto" for R2.

    ``addressing``: where the bucket's name stands in URLs, in the path or in the host; none: as the endpoint
    needs. ``profile``: of :data:`PROFILES`; none: "aws" without an endpoint, else "generic".
    ``create``: make the bucket at the start if it is missing.
    ``connect_timeout`` and ``read_timeout`` in seconds; ``attempts`` per request; ``threads`` that work at
    once.
    """

    bucket: str
    region: str
    credentials: S3Credentials
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    addressing: Literal["path", "virtual"] | None = None
    profile: Literal["aws", "generic"] | None = None
    create: bool = False
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    attempts: int = 3
    threads: int = 16

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        if not _BUCKET.fullmatch(self.bucket):
            raise InvalidInput(f"not a bucket's name: {self.bucket[:100]!a}", kind="invalid-setting")
        if not _REGION.fullmatch(self.region):
            raise InvalidInput(
                f"not a region: {self.region[:100]!a}", kind="invalid-setting", hint="State one, 'auto' for R2"
            )
        for endpoint in (self.endpoint, self.public_endpoint):
            if endpoint is not None:
                _check_endpoint(endpoint)

    @property
    def binds(self) -> Binds:
        """What the provider is taken to enforce before a probe."""
        return PROFILES[self.profile or ("aws" if self.endpoint is None else "generic")]

    @property
    def virtual(self) -> bool:
        """Whether the bucket's name stands in the host. With dots in it no certificate would fit."""
        if self.addressing is not None:
            return self.addressing == "virtual"
        return self.endpoint is None and "." not in self.bucket

    @property
    def public_base(self) -> str:
        """What stands before ``/<key>`` in the URLs that nodes get."""
        endpoint = self.public_endpoint or self.endpoint
        if endpoint is None:
            partition = ".cn" if self.region.startswith("cn-") else ""
            endpoint = f"https://s3.{self.region}.amazonaws.com{partition}"
        parts = urlsplit(endpoint)
        path = parts.path.rstrip("/")
        if self.virtual:
            return f"{parts.scheme}://{self.bucket}.{parts.netloc}{path}"
        return f"{parts.scheme}://{parts.netloc}{path}/{self.bucket}"


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
        parts = urlsplit("")
    if not valid or parts.query or parts.fragment or parts.username is not None:
        raise InvalidInput(
            f"an endpoint is http(s)://host[:port], without user, query or fragment: {endpoint[:200]!a}",
            kind="invalid-setting",
        )
