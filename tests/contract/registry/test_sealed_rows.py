"""The master key in the database: changed while others seal, page by page, on both engines."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest
from tests.contract.registry.conftest import ANNA, HUB, QUOTA

from entrepot.core.errors import Denied
from entrepot.core.invite import join_proof
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sealed_rows import SealedRows
from entrepot_hub.core.master_keys import MasterKeys
from entrepot_hub.core.members import Rights
from entrepot_hub.core.sealing import SEAL_RANDOM, MasterKey, bucket_place, same_secret, seal

OLD, NEW = MasterKey(b"m" * 32), MasterKey(b"n" * 32)
URL = "s3://bucket"


def keys_for(url: str, master: MasterKey, secret: bytes = b"keys") -> bytes:
    return seal(secret, key=master, associated=bucket_place(url), random=secrets.token_bytes(SEAL_RANDOM))


async def made(registry: Registry, **more: Any) -> None:
    """The bucket of ``demo`` with keys sealed under the old master key."""
    given = {"credentials": keys_for(URL, OLD), "label": "AKIA1"} | more
    await registry.set_bucket("demo", binds={}, now=2.0, actor="admin", **given)


async def invited(registry: Registry, number: int = 0) -> bytes:
    """The secret of a new invite."""
    secret = bytes([number % 251]) * 16
    await registry.create_invite(
        "demo", Rights.parse("request"), uses=9, expires=99.0, secret=secret, now=3.0, actor="admin",
        invite_id=number.to_bytes(16),
    )  # fmt: skip
    return secret


async def test_everything_is_sealed_again_and_opens(registry: Registry, database: Database) -> None:
    """After a change the new key alone opens the bucket's keys and lets nodes in by old invites; many pages too, and
    repeated nothing changes."""
    await made(registry)
    found = [await invited(registry, number) for number in range(601)]
    before = (await registry.channel("demo")).bucket.credentials
    rows, both = SealedRows(database), MasterKeys(NEW, OLD)
    with pytest.raises(Denied):
        await rows.check(MasterKeys(NEW))
    assert await rows.check(MasterKeys(OLD)) == 602
    await rows.turn(NEW, {}, now=4.0, actor="admin")
    assert await rows.reseal(both, NEW) == await rows.check(MasterKeys(NEW)) == 602
    after = (await registry.channel("demo")).bucket.credentials
    assert after is not None
    assert after != before
    assert same_secret(before, after)
    assert MasterKeys(NEW).unseal(after, associated=bucket_place(URL)) == b"keys"
    await rows.turn(NEW, {}, now=5.0, actor="admin")
    await rows.reseal(both, NEW)
    assert (await registry.channel("demo")).bucket.credentials == after
    other = Registry(database, NEW)
    number = 600
    mac = join_proof(found[number], ANNA, HUB)
    member = await other.redeem(number.to_bytes(16).hex(), node=ANNA, mac=mac, hub_public=HUB, name="anna", now=6.0)
    assert member.active
    assert [entry.action for entry in await registry.audit_log(limit=1000)].count("master.rotate") == 1


async def test_who_has_only_the_old_key_seals_nothing_more(registry: Registry, database: Database) -> None:
    """Once the database names the new key, a hub without it can make no invite and set no keys; one that has both seals
    under the new one whatever it was given."""
    await SealedRows(database).turn(NEW, {}, now=4.0, actor="admin")
    for attempt in (
        invited(registry),
        made(registry),
        registry.create_channel(
            "other", quota=QUOTA, lock=SchemaLock("other"), bucket="s3://b2", credentials=keys_for("s3://b2", OLD),
            now=5.0, actor="admin",
        ),
    ):  # fmt: skip
        with pytest.raises(Denied, match="master key was changed"):
            await attempt
    assert [channel.name for channel in await registry.channels()] == ["demo"]
    assert await registry.invites("demo") == []
    registry.keys.also(NEW)
    await invited(registry)
    await made(registry)
    assert await SealedRows(database).check(MasterKeys(NEW)) == 2


async def test_nothing_is_lost_to_whoever_seals_meanwhile(registry: Registry, database: Database) -> None:
    """Invites are made, by hubs with the old key and by one with both, while the key changes: each is refused or opens
    under the new key."""
    await made(registry)
    both = Registry(database, MasterKeys(OLD, NEW))
    refused = 0

    async def invite(numbers: range, by: Registry) -> None:
        nonlocal refused
        for number in numbers:
            try:
                await invited(by, number)
            except Denied:
                refused += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(invite(range(100), registry))
        group.create_task(invite(range(100, 200), both))
        rows = SealedRows(database)
        await rows.turn(NEW, {}, now=4.0, actor="admin")
        await rows.reseal(MasterKeys(NEW, OLD), NEW)
        await rows.check(MasterKeys(NEW))
    assert await rows.check(MasterKeys(NEW)) == 201 - refused


async def test_a_buckets_keys_are_on_record(registry: Registry) -> None:
    """Which key was set, used and replaced, by whom, when, and until when the old one is needed."""
    await made(registry)
    channel = await registry.channel("demo")
    await registry.use_key(channel, "AKIA1", now=3.0, actor="hub a")
    await made(registry, credentials=keys_for(URL, OLD, b"more"), label="AKIA2", safe_at=50.0)
    present, former = await registry.bucket_keys(channel.bucket.id)
    assert (present.label, present.set_by, present.used_at, present.retired_at) == ("AKIA2", "admin", None, None)
    assert (former.label, former.used_at, former.retired_at, former.safe_at) == ("AKIA1", 3.0, 2.0, 50.0)
    log = [(entry.actor, entry.action, entry.detail.get("key")) for entry in await registry.audit_log()]
    assert log[-3:] == [
        ("admin", "channel.bucket", "AKIA1"),
        ("hub a", "credentials.use", "AKIA1"),
        ("admin", "channel.bucket", "AKIA2"),
    ]


async def test_keys_of_before_are_noted_when_they_are_used(registry: Registry) -> None:
    """A bucket whose keys were set by a version that did not note them is noted with the time of its first channel."""
    channel = await registry.channel("demo")
    assert await registry.bucket_keys(channel.bucket.id) == []
    await registry.use_key(channel, "AKIA0", now=3.0, actor="hub a")
    await registry.use_key(channel, "AKIA0", now=4.0, actor="hub a")
    [key] = await registry.bucket_keys(channel.bucket.id)
    assert (key.label, key.set_at, key.set_by, key.used_at) == ("AKIA0", 1.0, "", 4.0)
