"""How much one node is granted at once, whatever sessions it says it has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from entrepot.core.errors import RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot_hub.core.effects import Effect, Propose
from entrepot_hub.core.ledger import GrantOutcome, GrantRecord, GrantStatus, Proposal, Refusal, WantOrder
from entrepot_hub.core.rounds import Rounds

LOCK = SchemaLock("demo")
UPLOADS = 10
SETTINGS = ExchangeSettings(uploads=UPLOADS, slots=4)


def opening(number: int) -> Opening:
    return Opening(40 * LOCK.object, bytes([number]) * 32)


class Arranged:
    """Rounds whose proposals are all granted."""

    def __init__(self) -> None:
        tokens = count(1)
        self.rounds = Rounds(SETTINGS, lambda: next(tokens).to_bytes(16))
        self.live: dict[bytes, GrantRecord] = {}
        self.now = 0.0

    def want(self, number: int, reader: str = "reader") -> None:
        found = opening(number)
        stream = found.stream_id().raw
        order = WantOrder("demo", LOCK.id, stream, reader, ((0, 39),), 40, self.now + 600)
        self.take(self.rounds.wanted(order, LOCK, found, [], [], 10, self.now))

    def offer(self, number: int, node: str, session: str, slots: int = 64) -> None:
        found = opening(number)
        stream = found.stream_id().raw
        self.take(self.rounds.offered("demo", stream, (node, session), found, ((0, 39),), slots, self.now))

    def pass_time(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.take(self.rounds.tick(self.now))

    def take(self, effects: list[Effect]) -> None:
        """Grant what is proposed, and what that leads to."""
        while made := [p for effect in effects if isinstance(effect, Propose) for p in effect.proposals]:
            effects = self.rounds.judged([GrantOutcome(p, self.grant(p)) for p in made], self.now)

    def grant(self, p: Proposal) -> GrantRecord:
        made = GrantRecord(
            p.grant, p.ref, p.node, p.session, GrantStatus.OFFERED, p.size, None, p.lease_until, 0.0, self.now
        )
        self.live[p.grant] = made
        return made

    def end(self, grant: GrantRecord, error: RetryLater | None = None) -> None:
        del self.live[grant.grant]
        if error is None:
            self.take(self.rounds.arrived(grant.ref, grant, self.now))
        else:
            self.take(self.rounds.ended(grant, error, self.now))

    def of(self, node: str) -> int:
        return sum(grant.node == node for grant in self.live.values())


def test_invented_sessions_gain_a_node_nothing(report: Callable[..., None]) -> None:
    """A node with many sessions, each with free slots for ever, is granted as much at once as one may be."""
    world = Arranged()
    for number in range(4):
        world.want(number)
    for turn in range(5):
        for number in range(4):
            for session in range(8):
                world.offer(number, "many", f"{turn}-{session}")
        world.pass_time()
        assert world.of("many") == UPLOADS
    report("attacks", attack="invented sessions", defended_by="grants at once are bounded per node")


def test_others_are_granted_what_one_node_may_not_have() -> None:
    """A node that has as much as it may leaves the rest to other holders."""
    world = Arranged()
    world.want(1)
    for session in range(8):
        world.offer(1, "many", str(session))
    world.offer(1, "other", "s")
    world.pass_time()
    assert world.of("many") == UPLOADS
    assert world.of("other") >= 4


@pytest.mark.parametrize("failed", [True, False])
def test_a_grant_that_ends_makes_room(failed: bool) -> None:
    """Whether it arrived or failed, its place is free, and no place is ever lost."""
    world = Arranged()
    world.want(1)
    world.want(2)
    for number in (1, 2):
        world.offer(number, "holder", "s")
    world.pass_time()
    for _ in range(20):
        assert world.of("holder") == UPLOADS
        grant = next(iter(world.live.values()))
        world.end(grant, RetryLater("slow", kind="holder-too-slow") if failed else None)
        world.offer(1, "holder", "s")
        world.offer(2, "holder", "s")
        world.pass_time(70.0 if failed else 1.0)
        world.want(1)
        world.want(2)
        for number in (1, 2):
            world.offer(number, "holder", "s")
        world.pass_time()


def test_what_is_refused_or_dropped_counts_for_nothing() -> None:
    """Proposals that came to nothing, and rounds of an old lock, take no place."""
    world = Arranged()
    source = world.rounds
    world.want(1)
    source.offered("demo", opening(1).stream_id().raw, ("holder", "s"), opening(1), ((0, 39),), 64, 0.0)
    made = [p for effect in source.tick(1.0) if isinstance(effect, Propose) for p in effect.proposals]
    assert len(made) == UPLOADS
    source.unjudged(made[:3], 1.0)
    source.judged([GrantOutcome(p, None, Refusal.BUSY) for p in made[3:6]], 1.0)
    source.judged([GrantOutcome(p, world.grant(p)) for p in made[6:]], 1.0)
    assert source._load == {"holder": UPLOADS - 6}
    newer = SchemaLock("demo", object=8 * LOCK.miniblock)
    order = WantOrder("demo", newer.id, opening(1).stream_id().raw, "reader", ((0, 1),), 2, 600.0)
    source.wanted(order, newer, opening(1), [], [], 10, 2.0)
    assert source._load == {}
