"""The keys of buckets in the hub's custody: who set them, who used them, and changing them while they are in use.

Keys go in and never come out. New ones are tried before the old ones are let go; from then on everything is signed with
the new ones, while the old ones must stay valid at the provider until the last URL they signed is over.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from entrepot.core.api import KeyView
from entrepot.core.errors import Conflict, Denied, InvalidInput, NotFound, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.core.members import BucketKey, BucketRecord, Channel
from entrepot_hub.services.desk import Desk, Operation, Request, View

if TYPE_CHECKING:  # a command that asks a running hub has no use for a database
    from entrepot_hub.adapters.buckets.interface import Bucket
    from entrepot_hub.adapters.registry import Registry
    from entrepot_hub.services.vault import Vault

#: Seconds until every hub on the database signs with the new keys: it looks every two, and a call may be under way.
_NOTICE: Final = 30.0
_SCRATCH: Final = 64  # bytes


class SetCredentials(Request, frozen=True, kw_only=True):
    """New keys for the bucket of a channel, and of all channels on it. ``credentials`` is a secret."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    credentials: Annotated[str, msgspec.Meta(max_length=32768)]

    def __repr__(self) -> str:
        return f"SetCredentials({self.name}, credentials=***)"


class ShowCredentials(Request, frozen=True, kw_only=True):
    """A channel whose bucket's keys are asked for: not the keys, but which."""

    name: Annotated[str, msgspec.Meta(max_length=64)]


class CustodyView(View, frozen=True, kw_only=True):
    """Which keys the bucket of a channel has, and had. ``channels``: all that share it. ``changed`` False: the keys
    that were given were there already. ``others``: channels on other buckets that use a key of this list which is
    retired here: it may not be deleted at the provider. ``now``: the hub's time."""

    channel: str
    bucket: str
    channels: list[str]
    keys: list[KeyView]
    now: float
    changed: bool = False
    others: list[str] = msgspec.field(default_factory=list)


class Custody:
    """Opens buckets and keeps account of it: ``actor`` is who opens them, ``admin`` or a hub."""

    def __init__(self, registry: Registry, vault: Vault, clock: Callable[[], float], actor: str) -> None:
        self._registry = registry
        self._vault = vault
        self._clock = clock
        self._actor = actor

    async def open(self, channel: Channel) -> Bucket:
        """The bucket of a channel, ready; that its keys were used is noted. Raises what opening raises."""
        record = channel.bucket
        bucket = await self._vault.open(record)
        try:
            if record.credentials is not None:
                label = self._vault.credentials(record.url, record.credentials).label
                await self._registry.use_key(channel, label, now=self._clock(), actor=self._actor)
        except BaseException:
            await bucket.aclose()
            raise
        return bucket


def safe_at(now: float, settings: ExchangeSettings | None = None) -> float:
    """When no URL is valid any more that was signed with keys which are replaced now, and none is being used."""
    settings = settings or ExchangeSettings()
    return now + _NOTICE + max(settings.put_url + settings.put_grace, settings.get_url)


def key_view(key: BucketKey) -> KeyView:
    """A key as it is shown."""
    return KeyView(
        label=key.label,
        set_at=key.set_at,
        set_by=key.set_by,
        used_at=key.used_at,
        retired_at=key.retired_at,
        safe_at=key.safe_at,
    )


async def show_credentials(desk: Desk, asked: ShowCredentials, _actor: str) -> CustodyView:
    """Which keys the bucket has and had. NotFound (``no-such-channel``)."""
    return await _view(desk, await desk.registry.channel(asked.name))


