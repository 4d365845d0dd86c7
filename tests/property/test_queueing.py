"""The queue against a plain one that looks at everybody at every turn."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from entrepot_hub.core.queueing import Bill, Queue, Turn

CHANNELS = ("a", "b", "c")
NODES = tuple(f"node{i}" for i in range(7))
STREAMS = tuple(bytes([i]) * 32 for i in range(4))


@dataclass
class PlainNode:
    """A node, as it is told in one sentence each."""

    spent: float = 0.0
    streams: dict[bytes, None] = field(default_factory=dict)


@dataclass
class PlainChannel:
    """A channel; ``waiting`` in the order in which they began to."""

    spent: float = 0.0
    clock: float = 0.0
    nodes: dict[str, PlainNode] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)


class PlainQueue:
    """Whoever has spent least goes next, of equals whoever came first; whoever comes begins where the others stand."""

    def __init__(self) -> None:
        self.channels: dict[str, PlainChannel] = {}
        self.clock = 0.0

    def put(self, channel: str, node: str, stream: bytes) -> None:
        of = self.channels.setdefault(channel, PlainChannel())
        if not of.waiting:
            of.spent = max(of.spent, min((o.spent for o in self.channels.values() if o.waiting), default=self.clock))
        place = of.nodes.setdefault(node, PlainNode())
        if not place.streams:
            place.spent = max(place.spent, min((of.nodes[n].spent for n in of.waiting), default=of.clock))
            of.waiting[node] = None
        place.streams.setdefault(stream)

    def drop(self, channel: str, node: str, stream: bytes) -> None:
        of = self.channels.get(channel)
        place = None if of is None else of.nodes.get(node)
        if of is None or place is None or stream not in place.streams:
            return
        del place.streams[stream]
        if not place.streams:
            del of.waiting[node]
            if not of.waiting:
                of.clock = max(of.clock, place.spent)
                self.clock = max(self.clock, of.spent)

    def turn(self, closed: Collection[str], passed: Collection[tuple[str, str]], most: int) -> Turn | None:
        able = [
            (of.spent, place, min(nodes, key=lambda n: of.nodes[n].spent), name)
            for place, (name, of) in enumerate(self.channels.items())
            if name not in closed and (nodes := [n for n in of.waiting if (name, n) not in passed])
        ]
        if not able:
            return None
        _, _, node, name = min(able, key=lambda each: each[:2])
        return Turn(name, node, tuple(self.channels[name].nodes[node].streams)[:most])

    def rotate(self, turn: Turn, streams: Iterable[bytes]) -> None:
        place = self.channels[turn.channel].nodes.get(turn.node)
        for stream in streams:
            if place is not None and stream in place.streams:
                del place.streams[stream]
                place.streams[stream] = None

    def charge(self, turn: Turn, nodes: Collection[str], size: int) -> Bill:
        bill = Bill(turn.channel, tuple(sorted(nodes)), size)
        self.spend(bill, size)
        return bill

    def refund(self, bill: Bill) -> None:
        self.spend(bill, -bill.size)

    def spend(self, bill: Bill, size: int) -> None:
        of = self.channels[bill.channel]
        of.spent += size
        for node in bill.nodes:
            of.nodes.setdefault(node, PlainNode()).spent += size / len(bill.nodes)

    def before(self, channel: str, nodes: Collection[str]) -> int:
        of = self.channels.get(channel)
        if of is None or not nodes:
            return 0
        first = min(of.nodes[n].spent if n in of.nodes else of.clock for n in nodes)
        return sum(1 for n in of.waiting if n not in nodes and of.nodes[n].spent < first)

    def waits(self, channel: str) -> bool:
        return channel in self.channels and bool(self.channels[channel].waiting)


channel, node, stream = st.sampled_from(CHANNELS), st.sampled_from(NODES), st.sampled_from(STREAMS)
served = st.tuples(st.sets(node, max_size=3), st.integers(1, 50), st.booleans())
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), channel, node, stream),
    st.tuples(st.just("put"), channel, node, stream),
    st.tuples(st.just("drop"), channel, node, stream),
    st.tuples(st.just("refund"), st.integers(0, 20)),
    st.tuples(
        st.just("deal"),
        st.sets(channel, max_size=2),
        st.integers(1, 3),
        # At each turn: pass, or charge so much together with others and close the channel or not.
        st.lists(st.one_of(st.none(), served), max_size=12),
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(OPERATIONS, max_size=60))
def test_the_queue_deals_as_a_plain_one_does(operations: list[tuple[object, ...]]) -> None:
    """Whatever was put, dropped, charged, refunded, closed and passed over: the turns are the same, in the same order,
    and so is how many wait before whom."""
    queue, plain = Queue(), PlainQueue()
    bills: list[Bill] = []
    for operation in operations:
        match operation:
            case ("put", str(name), str(who), bytes(what)):
                queue.put(name, who, what)
                plain.put(name, who, what)
            case ("drop", str(name), str(who), bytes(what)):
                queue.drop(name, who, what)
                plain.drop(name, who, what)
            case ("refund", int(which)) if which < len(bills):
                bill = bills.pop(which)
                queue.refund(bill)
                plain.refund(bill)
            case ("deal", set() as closed, int(most), list() as steps):
                bills += deal(queue, plain, set(closed), most, steps)
        for name in CHANNELS:
            assert queue.waits(name) == plain.waits(name)
            for who in NODES:
                assert queue.before(name, (who,)) == plain.before(name, (who,))
            assert queue.before(name, NODES[:3]) == plain.before(name, NODES[:3])
        assert queue.turn((), (), 8) == plain.turn((), (), 8)
        passed = [(name, who) for name in CHANNELS[:2] for who in NODES[::2]]
        assert queue.turn(CHANNELS[2:], passed, 8) == plain.turn(CHANNELS[2:], passed, 8)


def deal(queue: Queue, plain: PlainQueue, closed: set[str], most: int, steps: list[object]) -> list[Bill]:
    """One deal of both; what was charged."""
    bills: list[Bill] = []
    passed: set[tuple[str, str]] = set()
    with queue.deal(closed) as turns:
        for step in steps:
            turn = turns.turn(most)
            assert turn == plain.turn(closed, passed, most)
            if turn is None:
                break
            match step:
                case (set() as others, int(size), bool(last)):
                    together = {turn.node, *others}
                    bills.append(queue.charge(turn, together, size))
                    assert plain.charge(turn, together, size) == bills[-1]
                    for each in (queue, plain):
                        each.rotate(turn, turn.streams[:1])
                    if last:
                        closed.add(turn.channel)
                    if size % 3 == 0:  # what it waited for is granted
                        for each in (queue, plain):
                            each.drop(turn.channel, turn.node, turn.streams[0])
                case _:
                    for each in (queue, plain):
                        each.drop(turn.channel, turn.node, turn.streams[0])
                        each.rotate(turn, turn.streams)
                    turns.passes(turn)
                    passed.add((turn.channel, turn.node))
    return bills


def test_whoever_is_forgotten_owes_nothing() -> None:
    """However many nodes came and went, whoever was served more than those that wait is known when it comes back."""
    queue = Queue()
    queue.put("a", "stays", STREAMS[0])
    turn = queue.turn((), (), 1)
    assert turn is not None
    queue.put("a", "greedy", STREAMS[0])
    queue.charge(turn, {"greedy"}, 100)
    queue.drop("a", "greedy", STREAMS[0])
    for number in range(200):
        queue.put("a", f"passer{number}", STREAMS[0])
        queue.drop("a", f"passer{number}", STREAMS[0])
    queue.put("a", "greedy", STREAMS[0])
    queue.put("a", "new", STREAMS[0])
    assert queue.before("a", ("greedy",)) == 2
    assert len(queue._channels["a"].nodes) < 60
