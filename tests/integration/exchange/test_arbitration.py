"""The hub as an arbiter: one upload per object, whoever asks, whoever fails, whatever arrives late or twice."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.servers.grid import Content, Grid, Peer, running_grid, send, until

from entrepot.core import subjects
from entrepot.core.errors import Conflict, EntrepotError
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import (
    Ack,
    Bad,
    Cancel,
    Done,
    Got,
    Missing,
    Offer,
    Open,
    OpenReply,
    Progress,
    encode,
    reason_of,
)


def single(lock: SchemaLock) -> Content:
    """A stream of one object."""
    return Content(os.urandom(40_000), lock)


async def serve(holder: Peer, content: Content, count: int | None = None) -> None:
    """Offer what is sought next, and upload what is granted."""
    await holder.offer(content, await holder.sought(content))
    await holder.provide(content, count)


async def ready(reader: Peer, content: Content, number: int = 0) -> None:
    """Return when the reader has heard that the object is ready."""
    await until(lambda: (s := reader.state(number)) is not None and s.state == "ready")


async def test_one_grant_however_many_ask_and_offer(grid: Grid, content: Content) -> None:
    """Ten readers and three holders of one stream: each object is granted once, to one of the holders."""
    holders = [await grid.peer(f"holder{i}") for i in range(3)]
    readers = [await grid.peer(f"reader{i}") for i in range(10)]
    for reader in readers:
        await reader.follow("demo", content.stream)
    async with asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(reader.want(content))
    for holder in holders:
        await holder.offer(content, await holder.sought(content))

    async def serve_all(holder: Peer) -> None:
        done: set[bytes] = set()
        while True:
            for grant in [g for g in holder.grants if g.grant not in done]:
                done.add(grant.grant)
                await holder.upload(content, grant)
            await asyncio.sleep(0.01)

    servers = [asyncio.create_task(serve_all(holder)) for holder in holders]
    try:
        for number in range(5):
            await ready(readers[-1], content, number)
    finally:
        for server in servers:
            server.cancel()
    grants = {grant.grant: grant.number for holder in holders for grant in holder.grants}
    assert Counter(grants.values()) == dict.fromkeys(range(5), 1)


async def test_a_grant_is_sent_again_until_it_is_accepted(grid: Grid, lock: SchemaLock) -> None:
    """A session that does not answer hears the same grant again, not another one."""
    content = single(lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    first = await holder.granted(0)
    again = await holder.granted(0, after=1)
    assert first.grant == again.grant


async def test_done_without_an_upload_fails_the_grant_over(grid: Grid, lock: SchemaLock) -> None:
    """A provider that says done and uploaded nothing loses the grant; the object goes to the next holder."""
    content = single(lock)
    liar, honest, reader = await grid.peer("liar"), await grid.peer("honest"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content)
    await liar.offer(content, await liar.sought(content))
    grant = await liar.granted(0)
    await liar.accept(content, grant)
    await liar.done(content, grant)
    assert grid.objects() == {}
    await honest.offer(content, await honest.sought(content))

    async def lie_on() -> None:
        seen = 1
        while True:
            grant = await liar.granted(0, after=seen)
            seen = liar.grants.index(grant) + 1
            await liar.done(content, grant)

    lying = asyncio.create_task(lie_on())
    try:
        await honest.provide(content)
        await ready(reader, content)
    finally:
        lying.cancel()
    assert len(grid.objects()) == 1


async def test_a_stale_done_changes_nothing(grid: Grid, lock: SchemaLock) -> None:
    """A done for a grant that is over, repeated or of somebody else, neither fails nor readies anything."""
    content = single(lock)
    holder, other, reader = await grid.peer("holder"), await grid.peer("other"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    await holder.upload(content, grant)
    before = grid.objects()
    for _ in range(3):
        assert (await holder.done(content, grant)).error is None
    stolen = await other.done(content, grant)
    assert stolen.error is not None
    assert stolen.error.kind == "stale-grant"
    assert grid.objects() == before
    assert (await reader.want(content)).objects[0].state == "ready"


async def test_a_lost_answer_to_a_put_counts_as_done(grid: Grid, lock: SchemaLock) -> None:
    """The PUT arrived but its answer did not: the repeated PUT meets its own object, and the hub finds it ready."""
    content = single(lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    reply = await holder.accept(content, grant)
    assert reply.put is not None
    await send(reply.put, content.object(0))
    status, _ = await send(reply.put, content.object(0))
    assert status == 412
    exists = reason_of(Conflict("the key is taken", kind="exists"))
    done = Done(lock=lock.id, grant=grant.grant, error=exists)
    assert (await holder.ask("demo", "done", done, Ack)).error is None
    await ready(reader, content)


async def test_an_upload_whose_done_was_lost_is_found_when_its_lease_ends(tmp_path: Path) -> None:
    """The provider vanished after its PUT and before its done: the object is ready all the same, uploaded once."""
    async with running_grid(tmp_path, ExchangeSettings(lease=1.0)) as grid:
        content = single(await grid.channel())
        holder, reader = await grid.peer("holder"), await grid.peer("reader")
        await reader.follow("demo", content.stream)
        await reader.want(content)
        await holder.offer(content, await holder.sought(content))
        reply = await holder.accept(content, await holder.granted(0))
        assert reply.put is not None
        await send(reply.put, content.object(0))
        await ready(reader, content)
        assert len({grant.grant for grant in holder.grants}) == 1


async def test_a_lease_without_progress_passes_to_the_next_holder(tmp_path: Path) -> None:
    """A provider that accepted and then stands still loses its lease; the next offer gets the object, and the late
    PUT of the first changes nothing."""
    async with running_grid(tmp_path, ExchangeSettings(lease=2.0)) as grid:
        content = single(await grid.channel())
        slow, quick, reader = await grid.peer("slow"), await grid.peer("quick"), await grid.peer("reader")
        await reader.follow("demo", content.stream)
        await reader.want(content)
        await slow.offer(content, await slow.sought(content), slots=1)
        grant = await slow.granted(0)
        reply = await slow.accept(content, grant)
        await quick.offer(content, await quick.sought(content))
        await quick.provide(content)
        await ready(reader, content)
        assert reply.put is not None
        status, _ = await send(reply.put, content.object(0))
        assert status == 412
        assert (await slow.done(content, grant)).error is None
        assert list(grid.objects().values()) == [len(content.object(0))]


async def test_progress_keeps_a_lease_and_fake_progress_does_not(tmp_path: Path) -> None:
    """Growing bytes renew the lease; the same number again, less, or more than the object do not."""
    async with running_grid(tmp_path, ExchangeSettings(lease=3.0, floor_rate=1.0)) as grid:
        content = single(await grid.channel())
        holder, reader = await grid.peer("holder"), await grid.peer("reader")
        await reader.want(content)
        await holder.offer(content, await holder.sought(content))
        grant = await holder.granted(0)
        await holder.accept(content, grant)

        async def say(sent: int) -> Ack:
            return await holder.ask(
                "demo", "progress", Progress(lock=content.lock.id, grant=grant.grant, sent=sent), Ack
            )

        for step in range(1, 7):  # twice the lease
            await asyncio.sleep(1.0)
            assert (await say(step * 100)).error is None
        error = None
        for sent in (600, 10, 10**9) * 20:
            await asyncio.sleep(0.25)
            error = (await say(sent)).error
            if error is not None:
                break
        assert error is not None
        assert error.kind == "stale-grant"


async def test_a_disconnect_shortens_the_lease(tmp_path: Path) -> None:
    """With a lease of a minute, a provider whose process dies is replaced after the grace of two seconds."""
    async with running_grid(tmp_path, ExchangeSettings(lease=60.0)) as grid:
        content = single(await grid.channel())
        dying, second, reader = await grid.peer("dying"), await grid.peer("second"), await grid.peer("reader")
        await reader.follow("demo", content.stream)
        await reader.want(content)
        await dying.offer(content, await dying.sought(content))
        await dying.accept(content, await dying.granted(0))
        await dying.disconnect()
        await second.offer(content, await second.sought(content))
        await second.provide(content)
        await ready(reader, content)


async def test_a_planned_reconnect_fails_nothing_over(tmp_path: Path) -> None:
    """A session that refreshes its credentials in the middle of an upload keeps its grant."""
    async with running_grid(tmp_path, ExchangeSettings(lease=60.0, disconnect_grace=2.0)) as grid:
        content = single(await grid.channel())
        holder, reader = await grid.peer("holder"), await grid.peer("reader")
        await reader.follow("demo", content.stream)
        await reader.want(content)
        await holder.offer(content, await holder.sought(content))
        grant = await holder.granted(0)
        reply = await holder.accept(content, grant)
        assert holder.bus is not None
        await holder.bus.refresh()
        await asyncio.sleep(3.0)  # longer than the grace
        assert reply.put is not None
        assert (await send(reply.put, content.object(0)))[0] == 200
        assert (await holder.done(content, grant)).error is None
        await ready(reader, content)
        assert len({g.grant for g in holder.grants}) == 1


async def test_two_daemons_of_one_node_get_one_grant(grid: Grid, lock: SchemaLock) -> None:
    """Two processes with one key both offer: the grant goes to one session, and the other hears nothing of it."""
    content = single(lock)
    one = await grid.peer("twin")
    other = await grid.peer("twin", seed=one.seed)
    reader = await grid.peer("reader")
    assert one.node == other.node
    await reader.follow("demo", content.stream)
    await reader.want(content)
    await one.offer(content, await one.sought(content))
    await other.offer(content, await other.sought(content))
    await until(lambda: one.grants or other.grants)
    await asyncio.sleep(0.3)
    assert not (one.grants and other.grants)
    chosen = one if one.grants else other
    await chosen.provide(content)
    await ready(reader, content)


async def test_a_session_cannot_use_the_grant_of_another_node(grid: Grid, lock: SchemaLock) -> None:
    """A grant id that leaked is worth nothing to another member."""
    content = single(lock)
    holder, thief, reader = await grid.peer("holder"), await grid.peer("thief"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    reply = await thief.accept(content, await holder.granted(0))
    assert reply.put is None
    assert reply.error is not None
    assert reply.error.kind == "stale-grant"


async def test_a_header_that_does_not_prove_the_object_is_refused(grid: Grid, content: Content) -> None:
    """A provider that names another object's header, or a damaged one, gets no URL."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content, ranges=((0, 0),))
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    reply = await holder.accept(content, grant, header=content.header(1))
    assert reply.put is None
    assert reply.error is not None
    assert reply.error.kind == "corrupt-object"


