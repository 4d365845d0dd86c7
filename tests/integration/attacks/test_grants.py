"""Grants and URLs in the hands of those who mean no good."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.integration.attacks.conftest import Refused
from tests.servers.grid import Content, running_grid, send, until

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.messages import Ack, Progress


async def test_fake_progress_ends_with_the_object(tmp_path: Path, refused: Refused) -> None:
    """A holder that tells of bytes it never sends keeps an object for as long as its bytes last at that rate: then the
    lease ends, and the object comes from the next holder."""
    async with running_grid(tmp_path, ExchangeSettings(lease=1.5, floor_rate=1000.0)) as grid:
        content = Content(os.urandom(40_000), await grid.channel())
        liar, honest, reader = await grid.peer("liar"), await grid.peer("honest"), await grid.peer("reader")
        await reader.follow("demo", content.stream)
        await reader.want(content)
        await liar.offer(content, await liar.sought(content))
        grant = await liar.granted(0)
        assert (await liar.accept(content, grant)).put is not None
        await honest.offer(content, await honest.sought(content))
        serving = asyncio.create_task(honest.serve_all(content))
        sent, renewed = 0, 0
        async with asyncio.timeout(30):
            while True:
                sent += 8_000
                told = Progress(lock=content.lock.id, grant=grant.grant, sent=sent)
                if (await liar.ask("demo", "progress", told, Ack)).error is not None:
                    break
                renewed += 1
                await asyncio.sleep(0.5)
        assert renewed >= 4  # it did hold the object
        assert sent > 40_000
        await until(lambda: (s := reader.state(0)) is not None and s.state == "ready")
        assert honest.uploaded == [0]
        serving.cancel()
    refused("fake progress")


async def test_the_urls_of_a_revoked_node_end_soon(tmp_path: Path, refused: Refused) -> None:
    """A revoked node may use the URLs it holds until they end and no longer; what it uploads by one is an object like
    any other, and it gets no new one."""
    async with running_grid(tmp_path, ExchangeSettings(get_url=4.0, put_url=4.0, put_grace=1.0)) as grid:
        content = Content(os.urandom(2 * 65536), await grid.channel())
        thief, reader = await grid.peer("thief"), await grid.peer("reader")
        await thief.follow("demo", content.stream)
        await thief.want(content)
        await reader.want(content)
        await thief.offer(content, await thief.sought(content))
        await thief.upload(content, await thief.granted(0))
        put = (await thief.accept(content, await thief.granted(1))).put
        state = await until(lambda: (s := thief.state(0)) is not None and s.state == "ready" and s)
        assert state
        assert state.get is not None
        assert put is not None
        await grid.admin("channel.revoke", name="demo", node=thief.node)
        assert thief.bus is not None
        bus = thief.bus
        await until(lambda: bus.stats.losses > 0 or not bus.connected)
        async with asyncio.timeout(30):
            while (await send(state.get))[0] != 403:
                await asyncio.sleep(0.25)
        assert (await send(put, content.object(1)))[0] == 403
        reply = await reader.want(content)
        assert reply.error is None
        assert [each.state for each in reply.objects][1] != "ready"
    refused("URLs that a revoked node still holds")
