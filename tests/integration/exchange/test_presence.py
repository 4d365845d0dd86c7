"""Who is connected, as a running hub knows it: after a restart of NATS, and under a storm of connections."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.servers.grid import Content, Grid, running_grid, until

from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Ack, Cancel, Got
from entrepot_hub.adapters.accounts import ConnectionEvent
from entrepot_hub.core.journal import EventKind


async def test_a_restart_of_nats_leaves_no_ghosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that left after the server was restarted is gone, and so is one that left while it was away."""
    monkeypatch.setattr("entrepot_hub.services.hub._LOOK", 0.3)
    monkeypatch.setattr("entrepot_hub.adapters.accounts._TURN", 0.3)
    async with running_grid(tmp_path) as grid:
        hub = grid.hub
        assert hub is not None
        assert hub._nats is not None
        await grid.channel("demo")
        stays, leaves, away = [await grid.peer(name) for name in ("stays", "leaves", "away")]
        presence, first = hub._presence, hub._nats.pid
        await until(lambda: presence.sessions == 3)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await away.disconnect()
        assert stays.bus is not None
        assert leaves.bus is not None
        await until(lambda: hub._nats is not None and hub._nats.pid not in (None, first), 60)
        await stays.bus.wait_connected(60)
        await leaves.bus.wait_connected(60)
        await leaves.disconnect()
        await until(lambda: presence.sessions == 1, 60)
        assert presence.heard_since(presence._clock() - 5).keys() == {stays.node}


async def test_sessions_that_upload_nothing_cost_the_ledger_nothing(grid: Grid, lock: SchemaLock) -> None:
    """However many sessions come and go: the ledger is asked a few times which of them upload, and changes no lease."""
    hub = grid.hub
    assert hub is not None
    ledger: Any = hub._arbiter._ledger
    calls: Counter[str] = Counter()

    def counted(name: str) -> Any:
        inner = getattr(ledger, name)

        def call(*args: Any) -> Any:
            calls[name] += 1
            return inner(*args)

        return call

    for name in ("uploading", "shorten", "restore"):
        setattr(ledger, name, counted(name))
    for number in range(2000):
        for connected in (True, False):
            hub._presence.happened(
                ConnectionEvent(
                    node=f"N{number % 3}",
                    session=f"{number:016x}",
                    kind="daemon",
                    connected=connected,
                    reason="",
                    connection=f"server/{number}",
                )
            )
    await until(lambda: calls["uploading"] > 0 and not hub._presence._news)
    assert calls["uploading"] <= 10
    assert (calls["shorten"], calls["restore"]) == (0, 0)


async def test_made_up_streams_are_not_in_the_journal(grid: Grid, lock: SchemaLock) -> None:
    """Who cancels what it does not want, or read what does not exist, leaves no trace; who really does, does."""
    assert grid.hub is not None
    reader, holder, content = await grid.peer("reader"), await grid.peer("holder"), Content(b"x" * 1000, lock)
    gatherer = grid.hub._journal._gatherer

    def told(kind: EventKind) -> int:
        return sum(run.count for run in gatherer._open.values() if run.kind is kind)

    async def say(stream: bytes, *numbers: int) -> None:
        got = Got(lock=lock.id, stream=stream, numbers=numbers)
        assert (await reader.ask("demo", "got", got, Ack)).error is None
        assert (await reader.ask("demo", "cancel", Cancel(lock=lock.id, stream=stream), Ack)).error is None

    for _ in range(20):
        await say(b"\xff" + os.urandom(31), 0)
    assert (told(EventKind.STOPPED), told(EventKind.READ)) == (0, 0)
    serving = asyncio.create_task(holder.serve_all(content))
    try:
        await reader.follow("demo", content.stream)
        await reader.want(content)
        await until(lambda: (state := reader.state(0)) is not None and state.state == "ready")
        await say(content.stream.raw, 0, 1, 99)
        assert (told(EventKind.STOPPED), told(EventKind.READ)) == (1, 1)
    finally:
        serving.cancel()
