"""NATS decentralized JWTs (version 2): operator, account and user claims, signed with NATS keys.

A token is ``base64url(header) . base64url(claims) . base64url(signature)`` without padding, the header is
``{"typ": "JWT", "alg": "ed25519-nkey"}``. Claims hold ``iat``, ``exp``, ``iss``, ``jti``, ``name``, ``sub``
and, under ``nats``, what the type needs. Source: https://github.com/nats-io/jwt (v2) and the server that
reads them. Who may sign: operator keys sign operators and accounts, account keys sign users.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from entrepot.core.errors import Denied, InvalidInput
from entrepot.core.nkeys import KeyKind, SigningKey, decode_public, verify

type ClaimType = Literal["operator", "account", "user"]

VERSION: Final = 2
MAX_TOKEN: Final = 1 << 20  # bytes
_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
_SUBJECTS: Final[Mapping[str, KeyKind]] = {
    "operator": KeyKind.OPERATOR,
    "account": KeyKind.ACCOUNT,
    "user": KeyKind.USER,
}
_ISSUERS: Final[Mapping[str, KeyKind]] = {
    "operator": KeyKind.OPERATOR,
    "account": KeyKind.OPERATOR,
    "user": KeyKind.ACCOUNT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The verified claims of a token. Times are unix seconds; ``expires`` None means never."""

    type: ClaimType
    subject: str
    issuer: str
    name: str
    issued: int
    expires: int | None
    nats: Mapping[str, Any]


def encode(
    claim_type: ClaimType,
    subject: str,
    name: str,
    nats: Mapping[str, Any],
    *,
    signer: SigningKey,
    issued: int,
    expires: int | None = None,
) -> str:
    """A signed token about ``subject`` (the text of a public key). ``nats`` goes without type and version.

    Equal arguments give an equal token. Raises InvalidInput ``invalid-key`` when subject or signer is of a
    kind that this type does not take.
    """
    decode_public(subject, _SUBJECTS[claim_type])
    decode_public(signer.public, _ISSUERS[claim_type])
    claims: dict[str, Any] = {
        "iat": issued,
        "iss": signer.public,
        "name": name,
        "sub": subject,
        "nats": {**nats, "type": claim_type, "version": VERSION},
    }
    if expires is not None:
        claims["exp"] = expires
    digest = hashlib.sha256(_json(claims)).digest()
    claims["jti"] = base64.b32encode(digest).decode("ascii").rstrip("=")
    text = f"{_encode(_json(_HEADER))}.{_encode(_json(claims))}"
    return f"{text}.{_encode(signer.sign(text.encode('ascii')))}"


def decode(token: str, claim_type: ClaimType) -> Claims:
    """The claims of a token whose signature by its own issuer holds; whether that issuer is trusted is the
    caller's.

    Strict and bounded. Raises InvalidInput ``invalid-token`` for what is no such token, Denied
    ``bad-signature`` for a signature that does not hold.
    """
    parts = token.split(".") if len(token) <= MAX_TOKEN else []
    if len(parts) != 3:
        raise _invalid("it has not three parts")
    header, body = _object(parts[0]), _object(parts[1])
    if header != _HEADER:
        raise _invalid("its header is of another kind")
    nats = body.get("nats")
    if not isinstance(nats, dict) or nats.get("type") != claim_type or nats.get("version") != VERSION:
        raise _invalid(f"it is no {claim_type} claim of version {VERSION}")
    subject, issuer, name = (body.get(field) for field in ("sub", "iss", "name"))
    issued, expires = body.get("iat"), body.get("exp")
    if not isinstance(subject, str) or not isinstance(issuer, str) or not isinstance(name, str | None):
        raise _invalid("a name in it is no text")
    if type(issued) is not int or type(expires) not in {int, type(None)}:
        raise _invalid("a time in it is no whole second")
    decode_public(subject, _SUBJECTS[claim_type])
    decode_public(issuer, _ISSUERS[claim_type])
    if not verify(issuer, f"{parts[0]}.{parts[1]}".encode("ascii"), _bytes(parts[2])):
        raise Denied("the signature of this NATS JWT does not hold", kind="bad-signature")
    return Claims(
        type=claim_type,
        subject=subject,
        issuer=issuer,
        name=name or "",
        issued=issued,
        expires=expires or None,
        nats=cast("Mapping[str, Any]", nats),
    )


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise _invalid("a part of it is no base64url") from None
    if _encode(data) != text:
        raise _invalid("a part of it is no canonical base64url")
    return data


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(_bytes(text))
    except (ValueError, RecursionError):
        raise _invalid("a part of it is no JSON") from None
    if not isinstance(value, dict):
        raise _invalid("a part of it is no JSON object")
    return value


def _invalid(why: str) -> InvalidInput:
    return InvalidInput(f"not a NATS JWT: {why}", kind="invalid-token")
