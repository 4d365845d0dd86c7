"""The doctor: tries and looks at everything that a channel's bucket has to do, and says what mends it.

It really uploads, tampers, repeats, reads, lists and deletes, with scratch objects that it removes; what the provider
is found to bind is kept, so that a provider that changed is no longer taken for what it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Final

from entrepot.core.errors import EntrepotError, NotFound
from entrepot.core.keys import owner_mark_key
from entrepot_hub.adapters.buckets import Bucket, SignedRequest
from entrepot_hub.adapters.buckets.location import (
    AzureLocation,
    FolderLocation,
    GcsLocation,
    S3Location,
    parse_location,
)
from entrepot_hub.adapters.buckets.probe import scratch_key, send
from entrepot_hub.core import policies
from entrepot_hub.services.channels import OpenChannel
from entrepot_hub.services.desk import Desk
from entrepot_hub.services.diagnosis import (
    Check,
    Diagnose,
    Diagnosis,
    PolicyAsked,
    PolicyView,
    of_binds,
    of_facts,
    of_held,
    of_latency,
    of_quota,
)

#: What the drivers say of a bucket that is not there, and what mends it once there is a channel on it.
_MISSING: Final = {
    "there is no folder ": "Make it (mkdir), or mount its disk",
    "there is no bucket ": "Make it at the provider",
    "there is no container ": "Make it at the provider",
}
_LOOKS: Final = 5
_LENGTH: Final = 1000
_PATIENCE: Final = 90.0  # seconds for all of it: the socket's client waits for 120


class Doctor:
    """Looks at one channel at a time, for a desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def diagnose(self, asked: Diagnose, actor: str, *, tried: bool = False) -> Diagnosis:
        """Everything, worst outcomes and all; raises only NotFound (``no-such-channel``). ``tried``: uploads were tried
        just now, so what is known of them is not called old."""
        record = await self._desk.registry.channel(asked.name)
        try:
            async with asyncio.timeout(_PATIENCE):
                channel = await self._desk.channels.channel(asked.name)
                checks = await self._checks(channel, actor, probe=asked.probe, tried=tried)
                binds = asdict(channel.bucket.binds)
        except EntrepotError as error:
            checks, binds = [_failed("bucket", error)], dict(record.bucket.binds)
        except TimeoutError:
            slow = Check(name="bucket", outcome="failure", text=f"the bucket took longer than {_PATIENCE:.0f} s")
            checks, binds = [slow], dict(record.bucket.binds)
        largest = await self._desk.database.call(self._desk.ledger.largest_stream, asked.name)
        checks.append(of_quota(record.quota, largest, record.lock.object))
        checks += of_held(record.held, record.held_until, record.quota, self._desk.clock())
        checks += await self._bus()
        return Diagnosis(channel=record.name, bucket=record.bucket.url, checks=checks, binds=binds)

    async def _checks(self, channel: OpenChannel, actor: str, *, probe: bool, tried: bool) -> list[Check]:
        bucket = channel.bucket
        checks = [await self._tried("reachable", "the bucket is there and the keys fit", bucket.start)]
        if checks[0].outcome == "failure":
            return checks
        checks.append(await self._mark(channel))
        served = not self._is_folder(channel) or self._desk.arbiter is not None
        if probe and served:
            checks.append(await self._tried("upload", "a signed upload arrives", lambda: self._probe(channel, actor)))
            if checks[-1].outcome != "failure":
                checks += of_binds(bucket.binds)
                checks.append(await self._after_delete(bucket))
                checks.append(await self._range(bucket))
        elif not served:
            text = "not tried: the hub that serves the folder does not run"
            checks.append(Check(name="upload", outcome="unknown", text=text, mend="Start it: entrepot-hub serve"))
        else:
            checks += of_binds(bucket.binds, tried=tried)
        checks.append(await self._list(bucket))
        checks.append(await self._latency(channel))
        region = getattr(parse_location(channel.record.bucket.url), "region", None)
        try:
            facts = await bucket.examine()
        except EntrepotError as error:
            checks.append(_failed("set-up", error))
        else:
            if self._is_folder(channel):
                facts = replace(facts, storage_class=None)  # a folder has none
            checks += of_facts(facts, public_read=channel.record.public_read, region=region)
        return checks

    @staticmethod
    def _is_folder(channel: OpenChannel) -> bool:
        return isinstance(parse_location(channel.record.bucket.url), FolderLocation)

    @staticmethod
    async def _tried(name: str, text: str, work: Callable[[], Awaitable[object]]) -> Check:
        try:
            await work()
        except EntrepotError as error:
            return _failed(name, error)
        return Check(name=name, outcome="ok", text=text)

    async def _probe(self, channel: OpenChannel, actor: str) -> None:
        """Find out what is bound, and keep what was found."""
        binds = await channel.bucket.probe(channel.bucket.prefix)
        channel.bucket.binds = binds
        if dict(channel.record.bucket.binds) != asdict(binds):
            now = self._desk.clock()
            await self._desk.registry.set_binds(channel.name, asdict(binds), now=now, actor=actor)

    async def _mark(self, channel: OpenChannel) -> Check:
        """The mark that names the hub which owns the prefix."""
        key = owner_mark_key(channel.bucket.prefix)
        try:
            owner = await self._desk.vault.owner(channel.bucket)
        except EntrepotError as error:
            return _failed("owner", error)
        if owner == self._desk.vault.hub_public:
            return Check(name="owner", outcome="ok", text="the prefix is marked as this hub's")
        if owner is None:
            return Check(
                name="owner",
                outcome="warning",
                text=f"the mark {key} is gone: another hub might take the prefix",
                mend="Make the channel's bucket this hub's again: entrepot-hub channel credentials set.",
            )
        return Check(
            name="owner",
            outcome="failure",
            text=f"another hub ({owner}) has marked the prefix as its own",
            mend=f"Stop one of the two; remove {key} if that hub is gone for good.",
        )

    @staticmethod
    async def _after_delete(bucket: Bucket) -> Check:
        """Whether a used URL works again once its object was deleted, and whether a tombstone stops it."""
        key, data = scratch_key(bucket.prefix), secrets.token_bytes(_LENGTH)
        try:
            signed = await _signed_put(bucket, key, data)
            await send(signed, data)
            await bucket.delete(key)
            again = (await send(signed, data)).accepted
            await bucket.put_tombstone(key)
            held = not (await send(signed, data)).accepted
        except EntrepotError as error:
            return _untold("tombstone", error)
        finally:
            with suppress(EntrepotError):
                await bucket.delete(key)
        if held:
            text = "a used URL works again after a deletion; a tombstone stops it" if again else "a used URL is dead"
            return Check(name="tombstone", outcome="ok", text=text)
        return Check(
            name="tombstone",
            outcome="warning",
            text="a used URL replaces a tombstone",
            mend="A late upload may come back after an eviction; the daily comparison removes it.",
        )

    @staticmethod
    async def _range(bucket: Bucket) -> Check:
        """Whether a range is answered with that range."""
        key, data = scratch_key(bucket.prefix), secrets.token_bytes(_LENGTH)
        try:
            await bucket.create(key, data)
            signed = await bucket.sign_get(key, None, 300)
            answer = await send(signed, b"", headers={**signed.headers, "Range": "bytes=100-199"})
        except EntrepotError as error:
            return _untold("range", error)
        finally:
            with suppress(EntrepotError):
                await bucket.delete(key)
        if answer.status == 206 and answer.body == data[100:200]:
            return Check(name="range", outcome="ok", text="a part of an object can be read alone")
        if answer.accepted and answer.body == data[100:200]:
            return Check(name="range", outcome="note", text=f"a part is answered with status {answer.status}, not 206")
        return Check(
            name="range",
            outcome="warning",
            text=f"a request for a part is answered with status {answer.status} and other bytes",
            mend="Reading parts of a file costs whole objects here, or fails.",
        )

    @staticmethod
    async def _list(bucket: Bucket) -> Check:
        try:
            await bucket.list(bucket.prefix, None, 1)
        except EntrepotError as error:
            return Check(
                name="list",
                outcome="warning",
                text=f"the hub may not list the bucket: {error.message}; {policies.WITHOUT_LIST[0]}",
                mend="Allow listing (entrepot-hub policy shows how), or compare the bill with the quota by hand.",
            )
        return Check(name="list", outcome="ok", text="the hub can compare the bucket with its ledger")

    async def _latency(self, channel: OpenChannel) -> Check:
        key, times = owner_mark_key(channel.bucket.prefix), []
        try:
            for _ in range(_LOOKS):
                began = time.monotonic()
                await channel.bucket.head(key)
                times.append(time.monotonic() - began)
        except EntrepotError as error:
            return _failed("latency", error)
        return of_latency(sorted(times)[_LOOKS // 2])

    async def _bus(self) -> list[Check]:
        """Whether nodes find the message bus, as far as the hub can tell."""
        from entrepot_hub.services.administration import Nothing

        status = await self._desk.administration.status(Nothing())
        checks = [
            Check(name="nats", outcome="warning", text=warning, mend="See docs/deployment.md.")
            for warning in status.warnings
            if "bus" in warning
        ]
        if checks:
            return checks
        if not status.running:
            text = "not looked at: no hub is running here"
            return [Check(name="nats", outcome="unknown", text=text, mend="Start it: entrepot-hub serve")]
        found = status.checks.get("nats", "ok")
        if found == "ok":
            told = ", ".join(status.nats) or "the hub's own"
            return [Check(name="nats", outcome="ok", text=f"the bus answers; nodes are told {told}")]
        text = f"the message bus does not answer: {found}"
        return [Check(name="nats", outcome="failure", text=text, mend="See the hub's log.")]


async def policy_of(desk: Desk, asked: PolicyAsked) -> PolicyView:
    """What the provider of a bucket has to allow the hub."""
    url = asked.bucket
    if "://" not in url:
        try:
            url = (await desk.registry.channel(url)).bucket.url
        except NotFound as error:
            raise NotFound(error.message, kind=error.kind, hint="Name a channel, or a bucket by its URL.") from None
    place = parse_location(url)
    listing, document = asked.listing, None
    commands: list[str] = []
    match place:
        case FolderLocation():
            provider, commands = "file", policies.folder_commands(str(place.path))
        case S3Location():
            provider = "s3"
            document = policies.s3_policy(place.bucket, place.prefix, listing=listing, create=place.create)
        case GcsLocation():
            provider, commands = "gs", policies.gcs_commands(place.bucket, place.prefix, listing=listing)
        case AzureLocation():
            provider = "azblob"
            document = policies.azure_role(place.account, place.container)
    lost = list(policies.lost(provider, listing=listing))
    return PolicyView(provider=provider, document=document, commands=commands, lost=lost)


async def _signed_put(bucket: Bucket, key: str, data: bytes) -> SignedRequest:
    digest = hashlib.new(bucket.digest_kind, data, usedforsecurity=False).digest()
    return await bucket.sign_put(key, len(data), digest, 300)


def _failed(name: str, error: EntrepotError) -> Check:
    mend = error.hint
    for what, advice in _MISSING.items():
        if error.message.startswith(what):
            mend = f"{advice}: the hub makes one only when its channel is made."
    return Check(name=name, outcome="failure", text=error.message, mend=mend)


def _untold(name: str, error: EntrepotError) -> Check:
    """What goes to the address that nodes are given, which need not be one that the hub can reach."""
    if error.kind != "bucket-unreachable":
        return _failed(name, error)
    text = f"the hub cannot reach the address that nodes are given: {error.message}"
    return Check(name=name, outcome="unknown", text=text, mend="Try it from a node: entrepot get.")
