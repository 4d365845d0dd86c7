"""NATS keys: Ed25519 keys in the text form that NATS servers and their tools read.

A public key is ``base32(prefix ‖ key ‖ crc16)`` without padding, a seed ``base32(2 prefix bytes ‖ seed ‖
crc16)``; the checksum is CRC-16/XMODEM, little-endian. Source of the format:
https://github.com/nats-io/nkeys. The first letter of a public key tells its kind: ``U`` user, ``A`` account,
``O`` operator; a seed has an ``S`` before it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from entrepot.core.errors import InvalidInput

KEY_LENGTH: Final = 32
SIGNATURE_LENGTH: Final = 64
PUBLIC_TEXT_LENGTH: Final = 56
SEED_TEXT_LENGTH: Final = 58
_SEED_PREFIX: Final = 18 << 3


class KeyKind(IntEnum):
    """What a key stands for; the value is the prefix byte of its text."""

    ACCOUNT = 0
    OPERATOR = 14 << 3
    USER = 20 << 3


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A private key. Its secret never shows in ``repr``.

    ``secret`` is the 32-byte Ed25519 seed. Equality compares kind and secret.
    """

    kind: KeyKind
    secret: bytes
    _private: Ed25519PrivateKey = field(init=False, compare=False)
    public: str = field(init=False, compare=False)  #: text, for example ``U…``, 56 characters

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_LENGTH:
            raise InvalidInput(f"a key's seed has {KEY_LENGTH} bytes, not {len(self.secret)}", kind="invalid-key")
        private = Ed25519PrivateKey.from_private_bytes(self.secret)
        object.__setattr__(self, "_private", private)
        object.__setattr__(self, "public", encode_public(self.kind, private.public_key().public_bytes_raw()))

    def __repr__(self) -> str:
        return f"SigningKey({self.public}, secret=***)"

    def __reduce__(self) -> tuple[type[SigningKey], tuple[KeyKind, bytes]]:
        return SigningKey, (self.kind, self.secret)

    @classmethod
    def generate(cls, random: bytes, kind: KeyKind = KeyKind.USER) -> SigningKey:
        """The key whose seed is ``random``: 32 bytes from a cryptographic source, which the caller names."""
        return cls(kind, bytes(random))

    @classmethod
    def from_seed(cls, text: str) -> SigningKey:
        """The key of a seed text (``SU…``, ``SA…``, ``SO…``). Raises InvalidInput ``invalid-key``."""
        kind, secret = decode_seed(text)
        return cls(kind, secret)

    @property
    def seed(self) -> str:
        """The seed as text: a secret."""
        return encode_seed(self.kind, self.secret)

    @property
    def public_key(self) -> bytes:
        """The 32 raw bytes of the public key."""
        return self._private.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``data``. Callers begin ``data`` with a domain string of their
        own.
        """
        return self._private.sign(data)


def encode_public(kind: KeyKind, key: bytes) -> str:
    """The text of a raw public key of 32 bytes."""
    if len(key) != KEY_LENGTH:
        raise InvalidInput(f"a public key has {KEY_LENGTH} bytes, not {len(key)}", kind="invalid-key")
    return _encode(bytes([kind]) + key)


def decode_public(text: str, kind: KeyKind | None = None) -> tuple[KeyKind, bytes]:
    """Kind and 32 raw bytes of a public key's text.

    Strict: one text for each key. With ``kind``, a key of another kind is refused too.
    Raises InvalidInput ``invalid-key``.
    """
    raw = _decode(text, PUBLIC_TEXT_LENGTH)
    found = _kind(raw[0], text)
    if kind is not None and found is not kind:
        raise InvalidInput(f"expected the key of a NATS {kind.name.lower()}, got {text!r}", kind="invalid-key")
    return found, raw[1:]


def encode_seed(kind: KeyKind, secret: bytes) -> str:
    """The text of a 32-byte seed: a secret."""
    if len(secret) != KEY_LENGTH:
        raise InvalidInput(f"a key's seed has {KEY_LENGTH} bytes, not {len(secret)}", kind="invalid-key")
    return _encode(bytes([_SEED_PREFIX | (kind >> 5), (kind & 31) << 3]) + secret)


def decode_seed(text: str) -> tuple[KeyKind, bytes]:
    """Kind and 32 secret bytes of a seed's text. Errors (InvalidInput ``invalid-key``) never repeat the
    text.
    """
    raw = _decode(text, SEED_TEXT_LENGTH, secret=True)
    if raw[0] & 0xF8 != _SEED_PREFIX or raw[1] & 7:
        raise InvalidInput("this is not the seed of a NATS key", kind="invalid-key")
    return _kind((raw[0] & 7) << 5 | raw[1] >> 3, "***"), raw[2:]


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is that of ``data`` by the key with this text. A malformed key raises
    InvalidInput.
    """
    _, key = decode_public(public)
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _encode(payload: bytes) -> str:
    checksum = binascii.crc_hqx(payload, 0).to_bytes(2, "little")
    return base64.b32encode(payload + checksum).decode("ascii").rstrip("=")


def _decode(text: str, length: int, *, secret: bool = False) -> bytes:
    """The checked payload before the checksum."""
    shown = "***" if secret else repr(text[:80])
    if len(text) != length:
        raise InvalidInput(f"the text of a NATS key has {length} characters: {shown}", kind="invalid-key")
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (ValueError, binascii.Error):
        raise InvalidInput(f"not the base32 text of a NATS key: {shown}", kind="invalid-key") from None
    payload = raw[:-2]
    if _encode(payload) != text:  # checksum, and one text only for each key
        raise InvalidInput(f"the checksum of this NATS key is wrong: {shown}", kind="invalid-key")
    return payload


def _kind(prefix: int, shown: str) -> KeyKind:
    try:
        return KeyKind(prefix)
    except ValueError:
        raise InvalidInput(f"a NATS key of an unknown kind: {shown!r}", kind="invalid-key") from None
