"""Short words for the ledger's tests: references, proposals, and an object brought to a state."""

from __future__ import annotations

from hashlib import sha256
from itertools import count

from entrepot.core.identifiers import Opening
from entrepot_hub.core.ledger import (
    Found,
    GrantRecord,
    Ledger,
    ObjectRef,
    ObjectStatus,
    Proposal,
    WantOrder,
)

LOCK = b"lock" * 2
STREAM = b"\xff" + bytes(31)
OTHER = b"\xff" + bytes(30) + b"\x01"
FEED = b"\xfe" + bytes(31)
OPENING = Opening(700, bytes(32))
DIGEST = sha256(b"object").digest()
GRACE = 60.0

_numbers = count(1)


def grant_id() -> bytes:
    return next(_numbers).to_bytes(16)


def ref(number: int = 0, stream: bytes = STREAM, channel: str = "demo", lock: bytes = LOCK) -> ObjectRef:
    return ObjectRef(channel, lock, stream, number)


def proposal(
    of: ObjectRef, *, node: str = "A", size: int = 100, until: float = 20.0, session: str = "s1", grant: bytes = b""
) -> Proposal:
    return Proposal(of, grant or grant_id(), node, session, size, until)


def order(
    *, node: str = "B", ranges: tuple[tuple[int, int], ...] = ((0, 6),), window: int = 8, until: float = 100.0,
    stream: bytes = STREAM, channel: str = "demo", keep: bool = False,
) -> WantOrder:  # fmt: skip
    return WantOrder(channel, LOCK, stream, node, ranges, window, until, keep)


def granted(ledger: Ledger, of: ObjectRef, now: float = 10.0, **words: object) -> GrantRecord:
    """A live grant, for ten seconds unless said otherwise."""
    words.setdefault("until", now + 10.0)
    (outcome,) = ledger.grant([proposal(of, **words)], now)  # type: ignore[arg-type]
    assert outcome.refusal is None
    assert outcome.grant is not None
    return outcome.grant


def uploading(
    ledger: Ledger, of: ObjectRef, now: float = 10.0, put_until: float = 900.0, **words: object
) -> GrantRecord:
    """An accepted grant."""
    grant = granted(ledger, of, now, **words)
    view = ledger.accept(grant.grant, grant.node, DIGEST, now + 10.0, put_until, now)
    assert view.grant is not None
    return view.grant


def found(size: int = 100, etag: str = "e1", digest: bytes | None = DIGEST) -> Found:
    return Found(size, etag, digest)


def ready(ledger: Ledger, of: ObjectRef, now: float = 10.0, put_until: float = 900.0, size: int = 100) -> None:
    """An object in the bucket."""
    uploading(ledger, of, now, put_until, size=size)
    view = ledger.settle(of, found(size), now, GRACE)
    assert view is not None
    assert view.record.status is ObjectStatus.READY


def status(ledger: Ledger, of: ObjectRef) -> ObjectStatus:
    return ledger.view(of).record.status


def charged(ledger: Ledger, channel: str = "demo") -> int:
    usage = ledger.usage(channel)
    assert usage.charged == usage.stored + usage.reserved
    return usage.charged
