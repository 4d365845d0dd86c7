"""A running hub for each attack."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.servers.grid import Content, Grid, running_grid

from entrepot.core.lock import SchemaLock


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[Grid]:
    """A hub with a channel ``demo``."""
    async with running_grid(tmp_path) as running:
        yield running


@pytest.fixture
async def lock(grid: Grid) -> SchemaLock:
    """The schema lock of the channel ``demo``."""
    return await grid.channel("demo")


@pytest.fixture
def content(lock: SchemaLock) -> Content:
    """Five objects of random bytes, the last one short."""
    return Content(os.urandom(4 * 65536 + 1000), lock)
