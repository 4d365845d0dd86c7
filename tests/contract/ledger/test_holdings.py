"""What every ledger forgets of who holds what, and of streams at all."""

from __future__ import annotations

import pytest
from tests.contract.ledger.conftest import World

from entrepot.core.errors import NotFound
from entrepot.core.identifiers import Opening
from entrepot_hub.core.ledger import Found, Ledger, ObjectRef, WantOrder
from entrepot_hub.core.pins import Pin, PinKind

LOCK, OLD_LOCK = bytes(8), b"\x01" * 8


def stream(number: int) -> tuple[bytes, Opening]:
    """A stream and its opening."""
    return b"\xff" + number.to_bytes(31), Opening(100 + number, bytes(32))


def held(ledger: Ledger, node: str, numbers: range) -> set[int]:
    """Which of these streams the node is known to hold."""
    return {n for n in numbers if node in {each.node for each in ledger.holders("demo", stream(n)[0])}}


def known(ledger: Ledger, numbers: range, channel: str = "demo") -> set[int]:
    """Of which of these streams the opening is known."""
    return {n for n in numbers if ledger.opening(channel, stream(n)[0]) is not None}


def test_a_member_is_remembered_for_so_many_streams(ledger: Ledger) -> None:
    """Beyond the bound what it said longest ago goes; the others, and other channels, keep theirs."""
    for number in range(10):
        ledger.hold("demo", [stream(number)], "A", 10.0 + number)
        ledger.hold("other", [stream(number)], "A", 10.0 + number)
    ledger.hold("demo", [stream(1), stream(2)], "B", 5.0)
    assert ledger.thin_holders("demo", 4, 100) == 6
    assert held(ledger, "A", range(10)) == {6, 7, 8, 9}
    assert held(ledger, "B", range(10)) == {1, 2}
    assert len(ledger.holders("other", stream(0)[0])) == 1
    assert ledger.thin_holders("demo", 4, 100) == 0


def test_what_is_said_again_is_not_the_oldest(ledger: Ledger) -> None:
    """A stream that a member says again stays before one that it said later than the first time."""
    ledger.hold("demo", [stream(1)], "A", 1.0)
    ledger.hold("demo", [stream(2)], "A", 2.0)
    ledger.hold("demo", [stream(1)], "A", 3.0)
    assert ledger.thin_holders("demo", 1, 100) == 1
    assert held(ledger, "A", range(3)) == {1}


def test_in_a_full_channel_whoever_holds_most_gives_way(ledger: Ledger) -> None:
    """All together are remembered for so many; one member that claims very much costs the others nothing."""
    ledger.hold("demo", [stream(number) for number in range(50)], "A", 9.0)
    ledger.hold("demo", [stream(number) for number in range(50, 53)], "B", 1.0)
    assert ledger.thin_holders("demo", 1000, 13, limit=25) == 25
    assert ledger.thin_holders("demo", 1000, 13, limit=25) == 15
    assert held(ledger, "B", range(60)) == {50, 51, 52}
    assert held(ledger, "A", range(60)) == set(range(40, 50)), "of one moment, the last ids stay"


def test_absent_nodes_are_forgotten(world: World) -> None:
    """What a node held goes when neither it nor that was heard of for long; who is here keeps what it said once."""
    ledger = world.ledger
    ledger.hold("demo", [stream(1), stream(2)], "A", 10.0)
    ledger.hold("demo", [stream(1)], "B", 10.0)
    ledger.hold("demo", [stream(1)], "C", 200.0)
    world.see("A", 20.0)
    world.see("B", 150.0)
    assert ledger.forget_absent(100.0, limit=1) == 1
    assert ledger.forget_absent(100.0) == 1
    assert ledger.forget_absent(100.0) == 0
    assert held(ledger, "A", range(3)) == set()
    assert held(ledger, "B", range(3)) == {1}
    assert held(ledger, "C", range(3)) == {1}


def test_streams_of_which_nothing_is_left_are_forgotten(ledger: Ledger) -> None:
    """An opening stays as long as somebody holds or wants the stream, it is pinned, or the bucket has of it."""
    for number in range(6):
        ledger.learn("demo", *stream(number))
        ledger.learn("other", *stream(number))
    ledger.hold("demo", [stream(1)], "A", 1.0)
    ledger.want(WantOrder("demo", LOCK, stream(2)[0], "B", ((0, 0),), 1, 9.0), [], 0.0, 1.0)
    ledger.pin("demo", Pin(stream(3)[0], PinKind.PIN, "admin", 1.0), 0)
    ledger.adopt(ObjectRef("demo", LOCK, stream(4)[0], 0), Found(10, "e", None), stream(4)[1], 1.0)
    ledger.adopt(ObjectRef("demo", OLD_LOCK, stream(5)[0], 0), Found(10, "e", None), stream(5)[1], 1.0)
    assert ledger.forget_streams("demo", b"") == (1, None)
    assert known(ledger, range(6)) == {1, 2, 3, 4, 5}
    assert known(ledger, range(6), "other") == set(range(6))
    ledger.unhold("demo", stream(1)[0], "A")
    ledger.unwant("demo", stream(2)[0], "B")
    ledger.unpin("demo", stream(3)[0], "admin", 2.0)
    assert ledger.forget_streams("demo", b"") == (3, None)
    assert known(ledger, range(6)) == {4, 5}


def test_streams_are_looked_through_in_pages(ledger: Ledger) -> None:
    """Each page says where the next one begins, whatever was forgotten in between; the last says that it is."""
    for number in range(10):
        ledger.learn("demo", *stream(number))
    ledger.hold("demo", [stream(3), stream(9)], "A", 1.0)
    gone, after = ledger.forget_streams("demo", b"", limit=4)
    assert (gone, after) == (3, stream(3)[0])
    gone, after = ledger.forget_streams("demo", after or b"", limit=4)
    assert (gone, after) == (4, stream(7)[0])
    assert ledger.forget_streams("demo", after or b"", limit=4) == (1, None)
    assert known(ledger, range(10)) == {3, 9}


def test_an_unknown_channel_has_no_holdings(ledger: Ledger) -> None:
    """As everywhere."""
    with pytest.raises(NotFound):
        ledger.thin_holders("nowhere", 1, 1)
    with pytest.raises(NotFound):
        ledger.forget_streams("nowhere", b"")
