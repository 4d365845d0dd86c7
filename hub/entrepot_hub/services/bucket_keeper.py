"""What the hub does in the bucket itself: look what arrived, make room, judge what is called bad.

Order is everything here. Bytes are released in the ledger only after the bucket is known to hold nothing; a key whose
PUT URL could still be used is not deleted but replaced by a 0-byte tombstone, in one step.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from weakref import WeakValueDictionary

from entrepot.core.errors import Conflict, Corrupt, NotFound, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.format import decode_header, header_length, unpack_miniblock, verify_miniblock
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot_hub.adapters.buckets import Head
from entrepot_hub.adapters.buckets.interface import DIGEST_LENGTH
from entrepot_hub.adapters.database import Database
from entrepot_hub.core.ledger import Found, Ledger, ObjectRecord, ObjectRef, ObjectStatus, ObjectView, may_land
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.metering import Metering

#: A key that changes under the hub's hands is met again so often before it is left to the next sweep.
_LOOKS = 5
_PIECE = 4 << 20  # bytes of an object that are read at once


class Verdict(Enum):
    """What reading an object again says of it: it proves itself, it does not, or it is not the object that was meant
    (gone, or replaced behind the hub's back)."""

    PROVED = "proved"
    CORRUPT = "corrupt"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Look:
    """What a look left: the object now, and the record of what it took out because its header was wrong."""

    view: ObjectView
    condemned: ObjectRecord | None = None


class BucketKeeper:
    """Looks, evictions and judgements. One at a time per object; different objects in parallel."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        channels: Channels,
        settings: ExchangeSettings,
        clock: Callable[[], float],
        metering: Metering | None = None,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._channels = channels
        self._settings = settings
        self._clock = clock
        self._metering = metering
        self._turns: WeakValueDictionary[ObjectRef, asyncio.Lock] = WeakValueDictionary()

    @property
    def settings(self) -> ExchangeSettings:
        """The settings of the exchange."""
        return self._settings

    @property
    def grace(self) -> float:
        """Seconds after the end of a PUT's URL in which a PUT that began in time may still land."""
        return self._settings.put_grace

    def turn(self, ref: ObjectRef) -> asyncio.Lock:
        """The lock that whoever changes the object's key in the bucket holds."""
        lock = self._turns.get(ref)
        if lock is None:
            lock = self._turns[ref] = asyncio.Lock()
        return lock

    async def look(self, ref: ObjectRef) -> Look:
        """Take in what lies at the object's key now. What matches no unexpired grant is deleted.

        RetryLater (``busy``) when somebody keeps changing it.
        """
        channel = await self._channels.channel(ref.channel)
        async with self.turn(ref):
            return await self._look(channel, ref)

    async def clear_tombstone(self, channel: OpenChannel, ref: ObjectRef, grant: bytes | None = None) -> None:
        """Delete the 0-byte object that holds the key, before a PUT is signed for the live ``grant`` or, without one,
        when no PUT can land any more; and what a late PUT put over it where the provider does not hold create-only.

        RetryLater (``busy``) when somebody keeps changing it; Conflict (``stale-grant``) when the grant is over.
        """
        key = channel.key(ref)
        async with self.turn(ref):
            view = await self._database.call(self._ledger.view, ref)
            if grant is not None and _grant_of(view) != grant:
                # While this waited for its turn its object came and left again: the tombstone is against its own PUT.
                raise Conflict("this grant is over", kind="stale-grant")
            if not view.record.tombstone:
                return  # cleared meanwhile: what lies there now may be the new grant's
            if grant is None and may_land(view.record, self._clock(), self.grace):
                return  # it holds the key against another PUT than it did
            if await self._clear(channel, key, view):
                await self._database.call(self._ledger.clear_tombstone, ref, self._clock())

    async def finish(self, record: ObjectRecord) -> ObjectView:
        """Bring an object that :meth:`Ledger.stale` named to rest."""
        channel = await self._channels.channel(record.ref.channel)
        if record.status is ObjectStatus.EVICTING:
            await self._remove(channel, record)
            return await self._database.call(self._ledger.view, record.ref)
        if record.status is ObjectStatus.TOMBSTONE:
            await self.clear_tombstone(channel, record.ref)
            return await self._database.call(self._ledger.view, record.ref)
        return (await self.look(record.ref)).view

    async def verify(self, ref: ObjectRef, etag: str | None, miniblock: int | None) -> Verdict:
        """Read the length, the header and one miniblock of a ready object as a reader would.

        ``miniblock`` counts within the stream; None means length and header alone.
        """
        channel = await self._channels.channel(ref.channel)
        opening = await self._database.call(self._ledger.opening, ref.channel, ref.stream)
        if opening is None:
            return Verdict.CHANGED
        head = await channel.bucket.head(channel.key(ref))
        if head is None or etag not in (None, head.etag):
            return Verdict.CHANGED
        if head.length not in Geometry(opening.length, channel.lock).object_lengths(ref.number):
            return Verdict.CORRUPT
        try:
            await self._read(channel, ref, opening, head, miniblock)
        except (NotFound, Conflict):
            return Verdict.CHANGED
        except Corrupt:
            return Verdict.CORRUPT
        return Verdict.PROVED

    async def altered(self, record: ObjectRecord) -> bool:
        """Whether a ready object is not the bytes that were put: then the bucket changed it, not its uploader. Only
        where the provider refuses a PUT of other bytes than granted can the two be told apart."""
        channel = await self._channels.channel(record.ref.channel)
        if record.digest is None or not channel.bucket.binds.digest:
            return False
        kind = channel.bucket.digest_kind
        if len(record.digest) != DIGEST_LENGTH[kind]:
            return False  # granted before the bucket was told to check another kind
        hasher, offset, key = hashlib.new(kind, usedforsecurity=False), 0, channel.key(record.ref)
        try:
            while offset < record.size:
                piece = await channel.bucket.read(key, offset, min(_PIECE, record.size - offset), record.etag)
                if not piece:
                    return True
                await asyncio.to_thread(hasher.update, piece)
                offset += len(piece)
        except (NotFound, Conflict):
            return True
        return hasher.digest() != record.digest

    async def quarantine(self, ref: ObjectRef, etag: str | None) -> ObjectRecord | None:
        """Take a bad object out of use and out of the bucket; None if it was gone already."""
        record = await self._database.call(self._ledger.condemn, ref, etag, self._clock())
        if record is not None:
            await self._remove(await self._channels.channel(ref.channel), record)
        return record

    async def _look(self, channel: OpenChannel, ref: ObjectRef) -> Look:
        key, seen = channel.key(ref), None
        for _ in range(_LOOKS):
            head = await channel.bucket.head(key)
            found = None if head is None else self._found(channel, head)
            now = self._clock()
            view, opening = await self._database.together(partial(self._take_in, ref, found, seen, now))
            if isinstance(view, ObjectRecord):
                seen = view
                continue
            if self._metering is not None and view is not None and _made_ready(view.record, now):
                self._metering.arrived(view.record)
            if view is None:
                assert found is not None
                with suppress(Conflict):  # it changed under our hands
                    await channel.bucket.delete(key, found.etag)
                continue  # nothing is released before the key was seen to hold nothing
            if found is None or found.digest is not None or view.record.status is not ObjectStatus.READY:
                return Look(view)
            if await self._header_proves(channel, ref, opening, found):
                return Look(view)
            record = await self._database.call(self._ledger.condemn, ref, found.etag, self._clock())
            if record is not None:
                await self._leave(channel, record)
                return Look(await self._database.call(self._ledger.view, ref), record)
        raise _restless(key)

    def _take_in(
        self, ref: ObjectRef, found: Found | None, seen: ObjectRecord | None, now: float
    ) -> tuple[ObjectView | ObjectRecord | None, Opening | None]:
        """What :meth:`Ledger.settle` makes of a look; or the record, when that says that a tombstone came to the key
        and the look may be older: another hub may have had the object leave meanwhile. Then a look after that counts,
        which has ``seen`` the same record. And the stream's opening, where the object's header is to be read."""
        if found is not None and found.length > 0:
            view = self._ledger.view(ref)
            if view.record.status is ObjectStatus.EVICTING:
                return view, None  # its eviction decides
            if view.record.tombstone and view.record != seen:
                return view.record, None
        settled = self._ledger.settle(ref, found, now, self._settings.put_grace)
        if found is None or found.digest is not None or settled is None:
            return settled, None
        return settled, self._ledger.opening(ref.channel, ref.stream)

    @staticmethod
    def _found(channel: OpenChannel, head: Head) -> Found:
        """Where the bucket shows the digest of whatever came through a grant, what has none did not: it matches no
        digest."""
        digest = b"" if head.digest is None and channel.bucket.binds.head_digest else head.digest
        return Found(head.length, head.etag, digest)

    async def _header_proves(self, channel: OpenChannel, ref: ObjectRef, opening: Opening | None, found: Found) -> bool:
        """For buckets that show no digest: at least the header must be the right one."""
        if opening is None:
            return False
        try:
            await self._read(channel, ref, opening, found, None)
        except Corrupt:
            return False
        except (NotFound, Conflict):
            return True
        return True

    async def _read(
        self, channel: OpenChannel, ref: ObjectRef, opening: Opening, there: Head | Found, miniblock: int | None
    ) -> None:
        key, stream, etag = channel.key(ref), StreamId(ref.stream), there.etag
        size = header_length(opening.length, ref.number, channel.lock)
        data = await channel.bucket.read(key, 0, size, etag)
        header = decode_header(data, stream=stream, lock=channel.lock, number=ref.number, opening=opening)
        if header.object_length != there.length:
            raise Corrupt("the object has another length than its header says", kind="corrupt-object")
        if miniblock is None:
            return
        first = header.number * channel.lock.object // channel.lock.miniblock if channel.lock.object else 0
        index = miniblock - first
        if not 0 <= index < len(header.nodes):
            return
        offset, length = header.miniblock_span(index)
        stored = await channel.bucket.read(key, offset, length, etag)
        if length == header.plain_span(index)[1]:
            verify_miniblock(header, index, stored)
        else:
            verify_miniblock(header, index, await asyncio.to_thread(unpack_miniblock, header, index, stored))

    async def _remove(self, channel: OpenChannel, record: ObjectRecord) -> None:
        """An EVICTING object leaves the bucket, then the ledger lets its bytes go."""
        async with self.turn(record.ref):
            await self._leave(channel, record)

    async def _leave(self, channel: OpenChannel, record: ObjectRecord) -> None:
        """The same for whoever has the turn."""
        key, etag = channel.key(record.ref), record.etag
        tombstone = may_land(record, self._clock(), self._settings.put_grace)
        for _ in range(_LOOKS):
            try:
                if tombstone:
                    await channel.bucket.put_tombstone(key, etag)
                else:
                    await channel.bucket.delete(key, etag)
            except Conflict:
                head = await channel.bucket.head(key)
                etag = None if head is None else head.etag
                view = await self._database.call(self._ledger.view, record.ref)
                if view.record.status is not ObjectStatus.EVICTING:
                    return  # another hub saw it off, and what lies there now may be a new grant's
                # Something else took its place: nothing of that was granted to stay.
                tombstone = tombstone or (head is not None and head.length > 0)
                continue
            await self._database.call(self._ledger.evict_end, record.ref, tombstone, self._clock())
            if self._metering is not None:
                self._metering.evicted(record)
            return
        raise _restless(key)

    async def _clear(self, channel: OpenChannel, key: str, before: ObjectView) -> bool:
        """Whether the key holds nothing now; False: another hub went on with the object since ``before``, so that what
        lies there may be a new grant's. The ledger is asked after the bucket: nothing new lands before it knows."""
        for _ in range(_LOOKS):
            head = await channel.bucket.head(key)
            now = await self._database.call(self._ledger.view, before.record.ref)
            if now.record != before.record or _grant_of(now) != _grant_of(before):
                return False
            if head is None:
                return True
            with suppress(Conflict):  # it changed under our hands
                await channel.bucket.delete(key, head.etag)
        raise _restless(key)


def _grant_of(view: ObjectView) -> bytes | None:
    return None if view.grant is None else view.grant.grant


def _made_ready(record: ObjectRecord, now: float) -> bool:
    """Whether the look at ``now`` is the one that found the object: a later one leaves ``used_at`` as it is."""
    return record.status is ObjectStatus.READY and record.used_at == now


def _restless(key: str) -> RetryLater:
    return RetryLater("something keeps changing an object in the bucket", kind="busy", key=key)
