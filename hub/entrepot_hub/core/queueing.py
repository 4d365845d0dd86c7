"""Whose turn it is when room or upload slots are scarce: channels in turn, of each its nodes, of each its streams.

Start-time fair queueing by bytes: whoever was granted least goes next. A grant that several nodes wait for is charged
to them in equal parts, so reading together is cheaper than reading apart. Whoever comes, or comes back, begins where
the others stand: waiting earns nothing, and leaving pays no debt.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.units import format_size
from entrepot_hub.core.effects import MakeRoom

type _Entry = tuple[float, int, str]


class _Line:
    """Names in the order in which they are served: who has spent least first, of equals whoever came first.

    A sorted list: to find a place in it takes a logarithm of its length, to shift what follows is one move of memory.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    @property
    def first(self) -> _Entry | None:
        """Whoever is next."""
        return self._entries[0] if self._entries else None

    def add(self, entry: _Entry) -> None:
        """They wait."""
        insort(self._entries, entry)

    def remove(self, entry: _Entry) -> None:
        """They wait no more."""
        del self._entries[bisect_left(self._entries, entry)]

    def below(self, spent: float) -> int:
        """How many have spent less."""
        return bisect_left(self._entries, (spent, -1, ""))


@dataclass(slots=True)
class _Place:
    """One that may wait in a line. ``number``: how many began to wait before it; ``entry``: where it stands, if it
    does."""

    name: str
    spent: float = 0.0
    number: int = 0
    entry: _Entry | None = None

    def stand(self, line: _Line) -> None:
        """Wait in this line."""
        if self.entry is None:
            self.entry = (self.spent, self.number, self.name)
            line.add(self.entry)

    def leave(self, line: _Line) -> None:
        """Wait there no more."""
        if self.entry is not None:
            line.remove(self.entry)
            self.entry = None

    def spend(self, size: float, line: _Line) -> None:
        """So much was granted: others go first."""
        standing = self.entry is not None
        self.leave(line)
        self.spent += size
        if standing:
            self.stand(line)


@dataclass(slots=True)
class _Node(_Place):
    streams: dict[bytes, None] = field(default_factory=dict)  # those that wait, the next one first


@dataclass(slots=True)
class _Channel(_Place):
    clock: float = 0.0  # what the last node that waited had spent
    nodes: dict[str, _Node] = field(default_factory=dict)
    waiting: int = 0  # nodes that have streams waiting
    line: _Line = field(default_factory=_Line)  # these nodes, but for those that passed in a deal
    bound: int = 16  # with more nodes than that those are forgotten that wait for nothing and owe nothing


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, and the streams that this node waits for, the next one first."""

    channel: str
    node: str
    streams: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Bill:
    """What a grant was charged, to be given back if it comes to nothing."""

    channel: str
    nodes: tuple[str, ...]
    size: int


@dataclass(slots=True)
class Room:
    """A channel whose quota refused something. It counts as full until ``tight_until``; until ``pause_until`` nothing
    is proposed there, then ``allow`` objects at once. ``short``: bytes that were missing; ``plea``: what was asked."""

    tight_until: float = 0.0
    pause_until: float = 0.0
    allow: int = 1
    short: int = 0
    plea: MakeRoom | None = None


def full_bucket(short: int, before: int) -> RetryLater:
    """What a reader is told that waits for room, with so many nodes before it."""
    nobody = "full of objects that are being read or uploaded"
    turn = {0: nobody, 1: "full; 1 node is before this one"}.get(before, f"full; {before} nodes are before this one")
    return RetryLater(
        f"waiting for room: the channel's bucket is {turn}",
        kind="over-quota",
        hint="It goes on when readers finish; the owner can raise the quota.",
        short=short,
        before=before,
    )


def with_held(told: EntrepotError | None, held: int, held_until: float | None) -> EntrepotError | None:
    """The same reason, and what of the room that is waited for is held back after a rebuilding of the hub: so many
    bytes, until then (unix seconds)."""
    if told is None or told.kind != "over-quota" or not held:
        return told
    ends = "" if held_until is None else f" until {held_until // 3600 % 24:02.0f}:{held_until // 60 % 60:02.0f} UTC"
    return RetryLater(
        f"{told.message}; {format_size(held)} of it are held back{ends}, for uploads from before the hub was rebuilt",
        kind=told.kind,
        hint="It goes on then at the latest; the owner can raise the quota.",
        **{**told.data, "held": held, "held_until": held_until},
    )


def busy_holder(holders: int, before: int) -> RetryLater:
    """What a reader is told whose stream's holders have no free upload slot."""
    who = "the holder is" if holders == 1 else f"all {holders} holders are"
    turn = {0: "", 1: "; 1 node is before this one"}.get(before, f"; {before} nodes are before this one")
    return RetryLater(
        f"{who} busy with other uploads{turn}", kind="busy", hint="It goes on when they are through.", before=before
    )


