"""What the message bus itself takes from one node: connections, subscriptions, bytes, time to log in."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.servers.nats import Member, Nats, running_nats

from entrepot.adapters.bus import Message
from entrepot.core import subjects
from entrepot.core.keyring import sign_nonce
from entrepot_hub.adapters import nats_server
from entrepot_hub.adapters.nats_server import NatsServerSettings
from entrepot_hub.core.nats_identity import NatsLimits

DEMO = [("demo", ["request", "provide"])]
LIMITS = NatsLimits(subscriptions=20, connections=8)


class Raw:
    """A client that does as it likes; it says nothing that it was not told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, *lines: bytes) -> None:
        self.writer.write(b"".join(line + b"\r\n" for line in lines))
        await self.writer.drain()

    async def until(self, *words: bytes) -> bytes:
        """The first line with one of these words, or b"" when the server hangs up."""
        async with asyncio.timeout(30):
            while line := await self._line():
                if any(word in line for word in words):
                    return line
            return b""

    async def _line(self) -> bytes:
        try:
            return await self.reader.readline()
        except ConnectionError:
            return b""


@asynccontextmanager
async def raw(nats: Nats, member: Member | None) -> AsyncIterator[Raw]:
    """A connection, logged in as the member if there is one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", nats.server.port)
    client = Raw(reader, writer)
    try:
        info = json.loads((await client.until(b"INFO"))[5:])
        if member is not None:
            signature = base64.urlsafe_b64encode(sign_nonce(member.key, info["nonce"])).rstrip(b"=").decode()
            options = {"jwt": member.jwt, "sig": signature, "verbose": False, "pedantic": False, "lang": "raw"}
            await client.say(b"CONNECT " + json.dumps({**options, "version": "0", "protocol": 1}).encode(), b"PING")
        yield client
    finally:
        writer.close()


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A server with small limits."""
    async with running_nats(tmp_path / "nats", limits=LIMITS, settings=NatsServerSettings()) as running:
        yield running


async def speaks(nats: Nats, honest: Member) -> None:
    """Another member's word gets through to the hub."""
    heard: asyncio.Queue[Message] = asyncio.Queue()
    async with nats.hub() as hub, honest.bus() as bus:
        await hub.wait_connected(30)
        await bus.wait_connected(30)
        await hub.subscribe(subjects.hub_pattern("want"), heard.put_nowait)
        await hub.flush()
        await bus.publish(subjects.hub_verb("demo", "want", honest.public), b"hello")
        async with asyncio.timeout(30):
            assert (await heard.get()).payload == b"hello"


async def test_a_node_has_so_many_subscriptions(nats: Nats, report: Callable[..., None]) -> None:
    """One that makes more is refused them by the server; others go on."""
    greedy, honest = nats.member(DEMO), nats.member(DEMO)
    async with raw(nats, greedy) as client:
        assert await client.until(b"PONG", b"-ERR") == b"PONG\r\n"
        await client.say(*(f"SUB c.demo.state.{number} {number}".encode() for number in range(LIMITS.subscriptions)))
        await client.say(b"PING")
        assert await client.until(b"PONG", b"-ERR") == b"PONG\r\n"
        await client.say(b"SUB c.demo.state.more 900")
        assert b"maximum subscriptions" in (await client.until(b"-ERR")).lower()
        await client.say(b"UNSUB 0", b"SUB c.demo.state.other 901", b"PING")
        assert await client.until(b"PONG", b"-ERR") == b"PONG\r\n", "what it gives up it may have again"
    await speaks(nats, honest)
    report("attacks", attack="subscriptions without end", defended_by="the bus refuses a node more than 4,096")


async def test_a_message_has_so_many_bytes(nats: Nats, report: Callable[..., None]) -> None:
    """One that announces more is cut off before it has sent it."""
    greedy, honest = nats.member(DEMO), nats.member(DEMO)
    async with raw(nats, greedy) as client:
        await client.until(b"PONG")
        await client.say(f"PUB hub.demo.want.{greedy.public} {LIMITS.payload + 1}".encode())
        assert b"maximum payload" in (await client.until(b"-ERR")).lower()
        assert await client.until(b"PONG") == b""
    await speaks(nats, honest)
    report("attacks", attack="a message beyond 64 KiB", defended_by="the bus cuts the node off")


