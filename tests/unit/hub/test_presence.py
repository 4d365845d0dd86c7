"""Presence knows nodes by their connections, tells the ledger of many sessions at once, and mends what it missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Set
from typing import Any, cast

import pytest

from entrepot.core.errors import RetryLater
from entrepot_hub.adapters.accounts import ConnectionEvent
from entrepot_hub.services.arbiter import Arbiter
from entrepot_hub.services.background import Background
from entrepot_hub.services.presence import CONNECTIONS, Presence

GRACE = 1.0


def event(connection: str, *, node: str = "N", session: str | None = "s", connected: bool = True) -> ConnectionEvent:
    kind = None if session is None else "daemon"
    return ConnectionEvent(node=node, session=session, kind=kind, connected=connected, reason="", connection=connection)


class Told:
    """What presence tells an arbiter."""

    def __init__(self) -> None:
        self.rounds = self
        self.moves: list[tuple[list[tuple[str, str]], list[tuple[str, str]]]] = []
        self.gone: list[tuple[str, str]] = []
        self.busy = 0

    def departed(self, sessions: Set[tuple[str, str]], now: float) -> None:
        self.gone += sessions

    async def sessions_moved(self, came: Collection[tuple[str, str]], left: Collection[tuple[str, str]]) -> None:
        if self.busy:
            self.busy -= 1
            raise RetryLater("the database has too much to do", kind="busy")
        self.moves.append((list(came), list(left)))


class World:
    """A presence, what it told, and which connections it ended."""

    def __init__(self, background: Background) -> None:
        self.background = background
        self.told = Told()
        self.kicked: list[str] = []
        self.now = 1000.0
        self.presence = Presence(
            clock=lambda: self.now, spawn=background.spawn, grace=GRACE, revocations=dict, kick=self.kick
        )
        self.presence.serve(cast(Arbiter, cast(Any, self.told)))

    async def kick(self, connection: str) -> None:
        self.kicked.append(connection)

    async def rest(self) -> None:
        """Until everything was told."""
        async with asyncio.timeout(20):
            while self.background.tasks:
                await asyncio.sleep(0.01)
        assert self.background.mistakes == 0


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Nobody is here yet."""
    async with Background() as background:
        yield World(background)


async def test_a_node_is_online_while_one_of_its_sessions_is(world: World) -> None:
    """However many sessions and connections it has: with the last one it is gone."""
    presence = world.presence
    presence.happened(event("a/1", session="s1"))
    presence.happened(event("a/2", session="s1"))
    presence.happened(event("a/3", session="s2"))
    assert (presence.sessions, presence.online("N"), presence.online("other")) == (2, True, False)
    presence.happened(event("a/1", session="s1", connected=False))
    presence.happened(event("a/3", session="s2", connected=False))
    assert (presence.sessions, presence.online("N")) == (1, True)
    presence.happened(event("a/2", session="s1", connected=False))
    assert (presence.sessions, presence.online("N"), presence.heard_since(0.0)) == (0, False, {})


async def test_sessions_that_come_and_go_are_told_together(world: World) -> None:
    """A thousand sessions that come and go cost the ledger a few calls, and each is told of in the end."""
    presence = world.presence
    for number in range(1000):
        presence.happened(event(f"a/{number}", session=f"s{number}"))
        presence.happened(event(f"a/{number}", session=f"s{number}", connected=False))
    await world.rest()
    assert len(world.told.moves) <= 4
    assert all(not came for came, _ in world.told.moves)
    keys = {("N", f"s{number}") for number in range(1000)}
    assert {key for _, left in world.told.moves for key in left} == keys
    assert len(world.told.gone) == len(keys)
    assert set(world.told.gone) == keys


async def test_a_session_that_comes_back_in_time_is_not_gone(world: World) -> None:
    """Its leases are short while it is away and long again when it is back, and its offers stay."""
    world.presence.happened(event("a/1"))
    await world.rest()
    world.presence.happened(event("a/1", connected=False))
    async with asyncio.timeout(20):
        while len(world.told.moves) < 2:
            await asyncio.sleep(0)
    world.presence.happened(event("a/2"))
    await world.rest()
    assert world.told.moves == [([("N", "s")], []), ([], [("N", "s")]), ([("N", "s")], [])]
    assert world.told.gone == []


async def test_what_a_busy_ledger_was_not_told_it_is_told_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose leaving could not be written is told of again, as it is then."""
    monkeypatch.setattr("entrepot_hub.services.presence._AGAIN", 0.05)
    world.told.busy = 2
    world.presence.happened(event("a/1", connected=False))
    await world.rest()
    assert world.told.busy == 0
    assert world.told.moves[0] == ([], [("N", "s")])


async def test_a_node_has_so_many_connections(world: World) -> None:
    """Those beyond are ended, whatever they call themselves; other nodes are not touched, and room comes back."""
    for number in range(CONNECTIONS):
        world.presence.happened(event(f"a/{number}", session=f"s{number}" if number % 2 else None))
    world.presence.happened(event("b/1", node="other"))
    await world.rest()
    assert world.kicked == []
    world.presence.happened(event("a/one", session="more"))
    world.presence.happened(event("a/two", session=None))
    await world.rest()
    assert world.kicked == ["a/one", "a/two"]
    for name in ("a/one", "a/two", "a/0"):
        world.presence.happened(event(name, session="more" if name == "a/one" else None, connected=False))
    world.presence.happened(event("a/three", session="again"))
    await world.rest()
    assert world.kicked == ["a/one", "a/two"]


async def test_a_look_mends_what_no_event_told(world: World) -> None:
    """Connections that two looks in a row do not find are over; those that no event told of are there."""
    presence = world.presence
    presence.happened(event("old/1", session="ghost"))
    presence.happened(event("new/2", session="here"))

    async def found() -> list[ConnectionEvent]:
        return [event("new/2", session="here"), event("new/3", session="unheard", node="M")]

    await presence.look(found)
    assert (presence.sessions, presence.online("M")) == (3, True)
    await presence.look(found)
    assert presence.sessions == 2
    presence.happened(event("new/2", session="here", connected=False))
    assert not presence.online("N")
    await world.rest()
    assert ("N", "ghost") in world.told.gone


async def test_what_happens_during_a_look_is_newer_than_the_look(world: World) -> None:
    """One that left meanwhile does not come back by it, and one that came meanwhile is not taken for gone."""
    presence = world.presence
    presence.happened(event("a/1", session="leaves"))

    async def found() -> list[ConnectionEvent]:
        presence.happened(event("a/1", session="leaves", connected=False))
        presence.happened(event("a/2", session="comes"))
        return [event("a/1", session="leaves")]

    await presence.look(found)
    assert presence.sessions == 1

    async def nothing() -> list[ConnectionEvent]:
        return []

    await presence.look(nothing)
    assert presence.sessions == 1, "one look is not enough"
    await presence.look(nothing)
    assert presence.sessions == 0
    await world.rest()
