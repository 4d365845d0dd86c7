"""A running hub for each attack."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.integration.attacks.catalogue import ATTACKS
from tests.servers.grid import Content, Grid, running_grid

from entrepot.core.lock import SchemaLock

#: Tells that an attack of the catalogue was tried and held off.
type Refused = Callable[[str], None]


@pytest.fixture
def refused(report: Callable[..., None]) -> Refused:
    """A row of the table of attacks, in the catalogue's words."""

    def tell(attack: str) -> None:
        entry = ATTACKS[attack]
        words = f"{entry.defended_by}; {entry.open}" if entry.open else entry.defended_by
        report("attacks", attack=attack, defended_by=words.removeprefix("–; "))

    return tell


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
