"""The hub's side of the exchange: every verb that a node may say, and what the hub does of its own accord.

Decisions are made by the pure core (:mod:`entrepot_hub.core.rounds`, the rules of :mod:`entrepot_hub.core.ledger`);
this service carries them out: it asks the ledger, signs, looks into the bucket and publishes. Who speaks is known from
the subject, which the bus enforces; what they may do is checked here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

from entrepot.core import subjects
from entrepot.core.errors import Conflict, Corrupt, Denied, EntrepotError, NotFound, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.format import decode_header
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.messages import (
    MAX_OBJECTS,
    Accept,
    AcceptReply,
    Ack,
    Added,
    Bad,
    Cancel,
    Done,
    Got,
    Grant,
    Message,
    Missing,
    ObjectState,
    Offer,
    Open,
    OpenReply,
    Progress,
    Seek,
    State,
    Want,
    WantReply,
    reason_of,
)
from entrepot.core.ranges import as_set, check_pairs, clip, front
from entrepot_hub.adapters.database import Database
from entrepot_hub.core.ledger import (
    GrantRecord,
    GrantStatus,
    Ledger,
    ObjectRecord,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    WantOrder,
)
from entrepot_hub.core.members import Member
from entrepot_hub.core.rounds import (
    Announce,
    Effect,
    Introduce,
    MakeRoom,
    Propose,
    Rounds,
    SendGrant,
    SendSeek,
)
from entrepot_hub.services.bucket_keeper import BucketKeeper, Verdict
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.urls import ReadUrls, as_message

type Publish = Callable[[str, Message], None]
type Spawn = Callable[[Coroutine[Any, Any, None]], None]

#: A holder's row is written again after so many seconds.
HOLDER_NEWS = 60.0
#: Progress is passed on to readers this often, in seconds per object.
PROGRESS_NEWS = 0.25
#: An uploader or reporter with so many strikes in an hour provides (or reports) nothing for that long.
STRIKES = 3


class Exchange:
    """The verbs. ``publish(subject, message)`` sends without waiting and may lose; ``spawn`` runs in the background."""

    def __init__(
        self,
        *,
        instance: str,
        database: Database,
        ledger: Ledger,
        channels: Channels,
        keeper: BucketKeeper,
        rounds: Rounds,
        settings: ExchangeSettings,
        clock: Callable[[], float],
        publish: Publish,
        spawn: Spawn,
    ) -> None:
        self.instance = instance
        self.rounds = rounds
        self.settings = settings
        self._database = database
        self._ledger = ledger
        self._channels = channels
        self._keeper = keeper
        self._clock = clock
        self._publish = publish
        self._spawn = spawn
        self._urls = ReadUrls(clock, settings.get_url)
        self._holders: dict[tuple[str, bytes, str], float] = {}
        self._news: dict[ObjectRef, float] = {}
        self._making_room: set[str] = set()
        self.woken = asyncio.Event()

    # -- verbs of readers ---------------------------------------------------------------------------------------

    async def want(self, channel: OpenChannel, member: Member, message: Want) -> WantReply:
        """Keep the want, say how its objects stand, and have what is missing sought."""
        self._check_lock(channel, message.lock)
        stream, now = StreamId(message.stream), self._clock()
        if not member.rights.may_request(stream.kind):
            return await self._read_only(channel, member, message)
        order = WantOrder(
            channel=channel.name,
            lock=channel.lock.id,
            stream=message.stream,
            node=member.node.public,
            ranges=check_pairs(message.ranges),
            window=message.window,
            until=now + message.deadline / 1000,
            keep=message.keep,
        )
        opening = await self._database.call(self._ledger.opening, channel.name, message.stream)
        numbers = self._numbers(channel, opening, order.ranges, order.window)
        until = now + self.settings.read_lease
        view, holders = await self._database.together(
            lambda: (
                self._ledger.want(order, numbers, until, now),
                self._ledger.holders(channel.name, message.stream),
            )
        )
        members = await self._channels.size(channel.name)
        effects = self.rounds.wanted(order, channel.lock, view.opening, view.objects, holders, members, now)
        self._spawn(self.perform(effects))
        reason = self.rounds.reason(channel.name, message.stream, now)
        states = [await self._state(channel, each, now, for_reader=True) for each in view.objects]
        unmet = any(state.state != "ready" for state in states) or view.opening is None
        again = self.settings.again_most
        if unmet:
            quiet = self.rounds.quiet(channel.name, message.stream, now)
            again = self._patience(order, now) if quiet else self.settings.again
        return WantReply(
            opening=None if view.opening is None else view.opening.encode(),
            objects=tuple(states),
            ready=view.ready,
            uploading=view.uploading,
            again_in=int(again * 1000),
            reason=None if reason is None else reason_of(reason),
        )

    async def got(self, channel: OpenChannel, member: Member, message: Got) -> Ack:
        """The node verified these objects: its read leases end."""
        self._check_lock(channel, message.lock)
        await self._database.call(
            self._ledger.got, channel.name, message.stream, member.node.public, message.numbers, self._clock()
        )
        return Ack()

    async def cancel(self, channel: OpenChannel, member: Member, message: Cancel) -> Ack:
        """The node no longer wants the stream."""
        self._check_lock(channel, message.lock)
        await self._database.call(self._ledger.unwant, channel.name, message.stream, member.node.public)
        self.rounds.unwanted(channel.name, message.stream, member.node.public)
        return Ack()

    async def missing(self, channel: OpenChannel, member: Member, message: Missing) -> Ack:
        """A reader found nothing, or something else, at a key: look."""
        ref = self._ref(channel, message)
        before = await self._database.call(self._ledger.view, ref)
        if before.record.status is ObjectStatus.READY:
            after = (await self._keeper.look(ref)).view
            if after.record.status is not ObjectStatus.READY or after.record.etag != before.record.etag:
                self._spawn(self.perform(self.rounds.vanished(ref, self._clock())))
        return Ack()

    async def bad(self, channel: OpenChannel, member: Member, message: Bad) -> Ack:
        """A reader says that an object does not verify. The hub reads it itself and judges one of the two."""
        ref, now = self._ref(channel, message), self._clock()
        view = await self._database.call(self._ledger.view, ref)
        if view.record.status is not ObjectStatus.READY or message.etag not in (None, view.record.etag):
            return Ack()
        verdict = await self._keeper.verify(ref, view.record.etag, message.miniblock)
        if verdict is Verdict.PROVED:
            await self._strike(channel, member.node.public, "false-report", now)
            return Ack()
        if verdict is Verdict.CHANGED:
            # Readers of buckets that ignore the etag of a signed GET got something else: that is looked at, and if it
            # passes the look it is judged in its turn.
            return await self.missing(
                channel, member, Missing(lock=message.lock, stream=message.stream, number=message.number)
            )
        record = await self._keeper.quarantine(ref, view.record.etag)
        if record is not None:
            await self._condemned(record, now)
        self._spawn(self.perform(self.rounds.vanished(ref, self._clock())))
        return Ack()

    # -- verbs of providers -------------------------------------------------------------------------------------

    async def offer(self, channel: OpenChannel, member: Member, message: Offer) -> None:
        """A session holds objects of a stream that was sought."""
        opening = self._provable(channel, member, message.lock, message.stream, message.opening)
        now = self._clock()
        await self._note_holder(channel, member, message.stream, opening, now)
        session = (member.node.public, message.session)
        effects = self.rounds.offered(
            channel.name, message.stream, session, opening, as_set(check_pairs(message.ranges)), message.slots, now
        )
        await self.perform(effects)

    async def accept(self, channel: OpenChannel, member: Member, message: Accept) -> AcceptReply:
        """A session takes its grant: check what it says the object is, and sign the PUT."""
        self._check_lock(channel, message.lock)
        now = self._clock()
        grant = await self._database.call(self._ledger.find_grant, message.grant)
        if grant is None or grant.ref.channel != channel.name or grant.node != member.node.public:
            raise Conflict("this grant is not yours, or not any more", kind="stale-grant")
        stream = StreamId(grant.ref.stream)
        self._may_provide(channel, member, stream)
        if message.header:
            opening = await self._database.call(self._ledger.opening, channel.name, grant.ref.stream)
            try:
                decode_header(
                    message.header, stream=stream, lock=channel.lock, number=grant.ref.number, opening=opening
                )
            except Corrupt as error:
                await self._fail(grant, error, now)
                await self._strike(channel, member.node.public, "bad-header", now)
                raise
        view = await self._database.call(
            self._ledger.accept,
            message.grant,
            member.node.public,
            message.digest,
            now + self.settings.lease,
            now + self.settings.put_url,
            now,
        )
        if view.record.tombstone:
            await self._keeper.clear_tombstone(channel, grant.ref)
        length = grant.length
        put = await channel.bucket.sign_put(channel.key(grant.ref), length, message.digest, int(self.settings.put_url))
        if view.grant is not None:
            self.rounds.accepted(view.grant)
            self._spawn(self._announce([view], now))
        return AcceptReply(put=as_message(put, now), lease=int(self.settings.lease * 1000))

    async def progress(self, channel: OpenChannel, member: Member, message: Progress) -> Ack:
        """More bytes of a granted object went out."""
        self._check_lock(channel, message.lock)
        now = self._clock()
        grant = await self._database.call(
            self._ledger.progress,
            message.grant,
            member.node.public,
            message.sent,
            self.settings.lease,
            self.settings.floor_rate,
            now,
        )
        if now >= self._news.get(grant.ref, 0.0) + PROGRESS_NEWS:
            if len(self._news) > 10_000:
                self._news.clear()
            self._news[grant.ref] = now
            view = await self._database.call(self._ledger.view, grant.ref)
            await self._announce([view], now)
        return Ack()

    async def done(self, channel: OpenChannel, member: Member, message: Done) -> Ack:
        """A PUT ended, somehow: look into the bucket, which alone decides."""
        self._check_lock(channel, message.lock)
        grant = await self._database.call(self._ledger.find_grant, message.grant)
        if grant is None or grant.ref.channel != channel.name or grant.node != member.node.public:
            raise Conflict("this grant is not yours", kind="stale-grant")
        error = None if message.error is None else message.error.error()
        if not grant.accepted_at:
            await self._fail(
                grant, error or Corrupt("a grant was reported done that was never accepted"), self._clock()
            )
            return Ack()
        await self.settle(grant, error)
        return Ack()

    async def added(self, channel: OpenChannel, member: Member, message: Added) -> Ack:
        """A daemon now holds these streams: whoever waits for one has it offered."""
        streams = [
            (raw, self._provable(channel, member, message.lock, raw, opening)) for raw, opening in message.streams
        ]
        now = self._clock()
        await self._database.call(self._ledger.hold, channel.name, streams, member.node.public, now)
        for raw, opening in streams:
            for want in await self._database.call(self._ledger.wants, channel.name, raw, now):
                effects = self.rounds.restored(want, channel.lock, opening, now)
                self._spawn(self.perform(effects))
            self._spawn(self.perform(self.rounds.came(channel.name, raw, member.node.public, opening, now)))
        return Ack()

    async def open(self, channel: OpenChannel, member: Member, message: Open) -> OpenReply:
        """A daemon is here: which streams are wanted, a page at a time."""
        self._check_lock(channel, message.lock)
        if not member.rights.may_provide_any:
            raise Denied("this node may not provide in this channel", kind="no-right")
        now, limit = self._clock(), 200
        page = await self._database.call(self._ledger.open_wants, now, channel.name, message.cursor, limit)
        streams = tuple(dict.fromkeys(want.order.stream for _, want in page))
        return OpenReply(streams=streams, cursor=page[-1][0] if len(page) == limit else None)

    # -- of its own accord --------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Begin the rounds of all wants that the ledger kept, after a start."""
        after, now = 0, self._clock()
        while page := await self._database.call(self._ledger.open_wants, now, None, after, 500):
            for cursor, want in page:
                after = cursor
                try:
                    channel = await self._channels.channel(want.order.channel)
                except NotFound:
                    continue
                if want.order.lock != channel.lock.id:
                    continue
                opening = await self._database.call(self._ledger.opening, channel.name, want.order.stream)
                await self.perform(self.rounds.restored(want, channel.lock, opening, now))

    async def tick(self) -> float | None:
        """Let time pass for the rounds; when they want it next."""
        await self._carry_out(self.rounds.tick(self._clock()))
        return self.rounds.timer()

    async def lapse(self) -> int:
        """End the leases that are over. What was uploaded all the same counts; the rest passes on."""
        lapsed = await self._database.call(self._ledger.lapse, self._clock())
        for grant in lapsed:
            slow = RetryLater("the holder was too slow or went away", kind="holder-too-slow", node=grant.node)
            await self._after(grant, slow)
        return len(lapsed)

    async def sweep(self) -> int:
        """Bring to rest what a crash or a lost message left: reservations, evictions, tombstones."""
        stale = await self._database.call(self._ledger.stale, self._clock(), self.settings.put_grace)
        for record in stale:
            view = await self._keeper.finish(record)
            if view.record.status is ObjectStatus.READY:
                await self.perform(self.rounds.arrived(record.ref, None, self._clock()))
        return len(stale)

    async def session_left(self, node: str, session: str) -> None:
        """A session's connection ended: its leases are short now."""
        now = self._clock()
        end = now + self.settings.disconnect_grace
        await self._database.call(self._ledger.shorten, node, session, end, now)

    async def session_came(self, node: str, session: str) -> None:
        """A session is (back) here: a planned reconnect costs it nothing."""
        now = self._clock()
        await self._database.call(self._ledger.restore, node, session, now + self.settings.lease, now)

    async def settle(self, grant: GrantRecord, error: EntrepotError | None) -> None:
        """Look where a grant's object should be; it is ready, or the grant has failed."""
        now = self._clock()
        look = await self._keeper.look(grant.ref)
        if look.view.record.status is ObjectStatus.READY:
            await self.perform(self.rounds.arrived(grant.ref, grant, now))
            return
        nothing = error or Corrupt("an upload was reported done, but the bucket does not hold it", kind="corrupt")
        if look.condemned is not None:
            # The ledger took the grant for done before the header was read: only the rounds still count on it.
            await self._condemned(look.condemned, now)
            await self.perform(self.rounds.ended(grant, nothing, now))
            return
        await self._fail(grant, nothing, now)

    async def perform(self, effects: Iterable[Effect]) -> None:
        """Carry out what the rounds decided, and what follows from it; then have the timer looked at."""
        await self._carry_out(effects)
        self.woken.set()

    async def _carry_out(self, effects: Iterable[Effect]) -> None:
        waiting = list(effects)
        for effect in waiting:
            match effect:
                case SendSeek():
                    self._send_seek(effect)
                case Propose(proposals):
                    outcomes = await self._database.call(self._ledger.grant, proposals, self._clock())
                    waiting += self.rounds.judged(outcomes, self._clock())
                case SendGrant(grant, opening):
                    self._send_grant(grant, opening)
                case Announce(refs):
                    views = await self._database.together(partial(self._views, refs))
                    await self._announce(views, self._clock())
                case Introduce(name, stream, opening):
                    await self._database.call(self._ledger.learn, name, stream, opening)
                    lock = (await self._channels.channel(name)).lock
                    self._tell(name, State(lock=lock.id, stream=stream, objects=(), opening=opening.encode()))
                case MakeRoom(name, short):
                    self._spawn(self._make_room(name, short))

    # -- how ----------------------------------------------------------------------------------------------------

    def _views(self, refs: Sequence[ObjectRef]) -> list[ObjectView]:
        return [self._ledger.view(ref) for ref in refs]

    async def _make_room(self, name: str, short: int) -> None:
        if name in self._making_room:
            return
        self._making_room.add(name)
        try:
            gone = await self._keeper.make_room(name, short)
        finally:
            self._making_room.discard(name)
        effects: list[Effect] = []
        for ref in gone:
            effects += self.rounds.vanished(ref, self._clock())
        if gone:
            effects += self.rounds.roomier(name, self._clock())
        await self.perform(effects)

    async def _after(self, grant: GrantRecord, error: EntrepotError) -> None:
        """A grant ended in the ledger already: look whether its object is there all the same."""
        if grant.accepted_at:
            look = await self._keeper.look(grant.ref)
            if look.view.record.status is ObjectStatus.READY:
                await self.perform(self.rounds.arrived(grant.ref, grant, self._clock()))
                return
            if look.condemned is not None:
                await self._condemned(look.condemned, self._clock())
        await self.perform(self.rounds.ended(grant, error, self._clock()))

    async def _fail(self, grant: GrantRecord, error: EntrepotError, now: float) -> None:
        ended = await self._database.call(self._ledger.end_grant, grant.grant, GrantStatus.FAILED, error.kind, now)
        if ended is not None:
            await self.perform(self.rounds.ended(ended, error, now))

    async def _announce(self, views: Sequence[ObjectView], now: float) -> None:
        """Tell the readers of a stream, and lend what they are told to read."""
        if not views:
            return
        channel = await self._channels.channel(views[0].record.ref.channel)
        until = now + self.settings.read_lease
        for view in views:
            if view.record.status is ObjectStatus.READY:
                nodes = self.rounds.interested(view.record.ref, now)
                if nodes:
                    await self._database.call(self._ledger.lend, [view.record.ref], nodes, until, now)
        states = tuple([await self._state(channel, view, now, for_reader=True) for view in views[:MAX_OBJECTS]])
        ref = views[0].record.ref
        self._tell(channel.name, State(lock=ref.lock, stream=ref.stream, objects=states))

    async def _state(self, channel: OpenChannel, view: ObjectView, now: float, *, for_reader: bool) -> ObjectState:
        record = view.record
        if record.status is ObjectStatus.READY:
            get = await self._urls.get(channel, record) if for_reader else None
            return ObjectState(number=record.ref.number, state="ready", length=record.size, etag=record.etag, get=get)
        if view.grant is not None and view.grant.status is GrantStatus.ACCEPTED:
            return ObjectState(
                number=record.ref.number, state="uploading", length=view.grant.length, sent=view.grant.sent
            )
        return ObjectState(number=record.ref.number, state="seeking")

    def _tell(self, channel: str, state: State) -> None:
        self._publish(subjects.state(channel, state.stream.hex()), state)

    def _send_seek(self, effect: SendSeek) -> None:
        seek = Seek(lock=effect.lock.id, stream=effect.stream, hub=self.instance, sample=effect.sample)
        if effect.nodes is None:
            self._publish(subjects.channel_seek(effect.channel), seek)
        for node in effect.nodes or ():
            self._publish(subjects.node_seek(node), seek)

    def _send_grant(self, grant: GrantRecord, opening: Opening) -> None:
        lease = max(grant.lease_until - self._clock(), 0.0)
        message = Grant(
            lock=grant.ref.lock,
            stream=grant.ref.stream,
            number=grant.ref.number,
            grant=grant.grant,
            opening=opening.encode(),
            lease=int(lease * 1000),
        )
        self._publish(subjects.grant(grant.node, grant.session), message)

    async def _read_only(self, channel: OpenChannel, member: Member, message: Want) -> WantReply:
        """A member who may only read gets what the bucket has, and is told so otherwise."""
        if not member.rights.may_read:
            raise Denied("this node may not ask for this in this channel", kind="no-right")
        now = self._clock()
        opening = await self._database.call(self._ledger.opening, channel.name, message.stream)
        numbers = self._numbers(channel, opening, check_pairs(message.ranges), message.window)
        refs = [ObjectRef(channel.name, channel.lock.id, message.stream, number) for number in numbers]
        views = await self._database.together(partial(self._views, refs))
        if opening is None or any(view.record.status is not ObjectStatus.READY for view in views):
            raise Denied(
                "this is not in the bucket, and this node may only read what is there",
                kind="no-right",
                hint="Ask the channel's owner for the right to request.",
            )
        until = now + self.settings.read_lease
        await self._database.call(self._ledger.lend, refs, [member.node.public], until, now)
        states = tuple([await self._state(channel, view, now, for_reader=True) for view in views])
        return WantReply(opening=opening.encode(), objects=states, again_in=int(self.settings.again_most * 1000))

    def _numbers(
        self, channel: OpenChannel, opening: Opening | None, ranges: Sequence[tuple[int, int]], window: int
    ) -> tuple[int, ...]:
        if opening is None:
            return ()
        return front(clip(ranges, Geometry(opening.length, channel.lock).object_count), window)

    def _patience(self, order: WantOrder, now: float) -> float:
        """Nobody offers it: ask less and less often, but not past a quarter of the time that is left."""
        left = max(order.until - now, 0.0)
        return min(max(self.settings.again, left / 4), self.settings.again_most)

    async def _note_holder(
        self, channel: OpenChannel, member: Member, stream: bytes, opening: Opening, now: float
    ) -> None:
        key = (channel.name, stream, member.node.public)
        if now < self._holders.get(key, 0.0) + HOLDER_NEWS:
            return
        if len(self._holders) > 100_000:
            self._holders.clear()
        self._holders[key] = now
        await self._database.call(self._ledger.hold, channel.name, [(stream, opening)], member.node.public, now)

    async def _condemned(self, record: ObjectRecord, now: float) -> None:
        """An object was bad: its uploader gets a strike and is not asked for the stream for a while."""
        if record.uploader is not None:
            self.rounds.excluded(record.ref.channel, record.ref.stream, record.uploader, now)
            await self._database.call(self._ledger.strike, record.ref.channel, record.uploader, "bad-object", now)

    async def _strike(self, channel: OpenChannel, node: str, reason: str, now: float) -> None:
        await self._database.call(self._ledger.strike, channel.name, node, reason, now)

    def _provable(self, channel: OpenChannel, member: Member, lock: bytes, raw: bytes, opening: bytes) -> Opening:
        self._check_lock(channel, lock)
        stream = StreamId(raw)
        self._may_provide(channel, member, stream)
        found = Opening.decode(opening)
        if not found.proves(stream):
            raise Corrupt("this opening does not prove the stream id", kind="corrupt", stream=str(stream))
        return found

    @staticmethod
    def _may_provide(channel: OpenChannel, member: Member, stream: StreamId) -> None:
        if not member.rights.may_provide(stream.kind):
            raise Denied(f"this node may not provide in {channel.name}", kind="no-right")

    @staticmethod
    def _ref(channel: OpenChannel, message: Missing | Bad) -> ObjectRef:
        Exchange._check_lock(channel, message.lock)
        return ObjectRef(channel.name, channel.lock.id, message.stream, message.number)

    @staticmethod
    def _check_lock(channel: OpenChannel, lock: bytes) -> None:
        if lock != channel.lock.id:
            raise Conflict(
                f"{channel.name} has another schema lock now: {channel.lock.hex}",
                kind="stale-lock",
                hint="Reconnect, so that the current lock is learned.",
                lock=channel.lock.canonical().decode(),
            )
