"""With a provider that enforces nothing the hub knows it, and still sees what arrived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace

import pytest
from tests.contract.buckets.conftest import s3_settings, until_there
from tests.contract.buckets.requests import begin, digest_of, send, upload
from tests.servers.careless import run_careless

from entrepot.core.errors import Conflict
from entrepot_hub.adapters.buckets import Binds
from entrepot_hub.adapters.buckets.s3 import S3Bucket

DATA = bytes(i * 7 % 251 for i in range(5000))


@pytest.fixture
async def careless() -> AsyncIterator[S3Bucket]:
    """A bucket on a server that enforces nothing, taken for Amazon's by its owner."""
    with run_careless() as server:
        async with S3Bucket(replace(s3_settings(server), profile="aws"), name="careless") as bucket:
            yield bucket


async def test_the_probe_corrects_what_the_owner_believes(careless: S3Bucket) -> None:
    """Nothing is bound, whatever the profile says, and the bucket states so from then on."""
    assert all(getattr(careless.binds, field.name) for field in fields(Binds))
    binds = await careless.probe("x")
    assert binds == careless.binds
    assert not any(getattr(binds, field.name) for field in fields(Binds))
    assert (await careless.list("")).entries == ()


async def test_head_reveals_a_truncated_upload(careless: S3Bucket) -> None:
    """Where a truncated PUT becomes visible, HEAD shows its true length."""
    signed = await careless.sign_put("k", len(DATA), digest_of(DATA), 60)
    connection = await asyncio.to_thread(begin, signed, DATA[:1234])
    connection.sock.shutdown(1)
    await until_there(careless, "k")
    connection.close()
    head = await careless.head("k")
    assert head is not None
    assert head.length == 1234


async def test_conditions_are_kept_by_looking_first(careless: S3Bucket) -> None:
    """A wrong etag neither deletes nor replaces, and create leaves what is there, though the server would not
    care."""
    await careless.probe("x", expiry=False)
    assert (await upload(careless, "k", DATA)).accepted
    for call in (careless.delete("k", "0" * 32), careless.put_tombstone("k", "0" * 32), careless.read("k", 0, 1, "e")):
        with pytest.raises(Conflict):
            await call
    assert await careless.create("k", b"other") is False
    assert await careless.read("k", 100, 200) == DATA[100:300]


async def test_a_late_put_over_a_tombstone_shows_in_head(careless: S3Bucket) -> None:
    """What a tombstone cannot stop there is seen by the next look."""
    signed = await careless.sign_put("k", len(DATA), digest_of(DATA), 60)
    tombstone = await careless.put_tombstone("k")
    assert (await send(signed, DATA)).accepted
    head = await careless.head("k")
    assert head is not None
    assert head.etag != tombstone.etag
