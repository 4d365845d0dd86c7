"""Signed HTTP requests: RFC 9421 HTTP Message Signatures as nodes make them and hubs check them.

One signature, tag ``entrepot``, Ed25519 by the node's key at this hub, over ``@method``, ``@target-uri`` and,
where there is a body, ``content-digest`` (RFC 9530, SHA-256) and ``content-type``; with ``created``,
``nonce`` and ``keyid`` (the key's NKey text). The signature base begins with ``"@method"``, so no NATS nonce
and no domain-prefixed record of entrepot is ever one. The library builds and parses the fields; keys and
clock are ours.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    VerifyResult,
)
from http_message_signatures.algorithms import ED25519

from entrepot.core.errors import Denied, InvalidInput
from entrepot.core.nkeys import KeyKind, SigningKey, decode_public
from entrepot.core.units import spell_duration

TAG: Final = "entrepot"
#: Seconds that a request's ``created`` may lie before or after the hub's clock.
WINDOW: Final = 60
#: A nonce, drawn at random for every single request, a retry too.
NONCE: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
#: Methods that change nothing: repeating one does no harm, so its nonce is not kept.
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})

_ALWAYS: Final = ("@method", "@target-uri")
_BODY: Final = ("content-digest", "content-type")
_PARAMETERS: Final = frozenset({"created", "keyid", "alg", "nonce", "tag"})


class Fields(Protocol):
    """Header fields of a request, as they were sent; names in any case, several lines of one name allowed."""

    def items(self) -> Any:  # an iterable of (name, value), whose exact type the containers do not share
        """All lines in order."""


@dataclass(frozen=True, slots=True)
class SignedBy:
    """Who signed a request (public key as text), when (unix seconds by its clock), and under which nonce."""

    node: str
    created: int
    nonce: str


@dataclass(slots=True)
class _Request:
    """What the library reads of a request."""

    method: str
    url: str
    headers: Any


@dataclass(frozen=True, slots=True)
class _Instant:
    """A point in time. The library asks a ``datetime`` for nothing but its timestamp."""

    seconds: int

    def timestamp(self) -> int:
        return self.seconds


class _NamedKeys(HTTPSignatureKeyResolver):
    """The key id is the key: whether the hub knows it is another question."""

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey | None:
        try:
            _, raw = decode_public(key_id, KeyKind.USER)
            return Ed25519PublicKey.from_public_bytes(raw)
        except (InvalidInput, ValueError):
            return None

    def resolve_private_key(self, key_id: str) -> bytes:
        raise KeyError(key_id)


class _Verifier(HTTPMessageVerifier):
    """Leaves the judgement of time to :func:`check_clock`: this module reads no clock."""

    def validate_created_and_expires(self, sig_input: Any, max_age: object = None) -> None:
        pass


_signer = HTTPMessageSigner(signature_algorithm=ED25519)
_verifier = _Verifier(signature_algorithm=ED25519, key_resolver=_NamedKeys())


def sign_request(
    method: str,
    url: str,
    headers: MutableMapping[str, str],
    body: bytes,
    *,
    key: SigningKey,
    nonce: str,
    now: float,
) -> None:
    """Sign a request: adds ``Content-Digest`` (if there is a body), ``Signature-Input`` and ``Signature``.

    ``url`` is the whole URL as it is requested, encoded; a body needs its ``Content-Type`` in ``headers``.
    Each request takes a fresh ``nonce``. Raises :class:`InvalidInput` for what cannot be signed.
    """
    if NONCE.fullmatch(nonce) is None:
        raise InvalidInput("a nonce has 16 to 64 of A-Z, a-z, 0-9, '_' and '-'")
    request = _Request(method, url, headers)
    try:
        prepared = _signer.prepare(
            request,
            key_id=key.public,
            created=cast("Any", _Instant(int(now))),
            nonce=nonce,
            label=TAG,
            tag=TAG,
            covered_component_ids=_ALWAYS + _BODY[1:] * bool(body),
            body=body or None,
        )
        _signer.apply(request, prepared, key.sign(prepared.signature_base))
    except HTTPMessageSignaturesException as error:
        raise InvalidInput(f"this request cannot be signed: {error}") from None


def verify_request(method: str, urls: Sequence[str], headers: Fields, body: bytes, *, now: float) -> SignedBy:
    """Who signed this request.

    ``urls`` are the URLs that may stand for it (the hub's public addresses, never one taken from ``Host``),
    ``now`` the hub's clock. Whether the signer is known, and its nonce new, is for the caller to find out.

    Raises :class:`Denied`: ``bad-signature``, or ``clock-skew`` when a good signature is too old or too
    young.
    """
    required = _ALWAYS + _BODY * bool(body)
    reason = ""
    for url in urls:
        try:
            results = _verifier.verify(
                _Request(method, url, headers),
                max_age=None,
                expect_tag=TAG,
                require_components=required,
                body=body,
            )
        except HTTPMessageSignaturesException as error:
            reason = str(error)
        else:
            return _signed_by(results, now)
    raise Denied(
        f"the request's signature is not good: {reason or 'made over another request, or by another key'}",
        kind="bad-signature",
        hint="It must name the hub by the address that the hub knows itself by.",
        target=urls[0] if urls else None,
    )


def _signed_by(results: list[VerifyResult], now: float) -> SignedBy:
    if len(results) != 1:
        raise Denied("a request has one signature", kind="bad-signature")
    parameters = results[0].parameters
    created, nonce = parameters.get("created"), parameters.get("nonce")
    if not _PARAMETERS.issuperset(parameters) or not isinstance(created, int) or not isinstance(nonce, str):
        raise Denied("a signature has created, keyid, nonce and tag, and no more", kind="bad-signature")
    if NONCE.fullmatch(nonce) is None:
        raise Denied("the signature's nonce has a form that none has", kind="bad-signature")
    check_clock(created, now)
    return SignedBy(str(parameters["keyid"]), created, nonce)


def check_clock(node_time: float, hub_time: float) -> None:
    """Raises :class:`Denied` (``clock-skew``) if the node's clock is more than :data:`WINDOW` off the
    hub's."""
    off = node_time - hub_time
    if abs(off) > WINDOW:
        raise Denied(
            f"your clock is {spell_duration(abs(off))} off",
            kind="clock-skew",
            hint=f"It is {'ahead of' if off > 0 else 'behind'} the hub's: set it, best by a time service (NTP).",
            hub_time=round(hub_time, 3),
            seconds=round(off, 3),
        )
