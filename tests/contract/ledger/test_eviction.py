"""What every ledger promises about which objects leave, and which never do."""

from __future__ import annotations

import pytest
from tests.contract.ledger.conftest import World
from tests.contract.ledger.exchange import (
    DIGEST,
    GRACE,
    LOCK,
    OPENING,
    OTHER,
    STREAM,
    charged,
    found,
    granted,
    order,
    ready,
    ref,
    status,
)

from entrepot.core.errors import NotFound, RetryLater
from entrepot.core.identifiers import Opening
from entrepot_hub.core.ledger import Ledger, ObjectRef, ObjectStatus
from entrepot_hub.core.pins import Pin, PinKind

THIRD = b"\xff" + bytes(30) + b"\x02"


def leaving(ledger: Ledger, need: int = 100, now: float = 20.0, limit: int = 64) -> list[ObjectRef]:
    """Which objects are chosen to leave."""
    return [record.ref for record in ledger.evict_begin("demo", need, now, GRACE, limit)]


def left(ledger: Ledger, need: int = 100, now: float = 20.0) -> list[ObjectRef]:
    """Which objects were chosen and are gone."""
    gone = leaving(ledger, need, now)
    for of in gone:
        ledger.evict_end(of, False, now)
    return gone


def read(ledger: Ledger, of: ObjectRef, now: float, node: str = "B") -> None:
    """A reader comes, reads the object and goes."""
    ledger.want(order(node=node, stream=of.stream, ranges=((of.number, of.number),)), [of.number], now + 5, now)
    ledger.got("demo", of.stream, node, [of.number], now)
    ledger.unwant("demo", of.stream, node)


def slowly_ready(ledger: Ledger, of: ObjectRef, seconds: float, now: float = 10.0) -> None:
    """An object whose upload took so long."""
    grant = granted(ledger, of, now)
    ledger.accept(grant.grant, grant.node, DIGEST, now + seconds + 1, now + 900, now)
    view = ledger.settle(of, found(), now + seconds, GRACE)
    assert view is not None
    assert view.record.status is ObjectStatus.READY


@pytest.fixture
def held(ledger: Ledger) -> Ledger:
    """A ledger in which A holds all streams."""
    for channel in ("demo", "other"):
        ledger.hold(channel, [(STREAM, OPENING), (OTHER, OPENING), (THIRD, OPENING)], "A", 1.0)
    return ledger


def test_eviction_frees_what_is_needed_newest_first(held: Ledger) -> None:
    """Of equals the newest leave, no more than needed, and stay charged until gone."""
    for number in (2, 0, 1, 3):
        ready(held, ref(number))
    gone = held.evict_begin("demo", 150, 20.0, GRACE)
    assert [(r.ref.number, r.status) for r in gone] == [(3, ObjectStatus.EVICTING), (1, ObjectStatus.EVICTING)]
    assert status(held, ref(0)) is ObjectStatus.READY
    assert charged(held) == 400


def test_eviction_chooses_no_more_than_the_limit(held: Ledger) -> None:
    """At most ``limit`` objects leave at once; nothing leaves for no need."""
    for number in range(4):
        ready(held, ref(number))
    assert leaving(held, 0) == []
    assert len(leaving(held, 1000, limit=3)) == 3


def test_eviction_gives_what_there_is(held: Ledger) -> None:
    """Less than needed is better than nothing; of an empty channel nothing is."""
    ready(held, ref(0))
    assert held.evict_begin("other", 1, 20.0, GRACE) == []
    assert len(leaving(held, 900)) == 1


def test_many_equal_objects_are_met_once_each(held: Ledger) -> None:
    """Pages of candidates neither repeat nor skip an object, however many have the same standing."""
    for number in range(150):
        ready(held, ref(number), size=5)
    gone = leaving(held, 5 * 140, limit=200)
    assert [of.number for of in gone] == list(range(149, 9, -1))


def test_what_was_visited_stays_longer(held: Ledger) -> None:
    """An object that was read again outlives those that were not, older or newer."""
    for number in range(3):
        ready(held, ref(number))
    read(held, ref(1), 11.0)
    assert leaving(held, 200, 30.0) == [ref(2), ref(0)]
    assert leaving(held, 100, 30.0) == [ref(1)]


