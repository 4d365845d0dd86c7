"""The hub's soft state: who wants a stream, who offers it, whom to ask, and who shall upload which object.

:class:`Rounds` is told what happened and when, and answers with what to do next. It keeps nothing that matters: the
ledger decides whether a proposal becomes a grant, any hub may restart a round from the wants in the ledger, and a lost
message is made good by the next seek, want or offer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from weakref import WeakValueDictionary

from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.keys import object_key
from entrepot.core.lock import SchemaLock
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
from entrepot_hub.core.queueing import Queue, Room, Turn, busy_holder, full_bucket
from entrepot_hub.core.round import LATE, Claim, Live, Offer, Round, Seat, Session, lighten
from entrepot_hub.core.wishes import Front

#: Seconds after which an unanswered seek means that nobody who is online has the stream.
SILENCE = 0.5
#: Sessions of one node that may offer a stream at once.
SESSIONS = 8
#: Pause before a proposal that found no room, or an object just leaving, is made again.
ROOM_PAUSE = 0.25
#: For so long after a proposal found no room the channel counts as full.
TIGHT = 2.0
#: Streams that are looked at in one turn, and in all turns at once; the rest goes on after a pause of so many seconds.
PROBED, PROBES, MORE = 8, 256, 0.05


class Rounds:
    """All rounds of one hub instance. ``token`` gives 16 unguessable bytes; ``now`` is seconds since the epoch."""

    def __init__(self, settings: ExchangeSettings, token: Callable[[], bytes]) -> None:
        self._settings = settings
        self._token = token
        self._rounds: dict[tuple[str, bytes], Round] = {}
        self._uplinks: dict[str, float] = {}
        self._queue = Queue()
        self._seats: WeakValueDictionary[Session, Seat] = WeakValueDictionary()
        self._load: Counter[str] = Counter()  # objects proposed or granted to each node, whatever its sessions are
        self._rooms: dict[str, Room] = {}
        self._deal_at: float | None = None
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
                self._drop(found)
            found = self._rounds[key] = Round(self._settings, lock, opening, now, load=self._load)
        found.opening = found.opening or opening
        found.members = members
        found.holders = list(holders)
        for view in views:
            found.see(view, now)
        got = found.hear(order, now)
        effects = self._step(key, found, now)
        room = self._rooms.get(order.channel)
        if got and room is not None and now < room.pause_until and room.plea is not None:
            effects.append(room.plea)  # what this reader got may go now
        return effects

    def restored(self, want: WantRecord, lock: SchemaLock, opening: Opening | None, now: float) -> list[Effect]:
        """A want that the ledger kept, found again after a start: its round begins anew."""
        key = (want.order.channel, want.order.stream)
        if key in self._rounds and want.order.node in self._rounds[key].wants:
            return []
        found = self._rounds.setdefault(key, Round(self._settings, lock, opening, now, load=self._load))
        found.hear(want.order, want.heard_at)
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
        seat = self._seats.get(session)
        if seat is None:
            seat = self._seats[session] = Seat()
        seat.heard(slots, now)
        if session not in found.offers:
            own = [s for s in found.offers if s[0] == session[0]]
            if len(own) >= SESSIONS:
                del found.offers[min(own, key=lambda s: found.offers[s].heard_at)]
        found.offers[session] = Offer(tuple(ranges), seat, now)
        if found.window_end is None and not found.live and not found.proposed:
            found.window_end = now + self._settings.offer_window
        return first + self._step(key, found, now)

    def judged(self, outcomes: Sequence[GrantOutcome], now: float) -> list[Effect]:
        """What the ledger made of proposals."""
        effects: list[Effect] = []
        touched: dict[tuple[str, bytes], Round] = {}
        refused: dict[str, list[tuple[GrantOutcome, Claim]]] = {}
        for outcome in outcomes:
            ref = outcome.proposal.ref
            key = (ref.channel, ref.stream)
            found = self._rounds.get(key)
            if found is None:
                continue
            touched[key] = found
            claim = self._unclaim(found, ref.number)
            if outcome.refusal is None and outcome.grant is not None:
                found.go_live(outcome.grant, now, None if claim is None else claim.seat)
                if found.opening is not None:
                    effects.append(SendGrant(outcome.grant, found.opening))
                effects.append(Announce((ref,)))
            elif outcome.refusal is Refusal.HELD and outcome.grant is not None:
                found.go_live(outcome.grant, now)
            elif outcome.refusal is Refusal.READY:
                found.ready.add(ref.number)
                effects.append(Announce((ref,)))
            elif outcome.refusal is Refusal.OVER and claim is not None:
                refused.setdefault(ref.channel, []).append((outcome, claim))
            else:
                found.pause_until = now + ROOM_PAUSE
            if claim is not None and outcome.refusal is not None:
                self._queue.refund(claim.bill)
        effects += [self._full(channel, over, now) for channel, over in refused.items()]
        for key, found in touched.items():
            effects += self._look(key, found, now)
        return effects + self._deal(now)

    def unjudged(self, proposals: Sequence[Proposal], now: float) -> None:
        """The ledger could not be asked: what was proposed is proposed again after a pause."""
        for proposal in proposals:
            key = (proposal.ref.channel, proposal.ref.stream)
            found = self._rounds.get(key)
            if found is None:
                continue
            claim = self._unclaim(found, proposal.ref.number)
            if claim is not None:
                self._queue.refund(claim.bill)
            found.pause_until = now + ROOM_PAUSE
            found.due_at = found.due()

    def roomier(self, channel: str, now: float, objects: int = 1) -> list[Effect]:
        """The room of so many objects came free in the channel: whoever waited for it tries again, in turn."""
        room = self._rooms.get(channel)
        if room is not None:
            room.pause_until = now
            room.allow = objects + 1
        return self._deal(now)

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
            found.over(grant.ref.number)
        gentle = error is not None and error.kind in {"busy", "cancelled"}
        if gentle:
            offer = found.offers.pop((grant.node, grant.session), None)
            if offer is not None:
                offer.seat.slots = min(offer.seat.slots, 0)  # it knows better what it has free
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
        found.over(ref.number)
        if grant is not None:
            found.forgive(grant.node)
        found.trouble = None
        found.ready.add(ref.number)
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

    def departed(self, sessions: Set[Session], now: float) -> None:
        """They disconnected for good: their offers are worth nothing. Their grants end by their leases."""
        for found in self._rounds.values():
            for session in found.offers.keys() & sessions:
                del found.offers[session]
                found.seek_at, found.seeks, found.calm = now, 0, False
                found.due_at = now

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
        """Time passed: windows close, seeks repeat, grants are sent again, dead rounds go."""
        effects: list[Effect] = []
        for key, found in list(self._rounds.items()):
            if found.due_at is None or now < found.due_at:
                continue
            effects += self._look(key, found, now)
            if not found.wants and not found.live and not found.proposed:
                del self._rounds[key]
        for channel, room in list(self._rooms.items()):
            if now >= room.tight_until and not self._queue.waits(channel):
                del self._rooms[channel]
        self._ticked_at = now
        return effects + self._deal(now)

    def timer(self) -> float | None:
        """When :meth:`tick` wants to be called next."""
        times = [found.due_at for found in self._rounds.values() if found.due_at is not None]
        times += [
            r.pause_until for c, r in self._rooms.items() if r.pause_until > self._ticked_at and self._queue.waits(c)
        ]
        if self._deal_at is not None:
            times.append(self._deal_at)
        return min(times, default=None)

    # -- what to say --------------------------------------------------------------------------------------------

    def interested(self, ref: ObjectRef, now: float) -> tuple[str, ...]:
        """Nodes whose window holds the object, and that were heard not longer ago than a read lease lasts."""
        found = self._rounds.get((ref.channel, ref.stream))
        if found is None:
            return ()
        return tuple(
            node
            for node, reader in found.wants.items()
            if now < reader.order.until
            and now <= reader.heard + self._settings.read_lease
            and ref.number in found.window(reader, now)
        )

    def reason(self, channel: str, stream: bytes, now: float, node: str | None = None) -> EntrepotError | None:
        """Why the stream's unmet objects are still unmet, if that is worth saying: to this node, or to the first in
        turn of those that want it."""
        found = self._rounds.get((channel, stream))
        if found is None or found.unmet_since is None:
            return None
        readers = tuple(found.wants) if node is None else (node,)
        room = self._rooms.get(channel)
        if room is not None and now < room.tight_until:
            return full_bucket(room.short, self._queue.before(channel, readers))
        if not any(found.fresh(offer, now) for offer in found.offers.values()):
            return found.nobody() if now >= found.unmet_since + SILENCE else None
        able = found.able(now)
        if able and not found.live and all(offer.seat.free <= 0 for offer in able.values()):
            return busy_holder(len({session[0] for session in able}), self._queue.before(channel, readers))
        if able:
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
        return self._look(key, found, now) + self._deal(now)

    def _look(self, key: tuple[str, bytes], found: Round, now: float) -> list[Effect]:
        """What the round wants done; its readers wait for their turns after that."""
        effects = self._go_on(key, found, now)
        found.due_at = found.due()
        return effects

    def _go_on(self, key: tuple[str, bytes], found: Round, now: float) -> list[Effect]:
        found.stepped_at = now
        for node, reader in list(found.wants.items()):
            reader.has = {number: at for number, at in reader.has.items() if at > now - LATE}
            if now >= reader.order.until:
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
        if found.opening is not None:
            lacking = [number for number in needed if not found.able(now, number)]
            offered = set(needed).difference(lacking)
            for node, reader in found.wants.items() if offered and now >= found.pause_until else ():
                if not offered.isdisjoint(found.window(reader, now)):
                    self._queue.put(key[0], node, key[1])
        return effects + self._seek(key, found, lacking, now)

    def _again(self, found: Round, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for live in found.live.values():
            if not live.accepted and found.opening is not None and now >= live.sent_at + self._settings.resend:
                live.sent_at = now
                effects.append(SendGrant(live.grant, found.opening))
        return effects

    def _full(self, channel: str, over: Sequence[tuple[GrantOutcome, Claim]], now: float) -> Effect:
        """The quota refused these, in turn: the channel is tight for a while, and room is asked for."""
        room = self._rooms.get(channel)
        if room is None:
            room = self._rooms[channel] = Room()
        room.tight_until, room.pause_until, room.allow = now + TIGHT, now + ROOM_PAUSE, 1
        room.short = over[0][0].short
        wish = room.short + sum(outcome.proposal.size for outcome, _ in over[1:])
        need, head = 0, None
        for outcome, claim in over:
            if claim.head is not None:
                need, head = outcome.short, self._waiting(channel, claim.head, now)
                break
        stalled = tuple(
            Front(node, stream)
            for (name, stream), found in self._rounds.items()
            if name == channel
            for node in found.stalled(now)
        )
        room.plea = MakeRoom(channel, need, wish, head, stalled)
        return room.plea

    def _waiting(self, channel: str, head: Front, now: float) -> Front:
        """The front, with how long its reader has waited for room now."""
        found = self._rounds.get((channel, head.stream))
        reader = None if found is None else found.wants.get(head.node)
        if reader is None:
            return head
        reader.waits_since = now if reader.waits_since is None else reader.waits_since
        return Front(head.node, head.stream, now - reader.waits_since)

    def _unclaim(self, found: Round, number: int) -> Claim | None:
        claim = found.proposed.pop(number, None)
        if claim is not None:
            claim.seat.reserved -= 1
            lighten(self._load, claim.node)
        return claim

    def _drop(self, found: Round) -> None:
        """A round of a lock that is not the channel's any more: what it holds of its holders is free."""
        for number in tuple(found.live):
            found.over(number)
        for number in tuple(found.proposed):
            self._unclaim(found, number)

    def _deal(self, now: float) -> list[Effect]:
        """Proposals in turn, as far as there are free upload slots. In a channel without room only few, those at the
        front of a reader first: whoever has something to read or on its way can wait for more."""
        self._deal_at = None
        if not any(seat.free > 0 for seat in self._seats.values()):
            return []
        proposals: list[Proposal] = []
        probes = PROBES
        allowed = {channel: room.allow for channel, room in self._rooms.items() if now < room.tight_until}
        closed = {channel for channel, room in self._rooms.items() if now < room.pause_until}
        for fronts in (True, False) if allowed else (False,):
            passed: set[tuple[str, str]] = set()
            while probes > 0 and (turn := self._queue.turn(closed, passed, PROBED)) is not None:
                probes -= len(turn.streams)
                proposal = self._take(turn, now, fronts=fronts and turn.channel in allowed)
                if proposal is None:
                    passed.add((turn.channel, turn.node))
                    continue
                proposals.append(proposal)
                allowed[turn.channel] = allowed.get(turn.channel, PROBES) - 1
                if allowed[turn.channel] <= 0:
                    closed.add(turn.channel)
        if probes <= 0:
            self._deal_at = now + MORE
        return [Propose(tuple(proposals))] if proposals else []

    def _take(self, turn: Turn, now: float, *, fronts: bool) -> Proposal | None:
        """The next object for the node whose turn it is; ``fronts``: only one that it needs first."""
        for place, stream in enumerate(turn.streams):
            found = self._rounds.get((turn.channel, stream))
            proposal, waits = (None, False) if found is None else self._pick(turn, stream, found, now, fronts)
            if not waits:
                self._queue.drop(turn.channel, turn.node, stream)
            if proposal is not None:
                self._queue.rotate(turn, turn.streams[: place + 1])
                return proposal
        self._queue.rotate(turn, turn.streams)
        return None

    def _pick(self, turn: Turn, stream: bytes, found: Round, now: float, fronts: bool) -> tuple[Proposal | None, bool]:
        """The next object of one stream for the node, and whether the node waits for more of it."""
        reader = found.wants.get(turn.node)
        if reader is None or found.opening is None or found.window_end is not None or now < found.pause_until:
            return None, False
        waits = False
        for rank, number in enumerate(found.window(reader, now)):
            if number in found.proposed:
                waits = True  # it keeps its place until the ledger has judged
                continue
            if number in reader.has or number in found.ready or number in found.live:
                continue
            able = found.able(now, number)
            waits = waits or bool(able)
            most = self._settings.uploads
            free = {s: offer.seat for s, offer in able.items() if offer.seat.free > 0 and self._load[s[0]] < most}
            if fronts and rank > 0:
                break
            if free:
                head = Front(turn.node, stream) if rank == 0 else None
                return self._claim(turn, stream, found, number, free, head, now), True
        return None, waits

    def _claim(
        self,
        turn: Turn,
        stream: bytes,
        found: Round,
        number: int,
        free: dict[Session, Seat],
        head: Front | None,
        now: float,
    ) -> Proposal | None:
        assert found.opening is not None
        name = object_key("", found.lock.id, StreamId(stream), number)
        node = choose(name, [(n, weight(self._uplinks.get(n))) for n in {session[0] for session in free}])
        if node is None:
            return None
        session = max((s for s in free if s[0] == node), key=lambda s: (free[s].free, s))
        size = Geometry(found.opening.length, found.lock).object_length(number)
        together = {n for n, reader in found.wants.items() if number in found.window(reader, now)}
        bill = self._queue.charge(turn, together, size)
        free[session].reserved += 1
        self._load[node] += 1
        found.proposed[number] = Claim(free[session], bill, head, node)
        return Proposal(
            ref=ObjectRef(turn.channel, found.lock.id, stream, number),
            grant=self._token(),
            node=session[0],
            session=session[1],
            size=size,
            lease_until=now + self._settings.lease + size / 100e6,
            transfer=found.wants[turn.node].order.transfer,
        )

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