async def test_a_line_has_so_many_bytes(nats: Nats) -> None:
    """A command that does not end is cut off."""
    async with raw(nats, nats.member(DEMO)) as client:
        await client.until(b"PONG")
        await client.say(b"SUB " + b"x" * 2 * LIMITS.control_line)
        assert await client.until(b"PONG") == b""
    await speaks(nats, nats.member(DEMO))


async def test_all_nodes_have_so_many_connections(nats: Nats, report: Callable[..., None]) -> None:
    """When the account's are used up the next one is refused, the hub still gets in, and there is room again when one
    of them goes."""
    members = [nats.member(DEMO) for _ in range(LIMITS.connections)]
    async with raw(nats, members[0]) as first:
        await first.until(b"PONG")
        inside = [raw(nats, member) for member in members[1:]]
        clients = [await each.__aenter__() for each in inside]
        try:
            for client in clients:
                assert await client.until(b"PONG", b"-ERR") == b"PONG\r\n"
            async with raw(nats, nats.member(DEMO)) as late:
                assert b"maximum account active connections" in (await late.until(b"-ERR")).lower()
            first.writer.close()
            answer = b""
            async with asyncio.timeout(30):
                while b"PONG" not in answer:
                    async with raw(nats, nats.member(DEMO)) as again:
                        answer = await again.until(b"PONG", b"-ERR")
        finally:
            for each in inside:
                await each.__aexit__(None, None, None)
    report("attacks", attack="connections to the bus without end", defended_by="a bound for all nodes together")


async def test_whoever_does_not_log_in_is_cut_off(tmp_path: Path, report: Callable[..., None]) -> None:
    """A stranger's silent connection lasts as long as logging in may take."""
    limits = replace(LIMITS, log_in=1)
    async with running_nats(tmp_path / "nats", limits=limits) as nats, raw(nats, None) as silent:
        assert b"timeout" in (await silent.until(b"-ERR")).lower()
        assert await silent.until(b"PONG") == b""
    report("attacks", attack="silent connections to the bus", defended_by="5 s to log in")


async def test_whoever_does_not_read_is_cut_off(tmp_path: Path, report: Callable[..., None]) -> None:
    """What waits for a slow reader is bounded: it loses its connection, and the speaker is not held up."""
    limits = replace(LIMITS, pending=1 << 20, write_deadline=1)
    async with running_nats(tmp_path / "nats", limits=limits) as nats:
        lazy = nats.member(DEMO)
        async with raw(nats, lazy) as client, nats.hub() as hub:
            await client.until(b"PONG")
            await hub.wait_connected(30)
            await client.say(f"SUB n.{lazy.public}.> 1".encode(), b"PING")
            await client.until(b"PONG")
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(600):  # more than all buffers between the two
                await hub.publish(subjects.node_seek(lazy.public), bytes(60_000))
            await hub.flush()
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(60):
                while await client.reader.read(1 << 16):
                    pass
        await speaks(nats, nats.member(DEMO))
    report(
        "attacks", attack="a subscriber that does not read", defended_by="16 MiB that wait for it, then it is cut off"
    )


@pytest.mark.blocking
async def test_strangers_do_not_fill_the_disk_with_the_servers_log(
    nats: Nats, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    """A log that has grown long is begun afresh while the server runs, and what follows is still written."""
    log = nats.server.log
    monkeypatch.setattr(nats_server, "_MAX_LOG", 1)
    before = log.stat().st_size
    assert before > 1
    await nats.server.shorten_log()
    assert log.stat().st_size < before
    monkeypatch.setattr(nats_server, "_MAX_LOG", 1 << 20)
    async with raw(nats, None) as stranger:
        await stranger.say(b'CONNECT {"jwt":"nonsense","sig":"nonsense"}')
        assert await stranger.until(b"PONG") == b""
    async with asyncio.timeout(30):
        while b"authentication" not in (text := log.read_bytes()).lower():
            await asyncio.sleep(0.05)
    assert b"\0" not in text, "no hole where the old lines were"
    report("attacks", attack="failed log-ins that fill the bus's log", defended_by="16 MiB, then it is begun afresh")
