"""The hub's soft state machine: seeking, gathering offers, choosing, failing over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, pairwise

import pytest

from entrepot.core.errors import Corrupt, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot_hub.core.effects import (
    Announce,
    Effect,
    Introduce,
    MakeRoom,
    Propose,
    SendGrant,
    SendSeek,
)
from entrepot_hub.core.ledger import (
    GrantOutcome,
    GrantRecord,
    GrantStatus,
    HolderRecord,
    ObjectRecord,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    Proposal,
    Refusal,
    WantOrder,
    WantRecord,
)
from entrepot_hub.core.readers import ASKER_LIFE
from entrepot_hub.core.rounds import Rounds
from entrepot_hub.core.wishes import Front

LOCK = SchemaLock("demo")
OPENING = Opening(20 * LOCK.object, b"\x07" * 32)
STREAM = OPENING.stream_id().raw
SETTINGS = ExchangeSettings()


def tokens() -> Iterator[bytes]:
    """Grant ids that tell themselves apart."""
    return (number.to_bytes(16) for number in count(1))


@pytest.fixture
def rounds() -> Rounds:
    """A hub that knows nothing yet."""
    source = tokens()
    return Rounds(SETTINGS, lambda: next(source))


def order(node: str = "reader", first: int = 0, window: int = 4, until: float = 60.0, keep: bool = False) -> WantOrder:
    """A want for everything from ``first`` on."""
    return WantOrder("demo", LOCK.id, STREAM, node, ((first, 19),), window, until, keep)


def ref(number: int) -> ObjectRef:
    """An object of the stream."""
    return ObjectRef("demo", LOCK.id, STREAM, number)


def want(
    rounds: Rounds, now: float, asked: WantOrder | None = None, *, known: bool = True, holders: int = 0
) -> list[Effect]:
    """A want of which the ledger knows no object yet."""
    asked = asked or order()
    seen = [HolderRecord(f"holder{i}", f"name{i}", 1.0) for i in range(holders)]
    return rounds.wanted(asked, LOCK, OPENING if known else None, [], seen, 10, now)


def offer(
    rounds: Rounds, now: float, node: str = "holder", slots: int = 4, ranges: tuple[tuple[int, int], ...] = ((0, 19),)
) -> list[Effect]:
    """An offer of one session."""
    return rounds.offered("demo", STREAM, (node, "s"), OPENING, ranges, slots, now)


def one[T](kind: type[T], effects: list[Effect]) -> T:
    """The only effect of a kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def proposals(effects: list[Effect]) -> list[Proposal]:
    """All that is proposed."""
    return [p for effect in effects if isinstance(effect, Propose) for p in effect.proposals]


def granted(proposal: Proposal, now: float, status: GrantStatus = GrantStatus.OFFERED) -> GrantRecord:
    """The grant that a ledger makes of a proposal."""
    return GrantRecord(
        proposal.grant,
        proposal.ref,
        proposal.node,
        proposal.session,
        status,
        proposal.size,
        None,
        proposal.lease_until,
        0.0,
        now,
    )


def assign(rounds: Rounds, now: float = 0.0, slots: int = 4) -> list[GrantRecord]:
    """Want, offer, wait for the window to close, grant: the usual beginning."""
    want(rounds, now)
    offer(rounds, now, slots=slots)
    made = [granted(p, now + 1) for p in proposals(rounds.tick(now + 1))]
    rounds.judged([GrantOutcome(_proposal(g), g) for g in made], now + 1)
    return made


def _proposal(grant: GrantRecord) -> Proposal:
    return Proposal(grant.ref, grant.grant, grant.node, grant.session, grant.length, grant.lease_until)


def test_a_want_is_sought_at_known_holders_first(rounds: Rounds) -> None:
    """Nodes that said they hold the stream are asked before the channel is."""
    seek = one(SendSeek, want(rounds, 0.0, holders=2))
    assert seek.nodes == ("holder0", "holder1")
    later = one(SendSeek, rounds.tick(1.0))
    assert later.nodes is None