def test_a_repeated_want_is_one_visit(held: Ledger) -> None:
    """A reader that asks again for what it is reading visits it once; another reader, or the same one later, again."""
    for number in range(2):
        ready(held, ref(number))
    for at in (11.0, 12.0, 13.0, 14.0):
        held.want(order(ranges=((0, 0),)), [0], at + 5, at)
    held.got("demo", STREAM, "B", [0], 15.0)
    held.unwant("demo", STREAM, "B")
    read(held, ref(1), 16.0, "B")
    read(held, ref(1), 17.0, "C")
    assert leaving(held, 100, 30.0) == [ref(0)]


def test_what_is_cheap_to_bring_back_leaves_first(held: Ledger) -> None:
    """An object whose upload took long stays while equals of a fast provider leave."""
    slowly_ready(held, ref(0, OTHER), 30.0)
    slowly_ready(held, ref(0), 0.1)
    slowly_ready(held, ref(1, OTHER), 30.0)
    assert leaving(held, 100, 60.0) == [ref(0)]
    assert leaving(held, 100, 60.0) == [ref(1, OTHER)]


def test_popularity_fades(held: Ledger) -> None:
    """What was read often leaves in the end, when others are read and it is not."""
    ready(held, ref(0))
    for at in range(11, 20):
        read(held, ref(0), float(at))
    now, gone = 20.0, []
    for number in range(1, 200):
        now += 1.0
        of = ref(number)
        ready(held, of, now)
        read(held, of, now)
        gone = left(held, now=now) if number > 2 else []
        if ref(0) in gone:
            break
    assert ref(0) in gone


def test_what_comes_back_soon_is_remembered(held: Ledger) -> None:
    """An object that comes back before a quota's worth was evicted has its visits; one that comes later has not."""
    for soon in (True, False):
        channel_ref = ref(0, OTHER if soon else THIRD)
        ready(held, channel_ref)
        held.condemn(channel_ref, None, 11.0)
        held.evict_end(channel_ref, False, 11.0)
        for number in range(1 if soon else 12):
            ready(held, ref(number), 12.0)
            held.condemn(ref(number), None, 13.0)
            held.evict_end(ref(number), False, 13.0)
        ready(held, channel_ref, 14.0)
    assert leaving(held, 100, 30.0) == [ref(0, THIRD)]
    assert leaving(held, 100, 30.0) == [ref(0, OTHER)]


def test_an_object_in_use_leaves_after_all_others(held: Ledger) -> None:
    """What a waiting reader lacks goes last; once got it is like any other."""
    for number in range(3):
        ready(held, ref(number))
    ready(held, ref(0, OTHER))
    held.want(order(ranges=((0, 2),), window=2), [], 0.0, 11.0)
    assert leaving(held, 100, 12.0) == [ref(0, OTHER)]
    held.lend([ref(0)], ["B"], 20.0, 13.0)
    held.got("demo", STREAM, "B", [0], 14.0)
    assert leaving(held, 100, 15.0) == [ref(0)]


def test_an_object_that_came_back_is_wanted_again(held: Ledger) -> None:
    """That a node had got an object is forgotten when the object leaves."""
    ready(held, ref(0))
    ready(held, ref(1))
    held.want(order(ranges=((0, 0),)), [0], 20.0, 11.0)
    held.got("demo", STREAM, "B", [0], 12.0)
    held.condemn(ref(0), None, 13.0)
    held.evict_end(ref(0), False, 13.0)
    ready(held, ref(0), 14.0)
    ready(held, ref(2), 14.0)
    assert leaving(held, 200, 15.0) == [ref(2), ref(1)]


def test_what_nobody_online_holds_leaves_last(world: World) -> None:
    """The bucket's copy of a stream whose holders are all away, or that nobody holds, outlives the others."""
    ledger = world.ledger
    ledger.hold("demo", [(STREAM, OPENING)], "A", 1.0)
    ledger.hold("demo", [(OTHER, OPENING)], "B", 1.0)
    world.see("A", 800.0)
    world.see("B", 100.0)
    ready(ledger, ref(0, THIRD), 799.0)
    ready(ledger, ref(0, OTHER), 799.0)
    for number in range(2):
        ready(ledger, ref(number), 799.0)
        read(ledger, ref(number), 799.5, "C")
    assert leaving(ledger, 100, 800.0) == [ref(1)]
    assert leaving(ledger, 100, 800.0) == [ref(0)]
    assert leaving(ledger, 100, 800.0) == [ref(0, OTHER)]
    assert leaving(ledger, 100, 800.0) == [ref(0, THIRD)]


