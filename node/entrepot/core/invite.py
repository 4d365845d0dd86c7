r"""The invite: one URL that tells a node which hub to join, how to know it, and that it was asked in.

``https://<hub host[:port]>/j/<token>``, token = base64url without padding of::

    invite id (16) ‖ secret (16) ‖ the hub's public key (32) ‖ check (4)

The check is the beginning of SHA-256("entrepot.invite\0" ‖ the 64 bytes before it).

The four bytes at the end catch a URL that was cut or mistyped before anything is sent. The secret never
leaves the node: it proves itself by :func:`join_proof`, which is bound to both keys.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from typing import Final, Self
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from entrepot.core.errors import InvalidInput
from entrepot.core.nkeys import KeyKind, encode_public

ID_LENGTH: Final = 16
SECRET_LENGTH: Final = 16
KEY_LENGTH: Final = 32
TOKEN_LENGTH: Final = 91
_CHECK: Final = 4
_CHECK_DOMAIN: Final = b"entrepot.invite\0"
_JOIN_DOMAIN: Final = b"entrepot.join\0"
_PROOF_DOMAIN: Final = b"entrepot.invite-proof\0"
_HUB_DOMAIN: Final = b"entrepot.hub\0"
CHALLENGE_LENGTH: Final = 16
_TOKEN = re.compile(r"[A-Za-z0-9_-]{91}")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_MAX_URL: Final = 512
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Invite:
    """What an invite URL says. ``url`` is the hub's origin (no path); ``hub_key`` its raw Ed25519 public
    key."""

    url: str
    id: bytes
    secret: bytes = field(repr=False)
    hub_key: bytes

    def __post_init__(self) -> None:
        lengths = (len(self.id), len(self.secret), len(self.hub_key))
        if lengths != (ID_LENGTH, SECRET_LENGTH, KEY_LENGTH):
            raise InvalidInput("an invite holds 16, 16 and 32 bytes", kind="invalid-token")

    @property
    def hub_public(self) -> str:
        """The hub's public key as text (``O…``): nodes derive their key from it."""
        return encode_public(KeyKind.OPERATOR, self.hub_key)

    @property
    def token(self) -> str:
        """The 91 characters after ``/j/``. A secret."""
        body = self.id + self.secret + self.hub_key
        return base64.urlsafe_b64encode(body + _check(body)).rstrip(b"=").decode()

    def join_url(self) -> str:
        """The whole invite URL. A secret."""
        return f"{self.url}/j/{self.token}"

    @classmethod
    def parse(cls, text: str, *, plain: bool = False) -> Self:
        """The invite in a URL (blanks around it ignored).

        ``http://`` is taken for loopback addresses only, unless ``plain``. Raises :class:`InvalidInput`
        (``invalid-token``); the text itself, being a secret, is never part of the error.
        """
        text = text.strip()
        if len(text) > _MAX_URL:
            raise _invalid("an invite URL is not that long")
        origin, separator, token = text.partition("/j/")
        if not separator:
            raise _invalid("an invite looks like https://HUB/j/TOKEN")
        try:
            origin = check_origin(origin, plain=plain)
        except InvalidInput as error:
            raise _invalid(error.message, hint=error.hint) from None
        return cls(origin, *split_token(token))


def split_token(token: str) -> tuple[bytes, bytes, bytes]:
    """(invite id, secret, hub key) of a token. Raises :class:`InvalidInput` (``invalid-token``)."""
    if _TOKEN.fullmatch(token) is None:
        raise _invalid("the invite was cut or altered: a token has 91 characters", hint="Copy the whole URL.")
    try:
        raw = base64.b64decode(token + "=", altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    body, check = raw[:-_CHECK], raw[-_CHECK:]
    spelled = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    if spelled != token or not hmac.compare_digest(check, _check(body)):
        raise _invalid("the invite was altered: its check does not fit", hint="Copy the whole URL.")
    return body[:ID_LENGTH], body[ID_LENGTH : ID_LENGTH + SECRET_LENGTH], body[ID_LENGTH + SECRET_LENGTH :]


def join_proof(secret: bytes, node_public: str, hub_public: str) -> bytes:
    r"""HMAC-SHA256(:func:`proof_key`, "entrepot.join\0" ‖ node's public key ‖ hub's), keys as NKey text: 32 bytes."""
    return join_mac(proof_key(secret), node_public, hub_public)


def proof_key(secret: bytes) -> bytes:
    """What a hub keeps (sealed) of an invite: HKDF-SHA256 of the secret, 32 bytes. The secret itself is kept
    nowhere, so no hub's database can be turned back into an invite URL."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_PROOF_DOMAIN).derive(secret)


def join_mac(key: bytes, node_public: str, hub_public: str) -> bytes:
    """What :func:`join_proof` gives, from the :func:`proof_key` of the secret."""
    return hmac.digest(key, _JOIN_DOMAIN + node_public.encode() + hub_public.encode(), "sha256")


def hub_statement(challenge: bytes, address: str) -> bytes:
    r"""What a hub signs with the key in its invites to show that it is at this address: "entrepot.hub\0" ‖ the node's
    challenge of 16 bytes ‖ the origin that the node dialled. With another address in it, it is worth nothing to whoever
    passes it on. Raises :class:`InvalidInput`."""
    if len(challenge) != CHALLENGE_LENGTH:
        raise InvalidInput("a challenge has 16 bytes", kind="invalid-message")
    return _HUB_DOMAIN + challenge + address.encode()


def check_origin(url: str, *, plain: bool = False) -> str:
    """The origin ``https://host[:port]`` of a hub in its one spelling: lower-case, no default port, no path.

    ``http://`` is taken for loopback addresses only, unless ``plain``. Raises :class:`InvalidInput`.
    """
    hint = "A hub's address looks like https://hub.example.org or https://hub.example.org:8443."
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidInput("that is no address of a hub", hint=hint) from None
    if parts.scheme not in _DEFAULT_PORTS or not url.isascii() or not url.isprintable():
        raise InvalidInput("a hub's address begins with https://", hint=hint)
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc or "?" in url or "#" in url:
        raise InvalidInput("a hub's address is a host and a port, nothing more", hint=hint)
    if port == 0:
        raise InvalidInput("0 is no port of a hub", hint=hint)
    if parts.netloc.startswith("["):
        try:
            host = f"[{ip_address(host)}]"
        except ValueError:
            raise InvalidInput("that is no IPv6 address", hint=hint) from None
    elif len(host) > 253 or _HOST.fullmatch(host) is None:
        raise InvalidInput("that is no host name", hint=hint)
    if parts.scheme == "http" and not plain and not is_loopback(host):
        raise InvalidInput(
            "http:// is not protected on the way: it is taken for this machine only",
            hint="Use the hub's https:// address.",
        )
    shown = "" if port is None or port == _DEFAULT_PORTS[parts.scheme] else f":{port}"
    return f"{parts.scheme}://{host}{shown}"


def is_loopback(host: str) -> bool:
    """Whether a host (as in a URL) is this machine: ``localhost``, 127.0.0.0/8 or ``[::1]``."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check(body: bytes) -> bytes:
    return sha256(_CHECK_DOMAIN + body).digest()[:_CHECK]


def _invalid(message: str, *, hint: str | None = None) -> InvalidInput:
    return InvalidInput(message, kind="invalid-token", hint=hint)
