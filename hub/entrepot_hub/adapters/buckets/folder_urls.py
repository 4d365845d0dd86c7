"""Signed URLs of folder buckets: what the hub permits with one URL, and nothing else.

    <public URL>/bucket/<name>/<key>?method=PUT&expires=…&length=…&digest=…&sig=…
    <public URL>/bucket/<name>/<key>?method=GET&expires=…[&etag=…]&sig=…

``sig`` is the HMAC-SHA256, in base64url without padding, over a domain string and all other fields: method,
bucket name, key, expiry (unix seconds), and length (bytes) and digest (SHA-256, hex) of a PUT or etag of a
GET. No field can hold the newline that parts them. A URL with a field too many, too few or twice is refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit

from entrepot.core.errors import Denied, InvalidInput
from entrepot_hub.adapters.buckets.interface import Method, check_etag, check_key

#: The path under the hub's public URL where folder buckets are served.
BUCKET_PATH: Final = "/bucket/"
_DOMAIN: Final = b"entrepot.bucket-url\0"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS: Final = {
    "PUT": frozenset({"method", "expires", "length", "digest", "sig"}),
    "GET": frozenset({"method", "expires", "etag", "sig"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """What one signed URL permits until ``expires`` (unix seconds)."""

    method: Method
    key: str
    expires: int
    length: int = 0
    digest: bytes = b""
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class UrlSigner:
    """Signs and checks the URLs of one bucket. ``secret`` has at least 16 bytes."""

    name: str
    public_url: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(
                f"a bucket's name has 1 to 64 of a-z, 0-9, '.', '_' and '-': {self.name[:100]!a}",
                kind="invalid-setting",
            )
        if len(self.secret) < 16:
            raise InvalidInput("a secret for signing has at least 16 bytes", kind="invalid-setting")
        parts = urlsplit(self.public_url)
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
            raise InvalidInput(
                f"the public URL is http(s)://host[:port][/path]: {self.public_url[:200]!a}",
                kind="invalid-setting",
            )

    def sign(self, permission: Permission) -> str:
        """The URL that gives this permission."""
        fields: dict[str, str] = {"method": permission.method, "expires": str(permission.expires)}
        if permission.method == "PUT":
            fields |= {"length": str(permission.length), "digest": permission.digest.hex()}
        elif permission.etag is not None:
            fields["etag"] = permission.etag
        fields["sig"] = self._signature(permission)
        return f"{self.public_url.rstrip('/')}{BUCKET_PATH}{self.name}/{permission.key}?{urlencode(fields)}"

    def verify(self, method: str, key: str, query: Sequence[tuple[str, str]], now: float) -> Permission:
        """The permission that a request's URL carries, with ``query`` decoded.

        Raises ``Denied(bad-signature)`` for anything but a URL that :meth:`sign` made for this method, key
        and bucket, and ``Denied(expired)`` for one whose time is over.
        """
        permission = _parse(method, key, query)
        given = dict(query)["sig"]
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._signature(permission).encode()):
            raise _bad()
        self.check_time(permission, now)
        return permission

    @staticmethod
    def check_time(permission: Permission, now: float) -> None:
        """Raises ``Denied(expired)`` once the permission has ended."""
        if now >= permission.expires:
            raise Denied(
                "the URL's time is over",
                kind="expired",
                hint="Ask the hub for a new one; if that is new, compare the clocks",
                expires=permission.expires,
            )

    def _signature(self, permission: Permission) -> str:
        fields = [permission.method, self.name, permission.key, str(permission.expires)]
        if permission.method == "PUT":
            fields += [str(permission.length), permission.digest.hex()]
        else:
            fields += ["any"] if permission.etag is None else ["etag", permission.etag]
        mac = hmac.new(self.secret, _DOMAIN + "\n".join(fields).encode("ascii"), hashlib.sha256)
        return base64.urlsafe_b64encode(mac.digest()).rstrip(b"=").decode()


def _parse(method: str, key: str, query: Sequence[tuple[str, str]]) -> Permission:
    fields = dict(query)
    if len(fields) != len(query) or fields.get("method") != method:
        raise _bad()
    allowed = _FIELDS.get(method, frozenset())
    optional = {"etag"} if method == "GET" else set()
    if not allowed - optional <= fields.keys() <= allowed or not _NUMBER.fullmatch(fields["expires"]):
        raise _bad()
    try:
        check_key(key)
        check_etag(fields.get("etag"))
    except InvalidInput as error:
        raise _bad() from error
    expires = int(fields["expires"])
    if method == "PUT":
        if not _NUMBER.fullmatch(fields["length"]) or not _DIGEST.fullmatch(fields["digest"]):
            raise _bad()
        digest = bytes.fromhex(fields["digest"])
        return Permission(method="PUT", key=key, expires=expires, length=int(fields["length"]), digest=digest)
    return Permission(method="GET", key=key, expires=expires, etag=fields.get("etag"))


def _bad() -> Denied:
    return Denied("this URL was not signed by this hub for this request", kind="bad-signature")
