"""A ledger that was lost comes back from every kind of bucket, and what lands afterwards is met with care."""

from __future__ import annotations

from tests.contract.buckets.test_reconciliation import LOCK, QUOTA, World, stream, world

from entrepot_hub.adapters.sql_rebuild import Held, Rebuilding
from entrepot_hub.core.ledger import ObjectStatus, Proposal

__all__ = ["world"]  # the fixture

LIFE, PERIOD = 900.0, 86_400.0


async def lose(world: World) -> Rebuilding:
    """The ledger is empty and knows that it was lost."""
    state = Rebuilding(until=world.clock.now + LIFE, strict=False)
    await world.database.call(world.ledger.begin_rebuild, ["demo"], "export", state, world.clock.now)
    return state


async def test_a_lost_ledger_is_taken_from_the_listing(world: World) -> None:
    """What proves itself is ready again, even beyond the quota; what does not leaves the bucket, and a tombstone keeps
    its key. Half of what is free is held back, and a comparison finds nothing to do."""
    content, other = stream(3), stream(1)
    refs = [await world.put(content, number) for number in range(3)]
    assert await world.bucket.create(world.key(other), b"garbage")
    assert await world.bucket.create(world.key(other, 1), b"")
    state = await lose(world)
    assert await world.reconciler.rebuild("demo")
    done = await world.database.call(world.ledger.rebuilding, "demo")
    assert done is not None
    assert done.done
    assert {word: done.counts[word] for word in ("adopted", "removed", "tombstone")} == {
        "adopted": 3,
        "removed": 1,
        "tombstone": 1,
    }
    assert [await world.status(ref) for ref in refs] == [ObjectStatus.READY] * 3
    assert await world.status(world.ref(other, 1)) is ObjectStatus.TOMBSTONE
    stored = sum(len(content.object(number)) for number in range(3))
    held = (QUOTA - stored) // 2
    assert await world.database.call(world.ledger.held, "demo") == Held(held, state.until)
    assert await world.charged() == stored + held
    keys = await world.keys()
    assert (world.key(other) in keys, keys[world.key(other, 1)][0]) == (False, 0)
    assert (await world.run()).counts == {}
    assert not await world.reconciler.rebuild("demo")


async def test_what_was_granted_before_and_lands_later_is_taken_in(world: World) -> None:
    """Every round of the running hub looks for it; it comes out of what is held back, also where new grants fill the
    rest; and once no URL of before can land any more, nothing is held back and the daily comparison is enough."""
    await lose(world)
    assert await world.reconciler.due(PERIOD) == 1
    late, new = stream(1), stream(1)
    held = await world.database.call(world.ledger.held, "demo")
    assert held is not None
    free = QUOTA - await world.charged()
    grant = Proposal(world.ref(new), bytes(16), "A", "s" * 16, free, world.clock.now + 10)
    await world.database.call(world.ledger.grant, [grant], world.clock.now)
    await world.put(late)
    world.clock.now += 300
    assert await world.reconciler.due(PERIOD) == 1
    assert await world.status(world.ref(late)) is ObjectStatus.READY
    assert await world.charged() == QUOTA
    world.clock.now = held.until + world.reconciler._keeper.grace + 1
    for record in await world.database.call(world.ledger.stale, world.clock.now, world.reconciler._keeper.grace):
        if record.status is ObjectStatus.RESERVED and record.ref.lock != LOCK.id:
            await world.reconciler._keeper.finish(record)
    assert await world.database.call(world.ledger.held, "demo") is None
    assert await world.reconciler.due(PERIOD) == 0
