"""What the rounds decide: values that a service carries out."""

from __future__ import annotations

from dataclasses import dataclass

from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot_hub.core.ledger import GrantRecord, ObjectRef, Proposal
from entrepot_hub.core.wishes import Front


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
class TakeOver:
    """End this grant, whose session is slow though nothing is wrong with it, and tell it to stop; report by
    :meth:`~entrepot_hub.core.rounds.Rounds.taken_over`, then put the proposal to the ledger. If the grant was over
    already, the proposal came to nothing."""

    grant: GrantRecord
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class SendGrant:
    """Tell the session about its grant."""

    grant: GrantRecord
    opening: Opening


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """The channel lacks room: evict up to ``wish`` bytes of what no reader lacks and, where that was less than
    ``need``, the rest of what readers lack. Report what left by :meth:`~entrepot_hub.core.rounds.Rounds.vanished`, then
    by :meth:`~entrepot_hub.core.rounds.Rounds.roomier`. ``head``: the front of a reader that the need is of.
    ``stalled``: readers that had their time to read what is ready and got nothing."""

    channel: str
    need: int
    wish: int = 0
    head: Front | None = None
    stalled: tuple[Front, ...] = ()


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the stream's readers how these objects stand."""

    refs: tuple[ObjectRef, ...]


@dataclass(frozen=True, slots=True)
class Review:
    """Nothing was heard of these grants for a while: ask the ledger how their objects stand, and report by
    :meth:`~entrepot_hub.core.rounds.Rounds.reviewed`."""

    grants: tuple[GrantRecord, ...]


@dataclass(frozen=True, slots=True)
class Introduce:
    """A stream's opening came to be known: tell its readers."""

    channel: str
    stream: bytes
    opening: Opening


type Effect = Introduce | SendSeek | Propose | TakeOver | SendGrant | MakeRoom | Announce | Review
