"""Revocation, readmission and the events of connections, with a real server."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from tests.servers.nats import Nats

from entrepot.adapters.bus import BusState
from entrepot.core import subjects
from entrepot.core.errors import Denied, InvalidInput, RetryLater
from entrepot_hub.adapters.accounts import Accounts, ConnectionEvent

SESSION = "0123456789abcdef"


async def until(condition, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_revoked_node_is_gone_and_stays_out(nats: Nats) -> None:
    """Revocation ends the connection; with the hub denying a new JWT the bus ends as revoked."""
    member = nats.member([("demo", ["request"])])
    async with nats.system() as system, member.bus() as bus:
        await system.wait_connected(5)
        await bus.wait_connected(5)
        member.denied = Denied("you were removed", kind="revoked")
        await Accounts(system, nats.identity, clock=time.time).revoke(member.public)
        await until(lambda: bus.state is BusState.REVOKED)
        for call in (
            bus.publish(subjects.hub_verb("demo", "want", member.public), b""),
            bus.request(subjects.hub_verb("demo", "want", member.public), b"", 1),
            bus.subscribe(subjects.node_seek(member.public), lambda _: None),
            bus.wait_connected(1),
            bus.refresh(),
        ):
            with pytest.raises(Denied) as caught:
                await call
            assert caught.value.kind == "revoked"
    async with member.bus() as again:
        with pytest.raises(Denied):
            await again.wait_connected(10)


async def test_others_stay_when_one_is_revoked(nats: Nats) -> None:
    """A revocation touches one node only."""
    member, other = nats.member([("demo", ["request"])]), nats.member([("demo", ["request"])])
    async with nats.system() as system, member.bus() as bus, other.bus() as stays:
        for each in (system, bus, stays):
            await each.wait_connected(5)
        member.denied = Denied("you were removed", kind="revoked")
        await Accounts(system, nats.identity, clock=time.time).revoke(member.public)
        await until(lambda: bus.state is BusState.REVOKED)
        await stays.publish(subjects.hub_verb("demo", "want", other.public), b"", confirm=True)
        assert (stays.stats.connects, stays.stats.losses) == (1, 0)


async def test_a_node_let_in_again_works(nats: Nats) -> None:
    """A JWT issued after the revocation logs in, though the revocation is still listed; the old one does
    not.
    """
    member = nats.member([("demo", ["request"])])
    old = member.jwt
    async with nats.system() as system:
        await system.wait_connected(5)
        accounts = Accounts(system, nats.identity, clock=time.time)
        member.after = await accounts.revoke(member.public)
        member.issue()
        async with member.bus() as bus:
            await bus.wait_connected(10)
            await accounts.push()
            await bus.publish(subjects.hub_verb("demo", "want", member.public), b"", confirm=True)
        member.jwt, member.denied = old, Denied("old", kind="revoked")
        async with member.bus() as bus:
            with pytest.raises(Denied):
                await bus.wait_connected(10)


async def test_a_revoked_node_that_may_renew_comes_back_with_its_subscriptions(nats: Nats) -> None:
    """When the hub gives a new JWT at once, the node is back by itself and hears what it heard."""
    member = nats.member([("demo", ["provide"])])
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    async with nats.system() as system, nats.hub() as hub, member.bus() as bus:
        for each in (system, hub, bus):
            await each.wait_connected(5)
        await bus.subscribe(subjects.channel_seek("demo"), lambda m: heard.put_nowait(m.payload))
        member.after = int(time.time())
        await Accounts(system, nats.identity, clock=time.time).revoke(member.public, member.after)
        await until(lambda: bus.stats.losses == 1 and bus.connected)
        await hub.publish(subjects.channel_seek("demo"), b"seek")
        async with asyncio.timeout(10):
            assert await heard.get() == b"seek"


async def test_only_a_nodes_key_is_revoked(nats: Nats) -> None:
    """A text that is no node's key is refused before anything is pushed: `*` would revoke everybody."""
    accounts = Accounts(nats.system(), nats.identity, clock=time.time)
    for text in ("*", "", nats.identity.account.public):
        with pytest.raises(InvalidInput):
            await accounts.revoke(text)
    assert accounts.revocations == {}


