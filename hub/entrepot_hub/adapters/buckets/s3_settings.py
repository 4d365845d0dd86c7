"""How a bucket that speaks the S3 protocol is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import S3Ambient, S3Credentials
from entrepot_hub.adapters.buckets.interface import Binds, DigestKind, check_prefix
from entrepot_hub.adapters.buckets.s3_profiles import PROFILES, Profile, ProfileName

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """``bucket`` in ``region``, reached by the hub at ``endpoint`` (none: the provider's) and by nodes at
    ``public_endpoint`` (none: the same). The region is always stated, "auto" for R2.

    ``addressing``: where the bucket's name stands in URLs, in the path or in the host; none: as the provider
    needs. ``profile``: of :data:`PROFILES`; none: "aws" without an endpoint, else "generic". ``digest``: what a PUT
    names and HEAD shows; none: the profile's. ``create``: make the bucket at the start if it is missing.
    ``ca``: a file of certificate authorities (PEM) to trust instead of the usual ones. ``sts_endpoint``: where roles
    are assumed; none: at Amazon's of the region, or where the bucket is.

    ``connect_timeout`` and ``read_timeout`` (a pause of the server) in seconds; ``attempts`` per request; ``total``
    seconds for one operation of the hub, all its attempts and pauses included; ``threads`` that work at once.
    """

    bucket: str
    region: str
    credentials: S3Credentials | S3Ambient
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    addressing: Literal["path", "virtual"] | None = None
    profile: ProfileName | None = None
    digest: DigestKind | None = None
    create: bool = False
    ca: Path | None = None
    sts_endpoint: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    attempts: int = 4
    total: float = 60.0
    threads: int = 16

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        if not _BUCKET.fullmatch(self.bucket):
            raise InvalidInput(f"not a bucket's name: {self.bucket[:100]!a}", kind="invalid-setting")
        if not _REGION.fullmatch(self.region):
            raise InvalidInput(
                f"not a region: {self.region[:100]!a}", kind="invalid-setting", hint="State one, 'auto' for R2"
            )
        for endpoint in (self.endpoint, self.public_endpoint, self.sts_endpoint):
            if endpoint is not None:
                _check_endpoint(endpoint)
        if self.endpoint is None and self.traits.endpoint is None:
            raise InvalidInput(
                f"profile {self.profile!r} needs an endpoint",
                kind="invalid-setting",
                hint="For R2 it is https://<account id>.r2.cloudflarestorage.com",
            )
        if self.ca is not None and not self.ca.is_absolute():
            raise InvalidInput(f"a file of authorities needs an absolute path, not {self.ca}", kind="invalid-setting")

    @property
    def traits(self) -> Profile:
        """What is known of the provider."""
        return PROFILES[self.profile or ("aws" if self.endpoint is None else "generic")]

    @property
    def binds(self) -> Binds:
        """What the provider is taken to enforce before a probe."""
        return self.traits.binds

    @property
    def digest_kind(self) -> DigestKind:
        """What a PUT names and HEAD shows."""
        return self.digest or self.traits.digest

    @property
    def virtual(self) -> bool:
        """Whether the bucket's name stands in the host. With dots in it no certificate would fit."""
        if self.addressing is not None:
            return self.addressing == "virtual"
        return self.endpoint is None and self.traits.virtual and "." not in self.bucket

    @property
    def hub_endpoint(self) -> str:
        """Where the hub goes."""
        if self.endpoint is not None:
            return self.endpoint
        assert self.traits.endpoint is not None
        return self.traits.endpoint.format(region=self.region) + self._china(self.traits.endpoint)

    @property
    def hub_base(self) -> str:
        """What stands before ``/<key>`` in the URLs that the hub uses itself."""
        return self._base(self.hub_endpoint)

    @property
    def public_base(self) -> str:
        """What stands before ``/<key>`` in the URLs that nodes get."""
        return self._base(self.public_endpoint or self.hub_endpoint)

    @property
    def roles_endpoint(self) -> str:
        """Where roles are assumed."""
        if self.sts_endpoint is not None:
            return self.sts_endpoint
        if self.endpoint is not None:
            return self.endpoint
        amazon = "https://sts.{region}.amazonaws.com"
        return amazon.format(region=self.region) + self._china(amazon)

    def _base(self, endpoint: str) -> str:
        parts = urlsplit(endpoint)
        path = parts.path.rstrip("/")
        if self.virtual:
            return f"{parts.scheme}://{self.bucket}.{parts.netloc}{path}"
        return f"{parts.scheme}://{parts.netloc}{path}/{self.bucket}"

    def _china(self, endpoint: str) -> str:
        return ".cn" if self.region.startswith("cn-") and endpoint.endswith(".amazonaws.com") else ""


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
