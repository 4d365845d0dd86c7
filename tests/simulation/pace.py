"""How long a transfer takes on given links: the machines of production in virtual time, over links of given rates.

Hub (rounds and the model ledger), providers and requesters are the production code. What carries them is a model
without faults: messages take so long, an uplink or downlink is shared by what moves on it, every request waits one
round trip, and the hub needs a moment for every transaction. Nothing is read, hashed or signed, so objects may have
their real sizes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from entrepot.core.errors import Conflict, EntrepotError, RetryLater
from entrepot.core.exchange import provider as providing
from entrepot.core.exchange import requester as requesting
from entrepot.core.exchange.provider import Provider
from entrepot.core.exchange.requester import Requester
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import (
    AcceptReply,
    Ack,
    Cancel,
    Got,
    Grant,
    ObjectState,
    Seek,
    Signed,
    State,
    Want,
    WantReply,
    reason_of,
)
from entrepot.core.ranges import clip, front
from entrepot_hub.core import effects as hubbing
from entrepot_hub.core.ledger import Found, GrantRecord, GrantStatus, ObjectRef, ObjectStatus, Proposal, WantOrder
from entrepot_hub.core.model_ledger import ModelLedger
from entrepot_hub.core.rounds import Rounds

LOCK = SchemaLock("demo")
#: Bytes/s of a megabit/s.
MBIT = 125_000.0
#: Seconds between two counts of what went out.
COUNTED = 0.25
#: Seconds that reading and hashing an object takes.
PREPARED = 0.01


@dataclass(slots=True)
class _Flow:
    left: float
    size: float
    done: Callable[[], None]


@dataclass(slots=True)
class Link:
    """A link that everything on it shares alike."""

    rate: float
    flows: dict[object, _Flow] = field(default_factory=dict)
    moved: float = 0.0
    since: float = 0.0
    turn: int = 0

    def advance(self, now: float) -> None:
        """So much has moved by now."""
        if self.flows:
            share = (now - self.since) * self.rate / len(self.flows)
            for flow in self.flows.values():
                self.moved += min(share, flow.left)
                flow.left -= min(share, flow.left)
        self.since = now


class Pace:
    """One stream, its holders, each with an uplink in bytes/s, and its readers, each with a downlink."""

    def __init__(
        self,
        *,
        objects: int,
        up: Sequence[float],
        down: Sequence[float],
        message: float = 0.005,
        trip: float = 0.005,
        settings: ExchangeSettings | None = None,
        in_order: bool = False,
    ) -> None:
        """``message``: seconds that a message takes; ``trip``: of a request to the bucket, beside its bytes."""
        self.settings = settings or ExchangeSettings()
        self.message, self.trip = message, trip
        self.now = 1000.0
        self.began = self.now
        self.serial = count()
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.opening = Opening(objects * LOCK.object, b"\x07" * 32)
        self.stream = self.opening.stream_id()
        self.geometry = Geometry(self.opening.length, LOCK)
        self.ledger = ModelLedger()
        self.ledger.add_channel("demo", 2 * objects * self.geometry.object_length(0))
        tokens = count(1)
        self.rounds = Rounds(self.settings, lambda: next(tokens).to_bytes(16))
        self.bucket: dict[int, int] = {}
        self.takeovers: list[tuple[int, str, str]] = []
        self.uploads: dict[int, list[str]] = {}
        self.up = {f"holder{i}": Link(rate) for i, rate in enumerate(up)}
        self.down = {f"reader{i}": Link(rate) for i, rate in enumerate(down)}
        self.providers = {name: Provider(name, self.settings) for name in self.up}
        self.requesters = {
            name: Requester(self.stream, LOCK.id, name, self.settings, in_order=in_order) for name in self.down
        }
        self.asked: dict[str, int] = {}
        self.ends: dict[str, EntrepotError | None] = {}

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(self.geometry.object_length(number) for number in range(self.geometry.object_count))

    @property
    def sent(self) -> float:
        """Bytes that went out of all holders."""
        return sum(link.moved for link in self.up.values())

    def run(self, most: float = 600.0) -> float:
        """Seconds until every reader has everything."""
        for name in self.requesters:
            self.at_requester(name, lambda r: r.start(self.now))
        self.later(0.001, self.hub_tick)
        self.later(0.05, self.tick)
        while self.heap and len(self.ends) < len(self.requesters):
            self.now, _, act = heapq.heappop(self.heap)
            assert self.now < self.began + most, "it took too long"
            act()
        assert set(self.ends.values()) == {None}, self.ends
        return self.now - self.began

    # -- carrying ---------------------------------------------------------------------------------------------------

    def later(self, pause: float, act: Callable[[], None]) -> None:
        """Have something happen after a pause."""
        heapq.heappush(self.heap, (self.now + pause, next(self.serial), act))

    def carry(self, act: Callable[[], None]) -> None:
        """A message."""
        self.later(self.message, act)

    def flow(self, link: Link, name: object, size: float, done: Callable[[], None]) -> None:
        """So many bytes on a link."""
        link.advance(self.now)
        link.flows[name] = _Flow(size, size, done)
        self.watch(link)

    def stop(self, link: Link, name: object) -> None:
        """No more of them."""
        link.advance(self.now)
        link.flows.pop(name, None)
        self.watch(link)

    def watch(self, link: Link) -> None:
        """Look again when the first of its flows is through."""
        link.turn += 1
        if link.flows:
            first = min(flow.left for flow in link.flows.values())
            self.later(first * len(link.flows) / link.rate, partial(self.through, link, link.turn))

    def through(self, link: Link, turn: int) -> None:
        """Flows that are through end."""
        if turn != link.turn:
            return
        link.advance(self.now)
        for name in [name for name, flow in link.flows.items() if flow.left < 0.5]:
            self.later(self.trip, link.flows.pop(name).done)
        self.watch(link)

    def tick(self) -> None:
        """The machines' own timers, and what went out is counted."""
        for name, provider in self.providers.items():
            link = self.up[name]
            link.advance(self.now)
            for grant, flow in list(link.flows.items()):
                assert isinstance(grant, bytes)
                self.at_provider(name, lambda p: p.sent(grant, int(flow.size - flow.left), self.now))  # noqa: B023
            if (due := provider.timer()) is not None and due <= self.now:
                self.at_provider(name, lambda p: p.tick(self.now))
        for name, requester in self.requesters.items():
            if (due := requester.timer()) is not None and due <= self.now:
                self.at_requester(name, lambda r: r.tick(self.now))
        self.later(COUNTED, self.tick)

    # -- the hub ----------------------------------------------------------------------------------------------------

    def hub_tick(self) -> None:
        """The rounds' timer, and leases."""
        self.hub(self.rounds.tick(self.now))
        for grant in self.ledger.lapse(self.now):
            self.rounds.silent(grant, self.now)
            if not (grant.accepted_at and self.look(grant.ref.number, grant.grant)):
                self.hub(self.rounds.ended(grant, RetryLater("slow", kind="holder-too-slow"), self.now))
        due = self.rounds.timer()
        self.later(0.25 if due is None else min(max(due - self.now, 0.001), 0.25), self.hub_tick)

    def look(self, number: int, grant: bytes) -> bool:
        """Take in what the bucket holds."""
        before = self.ledger.view(self.ref(number)).record.status
        size = self.bucket.get(number)
        view = self.ledger.settle(
            self.ref(number), None if size is None else Found(size, f"e{number}", None), self.now, 300.0
        )
        assert view is not None
        if view.record.status is not ObjectStatus.READY:
            return False
        bringer = None if before is ObjectStatus.READY else self.ledger.find_grant(grant)
        self.hub(self.rounds.arrived(self.ref(number), bringer, self.now))
        return True

    def ref(self, number: int) -> ObjectRef:
        """An object of the stream."""
        return ObjectRef("demo", LOCK.id, self.stream.raw, number)

    def hub(self, effects: Sequence[hubbing.Effect]) -> None:
        """Carry out what the rounds decided."""
        for effect in effects:
            match effect:
                case hubbing.SendSeek(_, lock, stream):
                    seek = Seek(lock=lock.id, stream=stream, hub="f" * 16)
                    every = ((0, self.geometry.object_count - 1),)
                    for name in self.providers:
                        self.carry(
                            partial(
                                self.at_provider,
                                name,
                                lambda p: p.sought(seek, self.opening, every, self.now),  # noqa: B023
                            )
                        )
                case hubbing.Propose(proposals):
                    self.hub(self.rounds.judged(self.ledger.grant(proposals, self.now), self.now))
                case hubbing.TakeOver(grant, proposal):
                    self.take_over(grant, proposal)
                case hubbing.SendGrant(grant, _):
                    self.send_grant(grant)
                case hubbing.Announce(refs):
                    self.announce([ref.number for ref in refs])
                case hubbing.Review(grants):
                    views = [self.ledger.view(grant.ref) for grant in grants]
                    self.hub(self.rounds.reviewed(grants, views, self.now))
                case hubbing.Introduce():
                    self.ledger.learn("demo", self.stream.raw, self.opening)
                    self.tell(State(lock=LOCK.id, stream=self.stream.raw, objects=(), opening=self.opening.encode()))
                case hubbing.MakeRoom():
                    raise AssertionError("there is room for everything")

    def take_over(self, grant: GrantRecord, proposal: Proposal) -> None:
        """End a slow holder's grant."""
        ended = self.ledger.end_grant(grant.grant, GrantStatus.CANCELLED, "holder-too-slow", self.now)
        if ended is None:
            self.rounds.unjudged((proposal,), self.now)
            return
        self.takeovers.append((grant.ref.number, grant.node, proposal.node))
        self.rounds.taken_over(ended, self.now)
        self.send_grant(ended, stop=True)
        self.hub([hubbing.Propose((proposal,))])

    def send_grant(self, grant: GrantRecord, *, stop: bool = False) -> None:
        """Tell a holder."""
        message = Grant(
            lock=LOCK.id,
            stream=self.stream.raw,
            number=grant.ref.number,
            grant=grant.grant,
            opening=self.opening.encode(),
            lease=int(max(grant.lease_until - self.now, 0) * 1000),
            stop=stop,
        )
        self.carry(lambda: self.at_provider(grant.node, lambda p: p.granted(message, self.now)))

    def announce(self, numbers: Sequence[int]) -> None:
        """Tell all readers how these stand."""
        objects = tuple(self.state(number) for number in numbers)
        self.tell(State(lock=LOCK.id, stream=self.stream.raw, objects=objects))

    def tell(self, state: State) -> None:
        """To all readers."""
        for name in self.requesters:
            self.carry(partial(self.at_requester, name, lambda r: r.heard(state, self.now)))

    def state(self, number: int) -> ObjectState:
        """How an object stands, as the hub tells it."""
        view = self.ledger.view(self.ref(number))
        if view.record.status is ObjectStatus.READY:
            get = Signed(method="GET", url="u", expires=600_000)
            return ObjectState(number=number, state="ready", length=view.record.size, etag=view.record.etag, get=get)
        if view.grant is not None and view.grant.status is GrantStatus.ACCEPTED:
            return ObjectState(number=number, state="uploading")
        return ObjectState(number=number, state="seeking")

    # -- holders ----------------------------------------------------------------------------------------------------

    def at_provider(self, name: str, event: Callable[[Provider], list[providing.Effect]]) -> None:
        """Let a holder act."""
        for effect in event(self.providers[name]):
            match effect:
                case providing.SendOffer(_, offer):
                    self.carry(partial(self.offered, name, offer.ranges, offer.slots))
                case providing.Prepare(grant):
                    self.later(PREPARED, partial(self.prepared, name, grant.grant))
                case providing.SendAccept(accept):
                    self.carry(partial(self.accepted, name, accept.grant))
                case providing.Upload(grant, _):
                    self.uploads.setdefault(grant.number, []).append(name)
                    size = self.geometry.object_length(grant.number)
                    self.flow(self.up[name], grant.grant, size, partial(self.put, name, grant))
                case providing.StopUpload(stopped):
                    self.stop(self.up[name], stopped)
                case providing.SendDone(done):
                    self.carry(partial(self.done, name, done.grant))
                case providing.SendProgress(progress):
                    self.carry(partial(self.progressed, name, progress.grant, progress.sent))

    def prepared(self, name: str, grant: bytes) -> None:
        """A holder has read the header and the digest of an object."""
        self.at_provider(name, lambda p: p.prepared(grant, b"h", b"d" * 32, self.now))

    def offered(self, name: str, ranges: tuple[tuple[int, int], ...], slots: int) -> None:
        """An offer reached the hub."""
        self.ledger.hold("demo", [(self.stream.raw, self.opening)], name, self.now)
        self.hub(self.rounds.offered("demo", self.stream.raw, (name, name), self.opening, ranges, slots, self.now))

    def accepted(self, name: str, grant: bytes) -> None:
        """An accept reached the hub."""
        settings = self.settings
        try:
            view = self.ledger.accept(
                grant, name, b"d" * 32, self.now + settings.lease, self.now + settings.put_url, self.now
            )
        except Conflict as error:
            reply = AcceptReply(error=reason_of(error))
        else:
            assert view.grant is not None
            self.rounds.accepted(view.grant)
            self.announce([view.record.ref.number])
            reply = AcceptReply(put=Signed(method="PUT", url="u", expires=900_000), lease=int(settings.lease * 1000))
        self.carry(lambda: self.at_provider(name, lambda p: p.accepted(grant, reply, self.now)))

    def progressed(self, name: str, grant: bytes, sent: int) -> None:
        """A progress report reached the hub."""
        settings = self.settings
        try:
            record = self.ledger.progress(grant, name, sent, settings.lease, settings.floor_rate, self.now)
        except Conflict:
            return
        self.hub(self.rounds.progressed(record, self.now))

    def put(self, name: str, grant: Grant) -> None:
        """The bytes of an object have arrived at the bucket, whose create-only holds."""
        error: EntrepotError | None = None
        if grant.number in self.bucket:
            error = Conflict("taken", kind="exists")
        else:
            self.bucket[grant.number] = self.geometry.object_length(grant.number)
        self.at_provider(name, lambda p: p.uploaded(grant.grant, error, self.now))

    def done(self, name: str, grant: bytes) -> None:
        """A done reached the hub: it looks."""
        found = self.ledger.find_grant(grant)
        assert found is not None
        if not self.look(found.ref.number, grant):
            ended = self.ledger.end_grant(grant, GrantStatus.FAILED, "x", self.now)
            if ended is not None:
                self.hub(self.rounds.ended(ended, RetryLater("no upload"), self.now))
        self.carry(lambda: self.at_provider(name, lambda p: p.done_answered(grant, Ack(), self.now)))

    # -- readers ----------------------------------------------------------------------------------------------------

    def at_requester(self, name: str, event: Callable[[Requester], list[requesting.Effect]]) -> None:
        """Let a reader act."""
        for effect in event(self.requesters[name]):
            match effect:
                case requesting.Learned(opening):
                    last = Geometry(opening.length, LOCK).object_count - 1
                    self.at_requester(name, lambda r: r.begin(((0, last),), self.now))  # noqa: B023
                case requesting.Ask(want):
                    self.carry(partial(self.wanted, name, want))
                case requesting.Tell(_, message):
                    if isinstance(message, Cancel):
                        self.rounds.unwanted("demo", self.stream.raw, name)
                    if isinstance(message, Got):
                        self.ledger.got("demo", self.stream.raw, name, message.numbers, self.now)
                case requesting.Fetch(number, _, _):
                    size = self.geometry.object_length(number)
                    self.flow(self.down[name], number, size, partial(self.fetched, name, number))
                case requesting.StopFetch(number):
                    self.stop(self.down[name], number)
                case requesting.Finish():
                    self.ends[name] = None
                case requesting.Fail(error):
                    self.ends[name] = error

    def wanted(self, name: str, want: Want) -> None:
        """A want reached the hub."""
        order = WantOrder(
            "demo", LOCK.id, self.stream.raw, name, want.ranges, want.window, self.now + want.deadline / 1000
        )
        known = self.ledger.opening("demo", self.stream.raw)
        numbers = () if known is None else front(clip(order.ranges, self.geometry.object_count), order.window)
        view = self.ledger.want(order, numbers, self.now + self.settings.read_lease, self.now)
        holders = self.ledger.holders("demo", self.stream.raw)
        self.hub(self.rounds.wanted(order, LOCK, view.opening, view.objects, holders, 10, self.now))
        reply = WantReply(
            opening=None if view.opening is None else view.opening.encode(),
            objects=tuple(self.state(number) for number in numbers),
            ready=view.ready,
            uploading=view.uploading,
            again_in=1000,
        )
        self.carry(lambda: self.at_requester(name, lambda r: r.replied(reply, self.now)))

    def fetched(self, name: str, number: int) -> None:
        """An object is verified and kept."""
        self.at_requester(name, lambda r: r.fetched(number, self.now))
