"""Whose turn it is: channels, nodes and streams share what is scarce."""

from __future__ import annotations

from collections import Counter

from entrepot_hub.core.queueing import Queue, busy_holder, full_bucket, with_held

A, B = b"\xff" + b"a" * 31, b"\xff" + b"b" * 31


def served(queue: Queue, times: int, size: int = 10) -> list[tuple[str, str, bytes]]:
    """Who is served, one object after the other."""
    order = []
    for _ in range(times):
        turn = queue.turn((), (), 8)
        assert turn is not None
        queue.charge(turn, {turn.node}, size)
        queue.rotate(turn, turn.streams[:1])
        order.append((turn.channel, turn.node, turn.streams[0]))
    return order


def test_nodes_take_turns_whatever_they_want() -> None:
    """A node with a thousand streams and one with a single stream are served alike."""
    queue = Queue()
    for number in range(1000):
        queue.put("demo", "greedy", number.to_bytes(32))
    queue.put("demo", "modest", A)
    assert Counter(node for _, node, _ in served(queue, 20)) == {"greedy": 10, "modest": 10}


def test_channels_take_turns_whoever_is_in_them() -> None:
    """Ten nodes of one channel get together what the only one of another gets."""
    queue = Queue()
    for number in range(10):
        queue.put("crowd", f"node{number}", A)
    queue.put("quiet", "one", A)
    order = served(queue, 40)
    assert Counter(channel for channel, _, _ in order) == {"crowd": 20, "quiet": 20}
    assert set(Counter(node for channel, node, _ in order if channel == "crowd").values()) == {2}


def test_streams_of_a_node_take_turns() -> None:
    """No stream of a node waits until another is done."""
    queue = Queue()
    queue.put("demo", "node", A)
    queue.put("demo", "node", B)
    assert [stream for _, _, stream in served(queue, 4)] == [A, B, A, B]


def test_turns_are_of_bytes() -> None:
    """Who is granted large objects is served less often."""
    queue = Queue()
    queue.put("demo", "large", A)
    queue.put("demo", "small", B)
    got: Counter[str] = Counter()
    for _ in range(33):
        turn = queue.turn((), (), 8)
        assert turn is not None
        queue.charge(turn, {turn.node}, 100 if turn.node == "large" else 10)
        got[turn.node] += 1
    assert got == {"large": 3, "small": 30}


def test_what_is_shared_is_paid_by_all() -> None:
    """Two nodes that read together pay half each, so they are served twice as often as one alone."""
    queue = Queue()
    for node in ("one", "two", "alone"):
        queue.put("demo", node, A)
    got: Counter[str] = Counter()
    for _ in range(30):
        turn = queue.turn((), (), 8)
        assert turn is not None
        queue.charge(turn, {"alone"} if turn.node == "alone" else {"one", "two"}, 10)
        got["alone" if turn.node == "alone" else "together"] += 1
    assert got == {"alone": 10, "together": 20}


def test_waiting_earns_nothing_and_leaving_pays_no_debt() -> None:
    """Who comes late begins where the others stand; who leaves and comes back still owes."""
    queue = Queue()
    queue.put("demo", "early", A)
    served(queue, 50)
    queue.put("demo", "late", A)
    assert Counter(node for _, node, _ in served(queue, 10)) == {"early": 5, "late": 5}
    turn = queue.turn((), (), 8)
    assert turn is not None
    queue.charge(turn, {turn.node}, 1000)
    queue.drop("demo", turn.node, A)
    queue.put("demo", turn.node, A)
    other = {"early": "late", "late": "early"}[turn.node]
    assert {node for _, node, _ in served(queue, 10)} == {other}


def test_a_proposal_that_came_to_nothing_costs_nothing() -> None:
    """A refund makes it as if it had not been."""
    queue = Queue()
    queue.put("demo", "a", A)
    queue.put("demo", "b", A)
    turn = queue.turn((), (), 8)
    assert turn is not None
    queue.refund(queue.charge(turn, {turn.node}, 1000))
    assert Counter(node for _, node, _ in served(queue, 10)) == {"a": 5, "b": 5}


def test_who_is_closed_or_passed_is_left_out() -> None:
    """A closed channel and a node that had nothing to give wait; nobody left is nobody's turn."""
    queue = Queue()
    queue.put("full", "a", A)
    queue.put("demo", "a", A)
    queue.put("demo", "b", A)
    turn = queue.turn({"full"}, {("demo", "a")}, 8)
    assert turn is not None
    assert (turn.channel, turn.node) == ("demo", "b")
    assert queue.turn({"full", "demo"}, (), 8) is None


def test_it_says_how_many_are_before_a_node() -> None:
    """Nodes that were granted less stand before one; the reasons say it in words and in figures."""
    queue = Queue()
    for node in ("a", "b", "c"):
        queue.put("demo", node, A)
    turn = queue.turn((), (), 8)
    assert turn is not None
    queue.charge(turn, {turn.node}, 10)
    assert queue.before("demo", [turn.node]) == 2
    assert queue.before("demo", ["a", "b", "c"]) == 0
    assert queue.before("nowhere", ["a"]) == 0
    full, busy = full_bucket(77, 2), busy_holder(1, 1)
    assert (full.kind, full.data["before"], full.data["short"]) == ("over-quota", 2, 77)
    assert "2 nodes are before this one" in full.message
    assert (busy.kind, busy.data["before"]) == ("busy", 1)
    assert "the holder is busy" in busy.message
    assert "1 node is before" in busy.message


def test_what_is_held_back_is_named_to_whoever_waits_for_room() -> None:
    """After a rebuilding a full bucket is full of bytes that nobody reads: how many, and until when. Nothing else is
    told with them."""
    full, busy = full_bucket(77, 0), busy_holder(1, 1)
    told = with_held(full, 38 << 20, 1_800_000_000.0)
    assert told is not None
    assert (told.kind, told.data["held"], told.data["short"]) == ("over-quota", 38 << 20, 77)
    assert "38.0 MiB of it are held back until 08:00 UTC" in told.message
    assert with_held(full, 0, None) is full
    assert with_held(busy, 38 << 20, 1_800_000_000.0) is busy
    assert with_held(None, 38 << 20, None) is None
