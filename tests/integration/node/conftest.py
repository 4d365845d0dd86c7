"""Whole nodes and their daemons against a real hub, its nats-server and a folder bucket."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.servers.grid import QUICK, Grid, running_grid

from entrepot.adapters.store import StoreSettings
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.services.daemon import Daemon
from entrepot.services.node import Node
from entrepot.services.settings import DaemonSettings, NodeSettings


class Site:
    """The hub and the machines of a test: each has a home, and runs daemons and nodes in it."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        self.grid = grid
        self.folder = folder
        self._stack = AsyncExitStack()
        self._daemons: dict[Path, tuple[Daemon, asyncio.Task[None]]] = {}

    def settings(self, name: str, **exchange: float) -> NodeSettings:
        """The settings of a machine."""
        return NodeSettings(
            home=self.folder / name,
            bus=QUICK,
            exchange=replace(ExchangeSettings(), **exchange),  # type: ignore[arg-type]
            store=StoreSettings(reserve=0, workers=2, hashers=1),
            daemon=DaemonSettings(retry_first=0.05, retry_longest=0.5, rebuild_after=2.0, watch=0.2),
        )

    async def node(self, name: str, *channels: str, rights: str = "request,provide", **exchange: float) -> Node:
        """An open node that joined these channels (``demo`` if none is named)."""
        node = await self._stack.enter_async_context(Node(self.settings(name, **exchange)))
        for channel in channels or ("demo",):
            await node.join(await self.grid.invite(channel, rights), name=name)
        return node

    async def up(self, name: str) -> Daemon:
        """A machine's daemon, up at every hub."""
        settings = self.settings(name)
        daemon = Daemon(settings)
        running = asyncio.Event()
        task = asyncio.create_task(daemon.run(ready=running.set, signals=False))
        waiting = asyncio.create_task(running.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            await task
        self._daemons[settings.home] = (daemon, task)
        async with asyncio.timeout(20):
            while any(hub.state != "up" for hub in (await daemon.status()).hubs):
                await asyncio.sleep(0.02)
        return daemon

    async def down(self, name: str) -> None:
        """End a machine's daemon."""
        daemon, task = self._daemons.pop(self.folder / name)
        daemon.stop()
        await task

    async def cancel(self, name: str) -> None:
        """End a machine's daemon by cancelling it, as a crash of its event loop would."""
        _, task = self._daemons.pop(self.folder / name)
        task.cancel()
        await asyncio.wait([task])

    async def aclose(self) -> None:
        for home in list(self._daemons):
            await self.down(home.name)
        await self._stack.aclose()


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[Grid]:
    """A hub with a channel ``demo`` of 16 KiB miniblocks and 64 KiB objects."""
    async with running_grid(tmp_path) as running:
        await running.channel("demo")
        yield running


@pytest.fixture
async def site(grid: Grid, empty_home: Path) -> AsyncIterator[Site]:
    """Machines whose homes lie under short paths, for the daemons' sockets."""
    site = Site(grid, empty_home / secrets.token_hex(4))
    try:
        yield site
    finally:
        await site.aclose()


@pytest.fixture
def data() -> bytes:
    """Nine objects of random bytes, the last one short."""
    return secrets.token_bytes(8 * 65536 + 12_345)


@pytest.fixture
def original(tmp_path: Path, data: bytes) -> Path:
    """A file with the data."""
    path = tmp_path / "original.bin"
    path.write_bytes(data)
    return path
