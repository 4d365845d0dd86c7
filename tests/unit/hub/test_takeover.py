"""When an idle holder takes over what a slow one still has to upload."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot_hub.core.effects import Effect, Propose, SendGrant, TakeOver
from entrepot_hub.core.ledger import GrantOutcome, GrantRecord, GrantStatus, Proposal, Refusal, WantOrder
from entrepot_hub.core.rounds import Rounds
from entrepot_hub.core.takeover import LOOK, TRIAL
from entrepot_hub.core.uplinks import QUIET, WATCH, Uplinks

LOCK = SchemaLock("demo")
SIZE = LOCK.object
OPENING = Opening(20 * SIZE, b"\x07" * 32)
STREAM = OPENING.stream_id().raw


class Arranged:
    """Two holders that were granted four objects each of eight that are wanted; everything is accepted at once."""

    def __init__(self, wanted: int = 8, slots: int = 4) -> None:
        tokens = count(1)
        self.rounds = Rounds(ExchangeSettings(), lambda: next(tokens).to_bytes(16))
        self.now = 0.0
        self.live: dict[int, GrantRecord] = {}
        self.took: list[TakeOver] = []
        order = WantOrder("demo", LOCK.id, STREAM, "reader", ((0, wanted - 1),), wanted, 600.0)
        self.take(self.rounds.wanted(order, LOCK, OPENING, [], [], 10, 0.0))
        for node in ("slow", "fast"):
            self.offer(node, slots)
        self.pass_time(0.1)

    def offer(self, node: str, slots: int) -> None:
        self.take(self.rounds.offered("demo", STREAM, (node, "s"), OPENING, ((0, 19),), slots, self.now))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.rounds.tick(self.now))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Propose(proposals):
                    self.take(self.rounds.judged([self.grant(p) for p in proposals], self.now))
                case TakeOver(grant, proposal):
                    self.took.append(effect)
                    assert self.live[grant.ref.number] is grant or self.live[grant.ref.number].grant == grant.grant
                    self.rounds.taken_over(grant, self.now)
                    self.take([Propose((proposal,))])
                case _:
                    pass

    def grant(self, p: Proposal) -> GrantOutcome:
        made = GrantRecord(
            p.grant, p.ref, p.node, p.session, GrantStatus.ACCEPTED, p.size, b"d" * 32, p.lease_until, 900.0, self.now,
            self.now,
        )  # fmt: skip
        self.live[p.ref.number] = made
        self.rounds._uplinks.began(made, self.now)
        return GrantOutcome(p, made)

    def of(self, node: str) -> list[int]:
        return sorted(number for number, grant in self.live.items() if grant.node == node)

    def bring(self, number: int) -> None:
        grant = self.live.pop(number)
        self.take(self.rounds.arrived(grant.ref, grant, self.now))

    def bring_all(self, node: str) -> None:
        for number in self.of(node):
            self.bring(number)


def test_what_a_slow_holder_has_left_is_taken_over_by_an_idle_one() -> None:
    """One has brought its objects, the other nothing for seconds: its objects pass on, each once, and it is stopped,
    but not blamed."""
    world = Arranged()
    assert len(world.of("fast")) == len(world.of("slow")) == 4
    world.pass_time(0.5)
    world.bring_all("fast")
    assert not world.took  # nobody is called slow so soon
    world.pass_time(WATCH + QUIET)
    assert {effect.grant.node for effect in world.took} == {"slow"}
    assert {effect.proposal.node for effect in world.took} == {"fast"}
    assert world.of("slow") == []
    assert sorted(effect.grant.ref.number for effect in world.took) == world.of("fast")
    (found,) = world.rounds._rounds.values()
    assert not found.failures
    assert not found.excluded
    assert world.rounds._load == {"fast": 4}
    world.pass_time(20.0)
    assert len(world.took) == 4


def test_nothing_is_taken_over_while_anything_can_be_granted() -> None:
    """The fast one is given what nobody has yet, and only then what the slow one has."""
    world = Arranged(wanted=20)
    world.pass_time(WATCH + QUIET)
    while len(world.rounds._rounds["demo", STREAM].ready) < 12:
        assert not world.took
        world.now += 0.2
        world.bring(world.of("fast")[0])
    world.now += 0.2
    world.bring_all("fast")
    world.pass_time(LOOK)
    assert world.took


def test_among_equals_nothing_is_taken_over() -> None:
    """Who is as fast keeps what it has, though the other is through first."""
    world = Arranged()
    for _ in range(3):
        world.now += 1.0
        for node in ("fast", "slow"):
            world.bring(world.of(node)[0])
    world.now += 1.0
    world.bring_all("fast")
    for _ in range(20):
        world.pass_time(0.1)
    assert not world.took


def test_a_holder_without_free_slots_takes_nothing_over() -> None:
    """What is as good as idle but says that it has no slot is left alone."""
    world = Arranged()
    world.pass_time(0.5)
    for number in world.of("fast"):
        world.offer("fast", 0)
        world.bring(number)
    world.offer("fast", 0)
    world.rounds._allotment.seats.of(("fast", "s")).full()
    world.pass_time(WATCH + QUIET)
    assert not world.took


def test_what_is_more_than_half_out_is_not_taken_over() -> None:
    """Of what the slow one uploads only that passes on of which less than half has gone out."""
    world = Arranged()
    world.now += 0.5
    world.bring_all("fast")
    first = world.of("slow")[0]
    world.rounds.progressed(replace(world.live[first], sent=SIZE * 6 // 10), world.now)
    world.pass_time(WATCH + QUIET)
    assert len(world.took) == 3
    assert world.of("slow") == [first]


def test_whoever_brought_nothing_of_the_stream_takes_nothing_over() -> None:
    """A rate that was measured elsewhere is not believed; each object that was brought lets one be taken over."""
    world = Arranged()
    world.now += 0.5
    world.bring_all("fast")
    (found,) = world.rounds._rounds.values()
    found.brought.clear()
    world.pass_time(WATCH + QUIET)
    assert not world.took
    found.brought["fast"] = 1
    world.pass_time(LOOK)
    assert len(world.took) == 1


def test_what_was_taken_over_and_does_not_come_passes_back_once() -> None:
    """Who took an object over and trickles has it taken back within seconds, takes no other, and is not believed; the
    first holder is not blamed, and keeps it."""
    world = Arranged()
    world.now += 0.5
    world.bring_all("fast")
    world.pass_time(WATCH + QUIET)
    assert world.of("slow") == []
    for second in range(1, 3):
        world.now += 1.0
        for number in world.of("fast"):
            world.take(world.rounds.progressed(replace(world.live[number], sent=20_000 * second), world.now))
    assert world.of("slow") == []
    world.pass_time(max(TRIAL - 2.0, LOOK))
    assert len(world.of("slow")) == 4
    assert {effect.grant.node for effect in world.took[4:]} == {"fast"}
    (found,) = world.rounds._rounds.values()
    assert not found.failures
    assert found.brought["fast"] == 0
    world.pass_time(30.0)
    assert len(world.took) == 8


def test_what_was_taken_over_passes_back_though_its_new_holder_is_busy_elsewhere() -> None:
    """What goes out for other streams does not keep an object that was taken over."""
    world = Arranged()
    world.now += 0.5
    world.bring_all("fast")
    world.pass_time(WATCH + QUIET)
    other = replace(world.live[world.of("fast")[0]], grant=b"o" * 16, length=1 << 40)
    world.rounds._uplinks.began(other, world.now)
    for second in range(1, 10):
        world.now += 1.0
        world.rounds._uplinks.sent(replace(other, sent=second * 50 * SIZE), world.now)
        world.pass_time(0.0)
    assert len(world.of("slow")) == 4


def test_a_takeover_that_comes_to_nothing_changes_nothing() -> None:
    """The grant was over already: what was reserved is free again, and what the slow one brought counts."""
    world = Arranged()
    world.pass_time(0.5)
    world.bring_all("fast")
    world.now += WATCH + QUIET
    effects = [effect for effect in world.rounds.tick(world.now) if isinstance(effect, TakeOver)]
    assert len(effects) == 4
    world.rounds.unjudged([effect.proposal for effect in effects], world.now)
    assert world.rounds._load == {"slow": 4}
    for number in world.of("slow"):
        world.bring(number)
    assert world.rounds._load == {}
    (found,) = world.rounds._rounds.values()
    assert len(found.ready) == 8


def test_a_takeover_that_the_ledger_refuses_is_granted_anew() -> None:
    """Another hub was quicker: its grant counts."""
    world = Arranged()
    world.pass_time(0.5)
    world.bring_all("fast")
    world.now += WATCH + QUIET
    effect = next(effect for effect in world.rounds.tick(world.now) if isinstance(effect, TakeOver))
    world.rounds.taken_over(effect.grant, world.now)
    foreign = world.grant(effect.proposal).grant
    assert foreign is not None
    outcome = GrantOutcome(effect.proposal, foreign, Refusal.HELD)
    assert not [e for e in world.rounds.judged([outcome], world.now) if isinstance(e, SendGrant)]
    (found,) = world.rounds._rounds.values()
    assert found.live[foreign.ref.number].grant is foreign


def test_an_uplink_is_measured_while_it_is_used() -> None:
    """Four objects side by side in four seconds are as fast as four in turn; what lies between two uploads counts for
    nothing, and silence counts as nothing sent."""
    uplinks = Uplinks()
    assert uplinks.rate("slow", 0.0) is None
    world = Arranged()
    grants = [world.live[number] for number in world.of("slow")]
    for grant in grants:
        uplinks.began(grant, 100.0)
    for grant in grants:
        uplinks.arrived(grant, 104.0)
    rate = uplinks.rate("slow", 104.0)
    assert rate is not None
    assert 0.9 * SIZE < rate < 1.1 * SIZE
    assert uplinks.rate("slow", 1000.0) == rate
    uplinks.began(grants[0], 1000.0)
    assert uplinks.rate("slow", 1000.0 + QUIET) == rate
    later = uplinks.rate("slow", 1060.0)
    assert later is not None
    assert later < rate / 4
    assert uplinks.left("slow") == grants[0].length
    uplinks.ended(grants[0], 1060.0)
    assert uplinks.left("slow") == uplinks.uploads("slow") == 0


def test_what_was_told_of_bytes_that_never_came_is_not_believed() -> None:
    """Whoever claims that everything went out and brings nothing is as slow as before."""
    world = Arranged()
    uplinks = Uplinks()
    first, second = (world.live[number] for number in world.of("slow")[:2])
    uplinks.began(first, 100.0)
    uplinks.arrived(first, 104.0)
    before = uplinks.rate("slow", 104.0)
    assert before is not None
    uplinks.began(second, 104.0)
    uplinks.sent(replace(second, sent=second.length), 104.1)
    claimed = uplinks.rate("slow", 104.1)
    assert claimed is not None
    assert claimed > 1.5 * before
    uplinks.ended(second, 104.2)
    after = uplinks.rate("slow", 104.2)
    assert after is not None
    assert after <= before
