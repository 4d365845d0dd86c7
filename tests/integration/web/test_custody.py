"""The keys of a bucket are replaced while it is in use, on a real S3 server with several pairs of keys."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import boto3
import pytest
from tests.integration.node.conftest import Site
from tests.integration.s3.conftest import BUCKET, helping, location
from tests.integration.web.test_cli import Command
from tests.servers.grid import Content, Grid, Peer, send, until
from tests.servers.ministack import S3Server, run_ministack

from entrepot.core.messages import Signed
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.services.channels import Channels
from entrepot_hub.services.custody import Custody
from entrepot_hub.services.identity import database_url, load_keys
from entrepot_hub.services.settings import load_settings
from entrepot_hub.services.vault import Vault


def document(key: dict[str, str]) -> str:
    return json.dumps({"access_key": key["AccessKeyId"], "secret_key": key["SecretAccessKey"]})


class Provider:
    """The account at the provider, by its root key: makes and deletes keys for the bucket."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        root: dict[str, Any] = {
            "aws_access_key_id": server.access_key,
            "aws_secret_access_key": server.secret_key,
            "region_name": server.region,
            "endpoint_url": server.endpoint,
        }
        self._iam = boto3.client("iam", **root)
        s3 = boto3.client("s3", **root)
        s3.create_bucket(Bucket=BUCKET)
        s3.create_bucket(Bucket="other")
        self._users = 0

    def key(self, action: str = "s3:*") -> dict[str, str]:
        """A new pair of keys that may do this."""
        self._users += 1
        user = f"user{self._users}"
        self._iam.create_user(UserName=user)
        statement = {"Effect": "Allow", "Action": action, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._iam.put_user_policy(UserName=user, PolicyName="bucket", PolicyDocument=policy)
        found = self._iam.create_access_key(UserName=user)["AccessKey"]
        return {"user": user, **{name: found[name] for name in ("AccessKeyId", "SecretAccessKey")}}

    def delete(self, key: dict[str, str]) -> None:
        """The pair is valid no more."""
        self._iam.delete_access_key(UserName=key["user"], AccessKeyId=key["AccessKeyId"])


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with run_ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield Provider(server)


class Stage:
    """A running hub whose channels ``demo`` and ``second`` share a bucket, opened with ``key``."""

    def __init__(self, grid: Grid, provider: Provider, key: dict[str, str], url: str) -> None:
        self.grid = grid
        self.provider = provider
        self.key = key
        self.url = url

    async def rotate(self, key: dict[str, str], channel: str = "demo") -> dict[str, Any]:
        found = await self.grid.admin("channel.credentials.set", name=channel, credentials=document(key))
        return dict(found)

    async def refused(self, credentials: str) -> dict[str, Any]:
        """The error that other keys are answered."""
        connector = aiohttp.UnixConnector(str(self.grid.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(
                "http://hub/admin/channel.credentials.set", json={"name": "demo", "credentials": credentials}
            ) as response,
        ):
            assert response.status >= 400
            return dict((await response.json())["error"])


@pytest.fixture
async def stage(tmp_path: Path, provider: Provider, brief_probe: None) -> AsyncIterator[Stage]:
    grid = Grid(tmp_path)
    key = await asyncio.to_thread(provider.key)
    url = location(provider.server, f"lab/{secrets.token_hex(4)}")
    try:
        await grid.start()
        await grid.channel("demo", bucket=url, credentials=document(key))
        await grid.channel("second", bucket=url)
        yield Stage(grid, provider, key, url)
    finally:
        await grid.aclose()


def signer(signed: Signed | None) -> str:
    """The key that signed a URL."""
    assert signed is not None
    return parse_qs(urlsplit(signed.url).query)["X-Amz-Credential"][0].partition("/")[0]


@asynccontextmanager
async def pair(at: Stage, content: Content) -> AsyncIterator[tuple[Peer, Peer]]:
    """A holder that was asked for a stream, and a reader that wants it."""
    holder, reader = await at.grid.peer("holder"), await at.grid.peer("reader")
    await holder.added(content)
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    yield holder, reader


async def test_urls_of_the_old_keys_hold_and_new_ones_are_signed_by_the_new(stage: Stage) -> None:
    """A PUT and a GET signed before go through afterwards; every URL from then on, also for an object that is in the
    bucket and for the other channel on it, bears the new key; once the old one is deleted everything goes on."""
    at = stage
    old, new = at.key, await asyncio.to_thread(at.provider.key)
    content = Content(secrets.token_bytes(3 * 65536), await _lock(at))
    async with pair(at, content) as (holder, reader):
        await holder.upload(content, await holder.granted(0))
        ready = await until_ready(reader, content, 1)
        assert signer(ready[0]) == old["AccessKeyId"]
        grant = await holder.granted(1)
        put = (await holder.accept(content, grant)).put
        assert signer(put) == old["AccessKeyId"]

        answer = await at.rotate(new)
        assert answer["changed"]
        assert answer["channels"] == ["demo", "second"]
        assert [key["label"] for key in answer["keys"]] == [new["AccessKeyId"], old["AccessKeyId"]]
        assert answer["keys"][1]["safe_at"] > time.time() + 900

        assert put is not None
        assert (await send(put, content.object(1)))[0] == 200
        await holder.done(content, grant)
        assert (await send(ready[0]))[0] == 200
        later = await holder.granted(2)
        reply = await holder.accept(content, later)
        assert signer(reply.put) == new["AccessKeyId"]
        await asyncio.to_thread(at.provider.delete, old)
        assert reply.put is not None
        assert (await send(reply.put, content.object(2)))[0] == 200
        await holder.done(content, later)
        again = await until_ready(reader, content, 3)
        assert {signer(get) for get in again.values()} == {new["AccessKeyId"]}
        for number, get in again.items():
            assert await send(get) == (200, content.object(number))
        assert (await send(ready[0]))[0] == 403


async def _lock(at: Stage) -> Any:
    from entrepot.core.lock import SchemaLock

    shown = (await at.grid.admin("channel.show", name="demo"))["channel"]
    return SchemaLock("demo", miniblock=shown["miniblock"], object=shown["object"])


async def until_ready(reader: Peer, content: Content, count: int) -> dict[int, Signed]:
    """The GETs of a stream's objects once so many are ready."""
    async with asyncio.timeout(30):
        while True:
            reply = await reader.want(content)
            found = {state.number: state.get for state in reply.objects if state.get is not None}
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)


async def test_a_transfer_survives_changes_of_keys(stage: Stage, empty_home: Path) -> None:
    """Whole nodes move a file while the keys are replaced again and again: it comes, byte for byte."""
    at = stage
    site = Site(at.grid, empty_home / secrets.token_hex(4))
    data = secrets.token_bytes(60 * 65536)
    path = at.grid.folder / "original"
    await asyncio.to_thread(path.write_bytes, data)
    keys = [await asyncio.to_thread(at.provider.key) for _ in range(4)]
    changed = 0

    async def change() -> None:
        nonlocal changed
        for key in keys:
            await at.rotate(key, ("demo", "second")[changed % 2])
            changed += 1

    try:
        giver, taker = await site.node("giver"), await site.node("taker")
        await site.up("giver")
        uri = str((await giver.add(path)).uri)
        async with helping(change()):
            got = await taker.get(uri, at.grid.folder / "copy", deadline=60)
            assert await asyncio.to_thread(got.path.read_bytes) == data
            await until(lambda: changed == len(keys))
    finally:
        await site.aclose()
    shown = await at.grid.admin("channel.show", name="second")
    assert shown["key"]["label"] == keys[-1]["AccessKeyId"]


async def test_keys_that_do_not_work_change_nothing(stage: Stage) -> None:
    """Keys that the provider does not know, that may not write, that are none, and those of another server are refused
    with a reason that shows none of them; the bucket stays open with the old ones."""
    at = stage
    reading = await asyncio.to_thread(at.provider.key, "s3:Get*")
    secret = "not-the-secret-of-any-key"
    for given, kinds in (
        (json.dumps({"access_key": at.key["AccessKeyId"], "secret_key": secret}), {"denied", "bad-signature"}),
        (json.dumps({"access_key": "AKIANOBODY0000000000", "secret_key": secret}), {"denied", "bad-signature"}),
        (document(reading), {"denied", "no-right"}),
        (json.dumps({"access_key": "a", "secret_key": secret, "more": secret}), {"invalid-setting"}),
        (secret, {"invalid-setting"}),
    ):
        error = await at.refused(given)
        assert error["kind"] in kinds, error
        assert secret not in json.dumps(error)
        assert reading["SecretAccessKey"] not in json.dumps(error)
    shown = await at.grid.admin("channel.credentials.show", name="demo")
    assert [key["label"] for key in shown["keys"]] == [at.key["AccessKeyId"]]
    assert (await at.grid.admin("channel.credentials.set", name="demo", credentials=document(at.key)))[
        "changed"
    ] is False
    content = Content(secrets.token_bytes(70_000), await _lock(at))
    async with pair(at, content) as (holder, reader):
        await holder.upload(content, await holder.granted(0))
        assert signer((await until_ready(reader, content, 1))[0]) == at.key["AccessKeyId"]


async def test_another_hub_notices_within_seconds(stage: Stage) -> None:
    """A second hub on the same database, whose bucket is open, signs with the new keys soon, without being told."""
    at = stage
    new = await asyncio.to_thread(at.provider.key)
    settings = await asyncio.to_thread(load_settings, at.grid.folder / "hub")
    keys = await asyncio.to_thread(load_keys, settings)
    async with await asyncio.to_thread(lambda: Database(database_url(settings))) as database:
        registry = Registry(database, keys)
        custody = Custody(registry, Vault(keys, at.grid.hub_public, at.grid.url, time.time), time.time, "hub two")
        async with Channels(registry, custody.open, time.time) as channels:

            async def signed() -> str:
                bucket = (await channels.channel("demo")).bucket
                get = await bucket.sign_get("lab/x", None, 60)
                return parse_qs(urlsplit(get.url).query)["X-Amz-Credential"][0].partition("/")[0]

            assert await signed() == at.key["AccessKeyId"]
            await at.rotate(new)
            async with asyncio.timeout(20):
                while await signed() != new["AccessKeyId"]:
                    await asyncio.sleep(0.1)
            assert (await channels.channel("second")).edition == 1
        log = await registry.audit_log()
    used = [(entry.actor[:7], entry.detail["key"]) for entry in log if entry.action == "credentials.use"]
    assert used.count(("hub two", new["AccessKeyId"])) == 1
    assert used.count(("hub two", at.key["AccessKeyId"])) == 1
    own = [label for actor, label in used if actor != "hub two"]
    assert own == [at.key["AccessKeyId"], new["AccessKeyId"]]


async def test_the_command_line_says_what_the_owner_has_to_do(stage: Stage, tmp_path: Path) -> None:
    """``channel credentials set`` and ``show`` and ``channel show`` name the keys by what is no secret, and until when
    the old ones are needed, with a hub that runs and without; what they were given is not printed."""
    at = stage
    first, second = [await asyncio.to_thread(at.provider.key) for _ in range(2)]
    command = Command(tmp_path / "hub")
    file = tmp_path / "keys.json"
    await asyncio.to_thread(file.write_text, document(first))

    def ask(*arguments: str, **how: Any) -> str:
        done = command(*arguments, **how)
        said = done.stdout + done.stderr
        for key in (at.key, first, second):
            assert key["SecretAccessKey"] not in said
        return said

    said = await asyncio.to_thread(ask, "channel", "credentials", "set", "demo", "--credentials-file", str(file))
    assert f"the bucket of demo, second is opened with {first['AccessKeyId']} now" in said
    assert f"keep {at.key['AccessKeyId']} at the provider until " in said
    assert first["AccessKeyId"] in await asyncio.to_thread(ask, "channel", "show", "second")
    again = await asyncio.to_thread(ask, "channel", "credentials", "set", "demo", "--credentials-file", str(file))
    assert "has these keys already" in again
    await at.grid.stop()
    said = await asyncio.to_thread(
        ask, "channel", "credentials", "set", "second", "--credentials-stdin", stdin=document(second)
    )
    assert f"keep {first['AccessKeyId']} at the provider until " in said
    said = await asyncio.to_thread(ask, "channel", "credentials", "show", "demo")
    assert "in use" in said
    assert said.count("needed until") == 2
    audit = await asyncio.to_thread(ask, "audit")
    assert second["AccessKeyId"] in audit
    await asyncio.to_thread(lambda: ask("channel", "credentials", "set", "demo", code=2))


async def test_a_bucket_that_still_goes_by_the_retired_key_is_named(stage: Stage) -> None:
    """A channel on another prefix has keys of its own: who would delete the old key is told of it, until it has others
    too."""
    at = stage
    url = location(at.provider.server, f"lab/{secrets.token_hex(4)}")
    await at.grid.channel("third", bucket=url, credentials=document(at.key))
    new = await asyncio.to_thread(at.provider.key)
    assert (await at.rotate(new))["others"] == ["third"]
    await at.rotate(new, "third")
    assert (await at.grid.admin("channel.credentials.show", name="demo"))["others"] == []
