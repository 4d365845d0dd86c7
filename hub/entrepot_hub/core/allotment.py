"""Which object is uploaded next, by whom, and for whom: free upload slots and room are handed out in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import StreamId
from entrepot.core.keys import object_key
from entrepot.core.placement import choose, weight
from entrepot_hub.core.effects import Effect, MakeRoom, Propose, TakeOver
from entrepot_hub.core.ledger import GrantOutcome, ObjectRef, Proposal
from entrepot_hub.core.queueing import Queue, Room, Turn
from entrepot_hub.core.round import Claim, Live, Round, Taken
from entrepot_hub.core.seats import Seat, Seats, Session
from entrepot_hub.core.uplinks import Uplinks
from entrepot_hub.core.wishes import Front

#: Pause before a proposal that found no room, or an object just leaving, is made again.
ROOM_PAUSE = 0.25
#: For so long after a proposal found no room the channel counts as full.
TIGHT = 2.0
#: Streams that are looked at in one turn, and in all turns at once; the rest goes on after a pause of so many seconds.
PROBED, PROBES, MORE = 8, 256, 0.05
#: So many objects a node is granted whatever is known of its uplink.
BEGUN = 2
#: A holder is chosen among those that are expected to have the object there in so many times the shortest time.
NEARLY = 1.5

type Key = tuple[str, bytes]


class Allotment:
    """Of one hub instance. ``rounds``: by channel and stream; ``load``: objects proposed or granted to each node, which
    the rounds count too; ``uplinks``: how fast they are; ``token`` gives unguessable bytes."""

    def __init__(
        self,
        settings: ExchangeSettings,
        token: Callable[[], bytes],
        rounds: Mapping[Key, Round],
        load: Counter[str],
        uplinks: Uplinks,
    ) -> None:
        self.queue = Queue()
        self.seats = Seats()
        self.again_at: float | None = None  # when :meth:`deal` goes on with what it left
        self._settings = settings
        self._token = token
        self._rounds = rounds
        self._load = load
        self._uplinks = uplinks
        self._rooms: dict[str, Room] = {}

    # -- room -------------------------------------------------------------------------------------------------------

    def tight(self, channel: str, now: float) -> Room | None:
        """The channel's room, if that was scarce a moment ago."""
        room = self._rooms.get(channel)
        return room if room is not None and now < room.tight_until else None

    def plea(self, channel: str, now: float) -> MakeRoom | None:
        """What was asked for, while nothing is proposed in the channel for lack of room."""
        room = self._rooms.get(channel)
        return room.plea if room is not None and now < room.pause_until else None

    def roomier(self, channel: str, now: float, objects: int) -> None:
        """The room of so many objects came free in the channel."""
        room = self._rooms.get(channel)
        if room is not None:
            room.pause_until = now
            room.allow = objects + 1

    def full(self, channel: str, over: Sequence[tuple[GrantOutcome, Claim]], now: float) -> Effect:
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

    def forget_rooms(self, now: float) -> None:
        """Channels that have room again are channels like others."""
        for channel, room in list(self._rooms.items()):
            if now >= room.tight_until and not self.queue.waits(channel):
                del self._rooms[channel]

    def due(self, since: float) -> list[float]:
        """When :meth:`deal` has something to do again that it could not do at ``since``."""
        times = [r.pause_until for c, r in self._rooms.items() if r.pause_until > since and self.queue.waits(c)]
        return times if self.again_at is None else [*times, self.again_at]

    def _waiting(self, channel: str, head: Front, now: float) -> Front:
        """The front, with how long its reader has waited for room now."""
        found = self._rounds.get((channel, head.stream))
        reader = None if found is None else found.wants.get(head.node)
        if reader is None:
            return head
        reader.waits_since = now if reader.waits_since is None else reader.waits_since
        return Front(head.node, head.stream, now - reader.waits_since)

    # -- turns ------------------------------------------------------------------------------------------------------

    def deal(self, now: float) -> list[Effect]:
        """Proposals in turn, as far as there are free upload slots. In a channel without room only few, those at the
        front of a reader first: whoever has something to read or on its way can wait for more."""
        self.again_at = None
        if not self.seats.vacant:
            return []
        proposals: list[Proposal] = []
        probes = PROBES
        allowed = {channel: room.allow for channel, room in self._rooms.items() if now < room.tight_until}
        closed = {channel for channel, room in self._rooms.items() if now < room.pause_until}
        starved: set[Key] = set()
        for fronts in (True, False) if allowed else (False,):
            with self.queue.deal(closed) as deal:
                while probes > 0 and self.seats.vacant and (turn := deal.turn(PROBED)) is not None:
                    probes -= len(turn.streams)
                    proposal = self._take(turn, now, starved, fronts=fronts and turn.channel in allowed)
                    if proposal is None:
                        deal.passes(turn)
                        continue
                    proposals.append(proposal)
                    allowed[turn.channel] = allowed.get(turn.channel, PROBES) - 1
                    if allowed[turn.channel] <= 0:
                        closed.add(turn.channel)
        if probes <= 0 and self.seats.vacant:
            self.again_at = now + MORE
        return [Propose(tuple(proposals))] if proposals else []

    def _take(self, turn: Turn, now: float, starved: set[Key], *, fronts: bool) -> Proposal | None:
        """The next object for the node whose turn it is; ``fronts``: only one that it needs first. ``starved``: streams
        whose holders were found without a free slot in this deal."""
        for place, stream in enumerate(turn.streams):
            key = (turn.channel, stream)
            if key in starved:
                continue
            found = self._rounds.get(key)
            if found is not None and not self._served(found, now):
                starved.add(key)
            proposal, waits = (None, False) if found is None else self._pick(turn, stream, found, now, fronts)
            if not waits:
                self.queue.drop(turn.channel, turn.node, stream)
            if proposal is not None:
                self.queue.rotate(turn, turn.streams[: place + 1])
                return proposal
        self.queue.rotate(turn, turn.streams)
        return None

    def _served(self, found: Round, now: float) -> bool:
        return any(self._may_take(node, offer.seat, now) for (node, _), offer in found.offers.items())

    def _may_take(self, node: str, seat: Seat, now: float) -> bool:
        """Whether the session has a slot for one object more, and its node would come to it within its lease."""
        load = self._load[node]
        if seat.free <= 0 or load >= self._settings.uploads:
            return False
        return load < BEGUN or self._uplinks.left(node) <= self._uplinks.guess(node, now) * self._settings.lease / 2

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
            free = {s: offer.seat for s, offer in able.items() if self._may_take(s[0], offer.seat, now)}
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
        free: Mapping[Session, Seat],
        head: Front | None,
        now: float,
    ) -> Proposal | None:
        assert found.geometry is not None
        name = object_key("", found.lock.id, StreamId(stream), number)
        node = choose(name, self._soonest({session[0] for session in free}, now))
        if node is None:
            return None
        session = max((s for s in free if s[0] == node), key=lambda s: (free[s].free, s))
        size = found.geometry.object_length(number)
        together = {reader.order.node for reader in found.near(number, now)}
        bill = self.queue.charge(turn, together, size)
        free[session].reserve()
        self._load[node] += 1
        found.propose(number, Claim(free[session], bill, head, node))
        transfer = found.wants[turn.node].order.transfer
        return self._proposal((turn.channel, stream), found, number, session, transfer, now)

    def _proposal(
        self, key: Key, found: Round, number: int, session: Session, transfer: bytes | None, now: float
    ) -> Proposal:
        assert found.geometry is not None
        size = found.geometry.object_length(number)
        return Proposal(
            ref=ObjectRef(key[0], found.lock.id, key[1], number),
            grant=self._token(),
            node=session[0],
            session=session[1],
            size=size,
            lease_until=now + self._settings.lease + size / 100e6,
            transfer=transfer,
        )

    def take_over(self, key: Key, found: Round, number: int, live: Live, session: Session, now: float) -> TakeOver:
        """The object passes from the session that has it to this one. It was charged when it was granted first. Whoever
        has one taken from it that it had taken over takes no other before it has brought one."""
        seat, grant = found.offers[session].seat, live.grant
        seat.reserve()
        self._load[session[0]] += 1
        before = found.taken.get(number)
        if before is not None:
            before.back = True
            del found.brought[before.node]
        else:
            rate, told = self._uplinks.guess(session[0], now), self._uplinks.total(session[0])
            found.taken[number] = Taken(live.session, session[0], now, told, rate)
            found.brought[session[0]] -= 1
        found.propose(number, Claim(seat, None, None, session[0]))
        return TakeOver(grant, self._proposal(key, found, number, session, grant.transfer, now))

    def _soonest(self, nodes: Set[str], now: float) -> list[tuple[str, float]]:
        """Of these nodes those that would have one object more there soonest, or nearly so, with their weights: nobody
        is idle while others have much to do."""
        times = {node: (self._load[node] + 1) / self._uplinks.guess(node, now) for node in nodes}
        latest = NEARLY * min(times.values(), default=0.0)
        return [(node, weight(self._uplinks.rate(node, now))) for node, time in times.items() if time <= latest]
