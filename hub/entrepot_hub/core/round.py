"""One round: who wants a stream, who offers it, and how its objects stand, as one hub knows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from entrepot.core.errors import EntrepotError, NotFound
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.ranges import Pair, holds
from entrepot_hub.core.ledger import GrantRecord, GrantStatus, HolderRecord, ObjectStatus, ObjectView, WantOrder
from entrepot_hub.core.queueing import Bill
from entrepot_hub.core.readers import Reader, Readers
from entrepot_hub.core.seats import Seat, Session
from entrepot_hub.core.uplinks import Uplinks
from entrepot_hub.core.wishes import Front

#: The ledger is asked about a live grant of which nothing was heard for this part of a lease: another hub may have
#: heard that it is over. Progress is told twice as often.
DOUBT = 4


@dataclass(slots=True)
class Offer:
    """What a session holds of the stream."""

    ranges: tuple[Pair, ...]
    seat: Seat
    heard_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A proposal on its way to the ledger: who shall upload it, who pays (None: that was paid), and whose front it
    is."""

    seat: Seat
    bill: Bill | None
    head: Front | None
    node: str


@dataclass(slots=True)
class Live:
    """A live grant as this hub knows it. ``sent_at``: when the session was last told; ``sure_at``: when it was last
    heard of here, or asked about."""

    session: Session
    grant: GrantRecord
    accepted: bool
    sent_at: float
    sure_at: float
    seat: Seat | None = None


@dataclass(slots=True)
class Taken:
    """An object that was taken over: from which session, by which node, when, and what was known of that then: the
    bytes it had told of in all, and its rate in bytes/s. ``load``: most objects that it had at once since. ``back``: it
    has passed on from there, or back, as well."""

    session: Session
    node: str
    at: float
    told: int
    rate: float
    load: int = 1
    back: bool = False


def lighten(load: Counter[str], node: str) -> None:
    """One object less for the node; what has none is not kept."""
    load[node] -= 1
    if load[node] <= 0:
        del load[node]


def holds_all(ranges: tuple[Pair, ...], count: int) -> bool:
    """Whether a set of pairs holds every number below ``count``."""
    return bool(ranges) and ranges[0][0] == 0 and ranges[0][1] >= count - 1


