"""Channels open their buckets each for itself."""

from __future__ import annotations

import asyncio

from tests.contract.registry.conftest import QUOTA

from entrepot.core.errors import RetryLater
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.members import Channel
from entrepot_hub.services.channels import Channels


class Nobody:
    """A bucket of which nothing is asked."""

    name = prefix = "nobody"

    async def aclose(self) -> None:
        """It was never open."""


async def test_a_bucket_that_hangs_keeps_no_other_from_being_opened(registry: Registry) -> None:
    """While one bucket does not open, the others' channels are there; one that fails is named when all were tried."""
    for name in ("broken", "well"):
        await registry.create_channel(
            name, quota=QUOTA, lock=SchemaLock(name), bucket=f"file:///srv/{name}", prefix="", credentials=None,
            binds={}, now=1.0, actor="admin",
        )  # fmt: skip
    released = asyncio.Event()

    async def opened(record: Channel) -> Nobody:
        if record.name == "demo":
            await released.wait()
        if record.name == "broken":
            raise RetryLater("away", kind="bucket-unreachable")
        return Nobody()

    channels = Channels(registry, opened, lambda: 5.0)  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        hanging = asyncio.create_task(channels.open_all())
        assert (await channels.channel("well")).name == "well"
        assert not hanging.done()
        released.set()
        failed = await hanging
    assert {name: error.kind for name, error in failed.items()} == {"broken": "bucket-unreachable"}
