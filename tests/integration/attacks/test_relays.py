"""Signatures and names passed on: what one server got from a node is shown to another."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from aiohttp import web
from tests.integration.attacks.conftest import Refused
from tests.integration.node.conftest import Site
from tests.servers.grid import Grid, Peer, free_port, running_grid
from tests.servers.nats import Nats, running_nats

from entrepot.core import subjects
from entrepot.core.api import ChannelInfo, HubInfo, Joined, JoinRequest, SessionInfo
from entrepot.core.errors import Denied
from entrepot.core.invite import Invite
from entrepot.core.keyring import derive_node_key, sign_nonce
from entrepot.core.lock import SchemaLock
from entrepot.core.nkeys import SigningKey, decode_public


@dataclass
class Impostor:
    """A server of a stranger that calls itself by another hub's key, and passes on to that hub what helps."""

    victim: Grid
    lock: SchemaLock
    proof: str
    url: str = field(init=False)
    told: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Impostor]:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        app = web.Application()
        app.router.add_get("/v1/hub", self.hub)
        app.router.add_post("/v1/join", self.join)
        app.router.add_post("/v1/session", self.session)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    def invite(self) -> str:
        """An invite to the stranger's address under the hub's key."""
        return Invite(self.url, os.urandom(16), os.urandom(16), decode_public(self.victim.hub_public)[1]).join_url()

    async def hub(self, request: web.Request) -> web.Response:
        """Pass the challenge on to the hub, as it came or for the hub's own address; or make something up."""
        query = dict(request.query)
        if self.proof == "for the hub's own address":
            query["address"] = self.victim.url
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{self.victim.url}/v1/hub", params=query) as answer,
        ):
            info = msgspec.json.decode(await answer.read(), type=HubInfo)
        if self.proof == "made up":
            info = msgspec.structs.replace(info, proof=secrets.token_hex(64))
        return web.Response(body=msgspec.json.encode(info), content_type="application/json")

    async def join(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=JoinRequest)
        self.told.append(asked.node)
        joined = Joined(hub=self.victim.hub_public, channel="demo", rights="provide:files", name=asked.name)
        return web.Response(body=msgspec.json.encode(joined), content_type="application/json")

    async def session(self, _request: web.Request) -> web.Response:
        channel = ChannelInfo(
            name="demo",
            lock=self.lock.canonical().decode(),
            lock_id=self.lock.hex,
            rights="provide:files",
            quota=1 << 30,
            public_read=False,
        )
        info = SessionInfo(
            hub=self.victim.hub_public,
            node=self.told[-1],
            name="victim",
            jwt="e30.e30.e30",
            jwt_expires=time.time() + 3600,
            nats=("nats://127.0.0.1:9",),
            inbox=f"_INBOX.{self.told[-1]}",
            instance="0" * 16,
            channels=(channel,),
            time=time.time(),
        )
        return web.Response(body=msgspec.json.encode(info), content_type="application/json")


@pytest.fixture
async def site(grid: Grid, empty_home: Path) -> AsyncIterator[Site]:
    """Whole nodes at the hub."""
    site = Site(grid, empty_home / secrets.token_hex(4))
    try:
        yield site
    finally:
        await site.aclose()


@pytest.mark.parametrize("proof", ["as it was asked", "for the hub's own address", "made up"])
async def test_no_stranger_takes_a_hubs_place(
    grid: Grid, lock: SchemaLock, site: Site, proof: str, refused: Refused
) -> None:
    """An invite to a stranger's address that names the key of a hub one has joined is refused: else what was added
    for that hub's channels would be offered to the stranger."""
    node = await site.node("victim")
    before = await node.whoami()
    async with Impostor(grid, lock, proof).running() as impostor:
        with pytest.raises(Denied, match="does not prove"):
            await node.join(impostor.invite(), name="victim")
        assert impostor.told == []
    assert await node.whoami() == before
    await node.join(await grid.invite(), name="victim")  # the hub itself does prove it
    refused("an invite that passes off a stranger's address as a hub's")


