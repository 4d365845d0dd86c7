"""Comparing what lies in the bucket with what the ledger says, and mending the difference.

A page of the listing is put beside the ledger's page of the same keys. A listing is no snapshot, so a difference is
only a reason to look: what is done is decided by a fresh look under the key's turn, and every change in the bucket is
made on the condition that it is still what was seen. A key with a live grant is left alone.

=========================  ==================================================================================
the bucket holds           and the ledger says
=========================  ==================================================================================
an object                  ready, but another one: looked at (what answers to no grant leaves the bucket)
an object                  nothing: **adopted** if its header proves it and there is room, else **removed**
an object                  a tombstone (a late PUT where create-only is not enforced): a **tombstone again**
nothing                    ready: **lost**, its bytes are free again
nothing                    a tombstone: put there again while a PUT could land, else forgotten
an empty object            nothing: a tombstone that was left behind, **removed**
something that is no key   left alone, and told
=========================  ==================================================================================

After the database was lost (:mod:`.rebuild`) all that proves itself is adopted, whatever the quota, and as long as a
PUT URL of before could land something, an empty object that nobody knows is taken for the tombstone that it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

from entrepot.core.errors import Conflict, Corrupt, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.format import decode_header, decode_opening, header_length
from entrepot.core.geometry import FIXED_HEADER_LENGTH
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.keys import owner_mark_key, parse_object_key
from entrepot_hub.adapters.buckets import Entry, Listing
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.adapters.sql_rebuild import Held, Rebuilding, SqlRebuild
from entrepot_hub.core.keyspace import floor_place
from entrepot_hub.core.ledger import Found, ObjectRef, ObjectStatus, ObjectView, Place, may_land
from entrepot_hub.services.bucket_keeper import BucketKeeper
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.comparison import EXAMPLES, Comparison, Finding

#: Other locks, and things that are no object's, that are looked for at the top of the prefix.
_STRANGERS: Final = 200
#: Keys of a listing that is taken in for the first time which are looked at at the same time.
_LOOKS: Final = 16
#: Channels that are compared at the same time.
_AT_ONCE: Final = 4
#: An unfinished run that has not moved for so many seconds belongs to a hub that is gone.
_PATIENCE: Final = 600.0

type Changed = Callable[[ObjectRef], Awaitable[None]]


class Reconciler:
    """Compares page by page. ``changed`` is told of every object whose state was mended, so that readers hear of it;
    ``page``: keys that are compared at once."""

    def __init__(
        self,
        database: Database,
        ledger: SqlLedger,
        channels: Channels,
        keeper: BucketKeeper,
        clock: Callable[[], float],
        changed: Changed | None = None,
        page: int = 1000,
    ) -> None:
        self._database = database
        self._ledger = ledger
        # A ledger in memory (the simulator's) is never lost.
        self._lost = ledger if isinstance(ledger, SqlRebuild) else None
        self._channels = channels
        self._keeper = keeper
        self._clock = clock
        self._changed = changed
        self._page_size = page

    async def due(self, period: float) -> int:
        """Run every channel whose last run began ``period`` seconds ago; how many were run. A run that a dead hub left
        goes on where it stopped. Raises what kept one of them from it, once all others were run."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(name: str) -> bool | EntrepotError:
            async with turns:
                try:
                    return await self._run(name, period)
                except EntrepotError as error:
                    return error  # told below: a bucket that does not answer keeps no other channel from its run

        names = await self._channels.names()
        outcomes = await asyncio.gather(*(one(name) for name in names))
        failed = [outcome for outcome in outcomes if isinstance(outcome, EntrepotError)]
        if failed:
            raise failed[0]
        return sum(outcome is True for outcome in outcomes)

    async def _run(self, name: str, period: float) -> bool:
        """The channel's run, if one is due: whenever it is asked for, where objects may land that the ledger lost."""
        rebuilt = await self.rebuild(name)
        if await self._held(name) is not None:
            period = 0.0
        run = (
            None
            if rebuilt
            else await self._database.call(self._ledger.claim_run, name, self._clock(), period, _PATIENCE)
        )
        if run is None:
            return rebuilt
        counts, cursor = Counter({k: int(v) for k, v in run.counts.items() if k != "at"}), run.cursor
        while run.ended_at is None:
            page = await self.step(name, cursor)
            counts.update(page.counts, listed=page.listed, bytes=page.bytes, agreed=page.agreed)
            cursor, kept = page.cursor, {key: float(value) for key, value in counts.items()}
            run = await self._database.call(
                self._ledger.note_run, run, cursor, kept, self._clock(), ended=cursor is None
            )
        return True

    async def rebuild(self, name: str, told: Callable[[Rebuilding], None] = lambda _: None) -> bool:
        """Take in the listing of a channel whose ledger was lost, from where that stopped; False if there is nothing
        to do. ``told``: of every page. Raises as :meth:`step`; what was done stays done."""
        if self._lost is None:
            return False
        state = await self._database.call(self._lost.rebuilding, name)
        if state is None or state.done:
            return False
        while not state.done:
            page = await self.step(name, state.cursor, rebuilding=True)
            counts = Counter(state.counts)
            counts.update(page.counts, listed=page.listed, bytes=page.bytes, agreed=page.agreed)
            state = await self._database.call(self._lost.note_rebuild, name, page.cursor, dict(counts), self._clock())
            told(state)
        return True

    async def step(
        self,
        name: str,
        cursor: str | None = None,
        *,
        dry_run: bool = False,
        pages: int = 1,
        rebuilding: bool = False,
    ) -> Comparison:
        """Compare the next pages after ``cursor`` and mend what differs, unless it is a ``dry_run``. ``rebuilding``:
        everything that proves itself is taken in, whatever the quota.

        Raises Denied where the hub may not list the bucket, and what the bucket raises; what was done stays done, and
        the step may be repeated.
        """
        channel = await self._channels.channel(name)
        result = Comparison(channel=name, dry_run=dry_run)
        if cursor is None:
            await self._strangers(channel, result)
        for _ in range(pages):
            cursor = await self._page(channel, cursor, result, rebuilding=rebuilding)
            if cursor is None:
                break
        result.cursor = cursor
        return result

    async def _page(
        self, channel: OpenChannel, cursor: str | None, result: Comparison, *, rebuilding: bool
    ) -> str | None:
        listing = await self._listed(channel, _top(channel), cursor, self._page_size)
        entries: dict[Place, Entry] = {}
        for entry in listing.entries:
            result.listed += 1
            result.bytes += entry.length
            try:
                _, stream, number = parse_object_key(channel.record.bucket.prefix, entry.key)
            except InvalidInput:
                _tell(result, entry.key, "foreign", entry.length)
                continue
            entries[stream.raw, number] = entry
        after = None if cursor is None else _floor(channel, cursor)
        through = None if listing.next is None else _floor(channel, listing.next)
        known = await self._known(channel, after, through)
        places = iter(sorted(entries.keys() | known.keys()))

        async def work() -> None:
            for place in places:
                await self._compare(channel, place, entries.get(place), known.get(place), result, rebuilding=rebuilding)

        if not rebuilding:
            await work()
            return listing.next
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_LOOKS):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return listing.next

    @staticmethod
    async def _listed(channel: OpenChannel, prefix: str, after: str | None, limit: int) -> Listing:
        """A page of the listing, if it is one: whoever answers with what came before would be listened to for ever."""
        listing = await channel.bucket.list(prefix, after, limit)
        keys = [entry.key for entry in listing.entries]
        ends = [key for key in (after, *keys, listing.next) if key is not None]
        if len(keys) > limit or ends != sorted(ends) or (after is not None and after in (*keys, listing.next)):
            raise RetryLater(
                "the bucket's listing goes in circles",
                kind="bucket-unreachable",
                hint="Its provider, or what stands before it, does not list as it should.",
                channel=channel.name,
            )
        return listing

    async def _known(self, channel: OpenChannel, after: Place | None, through: Place | None) -> dict[Place, ObjectView]:
        known: dict[Place, ObjectView] = {}
        while True:
            views = await self._database.call(
                self._ledger.charted, channel.name, channel.lock.id, after, through, self._page_size
            )
            known.update(((view.record.ref.stream, view.record.ref.number), view) for view in views)
            if len(views) < self._page_size:
                return known
            last = views[-1].record.ref
            after = last.stream, last.number

    async def _compare(
        self,
        channel: OpenChannel,
        place: Place,
        entry: Entry | None,
        view: ObjectView | None,
        result: Comparison,
        *,
        rebuilding: bool,
    ) -> None:
        ref = ObjectRef(channel.name, channel.lock.id, *place)
        key = channel.key(ref)
        if view is not None and view.grant is not None:
            result.agreed += 1  # under way: its grant decides
            return
        status = ObjectStatus.ABSENT if view is None else view.record.status
        match status:
            case ObjectStatus.EVICTING:
                result.agreed += 1  # leaving: its eviction decides
            case ObjectStatus.READY if entry is None or view is None or entry.etag != view.record.etag:
                await self._look(ref, key, entry, result, 0 if view is None else view.record.size)
            case ObjectStatus.RESERVED if entry is not None and entry.length > 0:
                await self._look(ref, key, entry, result)
            case ObjectStatus.TOMBSTONE if entry is None or entry.length > 0:
                await self._hold(channel, ref, key, entry, result)
            case ObjectStatus.ABSENT if entry is not None:
                await self._stray(channel, ref, key, result, rebuilding=rebuilding)
            case _:
                result.agreed += 1

    async def _look(self, ref: ObjectRef, key: str, entry: Entry | None, result: Comparison, size: int = 0) -> None:
        """``size``: what the ledger says, for what is not in the listing."""
        if result.dry_run:
            _tell(result, key, "differs" if entry is not None else "lost", size if entry is None else entry.length)
            return
        before = (await self._database.call(self._ledger.view, ref)).record
        after = (await self._keeper.look(ref)).view.record
        if (after.status, after.etag) == (before.status, before.etag):
            result.agreed += 1
            return
        found = "found" if after.status is ObjectStatus.READY else "lost" if entry is None else "replaced"
        _tell(result, key, found, after.size if after.status is ObjectStatus.READY else before.size)
        await self._tell_changed(ref)

    async def _hold(
        self, channel: OpenChannel, ref: ObjectRef, key: str, entry: Entry | None, result: Comparison
    ) -> None:
        """The tombstone that should hold a key does not: put it back while a PUT could land, else forget it."""
        length = 0 if entry is None else entry.length
        if result.dry_run:
            _tell(result, key, "tombstone", length)
            return
        async with self._keeper.turn(ref):
            view = await self._database.call(self._ledger.view, ref)
            now = self._clock()
            if view.record.status is not ObjectStatus.TOMBSTONE or view.grant is not None:
                return
            lands = may_land(view.record, now, self._keeper.grace)
            if lands:
                with suppress(Conflict):  # it changed under our hands: the next run meets it again
                    await channel.bucket.put_tombstone(key, None if entry is None else entry.etag)
        if not lands:
            await self._keeper.clear_tombstone(channel, ref)
        _tell(result, key, "tombstone", length)

    async def _stray(
        self, channel: OpenChannel, ref: ObjectRef, key: str, result: Comparison, *, rebuilding: bool
    ) -> None:
        async with self._keeper.turn(ref):
            view = await self._database.call(self._ledger.view, ref)
            if view.record.status is not ObjectStatus.ABSENT or view.grant is not None:
                result.agreed += 1  # somebody wants it just now
                return
            head = await channel.bucket.head(key)
            if head is None:
                return
            held = await self._held(ref.channel)
            if head.length == 0 and held is not None and self._clock() <= held.until + self._keeper.grace:
                if not result.dry_run:
                    await self._database.call(self._ledger.entomb, ref, held.until)
                _tell(result, key, "tombstone", 0)
                return
            opening = await self._proved(channel, ref, key, head.etag, head.length)
            if opening is not None:
                digest = head.digest if channel.bucket.binds.head_digest else None
                found = Found(head.length, head.etag, digest)
                if result.dry_run:
                    usage = await self._database.call(self._ledger.usage, ref.channel)
                    fits = head.length <= usage.quota - usage.charged + (0 if held is None else held.size)
                    _tell(result, key, "adopted" if fits else "removed", head.length)
                    return
                adopt = partial(self._ledger.adopt, beyond=True) if rebuilding else self._ledger.adopt
                if await self._database.call(adopt, ref, found, opening, self._clock()) is not None:
                    _tell(result, key, "adopted", head.length)
                    await self._tell_changed(ref)
                    return
            if not result.dry_run:
                with suppress(Conflict):  # it changed under our hands: the next run meets it again
                    await channel.bucket.delete(key, head.etag)
            _tell(result, key, "removed", head.length)

    async def _held(self, name: str) -> Held | None:
        """What is held back in a channel whose ledger was lost."""
        return None if self._lost is None else await self._database.call(self._lost.held, name)

    async def _proved(self, channel: OpenChannel, ref: ObjectRef, key: str, etag: str, length: int) -> Opening | None:
        """The opening of the stream, if the object's header proves that it is this object, whole."""
        stream = StreamId(ref.stream)
        try:
            fixed = await channel.bucket.read(key, 0, FIXED_HEADER_LENGTH, etag)
            opening = decode_opening(fixed, stream=stream, lock=channel.lock, number=ref.number)
            size = header_length(opening.length, ref.number, channel.lock)
            data = await channel.bucket.read(key, 0, size, etag)
            header = decode_header(data, stream=stream, lock=channel.lock, number=ref.number, opening=opening)
        except (Corrupt, NotFound, Conflict):
            return None
        return opening if header.object_length == length else None

    async def _strangers(self, channel: OpenChannel, result: Comparison) -> None:
        """What lies beside this channel's objects under the prefix and is no channel's: other locks, other things.

        One request for each, by leaping over whatever shares the first part of a key.
        """
        prefix = channel.record.bucket.prefix
        start, after = (f"{prefix}/" if prefix else ""), None
        locks = await self._channels.locks_on(channel.record.bucket.id)
        for _ in range(_STRANGERS):
            listing = await self._listed(channel, start, after, 1)
            if not listing.entries:
                return
            entry = listing.entries[0]
            first, slash, _ = entry.key.removeprefix(start).partition("/")
            after = f"{start}{first}/~" if slash else entry.key
            if entry.key == owner_mark_key(prefix) or first in locks:
                continue
            # Of many keys with one beginning only one was asked for: their bytes are not known.
            _tell(result, f"{start}{first}{slash}", "foreign", 0 if slash else entry.length)
            if listing.next is None:
                return

    async def _tell_changed(self, ref: ObjectRef) -> None:
        if self._changed is not None:
            await self._changed(ref)


def _tell(result: Comparison, key: str, found: str, length: int) -> None:
    result.counts[found] = result.counts.get(found, 0) + 1
    if len(result.findings) < EXAMPLES:
        result.findings.append(Finding(key=key, found=found, length=length))


def _floor(channel: OpenChannel, key: str) -> Place:
    return floor_place(key.removeprefix(_top(channel)))


def _top(channel: OpenChannel) -> str:
    """What the keys of the channel's objects begin with."""
    prefix = channel.record.bucket.prefix
    return f"{prefix}/{channel.lock.id.hex()}/" if prefix else f"{channel.lock.id.hex()}/"
