"""A whole transfer over every kind of bucket: made by its owner, filled, read with nobody online, evicted, examined."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.integration.buckets.conftest import (
    KINDS,
    OBJECT,
    Place,
    Yard,
    content_of,
    key_of,
    name_of,
    one_loop,
    stream,
    watched,
)
from tests.integration.node.conftest import Site
from tests.servers.gcs_proxy import make_document

pytestmark = one_loop
with_keys = pytest.mark.parametrize("place", [kind for kind in KINDS if kind != "folder"], indirect=True)


async def test_the_owner_is_told_what_is_not_held(yard: Yard, place: Place) -> None:
    """Making the channel says what the provider was found to hold, and warns of the rest."""
    made = yard.made[place.kind]
    assert made["made"] is True
    for name in ("length", "digest", "create_only"):
        assert made["binds"][name] is place.binds(name), name
        told = {check["name"]: check["outcome"] for check in made["checks"]}
        assert (name.replace("_", " ") in told) is not place.binds(name), name
    assert made["binds"]["expiry"] is True


async def test_a_file_passes_and_stays(yard: Yard, place: Place, site: Site, tmp_path: Path) -> None:
    """Added on one node, got on another: each object is uploaded once, lies at its key with its exact bytes under a
    grant of the right digest; with the provider gone, a third node has it from the bucket, whole and in ranges."""
    lock = await yard.channel(place, "whole")
    content = stream(lock, 8 * OBJECT + 12_345)
    original = tmp_path / "original"
    await asyncio.to_thread(original.write_bytes, content.data)
    giver, taker = await site.node("giver", lock.channel), await site.node("taker", lock.channel)
    await site.up("giver")
    added = await giver.add(original)
    assert added.uri.stream == content.stream
    got = await taker.get(added.uri, tmp_path / "copy")
    assert await content_of(got.path) == content.data

    assert await yard.there(place, lock) == {(str(content.stream), n): len(content.object(n)) for n in range(9)}
    for number in (0, 8):
        assert await asyncio.to_thread(place.look.read, key_of(place, content, number)) == content.object(number)
    granted = await yard.rows(
        "select o.number, g.digest from grants g join objects o on o.id = g.object_id "
        "join channels c on c.id = o.channel_id where c.name = ? and g.status = 'done'",
        lock.channel,
    )
    right = {n: hashlib.new(place.digest, content.object(n), usedforsecurity=False).digest() for n in range(9)}
    assert len(granted) == 9
    assert dict(granted) == right
    assert len([passage for passage in place.relay.puts() if lock.hex in passage.path]) == 9

    await site.down("giver")
    late = await site.node("late", lock.channel)
    async with await late.open(added.uri) as file:
        for offset, length in ((100_000, 10), (65_000, 2000), (0, 10)):
            assert await file.read(offset, length) == content.data[offset : offset + length]
    other = await site.node("other", lock.channel)
    again = await other.get(added.uri, tmp_path / "again")
    assert await content_of(again.path) == content.data
    assert again.from_bucket_bytes == len(content.data)
    usage = await yard.balanced(place, lock)
    assert (usage.objects, usage.reserved) == (9, 0)
    assert await yard.reconciled(lock) == {}


async def test_a_small_quota_is_never_exceeded(yard: Yard, place: Place, site: Site, tmp_path: Path) -> None:
    """A file of ten objects passes through a quota of four: at no moment more than that lies there, tombstones hold
    the keys of what left, since a PUT could still land there, and the comparison finds nothing amiss."""
    lock = await yard.channel(place, "small", quota=4 * 70_000)
    content = stream(lock, 10 * OBJECT)
    original = tmp_path / "original"
    await asyncio.to_thread(original.write_bytes, content.data)
    giver, taker = await site.node("giver", lock.channel), await site.node("taker", lock.channel)
    await site.up("giver")
    added = await giver.add(original)
    async with watched(yard, place, lock) as samples:
        got = await taker.get(added.uri, tmp_path / "copy")
    assert await content_of(got.path) == content.data
    assert 0 < max(samples) <= 4 * 70_000
    usage = await yard.balanced(place, lock)
    there = await yard.there(place, lock)
    assert there.keys() == {(str(content.stream), n) for n in range(10)}
    gone = [number for (_, number), size in there.items() if size == 0]
    assert len(gone) == 10 - usage.objects >= 6
    assert await yard.reconciled(lock) == {}
    assert await yard.there(place, lock) == there


@with_keys
@pytest.mark.blocking
async def test_the_keys_are_seen_nowhere(yard: Yard, place: Place) -> None:
    """No file of the hub and no answer of it holds the secret of a bucket."""
    assert place.keys is not None
    secrets = _secrets_of(place.keys)
    told = str(await yard.grid.admin("channel.show", name=name_of(place.kind))) + str(yard.made)
    for path in (yard.grid.folder / "hub").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret.encode() in data for secret in secrets), path
    assert not any(secret in told for secret in secrets)


def _secrets_of(keys: str) -> list[str]:
    """What must be seen nowhere: of a private key a line, for its ends of lines are spelled in several ways."""
    found = json.loads(keys)
    return [found[name].splitlines()[-2:][0] for name in ("secret_key", "key", "private_key") if name in found]


@with_keys
async def test_wrong_keys_make_no_channel(yard: Yard, place: Place) -> None:
    """Keys of the right form that the provider does not know are refused with a reason that does not repeat them, and
    no channel is made."""
    assert place.keys is not None
    keys = json.loads(place.keys)
    match place.kind:
        case "azurite":
            keys["key"] = base64.b64encode(b"another key of sixty-four bytes.." * 2).decode()
        case "gcs":
            other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            keys["private_key"] = json.loads(make_document(other, "http://unused"))["private_key"]
        case _:
            keys["secret_key"] = "not-the-secret-of-this-bucket"
    name = name_of(place.kind) + "wrong"
    # The same bucket by another URL: another prefix.
    url = place.url.replace(place.prefix, "lab/wrong")
    with pytest.raises(AssertionError) as refused:
        await yard.grid.admin("channel.create", name=name, bucket=url, credentials=json.dumps(keys))
    answer = refused.value.args[0]
    assert answer["error"]["kind"] in ("denied", "invalid-setting"), answer
    assert not any(secret in str(answer) for secret in _secrets_of(json.dumps(keys)))
    assert name not in [channel["name"] for channel in await yard.grid.admin("channel.list")]


async def test_the_doctor_finds_what_is_true(yard: Yard) -> None:
    """On every kind: no failure, a warning for what the provider does not hold and for nothing else, and nothing is
    left behind. All kinds at once, for each lets a URL end."""
    places = [yard.places[kind] for kind in KINDS if kind in yard.places]
    asked = [yard.grid.admin("channel.doctor", name=name_of(place.kind)) for place in places]
    for place, found in zip(places, await asyncio.gather(*asked), strict=True):
        outcomes = {check["name"]: check["outcome"] for check in found["checks"]}
        assert {"reachable", "owner", "upload", "tombstone", "range", "list", "nats", "quota"} <= outcomes.keys()
        for name in ("reachable", "owner", "upload", "expiry", "list", "nats"):
            assert outcomes[name] == "ok", (place.kind, name)
        for name in ("length", "digest", "create_only"):
            assert (outcomes[name.replace("_", " ")] == "ok") is place.binds(name), (place.kind, name)
            assert found["binds"][name] is place.binds(name)
        assert (outcomes["tombstone"] == "ok") is place.binds("create_only"), place.kind
        unheld = {name for name in ("length", "create only") if not place.binds(name.replace(" ", "_"))}
        expected = unheld | ({"tombstone"} if "create only" in unheld else set())
        assert {name for name, outcome in outcomes.items() if outcome in ("warning", "failure")} == expected, place.kind
        kept = await asyncio.to_thread(place.look.sizes, place.prefix)
        assert not [key for key in kept if "probe" in key]