class Queue:
    """Who waits for a grant, on one hub. What is done for one who waits costs a logarithm of how many do."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}
        self._clock = 0.0
        self._line = _Line()  # channels in which somebody waits, but for those that are passed over in a deal
        self._came = 0

    def put(self, channel: str, node: str, stream: bytes) -> None:
        """The node waits for objects of the stream. Repeating it changes nothing."""
        of = self._channels.get(channel)
        if of is None:
            of = self._channels[channel] = _Channel(channel, number=len(self._channels))
        if not of.waiting:
            of.spent = max(of.spent, _least(self._line, self._clock))
        place = self._place(of, node)
        if not place.streams:
            place.spent = max(place.spent, _least(of.line, of.clock))
            self._came += 1
            place.number = self._came
            place.stand(of.line)
            of.waiting += 1
            of.stand(self._line)
        place.streams.setdefault(stream)
        if len(of.nodes) > of.bound:
            self._forget(of)

    def drop(self, channel: str, node: str, stream: bytes) -> None:
        """The node waits for that no more."""
        of = self._channels.get(channel)
        place = None if of is None else of.nodes.get(node)
        if of is None or place is None or stream not in place.streams:
            return
        del place.streams[stream]
        if not place.streams:
            place.leave(of.line)
            of.waiting -= 1
            if not of.waiting:
                of.leave(self._line)
                of.clock = max(of.clock, place.spent)
                self._clock = max(self._clock, of.spent)

    def deal(self, closed: Collection[str], passed: Iterable[tuple[str, str]] = ()) -> Deal:
        """Turns one after the other, but for channels that are ``closed`` (looked up at every turn) and (channel, node)
        pairs that ``passed``. A context: nothing is put into the queue meanwhile."""
        return Deal(self, closed, passed)

    def turn(self, closed: Collection[str], passed: Collection[tuple[str, str]], most: int) -> Turn | None:
        """The first turn of such a deal; at most so many streams. None: nobody's."""
        with self.deal(closed, passed) as deal:
            return deal.turn(most)

    def rotate(self, turn: Turn, streams: Iterable[bytes]) -> None:
        """These streams of the node had their turn: the others go first."""
        place = self._channels[turn.channel].nodes.get(turn.node)
        waiting = {} if place is None else place.streams
        for stream in streams:
            if stream in waiting:
                del waiting[stream]
                waiting[stream] = None

    def charge(self, turn: Turn, nodes: Collection[str], size: int) -> Bill:
        """A grant of ``size`` bytes was proposed in the turn of one node, for all these nodes."""
        bill = Bill(turn.channel, tuple(sorted(nodes)), size)
        self._spend(bill, size)
        return bill

    def refund(self, bill: Bill) -> None:
        """The proposal came to nothing."""
        self._spend(bill, -bill.size)

    def before(self, channel: str, nodes: Collection[str]) -> int:
        """How many nodes of the channel wait for room before the first of these."""
        of = self._channels.get(channel)
        if of is None or not nodes:
            return 0
        return of.line.below(min(of.nodes[node].spent if node in of.nodes else of.clock for node in nodes))

    def waits(self, channel: str) -> bool:
        """Whether anybody waits in the channel."""
        of = self._channels.get(channel)
        return of is not None and of.waiting > 0

    def _spend(self, bill: Bill, size: int) -> None:
        of = self._channels[bill.channel]
        of.spend(size, self._line)
        for node in bill.nodes:
            self._place(of, node).spend(size / len(bill.nodes), of.line)

    @staticmethod
    def _place(of: _Channel, node: str) -> _Node:
        place = of.nodes.get(node)
        if place is None:
            place = of.nodes[node] = _Node(node)
        return place

    @staticmethod
    def _forget(of: _Channel) -> None:
        """Nodes that wait for nothing and owe nothing begin anew when they come back."""
        stand = _least(of.line, of.clock)
        for node in [node for node, place in of.nodes.items() if not place.streams and place.spent <= stand]:
            del of.nodes[node]
        of.bound = 2 * len(of.nodes) + 16


def _least(line: _Line, otherwise: float) -> float:
    first = line.first
    return otherwise if first is None else first[0]


class Deal:
    """See :meth:`Queue.deal`. Who has passed is set aside until the end, so that nobody is looked at twice."""

    def __init__(self, queue: Queue, closed: Collection[str], passed: Iterable[tuple[str, str]]) -> None:
        self._queue = queue
        self._closed = closed
        self._passed: list[tuple[_Channel, _Node]] = []
        self._over: list[_Channel] = []
        for channel, node in passed:
            self._set_aside(channel, node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for of, place in self._passed:
            if place.streams:
                place.stand(of.line)
        for of in self._over:
            if of.waiting:
                of.stand(self._queue._line)

    def turn(self, most: int) -> Turn | None:
        """Whose turn it is; at most so many streams. None: nobody's."""
        line = self._queue._line
        while (channel := line.first) is not None:
            of = self._queue._channels[channel[2]]
            node = of.line.first
            if node is not None and of.name not in self._closed:
                streams = of.nodes[node[2]].streams
                return Turn(of.name, node[2], tuple(islice(streams, most)))
            of.leave(line)
            self._over.append(of)
        return None

    def passes(self, turn: Turn) -> None:
        """The node found nothing that can be granted: it has no other turn in this deal."""
        self._set_aside(turn.channel, turn.node)

    def _set_aside(self, channel: str, node: str) -> None:
        of = self._queue._channels.get(channel)
        place = None if of is None else of.nodes.get(node)
        if of is not None and place is not None and place.entry is not None:
            place.leave(of.line)
            self._passed.append((of, place))
