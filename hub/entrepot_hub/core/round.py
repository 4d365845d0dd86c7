"""One round: who wants a stream, who offers it, and how its objects stand, as one hub knows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

from entrepot.core.errors import EntrepotError, NotFound
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.ranges import LAST_NUMBER, Pair, as_set, clip, front, holds, numbers, size
from entrepot_hub.core.ledger import GrantRecord, GrantStatus, HolderRecord, ObjectStatus, ObjectView, WantOrder
from entrepot_hub.core.queueing import Bill
from entrepot_hub.core.wishes import Front

type Session = tuple[str, str]

#: A grant that was made so shortly before an offer was heard may have been unknown to its session.
UNDERWAY = 0.25
#: A want that was sent before its node got an object may be heard so long after that was known.
LATE = 2.0

#: Objects that a kept want with no living asker has in its window.
KEPT_WINDOW = 64
#: A want that was not heard again for so long has no living asker.
ASKER_LIFE = 90.0


@dataclass(slots=True, weakref_slot=True)
class Seat:
    """A session's free upload slots, whatever streams they are for: as many as it had when it was last heard, less what
    it was granted since. ``reserved``: proposals on their way to the ledger."""

    slots: int = 0
    reserved: int = 0
    granted: list[float] = field(default_factory=list)

    @property
    def free(self) -> int:
        """Slots that are neither granted nor proposed."""
        return self.slots - self.reserved

    def heard(self, slots: int, now: float) -> None:
        """The session says how many slots it has free; what was granted just now it may not have known."""
        self.granted = [at for at in self.granted if at > now - UNDERWAY]
        self.slots = max(slots - len(self.granted), 0)

    def grant(self, now: float) -> None:
        """A slot is granted."""
        self.slots -= 1
        self.granted = [*(at for at in self.granted if at > now - UNDERWAY), now]


@dataclass(slots=True)
class Offer:
    """What a session holds of the stream."""

    ranges: tuple[Pair, ...]
    seat: Seat
    heard_at: float


@dataclass(slots=True)
class Reader:
    """A node that wants the stream. ``heard``: when it said so; ``reading_since``: since when it has had something to
    read without getting anything (None: it has nothing to read); ``left``: the objects it lacked when last heard;
    ``waits_since``: since when it waits for room at its front; ``has``: objects that it was since then known to have,
    and since when."""

    order: WantOrder
    heard: float
    left: int
    reading_since: float | None = None
    waits_since: float | None = None
    has: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """A proposal on its way to the ledger: who shall upload it, who pays, and whose front it is."""

    seat: Seat
    bill: Bill
    head: Front | None
    node: str


@dataclass(slots=True)
class Live:
    """A live grant as this hub knows it. ``sent_at``: when the session was last told."""

    session: Session
    grant: GrantRecord
    accepted: bool
    sent_at: float
    seat: Seat | None = None


def lighten(load: Counter[str], node: str) -> None:
    """One object less for the node; what has none is not kept."""
    load[node] -= 1
    if load[node] <= 0:
        del load[node]


@dataclass(slots=True)
class Round:
    """Everything about one stream that is wanted, in one hub's memory.

    ``wants``: by node. ``live``, ``proposed``: by object number. ``offers``: by
    session. ``failures``: running failures by node; ``excluded``: until when a node is left out while others
    can upload; ``rested``: until when it is in any case.
    """

    settings: ExchangeSettings
    lock: SchemaLock
    opening: Opening | None
    started_at: float
    members: int = 1
    wants: dict[str, Reader] = field(default_factory=dict)
    holders: list[HolderRecord] = field(default_factory=list)
    ready: set[int] = field(default_factory=set)
    live: dict[int, Live] = field(default_factory=dict)
    proposed: dict[int, Claim] = field(default_factory=dict)
    offers: dict[Session, Offer] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, float] = field(default_factory=dict)
    rested: dict[str, float] = field(default_factory=dict)
    window_end: float | None = None
    seek_at: float = 0.0
    seeks: int = 0
    calm: bool = False  # nothing is to be sought now: ``seek_at`` is when offers want refreshing
    stepped_at: float = 0.0
    due_at: float | None = 0.0  # what :meth:`due` said last
    unmet_since: float | None = None
    pause_until: float = 0.0
    trouble: EntrepotError | None = None
    load: Counter[str] = field(default_factory=Counter)  # objects proposed or granted to each node, in all rounds

    def see(self, view: ObjectView, now: float) -> None:
        """Take in how the ledger sees an object."""
        number = view.record.ref.number
        if view.record.status is ObjectStatus.READY:
            self.ready.add(number)
        else:
            self.ready.discard(number)
        if view.grant is not None:
            if number not in self.live:
                self.go_live(view.grant, now)
        else:
            self.over(number)

    def go_live(self, grant: GrantRecord, now: float, seat: Seat | None = None) -> None:
        """A grant is live. ``seat``: whose slot it takes, if it was made here."""
        accepted = grant.status is GrantStatus.ACCEPTED
        self._freed(self.live.get(grant.ref.number))
        self.load[grant.node] += 1
        self.live[grant.ref.number] = Live((grant.node, grant.session), grant, accepted, now, seat)
        if seat is not None:
            seat.grant(now)

    def over(self, number: int) -> None:
        """The object's grant is over: its slot is free again."""
        live = self.live.pop(number, None)
        self._freed(live)
        if live is not None and live.seat is not None:
            live.seat.slots += 1

    def _freed(self, live: Live | None) -> None:
        if live is not None:
            lighten(self.load, live.grant.node)

    def hear(self, order: WantOrder, now: float) -> bool:
        """A node says what it wants; whether it got something since it was last heard."""
        before = self.wants.get(order.node)
        left = size(clip(order.ranges, self._count()))
        reader = self.wants[order.node] = Reader(order, now, left)
        got = before is not None and left < before.left
        if before is not None:  # a want may be heard late
            reader.waits_since = None if got else before.waits_since
            reader.has = {number: at for number, at in before.has.items() if at > now - LATE}
        if self.ready and not self.ready.isdisjoint(self.window(reader, now)):
            since = None if before is None or got else before.reading_since
            reader.reading_since = now if since is None else since
        return got

    def satisfied(self, number: int, now: float) -> None:
        """Whoever wanted the object has it, though its want may not say so yet."""
        for reader in self.wants.values():
            if any(first <= number <= last for first, last in reader.order.ranges):
                reader.has[number] = now

    def stalled(self, now: float) -> list[str]:
        """Nodes that have had something to read for a whole read lease (and a second per MB) and got nothing of it."""
        patience = self.settings.read_lease
        if self.opening is not None:
            patience += Geometry(self.opening.length, self.lock).object_length(0) / 1e6 if self.opening.length else 0.0
        return [
            node
            for node, reader in self.wants.items()
            if reader.reading_since is not None and now >= reader.reading_since + patience
        ]

    def _count(self) -> int:
        return LAST_NUMBER + 1 if self.opening is None else Geometry(self.opening.length, self.lock).object_count

    def window(self, reader: Reader, now: float) -> tuple[int, ...]:
        """The objects that a reader asks for now; all of its ranges, in turn, when it has been silent."""
        order = reader.order
        if self.opening is None:
            return front(order.ranges, order.window)
        kept = order.keep and now > reader.heard + ASKER_LIFE
        ranges = clip(order.ranges, self._count())
        if kept:
            return tuple(islice((n for n in numbers(as_set(ranges)) if n not in self.ready), KEPT_WINDOW))
        return front(ranges, order.window)

    def needed(self, now: float) -> list[int]:
        """Objects to be granted, the front of every reader first."""
        if self.opening is None:
            return []
        ranks: dict[int, int] = {}
        for reader in self.wants.values():
            for rank, number in enumerate(self.window(reader, now)):
                if number in reader.has or number in self.ready or number in self.live or number in self.proposed:
                    continue
                ranks[number] = min(rank, ranks.get(number, rank))
        return sorted(ranks, key=lambda number: (ranks[number], number))

    def fresh(self, offer: Offer, now: float) -> bool:
        """Whether the offer is still good."""
        return now < offer.heard_at + self.settings.offer_life

    def able(self, now: float, number: int | None = None) -> dict[Session, Offer]:
        """The good offers (of an object), of nodes that are not left out; if there is none, of those that have rested
        since they failed: a bad network must not shut out the last holder."""
        good = {
            session: offer
            for session, offer in self.offers.items()
            if self.fresh(offer, now) and (number is None or holds(offer.ranges, number))
        }
        first = {session: offer for session, offer in good.items() if now >= self.excluded.get(session[0], 0.0)}
        return first or {s: offer for s, offer in good.items() if now >= self.rested.get(s[0], 0.0)}

    def failed(self, node: str, now: float) -> None:
        """A node failed: twice running, and it is left out for a while, and rests for a time that doubles. Failures
        while it rests are one of a burst that was counted already."""
        if now < self.rested.get(node, 0.0):
            return
        count = self.failures[node] = self.failures.get(node, 0) + 1
        more = count - self.settings.failures
        if more >= 0:
            self.excluded[node] = now + self.settings.exclusion
            self.rested[node] = now + min(2.0 ** min(more, 16), self.settings.exclusion / 8)

    def forgive(self, node: str) -> None:
        """The node brought an object: it counts as before."""
        for kept in (self.failures, self.excluded, self.rested):
            kept.pop(node, None)

    def nobody(self) -> NotFound:
        """What to say when nobody who is online has the stream: who had it last, and when."""
        if not self.holders:
            return NotFound(
                "no node that is online has this stream, and none that may provide it now ever said it had",
                kind="no-holder",
                hint="Ask whoever gave you the URI to run `entrepot up` on a machine that has it. A node that was "
                "suspended, or lost its right, is not asked.",
            )
        last = self.holders[0]
        return NotFound(
            f"no node that is online has this stream; {last.name} had it last",
            kind="no-holder",
            hint=f"Ask for `entrepot up` on {last.name}, or wait for it with --wait 10m.",
            last_holder=last.name,
            last_seen=last.seen_at,
        )

    def due(self) -> float | None:
        """When the round wants a tick next."""
        times = [reader.order.until for reader in self.wants.values()]
        times += [at + LATE for reader in self.wants.values() for at in reader.has.values()]
        times += [live.sent_at + self.settings.resend for live in self.live.values() if not live.accepted]
        if self.window_end is not None:
            times.append(self.window_end)
        elif self.unmet_since is not None:
            waits = (self.seek_at, self.pause_until, *self.excluded.values(), *self.rested.values())
            times += [t for t in waits if t > self.stepped_at]
        if not self.wants and not self.live and not self.proposed:
            times.append(self.stepped_at)
        return min(times, default=None)
