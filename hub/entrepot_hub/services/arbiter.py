"""Carries out what the rounds decide, and what the hub does of its own accord.

Decisions are made by the pure core (:mod:`entrepot_hub.core.rounds`, the rules of :mod:`entrepot_hub.core.ledger`); the
arbiter asks the ledger, looks into the bucket, signs and publishes, and tells the rounds what came of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from msgspec import UNSET

from entrepot.core import subjects
from entrepot.core.errors import Corrupt, Denied, EntrepotError, NotFound, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.messages import Grant, Message, Seek, State
from entrepot_hub.adapters.database import Database
from entrepot_hub.core.allotment import ROOM_PAUSE
from entrepot_hub.core.effects import (
    Announce,
    Effect,
    Introduce,
    MakeRoom,
    Propose,
    Review,
    SendGrant,
    SendSeek,
    TakeOver,
)
from entrepot_hub.core.journal import Event, EventKind, Note, of_grant, of_record, unheard
from entrepot_hub.core.ledger import (
    LIVE,
    GrantOutcome,
    GrantRecord,
    GrantStatus,
    Ledger,
    ObjectRecord,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    Proposal,
    Refusal,
)
from entrepot_hub.core.limits import WORDS
from entrepot_hub.core.rounds import Rounds
from entrepot_hub.core.transitions import STRIKE_WINDOW
from entrepot_hub.core.wishes import Front
from entrepot_hub.services.announcements import Announcements
from entrepot_hub.services.background import Lanes
from entrepot_hub.services.bucket_keeper import BucketKeeper
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.metering import Metering
from entrepot_hub.services.reach import TRY, UNREACHABLE, Reach
from entrepot_hub.services.urls import ReadUrls

type Publish = Callable[[str, Message], None]
type Spawn = Callable[[Coroutine[Any, Any, None]], object]

#: A reporter with so many strikes in an hour has nothing looked into for that long, an uploader comes last.
STRIKES = 3
#: Streams of which it is remembered that a limit keeps them from being uploaded.
_REFUSALS = 10_000
#: Grants that the ledger is asked about in one transaction.
_REVIEWED = 256


class Arbiter:
    """One hub instance's. ``publish(subject, message)`` sends without waiting and may lose; ``spawn`` runs in the
    background. ``note`` keeps the journal of streams. ``woken`` is set whenever the rounds' timer may have moved."""

    def __init__(
        self,
        *,
        instance: str,
        database: Database,
        ledger: Ledger,
        channels: Channels,
        keeper: BucketKeeper,
        metering: Metering,
        rounds: Rounds,
        settings: ExchangeSettings,
        clock: Callable[[], float],
        publish: Publish,
        spawn: Spawn,
        note: Note = unheard,
    ) -> None:
        self.instance = instance
        self.note = note
        self.rounds = rounds
        self.settings = settings
        self.metering = metering
        self.woken = asyncio.Event()
        self._database = database
        self._ledger = ledger
        self._channels = channels
        self._keeper = keeper
        self._clock = clock
        self._publish = publish
        self._spawn = spawn
        self.announcements = Announcements(
            database=database,
            ledger=ledger,
            channels=channels,
            metering=metering,
            rounds=rounds,
            urls=ReadUrls(clock, settings.get_url, metering, note),
            settings=settings,
            clock=clock,
            publish=publish,
            spawn=spawn,
        )
        self._lapsing = Lanes(spawn)
        self._sweeping = Lanes(spawn, wide=4)
        self._mute: dict[tuple[str, str], float] = {}
        self._distrust: dict[tuple[str, str], float] = {}
        self._making_room: set[str] = set()
        self._refusals: dict[tuple[str, bytes], tuple[EntrepotError, float]] = {}
        self.reach = Reach(clock)

    async def restore(self) -> None:
        """Begin the rounds of all wants that the ledger kept, after a start."""
        after, now = 0, self._clock()
        failed: EntrepotError | None = None
        while page := await self._database.call(self._ledger.open_wants, now, None, after, 500):
            for cursor, want in page:
                after = cursor
                try:
                    channel = await self._channels.channel(want.order.channel)
                except NotFound:
                    continue
                except EntrepotError as error:  # its nodes ask again; the others' wants are begun now
                    failed = failed or error
                    continue
                if want.order.lock != channel.lock.id:
                    continue
                opening = await self._database.call(self._ledger.opening, channel.name, want.order.stream)
                await self.perform(self.rounds.restored(want, channel.lock, opening, now))
        if failed is not None:
            raise failed

    async def tick(self) -> float | None:
        """Let time pass for the rounds; when they want it next."""
        await self._carry_out(self.rounds.tick(self._clock()))
        return self.rounds.timer()

    async def lapse(self) -> int:
        """End the leases that are over; how many. What was uploaded all the same counts, the rest passes on: that is
        found out in the background, in every channel for itself."""
        lapsed = await self._database.call(self._ledger.lapse, self._clock())
        for grant in lapsed:
            self.metering.metrics.lapsed(grant.ref.channel)
            slow = RetryLater("the holder was too slow or went away", kind="holder-too-slow", node=grant.node)
            self._lapsing.put(grant.ref.channel, partial(self._after, grant, slow))
        return len(lapsed)

    async def sweep(self) -> int:
        """Bring to rest what a crash or a lost message left: reservations, evictions, tombstones. How many are looked
        after from now on, in the background and in every channel for itself."""
        begun = 0
        for name in await self._channels.names():
            if self._sweeping.busy(name):
                continue
            stale = await self._database.call(self._ledger.stale, self._clock(), self.settings.put_grace, 100, name)
            for record in stale:
                begun += self._sweeping.put(name, partial(self._finish, record))
        return begun

    async def _finish(self, record: ObjectRecord) -> None:
        try:
            with self.reach.reaching(record.ref.channel):
                view = await self._keeper.finish(record)
        except RetryLater as error:
            if error.kind == UNREACHABLE:
                self._sweeping.clear(record.ref.channel)  # no use in asking for each of the others: next time
            raise
        if view.record.status is ObjectStatus.READY:
            await self.perform(self.rounds.arrived(record.ref, None, self._clock()))

    async def sessions_moved(self, came: Collection[tuple[str, str]], left: Collection[tuple[str, str]]) -> None:
        """Sessions are (back) here: a planned reconnect costs them nothing. The connections of others ended: their
        leases are short now. Those that upload nothing cost no more than one look together."""
        now = self._clock()
        grace, lease, here = now + self.settings.disconnect_grace, now + self.settings.lease, frozenset(came)

        def move() -> None:
            live = self._ledger.uploading((*came, *left))
            for node, session in sorted(live):  # in the same order on every hub: each locks its grants
                if (node, session) in here:
                    self._ledger.restore(node, session, lease, now)
                else:
                    self._ledger.shorten(node, session, grace, now)

        await self._database.together(move)

    async def expelled(self, node: str, channel: str | None) -> None:
        """A node lost rights, in this channel or (None) in all: what it was uploading passes on at once, and nothing is
        uploaded for it."""
        grants, wanted = self.rounds.expelled(node, channel)
        for name, stream in wanted:
            await self._database.call(self._ledger.unwant, name, stream, node)
        for grant in grants:
            error = Denied("the holder may not provide any more", kind="revoked", node=node)
            ended = await self._database.call(
                self._ledger.end_grant, grant.grant, GrantStatus.CANCELLED, error.kind, self._clock()
            )
            if ended is not None:
                await self._after(ended, error)

    async def settle(self, grant: GrantRecord, before: ObjectView, error: EntrepotError | None) -> None:
        """Look where a grant's object, which was as ``before``, should be; it is ready, or the grant has failed."""
        now = self._clock()
        look = await self._keeper.look(grant.ref)
        if look.view.record.status is ObjectStatus.READY:
            await self._arrived(before, look.view.record, grant)
            return
        if error is not None and error.kind == UNREACHABLE:
            self.reach.failed(grant.ref.channel, grant.ref.stream, error.message)
        nothing = error or Corrupt("an upload was reported done, but the bucket does not hold it", kind="corrupt")
        if look.condemned is not None:
            # The ledger took the grant for done before the header was read: only the rounds still count on it.
            await self.condemned(look.condemned, now)
            self.note(of_grant(EventKind.FAILED, grant, now, {"reason": nothing.kind}))
            await self.perform(self.rounds.ended(grant, nothing, now))
            return
        await self.fail(grant, nothing, now)

    async def _arrived(self, before: ObjectView, record: ObjectRecord, grant: GrantRecord) -> None:
        """A look for a grant's sake found its object ready."""
        now = self._clock()
        self.reach.arrived(grant.ref.channel, grant.ref.stream)
        bringer = _bringer(before, record, grant)
        if bringer is not None:
            self.note(of_grant(EventKind.UPLOADED, bringer, now, seconds=max(now - bringer.accepted_at, 0.0)))
        elif before.record.status is not ObjectStatus.READY:
            self.note(of_record(EventKind.UPLOADED, record, now))
        await self.perform(self.rounds.arrived(grant.ref, bringer, now))

    async def perform(self, effects: Iterable[Effect]) -> None:
        """Carry out what the rounds decided, and what follows from it; then have the timer looked at."""
        await self._carry_out(effects)
        self.woken.set()

    async def _carry_out(self, effects: Iterable[Effect]) -> None:
        waiting = deque(effects)
        try:
            while waiting:
                waiting.extend(await self._carry(waiting.popleft()))
        except BaseException:
            for effect in waiting:  # what was proposed besides is proposed again
                if isinstance(effect, Propose):
                    self.rounds.unjudged(effect.proposals, self._clock())
                elif isinstance(effect, TakeOver):
                    self.rounds.unjudged((effect.proposal,), self._clock())
            raise

    async def _carry(self, effect: Effect) -> list[Effect]:
        """Carry out one decision; what follows from it."""
        match effect:
            case SendSeek():
                self._send_seek(effect)
            case Propose(proposals):
                proposals = self._within_reach(proposals)
                try:
                    proposals = await self._within_limits(proposals)
                    outcomes = await self._database.call(self._ledger.grant, proposals, self._clock())
                except BaseException:
                    self.rounds.unjudged(proposals, self._clock())
                    raise
                self._note_outcomes(outcomes)
                return self.rounds.judged(outcomes, self._clock())
            case TakeOver(grant, proposal):
                return await self._take_over(grant, proposal)
            case SendGrant(grant, opening):
                self._send_grant(await self._channels.channel(grant.ref.channel), grant, opening)
            case Announce(refs):
                for ref in refs:
                    if not self.rounds.is_ready(ref):
                        self.announcements.later(ref)
                await self.announcements.now([ref for ref in refs if self.rounds.is_ready(ref)])
            case Introduce(name, stream, opening):
                # The ledger learned it with its holder.
                lock = (await self._channels.channel(name)).lock
                self.announcements.tell(name, State(lock=lock.id, stream=stream, objects=(), opening=opening.encode()))
            case MakeRoom():
                self._spawn(self._make_room(effect))
            case Review(grants):
                return await self._review(grants)
        return []

    async def _review(self, grants: tuple[GrantRecord, ...]) -> list[Effect]:
        first, rest = grants[:_REVIEWED], grants[_REVIEWED:]
        views = await self._database.together(partial(self.views, [grant.ref for grant in first]))
        following = self.rounds.reviewed(first, views, self._clock())
        return [*following, Review(rest)] if rest else following

    async def _take_over(self, grant: GrantRecord, proposal: Proposal) -> list[Effect]:
        """End the grant of a slow holder, and put what another is to do instead to the ledger. What the slow one's PUT
        could still do is what that of a failed-over grant can: land first, which is as well, or meet the object."""
        now, reason = self._clock(), "holder-too-slow"
        try:
            ended = await self._database.call(self._ledger.end_grant, grant.grant, GrantStatus.CANCELLED, reason, now)
        except BaseException:
            self.rounds.unjudged((proposal,), self._clock())
            raise
        if ended is None:  # it has brought its object, or ended otherwise: that is heard apart
            self.rounds.unjudged((proposal,), self._clock())
            return []
        self.rounds.taken_over(ended, now)
        self.note(of_grant(EventKind.FAILED, ended, now, {"reason": reason}))
        opening = self.rounds.opening(grant.ref.channel, grant.ref.stream)
        following: list[Effect] = [Propose((proposal,))]
        return following if opening is None else [SendGrant(ended, opening), *following]

    def _note_outcomes(self, outcomes: Sequence[GrantOutcome]) -> None:
        now = self._clock()
        for outcome in outcomes:
            if outcome.refusal is None and outcome.grant is not None:
                self.note(of_grant(EventKind.GRANTED, outcome.grant, now))
            elif outcome.refusal is Refusal.OVER:
                ref, size = outcome.proposal.ref, outcome.proposal.size
                transfer = outcome.proposal.transfer
                self.note(
                    Event(ref.channel, ref.stream, EventKind.NO_ROOM, now, None, ref.number, transfer, bytes=size)
                )

    def _within_reach(self, proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
        """What may be granted of these now; the rest, for a bucket that refuses the hub, is proposed again later."""
        passed = self.reach.open_to(proposals)
        if len(passed) < len(proposals):
            held = [proposal for proposal in proposals if proposal not in passed]
            self.rounds.unjudged(held, self._clock(), TRY)
        return passed

    async def _within_limits(self, proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
        """What limits and budget let pass. The rest is proposed again later, and to other nodes where only one node
        has used up what it may. Each stream of each channel is judged for itself."""
        of: dict[tuple[str, bytes], list[Proposal]] = {}
        for proposal in proposals:
            of.setdefault((proposal.ref.channel, proposal.ref.stream), []).append(proposal)
        passed: set[bytes] = set()
        for together in of.values():
            passed.update(proposal.grant for proposal in await self._judged_by_limits(tuple(together)))
        return tuple(proposal for proposal in proposals if proposal.grant in passed)

    async def _judged_by_limits(self, proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
        """The same for proposals of one stream."""
        ref = proposals[0].ref
        opening = await self._opening_where_limited(ref)
        refused = await self.metering.refused(proposals, None if opening is None else opening.length)
        if not refused:
            self._refusals.pop((ref.channel, ref.stream), None)
            return proposals
        now = self._clock()
        for each in refused:
            self.metering.metrics.not_granted(ref.channel, "limit")
            pause = ROOM_PAUSE * 20 if each.nobody else self.settings.exclusion
            if len(self._refusals) >= _REFUSALS:
                self._refusals.clear()
            self._refusals[ref.channel, ref.stream] = (each.error, now + pause)
            if not each.nobody:
                self.rounds.excluded(ref.channel, ref.stream, each.proposal.node, now)
        gone = [each.proposal for each in refused]
        self.rounds.unjudged(gone, now)
        if any(each.nobody and each.error.data.get("limit") == WORDS["objects"] for each in refused):
            # A cache that is full by number makes room as one that is full by bytes does.
            need = sum(proposal.size for proposal in gone)
            self._spawn(self._make_room(MakeRoom(ref.channel, need, need)))
        return tuple(proposal for proposal in proposals if proposal not in gone)

    async def _opening_where_limited(self, ref: ObjectRef) -> Opening | None:
        limits = (await self.metering.standing(ref.channel)).limits.values()
        if all(each.stream is None for each in limits):
            return None
        return await self._database.call(self._ledger.opening, ref.channel, ref.stream)

    def refusal(self, channel: str, stream: bytes, now: float) -> EntrepotError | None:
        """Which limit keeps a stream from being uploaded now, if one does."""
        error, until = self._refusals.get((channel, stream), (None, 0.0))
        return error if now < until else None

    def reason(self, channel: str, stream: bytes, now: float, node: str | None = None) -> EntrepotError | None:
        """Why the stream's unmet objects are still unmet: what :meth:`Rounds.reason` says, but that the bucket cannot
        be used comes before all that may follow from it, such as a bucket in which no room can be made."""
        told = self.rounds.reason(channel, stream, now, node)
        if told is not None and told.kind == "no-holder":
            return told
        return self.reach.reason(channel, stream, now) or told

    async def within_quota(self) -> int:
        """Have objects leave where a channel holds more than its quota, which was lowered; in how many channels."""
        over = 0
        for name in await self._channels.names():
            usage = await self._database.call(self._ledger.usage, name)
            if usage.charged > usage.quota:
                over += 1
                need = usage.charged - usage.quota
                self._spawn(self._make_room(MakeRoom(name, need, need), "lower-quota"))
        return over

    def views(self, refs: Sequence[ObjectRef]) -> list[ObjectView]:
        """How the ledger sees these objects; for :meth:`Database.together`."""
        return [self._ledger.view(ref) for ref in refs]

    async def _make_room(self, plea: MakeRoom, because: str = "room") -> None:
        name = plea.channel
        if name in self._making_room:
            return
        self._making_room.add(name)
        try:
            gone, trouble = await self._evict(name, 0, plea.wish, None, ())
            short = plea.need - sum(record.size for record in gone)
            lacked: list[ObjectRecord] = []
            if short > 0 and not trouble:
                lacked, trouble = await self._evict(name, short, 0, plea.head, plea.stalled)
        finally:
            self._making_room.discard(name)
        effects: list[Effect] = []
        why = {"because": because} | ({} if plea.head is None else {"for": plea.head.stream.hex()})
        for record in (*gone, *lacked):
            wanted = {"wanted": "yes" if record in lacked else "no"}
            self.note(replace(of_record(EventKind.EVICTED, record, self._clock(), why | wanted), node=None))
        for record in gone:
            effects += self.rounds.vanished(record.ref, self._clock(), lacked=False)
        for record in lacked:
            effects += self.rounds.vanished(record.ref, self._clock())
        if len(gone) + len(lacked) > len(trouble):
            effects += self.rounds.roomier(name, self._clock(), len(gone) + len(lacked) - len(trouble))
        await self.perform(effects)
        if trouble:
            raise trouble[0]

    async def _evict(
        self, channel: str, need: int, wish: int, head: Front | None, stalled: Sequence[Front]
    ) -> tuple[list[ObjectRecord], list[EntrepotError]]:
        """Have objects leave the bucket; those that leave, as they were, and what kept some of them there for now: a
        bucket that does not answer is no mistake of ours, and the sweep meets them again."""
        choose = partial(self._ledger.evict_begin, wish=wish, head=head, stalled=stalled)
        leaving = await self._database.call(choose, channel, need, self._clock(), self.settings.put_grace)

        async def finish(record: ObjectRecord) -> EntrepotError | None:
            try:
                with self.reach.reaching(channel):
                    await self._keeper.finish(record)
            except EntrepotError as error:
                return error
            return None

        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(finish(record)) for record in leaving]
        return leaving, [error for end in ends if (error := end.result()) is not None]

    async def _after(self, grant: GrantRecord, error: EntrepotError) -> None:
        """A grant ended in the ledger already: look whether its object is there all the same."""
        self.rounds.silent(grant, self._clock())
        if grant.accepted_at:
            before = await self._database.call(self._ledger.view, grant.ref)
            try:
                with self.reach.reaching(grant.ref.channel):
                    look = await self._keeper.look(grant.ref)
            except EntrepotError as trouble:  # the grant has ended all the same; the sweep looks for its object
                self.note(of_grant(EventKind.FAILED, grant, self._clock(), {"reason": trouble.kind}))
                raise
            if look.view.record.status is ObjectStatus.READY:
                await self._arrived(before, look.view.record, grant)
                return
            if look.condemned is not None:
                await self.condemned(look.condemned, self._clock())
        self.note(of_grant(EventKind.FAILED, grant, self._clock(), {"reason": error.kind}))
        await self.perform(self.rounds.ended(grant, error, self._clock()))

    async def look_again(self, before: ObjectRecord) -> ObjectRecord:
        """Look where a ready object should be; tell the rounds if it is not that one any more."""
        ref = before.ref
        with self.reach.reaching(ref.channel):
            look = await self._keeper.look(ref)
        if look.condemned is not None:
            await self.condemned(look.condemned, self._clock())
        after = look.view.record
        if after.status is not ObjectStatus.READY or after.etag != before.etag:
            self._spawn(self.perform(self.rounds.vanished(ref, self._clock())))
        return after

    async def mended(self, ref: ObjectRef) -> None:
        """The ledger was set right about an object: readers hear how it stands."""
        view = await self._database.call(self._ledger.view, ref)
        now = self._clock()
        if view.record.status is ObjectStatus.READY:
            await self.perform(self.rounds.arrived(ref, None, now))
        else:
            await self.perform(self.rounds.vanished(ref, now))

    async def fail(self, grant: GrantRecord, error: EntrepotError, now: float) -> None:
        """End a live grant as failed and pass its object on."""
        ended = await self._database.call(self._ledger.end_grant, grant.grant, GrantStatus.FAILED, error.kind, now)
        if ended is not None:
            self.note(of_grant(EventKind.FAILED, ended, now, {"reason": error.kind}))
            await self.perform(self.rounds.ended(ended, error, now))

    def _send_seek(self, effect: SendSeek) -> None:
        where = "channel" if effect.nodes is None else "holders"
        count = 1 if effect.nodes is None else len(effect.nodes)
        self.note(
            Event(
                effect.channel, effect.stream, EventKind.SOUGHT, self._clock(), detail=(("among", where),), count=count
            )
        )
        seek = Seek(lock=effect.lock.id, stream=effect.stream, hub=self.instance, sample=effect.sample)
        if effect.nodes is None:
            self._publish(subjects.channel_seek(effect.channel), seek)
        for node in effect.nodes or ():
            self._publish(subjects.node_seek(node), seek)

    def _send_grant(self, channel: OpenChannel, grant: GrantRecord, opening: Opening) -> None:
        lease = max(grant.lease_until - self._clock(), 0.0)
        message = Grant(
            lock=grant.ref.lock,
            stream=grant.ref.stream,
            number=grant.ref.number,
            grant=grant.grant,
            opening=opening.encode(),
            lease=int(lease * 1000),
            digest=channel.bucket.digest_kind,
            transfer=UNSET if grant.transfer is None else grant.transfer,
            stop=UNSET if grant.status in LIVE else True,
        )
        self._publish(subjects.grant(grant.node, grant.session), message)

    async def condemned(self, record: ObjectRecord, now: float) -> None:
        """An object was bad: its uploader gets a strike and is not asked for the stream for a while. After so many
        strikes in an hour it is granted, for that long, only what nobody else in the channel offers."""
        self.note(of_record(EventKind.CONDEMNED, record, now))
        if record.uploader is not None:
            self.rounds.excluded(record.ref.channel, record.ref.stream, record.uploader, now)
            self.metering.metrics.struck(record.ref.channel, "bad-object")
            channel, node = record.ref.channel, record.uploader
            count = await self._database.call(self._ledger.strike, channel, node, "bad-object", now)
            if count >= STRIKES:
                self._distrust[channel, node] = now + STRIKE_WINDOW

    def beware(self, channel: OpenChannel, stream: bytes, node: str, now: float) -> None:
        """Have a node that brought bad objects too often come last in the round of a stream that it offers."""
        until = self._distrust.get((channel.name, node), 0.0)
        if now < until:
            self.rounds.distrusted(channel.name, stream, node, until)

    async def strike(self, channel: OpenChannel, node: str, reason: str, now: float) -> None:
        """Note a misbehaviour; whose reports were false too often is not listened to for a while."""
        self.metering.metrics.struck(channel.name, reason)
        count = await self._database.call(self._ledger.strike, channel.name, node, reason, now)
        if reason == "false-report" and count >= STRIKES:
            self._mute[channel.name, node] = now + STRIKE_WINDOW

    def muted(self, channel: OpenChannel, node: str, now: float) -> bool:
        """Whether the node's reports were false too often to be looked into now."""
        return now < self._mute.get((channel.name, node), 0.0)


def _bringer(before: ObjectView, after: ObjectRecord, grant: GrantRecord) -> GrantRecord | None:
    """The grant that brought an object which a look found ready: none if it was ready before, or if another node did.
    What is said again of an old upload tells nothing of how its node does now."""
    if before.record.status is ObjectStatus.READY:
        return None
    able = (each for each in (grant, before.grant) if each is not None and each.node == after.uploader)
    return next(able, None)
