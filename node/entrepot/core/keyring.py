"""The keys of a node: one seed, one key for each hub, one for each feed; and what a NATS server may have
signed.

Keys are derived by HKDF-SHA256 (RFC 5869, no salt) with an ``info`` that begins with a domain of its own, so
a signature obtained by one server means nothing to another. A NATS server chooses the nonce that its client
signs: :func:`sign_nonce` signs only short texts of an alphabet in which no domain-prefixed message of
entrepot exists (every one of those holds a zero byte or a space).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from entrepot.core.errors import InvalidInput
from entrepot.core.nkeys import KEY_LENGTH, KeyKind, SigningKey

NODE_DOMAIN: Final = b"entrepot.node\0"
FEED_KEY_DOMAIN: Final = b"entrepot.feed-key\0"
NONCE: Final = re.compile(r"[A-Za-z0-9_-]{11,64}")
_HUB_PUBLIC: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MAX_FEED_NAME: Final = 1024
_MAX_JWT: Final = 65536  # bytes: a CONNECT line must hold it


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows a NATS server: a user JWT and the key that it names. Neither shows in ``repr``."""

    jwt: str = field(repr=False)
    key: SigningKey

    def times(self) -> tuple[int, int | None]:
        """When the JWT was issued and when it expires (None: never), unix seconds on the issuer's clock.

        The claims are read, not verified: that is the server's part. Raises InvalidInput ``invalid-token``.
        """
        try:
            body = self.jwt.split(".")[1] if len(self.jwt) <= _MAX_JWT else ""
            claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            issued, expires = claims["iat"], claims.get("exp")
        except (IndexError, KeyError, ValueError, AttributeError, TypeError, RecursionError, binascii.Error):
            raise InvalidInput("this is not a NATS user JWT", kind="invalid-token") from None
        if type(issued) is not int or type(expires) not in {int, type(None)}:
            raise InvalidInput("the times in this NATS user JWT are no whole seconds", kind="invalid-token")
        return issued, expires or None


def derive_node_key(seed: bytes, hub_public: str) -> SigningKey:
    """The node's key at the hub with this public key (its text): for HTTP calls and NATS nonces there.

    ``seed`` is the node's 32-byte secret. Raises InvalidInput ``invalid-key``.
    """
    if not _HUB_PUBLIC.fullmatch(hub_public):
        raise InvalidInput(f"not a hub's public key: {hub_public[:140]!r}", kind="invalid-key")
    return _derive(seed, NODE_DOMAIN + hub_public.encode("ascii"))


def derive_feed_key(seed: bytes, name: str) -> SigningKey:
    """The key that signs the node's feed of this name (1 to 1,024 bytes of UTF-8), the same at every hub."""
    encoded = name.encode("utf-8")
    if not 0 < len(encoded) <= _MAX_FEED_NAME:
        raise InvalidInput(f"a feed's name has 1 to {_MAX_FEED_NAME} bytes", kind="invalid-input")
    return _derive(seed, FEED_KEY_DOMAIN + encoded)


def sign_nonce(key: SigningKey, nonce: str) -> bytes:
    """The 64-byte signature of a NATS server's nonce; anything but a nonce is refused with InvalidInput.

    Without the refusal a server could pass off an HTTP request as a nonce and obtain its signature.
    """
    if not NONCE.fullmatch(nonce):
        raise InvalidInput(
            "the NATS server asked for the signature of something that is not a nonce",
            kind="invalid-message",
            hint="The server at this address is not an honest NATS server: check the hub's NATS URL",
        )
    return key.sign(nonce.encode("ascii"))


def _derive(seed: bytes, info: bytes) -> SigningKey:
    if len(seed) != KEY_LENGTH:
        raise InvalidInput(f"a node's seed has {KEY_LENGTH} bytes, not {len(seed)}", kind="invalid-key")
    secret = HKDF(algorithm=SHA256(), length=KEY_LENGTH, salt=None, info=info).derive(seed)
    return SigningKey(KeyKind.USER, secret)
