"""Envelope encryption for what the hub must keep and never show: bucket credentials, invite keys, identities.

A sealed blob, version 1, is::

    0x01 ‖ nonce (12) ‖ AES-256-GCM(master key, data key) (48) ‖ nonce (12) ‖ AES-256-GCM(data key, secret)

The data key belongs to this blob alone, so changing the master key re-wraps 48 bytes (:func:`reseal`) and
touches no secret. Both layers bind the caller's associated data: a blob copied to another place does not open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from entrepot.core.errors import Corrupt, Denied, InvalidInput

KEY_LENGTH: Final = 32
#: Random bytes that :func:`seal` needs: the data key and two nonces.
SEAL_RANDOM: Final = 32 + 12 + 12
#: Random bytes that :func:`reseal` needs.
RESEAL_RANDOM: Final = 12

_VERSION: Final = b"\x01"
_NONCE: Final = 12
_TAG: Final = 16
_WRAPPED: Final = KEY_LENGTH + _TAG
_HEAD: Final = 1 + _NONCE + _WRAPPED
_SHORTEST: Final = _HEAD + _NONCE + _TAG
_MAX_SECRET: Final = 1 << 20
#: Bytes that a sealed blob has more than the secret in it.
SEAL_OVERHEAD: Final = _SHORTEST
_WRAP_DOMAIN: Final = b"entrepot.seal.key\0"
_DATA_DOMAIN: Final = b"entrepot.seal.data\0"


@dataclass(frozen=True, slots=True)
class MasterKey:
    """32 bytes that open everything sealed at a hub. Never printed."""

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_LENGTH:
            raise InvalidInput(f"a master key has {KEY_LENGTH} bytes, not {len(self.raw)}", kind="invalid-key")

    @classmethod
    def parse(cls, text: str) -> Self:
        """A key from 64 hexadecimal digits (blanks around them ignored). The text never enters an error."""
        try:
            raw = bytes.fromhex(text.strip())
        except ValueError:
            raw = b""
        if len(raw) != KEY_LENGTH:
            raise InvalidInput("a master key is written as 64 hexadecimal digits", kind="invalid-key")
        return cls(raw)

    @property
    def fingerprint(self) -> str:
        """8 hex digits that tell two keys apart and say nothing about either."""
        return sha256(b"entrepot.master\0" + self.raw).hexdigest()[:8]


def seal(secret: bytes, *, key: MasterKey, associated: bytes, random: bytes) -> bytes:
    """The secret, sealed. ``random`` is :data:`SEAL_RANDOM` fresh random bytes, used for nothing else."""
    if len(random) != SEAL_RANDOM:
        raise InvalidInput(f"sealing needs {SEAL_RANDOM} random bytes")
    if len(secret) > _MAX_SECRET:
        raise InvalidInput(f"a secret of {len(secret)} bytes is too long to seal")
    data_key, wrap_nonce, nonce = random[:32], random[32:44], random[44:]
    wrapped = AESGCM(key.raw).encrypt(wrap_nonce, data_key, _WRAP_DOMAIN + associated)
    sealed = AESGCM(data_key).encrypt(nonce, secret, _DATA_DOMAIN + associated)
    return _VERSION + wrap_nonce + wrapped + nonce + sealed


def unseal(blob: bytes, *, key: MasterKey, associated: bytes) -> bytes:
    """The secret in the blob.

    Raises :class:`Denied` when the key or the associated data are not those it was sealed with, and
    :class:`Corrupt` when the blob is cut, of another version, or altered behind its wrapped key.
    """
    data_key = _unwrap(blob, key, associated)
    nonce, sealed = blob[_HEAD : _HEAD + _NONCE], blob[_HEAD + _NONCE :]
    try:
        return AESGCM(data_key).decrypt(nonce, sealed, _DATA_DOMAIN + associated)
    except InvalidTag:
        raise Corrupt("a sealed secret was altered") from None


def reseal(blob: bytes, *, old: MasterKey, new: MasterKey, associated: bytes, random: bytes) -> bytes:
    """The same blob under another master key; ``random`` is :data:`RESEAL_RANDOM` fresh random bytes.

    Raises as :func:`unseal` does; the secret itself is not decrypted.
    """
    if len(random) != RESEAL_RANDOM:
        raise InvalidInput(f"sealing again needs {RESEAL_RANDOM} random bytes")
    data_key = _unwrap(blob, old, associated)
    return _VERSION + random + AESGCM(new.raw).encrypt(random, data_key, _WRAP_DOMAIN + associated) + blob[_HEAD:]


def opens(blob: bytes, *, key: MasterKey, associated: bytes) -> bool:
    """Whether the blob was sealed under this key for this place. Raises :class:`Corrupt` for what is no sealed blob."""
    try:
        _unwrap(blob, key, associated)
    except Denied:
        return False
    return True


def same_secret(one: bytes | None, other: bytes | None) -> bool:
    """Whether two blobs are one sealed secret, however often it was sealed again under other master keys. The same
    secret sealed twice is two."""
    return one == other if one is None or other is None else one[_HEAD:] == other[_HEAD:]


def bucket_place(url: str) -> bytes:
    """The associated data of the keys of the bucket at this URL."""
    return b"entrepot.bucket\0" + url.encode()


def invite_place(invite: str) -> bytes:
    """The associated data of an invite's proof key."""
    return b"entrepot.invite\0" + invite.encode()


def _unwrap(blob: bytes, key: MasterKey, associated: bytes) -> bytes:
    if not _SHORTEST <= len(blob) <= _SHORTEST + _MAX_SECRET:
        raise Corrupt("a sealed secret has an impossible length", length=len(blob))
    if blob[:1] != _VERSION:
        raise Corrupt("a sealed secret is of an unknown version", version=blob[0])
    try:
        return AESGCM(key.raw).decrypt(blob[1 : 1 + _NONCE], blob[1 + _NONCE : _HEAD], _WRAP_DOMAIN + associated)
    except InvalidTag:
        raise Denied(
            "a sealed secret does not open with this master key",
            hint="Is this the master key the hub was set up with?",
        ) from None
