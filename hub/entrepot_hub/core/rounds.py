"""The hub's soft state: who wants a stream, who offers it, whom to ask, and who shall upload which object.

:class:`Rounds` is told what happened and when, and answers with what to do next. It keeps nothing that matters: the
ledger decides whether a proposal becomes a grant, any hub may restart a round from the wants in the ledger, and a lost
message is made good by the next seek, want or offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.keys import object_key
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import MAX_OBJECTS
from entrepot.core.placement import choose, weight
from entrepot.core.ranges import Pair
from entrepot_hub.core.effects import Announce, Effect, Introduce, MakeRoom, Propose, SendGrant, SendSeek
from entrepot_hub.core.ledger import (
    GrantOutcome,
    GrantRecord,
    HolderRecord,
    ObjectRef,
    ObjectView,
    Proposal,
    Refusal,
    WantOrder,
    WantRecord,
)
from entrepot_hub.core.round import Live, Offer, Round, Session

#: Seconds after which an unanswered seek means that nobody who is online has the stream.
SILENCE = 0.5
#: Sessions of one node that may offer a stream at once.
SESSIONS = 8
#: Pause before a proposal that found no room, or an object just leaving, is made again.
ROOM_PAUSE = 0.25


class Rounds:
    """All rounds of one hub instance. ``token`` gives 16 unguessable bytes; ``now`` is seconds since the epoch."""

    def __init__(self, settings: ExchangeSettings, token: Callable[[], bytes]) -> None:
        self._settings = settings
        self._token = token
        self._rounds: dict[tuple[str, bytes], Round] = {}
        self._uplinks: dict[str, float] = {}

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
            found = self._rounds[key] = Round(self._settings, lock, opening, now)
        found.opening = found.opening or opening
        found.members = members
        found.holders = list(holders)
        found.wants[order.node] = (order, now)
        for view in views:
            found.see(view, now)
        return self._step(key, found, now)

    def restored(self, want: WantRecord, lock: SchemaLock, opening: Opening | None, now: float) -> list[Effect]:
        """A want that the ledger kept, found again after a start: its round begins anew."""
        key = (want.order.channel, want.order.stream)
        if key in self._rounds and want.order.node in self._rounds[key].wants:
            return []
        found = self._rounds.setdefault(key, Round(self._settings, lock, opening, now))
        found.wants[want.order.node] = (want.order, want.heard_at)
        return self._step(key, found, now)

    def came(self, channel: str, stream: bytes, node: str, opening: Opening, now: float) -> list[Effect]:
        """A node says it now holds the stream: if somebody waits for it, it is asked at once."""
        found = self._rounds.get((channel, stream))
        if found is None or found.unmet_since is None:
            return []
        first: list[Effect] = []
        if found.opening is None:
            found.opening = opening
            first.append(Introduce(channel, stream, opening))
        return [*first, SendSeek(channel, found.lock, stream, (node,))]

    def unwanted(self, channel: str, stream: bytes, node: str) -> None:
        """The node no longer wants the stream."""
        found = self._rounds.get((channel, stream))
        if found is not None:
            found.wants.pop(node, None)
            found.due_at = found.stepped_at

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
        if found.opening is None:
            found.opening = opening
            first.append(Introduce(channel, stream, opening))
        before = found.offers.get(session)
        if before is None:
            own = [s for s in found.offers if s[0] == session[0]]
            if len(own) >= SESSIONS:
                del found.offers[min(own, key=lambda s: found.offers[s].heard_at)]
        found.offers[session] = Offer(tuple(ranges), slots, now, 0 if before is None else before.reserved)
        if found.window_end is None and not found.live and not found.proposed:
            found.window_end = now + self._settings.offer_window
        return first + self._step(key, found, now)

    def judged(self, outcomes: Sequence[GrantOutcome], now: float) -> list[Effect]:
        """What the ledger made of proposals."""
        effects: list[Effect] = []
        touched: dict[tuple[str, bytes], Round] = {}
        short: dict[str, int] = {}
        for outcome in outcomes:
            ref = outcome.proposal.ref
            key = (ref.channel, ref.stream)
            found = self._rounds.get(key)
            if found is None:
                continue
            touched[key] = found
            session = found.proposed.pop(ref.number, None)
            offer = None if session is None else found.offers.get(session)
            if offer is not None:
                offer.reserved -= 1
            if outcome.refusal is None and outcome.grant is not None:
                found.over = 0
                if offer is not None:
                    offer.slots -= 1
                found.go_live(outcome.grant, now)
                if found.opening is not None:
                    effects.append(SendGrant(outcome.grant, found.opening))
                effects.append(Announce((ref,)))
            elif outcome.refusal is Refusal.HELD and outcome.grant is not None:
                found.go_live(outcome.grant, now)
            elif outcome.refusal is Refusal.READY:
                found.ready.add(ref.number)
                effects.append(Announce((ref,)))
            else:
                found.pause_until = now + ROOM_PAUSE
                if outcome.refusal is Refusal.OVER:
                    found.over = outcome.short
                    short[ref.channel] = max(short.get(ref.channel, 0), outcome.short)
        effects += [MakeRoom(channel, count) for channel, count in short.items()]
        for key, found in touched.items():
            effects += self._step(key, found, now)
        return effects

    def unjudged(self, proposals: Sequence[Proposal], now: float) -> None:
        """The ledger could not be asked: what was proposed is proposed again after a pause."""
        for proposal in proposals:
            key = (proposal.ref.channel, proposal.ref.stream)
            found = self._rounds.get(key)
            if found is None:
                continue
            session = found.proposed.pop(proposal.ref.number, None)
            offer = None if session is None else found.offers.get(session)
            if offer is not None:
                offer.reserved -= 1
            found.pause_until = now + ROOM_PAUSE
            found.due_at = found.due()

    def roomier(self, channel: str, now: float) -> list[Effect]:
        """Bytes came free in the channel: rounds that waited for room try again."""
        effects: list[Effect] = []
        for key, found in list(self._rounds.items()):
            if key[0] == channel and found.pause_until > now:
                found.pause_until = now
                effects += self._step(key, found, now)
        return effects

    def accepted(self, grant: GrantRecord) -> None:
        """The session took its grant."""
        live = self._live_of(grant)
        if live is not None:
            live.accepted = True
            found = self._rounds[grant.ref.channel, grant.ref.stream]
            found.due_at = found.due()

    def ended(self, grant: GrantRecord, error: EntrepotError | None, now: float) -> list[Effect]:
        """A grant is over without a ready object: it passes on. ``error`` says why, if that is the provider's doing."""
        key = (grant.ref.channel, grant.ref.stream)
        found = self._rounds.get(key)
        if found is None:
            return []
        live = found.live.get(grant.ref.number)
        if live is not None and live.grant.grant == grant.grant:
            del found.live[grant.ref.number]
            found.give_back(live.session)
        gentle = error is not None and error.kind in {"busy", "cancelled"}
        if gentle:
            found.offers.pop((grant.node, grant.session), None)
        elif error is not None:
            found.trouble = error
            found.failed(grant.node, now)
        return self._step(key, found, now)

    def arrived(self, ref: ObjectRef, grant: GrantRecord | None, now: float) -> list[Effect]:
        """An object is ready; ``grant`` is the one that brought it."""
        if grant is not None and grant.accepted_at and now > grant.accepted_at:
            measured = grant.length / (now - grant.accepted_at)
            before = self._uplinks.get(grant.node, measured)
            self._uplinks[grant.node] = before + 0.3 * (measured - before)
        key = (ref.channel, ref.stream)
        found = self._rounds.get(key)
        if found is None:
            return [Announce((ref,))]  # another hub's round: its readers listen all the same
        live = found.live.pop(ref.number, None)
        if live is not None:
            found.give_back(live.session)
        if grant is not None:
            found.forgive(grant.node)
        found.trouble = None
        found.ready.add(ref.number)
        return [Announce((ref,)), *self._step(key, found, now)]

    def vanished(self, ref: ObjectRef, now: float) -> list[Effect]:
        """A ready object is gone (evicted, missing, bad): whoever wants it has it sought again."""
        key = (ref.channel, ref.stream)
        found = self._rounds.get(key)
        if found is None or ref.number not in found.ready:
            return []
        found.ready.discard(ref.number)
        return self._step(key, found, now)

    def silent(self, grant: GrantRecord, now: float) -> None:
        """A lease lapsed: whatever became of its object, the session's offer is worth nothing until it is renewed.
        Otherwise a process that stands still is granted the same objects again, for another lease."""
        found = self._rounds.get((grant.ref.channel, grant.ref.stream))
        if found is not None and found.offers.pop((grant.node, grant.session), None) is not None:
            found.seek_at, found.seeks, found.calm = now, 0, False
            found.due_at = now

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
            if found.wants.pop(node, None) is not None:
                wanted.append(key)
            grants += [live.grant for live in found.live.values() if live.session[0] == node]
            found.due_at = found.stepped_at
        return tuple(grants), tuple(wanted)

    def departed(self, session: Session, now: float) -> None:
        """The session disconnected for good: its offers are worth nothing. Its grants end by their leases."""
        for found in self._rounds.values():
            if found.offers.pop(session, None) is not None:
                found.seek_at, found.seeks, found.calm = now, 0, False
                found.due_at = now

    def excluded(self, channel: str, stream: bytes, node: str, now: float) -> None:
        """The node served a bad object: it provides nothing of this stream for a while."""
        found = self._rounds.get((channel, stream))
        if found is not None:
            found.excluded[node] = found.rested[node] = now + self._settings.exclusion

    def tick(self, now: float) -> list[Effect]:
        """Time passed: windows close, seeks repeat, grants are sent again, dead rounds go."""
        effects: list[Effect] = []
        for key, found in list(self._rounds.items()):
            if found.due_at is None or now < found.due_at:
                continue
            effects += self._step(key, found, now)
            if not found.wants and not found.live and not found.proposed:
                del self._rounds[key]
        return effects

    def timer(self) -> float | None:
        """When :meth:`tick` wants to be called next."""
        return min((found.due_at for found in self._rounds.values() if found.due_at is not None), default=None)

    # -- what to say --------------------------------------------------------------------------------------------

    def interested(self, ref: ObjectRef, now: float) -> tuple[str, ...]:
        """Nodes whose window holds the object."""
        found = self._rounds.get((ref.channel, ref.stream))
        if found is None:
            return ()
        return tuple(
            node
            for node, (order, heard) in found.wants.items()
            if now < order.until and ref.number in found.window(order, heard, now)
        )

    def reason(self, channel: str, stream: bytes, now: float) -> EntrepotError | None:
        """Why the stream's unmet objects are still unmet, if that is worth saying."""
        found = self._rounds.get((channel, stream))
        if found is None or found.unmet_since is None:
            return None
        if found.over:
            return RetryLater(
                "the channel's bucket is full of objects that are being read or uploaded",
                kind="over-quota",
                hint="It goes on when readers finish; the owner can raise the quota.",
                short=found.over,
            )
        if not any(found.fresh(offer, now) for offer in found.offers.values()):
            return found.nobody() if now >= found.unmet_since + SILENCE else None
        if found.able(now):
            return None
        return found.trouble or RetryLater("whoever has this stream failed to upload it", kind="holder-too-slow")

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
        effects = self._go_on(key, found, now)
        found.due_at = found.due()
        return effects

    def _go_on(self, key: tuple[str, bytes], found: Round, now: float) -> list[Effect]:
        found.stepped_at = now
        for node, (order, _) in list(found.wants.items()):
            if now >= order.until:
                del found.wants[node]
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
        if now >= found.pause_until:
            proposals, lacking = self._assign(key, found, needed, now)
            if proposals:
                effects.append(Propose(proposals))
        return effects + self._seek(key, found, lacking, now)

    def _again(self, found: Round, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for live in found.live.values():
            if not live.accepted and found.opening is not None and now >= live.sent_at + self._settings.resend:
                live.sent_at = now
                effects.append(SendGrant(live.grant, found.opening))
        return effects

    def _assign(
        self, key: tuple[str, bytes], found: Round, needed: list[int], now: float
    ) -> tuple[tuple[Proposal, ...], list[int]]:
        """Proposals for what somebody can upload now, and the objects that nobody offers at all."""
        if found.opening is None:
            return (), needed
        geometry = Geometry(found.opening.length, found.lock)
        proposals: list[Proposal] = []
        lacking: list[int] = []
        for number in needed[:MAX_OBJECTS]:
            able = found.able(now, number)
            if not able:
                lacking.append(number)
                continue
            free = {s: o for s, o in able.items() if o.slots > o.reserved}
            name = object_key("", found.lock.id, StreamId(key[1]), number)
            nodes = {s[0] for s in free}
            node = choose(name, [(n, weight(self._uplinks.get(n))) for n in nodes])
            if node is None:
                continue
            session = max((s for s in free if s[0] == node), key=lambda s: (free[s].slots - free[s].reserved, s))
            free[session].reserved += 1
            found.proposed[number] = session
            size = geometry.object_length(number)
            proposals.append(
                Proposal(
                    ref=ObjectRef(key[0], found.lock.id, key[1], number),
                    grant=self._token(),
                    node=session[0],
                    session=session[1],
                    size=size,
                    lease_until=now + self._settings.lease + size / 100e6,
                )
            )
        return tuple(proposals), lacking

    def _seek(self, key: tuple[str, bytes], found: Round, lacking: list[int], now: float) -> list[Effect]:
        settings = self._settings
        fresh = found.able(now).values()
        refresh_at = max((o.heard_at for o in fresh), default=0.0) + settings.offer_refresh
        if fresh and not lacking and now < refresh_at:
            found.seek_at, found.seeks, found.calm = refresh_at, 0, True
            return []
        if found.calm:
            found.seek_at, found.calm = now, False
        if now < found.seek_at:
            return []
        quick = min(settings.seek_again * 2.0 ** min(found.seeks, 16), settings.seek_again_quick)
        waited = 0.0 if found.unmet_since is None else now - found.unmet_since
        pause = max(quick, min(waited / 8, settings.seek_again_most))
        found.seek_at = now + pause
        found.seeks += 1
        known = tuple(h.node for h in found.holders if h.node not in found.wants)[: settings.known_holders]
        if known and found.seeks == 1:
            return [SendSeek(key[0], found.lock, key[1], known)]
        sample = min(65536 * 64 * 4 ** (found.seeks - 1) // max(found.members, 1), 65536)
        return [SendSeek(key[0], found.lock, key[1], None, max(sample, 1))]