def test_without_known_holders_the_channel_is_asked(rounds: Rounds) -> None:
    """A small channel is asked whole, at once."""
    seek = one(SendSeek, want(rounds, 0.0))
    assert (seek.nodes, seek.sample) == (None, 65536)


def test_a_large_channel_is_asked_by_a_growing_sample(rounds: Rounds) -> None:
    """Of ten thousand members about 64 are asked first, then four times as many."""
    effects = rounds.wanted(order(), LOCK, OPENING, [], [], 10_000, 0.0)
    first = one(SendSeek, effects).sample
    second = one(SendSeek, rounds.tick(1.0)).sample
    assert 60 <= first * 10_000 / 65536 <= 65
    assert 3.9 < second / first < 4.1


def test_seeks_are_repeated_less_and_less_often(rounds: Rounds) -> None:
    """While nobody offers, the pauses double, then grow with the time waited up to a minute; nothing busy-loops."""
    want(rounds, 0.0, order(until=1200.0))
    times = []
    while True:
        timer = rounds.timer()
        assert timer is not None
        if timer >= 1200.0:
            break
        effects = rounds.tick(timer)
        assert effects, "the timer fired for nothing"
        times.append(timer)
    pauses = [b - a for a, b in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == SETTINGS.seek_again_most
    assert 30 < len(times) < 70


def test_offers_are_gathered_for_a_moment(rounds: Rounds) -> None:
    """Nothing is chosen before the window closes; then every offer that came counts."""
    want(rounds, 0.0, order(window=16))
    assert not proposals(offer(rounds, 0.0, "a", slots=16))
    assert not proposals(offer(rounds, 0.005, "b", slots=16))
    timer = rounds.timer()
    assert timer == pytest.approx(SETTINGS.offer_window)
    chosen = proposals(rounds.tick(SETTINGS.offer_window))
    assert {p.ref.number for p in chosen} == set(range(16))
    assert {p.node for p in chosen} == {"a", "b"}


def test_nobody_gets_more_than_their_slots(rounds: Rounds) -> None:
    """A holder with two slots gets two objects; the next one when a slot is free again."""
    made = assign(rounds, slots=2)
    assert [g.ref.number for g in made] == [0, 1]
    effects = rounds.arrived(ref(0), made[0], 2.0)
    assert [p.ref.number for p in proposals(effects)] == [2]


def test_only_what_is_offered_is_granted(rounds: Rounds) -> None:
    """A holder of a part of the stream is given objects of that part; the rest is sought on."""
    want(rounds, 0.0)
    offer(rounds, 0.0, ranges=((2, 3),))
    effects = rounds.tick(1.0)
    assert [p.ref.number for p in proposals(effects)] == [2, 3]
    assert [e for e in effects if isinstance(e, SendSeek)]


def test_the_front_of_every_reader_comes_first(rounds: Rounds) -> None:
    """Two readers at different places: the object each needs next goes before what either needs later."""
    want(rounds, 0.0, order("one", first=0))
    want(rounds, 0.0, order("two", first=10))
    offer(rounds, 0.0, slots=2)
    assert [p.ref.number for p in proposals(rounds.tick(1.0))] == [0, 10]


def test_a_grant_is_sent_and_sent_again_until_accepted(rounds: Rounds) -> None:
    """Every half second the same grant goes out again; once accepted it does not."""
    made = assign(rounds, slots=1)
    again = one(SendGrant, rounds.tick(1.0 + SETTINGS.resend))
    assert again.grant.grant == made[0].grant
    rounds.accepted(made[0])
    assert not [e for e in rounds.tick(9.0) if isinstance(e, SendGrant)]


def test_a_failed_grant_goes_to_the_next_offer(rounds: Rounds) -> None:
    """When a grant ends without its object another holder gets it at once, without a new window."""
    want(rounds, 0.0, order(window=1))
    offer(rounds, 0.0, "a")
    offer(rounds, 0.0, "b")
    first = proposals(rounds.tick(1.0))[0]
    grant = granted(first, 1.0)
    rounds.judged([GrantOutcome(first, grant)], 1.0)
    effects: list[Effect] = []
    for _ in range(SETTINGS.failures):
        effects = rounds.ended(grant, Corrupt("nothing there"), 2.0)
        again = proposals(effects)[0]
        if again.node != first.node:
            break
        grant = granted(again, 2.0)
        rounds.judged([GrantOutcome(again, grant)], 2.0)
    assert proposals(effects)[0].node != first.node


def test_a_provider_that_fails_twice_is_left_out_for_a_while(rounds: Rounds) -> None:
    """Two failures exclude a node from the stream for a minute, and its reason is told; then it may again."""
    want(rounds, 0.0, order(window=1, until=600.0))
    offer(rounds, 0.0)
    proposed = proposals(rounds.tick(1.0))
    for moment in (2.0, 3.0):
        grant = granted(proposed[0], moment)
        rounds.judged([GrantOutcome(proposed[0], grant)], moment)
        proposed = proposals(rounds.ended(grant, Corrupt("nothing there"), moment))
    assert proposed == []
    reason = rounds.reason("demo", STREAM, 3.0)
    assert reason is not None
    assert reason.kind == "corrupt"
    assert not proposals(offer(rounds, 30.0))
    assert proposals(offer(rounds, 3.0 + SETTINGS.exclusion) + rounds.tick(4.0 + SETTINGS.exclusion))


def test_a_busy_provider_is_not_punished(rounds: Rounds) -> None:
    """Busy or leaving costs the offer, not the reputation."""
    made = assign(rounds, slots=4)
    for grant in made:
        rounds.ended(grant, RetryLater("busy", kind="busy"), 2.0)
    offer(rounds, 3.0)
    assert proposals(rounds.tick(4.0))


def test_a_ready_object_is_announced_and_not_granted_again(rounds: Rounds) -> None:
    """Who waits hears of it; the window moves on without it."""
    made = assign(rounds, slots=1)
    effects = rounds.arrived(ref(0), made[0], 2.0)
    assert one(Announce, effects).refs == (ref(0),)
    assert all(p.ref.number != 0 for p in proposals(effects))


def test_a_vanished_object_is_sought_again(rounds: Rounds) -> None:
    """Evicted, missing or bad: an object that somebody still wants is proposed anew."""
    made = assign(rounds, slots=4)
    rounds.arrived(ref(0), made[0], 2.0)
    assert [p.ref.number for p in proposals(rounds.vanished(ref(0), 3.0))] == [0]


def test_no_room_makes_room_and_tries_again(rounds: Rounds) -> None:
    """A proposal that the quota refuses has the hub evict; when bytes come free it is made again."""
    want(rounds, 0.0, order(window=1))
    offer(rounds, 0.0)
    proposal = proposals(rounds.tick(1.0))[0]
    effects = rounds.judged([GrantOutcome(proposal, None, Refusal.OVER, 77)], 1.0)
    assert one(MakeRoom, effects) == MakeRoom("demo", 77, 77, Front("reader", STREAM))
    reason = rounds.reason("demo", STREAM, 1.0)
    assert reason is not None
    assert reason.kind == "over-quota"
    assert proposals(rounds.roomier("demo", 1.05))


def test_what_the_ledger_holds_elsewhere_is_respected(rounds: Rounds) -> None:
    """A grant that another hub made is not fought over; an object that is ready already is announced."""
    want(rounds, 0.0, order(window=2))
    offer(rounds, 0.0)
    first, second = proposals(rounds.tick(1.0))
    foreign = replace(granted(first, 0.5, GrantStatus.ACCEPTED), node="else")
    effects = rounds.judged(
        [GrantOutcome(first, foreign, Refusal.HELD), GrantOutcome(second, None, Refusal.READY)], 1.0
    )
    assert one(Announce, effects).refs == (ref(1),)
    assert not proposals(effects)
    assert not [e for e in rounds.tick(5.0) if isinstance(e, SendGrant)]


def test_the_ledgers_view_mends_what_the_round_believes(rounds: Rounds) -> None:
    """A want's look into the ledger corrects a round that missed a message of another hub."""
    made = assign(rounds, slots=1)
    view = ObjectView(ObjectRecord(ref(0), ObjectStatus.READY, 5))
    effects = rounds.wanted(order(), LOCK, OPENING, [view], [], 10, 2.0)
    assert all(p.ref.number != 0 for p in proposals(effects))
    assert made[0].ref == ref(0)


def test_the_first_offer_tells_the_length(rounds: Rounds) -> None:
    """A stream that nobody here knew is introduced to its readers, then granted."""
    want(rounds, 0.0, known=False)
    effects = offer(rounds, 0.1)
    assert one(Introduce, effects).opening == OPENING
    assert proposals(rounds.tick(1.0))


def test_a_holder_that_comes_is_asked_at_once(rounds: Rounds) -> None:
    """Whoever says that it now holds a wanted stream gets a seek of its own; for others nothing happens."""
    want(rounds, 0.0)
    assert one(SendSeek, rounds.came("demo", STREAM, "new", OPENING, 5.0)).nodes == ("new",)
    assert rounds.came("demo", b"\xff" * 32, "new", OPENING, 5.0) == []


def test_a_lost_session_is_offered_nothing_more(rounds: Rounds) -> None:
    """When a session has gone its offers count no more, and the stream is sought again at once."""
    want(rounds, 0.0)
    offer(rounds, 0.0)
    rounds.departed({("holder", "s")}, 0.001)
    effects = rounds.tick(1.0)
    assert not proposals(effects)
    assert [e for e in effects if isinstance(e, SendSeek)]


def test_an_old_offer_is_asked_for_again_before_it_ends(rounds: Rounds) -> None:
    """Offers are refreshed while somebody waits for more than the holder's slots allow."""
    want(rounds, 0.0, order(window=4, until=600.0))
    offer(rounds, 0.0, slots=0)
    rounds.tick(1.0)
    timer = rounds.timer()
    assert timer == pytest.approx(SETTINGS.offer_refresh)
    one(SendSeek, rounds.tick(SETTINGS.offer_refresh))


def test_a_want_ends_with_its_deadline(rounds: Rounds) -> None:
    """After the deadline nothing is sought or granted, and the round is forgotten."""
    want(rounds, 0.0, order(until=10.0))
    rounds.tick(10.0)
    assert not proposals(offer(rounds, 10.5))
    assert rounds.tick(12.0) == []
    assert rounds.timer() is None


def test_a_kept_want_goes_on_with_everything_when_its_asker_is_silent(rounds: Rounds) -> None:
    """While the asker lives its window counts; when it has been silent for long, all of its ranges do."""
    kept = WantRecord(order(window=1, until=10_000.0, keep=True), 0.0, 0.0)
    rounds.restored(kept, LOCK, OPENING, 1.0)
    offer(rounds, 1.0, slots=20)
    assert len(proposals(rounds.tick(2.0))) == 1
    assert len(proposals(offer(rounds, ASKER_LIFE + 1.0, slots=20))) == 19


def test_who_is_interested_follows_the_windows(rounds: Rounds) -> None:
    """Read leases go to those whose window holds the object, and not to those who gave up."""
    want(rounds, 0.0, order("one", first=0))
    want(rounds, 0.0, order("two", first=2))
    assert rounds.interested(ref(0), 1.0) == ("one",)
    assert set(rounds.interested(ref(3), 1.0)) == {"one", "two"}
    rounds.unwanted("demo", STREAM, "one")
    assert rounds.interested(ref(3), 1.0) == ("two",)


class Uploads:
    """One holder of many streams that uploads what it is granted, one object after the other, all four slots busy."""

    def __init__(self, rounds: Rounds, slots: int = 4) -> None:
        self.rounds = rounds
        self.slots = slots
        self.now = 0.0
        self.under_way: list[GrantRecord] = []
        self.uploaded: list[ObjectRef] = []

    def wants(self, node: str, stream: Opening, channel: str = "demo") -> None:
        """A node wants a stream of five objects; the holder offers it at once."""
        raw = stream.stream_id().raw
        asked = WantOrder(channel, LOCK.id, raw, node, ((0, 4),), 5, 10_000.0)
        self.take(self.rounds.wanted(asked, LOCK, stream, [], [], 10, self.now))
        free = self.slots - len(self.under_way)
        session = ("holder", "s")
        self.take(self.rounds.offered(channel, raw, session, stream, ((0, 4),), free, self.now))
        self.now += 0.02
        self.take(self.rounds.tick(self.now))

    def take(self, effects: list[Effect]) -> None:
        """The ledger grants whatever is proposed."""
        made = [granted(proposal, self.now) for proposal in proposals(effects)]
        self.under_way += made
        assert len(self.under_way) <= self.slots
        if made:
            self.take(self.rounds.judged([GrantOutcome(_proposal(grant), grant) for grant in made], self.now))

    def upload(self) -> None:
        """The oldest grant's object arrives."""
        self.now += 0.005
        grant = self.under_way.pop(0)
        self.uploaded.append(grant.ref)
        self.take(self.rounds.arrived(grant.ref, grant, self.now))


def stream_of(number: int) -> Opening:
    """One of many streams of five objects."""
    return Opening(5 * LOCK.object, number.to_bytes(32))


@pytest.mark.parametrize("channel", ["demo", "other"])
def test_a_node_with_many_streams_does_not_starve_one_with_a_single_stream(rounds: Rounds, channel: str) -> None:
    """Two hundred streams of one node wait for the upload slots when another node, of the same channel or of another,
    asks for one stream of five objects: it has them within the slots' worth and twice its own number of grants."""
    uploads = Uploads(rounds)
    for number in range(200):
        uploads.wants("greedy", stream_of(number))
    modest = stream_of(1000)
    uploads.wants("modest", modest, channel)
    before = len(uploads.uploaded)
    mine = modest.stream_id().raw
    while sum(ref.stream == mine for ref in uploads.uploaded) < 5:
        uploads.upload()
        assert len(uploads.uploaded) - before <= uploads.slots + 2 * 5 + 1
    while uploads.under_way:
        uploads.upload()
    assert len(set(uploads.uploaded)) == len(uploads.uploaded) == 201 * 5  # and the greedy one has everything too


def test_a_reader_hears_that_the_holder_is_busy_with_others(rounds: Rounds) -> None:
    """Who waits for an upload slot hears so, with the nodes before it; it is no reason to end."""
    uploads = Uploads(rounds)
    for number in range(2):
        uploads.wants("greedy", stream_of(number))
    uploads.wants("modest", stream_of(1000))
    reason = rounds.reason("demo", stream_of(1000).stream_id().raw, uploads.now, "modest")
    assert isinstance(reason, RetryLater)
    assert (reason.kind, reason.data["before"]) == ("busy", 0)
    assert "the holder is busy with other uploads" in reason.message


def test_when_there_is_no_room_fronts_go_first_and_the_others_hear_their_place(rounds: Rounds) -> None:
    """In a full channel one object is proposed at a time: the front of who was granted least; the bill of what found no
    room is given back."""
    want(rounds, 0.0, order("one", first=0))
    want(rounds, 0.0, order("two", first=10))
    offer(rounds, 0.0, slots=9)
    first = proposals(rounds.tick(1.0))
    outcomes = [
        GrantOutcome(p, granted(p, 1.0)) if p.ref.number == 0 else GrantOutcome(p, None, Refusal.OVER, 77)
        for p in first
    ]
    plea = one(MakeRoom, rounds.judged(outcomes, 1.0))
    assert plea.head == Front("two", STREAM)
    assert (plea.need, plea.wish) == (77, 77 + (len(first) - 2) * first[0].size)
    assert not proposals(rounds.tick(1.1))
    reasons = [rounds.reason("demo", STREAM, 1.1, node) for node in ("one", "two")]
    assert [reason and (reason.kind, reason.data["before"]) for reason in reasons] == [
        ("over-quota", 1),
        ("over-quota", 0),
    ]
    assert [p.ref.number for p in proposals(rounds.roomier("demo", 1.2, 0))] == [10]


def test_a_front_says_how_long_it_has_waited(rounds: Rounds) -> None:
    """Each time that a front finds no room the plea says since when it waits; getting something begins it anew."""
    want(rounds, 0.0, order(window=1))
    offer(rounds, 0.0)
    (proposal,) = proposals(rounds.tick(1.0))
    rounds.judged([GrantOutcome(proposal, None, Refusal.OVER, 77)], 1.0)
    (proposal,) = proposals(rounds.tick(3.0))
    plea = one(MakeRoom, rounds.judged([GrantOutcome(proposal, None, Refusal.OVER, 77)], 3.0))
    assert plea.head == Front("reader", STREAM, 2.0)
    want(rounds, 3.1, order(first=1, window=1))
    (proposal,) = proposals(rounds.tick(4.0))
    plea = one(MakeRoom, rounds.judged([GrantOutcome(proposal, None, Refusal.OVER, 77)], 4.0))
    assert plea.head == Front("reader", STREAM, 0.0)


def test_a_reader_that_gets_nothing_of_what_is_ready_is_stalled(rounds: Rounds) -> None:
    """After a read lease without an object the pleas name it; an object got makes it one that reads again."""
    made = assign(rounds, slots=1)
    rounds.arrived(ref(0), made[0], 2.0)
    view = [ObjectView(ObjectRecord(ref(0), ObjectStatus.READY, 5))]

    def plea(now: float, first: int = 0) -> MakeRoom:
        effects = rounds.wanted(order(first=first, until=600.0), LOCK, OPENING, view, [], 10, now)
        effects += offer(rounds, now) + rounds.tick(now)
        refused = [GrantOutcome(p, None, Refusal.OVER, 77) for p in proposals(effects)]
        return one(MakeRoom, rounds.judged(refused, now))

    assert plea(3.0).stalled == ()
    assert plea(30.0).stalled == ()
    assert plea(60.0).stalled == (Front("reader", STREAM),)
    assert plea(70.0, first=1).stalled == ()


def test_what_everybody_has_is_not_uploaded_again_for_a_late_want(rounds: Rounds) -> None:
    """An object that left because no reader lacks it is not sought for a want from before that; lacked ones are."""
    made = assign(rounds, slots=4)
    for grant in made[:2]:
        rounds.arrived(grant.ref, grant, 2.0)
    again = [*rounds.vanished(ref(0), 3.0, lacked=False), *rounds.vanished(ref(1), 3.0)]
    assert [p.ref.number for p in proposals(again)] == [1]
    assert 0 not in {p.ref.number for p in proposals(want(rounds, 3.5))}
    assert 0 in {p.ref.number for p in proposals(want(rounds, 9.0) + offer(rounds, 9.0) + rounds.tick(9.0))}


def test_with_no_holder_known_nothing_is_said_of_those_that_may_not_provide(rounds: Rounds) -> None:
    """The ledger names no holder that was suspended: that none ever had the stream is said only of those that may."""
    want(rounds, 0.0)
    reason = rounds.reason("demo", STREAM, 1.0)
    assert reason is not None
    assert reason.kind == "no-holder"
    assert "none that may provide it now ever said it had" in reason.message
    assert "suspended" in (reason.hint or "")
