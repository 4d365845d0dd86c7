"""What readers lack, and what gives way when there is no room."""

from __future__ import annotations

from entrepot_hub.core.wishes import (
    HORIZON,
    PATIENCE,
    READING,
    Front,
    Read,
    Ready,
    Wish,
    Wishes,
    latest,
    untold,
    yielding,
)

LOCK, STREAM = b"lock" * 2, b"\xff" * 32
WAITED = Front("waiting", STREAM, PATIENCE)


def ready(number: int, *nodes: str, got: bool = False, until: float = 100.0) -> Ready[int]:
    """An object of 10 bytes that these nodes were told of."""
    reads = tuple(Read(node, until, got) for node in nodes)
    return Ready(number, (LOCK, STREAM, number), 10, number, reads)


def wishes(*wanted: Wish) -> Wishes:
    """These nodes' wishes for the stream."""
    return Wishes((LOCK, STREAM, wish) for wish in wanted)


def test_a_wish_knows_how_soon_an_object_is_needed() -> None:
    """Objects count in the order of wish; what is not in it is not lacked, and what is far away is merely far."""
    wish = Wish("a", ((5, 6), (0, 3)), 3)
    assert [wish.rank(number) for number in (5, 6, 0, 3, 4)] == [0, 1, 2, 5, None]
    assert [wish.near(number) for number in (5, 0, 1)] == [True, True, False]
    assert Wish("a", ((0, 2**31), (2**32, 2**32)), 3).rank(2**32) == HORIZON


def test_what_is_needed_last_leaves_first() -> None:
    """Two readers in order at 2 and 6: of 3, 7 and 30 the last one goes, then the one that is further from its reader;
    what a reader has does not count for it."""
    known = wishes(Wish("a", ((2, 40),), 4), Wish("b", ((6, 40),), 4))
    objects = [ready(3), ready(9), ready(30)]
    assert latest(objects, known, 10, 64) == (30,)
    assert latest(objects, known, 15, 64) == (30, 9)
    assert latest(objects, known, 100, 1) == (30,)
    assert latest([ready(3), ready(7, "a", "b", got=True)], known, 10, 64) == (7,)


def test_what_readers_have_not_heard_of_is_spared() -> None:
    """An object in somebody's window is untold until that node was told of it, got or not."""
    known = wishes(Wish("a", ((0, 9),), 2))
    assert untold(ready(1), known)
    assert not untold(ready(1, "a", until=0.0), known)
    assert not untold(ready(5), known)


def test_nobody_keeps_more_than_half_of_a_quota_from_another() -> None:
    """Of six leased objects in a quota of eight two give way to another node: those that their reader needs last. To
    itself its own do not, nor before the other has waited, nor what somebody else reads too."""
    known = wishes(Wish("greedy", ((0, 9),), 8), Wish("waiting", ((20, 29),), 4), Wish("third", ((0, 9),), 8))
    leased = [ready(number, "greedy") for number in range(6)]
    assert [r.key for r in yielding(leased, known, 80, 1.0, WAITED, ())] == [4, 5]
    assert yielding(leased, known, 80, 1.0, Front("waiting", STREAM, PATIENCE / 2), ()) == []
    assert yielding(leased, known, 80, 1.0, None, ()) == []
    shared = [ready(number, "greedy", "third") if number > 3 else ready(number, "greedy") for number in range(6)]
    assert yielding(shared, known, 80, 1.0, WAITED, ()) == []
    assert yielding(leased, known, 120, 1.0, WAITED, ()) == []


def test_a_front_may_take_its_own_readers_unread_objects() -> None:
    """The first objects of the window are being read; those behind them give way to the front of the same stream."""
    known = wishes(Wish("waiting", ((0, 9),), 10))
    leased = [ready(number, "waiting") for number in range(1, 8)]
    assert [r.key for r in yielding(leased, known, 1000, 1.0, WAITED, ())] == list(range(READING, 8))
    assert yielding(leased, known, 1000, 1.0, Front("waiting", b"\xff" + bytes(31), PATIENCE), ()) == []


def test_a_stalled_reader_keeps_nothing() -> None:
    """Leases of a reader that had its time give way at once; those of others on the same object hold it."""
    known = wishes(Wish("slow", ((0, 9),), 4), Wish("other", ((0, 9),), 4))
    objects = [ready(0, "slow"), ready(1, "slow", "other"), ready(2, "other")]
    assert [r.key for r in yielding(objects, known, 1000, 1.0, None, [Front("slow", STREAM)])] == [0]
