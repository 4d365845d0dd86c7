"""What readers of a stream are told of its objects, and in how many messages."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from tests.servers.grid import Content, Grid, Peer, until

from entrepot.adapters.bus import Message as BusMessage
from entrepot.core import subjects
from entrepot.core.messages import Ack, Added, State, decode
from entrepot_hub.adapters.database import Database
from entrepot_hub.services import announcements


async def told(peer: Peer, content: Content) -> list[State]:
    """The messages about a stream that a peer hears from now on."""
    heard: list[State] = []

    def hear(message: BusMessage) -> None:
        heard.append(decode(State, message.payload))

    assert peer.bus is not None
    await peer.bus.subscribe(subjects.state(content.lock.channel, str(content.stream)), hear)
    return heard


async def test_what_is_granted_together_is_told_together(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of objects that are sought or uploaded one message tells; each is told ready with a URL, and not twice."""
    monkeypatch.setattr(announcements, "LATER", 1.0)
    content = Content(os.urandom(4 * 65536), await grid.channel())
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    heard = await told(reader, content)
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    await until(lambda: len(holder.grants) == 4)
    first = (await until(lambda: [state for state in heard if state.objects]))[0]
    assert {each.number for each in first.objects} == {0, 1, 2, 3}
    assert {each.state for each in first.objects} <= {"seeking", "uploading"}
    await holder.provide(content)
    await until(lambda: len([o for state in heard for o in state.objects if o.state == "ready"]) >= 4)
    await asyncio.sleep(1.5)  # what was to be told later has been told
    ready = [each for state in heard for each in state.objects if each.state == "ready"]
    assert sorted(each.number for each in ready) == [0, 1, 2, 3]
    assert all(each.get is not None for each in ready)
    states = [each.state for state in heard for each in state.objects if each.number == 3]
    assert states[-1] == "ready"  # nothing older overtakes it


async def test_an_upload_that_lasts_is_told(grid: Grid) -> None:
    """A reader hears of an object that is on its way while it is."""
    content = Content(os.urandom(65536), await grid.channel())
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    assert (await holder.accept(content, grant)).put is not None
    await until(lambda: any(state.state == "uploading" for state in reader.states))


async def test_what_is_added_together_is_looked_up_together(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of many streams takes a few looks into the database, and whoever waits for one of them is served."""
    lock = await grid.channel()
    contents = [Content(os.urandom(10), lock) for _ in range(100)]
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(contents[7])
    looks = 0
    before = Database._submit

    async def counting(self: Database, work: Callable[[], object]) -> object:
        nonlocal looks
        looks += 1
        return await before(self, work)

    monkeypatch.setattr(Database, "_submit", counting)
    streams = tuple((one.stream.raw, one.opening.encode()) for one in contents)
    ack = await holder.ask(lock.channel, "added", Added(lock=lock.id, session=holder.session, streams=streams), Ack)
    assert ack.error is None
    assert looks < 50
    await holder.offer(contents[7], await holder.sought(contents[7]))
    await holder.provide(contents[7])
