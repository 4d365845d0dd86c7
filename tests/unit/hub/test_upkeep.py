"""What the hub remembers stays within bounds."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from entrepot.core.identifiers import Opening
from entrepot_hub.core.ledger import WantOrder
from entrepot_hub.core.model_ledger import ModelLedger
from entrepot_hub.services.upkeep import Upkeep, UpkeepSettings

SETTINGS = UpkeepSettings(history=100.0, absent=1000.0, of_member=30, of_channel=50, growth=10, page=7)


def stream(number: int) -> tuple[bytes, Opening]:
    return b"\xff" + number.to_bytes(31), Opening(number, bytes(32))


class World:
    """A ledger in memory and its upkeep."""

    def __init__(self) -> None:
        self.now = 10_000.0
        self.ledger = ModelLedger()
        self.work: list[Coroutine[Any, Any, None]] = []
        self.room = True
        for name in ("demo", "other"):
            self.ledger.add_channel(name, 1000)
            for node in "AB":
                self.ledger.add_member(name, node, node)
        self.upkeep = Upkeep(
            SimpleNamespace(call=self._call),  # type: ignore[arg-type]
            self.ledger,
            SimpleNamespace(names=self._names),  # type: ignore[arg-type]
            lambda: self.now,
            self._spawn,
            SETTINGS,
        )

    async def _call[A](self, work: Callable[..., A], *arguments: Any) -> A:
        return work(*arguments)

    async def _names(self) -> list[str]:
        return ["demo", "other"]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> bool:
        if self.room:
            self.work.append(work)
        else:
            work.close()
        return self.room

    def say(self, channel: str, node: str, numbers: range) -> None:
        """A node says, one by one, that it holds these."""
        for number in numbers:
            self.ledger.hold(channel, [stream(number)], node, self.now)
            self.now += 1.0
            self.upkeep.grew(channel, 1)

    async def settle(self) -> None:
        while self.work:
            await self.work.pop()

    def holds(self, channel: str, node: str) -> int:
        return sum(
            node in {each.node for each in self.ledger.holders(channel, stream(number)[0])} for number in range(1000)
        )


async def test_a_member_that_claims_without_end_is_cut_while_it_does() -> None:
    """Nobody waits for the next round: what is too much goes as it grows, at most one look at a time."""
    world = World()
    most = 0
    for start in range(0, 400, 5):
        world.say("demo", "A", range(start, start + 5))
        assert len(world.work) <= 1
        await world.settle()
        most = max(most, world.holds("demo", "A"))
    assert most <= SETTINGS.of_member + SETTINGS.growth
    assert await world.upkeep.forget() > 0, "openings that nobody holds any more"
    assert world.holds("demo", "A") == SETTINGS.of_member
    assert sum(world.ledger.opening("demo", stream(n)[0]) is not None for n in range(400)) == SETTINGS.of_member


async def test_all_channels_are_looked_after() -> None:
    """Streams, absent nodes and too many holdings, page after page, in every channel."""
    world = World()
    for name in ("demo", "other"):
        for number in range(60):
            world.ledger.hold(name, [stream(number)], "A" if number % 2 else "B", world.now)
    world.ledger.see("A", world.now)
    world.ledger.see("B", world.now)
    assert await world.upkeep.forget() == 2 * (60 - SETTINGS.of_channel) * 2
    world.now += 500.0
    world.ledger.see("A", world.now)
    world.now += 700.0
    assert await world.upkeep.forget() == 2 * 25 * 2
    assert [world.holds(name, node) for name in ("demo", "other") for node in "AB"] == [25, 0, 25, 0]
    assert await world.upkeep.forget() == 0


async def test_what_is_over_goes_however_much_it_is() -> None:
    """One round forgets more than a page, so that the ledger shrinks faster than it grows."""
    world = World()
    for number in range(40):
        order = WantOrder("demo", bytes(8), stream(number)[0], "A", ((0, 0),), 1, world.now)
        world.ledger.want(order, [], 0.0, world.now)
    world.now += 99.0
    assert await world.upkeep.prune() == 0
    world.now += 2.0
    assert await world.upkeep.prune() == 40


async def test_a_hub_with_no_room_for_work_looks_later() -> None:
    """Where the look could not begin it begins with the next stream that is said."""
    world = World()
    world.room = False
    world.say("demo", "A", range(40))
    world.room = True
    world.say("demo", "A", range(40, 41))
    await world.settle()
    assert world.holds("demo", "A") == SETTINGS.of_member
