"""One round: who wants a stream, who offers it, and how its objects stand, as one hub knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from entrepot.core.errors import EntrepotError, NotFound
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.ranges import Pair, as_set, clip, front, holds, numbers
from entrepot_hub.core.ledger import GrantRecord, GrantStatus, HolderRecord, ObjectStatus, ObjectView, WantOrder

type Session = tuple[str, str]

#: Objects that a kept want with no living asker has in its window.
KEPT_WINDOW = 64
#: A want that was not heard again for so long has no living asker.
ASKER_LIFE = 90.0


@dataclass(slots=True)
class Offer:
    """What a session holds of the stream, and the slots it had when it was last heard or told."""

    ranges: tuple[Pair, ...]
    slots: int
    heard_at: float
    reserved: int = 0  # proposals on their way to the ledger


@dataclass(slots=True)
class Live:
    """A live grant as this hub knows it. ``sent_at``: when the session was last told."""

    session: Session
    grant: GrantRecord
    accepted: bool
    sent_at: float


@dataclass(slots=True)
class Round:
    """Everything about one stream that is wanted, in one hub's memory.

    ``wants``: by node, the want and when it was heard. ``live``, ``proposed``: by object number. ``offers``: by
    session. ``failures``: running failures by node; ``excluded``: until when a node is left out while others
    can upload; ``rested``: until when it is in any case.
    """

    settings: ExchangeSettings
    lock: SchemaLock
    opening: Opening | None
    started_at: float
    members: int = 1
    wants: dict[str, tuple[WantOrder, float]] = field(default_factory=dict)
    holders: list[HolderRecord] = field(default_factory=list)
    ready: set[int] = field(default_factory=set)
    live: dict[int, Live] = field(default_factory=dict)
    proposed: dict[int, Session] = field(default_factory=dict)
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
    over: int = 0
    trouble: EntrepotError | None = None

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
            live = self.live.pop(number, None)
            if live is not None:
                self.give_back(live.session)

    def go_live(self, grant: GrantRecord, now: float) -> None:
        """A grant is live."""
        accepted = grant.status is GrantStatus.ACCEPTED
        self.live[grant.ref.number] = Live((grant.node, grant.session), grant, accepted, now)

    def give_back(self, session: Session) -> None:
        """A slot of the session is free again."""
        offer = self.offers.get(session)
        if offer is not None:
            offer.slots += 1

    def window(self, order: WantOrder, heard: float, now: float) -> tuple[int, ...]:
        """The objects that a want asks for now; all of its ranges, in turn, when its asker has been silent."""
        if self.opening is None:
            return front(order.ranges, order.window)
        count = Geometry(self.opening.length, self.lock).object_count
        kept = order.keep and now > heard + ASKER_LIFE
        ranges = clip(order.ranges, count)
        if kept:
            return tuple(islice((n for n in numbers(as_set(ranges)) if n not in self.ready), KEPT_WINDOW))
        return front(ranges, order.window)

    def needed(self, now: float) -> list[int]:
        """Objects to be granted, the front of every reader first."""
        if self.opening is None:
            return []
        ranks: dict[int, int] = {}
        for order, heard in self.wants.values():
            for rank, number in enumerate(self.window(order, heard, now)):
                if number in self.ready or number in self.live or number in self.proposed:
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
            self.rested[node] = now + min(2.0**more, self.settings.exclusion / 8)

    def forgive(self, node: str) -> None:
        """The node brought an object: it counts as before."""
        for kept in (self.failures, self.excluded, self.rested):
            kept.pop(node, None)

    def nobody(self) -> NotFound:
        """What to say when nobody who is online has the stream: who had it last, and when."""
        if not self.holders:
            return NotFound(
                "no node that is online has this stream, and none ever said it had",
                kind="no-holder",
                hint="Ask whoever gave you the URI to run `entrepot up` on a machine that has it.",
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
        times = [order.until for order, _ in self.wants.values()]
        times += [live.sent_at + self.settings.resend for live in self.live.values() if not live.accepted]
        if self.window_end is not None:
            times.append(self.window_end)
        elif self.unmet_since is not None:
            waits = (self.seek_at, self.pause_until, *self.excluded.values(), *self.rested.values())
            times += [t for t in waits if t > self.stepped_at]
        if not self.wants and not self.live and not self.proposed:
            times.append(self.stepped_at)
        return min(times, default=None)
