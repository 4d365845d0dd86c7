"""The hub's side of the exchange: every verb that a node may say.

Who speaks is known from the subject, which the bus enforces; what they may do is checked here, and what they say is
believed only as far as the bucket, a header or an opening proves it. The arbiter carries out what follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count

from msgspec import UNSET

from entrepot.core.errors import Conflict, Corrupt, Denied, EntrepotError, InvalidInput, RetryLater
from entrepot.core.format import decode_header, header_length
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.messages import (
    MAX_HEADER,
    Accept,
    AcceptReply,
    Ack,
    Added,
    Bad,
    Cancel,
    Done,
    Got,
    Missing,
    ObjectState,
    Offer,
    Open,
    OpenReply,
    Progress,
    Reason,
    Want,
    WantReply,
    reason_of,
    transfer_of,
)
from entrepot.core.ranges import LAST_NUMBER, as_set, check_pairs, clip, front
from entrepot_hub.adapters.buckets.interface import DIGEST_LENGTH
from entrepot_hub.adapters.database import Database
from entrepot_hub.core.journal import Event, EventKind
from entrepot_hub.core.ledger import (
    LIVE,
    GrantRecord,
    HolderRecord,
    Ledger,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    WantOrder,
    WantView,
)
from entrepot_hub.core.members import Member
from entrepot_hub.core.queueing import with_held
from entrepot_hub.core.seeking import SILENCE
from entrepot_hub.services.arbiter import Arbiter, Spawn
from entrepot_hub.services.bucket_keeper import BucketKeeper, Verdict
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.reach import UNREACHABLE
from entrepot_hub.services.urls import as_message

#: A holder's row is written again after so many seconds.
HOLDER_NEWS = 60.0
#: Progress is passed on to readers this often, in seconds per object.
PROGRESS_NEWS = 0.25
#: Streams that one node wants of one channel at once.
WANTS = 1024
#: Streams that all nodes together want at once; and seconds after which one more is asked for again.
ROUNDS = 100_000
_BUSY_AGAIN = 5.0
#: Milliseconds after which a reader that may read no more asks again: a limit may have been raised.
_LIMIT_AGAIN = 5000
#: So much of what a holder says of its failure is passed on to readers.
_TOLD = 200
#: Seconds between two looks at an object that members ask for, and how many looks a second one node has made.
_LOOK_PAUSE, _LOOKS = 1.0, 10.0
#: Objects and nodes of which that is remembered.
_LOOKED = 10_000
#: Cancels that are remembered, for wants that they overtake: messages of one node are in work side by side.
_STOPPED = 10_000


class Looks:
    """Which looks into the bucket are made for members that ask for them: each is a request that the channel pays."""

    def __init__(self) -> None:
        self._at: dict[ObjectRef, float] = {}
        self._left: dict[str, tuple[float, float]] = {}

    def may(self, ref: ObjectRef, node: str, now: float) -> bool:
        """Whether to look at the object for the node now; then it counts."""
        if 0.0 <= now - self._at.get(ref, -_LOOK_PAUSE) < _LOOK_PAUSE:
            return False
        left, since = self._left.get(node, (_LOOKS, now))
        left = min(left + max(now - since, 0.0) * _LOOKS, _LOOKS)
        if left < 1.0:
            return False
        for kept in (self._at, self._left):
            if len(kept) >= _LOOKED:
                kept.clear()
        self._at[ref], self._left[node] = now, (left - 1.0, now)
        return True


class Exchange:
    """The verbs, each of a member whose rights are checked here. What follows is the arbiter's."""

    def __init__(
        self,
        arbiter: Arbiter,
        *,
        database: Database,
        ledger: Ledger,
        channels: Channels,
        keeper: BucketKeeper,
        clock: Callable[[], float],
        spawn: Spawn,
        held: Callable[[str, int], None] | None = None,
    ) -> None:
        self._arbiter = arbiter
        self._held = held or (lambda _channel, _streams: None)
        self._rounds = arbiter.rounds
        self._settings = arbiter.settings
        self._database = database
        self._ledger = ledger
        self._channels = channels
        self._keeper = keeper
        self._clock = clock
        self._spawn = spawn
        self._holders: dict[tuple[str, bytes, str], float] = {}
        self._news: dict[ObjectRef, float] = {}
        self._wanted: dict[tuple[str, str], dict[bytes, float]] = {}
        self._note = arbiter.note
        self._turns = count()
        self._stopped: OrderedDict[tuple[str, bytes, str], int] = OrderedDict()  # when, in turns, a node wanted no more
        self._looks = Looks()
        self._settling: set[bytes] = set()

    @property
    def instance(self) -> str:
        """The hub instance that offers are to name."""
        return self._arbiter.instance

    # -- verbs of readers ---------------------------------------------------------------------------------------

    async def want(self, channel: OpenChannel, member: Member, message: Want) -> WantReply:
        """Keep the want, say how its objects stand, and have what is missing sought."""
        self._check_lock(channel, message.lock)
        stream, now, turn = StreamId(message.stream), self._clock(), next(self._turns)
        if not member.rights.may_request(stream.kind):
            return await self._read_only(channel, member, message)
        order = WantOrder(
            channel=channel.name,
            lock=channel.lock.id,
            stream=message.stream,
            node=member.node.public,
            # A want that outlives its asker, who does not know yet how long the stream is, is for all of it.
            ranges=check_pairs(message.ranges) or (((0, LAST_NUMBER),) if message.keep else ()),
            window=message.window,
            until=now + message.deadline / 1000,
            keep=message.keep,
            transfer=transfer_of(message),
        )
        self._happened(EventKind.ASKED, channel, member, message.stream, transfer=order.transfer)
        refusal = await self._arbiter.metering.may_read(channel.name, order.node)
        if refusal is not None:
            return await self._unreadable(channel, order, refusal)
        self._allow_want(order, now)
        until = now + self._settings.read_lease

        def want() -> tuple[WantView, list[HolderRecord]]:
            opening = self._ledger.opening(channel.name, message.stream)
            numbers = self._numbers(channel, opening, order.ranges, order.window)
            view = self._ledger.want(order, numbers, until, now)
            return view, self._ledger.holders(channel.name, message.stream)

        view, holders = await self._database.together(want)
        members = await self._channels.size(channel.name)
        effects = self._rounds.wanted(order, channel.lock, view.opening, view.objects, holders, members, now)
        self._spawn(self._arbiter.perform(effects))
        if self._stopped.get((order.channel, order.stream, order.node), -1) > turn:
            await self._unwant(order.channel, order.stream, order.node)  # a cancel overtook it here
        reason = self._rounds.reason(channel.name, message.stream, now, order.node)
        states, over = await self._readable(channel, order.node, view.objects)
        unmet = any(state.state != "ready" for state in states) or view.opening is None
        again = self._settings.read_lease / 2  # in time to renew the leases
        if unmet:
            limit = self._arbiter.refusal(channel.name, message.stream, now)
            if isinstance(limit, Denied):  # no waiting mends it
                await self._unwant(order.channel, order.stream, order.node)
                self._waits(channel, member, order, limit)
                raise limit
            why = self._arbiter.reason(channel.name, message.stream, now, order.node)
            reason = over or limit or with_held(why, channel.record.held, channel.record.held_until)
            again = self._settings.again
            if self._rounds.quiet(channel.name, message.stream, now):
                again = self._patience(order, now)
            elif reason is None and not self._rounds.offered_by(channel.name, message.stream):
                again = min(again, SILENCE + 0.1)  # soon it is clear whether anybody has it
            self._waits(channel, member, order, reason)
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
        node, now = member.node.public, self._clock()

        known = self._rounds.opening(channel.name, message.stream)

        def got() -> Opening | None:
            self._ledger.got(channel.name, message.stream, node, message.numbers, now)
            return known or self._ledger.opening(channel.name, message.stream)

        opening = await self._database.together(got)
        there = 0 if opening is None else Geometry(opening.length, channel.lock).object_count
        for number in message.numbers:
            if number < there:  # made-up ones would only fill the journal
                self._happened(EventKind.READ, channel, member, message.stream, number)
        return Ack()

    async def cancel(self, channel: OpenChannel, member: Member, message: Cancel) -> Ack:
        """The node no longer wants the stream."""
        self._check_lock(channel, message.lock)
        key = channel.name, message.stream, member.node.public
        self._stopped[key] = next(self._turns)
        self._stopped.move_to_end(key)
        while len(self._stopped) > _STOPPED:
            self._stopped.popitem(last=False)
        if await self._unwant(channel.name, message.stream, member.node.public):
            self._happened(EventKind.STOPPED, channel, member, message.stream)
        return Ack()

    async def missing(self, channel: OpenChannel, member: Member, message: Missing) -> Ack:
        """A reader found nothing, or something else, at a key: look."""
        ref = self._ref(channel, message)
        before = await self._database.call(self._ledger.view, ref)
        if before.record.status is ObjectStatus.READY and self._looks.may(ref, member.node.public, self._clock()):
            await self._arbiter.look_again(before.record)
            self._happened(EventKind.REPORTED, channel, member, message.stream, message.number, {"as": "missing"})
        return Ack()

    async def bad(self, channel: OpenChannel, member: Member, message: Bad) -> Ack:
        """A reader says that an object does not verify. The hub reads it itself and judges one of the two."""
        ref, now = self._ref(channel, message), self._clock()
        if self._arbiter.muted(channel, member.node.public, now):
            return Ack()
        record = (await self._database.call(self._ledger.view, ref)).record
        if record.status is not ObjectStatus.READY or message.etag not in (None, record.etag):
            return Ack()
        verdict = await self._keeper.verify(ref, record.etag, message.miniblock)
        if verdict is Verdict.CHANGED:
            # Readers of a bucket that ignores the etag of a signed GET get whatever lies there: it is looked at, and
            # judged if it passes that.
            record = await self._arbiter.look_again(record)
            if record.status is ObjectStatus.READY:
                verdict = await self._keeper.verify(ref, record.etag, message.miniblock)
        elif verdict is Verdict.PROVED:
            await self._arbiter.strike(channel, member.node.public, "false-report", now)
        told = {"as": "bad", "verdict": verdict.value}
        self._happened(EventKind.REPORTED, channel, member, message.stream, message.number, told)
        if verdict is Verdict.CORRUPT:
            altered = await self._keeper.altered(record)  # then the bucket did it, and nobody is to blame
            condemned = await self._keeper.quarantine(ref, record.etag)
            if condemned is not None and not altered:
                await self._arbiter.condemned(condemned, now)
            self._spawn(self._arbiter.perform(self._rounds.vanished(ref, self._clock())))
        return Ack()

    # -- verbs of providers -------------------------------------------------------------------------------------

    async def offer(self, channel: OpenChannel, member: Member, message: Offer) -> None:
        """A session holds objects of a stream that was sought."""
        opening = self._provable(channel, member, message.lock, message.stream, message.opening)
        now = self._clock()
        await self._note_holder(channel, member, message.stream, opening, now)
        self._happened(EventKind.OFFERED, channel, member, message.stream)
        session = (member.node.public, message.session)
        self._arbiter.beware(channel, message.stream, member.node.public, now)
        effects = self._rounds.offered(
            channel.name, message.stream, session, opening, as_set(check_pairs(message.ranges)), message.slots, now
        )
        await self._arbiter.perform(effects)

    async def accept(self, channel: OpenChannel, member: Member, message: Accept) -> AcceptReply:
        """A session takes its grant: check what it says the object is, and sign the PUT."""
        self._check_lock(channel, message.lock)
        now = self._clock()

        def take() -> tuple[GrantRecord, ObjectView | Corrupt]:
            grant = self._ledger.find_grant(message.grant)
            asker = (member.node.public, message.session)
            if grant is None or grant.ref.channel != channel.name or (grant.node, grant.session) != asker:
                raise Conflict("this grant is not yours, or not any more", kind="stale-grant")
            try:
                length = self._length(channel, member, message, grant)
            except Corrupt as error:
                return grant, error
            until = now + self._settings.put_life(length or grant.length)
            lease = now + self._settings.lease
            return grant, self._ledger.accept(grant.grant, grant.node, message.digest, lease, until, now, length)

        grant, view = await self._database.together(take)
        if isinstance(view, Corrupt):
            await self._arbiter.fail(grant, view, now)
            await self._arbiter.strike(channel, member.node.public, "bad-header", now)
            raise view
        if view.record.tombstone:
            with self._arbiter.reach.reaching(channel.name):
                await self._keeper.clear_tombstone(channel, grant.ref, grant.grant)
        held, now = view.grant or grant, self._clock()  # clearing may have taken its time
        life = max(int(held.put_until - now), 1)  # a repeated accept gets no later an end
        with self._arbiter.reach.reaching(channel.name, asks=False):
            put = await channel.bucket.sign_put(channel.key(grant.ref), held.length, message.digest, life)
        if view.grant is not None:
            self._rounds.accepted(view.grant)
            self._arbiter.announcements.later(grant.ref)
        return AcceptReply(put=as_message(put, now), lease=int(max(held.lease_until - now, 0.0) * 1000))

    def _length(self, channel: OpenChannel, member: Member, message: Accept, grant: GrantRecord) -> int | None:
        """Of the object that a session says its grant is for, as far as that is known; Corrupt for a wrong header. In
        the transaction of the accept."""
        stream = StreamId(grant.ref.stream)
        self._may_provide(channel, member, stream)
        opening = self._ledger.opening(grant.ref.channel, grant.ref.stream)
        length = None if message.length is UNSET else message.length
        if message.header or (
            opening is not None and header_length(opening.length, grant.ref.number, channel.lock) <= MAX_HEADER
        ):  # only who has the object, or had it, knows its header
            header = decode_header(
                message.header, stream=stream, lock=channel.lock, number=grant.ref.number, opening=opening
            )
            length = header.object_length
        elif (
            length is not None
            and opening is not None
            and length not in Geometry(opening.length, channel.lock).object_lengths(grant.ref.number)
        ):
            raise InvalidInput("the object cannot have so many bytes", length=length)
        kind = channel.bucket.digest_kind
        if len(message.digest) != DIGEST_LENGTH[kind]:
            raise InvalidInput(f"this grant is accepted with a digest of kind {kind}", kind="invalid-input")
        return length

    async def progress(self, channel: OpenChannel, member: Member, message: Progress) -> Ack:
        """More bytes of a granted object went out."""
        self._check_lock(channel, message.lock)
        now = self._clock()
        grant = await self._database.call(
            self._ledger.progress,
            message.grant,
            member.node.public,
            message.sent,
            self._settings.lease,
            self._settings.floor_rate,
            now,
        )
        if effects := self._rounds.progressed(grant, now):
            self._spawn(self._arbiter.perform(effects))
        if now >= self._news.get(grant.ref, 0.0) + PROGRESS_NEWS:
            if len(self._news) > 10_000:
                self._news.clear()
            self._news[grant.ref] = now
            self._arbiter.announcements.later(grant.ref)
        return Ack()

    async def done(self, channel: OpenChannel, member: Member, message: Done) -> Ack:
        """A PUT ended, somehow: look into the bucket, which alone decides."""
        self._check_lock(channel, message.lock)

        def find() -> tuple[GrantRecord, ObjectView]:
            grant = self._ledger.find_grant(message.grant)
            if grant is None or grant.ref.channel != channel.name or grant.node != member.node.public:
                raise Conflict("this grant is not yours", kind="stale-grant")
            return grant, self._ledger.view(grant.ref)

        grant, before = await self._database.together(find)
        error = None if message.error is None else _told(message.error)
        if not grant.accepted_at:
            await self._arbiter.fail(
                grant, error or Corrupt("a grant was reported done that was never accepted"), self._clock()
            )
            return Ack()
        now = self._clock()
        if grant.status not in LIVE and (
            now > grant.put_until + self._settings.put_grace or not self._looks.may(grant.ref, grant.node, now)
        ):
            return Ack()  # nothing can have come of it, or somebody looked just now
        if grant.grant in self._settling:
            return Ack()
        self._settling.add(grant.grant)
        try:
            with self._arbiter.reach.reaching(channel.name):
                await self._arbiter.settle(grant, before, error)
        finally:
            self._settling.discard(grant.grant)
        return Ack()

    async def added(self, channel: OpenChannel, member: Member, message: Added) -> Ack:
        """A daemon now holds these streams: whoever waits for one has it offered."""
        streams = [
            (raw, self._provable(channel, member, message.lock, raw, opening)) for raw, opening in message.streams
        ]
        now = self._clock()
        await self._database.call(self._ledger.hold, channel.name, streams, member.node.public, now)
        self._held(channel.name, len(streams))
        found = await self._database.together(lambda: [self._ledger.wants(channel.name, s, now) for s, _ in streams])
        for (raw, opening), wants in zip(streams, found, strict=True):
            for want in wants:
                self._spawn(self._arbiter.perform(self._rounds.restored(want, channel.lock, opening, now)))
            self._spawn(self._arbiter.perform(self._rounds.came(channel.name, raw, member.node.public, opening, now)))
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

    # -- how ----------------------------------------------------------------------------------------------------

    def _happened(
        self,
        kind: EventKind,
        channel: OpenChannel,
        member: Member,
        stream: bytes,
        number: int | None = None,
        detail: Mapping[str, str] | None = None,
        transfer: bytes | None = None,
    ) -> None:
        """For the journal."""
        told = tuple((detail or {}).items())
        now = self._clock()
        self._note(Event(channel.name, stream, kind, now, member.node.public, number, transfer, detail=told))

    def _waits(self, channel: OpenChannel, member: Member, order: WantOrder, reason: EntrepotError | None) -> None:
        if reason is not None:
            told = {"reason": reason.kind}
            self._happened(EventKind.WAITED, channel, member, order.stream, detail=told, transfer=order.transfer)

    async def _read_only(self, channel: OpenChannel, member: Member, message: Want) -> WantReply:
        """A member who may only read gets what the bucket has, and is told so otherwise."""
        if not member.rights.may_read:
            raise Denied("this node may not ask for this in this channel", kind="no-right")
        now = self._clock()
        opening = await self._database.call(self._ledger.opening, channel.name, message.stream)
        numbers = self._numbers(channel, opening, check_pairs(message.ranges), message.window)
        refs = [ObjectRef(channel.name, channel.lock.id, message.stream, number) for number in numbers]
        views = await self._database.together(partial(self._arbiter.views, refs))
        if opening is None or any(view.record.status is not ObjectStatus.READY for view in views):
            raise Denied(
                "this is not in the bucket, and this node may only read what is there",
                kind="no-right",
                hint="Ask the channel's owner for the right to request.",
            )
        node = member.node.public
        refusal = await self._arbiter.metering.may_read(channel.name, node)
        if refusal is not None:
            return WantReply(opening=opening.encode(), again_in=_LIMIT_AGAIN, reason=reason_of(refusal))
        until = now + self._settings.read_lease
        await self._database.call(self._ledger.lend, refs, [node], until, now)
        states, over = await self._readable(channel, node, views)
        return WantReply(
            opening=opening.encode(),
            objects=tuple(states),
            again_in=int(self._settings.read_lease * 500) if over is None else _LIMIT_AGAIN,
            reason=None if over is None else reason_of(over),
        )

    async def _readable(
        self, channel: OpenChannel, node: str, views: Sequence[ObjectView]
    ) -> tuple[list[ObjectState], EntrepotError | None]:
        """The objects as this node is told of them: signed one by one until it may read no more, and why it may not."""
        states: list[ObjectState] = []
        refusal = None
        for view in views:
            if view.record.status is ObjectStatus.READY:
                refusal = refusal or await self._arbiter.metering.may_read(channel.name, node)
                if refusal is not None:
                    states.append(ObjectState(number=view.record.ref.number, state="seeking"))
                    continue
            states.append(await self._arbiter.announcements.state(channel, view, (node,)))
        return states, refusal

    async def _unreadable(self, channel: OpenChannel, order: WantOrder, refusal: EntrepotError) -> WantReply:
        """The node may read no more now: nothing is uploaded for it, and it hears why, as often as it asks."""
        self._note(
            Event(
                order.channel, order.stream, EventKind.WAITED, self._clock(), order.node, None, order.transfer,
                detail=(("reason", refusal.kind),),
            )
        )  # fmt: skip
        await self._unwant(order.channel, order.stream, order.node)
        opening = await self._database.call(self._ledger.opening, channel.name, order.stream)
        return WantReply(
            opening=None if opening is None else opening.encode(), again_in=_LIMIT_AGAIN, reason=reason_of(refusal)
        )

    async def _unwant(self, channel: str, stream: bytes, node: str) -> bool:
        """Forget the want; False: there was none."""
        gone = await self._database.call(self._ledger.unwant, channel, stream, node)
        self._wanted.get((channel, node), {}).pop(stream, None)
        self._rounds.unwanted(channel, stream, node)
        return gone

    def _numbers(
        self, channel: OpenChannel, opening: Opening | None, ranges: Sequence[tuple[int, int]], window: int
    ) -> tuple[int, ...]:
        if opening is None:
            return ()
        return front(clip(ranges, Geometry(opening.length, channel.lock).object_count), window)

    def _patience(self, order: WantOrder, now: float) -> float:
        """Nobody offers it: ask less and less often, but not past a quarter of the time that is left."""
        left = max(order.until - now, 0.0)
        return min(max(self._settings.again, left / 4), self._settings.again_most)

    async def _note_holder(
        self, channel: OpenChannel, member: Member, stream: bytes, opening: Opening, now: float
    ) -> None:
        key = (channel.name, stream, member.node.public)
        if now < self._holders.get(key, 0.0) + HOLDER_NEWS and self._rounds.opening(*key[:2]) is not None:
            return
        if len(self._holders) > 100_000:
            self._holders.clear()
        self._holders[key] = now
        await self._database.call(self._ledger.hold, channel.name, [(stream, opening)], member.node.public, now)
        self._held(channel.name, 1)

    def _provable(self, channel: OpenChannel, member: Member, lock: bytes, raw: bytes, opening: bytes) -> Opening:
        self._check_lock(channel, lock)
        stream = StreamId(raw)
        self._may_provide(channel, member, stream)
        found = Opening.decode(opening)
        if not found.proves(stream):
            raise Corrupt("this opening does not prove the stream id", kind="corrupt", stream=str(stream))
        Geometry(found.length, channel.lock)  # a length that has no objects under the lock never gets further
        return found

    @staticmethod
    def _may_provide(channel: OpenChannel, member: Member, stream: StreamId) -> None:
        if not member.rights.may_provide(stream.kind):
            raise Denied(f"this node may not provide in {channel.name}", kind="no-right")

    @staticmethod
    def _ref(channel: OpenChannel, message: Missing | Bad) -> ObjectRef:
        Exchange._check_lock(channel, message.lock)
        return ObjectRef(channel.name, channel.lock.id, message.stream, message.number)

    def _allow_want(self, order: WantOrder, now: float) -> None:
        """A node has so many wants at once, and so have all together: each is a round that the hub keeps, seeks for
        and looks at."""
        wanted = self._wanted.setdefault((order.channel, order.node), {})
        if order.stream not in wanted and self._rounds.arranged >= ROUNDS:
            raise RetryLater("too many streams are wanted of this hub just now", kind="busy", retry_after=_BUSY_AGAIN)
        if order.stream not in wanted and len(wanted) >= WANTS:
            for stream in [stream for stream, until in wanted.items() if until <= now]:
                del wanted[stream]
            if len(wanted) >= WANTS:
                raise RetryLater(
                    f"this node wants {WANTS} streams of {order.channel} already",
                    kind="busy",
                    hint="Fetch fewer at once, or stop some of what waits.",
                    retry_after=_BUSY_AGAIN,
                )
        wanted[order.stream] = order.until

    @staticmethod
    def _check_lock(channel: OpenChannel, lock: bytes) -> None:
        if lock != channel.lock.id:
            raise Conflict(
                f"{channel.name} has another schema lock now: {channel.lock.hex}",
                kind="stale-lock",
                hint="Reconnect, so that the current lock is learned.",
                lock=channel.lock.canonical().decode(),
            )


def _told(reason: Reason) -> EntrepotError:
    """Why a holder failed, in its words, for readers to see as such: they are no word of the hub, advise nothing and
    cannot end a get."""
    words = "".join(c if c.isprintable() else " " for c in reason.message[:_TOLD])
    error = reason.error()  # of a kind that this hub knows, whatever the holder called it
    kind = error.kind if isinstance(error, RetryLater) else UNREACHABLE if error.kind == "denied" else "holder-too-slow"
    return RetryLater(f"the holder could not upload it: {words}", kind=kind)