@dataclass(slots=True)
class Round:
    """Everything about one stream that is wanted, in one hub's memory.

    ``place``: how many rounds began before it. ``live``, ``proposed``: by object number. ``offers``: by
    session. ``failures``: running failures by node; ``excluded``: until when a node is left out while others
    can upload; ``rested``: until when it is in any case.
    """

    settings: ExchangeSettings
    lock: SchemaLock
    opening: Opening | None
    started_at: float
    members: int = 1
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
    due_at: float | None = None  # when it wants a tick, as far as its hub was told
    unmet_since: float | None = None
    pause_until: float = 0.0
    trouble: EntrepotError | None = None
    load: Counter[str] = field(default_factory=Counter)  # objects proposed or granted to each node, in all rounds
    place: int = 0
    uplinks: Uplinks = field(default_factory=Uplinks)
    taken: dict[int, Taken] = field(default_factory=dict)  # what was taken over from a slow holder once
    brought: Counter[str] = field(default_factory=Counter)  # objects by node, less those that it took over
    readers: Readers = field(init=False)
    geometry: Geometry | None = field(init=False, default=None)
    looked_at: float = float("-inf")  # when readers were last put into the queue

    def __post_init__(self) -> None:
        self.readers = Readers(self._there)
        if self.opening is not None:
            self._measure(self.opening)

    @property
    def wants(self) -> dict[str, Reader]:
        """Who wants the stream, by node. Not to be changed."""
        return self.readers.wants

    def learn(self, opening: Opening | None) -> bool:
        """The stream's opening; True: it was not known."""
        if self.opening is not None or opening is None:
            return False
        self._measure(opening)
        self.opening = opening
        return True

    def _measure(self, opening: Opening) -> None:
        self.geometry = Geometry(opening.length, self.lock)
        self.readers.learn(self.geometry.object_count)
        self.readers.stir()

    def _there(self, number: int) -> bool:
        return number in self.ready or number in self.live or number in self.proposed

    def arrive(self, number: int) -> None:
        """The object is ready."""
        self.ready.add(number)
        self.taken.pop(number, None)
        self.readers.moved(number)

    def vanish(self, number: int) -> None:
        """The object is not ready."""
        self.ready.discard(number)
        self.readers.moved(number)

    def propose(self, number: int, claim: Claim) -> None:
        """The object is on its way to the ledger."""
        self.proposed[number] = claim
        self.readers.moved(number)

    def unclaim(self, number: int) -> Claim | None:
        """The object's proposal is judged: what it held of its holder is free."""
        claim = self.proposed.pop(number, None)
        if claim is not None:
            claim.seat.release()
            lighten(self.load, claim.node)
            self.readers.moved(number)
        return claim

    def close(self, now: float) -> None:
        """Nothing is made of this round any more: what it holds of its holders is free."""
        for number in tuple(self.live):
            self.over(number, now)
        for number in tuple(self.proposed):
            self.unclaim(number)

    @property
    def all_offer(self) -> bool:
        """Whether every node that is known to hold the stream offers it: there is none to wait for."""
        offering = {session[0] for session in self.offers}
        return bool(self.holders) and all(holder.node in offering for holder in self.holders)

    def gather(self, until: float) -> None:
        """Offers are gathered until then; after that every reader waits for its turn again."""
        self.window_end = until
        self.readers.stir()

    def see(self, view: ObjectView, now: float) -> None:
        """Take in how the ledger sees an object."""
        number = view.record.ref.number
        if view.record.status is ObjectStatus.READY:
            self.arrive(number)
        else:
            self.vanish(number)
        if view.grant is not None:
            if number not in self.live:
                self.go_live(view.grant, now)
        else:
            self.over(number, now)

    def go_live(self, grant: GrantRecord, now: float, seat: Seat | None = None) -> None:
        """A grant is live. ``seat``: whose slot it takes, if it was made here."""
        accepted = grant.status is GrantStatus.ACCEPTED
        before = self.live.get(grant.ref.number)
        self._freed(before)
        if before is not None and before.grant.grant != grant.grant:
            self.uplinks.ended(before.grant, now)
            if before.seat is not None:
                before.seat.leave(before.grant.grant)
        self.load[grant.node] += 1
        self.live[grant.ref.number] = Live((grant.node, grant.session), grant, accepted, now, now, seat)
        self.readers.moved(grant.ref.number)
        if seat is not None:
            seat.grant(grant.grant, now)

    def over(self, number: int, now: float) -> None:
        """The object's grant is over: its slot is free again."""
        live = self.live.pop(number, None)
        if live is not None:
            self.uplinks.ended(live.grant, now)
        self._freed(live)
        if live is not None and live.seat is not None:
            live.seat.leave(live.grant.grant)
        self.readers.moved(number)

    def doubtful(self, now: float) -> list[GrantRecord]:
        """Live grants of which nothing was heard for a while; the ledger is asked about them now."""
        silent = [live for live in self.live.values() if now >= live.sure_at + self.settings.lease / DOUBT]
        for live in silent:
            live.sure_at = now
        return [live.grant for live in silent]

    def _freed(self, live: Live | None) -> None:
        if live is not None:
            lighten(self.load, live.grant.node)

    def hear(self, order: WantOrder, now: float) -> bool:
        """A node says what it wants; whether it got something since it was last heard."""
        return self.readers.hear(order, now, self.ready)

    def satisfied(self, number: int, now: float) -> None:
        """Whoever wanted the object has it, though its want may not say so yet."""
        self.readers.satisfied(number, now)

    def stalled(self, now: float) -> list[str]:
        """Nodes that have had something to read for a whole read lease (and a second per MB) and got nothing of it."""
        patience = self.settings.read_lease
        if self.geometry is not None:
            patience += self.geometry.object_length(0) / 1e6 if self.geometry.length else 0.0
        return [
            node
            for node, reader in self.wants.items()
            if reader.reading_since is not None and now >= reader.reading_since + patience
        ]

    def window(self, reader: Reader, now: float) -> tuple[int, ...]:
        """The objects that a reader asks for now."""
        return self.readers.window(reader, now, self.ready)

    def near(self, number: int, now: float) -> list[Reader]:
        """Readers that have the object in their window now, in the order in which they came."""
        return self.readers.near(number, now, self.ready)

    def needed(self, now: float) -> set[int]:
        """Objects to be granted. Not to be changed."""
        return set() if self.opening is None else self.readers.needed(now, self.ready)

    def lacking(self, needed: set[int], now: float) -> set[int]:
        """Those of these objects that nobody can upload now."""
        count = 0 if self.geometry is None else self.geometry.object_count
        if not needed or any(holds_all(offer.ranges, count) for offer in self.able(now).values()):
            return set()
        return {number for number in needed if not self.able(now, number)}

    def waiting(self, needed: set[int], lacking: set[int], now: float) -> list[str]:
        """Nodes that wait for their turn from now on, as far as that is not known already: one of the objects in their
        window is needed and can be uploaded."""
        waits = (*self.excluded.values(), *self.rested.values(), self.pause_until)
        if any(self.looked_at < at <= now for at in waits):
            self.readers.stir()
        self.looked_at = now
        offered = needed - lacking if lacking else needed
        return [
            reader.order.node for reader in self.readers.stirred() if not offered.isdisjoint(self.window(reader, now))
        ]

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
            if kept.pop(node, None) is not None:
                self.readers.stir()

    def offered(self, session: Session, offer: Offer, now: float) -> None:
        """A session offers objects. Readers that waited for none of them wait for their turn now."""
        before = self.offers.get(session)
        self.offers[session] = offer
        if before is None or before.ranges != offer.ranges or not self.fresh(before, now):
            self.readers.stir()

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
        times = self.readers.due()
        times += [live.sent_at + self.settings.resend for live in self.live.values() if not live.accepted]
        times += [live.sure_at + self.settings.lease / DOUBT for live in self.live.values()]
        if self.window_end is not None:
            times.append(self.window_end)
        elif self.unmet_since is not None:
            waits = (self.seek_at, self.pause_until, *self.excluded.values(), *self.rested.values())
            times += [t for t in waits if t > self.stepped_at]
        if not self.wants and not self.live and not self.proposed:
            times.append(self.stepped_at)
        return min(times, default=None)
