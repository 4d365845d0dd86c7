"""A real nats-server for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.servers.nats import Nats, running_nats


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A running server with the hub's identity."""
    async with running_nats(tmp_path / "nats") as running:
        yield running