def test_what_nobody_holds_does_not_stay_for_ever(world: World) -> None:
    """A day after its last use such an object is like any other."""
    ledger = world.ledger
    ledger.hold("demo", [(STREAM, OPENING)], "A", 1.0)
    ready(ledger, ref(0))
    read(ledger, ref(0), 11.0)
    ready(ledger, ref(0, OTHER))
    assert leaving(ledger, 100, 100_000.0) == [ref(0, OTHER)]


def test_a_revoked_holder_does_not_count(world: World) -> None:
    """A node without rights cannot upload, so what it alone holds is spared."""
    ledger = world.ledger
    ledger.hold("demo", [(STREAM, OPENING)], "A", 1.0)
    ledger.hold("demo", [(OTHER, OPENING)], "B", 1.0)
    ready(ledger, ref(0))
    ready(ledger, ref(0, OTHER))
    world.revoke("demo", "B")
    assert leaving(ledger) == [ref(0)]


@pytest.mark.parametrize("kind", list(PinKind))
def test_a_pinned_stream_never_leaves(held: Ledger, kind: PinKind) -> None:
    """No need is great enough; unpinned it is like any other. Other streams and channels are not touched."""
    ready(held, ref(0))
    ready(held, ref(0, OTHER))
    pinned = held.pin("demo", Pin(STREAM, kind, "admin", 12.0), 100)
    assert (pinned.length, pinned.objects, pinned.stored, pinned.kept) == (700, 1, 100, 700)
    assert leaving(held, 900) == [ref(0, OTHER)]
    assert leaving(held, 900) == []
    assert held.pins("other") == []
    assert held.unpin("demo", STREAM, "admin", 13.0)
    assert not held.unpin("demo", STREAM, "admin", 13.0)
    assert leaving(held, 900) == [ref(0)]


def test_a_leased_object_never_leaves(held: Ledger) -> None:
    """While a reader has its read lease no need is great enough."""
    ready(held, ref(0))
    held.lend([ref(0)], ["B"], 30.0, 11.0)
    assert leaving(held, 900, 29.0) == []
    assert leaving(held, 900, 31.0) == [ref(0)]


def test_pins_are_listed_and_change_their_kind(held: Ledger) -> None:
    """Pinning again keeps who asked and when; the list is in the order of asking."""
    held.learn("demo", THIRD, Opening(200, bytes(32)))
    held.pin("demo", Pin(OTHER, PinKind.PIN, "A", 20.0), 0)
    held.pin("demo", Pin(STREAM, PinKind.PIN, "admin", 10.0), -1000)
    held.pin("demo", Pin(OTHER, PinKind.ARCHIVE, "B", 30.0), 1000)
    assert [p.pin for p in held.pins("demo")] == [
        Pin(STREAM, PinKind.PIN, "admin", 10.0),
        Pin(OTHER, PinKind.ARCHIVE, "A", 20.0),
    ]


def test_pins_leave_room_for_the_others(held: Ledger) -> None:
    """A pin that would leave less than the reserve is refused, counting what is pinned by its whole length; nothing
    changes then."""
    with pytest.raises(RetryLater) as caught:
        held.pin("demo", Pin(STREAM, PinKind.PIN, "admin", 10.0), 301)
    assert caught.value.kind == "over-quota"
    assert held.pins("demo") == []
    held.pin("demo", Pin(STREAM, PinKind.PIN, "admin", 10.0), 300)
    with pytest.raises(RetryLater) as caught:
        held.pin("demo", Pin(OTHER, PinKind.PIN, "admin", 10.0), 0)
    assert (caught.value.data["pinned"], caught.value.data["more"]) == (700, 700)
    held.pin("demo", Pin(STREAM, PinKind.ARCHIVE, "admin", 11.0), 900)


def test_an_unknown_stream_is_not_pinned(ledger: Ledger) -> None:
    """A stream of which the channel knows nothing is refused; so is an unknown channel."""
    with pytest.raises(NotFound) as caught:
        ledger.pin("demo", Pin(STREAM, PinKind.PIN, "admin", 10.0), 0)
    assert caught.value.kind == "no-such-stream"
    ready(ledger, ObjectRef("demo", LOCK, STREAM, 0))
    assert ledger.pin("demo", Pin(STREAM, PinKind.PIN, "admin", 10.0), 0).kept == 100
    for ask in (
        lambda: ledger.pin("nowhere", Pin(STREAM, PinKind.PIN, "admin", 10.0), 0),
        lambda: ledger.unpin("nowhere", STREAM, "admin", 13.0),
        lambda: ledger.pins("nowhere"),
    ):
        with pytest.raises(NotFound) as caught:
            ask()
        assert caught.value.kind == "no-such-channel"
