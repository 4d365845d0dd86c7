"""What the model ledger keeps of objects, wants and channels."""

from __future__ import annotations

from dataclasses import dataclass, field

from entrepot.core.identifiers import Opening
from entrepot_hub.core.eviction import Merit
from entrepot_hub.core.ledger import ObjectRecord, ObjectRef, WantRecord
from entrepot_hub.core.members import Rights
from entrepot_hub.core.wishes import Read, Ready, Wish, Wishes


@dataclass(slots=True)
class Slot:
    """An object with all its grants by id, its read leases by node as (until, got), its place among the ready, and
    what its standing comes from."""

    record: ObjectRecord
    grants: list[bytes] = field(default_factory=list)
    reads: dict[str, tuple[float, bool]] = field(default_factory=dict)
    ready_number: int = 0
    merit: Merit = field(default_factory=Merit)


@dataclass(slots=True)
class Want:
    """A want and its place among all wants."""

    cursor: int
    record: WantRecord


@dataclass(slots=True)
class Channel:
    """A channel's account, its members and what they want and hold."""

    name: str
    quota: int
    charged: int = 0
    ready_count: int = 0
    level: float = 0.0
    evicted: int = 0
    openings: dict[bytes, Opening] = field(default_factory=dict)
    holders: dict[bytes, dict[str, float]] = field(default_factory=dict)
    members: dict[str, tuple[str, Rights]] = field(default_factory=dict)
    wants: dict[tuple[bytes, str], Want] = field(default_factory=dict)
    strikes: list[tuple[str, float]] = field(default_factory=list)


def wishes_of(of: Channel, now: float) -> Wishes:
    """What the channel's readers want."""
    orders = [want.record.order for want in of.wants.values() if want.record.order.until > now]
    return Wishes((order.lock, order.stream, Wish(order.node, order.ranges, order.window)) for order in orders)


def readied(slot: Slot) -> Ready[ObjectRef]:
    """A ready object, as those choose that are to leave."""
    ref = slot.record.ref
    reads = tuple(Read(node, until, got) for node, (until, got) in sorted(slot.reads.items()))
    return Ready(ref, (ref.lock, ref.stream, ref.number), slot.record.size, slot.ready_number, reads)


def lend_to(slot: Slot, node: str, until: float) -> None:
    """A read lease until then or, where there is a longer one, as long as that."""
    before = slot.reads.get(node)
    slot.reads[node] = (until if before is None else max(before[0], until)), False
