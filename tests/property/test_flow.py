"""Streams larger than the quota flow through it: the real machines in virtual time, readers apart from each other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.test_exchange import World

#: Uploads, as multiples of the stream, beyond what readers who come late make necessary in any case.
SLACK = 0.15


def flow(
    seed: int,
    *,
    readers: int,
    quota: int,
    objects: int = 200,
    loss: float = 0.0,
    in_order: Sequence[bool] | None = None,
    starts: Sequence[float] | None = None,
    pauses: Sequence[float] | None = None,
    seconds: float = 3000.0,
) -> World:
    """Run until every reader has ended; each must have everything. The world checks the quota at every step."""
    world = World(
        seed,
        loss=loss,
        objects=objects,
        holders=2,
        readers=readers,
        quota=quota,
        in_order=in_order or [False] * readers,
        starts=starts,
        pauses=pauses,
    )
    world.begin()
    world.run(world.now + seconds)
    assert world.ends == dict.fromkeys(world.requesters), {n: str(e) for n, e in world.ends.items() if e}
    return world


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.1]),
    quota=st.integers(4, 16),
    objects=st.integers(20, 60),
    data=st.data(),
)
def test_readers_apart_from_each_other_get_everything(
    seed: int, loss: float, quota: int, objects: int, data: st.DataObject
) -> None:
    """Readers of any order, start and speed all end with a stream of several times the quota, and no reader costs more
    than the stream once again."""
    readers = data.draw(st.integers(2, 6))
    in_order = data.draw(st.lists(st.booleans(), min_size=readers, max_size=readers))
    starts = data.draw(st.lists(st.floats(0.0, 20.0), min_size=readers, max_size=readers))
    pauses = data.draw(st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=readers, max_size=readers))
    world = flow(
        seed, readers=readers, quota=quota, objects=objects, loss=loss, in_order=in_order, starts=starts, pauses=pauses
    )
    assert world.puts <= (readers + SLACK) * objects


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("quota", [4, 16])
@pytest.mark.parametrize("pauses", [(0.0, 0.0, 0.0), (0.0, 0.3, 1.0)], ids=["alike", "slow"])
def test_three_readers_that_wrap_around_share_each_upload(
    quota: int, loss: float, pauses: tuple[float, float, float]
) -> None:
    """Three readers that come one after the other, and read at different speeds, cost at most 1.3 times the stream."""
    world = flow(quota, readers=3, quota=quota, loss=loss, starts=(0.0, 2.0, 4.0), pauses=pauses)
    assert world.puts <= 1.3 * world.geometry.object_count


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("quota", [4, 16])
def test_twenty_readers_at_once_share_each_upload(quota: int, loss: float) -> None:
    """Twenty windows of objects and room for four of them: everybody gets everything for 1.3 times the stream."""
    world = flow(quota, readers=20, quota=quota, loss=loss, objects=100)
    assert world.puts <= 1.3 * world.geometry.object_count


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_twenty_readers_of_two_kinds_get_everything(loss: float) -> None:
    """Ten readers in order among ten that take what comes, all at different times and speeds, in room for four objects:
    nobody starves, and it costs far less than a stream for each reader in order."""
    world = flow(
        7,
        readers=20,
        quota=4,
        loss=loss,
        objects=80,
        in_order=[i % 2 == 0 for i in range(20)],
        starts=[0.7 * i for i in range(20)],
        pauses=[0.1 * (i % 4) for i in range(20)],
    )
    assert world.puts <= 5 * world.geometry.object_count


@pytest.mark.parametrize("dead", [0, 1])
def test_a_reader_that_dies_holds_nobody_up(dead: int) -> None:
    """A reader that falls silent with everything leased to it costs the others a lease at most, and not their get."""
    world = World(3, loss=0.0, objects=40, holders=1, readers=3, quota=4, in_order=[True, False, False])
    names = list(world.requesters)
    world.begin()
    world.run(world.now + 3.0)
    machine = world.requesters.pop(names[dead])
    machine.ended = True
    heard = world.at_requester
    world.at_requester = lambda name, event: None if name == names[dead] else heard(name, event)  # type: ignore[method-assign]
    world.run(world.now + 600.0)
    assert world.ends == dict.fromkeys(world.requesters)


def test_a_reader_that_asks_and_never_reads_holds_nobody_up() -> None:
    """A reader whose downloads never end, and who asks on and on, keeps no more than its share for no longer than a
    read lease: the others end."""
    world = World(
        5, loss=0.0, objects=30, holders=1, readers=3, quota=4, in_order=[False] * 3, starts=(0.0, 0.0, 0.0),
        pauses=(1e6, 0.0, 0.0),
    )  # fmt: skip
    world.begin()
    names = list(world.requesters)
    world.run(world.now + 55.0)  # its own want ends by its deadline after 60 s
    assert {name: world.ends.get(name, "waits") for name in names} == {
        names[0]: "waits", names[1]: None, names[2]: None,
    }  # fmt: skip
