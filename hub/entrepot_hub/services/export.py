"""The export: what makes a hub this hub, in one encrypted file, so that its database may be lost.

It holds the hub's keys, channels with their buckets' keys, nodes, members, invites, pins, limits, prices, usage of two
months, the end of the audit log, and ``hub.toml``. It holds no object, grant, want or holder: what lies in the buckets
proves itself, and nodes say again what they have. See :mod:`.rebuild` for the way back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from entrepot.core.errors import InvalidInput
from entrepot_hub.services.desk import Desk, Operation, Request, View

if TYPE_CHECKING:  # a command that asks a running hub has no use for a database
    from entrepot_hub.core.export import Document, Secret


class MakeExport(Request, frozen=True, kw_only=True):
    """An export under a ``password``, under this ``key`` (64 hex digits), or else under the hub's master key.
    ``audit``: lines of the audit log, the latest."""

    password: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    key: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    audit: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 10_000

    def __repr__(self) -> str:
        secret = "password" if self.password is not None else "key" if self.key is not None else "master key"
        return f"MakeExport({secret}, audit={self.audit})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # Struct has one of its own, which shows every field, and rich prefers it to repr.
        return [("audit", self.audit)]


class Summary(View, frozen=True, kw_only=True):
    """What an export holds, in numbers. ``revoked``: members without rights and nodes that are suspended, among the
    ``members`` and ``nodes``."""

    hub: str
    made_at: float
    channels: tuple[str, ...]
    nodes: int
    members: int
    revoked: int
    invites: int
    pins: int
    secrets: int
    audit: int


class ExportView(View, frozen=True, kw_only=True):
    """The export and what is in it."""

    data: bytes
    summary: Summary


async def make_export(desk: Desk, asked: MakeExport, actor: str) -> ExportView:
    """An export of this instant; noted in the audit log.

    Raises InvalidInput for a bad password or key (``invalid-key``) and for a hub that is too large for one
    (``unsupported``), Denied for a secret that the master key does not open.
    """
    from entrepot_hub.adapters.export_rows import History, read_document
    from entrepot_hub.core.export import EXPORT_RANDOM, encrypt
    from entrepot_hub.core.sealing import MasterKey
    from entrepot_hub.services import identity

    if asked.password is not None and asked.key is not None:
        raise InvalidInput("an export has a password or a key, not both", kind="invalid-key")
    secret: Secret = desk.registry.keys.sealing
    if asked.password is not None:
        secret = asked.password
    elif asked.key is not None:
        secret = MasterKey.parse(asked.key)
    keys, now = desk.registry.keys, desk.clock()
    own = await asyncio.to_thread(identity.load_identity, desk.settings, keys)
    text = await asyncio.to_thread(identity.settings_text, desk.settings)
    document = await desk.database.run(
        read_document,
        keys,
        hub=own.hub_public,
        identity=own.dump(),
        settings=text,
        now=now,
        history=History(audit=asked.audit),
    )
    data = await asyncio.to_thread(encrypt, document, secret, secrets.token_bytes(EXPORT_RANDOM))
    summary = summed(document)
    await desk.registry.audit(actor, "hub.export", "hub", {"secrets": summary.secrets, "bytes": len(data)}, now=now)
    return ExportView(data=data, summary=summary)


def summed(document: Document) -> Summary:
    """What is in an export."""
    from entrepot_hub.core.members import NodeStatus

    revoked = sum(member.revoked_at is not None for member in document.members)
    revoked += sum(node.status != NodeStatus.ACTIVE for node in document.nodes)
    return Summary(
        hub=document.hub,
        made_at=document.made_at,
        channels=tuple(sorted(channel.name for channel in document.channels)),
        nodes=len(document.nodes),
        members=len(document.members),
        revoked=revoked,
        invites=len(document.invites),
        pins=len(document.pins),
        secrets=1 + len(document.invites) + sum(bucket.credentials is not None for bucket in document.buckets),
        audit=len(document.audit),
    )


#: What can be asked for.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    "hub.export": Operation(MakeExport, ExportView, make_export),
}
