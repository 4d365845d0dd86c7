"""The journal of streams: what happened to each, in runs of like events, for people who ask why.

It is told of everything that the exchange decides and sees, and gathers like events that follow one another into one
:class:`Run`, so that a file of thousands of objects is a few lines and not thousands. It decides nothing, and nothing
depends on it: what it loses (the last seconds before a kill, what exceeds its bounds) is lost to curiosity only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from entrepot_hub.core.ledger import GrantRecord, ObjectRecord

#: Seconds of silence after which like events begin another run.
QUIET = 90.0
#: Runs that may be open at once in one hub, of one channel, of one node there (what nobody did counts as another node),
#: of one stream, and of one node's in one stream: what exceeds them is only counted.
OPEN_RUNS, OPEN_OF_CHANNEL, OPEN_OF_NODE, OPEN_OF_STREAM, OPEN_OF_BOTH = 20_000, 10_000, 2000, 256, 16
#: Objects of a run of which it is remembered that they were read: a node may say so again.
SEEN = 4096


class EventKind(StrEnum):
    """What happened. The words are what people read."""

    ASKED = "asked"  # a node said that it wants the stream
    WAITED = "waited"  # it was told why it has to wait, or that it cannot have it
    SOUGHT = "sought"  # nodes were asked who has it
    OFFERED = "offered"
    GRANTED = "granted"  # a session was asked to upload objects
    NO_ROOM = "no-room"  # the quota refused objects
    UPLOADED = "uploaded"  # objects came to be in the bucket; seconds: from accept to ready
    FAILED = "failed"  # grants ended without their objects
    TOLD = "told"  # a node was given URLs to read with
    READ = "read"  # a node verified objects
    EVICTED = "evicted"
    CONDEMNED = "condemned"  # objects turned out to be bad
    REPORTED = "reported"  # a node called an object bad or missing
    STOPPED = "stopped"  # a node wants no more


#: What the bucket got and lost, and who failed, no talk of members crowds out: only as many again in all bound it.
KEPT = frozenset({EventKind.UPLOADED, EventKind.FAILED, EventKind.EVICTED, EventKind.CONDEMNED})


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``node``: who did it, or for whom it was done; ``number``: the object, None for the stream as a whole;
    ``detail``: why, as pairs in order; ``count``: how many it stands for."""

    channel: str
    stream: bytes
    kind: EventKind
    at: float
    node: str | None = None
    number: int | None = None
    transfer: bytes | None = None
    bytes: int = 0
    seconds: float = 0.0
    detail: tuple[tuple[str, str], ...] = ()
    count: int = 1


def of_grant(
    kind: EventKind, grant: GrantRecord, now: float, detail: Mapping[str, str] | None = None, seconds: float = 0.0
) -> Event:
    """What happened to a grant's object, by or for its node."""
    ref, told = grant.ref, tuple((detail or {}).items())
    return Event(
        ref.channel, ref.stream, kind, now, grant.node, ref.number, grant.transfer, grant.length, seconds, told
    )


def of_record(kind: EventKind, record: ObjectRecord, now: float, detail: Mapping[str, str] | None = None) -> Event:
    """What happened to an object, of which its uploader is the node."""
    ref, told = record.ref, tuple((detail or {}).items())
    return Event(ref.channel, ref.stream, kind, now, record.uploader, ref.number, bytes=record.size, detail=told)


type Note = Callable[[Event], None]


def unheard(event: Event) -> None:
    """For who keeps no journal."""
    del event


#: Of these a run counts each object once.
_ONCE: Final = frozenset({EventKind.READ, EventKind.NO_ROOM, EventKind.GRANTED})
#: What of the same node and stream is over when one of these begins: asked and stopped take turns.
_ENDS: Final = {
    EventKind.ASKED: frozenset({EventKind.STOPPED}),
    EventKind.STOPPED: frozenset({EventKind.ASKED, EventKind.WAITED}),
}
_TURNS: Final = frozenset({EventKind.ASKED, EventKind.STOPPED, EventKind.WAITED})

#: The last one: 0 while the run takes events, another number for each run that took its last one.
type _Key = tuple[str, bytes, EventKind, str | None, bytes | None, tuple[tuple[str, str], ...], int]
type _Crowd = tuple[str, bytes | None, str | None, bool]