async def test_a_hub_signs_for_its_own_addresses_alone(grid: Grid) -> None:
    """Whatever else is asked of it, there is no signature in the answer."""
    async with aiohttp.ClientSession() as http:
        for query, status in (
            ({"challenge": "0" * 32, "address": "http://stranger.example"}, 200),
            ({"challenge": "0" * 32}, 200),
            ({"address": grid.url}, 200),
            ({"challenge": "0" * 30, "address": grid.url}, 400),
            ({"challenge": "x" * 32, "address": grid.url}, 400),
            ({"challenge": "", "address": grid.url}, 400),
        ):
            async with http.get(f"{grid.url}/v1/hub", params=query) as answer:
                assert answer.status == status
                if status == 200:
                    assert msgspec.json.decode(await answer.read(), type=HubInfo).proof == ""


async def log_in(url: str, jwt: str, key: SigningKey, *, nonce: str | None = None) -> str:
    """Log in at a nats-server by hand: sign its nonce, or another one; what it answers."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        info = json.loads((await reader.readline()).removeprefix(b"INFO "))
        signature = base64.urlsafe_b64encode(sign_nonce(key, nonce or info["nonce"])).rstrip(b"=").decode()
        words = {"jwt": jwt, "sig": signature, "protocol": 1, "verbose": False, "lang": "test", "version": "0"}
        writer.write(b"CONNECT " + json.dumps(words).encode() + b"\r\nPING\r\n")
        while True:
            line = (await asyncio.wait_for(reader.readline(), 10)).decode().strip()
            if line == "PING":
                writer.write(b"PONG\r\n")
            elif not line.startswith("INFO"):
                return line
    finally:
        writer.close()


async def test_a_nonce_passed_on_by_another_hub_logs_nobody_in(tmp_path: Path, refused: Refused) -> None:
    """A hub that has its NATS server ask a node for the nonce of another hub's server gets a signature that counts
    for nothing there: the node's key is another one at each hub. Nor does a signature of an older nonce."""
    async with running_grid(tmp_path / "evil") as evil, running_grid(tmp_path / "good") as good:
        await good.channel("demo")
        victim: Peer = await good.peer("victim")
        assert victim.info is not None
        [nats, *_], jwt = victim.info.nats, victim.info.jwt
        assert await log_in(nats, jwt, victim.key) == "PONG"
        elsewhere = derive_node_key(victim.seed, evil.hub_public)
        assert "Authorization" in await log_in(nats, jwt, elsewhere)
        assert "Authorization" in await log_in(nats, jwt, victim.key, nonce="A" * 22)
    refused("replay and relay of signatures")


@pytest.mark.parametrize("rights", [[], [("demo", [])]], ids=["nowhere", "nothing"])
async def test_who_has_no_rights_is_heard_nowhere(
    tmp_path: Path, rights: list[tuple[str, list[str]]], refused: Refused
) -> None:
    """A template without a tag to fill in permits nothing: a node in no channel says and hears nothing."""
    nats: Nats
    async with running_nats(tmp_path / "nats") as nats:
        member = nats.member(rights)
        async with member.bus() as bus:
            await bus.wait_connected(10)
            for subject in (
                subjects.hub_verb("demo", "want", member.public),
                subjects.hub_offer("demo", "0" * 16, member.public),
                f"hub.{{{{tag(r)}}}}.want.{member.public}",
                "hub",
                "c.demo.seek",
                f"n.{member.public}.0.grant",
            ):
                with pytest.raises(Denied):
                    await bus.publish(subject, b"", confirm=True)
            for pattern in ("c.demo.seek", "c.demo.state.>", "c..state.>", ">", "hub.>"):
                with pytest.raises(Exception):  # noqa: B017, PT011  # denied, or no subject at all
                    await bus.subscribe(pattern, lambda _: None)
    refused("publish or subscribe on another channel or inbox")