async def set_credentials(desk: Desk, asked: SetCredentials, actor: str) -> CustodyView:
    """Give the bucket new keys, once it is clear that they work. In the running hub they hold when this returns, in
    other hubs on the same database seconds later.

    Raises NotFound (``no-such-channel``), InvalidInput for what are no keys, Conflict (``in-use``) where they lead to
    the bucket of another hub, and what the bucket raises; then nothing was changed.
    """
    channel = await desk.registry.channel(asked.name)
    record = channel.bucket
    if record.url.startswith("file:"):
        raise InvalidInput("a folder has no keys", kind="invalid-setting", channel=asked.name)
    sealed = desk.vault.seal(record.url, asked.credentials.encode())
    keys = desk.vault.credentials(record.url, sealed)
    if desk.vault.same(record.url, sealed, record.credentials):
        return await _view(desk, channel)
    await _try(desk.vault, record, sealed)
    now = desk.clock()
    await desk.registry.set_bucket(
        asked.name,
        credentials=sealed,
        binds=record.binds,
        label=keys.label,
        safe_at=safe_at(now, desk.keeper.settings),
        now=now,
        actor=actor,
    )
    for name in await _sharing(desk, record):
        desk.channels.forget(channel=name)
    if desk.arbiter is not None:  # a hub runs: it signs with them before this is answered
        await desk.channels.channel(asked.name)
    return msgspec.structs.replace(await _view(desk, channel), changed=True)


#: What can be asked for.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    "channel.credentials.set": Operation(SetCredentials, CustodyView, set_credentials),
    "channel.credentials.show": Operation(ShowCredentials, CustodyView, show_credentials),
}


async def _try(vault: Vault, record: BucketRecord, sealed: bytes) -> None:
    """Use the new keys for all that the hub does, on one scratch object."""
    from entrepot_hub.adapters.buckets.probe import scratch_key, send

    trial = BucketRecord(record.id, record.url, record.prefix, record.binds, sealed)
    bucket = await vault.open(trial)
    try:
        owner = await vault.owner(bucket)
        if owner != vault.hub_public:
            raise Conflict(
                "these keys lead to a bucket that is not this channel's: it does not bear this hub's mark",
                kind="in-use" if owner else "changed",
                hint="Are they keys for the same bucket, at the same provider?",
                bucket=record.url,
            )
        data, key = secrets.token_bytes(_SCRATCH), scratch_key(record.prefix)
        digest = await asyncio.to_thread(lambda: hashlib.new(bucket.digest_kind, data, usedforsecurity=False).digest())
        try:
            answer = await send(await bucket.sign_put(key, len(data), digest, 60), data)
            if not answer.accepted:
                raise (Denied if answer.status in {401, 403} else RetryLater)(
                    f"with these keys the bucket takes no upload (status {answer.status})",
                    hint="They need PutObject, as the ones before had.",
                    status=answer.status,
                )
            head = await bucket.head(key)
            if head is None or head.length != len(data):
                raise NotFound("what was uploaded with these keys is not in the bucket", kind="no-such-object")
            signed = await bucket.sign_get(key, None, 60)
            if not (await send(signed, b"")).accepted:
                raise Denied("with these keys the bucket lets nothing be read", hint="They need GetObject.")
        finally:
            await bucket.delete(key)
    finally:
        await bucket.aclose()


async def _sharing(desk: Desk, record: BucketRecord) -> list[str]:
    return [channel.name for channel in await desk.registry.channels() if channel.bucket.id == record.id]


async def _others(desk: Desk, channel: Channel, keys: list[KeyView]) -> list[str]:
    """Channels on other buckets that still go by a key which is retired here."""
    retired = {key.label for key in keys if key.retired_at is not None}
    found = []
    for other in await desk.registry.channels():
        if not retired or other.bucket.id == channel.bucket.id:
            continue
        theirs = await desk.registry.bucket_keys(other.bucket.id)
        if any(key.label in retired and key.retired_at is None for key in theirs):
            found.append(other.name)
    return found


async def _view(desk: Desk, channel: Channel) -> CustodyView:
    keys = [key_view(key) for key in await desk.registry.bucket_keys(channel.bucket.id)]
    return CustodyView(
        channel=channel.name,
        bucket=channel.bucket.url,
        channels=await _sharing(desk, channel.bucket),
        keys=keys,
        others=await _others(desk, channel, keys),
        now=desk.clock(),
    )
