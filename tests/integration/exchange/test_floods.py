"""A member that floods a running hub: others are served, it is told, the admin sees it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog
from tests.servers.grid import Content, Grid, until

from entrepot.core import subjects
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Ack, Added, Bad, encode

FLOOD = 5000


async def test_a_flood_is_told_and_seen_and_others_are_served(
    grid: Grid, content: Content, lock: SchemaLock, report: Callable[..., None]
) -> None:
    """Five thousand reports of one member cost the hub fifty looks and two lines of its log; a transfer of others goes
    on meanwhile."""
    assert grid.hub is not None
    attacker, reader, holder = await grid.peer("attacker"), await grid.peer("reader"), await grid.peer("holder")
    assert attacker.bus is not None
    bad = Bad(lock=lock.id, stream=content.stream.raw, number=0, etag=None, miniblock=0)
    subject = subjects.hub_verb("demo", "bad", attacker.node)
    with structlog.testing.capture_logs() as logs:
        for _ in range(FLOOD):
            await attacker.bus.publish(subject, encode(bad))
        await attacker.bus.flush()
        await reader.follow("demo", content.stream)
        await reader.want(content, ranges=((0, 0),))
        await holder.offer(content, await holder.sought(content))
        await holder.upload(content, await holder.granted(0))
        await until(lambda: (state := reader.state(0)) is not None and state.state == "ready")
        told = await attacker.ask("demo", "bad", bad, Ack)
    dispatcher = grid.hub._dispatcher
    assert dispatcher.dropped > FLOOD * 0.8
    lines = [line for line in logs if line["event"] == "too many messages"]
    assert 1 <= len(lines) <= 3
    if told.error is not None:  # unless the flood took so long that there is a token again
        assert told.error.kind == "too-many-requests"
        assert told.error.error().data["retry_after"]
    node, count = dispatcher.excessive()[0]
    assert (node, count) == (attacker.node, dispatcher.dropped)
    status = await grid.admin("status")
    assert any(attacker.node in warning for warning in status["warnings"])
    report("attacks", attack="reports without end", defended_by="5 a second; three false ones, and none is looked into")


async def test_a_member_that_claims_to_hold_everything_is_forgotten(
    tmp_path: Path, report: Callable[..., None]
) -> None:
    """Made-up streams do not fill the ledger, and what an honest member holds stays known."""
    grid = Grid(tmp_path)
    await grid.prepare("\n[limits]\nholders_of_member = 40\nholders_of_channel = 60\n")
    try:
        await grid.start()
        assert grid.hub is not None
        lock = await grid.channel("demo")
        attacker, honest = await grid.peer("attacker"), await grid.peer("honest")
        content = Content(os.urandom(1000), lock)
        await honest.added(content)
        upkeep = grid.hub._upkeep
        for _ in range(10):
            openings = [Opening(100, os.urandom(32)) for _ in range(25)]
            streams = tuple((o.stream_id().raw, o.encode()) for o in openings)
            added = Added(lock=lock.id, session=attacker.session, streams=streams)
            assert (await attacker.ask("demo", "added", added, Ack)).error is None
        await upkeep.forget()
        ledger, call = grid.hub._exchange._ledger, grid.hub._database.call
        assert await call(ledger.thin_holders, "demo", 40, 60) == 0
        assert [holder.node for holder in await call(ledger.holders, "demo", content.stream.raw)] == [honest.node]
        assert await call(ledger.thin_holders, "demo", 39, 60) == 1, "the attacker has exactly what it may"
        report("attacks", attack="streams held without end", defended_by="200,000 per member; the oldest is forgotten")
    finally:
        async with asyncio.timeout(30):
            await grid.aclose()
