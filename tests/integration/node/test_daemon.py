"""The daemon as a process and as a local API: one for a store, detached, robust against nonsense and other hubs."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import signal
import socket
import stat
from pathlib import Path

import aiohttp
import pytest
from tests.integration.node.conftest import Site
from tests.servers.grid import running_grid

from entrepot.core.errors import NotFound
from entrepot.services.daemon import Daemon
from entrepot.services.daemon_client import DaemonClient
from entrepot.services.node import Node


async def test_the_socket_is_its_owners_only(site: Site) -> None:
    """Nobody else on the machine can open the daemon's socket, and it is gone when the daemon has ended."""
    node = await site.node("giver")
    await site.up("giver")
    path = node.settings.socket
    status = await asyncio.to_thread(path.stat)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    await site.down("giver")
    assert not await asyncio.to_thread(path.exists)
    with pytest.raises(NotFound) as caught:
        await node.daemon.status()
    assert caught.value.kind == "not-running"


@pytest.mark.blocking
async def test_a_socket_left_by_a_kill_is_replaced(site: Site) -> None:
    """A socket file that nobody answers at does not keep a daemon from starting."""
    node = await site.node("giver")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(node.settings.socket))
    dead.close()
    assert not await node.daemon.running()
    await site.up("giver")
    assert await node.daemon.running()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/", b"", 404, "unsupported"),
        ("POST", "/v1/status", b"", 405, "unsupported"),
        ("POST", "/v1/added", b"", 400, "invalid-message"),
        ("POST", "/v1/added", b'{"streams": 3}', 400, "invalid-message"),
        ("POST", "/v1/added", b'{"streams": ["00"]}', 400, "invalid-message"),
        ("POST", "/v1/added", b'{"streams": [], "more": 1}', 400, "invalid-message"),
        ("POST", "/v1/added", b"[" * 10_000, 400, "invalid-message"),
        ("POST", "/v1/added", b"\xff\xfe", 400, "invalid-message"),
        ("POST", "/v1/added", b" " * (5 << 20), 413, "unsupported"),
    ],
)
async def test_nonsense_is_answered_as_an_error(
    site: Site, method: str, path: str, body: bytes, status: int, kind: str
) -> None:
    """Whatever is sent to the local API, the answer is our error as JSON and the daemon goes on."""
    node = await site.node("giver")
    await site.up("giver")
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(node.settings.socket))) as http,
        http.request(method, f"http://daemon{path}", data=io.BytesIO(body)) as response,
    ):
        answer = await response.json()
        assert (response.status, answer["error"]["kind"]) == (status, kind)
    assert await node.daemon.running()


async def test_two_daemons_started_at_once(site: Site) -> None:
    """Of several daemons started together for one store exactly one serves; the others are told."""
    await site.node("giver")
    daemons = [Daemon(site.settings("giver")) for _ in range(4)]
    tasks = [asyncio.create_task(daemon.run(signals=False)) for daemon in daemons]
    async with asyncio.timeout(20):
        while sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    (left,) = [at for at, task in enumerate(tasks) if not task.done()]
    assert {task.exception().kind for task in tasks if task.done()} == {"in-use"}  # type: ignore[union-attr]
    assert (await DaemonClient(site.settings("giver")).status()).instance == daemons[left].instance
    daemons[left].stop()
    await tasks[left]


async def test_one_hub_that_is_away_does_not_stop_another(site: Site, tmp_path: Path, original: Path) -> None:
    """A node at two hubs serves at the one that is there; a name known at both has to be qualified."""
    (tmp_path / "second").mkdir()
    async with running_grid(tmp_path / "second") as second:
        await second.channel("demo")
        giver = await site.node("giver")
        await giver.join(await second.invite("demo"), name="giver")
        added = await giver.add(original, hub=f"127.0.0.1:{site.grid.port}")
        await second.stop()
        daemon = Daemon(giver.settings)
        ready = asyncio.Event()
        task = asyncio.create_task(daemon.run(ready=ready.set, signals=False))
        try:
            async with asyncio.timeout(20):
                await ready.wait()
                while {hub.state for hub in (await daemon.status()).hubs} != {"up", "unreachable"}:
                    await asyncio.sleep(0.02)
            taker = await site.node("taker")
            got = await taker.get(added.uri, tmp_path / "copy")
            assert got.fetched_bytes == original.stat().st_size
        finally:
            daemon.stop()
            await task


async def test_a_detached_daemon_serves_and_ends(site: Site, original: Path, tmp_path: Path) -> None:
    """The daemon that is started in the background outlives the call, serves, is found again and can be stopped."""
    giver, taker = await site.node("giver"), await site.node("taker")
    added = await giver.add(original)
    assert not added.served
    client = DaemonClient(giver.settings)
    started = await client.start_detached()
    try:
        assert started.pid != os.getpid()
        assert (await client.start_detached()).pid == started.pid
        got = await taker.get(added.uri, tmp_path / "copy", deadline=30)
        assert got.length == original.stat().st_size
    finally:
        await client.stop()
    assert not await client.running()


async def test_a_killed_process_is_replaced_by_another_holder(site: Site, tmp_path: Path) -> None:
    """SIGKILL of the holder's process in the middle of a get costs seconds: another holder finishes it."""
    path = tmp_path / "large"
    path.write_bytes(secrets.token_bytes(60 * 65536))
    one, two, taker = await site.node("one"), await site.node("two"), await site.node("taker")
    added = await one.add(path)
    client = DaemonClient(one.settings)
    started = await client.start_detached()
    getting = asyncio.create_task(taker.get(added.uri, tmp_path / "copy", deadline=30))
    async with asyncio.timeout(20):
        while len(site.grid.objects()) < 5:
            await asyncio.sleep(0.002)
    os.kill(started.pid, signal.SIGKILL)
    await site.up("two")
    await two.add(path)
    got = await getting
    assert await asyncio.to_thread(got.path.read_bytes) == await asyncio.to_thread(path.read_bytes)
    assert not await client.running()


async def test_a_daemon_that_cannot_start_says_why(site: Site) -> None:
    """A detached daemon that ends at once is reported with the last line of its log."""
    settings = site.settings("broken")
    await asyncio.to_thread(settings.home.mkdir, parents=True)
    await asyncio.to_thread(settings.store_folder.write_bytes, b"not a folder")
    with pytest.raises(NotFound) as caught:
        await DaemonClient(settings).start_detached()
    assert caught.value.kind == "not-running"
    assert caught.value.hint is not None


async def test_a_node_can_be_opened_and_closed_from_different_tasks(site: Site) -> None:
    """Entering in one task and leaving in another works, as blocking callers do."""
    node = Node(site.settings("wanderer"))
    await asyncio.create_task(node.__aenter__())
    await node.join(await site.grid.invite("demo"), name="wanderer")
    await node.aclose()
    await node.aclose()


async def test_a_node_keeps_its_name_when_it_joins_another_channel(site: Site) -> None:
    """Without a name it joins under the one that it has at that hub already, not under the machine's."""
    node = await site.node("lab")
    await site.grid.channel("second")
    joined = await node.join(await site.grid.invite("second"))
    assert joined.name == "lab"
    assert {identity.name for identity in await node.whoami()} == {"lab"}