async def test_expired_revocations_are_dropped(nats: Nats) -> None:
    """A revocation that has outlived every JWT it could kill leaves the list; the latest of a node counts."""
    now = 1_000_000.0
    system = nats.system()
    accounts = Accounts(system, nats.identity, clock=lambda: now, life=3600)
    old, fresh = nats.member([]).public, nats.member([]).public
    accounts.load({old: now - 4000, fresh: now - 100})
    accounts.load({fresh: now - 200})
    assert accounts.revocations == {fresh: int(now - 100)}


async def test_what_the_server_refuses_is_an_error(nats: Nats) -> None:
    """A push that no server takes raises RetryLater with the server's reason."""
    async with nats.system() as system:
        await system.wait_connected(5)
        accounts = Accounts(system, nats.identity, clock=time.time)
        with pytest.raises(RetryLater) as caught:
            await accounts.push_account("junk")
        assert "chunks" in str(caught.value)


async def test_the_events_name_node_session_and_reason(nats: Nats) -> None:
    """Connect, planned reconnect and revocation are told in order, by node and session; the hub is not
    told of.
    """
    member = nats.member([("demo", ["request"])])
    events: list[ConnectionEvent] = []
    async with nats.system() as system, nats.hub() as hub:
        await system.wait_connected(5)
        accounts = Accounts(system, nats.identity, clock=time.time)
        await accounts.listen(events.append)
        await hub.wait_connected(5)
        await hub.refresh()
        async with member.bus(name=subjects.connection_name(SESSION, "daemon")) as bus:
            await bus.wait_connected(5)
            await until(lambda: len(events) == 1)
            await bus.refresh()
            await until(lambda: len(events) == 3)
            member.denied = Denied("gone", kind="revoked")
            await accounts.revoke(member.public)
            await until(lambda: len(events) == 4)
    assert [event.connected for event in events] == [True, False, True, False]
    assert {(event.node, event.session, event.kind) for event in events} == {(member.public, SESSION, "daemon")}
    first, second, third, fourth = (event.connection for event in events)
    assert first == second
    assert third == fourth
    assert first != third
    assert all(event.reason for event in events if not event.connected)


async def test_a_connection_without_a_sessions_name_has_no_session(nats: Nats) -> None:
    """A client with any other name is told of by its key alone."""
    member = nats.member([])
    events: list[ConnectionEvent] = []
    async with nats.system() as system:
        await system.wait_connected(5)
        await Accounts(system, nats.identity, clock=time.time).listen(events.append)
        async with member.bus(name="something else") as bus:
            await bus.wait_connected(5)
            await until(lambda: bool(events))
    assert (events[0].node, events[0].session, events[0].kind) == (member.public, None, None)


async def test_the_servers_tell_who_is_connected(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """All connections of nodes are found, page after page, as their events named them; the hub's own is not."""
    monkeypatch.setattr("entrepot_hub.adapters.accounts._TURN", 0.3)
    monkeypatch.setattr("entrepot_hub.adapters.accounts._PAGE", 2)
    members = [nats.member([("demo", ["request"])]) for _ in range(5)]
    events: list[ConnectionEvent] = []
    async with nats.system() as system, nats.hub() as hub, AsyncExitStack() as stack:
        await system.wait_connected(5)
        await hub.wait_connected(5)
        accounts = Accounts(system, nats.identity, clock=time.time)
        await accounts.listen(events.append)
        for number, member in enumerate(members):
            name = subjects.connection_name(SESSION, "daemon") if number else "something else"
            bus = await stack.enter_async_context(member.bus(name=name))
            await bus.wait_connected(5)
        await until(lambda: len(events) == len(members))
        found = await accounts.connections()
        assert sorted(found, key=lambda each: each.connection) == sorted(events, key=lambda each: each.connection)


async def test_a_connection_is_ended(nats: Nats) -> None:
    """The server ends the one that it is told, and no other of the node."""
    member = nats.member([("demo", ["request"])])
    events: list[ConnectionEvent] = []
    async with nats.system() as system:
        await system.wait_connected(5)
        accounts = Accounts(system, nats.identity, clock=time.time)
        await accounts.listen(events.append)
        async with member.bus() as stays, member.bus(name="something else") as ends:
            await stays.wait_connected(5)
            await ends.wait_connected(5)
            await until(lambda: len(events) == 2)
            await accounts.kick(next(each.connection for each in events if each.session is None))
            await until(lambda: any(not each.connected for each in events))
            await until(lambda: ends.stats.losses == 1)
            assert stays.stats.losses == 0
