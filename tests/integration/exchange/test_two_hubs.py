"""Two hubs of one installation: one PostgreSQL, one NATS server, one queue group, leases by conditional updates."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.servers.grid import Content, Grid, free_port, until
from tests.servers.postgres import running_postgres

from entrepot.core.errors import RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.services.hub import Hub
from entrepot_hub.services.settings import load_settings


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Grid, Hub]]:
    """A grid on PostgreSQL and a second hub beside it, with the same keys, database and NATS server."""
    with running_postgres() as postgres:
        url = await asyncio.to_thread(postgres.empty)
        grid = Grid(tmp_path, ExchangeSettings(lease=3.0))
        await grid.prepare(f'\n[database]\nurl = "{url}"\n')
        try:
            await grid.start()
            assert grid.hub is not None
            second = tmp_path / "second"
            await asyncio.to_thread(
                shutil.copytree, tmp_path / "hub", second, ignore=shutil.ignore_patterns("nats", "*.sock*")
            )
            text = (second / "hub.toml").read_text()
            nats = f'server = ["{grid.hub.nats_urls()[0]}"]'
            text = text.replace(f'listen = "127.0.0.1:{grid.port}"', f'listen = "127.0.0.1:{free_port()}"')
            text = text.replace(f'listen = "127.0.0.1:{grid.nats_port}"', nats)
            (second / "hub.toml").write_text(text)
            settings = await asyncio.to_thread(load_settings, second)
            async with Hub(settings, exchange=grid.exchange) as other:
                yield grid, other
        finally:
            await grid.aclose()


@pytest.mark.blocking
async def test_two_hubs_grant_every_object_once(pair: tuple[Grid, Hub]) -> None:
    """Messages fall to either hub as they come; every object is uploaded once and every reader has them all."""
    grid, other = pair
    content = Content(os.urandom(12 * 65536), await grid.channel())
    holders = [await grid.peer(f"holder{i}") for i in range(2)]
    readers = [await grid.peer(f"reader{i}") for i in range(4)]
    serving = []
    for holder in holders:
        await holder.added(content)
        serving.append(asyncio.create_task(holder.serve_all(content)))
    try:
        for reader in readers:
            await reader.follow("demo", content.stream)

        async def get(reader_index: int) -> None:
            reader = readers[reader_index]
            async with asyncio.timeout(50):
                while True:
                    reply = await reader.want(content, window=12)
                    if len(reply.objects) == 12 and all(state.state == "ready" for state in reply.objects):
                        return
                    await asyncio.sleep(0.2)

        await asyncio.gather(*(get(index) for index in range(len(readers))))
    finally:
        for task in serving:
            task.cancel()
    assert len(grid.objects()) == 12
    uploaded = [number for holder in holders for number in holder.uploaded]
    assert sorted(uploaded) == list(range(12))
    assert grid.hub is not None
    await until(lambda: other.handled > 0 and grid.hub is not None and grid.hub.handled > 0)


@pytest.mark.blocking
async def test_a_hub_that_dies_leaves_its_work_to_the_other(pair: tuple[Grid, Hub]) -> None:
    """One hub stops in the middle: the wants are in the database, and the other one goes on with them."""
    grid, other = pair
    content = Content(os.urandom(6 * 65536), await grid.channel())
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await holder.added(content)
    holder.patience = reader.patience = 2.0
    await reader.want(content, window=6)
    serving = asyncio.create_task(holder.serve_all(content))
    await until(lambda: holder.uploaded)
    await other.aclose()
    try:
        async with asyncio.timeout(50):
            while len(grid.objects()) < 6:
                with contextlib.suppress(RetryLater):  # the dying hub may have taken the want with it
                    await reader.want(content, window=6)
                await asyncio.sleep(0.2)
    finally:
        serving.cancel()