async def test_an_opening_that_does_not_prove_the_stream_is_not_believed(grid: Grid, content: Content) -> None:
    """A lying offer changes nothing: readers hear no length that the id does not bind."""
    liar, reader = await grid.peer("liar"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content)
    seek = await liar.sought(content)
    lie = Offer(
        lock=content.lock.id,
        stream=content.stream.raw,
        session=liar.session,
        opening=Opening(5, content.opening.root).encode(),
        ranges=((0, 0),),
        slots=4,
    )
    assert liar.bus is not None
    await liar.bus.publish(subjects.hub_offer("demo", seek.hub, liar.node), encode(lie))
    await asyncio.sleep(0.3)
    assert reader.openings == []
    assert (await reader.want(content)).opening is None


async def test_other_bytes_than_granted_are_refused_by_the_bucket(grid: Grid, lock: SchemaLock) -> None:
    """The signed PUT takes the granted length and digest and nothing else, and only once."""
    content = single(lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    reply = await holder.accept(content, await holder.granted(0))
    assert reply.put is not None
    good = content.object(0)
    flipped = bytes([good[0] ^ 1]) + good[1:]
    assert (await send(reply.put, flipped))[0] == 400
    assert grid.objects() == {}
    assert (await send(reply.put, good))[0] == 200
    assert (await send(reply.put, good))[0] == 412


async def test_404_after_ready_brings_the_object_back(grid: Grid, lock: SchemaLock) -> None:
    """An object that vanished from the bucket behind the hub's back is looked for, sought and uploaded again."""
    content = single(lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content)
    await serve(holder, content)
    await ready(reader, content)
    [key] = grid.objects()
    (grid.folder / "bucket-demo" / key).unlink()
    state = reader.state(0)
    assert state is not None
    assert state.get is not None
    assert (await send(state.get))[0] == 404
    seen = len(holder.grants)
    reader.states.clear()
    missing = Missing(lock=lock.id, stream=content.stream.raw, number=0, etag=state.etag)
    assert (await reader.ask("demo", "missing", missing, Ack)).error is None
    await reader.want(content)
    grant = await holder.granted(0, after=seen)
    await holder.upload(content, grant)
    await ready(reader, content)


async def test_a_bad_object_is_judged_quarantined_and_replaced(grid: Grid, content: Content) -> None:
    """A reader reports a miniblock that the bucket damaged: the hub reads it itself, removes it, and has the object
    uploaded again."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content, ranges=((1, 1),))
    await serve(holder, content, 1)
    await ready(reader, content, 1)
    [key] = grid.objects()
    path = grid.folder / "bucket-demo" / key
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    stat = path.stat()
    path.chmod(0o600)
    path.write_bytes(damaged)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    state = reader.state(1)
    assert state is not None
    seen = len(holder.grants)
    reader.states.clear()
    bad = Bad(lock=content.lock.id, stream=content.stream.raw, number=1, etag=state.etag, miniblock=7)
    assert (await reader.ask("demo", "bad", bad, Ack)).error is None
    assert all(size == 0 for size in grid.objects().values())
    await reader.want(content, ranges=((1, 1),))
    # The bucket altered it (its digest is not the granted one), so nobody is to blame: the same holder is asked again.
    await holder.upload(content, await holder.granted(1, after=seen))
    await ready(reader, content, 1)


async def test_a_false_report_removes_nothing(grid: Grid, lock: SchemaLock) -> None:
    """An object that proves itself stays, whoever calls it bad."""
    content = single(lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content)
    await serve(holder, content)
    await ready(reader, content)
    before = grid.objects()
    for miniblock in (None, 0, 1, 2, 99):
        bad = Bad(lock=lock.id, stream=content.stream.raw, number=0, miniblock=miniblock)
        assert (await reader.ask("demo", "bad", bad, Ack)).error is None
    assert grid.objects() == before
    assert (await reader.want(content)).objects[0].state == "ready"


async def test_the_quota_is_never_exceeded_and_a_late_put_meets_a_tombstone(tmp_path: Path) -> None:
    """Four objects fit. Ten pass through, each evicted after it was read; an old PUT URL of an evicted object is
    refused by the tombstone at its key."""
    async with running_grid(tmp_path) as grid:
        quota = 4 * 70_000
        lock = await grid.channel(quota=quota)
        content = Content(os.urandom(10 * 65536), lock)
        holder, reader = await grid.peer("holder"), await grid.peer("reader")
        await reader.follow("demo", content.stream)
        await reader.want(content, ranges=((0, 9),), window=2)
        await holder.offer(content, await holder.sought(content))
        urls = {}
        for number in range(10):
            grant = await holder.granted(number)
            reply = await holder.accept(content, grant)
            assert reply.put is not None
            urls[number] = reply.put
            assert (await send(reply.put, content.object(number)))[0] == 200
            await holder.done(content, grant)
            await ready(reader, content, number)
            assert sum(grid.objects().values()) <= quota
            got = Got(lock=lock.id, stream=content.stream.raw, numbers=(number,))
            await reader.ask("demo", "got", got, Ack)
            await reader.want(content, ranges=((min(number + 1, 9), 9),), window=2)
        gone = [n for n in range(10) if grid.objects()[f"{lock.hex}/{content.stream}/{n:08x}"] == 0]
        assert gone
        for number in gone:
            assert (await send(urls[number], content.object(number)))[0] == 412
        assert sum(grid.objects().values()) <= quota
        # ... and the evicted object comes back when it is wanted again: its tombstone gives way.
        seen = len(holder.grants)
        reader.states.clear()
        await reader.want(content, ranges=((gone[0], gone[0]),))
        await holder.upload(content, await holder.granted(gone[0], after=seen))
        await ready(reader, content, gone[0])


async def test_a_want_that_is_kept_is_served_when_a_holder_comes(grid: Grid, lock: SchemaLock) -> None:
    """A kept want outlives its asker's process: a holder that comes later is asked, uploads, and the asker finds the
    object in the bucket."""
    content = single(lock)
    reader = await grid.peer("reader")
    reply = await reader.want(content, keep=True, deadline=600)
    assert reply.opening is None
    await reader.disconnect()
    holder = await grid.peer("holder")
    answer = await holder.ask("demo", "open", Open(lock=lock.id, session=holder.session), OpenReply)
    assert answer.streams == (content.stream.raw,)
    await holder.added(content)
    await serve(holder, content)
    await holder.disconnect()
    again = await grid.peer("reader", seed=reader.seed)
    assert [state.state for state in (await again.want(content)).objects] == ["ready"]


async def test_a_kept_want_survives_the_hub(grid: Grid, lock: SchemaLock) -> None:
    """The hub is stopped and started: the want is still there, and a holder that comes back is asked."""
    content = single(lock)
    reader, holder = await grid.peer("reader"), await grid.peer("holder")
    await reader.want(content, keep=True, deadline=600)
    await reader.disconnect()
    await holder.disconnect()
    await grid.stop()
    holder.seeks.clear()  # those named a hub instance that is no more
    await grid.start()
    await holder.connect()
    await holder.added(content)
    await serve(holder, content)
    assert len(grid.objects()) == 1


async def test_nobody_has_it_and_that_is_said(grid: Grid, lock: SchemaLock) -> None:
    """Without a holder the reply says so, and who had it last and when."""
    content = single(lock)
    holder, reader = await grid.peer("workstation"), await grid.peer("reader")
    await holder.added(content)
    await holder.disconnect()
    reply = await reader.want(content)
    while reply.reason is None:  # it is still being sought
        await asyncio.sleep(0.1)
        reply = await reader.want(content)
    assert reply.reason.kind == "no-holder"
    assert reply.reason.data["last_holder"] == "workstation"
    assert isinstance(reply.reason.data["last_seen"], float)
    assert "workstation" in reply.reason.message


async def test_a_cancelled_want_is_not_sought_any_more(grid: Grid, lock: SchemaLock) -> None:
    """After the reader gave up, an offer for its stream brings no grant."""
    content = single(lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    seek = await holder.sought(content)
    assert (await reader.ask("demo", "cancel", Cancel(lock=lock.id, stream=content.stream.raw), Ack)).error is None
    await holder.offer(content, seek)
    await asyncio.sleep(0.3)
    assert holder.grants == []


async def test_an_empty_stream_needs_no_objects(grid: Grid, lock: SchemaLock) -> None:
    """Of a stream of length zero the opening is all there is, and it is ready at once."""
    content = Content(b"", lock)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))

    async def known() -> bool:
        return (await reader.want(content)).opening == content.opening.encode()

    async with asyncio.timeout(10):
        while not await known():
            await asyncio.sleep(0.05)
    assert grid.objects() == {}


async def test_a_stale_lock_is_refused_with_the_current_one(grid: Grid, lock: SchemaLock) -> None:
    """Who speaks under another schema lock is told the channel's current one."""
    reader = await grid.peer("reader")
    other = Content(b"x", SchemaLock("demo", miniblock=32768, object=65536))
    reply = await reader.want(other)
    assert reply.error is not None
    assert reply.error.kind == "stale-lock"
    assert SchemaLock.parse(str(reply.error.data["lock"])) == lock


async def test_objects_of_one_stream_fall_to_different_holders(tmp_path: Path) -> None:
    """With four equal holders that offer within the window every one gets a share of a stream's objects."""
    async with running_grid(tmp_path, ExchangeSettings(offer_window=1.0)) as grid:
        content = Content(os.urandom(64 * 65536), await grid.channel())
        holders = [await grid.peer(f"holder{i}") for i in range(4)]
        reader = await grid.peer("reader")
        for holder in holders:
            await holder.added(content)
        await reader.want(content, window=64)
        for holder in holders:
            await holder.offer(content, await holder.sought(content), slots=64)
        await until(lambda: len({g.number for h in holders for g in h.grants}) == 64)
        assert min(len({g.number for g in holder.grants}) for holder in holders) >= 4


async def test_a_cancel_that_overtakes_its_want_ends_it(
    grid: Grid, lock: SchemaLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of one node are in work side by side; a want that was said before the cancel is none afterwards, and one
    that is said later counts."""
    assert grid.hub is not None
    reader, content = await grid.peer("reader"), Content(b"x" * 1000, lock)
    exchange = grid.hub._exchange
    metering, held, released = exchange._arbiter.metering, asyncio.Event(), asyncio.Event()
    may_read = metering.may_read

    async def slow(channel: str, node: str | None = None) -> EntrepotError | None:
        if not held.is_set():
            held.set()
            await released.wait()
        return await may_read(channel, node)

    monkeypatch.setattr(metering, "may_read", slow)
    wanting = asyncio.create_task(reader.want(content))
    async with asyncio.timeout(20):
        await held.wait()
        assert (await reader.ask("demo", "cancel", Cancel(lock=lock.id, stream=content.stream.raw), Ack)).error is None
        released.set()
        await wanting
    call, ledger = grid.hub._database.call, exchange._ledger
    assert await call(ledger.wants, "demo", content.stream.raw, time.time()) == []
    await reader.want(content)
    assert len(await call(ledger.wants, "demo", content.stream.raw, time.time())) == 1
