"""Whose turn it is when room or upload slots are scarce: channels in turn, of each its nodes, of each its streams.

Start-time fair queueing by bytes: whoever was granted least goes next. A grant that several nodes wait for is charged
to them in equal parts, so reading together is cheaper than reading apart. Whoever comes, or comes back, begins where
the others stand: waiting earns nothing, and leaving pays no debt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.units import format_size
from entrepot_hub.core.effects import MakeRoom


@dataclass(slots=True)
class _Node:
    spent: float
    streams: dict[bytes, None] = field(default_factory=dict)  # those that wait, the next one first


@dataclass(slots=True)
class _Channel:
    spent: float
    clock: float = 0.0  # what the last node that waited had spent
    nodes: dict[str, _Node] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)  # nodes that have streams waiting


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
    """Who waits for a grant, on one hub."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}
        self._clock = 0.0

    def put(self, channel: str, node: str, stream: bytes) -> None:
        """The node waits for objects of the stream. Repeating it changes nothing."""
        of = self._channels.get(channel)
        if of is None:
            of = self._channels[channel] = _Channel(0.0)
        if not of.waiting:
            others = (each.spent for each in self._channels.values() if each.waiting)
            of.spent = max(of.spent, min(others, default=self._clock))
        place = self._place(of, node)
        if not place.streams:
            place.spent = max(place.spent, min((of.nodes[other].spent for other in of.waiting), default=of.clock))
            of.waiting[node] = None
        place.streams.setdefault(stream)

    def drop(self, channel: str, node: str, stream: bytes) -> None:
        """The node waits for that no more."""
        of = self._channels.get(channel)
        place = None if of is None else of.nodes.get(node)
        if of is None or place is None or stream not in place.streams:
            return
        del place.streams[stream]
        if not place.streams:
            del of.waiting[node]
            if not of.waiting:
                of.clock = max(of.clock, place.spent)
                self._clock = max(self._clock, of.spent)
            self._forget(of)

    def turn(self, closed: Collection[str], passed: Collection[tuple[str, str]], most: int) -> Turn | None:
        """Whose turn it is, but for ``closed`` channels and (channel, node) pairs that ``passed``; at most so many
        streams. None: nobody's."""
        best: tuple[float, str, str] | None = None
        for name, of in self._channels.items():
            if name in closed or not of.waiting or (best is not None and best[0] <= of.spent):
                continue
            node = min(
                (node for node in of.waiting if (name, node) not in passed),
                key=lambda node: of.nodes[node].spent,
                default=None,
            )
            if node is not None:
                best = (of.spent, name, node)
        if best is None:
            return None
        _, name, node = best
        streams = self._channels[name].nodes[node].streams
        return Turn(name, node, tuple(stream for stream, _ in zip(streams, range(most), strict=False)))

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
        first = min(of.nodes[node].spent if node in of.nodes else of.clock for node in nodes)
        return sum(1 for node in of.waiting if node not in nodes and of.nodes[node].spent < first)

    def waits(self, channel: str) -> bool:
        """Whether anybody waits in the channel."""
        of = self._channels.get(channel)
        return of is not None and bool(of.waiting)

    def _spend(self, bill: Bill, size: int) -> None:
        of = self._channels[bill.channel]
        of.spent += size
        for node in bill.nodes:
            self._place(of, node).spent += size / len(bill.nodes)

    @staticmethod
    def _place(of: _Channel, node: str) -> _Node:
        place = of.nodes.get(node)
        if place is None:
            place = of.nodes[node] = _Node(0.0)
        return place

    @staticmethod
    def _forget(of: _Channel) -> None:
        """Nodes that wait for nothing and owe nothing begin anew when they come back."""
        if len(of.nodes) > 2 * len(of.waiting) + 16:
            stand = min((of.nodes[node].spent for node in of.waiting), default=of.clock)
            for node in [node for node, place in of.nodes.items() if not place.streams and place.spent <= stand]:
                del of.nodes[node]
