"""What a comparison of bucket and ledger is asked for and answers: see :mod:`.reconciliation`, which does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from entrepot_hub.services.desk import Desk, Operation, Request

#: Findings that are told one by one; the rest are counted.
EXAMPLES: Final = 100
#: Pages of a listing that one request compares: it is done in seconds.
PAGES: Final = 5


class Reconcile(Request, frozen=True, kw_only=True):
    """Compare the next pages of a channel's bucket with the ledger, after the key ``cursor``."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    cursor: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    dry_run: bool = False


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One difference: the ``key``, what was found, what was done (in a dry run: would be) in a word, and its bytes."""

    key: str
    found: str
    length: int = 0


class Comparison(msgspec.Struct, kw_only=True):
    """What a reconciliation found so far. ``listed`` keys and their ``bytes``; ``agreed``: as the ledger says.
    ``cursor``: where to go on, None at the end."""

    channel: str
    dry_run: bool
    listed: int = 0
    bytes: int = 0
    agreed: int = 0
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    findings: list[Finding] = msgspec.field(default_factory=list)
    cursor: str | None = None


async def reconcile(desk: Desk, asked: Reconcile, _actor: str) -> Comparison:
    """Compare and mend the next pages; NotFound (``no-such-channel``), and what the bucket raises."""
    from entrepot_hub.services.reconciliation import Reconciler

    reconciler = Reconciler(
        desk.database,
        desk.ledger,
        desk.channels,
        desk.keeper,
        desk.clock,
        None if desk.arbiter is None else desk.arbiter.mended,
    )
    return await reconciler.step(asked.name, asked.cursor, dry_run=asked.dry_run, pages=PAGES)


#: What can be asked for.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    "channel.reconcile": Operation(Reconcile, Comparison, reconcile),
}
