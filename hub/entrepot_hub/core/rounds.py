"""The hub's soft state: who wants a stream, who offers it, whom to ask, and who shall upload which object.

:class:`Rounds` is told what happened and when, and answers with what to do next. It keeps nothing that matters: the
ledger decides whether a proposal becomes a grant, any hub may restart a round from the wants in the ledger, and a lost
message is made good by the next seek, want or offer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from heapq import heapify, heappop, heappush

from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.ranges import Pair
from entrepot_hub.core import takeover
from entrepot_hub.core.allotment import ROOM_PAUSE, Allotment, Key
from entrepot_hub.core.effects import Announce, Effect, Introduce, Review, SendGrant, SendSeek
from entrepot_hub.core.ledger import (
    GrantOutcome,
    GrantRecord,
    GrantStatus,
    HolderRecord,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    Proposal,
    Refusal,
    WantOrder,
    WantRecord,
)
from entrepot_hub.core.queueing import busy_holder, full_bucket
from entrepot_hub.core.round import Claim, Live, Offer, Round
from entrepot_hub.core.seats import Session
from entrepot_hub.core.seeking import SILENCE, seek
from entrepot_hub.core.uplinks import Uplinks

#: Sessions of one node that may offer a stream at once.
SESSIONS = 8


class Rounds:
    """All rounds of one hub instance. ``token`` gives 16 unguessable bytes; ``now`` is seconds since the epoch."""

    def __init__(self, settings: ExchangeSettings, token: Callable[[], bytes]) -> None:
        self._settings = settings
        self._rounds: dict[Key, Round] = {}
        self._begun = 0
        self._due: list[tuple[float, int, Key]] = []  # when rounds want a tick; see :meth:`_wake`
        self._uplinks = Uplinks()
        self._load: Counter[str] = Counter()  # objects proposed or granted to each node, whatever its sessions are
        self._allotment = Allotment(settings, token, self._rounds, self._load, self._uplinks)
        self._ticked_at = float("-inf")

    @property
    def arranged(self) -> int:
        """Streams of which there is a round now."""
        return len(self._rounds)

    # -- what happened ------------------------------------------------------------------------------------------

    def wanted(
        self,
        order: WantOrder,
        lock: SchemaLock,
        opening: Opening | None,
        views: Iterable[ObjectView],
        holders: Sequence[HolderRecord],
        members: int,
        now: float,
    ) -> list[Effect]:
        """A node wants objects; ``views`` is how the ledger sees them now."""
        key = (order.channel, order.stream)
        found = self._rounds.get(key)
        if found is None or found.lock != lock:
            if found is not None:
                found.close(now)
            found = self._begin(key, lock, opening, now)
        found.learn(opening)
        found.members = members
        found.holders = list(holders)
        for view in views:
            found.see(view, now)
        got = found.hear(order, now)
        effects = self._step(key, found, now)
        plea = self._allotment.plea(order.channel, now)
        if got and plea is not None:
            effects.append(plea)  # what this reader got may go now
        return effects

    def restored(self, want: WantRecord, lock: SchemaLock, opening: Opening | None, now: float) -> list[Effect]:
        """A want that the ledger kept, found again after a start: its round begins anew."""
        key = (want.order.channel, want.order.stream)
        found = self._rounds.get(key)
        if found is not None and want.order.node in found.wants:
            return []
        if found is None:
            found = self._begin(key, lock, opening, now)
        found.hear(want.order, want.heard_at)
        return self._step(key, found, now)

    def came(self, channel: str, stream: bytes, node: str, opening: Opening, now: float) -> list[Effect]:
        """A node says it now holds the stream: if somebody waits for it, it is asked at once."""
        found = self._rounds.get((channel, stream))
        if found is None or found.unmet_since is None:
            return []
        first: list[Effect] = []
        if found.learn(opening):
            first.append(Introduce(channel, stream, opening))
        return [*first, SendSeek(channel, found.lock, stream, (node,))]

    def unwanted(self, channel: str, stream: bytes, node: str) -> None:
        """The node no longer wants the stream."""
        found = self._rounds.get((channel, stream))
        if found is not None:
            found.readers.forget(node)
            self._wake((channel, stream), found, found.stepped_at)

    def offered(
        self,
        channel: str,
        stream: bytes,
        session: Session,
        opening: Opening,
        ranges: Sequence[Pair],
        slots: int,
        now: float,
    ) -> list[Effect]:
        """A session offers objects; the opening is proved against the stream id already."""
        key = (channel, stream)
        found = self._rounds.get(key)
        if found is None:
            return []
        first: list[Effect] = []
        if found.learn(opening):
            first.append(Introduce(channel, stream, opening))
        seat = self._allotment.seats.of(session)
        seat.heard(slots, now)
        if session not in found.offers:
            own = [s for s in found.offers if s[0] == session[0]]
            if len(own) >= SESSIONS:
                del found.offers[min(own, key=lambda s: found.offers[s].heard_at)]
        found.offered(session, Offer(tuple(ranges), seat, now), now)
        if found.window_end is None and not found.live and not found.proposed:
            found.gather(now if found.all_offer else now + self._settings.offer_window)
        elif found.window_end is not None and found.all_offer:
            found.window_end = now
        return first + self._step(key, found, now)

    def judged(self, outcomes: Sequence[GrantOutcome], now: float) -> list[Effect]:
        """What the ledger made of proposals."""
        effects: list[Effect] = []
        touched: dict[Key, Round] = {}
        refused: dict[str, list[tuple[GrantOutcome, Claim]]] = {}
        for outcome in outcomes:
            ref = outcome.proposal.ref
            key = (ref.channel, ref.stream)
            found = self._rounds.get(key)
            if found is None:
                continue
            touched[key] = found
            claim = found.unclaim(ref.number)
            if outcome.refusal is None and outcome.grant is not None:
                found.go_live(outcome.grant, now, None if claim is None else claim.seat)
                if found.opening is not None:
                    effects.append(SendGrant(outcome.grant, found.opening))
                effects.append(Announce((ref,)))
            elif outcome.refusal is Refusal.HELD and outcome.grant is not None:
                found.go_live(outcome.grant, now)
            elif outcome.refusal is Refusal.READY:
                found.arrive(ref.number)
                effects.append(Announce((ref,)))
            elif outcome.refusal is Refusal.OVER and claim is not None:
                refused.setdefault(ref.channel, []).append((outcome, claim))
            else:
                found.pause_until = now + ROOM_PAUSE
            if claim is not None and claim.bill is not None and outcome.refusal is not None:
                self._allotment.queue.refund(claim.bill)
        effects += [self._allotment.full(channel, over, now) for channel, over in refused.items()]
        for key, found in touched.items():
            effects += self._look(key, found, now)
        return effects + self._allotment.deal(now)

    def unjudged(self, proposals: Sequence[Proposal], now: float, pause: float = ROOM_PAUSE) -> None:
        """The ledger was not asked, or could not be: what was proposed is proposed again after ``pause`` seconds."""
        for proposal in proposals:
            key = (proposal.ref.channel, proposal.ref.stream)
            found = self._rounds.get(key)
            if found is None:
                continue
            claim = found.unclaim(proposal.ref.number)
            if claim is not None and claim.bill is not None:
                self._allotment.queue.refund(claim.bill)
            found.pause_until = now + pause
            self._wake(key, found, found.due())

    def roomier(self, channel: str, now: float, objects: int = 1) -> list[Effect]:
        """The room of so many objects came free in the channel: whoever waited for it tries again, in turn."""
        self._allotment.roomier(channel, now, objects)
        return self._allotment.deal(now)

    def accepted(self, grant: GrantRecord) -> None:
        """The session took its grant."""
        live = self._live_of(grant)
        if live is not None:
            live.accepted, live.sure_at = True, max(grant.accepted_at, live.sure_at)
            if live.seat is not None:
                live.seat.accepted(grant.grant)
            self._uplinks.began(grant, grant.accepted_at)
            key = (grant.ref.channel, grant.ref.stream)
            if not takeover.may(self._rounds[key]):  # or that is looked at soon in any case
                self._wake(key, self._rounds[key], self._rounds[key].due())

    def progressed(self, grant: GrantRecord, now: float) -> list[Effect]:
        """The session told how much has gone out."""
        live = self._live_of(grant)
        if live is None:
            return []
        live.sure_at = now
        self._uplinks.sent(grant, now)
        key = (grant.ref.channel, grant.ref.stream)
        return self._look(key, self._rounds[key], now) if takeover.may(self._rounds[key]) else []

    def taken_over(self, grant: GrantRecord, now: float) -> None:
        """A grant was ended so that another session takes its object over. Nothing is held against the slow one."""
        found = self._rounds.get((grant.ref.channel, grant.ref.stream))
        if found is not None and self._live_of(grant) is not None:
            taken = found.taken.get(grant.ref.number)
            if taken is None or not taken.back:  # else it is not believed what it told of
                self._uplinks.stopped(grant, now)
            found.over(grant.ref.number, now)

    def ended(self, grant: GrantRecord, error: EntrepotError | None, now: float) -> list[Effect]:
        """A grant is over without a ready object: it passes on. ``error`` says why, if that is the provider's doing."""
        key = (grant.ref.channel, grant.ref.stream)
        found = self._rounds.get(key)
        if found is None:
            return []
        live = found.live.get(grant.ref.number)
        if live is not None and live.grant.grant == grant.grant:
            found.over(grant.ref.number, now)
        gentle = error is not None and error.kind in {"busy", "cancelled"}
        if gentle:
            offer = found.offers.pop((grant.node, grant.session), None)
            if offer is not None:
                offer.seat.full()  # it knows better what it has free
        elif error is not None:
            found.trouble = error
            found.failed(grant.node, now)
        return self._step(key, found, now)

    def reviewed(self, grants: Sequence[GrantRecord], views: Sequence[ObjectView], now: float) -> list[Effect]:
        """How the ledger sees the objects of these grants: another hub may have heard what became of them, and what is
        over takes nobody's time any more."""
        touched: dict[Key, Round] = {}
        for grant, view in zip(grants, views, strict=True):
            live = self._live_of(grant)
            if live is None:
                continue  # it was heard of meanwhile
            key = (grant.ref.channel, grant.ref.stream)
            found = touched[key] = self._rounds[key]
            if view.grant is not None and view.grant.grant == grant.grant:
                live.grant = view.grant
                if view.grant.status is GrantStatus.ACCEPTED and not live.accepted:
                    self.accepted(view.grant)
                self._uplinks.sent(view.grant, now)
                continue
            record = view.record
            if live.accepted and record.status is ObjectStatus.READY and record.uploader == grant.node:
                self._uplinks.arrived(live.grant, now)
                found.brought[grant.node] += 1
            found.over(grant.ref.number, now)
            found.see(view, now)
        effects: list[Effect] = []
        for key, found in touched.items():
            effects += self._look(key, found, now)
        return effects + self._allotment.deal(now)

    def arrived(self, ref: ObjectRef, grant: GrantRecord | None, now: float) -> list[Effect]:
        """An object is ready; ``grant`` is the one that brought it."""
        if grant is not None and grant.accepted_at:
            self._uplinks.arrived(grant, now)
        key = (ref.channel, ref.stream)
        found = self._rounds.get(key)
        if found is None:
            return [Announce((ref,))]  # another hub's round: its readers listen all the same
        found.over(ref.number, now)
        if grant is not None:
            found.forgive(grant.node)
            found.brought[grant.node] += 1
        found.trouble = None
        found.arrive(ref.number)
        return [Announce((ref,)), *self._step(key, found, now)]

    def vanished(self, ref: ObjectRef, now: float, *, lacked: bool = True) -> list[Effect]:
        """A ready object is gone (evicted, missing, bad): whoever wants it has it sought again; not ``lacked``: whoever
        wanted it has it."""
        key = (ref.channel, ref.stream)
        found = self._rounds.get(key)
        if found is None:
            return []
        if not lacked:
            found.satisfied(ref.number, now)
        if ref.number not in found.ready:
            return []
        found.vanish(ref.number)
        return self._step(key, found, now)

    def silent(self, grant: GrantRecord, now: float) -> None:
        """A lease lapsed: whatever became of its object, the session's offer is worth nothing until it is renewed.
        Otherwise a process that stands still is granted the same objects again, for another lease."""
        key = (grant.ref.channel, grant.ref.stream)
        found = self._rounds.get(key)
        if found is not None and found.offers.pop((grant.node, grant.session), None) is not None:
            found.seek_at, found.seeks, found.calm = now, 0, False
            self._wake(key, found, now)

    def expelled(self, node: str, channel: str | None) -> tuple[tuple[GrantRecord, ...], tuple[tuple[str, bytes], ...]]:
        """The node lost rights, in this channel or (None) in all: its offers are gone. Its live grants, to be ended
        now, and the channels and streams that it wanted."""
        grants: list[GrantRecord] = []
        wanted: list[tuple[str, bytes]] = []
        for key, found in self._rounds.items():
            if channel not in {None, key[0]}:
                continue
            for session in [session for session in found.offers if session[0] == node]:
                del found.offers[session]
            if found.readers.forget(node):
                wanted.append(key)
            grants += [live.grant for live in found.live.values() if live.session[0] == node]
            self._wake(key, found, found.stepped_at)
        return tuple(grants), tuple(wanted)

    def departed(self, sessions: Set[Session], now: float) -> None:
        """They disconnected for good: their offers are worth nothing. Their grants end by their leases."""
        for key, found in self._rounds.items():
            for session in found.offers.keys() & sessions:
                del found.offers[session]
                found.seek_at, found.seeks, found.calm = now, 0, False
                self._wake(key, found, now)

    def excluded(self, channel: str, stream: bytes, node: str, now: float) -> None:
        """The node served a bad object: it provides nothing of this stream for a while."""
        found = self._rounds.get((channel, stream))
        if found is not None:
            found.excluded[node] = found.rested[node] = now + self._settings.exclusion

    def distrusted(self, channel: str, stream: bytes, node: str, until: float) -> None:
        """The node's objects were bad too often: until then it is granted of the stream what nobody else offers."""
        found = self._rounds.get((channel, stream))
        if found is not None:
            found.excluded[node] = max(found.excluded.get(node, 0.0), until)

    def tick(self, now: float) -> list[Effect]:
        """Time passed: windows close, seeks repeat, grants are sent again or asked about, dead rounds go."""
        due: list[tuple[int, Key, Round]] = []
        while self._due and self._due[0][0] <= now:
            at, place, key = heappop(self._due)
            found = self._rounds.get(key)
            if found is not None and (found.place, found.due_at) == (place, at):
                found.due_at = None
                due.append((place, key, found))
        effects: list[Effect] = []
        doubtful: list[GrantRecord] = []
        for _, key, found in sorted(due, key=lambda each: each[0]):
            doubtful += found.doubtful(now)
            effects += self._look(key, found, now)
            if not found.wants and not found.live and not found.proposed:
                del self._rounds[key]
        self._allotment.forget_rooms(now)
        self._ticked_at = now
        effects += self._allotment.deal(now)
        return [*effects, Review(tuple(doubtful))] if doubtful else effects

    def timer(self) -> float | None:
        """When :meth:`tick` wants to be called next."""
        while self._due:
            at, place, key = self._due[0]
            found = self._rounds.get(key)
            if found is not None and (found.place, found.due_at) == (place, at):
                break
            heappop(self._due)
        times = [at for at, _, _ in self._due[:1]]
        return min([*times, *self._allotment.due(self._ticked_at)], default=None)

    # -- what to say --------------------------------------------------------------------------------------------

    def interested(self, ref: ObjectRef, now: float) -> tuple[str, ...]:
        """Nodes whose window holds the object, and that were heard not longer ago than a read lease lasts."""
        found = self._rounds.get((ref.channel, ref.stream))
        if found is None:
            return ()
        return tuple(
            reader.order.node
            for reader in found.near(ref.number, now)
            if now < reader.order.until and now <= reader.heard + self._settings.read_lease
        )

    def is_ready(self, ref: ObjectRef) -> bool:
        """Whether the object is ready as far as is known here; that is believed of a stream without a round."""
        found = self._rounds.get((ref.channel, ref.stream))
        return found is None or ref.number in found.ready

    def reason(self, channel: str, stream: bytes, now: float, node: str | None = None) -> EntrepotError | None:
        """Why the stream's unmet objects are still unmet, if that is worth saying: to this node, or to the first in
        turn of those that want it."""
        found = self._rounds.get((channel, stream))
        if found is None or found.unmet_since is None:
            return None
        readers = tuple(found.wants) if node is None else (node,)
        room = self._allotment.tight(channel, now)
        if room is not None:
            return full_bucket(room.short, self._allotment.queue.before(channel, readers))
        if not any(found.fresh(offer, now) for offer in found.offers.values()):
            return found.nobody() if now >= found.unmet_since + SILENCE else None
        able = found.able(now)
        if able and not found.live and all(offer.seat.free <= 0 for offer in able.values()):
            return busy_holder(len({session[0] for session in able}), self._allotment.queue.before(channel, readers))
        if able:
            return None
        return found.trouble or RetryLater("whoever has this stream failed to upload it", kind="holder-too-slow")

    def opening(self, channel: str, stream: bytes) -> Opening | None:
        """The stream's opening, if there is a round of it and it is known."""
        found = self._rounds.get((channel, stream))
        return None if found is None else found.opening

    def offered_by(self, channel: str, stream: bytes) -> tuple[Session, ...]:
        """The sessions that offer the stream, as far as was heard."""
        found = self._rounds.get((channel, stream))
        return () if found is None else tuple(found.offers)

    def quiet(self, channel: str, stream: bytes, now: float) -> bool:
        """Whether nobody has offered the stream for a while, so that asking often is no use."""
        found = self._rounds.get((channel, stream))
        return found is not None and not found.offers and not found.live and now > found.started_at + 5.0

    # -- how ----------------------------------------------------------------------------------------------------

    def _live_of(self, grant: GrantRecord) -> Live | None:
        found = self._rounds.get((grant.ref.channel, grant.ref.stream))
        live = None if found is None else found.live.get(grant.ref.number)
        return live if live is not None and live.grant.grant == grant.grant else None

    def _step(self, key: tuple[str, bytes], found: Round, now: float) -> list[Effect]:
        return self._look(key, found, now) + self._allotment.deal(now)

    def _begin(self, key: Key, lock: SchemaLock, opening: Opening | None, now: float) -> Round:
        self._begun += 1
        found = Round(self._settings, lock, opening, now, load=self._load, uplinks=self._uplinks, place=self._begun)
        self._rounds[key] = found
        self._wake(key, found, now)
        return found

    def _wake(self, key: Key, found: Round, at: float | None) -> None:
        """The round wants a tick then."""
        if found.due_at == at:
            return
        found.due_at = at
        if at is None:
            return
        if len(self._due) > 4 * len(self._rounds) + 64:
            self._due = [
                (each.due_at, each.place, name) for name, each in self._rounds.items() if each.due_at is not None
            ]
            heapify(self._due)
        else:
            heappush(self._due, (at, found.place, key))

    def _look(self, key: Key, found: Round, now: float) -> list[Effect]:
        """What the round wants done; its readers wait for their turns after that."""
        effects = self._go_on(key, found, now)
        due = found.due()
        if takeover.may(found):
            for number, live, session in takeover.takeovers(found, self._uplinks, self._load, self._settings, now):
                effects.append(self._allotment.take_over(key, found, number, live, session, now))
            due = now + takeover.LOOK if due is None else min(due, now + takeover.LOOK)
        self._wake(key, found, due)
        return effects

    def _go_on(self, key: Key, found: Round, now: float) -> list[Effect]:
        found.stepped_at = now
        found.readers.pass_time(now)
        effects = self._again(found, now)
        if not found.wants:
            found.unmet_since = found.window_end = None
            return effects
        needed = found.needed(now)
        if not needed and found.opening is not None:
            found.unmet_since = None
            found.seeks = 0
            return effects
        if found.unmet_since is None:
            found.unmet_since = now
        if found.window_end is not None:
            if now < found.window_end:
                return effects
            found.window_end = None
        lacking = needed
        if found.opening is not None:
            lacking = found.lacking(needed, now)
            if now >= found.pause_until:
                for node in found.waiting(needed, lacking, now):
                    self._allotment.queue.put(key[0], node, key[1])
        return effects + seek(*key, found, lacking, self._settings, now)

    def _again(self, found: Round, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for live in found.live.values():
            if not live.accepted and found.opening is not None and now >= live.sent_at + self._settings.resend:
                live.sent_at = now
                effects.append(SendGrant(live.grant, found.opening))
        return effects
