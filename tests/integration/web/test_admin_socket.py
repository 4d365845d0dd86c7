"""The admin's socket: who may open it, what a dead hub leaves, what two hubs do."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading

import aiohttp
import pytest

from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot_hub.services.administration import (
    AuditPage,
    ChannelCreate,
    ChannelNamed,
    InviteCreate,
    MemberGrant,
    MemberRevoke,
    NodeNamed,
    Nothing,
)
from entrepot_hub.services.operations import OPERATIONS
from entrepot_hub.services.web.admin import AdminSocket
from entrepot_hub.services.web.admin_client import AdminClient, answers

pytestmark = pytest.mark.blocking  # looks at files


async def test_only_the_owner_may_open_it(hub):
    """The file is a socket with mode 0600 and goes when the hub stops."""
    mode = hub.settings.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_it_is_never_open_to_others_whatever_the_umask(tmp_path):
    """With the widest umask nobody sees a socket that others could open, not for an instant."""
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            for entry in os.scandir(tmp_path):
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISSOCK(found.st_mode) and entry.name == "hub.sock":
                    seen.add(stat.S_IMODE(found.st_mode))

    before = os.umask(0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(50):
            async with AdminSocket(tmp_path / "hub.sock"):
                await asyncio.sleep(0.001)
    finally:
        os.umask(before)
        stop.set()
        watcher.join()
    assert seen <= {0o600}
    assert seen


async def test_a_dead_hubs_socket_is_replaced(tmp_path):
    """A file that nobody listens at is in nobody's way."""
    path = tmp_path / "hub.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    assert not answers(path)
    async with AdminSocket(path):
        assert answers(path)
    assert not path.exists()


async def test_a_living_hubs_socket_is_not_touched(tmp_path, hub):
    """A second hub in the same folder is refused, and the first goes on answering."""
    with pytest.raises(Conflict) as caught:
        async with AdminSocket(hub.settings.socket):
            pass
    assert caught.value.kind == "in-use"
    async with AdminClient(hub.settings.socket) as client:
        assert (await client.call("status", Nothing())).running


async def test_whoever_answers_is_left_alone_without_a_lock_too(tmp_path):
    """Where the other hub holds no lock (another file system), that it answers is enough."""
    path = tmp_path / "hub.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Conflict):
            async with AdminSocket(path):
                pass
        assert answers(path)


async def test_of_hubs_that_start_together_one_wins(tmp_path):
    """Many at once: one socket, and it answers."""
    path = tmp_path / "hub.sock"
    sockets = [AdminSocket(path) for _ in range(20)]
    outcomes = await asyncio.gather(*(one.__aenter__() for one in sockets), return_exceptions=True)
    winners = [one for one, outcome in zip(sockets, outcomes, strict=True) if outcome is one]
    assert len(winners) == 1
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome is not winners[0])
    assert answers(path)
    await winners[0].aclose()
    await winners[0].aclose()
    assert not path.exists()


async def test_a_path_that_is_too_long_is_told(tmp_path):
    """Sockets have short paths: the hint says how short."""
    with pytest.raises(InvalidInput, match="too long"):
        async with AdminSocket(tmp_path / ("x" * 100) / "hub.sock"):
            pass


async def test_a_folder_that_cannot_be_written(tmp_path):
    """A missing folder is our error, not the system's."""
    with pytest.raises(Denied):
        async with AdminSocket(tmp_path / "none" / "hub.sock"):
            pass


def test_a_file_that_is_no_socket_is_told(tmp_path):
    """Something else at the path is neither a hub nor none."""
    path = tmp_path / "hub.sock"
    path.write_text("")
    with pytest.raises(EntrepotError):
        answers(path)


async def test_every_operation_works_through_it(hub):
    """The whole life of a channel and a node, in the audit log as the admin's."""
    key = hub.key()
    await hub.registry.add_node(key.public, "lab", now=hub.clock())
    bucket = (hub.settings.folder / "b").as_uri()
    async with AdminClient(hub.settings.socket) as client:
        made = await client.call(
            "channel.create", ChannelCreate(name="new", bucket=bucket, quota=1 << 30, create_bucket=True)
        )
        assert (made.name, made.quota, made.charged) == ("new", 1 << 30, 0)
        assert [c.name for c in await client.call("channel.list", Nothing())] == ["demo", "new"]
        invite = await client.call("channel.invite", InviteCreate(name="new", uses=3))
        assert invite.url.startswith(hub.url + "/j/")
        member = await client.call("channel.grant", MemberGrant(name="new", node="lab", rights="request"))
        assert (member.node, member.rights) == (key.public, "request:files")
        member = await client.call("channel.revoke", MemberRevoke(name="new", node="lab"))
        assert not member.active
        detail = await client.call("channel.show", ChannelNamed(name="new"))
        assert [m.name for m in detail.members] == ["lab"]
        assert [i.uses for i in detail.invites] == [3]
        assert (await client.call("node.suspend", NodeNamed(node="lab"))).status == "suspended"
        assert (await client.call("node.resume", NodeNamed(node="lab"))).status == "active"
        assert [n.name for n in await client.call("node.list", Nothing())] == ["lab"]
        log = await client.call("audit", AuditPage())
        assert {entry.actor for entry in log} == {"admin"}
        status = await client.call("status", Nothing())
        assert (status.hub, status.running, status.channels, status.nodes) == (hub.hub_public, True, 2, 1)
    assert set(OPERATIONS) >= {
        "channel.create",
        "channel.list",
        "channel.show",
        "channel.invite",
        "channel.grant",
        "channel.revoke",
        "node.list",
        "node.suspend",
        "node.resume",
        "audit",
        "status",
    }
    assert hub.heard.channels == ["demo", "new"]
    assert hub.heard.revoked == [(key.public, "new"), (key.public, None)]
    assert hub.heard.granted == [(key.public, "new"), (key.public, None)]


async def test_errors_come_through_it_whole(hub):
    """Kinds and data of the operation's error reach the command."""
    async with AdminClient(hub.settings.socket) as client:
        with pytest.raises(NotFound) as caught:
            await client.call("channel.show", ChannelNamed(name="none"))
    assert (caught.value.kind, caught.value.data) == ("no-such-channel", {"channel": "none"})


async def test_the_admins_paths_are_not_served_to_nodes(hub, http):
    """What the socket does cannot be reached by the network, nor the other way round."""
    async with http.post(f"{hub.url}/admin/node.list", json={}) as response:
        assert response.status == 404
    connector = aiohttp.UnixConnector(str(hub.settings.socket))
    async with aiohttp.ClientSession(connector=connector) as local:
        async with local.post("http://hub/admin/nothing", json={}) as response:
            assert response.status == 404
        async with local.post("http://hub/admin/node.list", json={"more": 1}) as response:
            assert (await response.json())["error"]["kind"] == "invalid-message"
        async with local.get("http://hub/v1/hub") as response:
            assert response.status == 404


async def test_a_client_without_a_hub_says_so(tmp_path):
    """No library's error comes out."""
    async with AdminClient(tmp_path / "none.sock") as client:
        with pytest.raises(RetryLater) as caught:
            await client.call("status", Nothing())
    assert caught.value.kind == "hub-unreachable"
    with pytest.raises(RetryLater):
        await client.call("status", Nothing())
