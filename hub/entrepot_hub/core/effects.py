"""What the rounds decide: values that a service carries out."""

from __future__ import annotations

from dataclasses import dataclass

from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot_hub.core.ledger import GrantRecord, ObjectRef, Proposal


@dataclass(frozen=True, slots=True)
class SendSeek:
    """Ask these nodes, or (None) the ``sample`` / 65536 part of the whole channel."""

    channel: str
    lock: SchemaLock
    stream: bytes
    nodes: tuple[str, ...] | None
    sample: int = 65536


@dataclass(frozen=True, slots=True)
class Propose:
    """Put these to the ledger and report by :meth:`~entrepot_hub.core.rounds.Rounds.judged`."""

    proposals: tuple[Proposal, ...]


@dataclass(frozen=True, slots=True)
class SendGrant:
    """Tell the session about its grant."""

    grant: GrantRecord
    opening: Opening


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """The channel lacks so many bytes: evict, then report by :meth:`~entrepot_hub.core.rounds.Rounds.roomier`."""

    channel: str
    short: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the stream's readers how these objects stand."""

    refs: tuple[ObjectRef, ...]


@dataclass(frozen=True, slots=True)
class Introduce:
    """A stream's opening came to be known: tell its readers."""

    channel: str
    stream: bytes
    opening: Opening


type Effect = Introduce | SendSeek | Propose | SendGrant | MakeRoom | Announce