@dataclass(slots=True)
class Run:
    """Like events between ``at`` and ``until``. ``first`` and ``last``: the objects that they concern, all of these and
    those between. ``row``: where it is kept, once it is."""

    channel: str
    stream: bytes
    kind: EventKind
    node: str | None
    transfer: bytes | None
    detail: tuple[tuple[str, str], ...]
    at: float
    until: float
    first: int | None = None
    last: int | None = None
    count: int = 0
    bytes: int = 0
    seconds: float = 0.0
    row: int | None = None
    fresh: bool = field(default=True, compare=False)
    seen: set[int] = field(default_factory=set, compare=False, repr=False)

    def take(self, event: Event) -> None:
        """One more."""
        self.at, self.until = min(self.at, event.at), max(self.until, event.at)
        self.fresh = True
        if self.kind in _ONCE and event.number is not None:
            if event.number in self.seen:
                return
            if len(self.seen) < SEEN:
                self.seen.add(event.number)
        if event.number is not None:
            self.first = event.number if self.first is None else min(self.first, event.number)
            self.last = event.number if self.last is None else max(self.last, event.number)
        self.count += event.count
        self.bytes += event.bytes
        self.seconds += event.seconds


class Gatherer:
    """Gathers events into runs. Not thread-safe; ``now`` is seconds since the epoch, as in the events."""

    def __init__(self) -> None:
        self._open: dict[_Key, Run] = {}
        self._turns: dict[tuple[str, bytes, str | None], set[_Key]] = {}  # of asking and stopping, by whose it is
        self._ended = 0
        self._crowds: Counter[_Crowd] = Counter()
        self._closed: list[Run] = []
        self.lost = 0

    def add(self, event: Event) -> None:
        """An event happened."""
        key = (event.channel, event.stream, event.kind, event.node, event.transfer, event.detail, 0)
        run = self._open.get(key)
        if run is not None and event.at - run.until > QUIET:
            self._close(key)
            run = None
        if run is None:
            if not self._fits(event):
                self.lost += 1
                return
            self._end(event)
            run = self._open[key] = Run(
                event.channel, event.stream, event.kind, event.node, event.transfer, event.detail, event.at, event.at
            )
            if event.kind not in KEPT:
                self._crowds.update(_crowds(event).keys())
        run.take(event)

    def changed(self, now: float, most: int = 1000) -> list[Run]:
        """Runs with something new since they were last asked for; those that are over are forgotten with that."""
        for key in [key for key, run in self._open.items() if now - run.until > QUIET]:
            self._close(key)
        found, self._closed = self._closed[:most], self._closed[most:]
        for run in self._open.values():
            if len(found) >= most:
                break
            if run.fresh:
                found.append(run)
        for run in found:
            run.fresh = False
        return found

    def failed(self, runs: list[Run]) -> None:
        """These could not be kept: they are changed still."""
        open_runs = set(map(id, self._open.values()))
        for run in runs:
            run.fresh = True
            if id(run) not in open_runs:
                self._closed.append(run)

    def _end(self, event: Event) -> None:
        """A run begins: what it puts an end to takes nothing more, though it counts as open until it was silent."""
        whose = event.channel, event.stream, event.node
        for key in [key for key in self._turns.get(whose, ()) if key[2] in _ENDS.get(event.kind, ())]:
            self._ended += 1
            self._open[(*key[:6], self._ended)] = self._open.pop(key)
            self._turns[whose].remove(key)
        if event.kind in _TURNS:
            key = (event.channel, event.stream, event.kind, event.node, event.transfer, event.detail, 0)
            self._turns.setdefault(whose, set()).add(key)

    def _close(self, key: _Key) -> None:
        run = self._open.pop(key)
        turns = self._turns.get((run.channel, run.stream, run.node))
        if turns is not None:
            turns.discard(key)
            if not turns:
                del self._turns[run.channel, run.stream, run.node]
        for crowd in _crowds(run) if run.kind not in KEPT else ():
            self._crowds[crowd] -= 1
            if not self._crowds[crowd]:
                del self._crowds[crowd]
        if run.fresh:
            self._closed.append(run)

    def _fits(self, event: Event) -> bool:
        count = len(self._open) + len(self._closed)
        if event.kind in KEPT:
            return count < 2 * OPEN_RUNS
        return count < OPEN_RUNS and all(self._crowds[crowd] < most for crowd, most in _crowds(event).items())


def _crowds(of: Event | Run) -> dict[_Crowd, int]:
    """What counts together with it, and how many runs of that may be open."""
    return {
        (of.channel, None, None, False): OPEN_OF_CHANNEL,
        (of.channel, None, of.node, True): OPEN_OF_NODE,
        (of.channel, of.stream, None, False): OPEN_OF_STREAM,
        (of.channel, of.stream, of.node, True): OPEN_OF_BOTH,
    }
