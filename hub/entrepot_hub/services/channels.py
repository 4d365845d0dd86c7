"""What the exchange knows of its channels: the record, the opened bucket, and who may do what, for a moment each.

A membership is believed for :attr:`ChannelSettings.trust` seconds, so that a revocation elsewhere (another hub, the
command line on the database) holds soon; one made through this hub holds at once by :meth:`Channels.forget`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from entrepot.core.errors import Denied, EntrepotError, NotFound
from entrepot.core.identifiers import StreamId
from entrepot.core.keys import object_key
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.buckets import Bucket
from entrepot_hub.adapters.buckets.rekeyed import RekeyedBucket
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.ledger import ObjectRef
from entrepot_hub.core.members import Channel, Member
from entrepot_hub.core.sealing import same_secret

type OpenBucket = Callable[[Channel], Awaitable[Bucket]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """``trust``: seconds for which a looked-up record is believed. ``most``: records kept."""

    trust: float = 2.0
    most: int = 10_000


@dataclass(frozen=True, slots=True)
class OpenChannel:
    """A channel ready for use."""

    record: Channel
    bucket: Bucket

    @property
    def name(self) -> str:
        """The channel's name."""
        return self.record.name

    @property
    def edition(self) -> int:
        """Counts the changes of the bucket's keys since it was opened: what another edition signed is not handed out
        any more."""
        return self.bucket.edition if isinstance(self.bucket, RekeyedBucket) else 0

    @property
    def lock(self) -> SchemaLock:
        """The channel's current schema lock."""
        return self.record.lock

    def key(self, ref: ObjectRef) -> str:
        """The key of an object in the channel's bucket."""
        return object_key(self.record.bucket.prefix, ref.lock, StreamId(ref.stream), ref.number)


class Channels:
    """Channels, buckets and members by name. Buckets are opened on first use and closed together."""

    def __init__(
        self,
        registry: Registry,
        open_bucket: OpenBucket,
        clock: Callable[[], float],
        settings: ChannelSettings | None = None,
    ) -> None:
        self._registry = registry
        self._open_bucket = open_bucket
        self._clock = clock
        self._settings = settings or ChannelSettings()
        self._channels: dict[str, tuple[float, OpenChannel]] = {}
        self._members: dict[tuple[str, str], tuple[float, Member | None]] = {}
        self._counts: dict[str, tuple[float, int]] = {}
        self._buckets: dict[int, Bucket] = {}
        self._credentials: dict[int, bytes | None] = {}
        self._opening: dict[int, asyncio.Lock] = {}  # by bucket: one that hangs keeps no other from being opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all buckets; idempotent."""
        while self._buckets:
            _, bucket = self._buckets.popitem()
            await bucket.aclose()
        self._channels.clear()

    async def channel(self, name: str) -> OpenChannel:
        """The channel. Raises NotFound (no-such-channel) and what opening its bucket raises."""
        known = self._channels.get(name)
        now = self._clock()
        if known is not None and now < known[0] + self._settings.trust:
            return known[1]
        record = await self._registry.channel(name)
        found = OpenChannel(record, await self._bucket(record))
        self._channels[name] = (now, found)
        return found

    async def member(self, channel: str, node: str) -> Member:
        """An active member. Raises Denied: no-right for a stranger, revoked, suspended."""
        now = self._clock()
        known = self._members.get((channel, node))
        if known is None or now >= known[0] + self._settings.trust:
            if len(self._members) >= self._settings.most:
                self._members.clear()
            try:
                member: Member | None = await self._registry.member(channel, node)
            except NotFound:
                member = None
            known = self._members[channel, node] = (now, member)
        member = known[1]
        if member is None:
            raise Denied(f"this node is no member of {channel}", kind="no-right", hint="Ask the owner for an invite.")
        if member.revoked_at is not None:
            raise Denied(f"this node's membership of {channel} was revoked", kind="revoked")
        if not member.active:
            raise Denied("this node is suspended at the hub", kind="suspended")
        return member

    async def names(self) -> list[str]:
        """All channels."""
        return [record.name for record in await self._registry.channels()]

    async def locks_on(self, bucket: int) -> set[str]:
        """The lock ids, in hex, of all channels that share a bucket and prefix (by the id of its record)."""
        return {record.lock.hex for record in await self._registry.channels() if record.bucket.id == bucket}

    async def size(self, channel: str) -> int:
        """How many members the channel has, about."""
        now = self._clock()
        known = self._counts.get(channel)
        if known is None or now >= known[0] + 30.0:
            known = self._counts[channel] = (now, len(await self._registry.members(channel)))
        return known[1]

    def bucket_named(self, name: str) -> Bucket | None:
        """An open bucket by the hub's name for it."""
        return next((bucket for bucket in self._buckets.values() if bucket.name == name), None)

    async def open_all(self) -> dict[str, EntrepotError]:
        """Open the buckets of all channels; what kept a channel's from being opened, by channel."""
        failed: dict[str, EntrepotError] = {}

        async def one(name: str) -> None:
            try:
                await self.channel(name)
            except EntrepotError as error:
                failed[name] = error

        async with asyncio.TaskGroup() as group:
            for record in await self._registry.channels():
                group.create_task(one(record.name))
        return failed

    def forget(self, node: str | None = None, channel: str | None = None) -> None:
        """Look up afresh next time: what is known of a node, of a channel, or of both."""
        for name, public in list(self._members):
            if node in (None, public) and channel in (None, name):
                del self._members[name, public]
        if channel is not None:
            self._channels.pop(channel, None)
            self._counts.pop(channel, None)

    async def _bucket(self, record: Channel) -> Bucket:
        """The channel's bucket, opened with the keys that the record has: all channels on it see new ones at once."""
        bucket_id = record.bucket.id
        async with self._opening.setdefault(bucket_id, asyncio.Lock()):
            bucket = self._buckets.get(bucket_id)
            if bucket is None:
                bucket = await self._open_bucket(record)
                if not record.bucket.url.startswith("file:"):  # a folder has no keys
                    bucket = RekeyedBucket(bucket)
                self._buckets[bucket_id], self._credentials[bucket_id] = bucket, record.bucket.credentials
            elif not same_secret(self._credentials[bucket_id], record.bucket.credentials):
                # Which of the two is older? Whoever looked before a change may get here after it.
                record = await self._registry.channel(record.name)
                changed = not same_secret(self._credentials[bucket_id], record.bucket.credentials)
                if changed and isinstance(bucket, RekeyedBucket):
                    await bucket.replace(await self._open_bucket(record))
                    self._credentials[bucket_id] = record.bucket.credentials
            return bucket
