"""The exchange over real HTTP and NATS: who is asked, who uploads, and what readers hear."""

from __future__ import annotations

import asyncio

from tests.servers.grid import Content, Grid, send, until

from entrepot.core.format import verify_object
from entrepot.core.messages import Ack, Got


async def test_a_stream_passes_from_its_holder_to_a_reader(grid: Grid, content: Content) -> None:
    """A want is sought, offered, granted, uploaded and announced; every object proves itself to the reader."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    first = await reader.want(content, ranges=())
    assert first.opening is None
    seek = await holder.sought(content)
    await holder.offer(content, seek)
    await until(lambda: reader.openings)
    assert reader.openings[0] == content.opening.encode()
    async with asyncio.TaskGroup() as group:
        group.create_task(holder.provide(content))
        reply = await reader.want(content)
        assert reply.opening == content.opening.encode()
        await until(lambda: all((s := reader.state(n)) and s.state == "ready" for n in range(5)))
    for number in range(5):
        state = reader.state(number)
        assert state is not None
        assert state.get is not None
        status, body = await send(state.get)
        assert status == 200
        verify_object(body, stream=content.stream, lock=content.lock, number=number)
        assert body == content.object(number)
    got = Got(lock=content.lock.id, stream=content.stream.raw, numbers=tuple(range(5)))
    assert (await reader.ask("demo", "got", got, Ack)).error is None
    assert len(grid.objects()) == 5


async def test_what_is_in_the_bucket_needs_no_peer(grid: Grid, content: Content) -> None:
    """Once uploaded, a stream is served with no holder online."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await holder.added(content)
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    await holder.provide(content)
    await holder.disconnect()
    late = await grid.peer("late")
    reply = await late.want(content)
    assert [state.state for state in reply.objects] == ["ready"] * 5
    assert reply.ready == ((0, 4),)
