"""Objects of codec zstd that a ledger lost or never knew: what their headers prove is taken in at its stored length."""

from __future__ import annotations

import os

import pytest
from tests.contract.buckets import test_reconciliation as plain
from tests.contract.buckets.test_reconciliation import World, world
from tests.servers.grid import Content

from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.sql_rebuild import Rebuilding
from entrepot_hub.core.ledger import ObjectStatus

__all__ = ["world"]  # the fixture

LOCK = SchemaLock("demo", "zstd", miniblock=16384, object=65536)


@pytest.fixture(autouse=True)
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The channel of that world has codec zstd."""
    monkeypatch.setattr(plain, "LOCK", LOCK)


def mixed(objects: int) -> Content:
    """Every other miniblock compresses; the last one is short."""
    blocks = (os.urandom(16384) if index % 2 else os.urandom(8) * 2048 for index in range(4 * objects))
    return Content(b"".join(blocks)[:-1000], LOCK)


async def test_packed_objects_are_taken_in_and_charged_as_stored(world: World) -> None:
    """A reconciliation adopts what proves itself, at the length that header and listing agree on, and removes what is
    longer or shorter than its header says."""
    content, cut, longer = mixed(3), mixed(1), mixed(1)
    refs = [await world.put(content, number) for number in range(3)]
    assert await world.bucket.create(world.key(cut), cut.object(0)[:-1])
    assert await world.bucket.create(world.key(longer), longer.object(0) + b"!")
    found = await world.run()
    assert found.counts == {"adopted": 3, "removed": 2}
    assert [await world.status(ref) for ref in refs] == [ObjectStatus.READY] * 3
    sizes = [len(content.object(number)) for number in range(3)]
    assert await world.charged() == sum(sizes) < 0.7 * len(content.data)
    again = await world.run()
    assert (again.agreed, again.counts) == (3, {})


async def test_a_lost_ledger_is_taken_from_packed_objects(world: World) -> None:
    """A rebuilding reads the headers and charges what is stored."""
    content = mixed(2)
    refs = [await world.put(content, number) for number in range(2)]
    state = Rebuilding(until=world.clock.now + 900.0, strict=False)
    await world.database.call(world.ledger.begin_rebuild, ["demo"], "export", state, world.clock.now)
    assert await world.reconciler.rebuild("demo")
    assert [await world.status(ref) for ref in refs] == [ObjectStatus.READY] * 2
    usage = await world.database.call(world.ledger.usage, "demo")
    assert usage.stored == sum(len(content.object(number)) for number in range(2))
    assert (await world.run()).counts == {}
