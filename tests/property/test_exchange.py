"""The exchange's machines together, on a bad network and in virtual time, against the model ledger.

Hub (rounds and ledger), providers and requesters are the production code; only what carries them is made here: a
network that loses, repeats and delays, a bucket with create-only, and a clock that jumps to the next event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from entrepot.core.errors import Conflict, EntrepotError, NotFound, RetryLater
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
from entrepot_hub.core.ledger import Found, GrantStatus, ObjectRef, ObjectStatus, WantOrder, charge
from entrepot_hub.core.model_ledger import ModelLedger
from entrepot_hub.core.rounds import Rounds

LOCK = SchemaLock("demo", miniblock=16384, object=16384)
SETTINGS = ExchangeSettings(lease=2.0, put_url=30.0, put_grace=5.0, window=4, fetches=2)
UPLOAD = 0.2  # seconds for one object


class World:
    """A hub, providers, requesters and a bucket, all driven by one heap of events."""

    def __init__(
        self,
        seed: int,
        *,
        loss: float,
        objects: int,
        holders: int,
        readers: int,
        quota: int,
        in_order: Sequence[bool] | None = None,
        starts: Sequence[float] | None = None,
        pauses: Sequence[float] | None = None,
    ) -> None:
        """``quota`` in objects. Of each reader: ``in_order``, when it ``starts``, and how long it ``pauses`` over an
        object beyond the usual, in seconds."""
        self.random = Random(seed)
        self.loss = loss
        self.now = 1000.0
        self.serial = count()
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.opening = Opening(objects * LOCK.object, bytes(self.random.randbytes(32)))
        self.stream = self.opening.stream_id()
        self.geometry = Geometry(self.opening.length, LOCK)
        tokens = count(1)
        self.ledger = ModelLedger()
        self.ledger.add_channel("demo", quota * self.geometry.object_length(0))
        self.rounds = Rounds(SETTINGS, lambda: next(tokens).to_bytes(16))
        self.bucket: dict[int, int] = {}
        self.puts = 0
        self.dead: set[str] = set()
        names = [f"{i:016x}" for i in range(holders + readers)]
        self.providers = {name: Provider(name, SETTINGS) for name in names[:holders]}
        self.starts = dict(zip(names[holders:], starts or [-1.0] * readers, strict=True))
        self.pauses = dict(zip(names[holders:], pauses or [0.0] * readers, strict=True))
        orders = in_order or [bool(i % 2) for i in range(readers)]
        self.requesters = {
            name: Requester(self.stream, LOCK.id, name, SETTINGS, in_order=orders[i])
            for i, name in enumerate(names[holders:])
        }
        self.changed = False
        self.ends: dict[str, EntrepotError | None] = {}
        self.asked: dict[str, int] = {}

    # -- carrying ---------------------------------------------------------------------------------------------------

    def later(self, pause: float, act: Callable[[], None]) -> None:
        """Have something happen after a pause."""
        heapq.heappush(self.heap, (self.now + pause, next(self.serial), act))

    def carry(self, act: Callable[[], None]) -> None:
        """A message: lost, late or twice, as the network likes."""
        if self.random.random() < self.loss:
            return
        self.later(self.random.uniform(0.001, 0.05), act)
        if self.random.random() < self.loss / 2:
            self.later(self.random.uniform(0.001, 1.0), act)

    def run(self, until: float) -> None:
        """Let everything happen up to a moment, checking the invariants at every step."""
        while self.heap and self.heap[0][0] <= until and len(self.ends) < len(self.requesters):
            self.now, _, act = heapq.heappop(self.heap)
            act()
            if self.changed:
                self.check()
                self.changed = False

    def check(self) -> None:
        """What must hold at every instant."""
        usage = self.ledger.usage("demo")
        assert usage.charged == usage.stored + usage.reserved <= usage.quota
        assert sum(self.bucket.values()) <= usage.quota
        views = [self.ledger.view(self.ref(n)) for n in range(self.geometry.object_count)]
        assert usage.charged == sum(charge(view.record) for view in views)

    def ref(self, number: int) -> ObjectRef:
        """An object of the stream."""
        return ObjectRef("demo", LOCK.id, self.stream.raw, number)

    # -- the hub ----------------------------------------------------------------------------------------------------

    def hub_tick(self) -> None:
        """The hub's timers: rounds, leases, leftovers."""
        self.hub(self.rounds.tick(self.now))
        for grant in self.ledger.lapse(self.now):
            if grant.accepted_at and self.look(grant.ref.number, grant):
                continue
            self.hub(self.rounds.ended(grant, RetryLater("slow", kind="holder-too-slow"), self.now))
        for record in self.ledger.stale(self.now, SETTINGS.put_grace):
            if record.status is ObjectStatus.TOMBSTONE:
                self.bucket.pop(record.ref.number, None)
                self.ledger.clear_tombstone(record.ref, self.now)
            elif record.status is not ObjectStatus.EVICTING:
                self.look(record.ref.number, None)
        self.later(0.1, self.hub_tick)

    def look(self, number: int, grant: object) -> bool:
        """Take in what the bucket holds."""
        self.changed = True
        size = self.bucket.get(number)
        found = None if size is None else Found(size, f"e{size}", None)
        view = self.ledger.settle(self.ref(number), found, self.now, SETTINGS.put_grace)
        if view is None:
            del self.bucket[number]
            view = self.ledger.settle(self.ref(number), None, self.now, SETTINGS.put_grace)
        assert view is not None
        if view.record.status is not ObjectStatus.READY:
            return False
        self.hub(self.rounds.arrived(self.ref(number), None, self.now))
        return True

    def hub(self, effects: list[hubbing.Effect]) -> None:
        """Carry out what the rounds decided."""
        for effect in effects:
            self.act(effect)

    def act(self, effect: hubbing.Effect) -> None:
        """Carry out one decision."""
        match effect:
            case hubbing.SendSeek(_, lock, stream, nodes):
                seek = Seek(lock=lock.id, stream=stream, hub="f" * 16)
                for name in self.providers:
                    if nodes is None or name in nodes:
                        self.carry(partial(self.sought, name, seek))
            case hubbing.Propose(proposals):
                self.changed = True
                self.hub(self.rounds.judged(self.ledger.grant(proposals, self.now), self.now))
            case hubbing.SendGrant(grant, opening):
                message = Grant(
                    lock=LOCK.id,
                    stream=self.stream.raw,
                    number=grant.ref.number,
                    grant=grant.grant,
                    opening=opening.encode(),
                    lease=int(max(grant.lease_until - self.now, 0) * 1000),
                )
                self.carry(lambda: self.at_provider(grant.node, lambda p: p.granted(message, self.now)))
            case hubbing.Announce(refs):
                states = tuple(self.state(ref.number) for ref in refs)
                for ref in refs:
                    self.ledger.lend(
                        [ref], self.rounds.interested(ref, self.now), self.now + SETTINGS.read_lease, self.now
                    )
                self.tell(State(lock=LOCK.id, stream=self.stream.raw, objects=states))
            case hubbing.Review(grants):
                views = [self.ledger.view(grant.ref) for grant in grants]
                self.hub(self.rounds.reviewed(grants, views, self.now))
            case hubbing.Introduce(_, _, opening):
                self.ledger.learn("demo", self.stream.raw, opening)
                self.tell(State(lock=LOCK.id, stream=self.stream.raw, objects=(), opening=opening.encode()))
            case hubbing.MakeRoom(channel, need, wish, head, stalled):
                self.changed = True
                grace = SETTINGS.put_grace
                gone = self.ledger.evict_begin(channel, 0, self.now, grace, wish=wish)
                short = need - sum(record.size for record in gone)
                lacked = (
                    self.ledger.evict_begin(channel, short, self.now, grace, head=head, stalled=stalled)
                    if short > 0
                    else []
                )
                for record in [*gone, *lacked]:
                    self.bucket[record.ref.number] = 0
                    self.ledger.evict_end(record.ref, True, self.now)
                    self.hub(self.rounds.vanished(record.ref, self.now, lacked=record in lacked))
                if gone or lacked:
                    self.hub(self.rounds.roomier(channel, self.now, len(gone) + len(lacked)))

    def tell(self, state: State) -> None:
        """To all readers of the stream."""
        for name in self.requesters:
            self.carry(partial(self.at_requester, name, lambda r: r.heard(state, self.now)))

    def state(self, number: int) -> ObjectState:
        """How an object stands, as the hub tells it."""
        view = self.ledger.view(self.ref(number))
        if view.record.status is ObjectStatus.READY:
            get = Signed(method="GET", url="u", expires=60_000)
            return ObjectState(number=number, state="ready", length=view.record.size, etag=view.record.etag, get=get)
        if view.grant is not None and view.grant.status is GrantStatus.ACCEPTED:
            return ObjectState(number=number, state="uploading")
        return ObjectState(number=number, state="seeking")

    # -- providers --------------------------------------------------------------------------------------------------

    def sought(self, name: str, seek: Seek) -> None:
        """A seek reached a provider."""
        every = ((0, self.geometry.object_count - 1),)
        self.at_provider(name, lambda p: p.sought(seek, self.opening, every, self.now))

    def at_provider(self, name: str, event: Callable[[Provider], list[providing.Effect]]) -> None:
        """Let a provider act, unless it is dead."""
        if name in self.dead:
            return
        for effect in event(self.providers[name]):
            self.provide(name, effect)

    def provide(self, name: str, effect: providing.Effect) -> None:
        """Carry out what a provider decided."""
        match effect:
            case providing.SendOffer(_, offer):
                self.carry(lambda: self.offered(name, offer.ranges, offer.slots))
            case providing.Prepare(grant):
                self.later(
                    0.01,
                    lambda: self.at_provider(name, lambda p: p.prepared(grant.grant, b"h", b"d" * 32, self.now)),
                )
            case providing.SendAccept(accept):
                self.carry(lambda: self.accepted(name, accept.grant))
                self.later(
                    1.0,
                    lambda: self.at_provider(
                        name, lambda p: p.accept_unanswered(accept.grant, RetryLater("lost"), self.now)
                    ),
                )
            case providing.Upload(grant, _):
                self.later(self.random.uniform(UPLOAD, 3 * UPLOAD), lambda: self.put(name, grant))
            case providing.SendDone(done):
                self.carry(lambda: self.done(name, done.grant))
                self.later(1.0, lambda: self.at_provider(name, lambda p: p.done_unanswered(done.grant, self.now)))
            case providing.SendProgress() | providing.StopUpload():
                pass

    def offered(self, name: str, ranges: tuple[tuple[int, int], ...], slots: int) -> None:
        """An offer reached the hub."""
        self.ledger.hold("demo", [(self.stream.raw, self.opening)], name, self.now)
        self.hub(self.rounds.offered("demo", self.stream.raw, (name, name), self.opening, ranges, slots, self.now))

    def accepted(self, name: str, grant: bytes) -> None:
        """An accept reached the hub."""
        try:
            view = self.ledger.accept(
                grant, name, b"d" * 32, self.now + SETTINGS.lease, self.now + SETTINGS.put_url, self.now
            )
        except Conflict as error:
            reply = AcceptReply(error=reason_of(error))
        else:
            assert view.grant is not None
            if view.record.tombstone:
                self.bucket.pop(view.record.ref.number, None)
                self.ledger.clear_tombstone(view.record.ref, self.now)
            self.rounds.accepted(view.grant)
            reply = AcceptReply(put=Signed(method="PUT", url="u", expires=30_000), lease=int(SETTINGS.lease * 1000))
        self.carry(lambda: self.at_provider(name, lambda p: p.accepted(grant, reply, self.now)))

    def put(self, name: str, grant: Grant) -> None:
        """The bytes of an object arrive at the bucket, whose create-only holds."""
        if name in self.dead:
            return
        error: EntrepotError | None = None
        if grant.number in self.bucket:
            error = Conflict("taken", kind="exists")
        else:
            self.changed = True
            self.bucket[grant.number] = self.geometry.object_length(grant.number)
            self.puts += 1
        self.at_provider(name, lambda p: p.uploaded(grant.grant, error, self.now))

    def done(self, name: str, grant: bytes) -> None:
        """A done reached the hub: it looks."""
        found = self.ledger.find_grant(grant)
        assert found is not None
        if not self.look(found.ref.number, found):
            ended = self.ledger.end_grant(grant, GrantStatus.FAILED, "x", self.now)
            if ended is not None:
                self.hub(self.rounds.ended(ended, RetryLater("no upload"), self.now))
        self.carry(lambda: self.at_provider(name, lambda p: p.done_answered(grant, Ack(), self.now)))

    # -- requesters -------------------------------------------------------------------------------------------------

    def at_requester(self, name: str, event: Callable[[Requester], list[requesting.Effect]]) -> None:
        """Let a requester act."""
        for effect in event(self.requesters[name]):
            self.request(name, effect)

    def request(self, name: str, effect: requesting.Effect) -> None:
        """Carry out what a requester decided."""
        match effect:
            case requesting.Learned(opening):
                last = Geometry(opening.length, LOCK).object_count - 1
                self.at_requester(name, lambda r: r.begin(((0, last),), self.now))
            case requesting.Ask(want):
                serial = self.asked[name] = next(self.serial)
                self.carry(lambda: self.wanted(name, serial, want))
                self.later(2.0, lambda: self.answered(name, serial, None))
            case requesting.Tell(_, message):
                if isinstance(message, Cancel):
                    self.carry(lambda: self.cancelled(name))
                if isinstance(message, Got):
                    self.carry(lambda: self.ledger.got("demo", self.stream.raw, name, message.numbers, self.now))
            case requesting.Fetch(number, _, _):
                self.later(self.random.uniform(0.05, 0.3) + self.pauses[name], lambda: self.fetch(name, number))
            case requesting.Finish():
                self.ends[name] = None
            case requesting.Fail(error):
                self.ends[name] = error
            case requesting.StopFetch():
                pass

    def answered(self, name: str, serial: int, reply: WantReply | None) -> None:
        """The answer to a want, or its time-out; the second of the two, or a second answer, is nothing any more."""
        if self.asked.get(name) != serial:
            return
        del self.asked[name]
        if reply is None:
            self.at_requester(name, lambda r: r.unanswered(RetryLater("lost"), self.now))
        else:
            self.at_requester(name, lambda r: r.replied(reply, self.now))

    def wanted(self, name: str, serial: int, want: Want) -> None:
        """A want reached the hub."""
        until = self.now + want.deadline / 1000
        order = WantOrder("demo", LOCK.id, self.stream.raw, name, want.ranges, want.window, until)
        known = self.ledger.opening("demo", self.stream.raw)
        numbers = () if known is None else front(clip(want.ranges, self.geometry.object_count), want.window)
        view = self.ledger.want(order, numbers, self.now + SETTINGS.read_lease, self.now)
        holders = self.ledger.holders("demo", self.stream.raw)
        self.hub(self.rounds.wanted(order, LOCK, view.opening, view.objects, holders, 10, self.now))
        reason = self.rounds.reason("demo", self.stream.raw, self.now, name)
        reply = WantReply(
            opening=None if view.opening is None else view.opening.encode(),
            objects=tuple(self.state(number) for number in numbers),
            ready=view.ready,
            uploading=view.uploading,
            again_in=1000,
            reason=None if reason is None else reason_of(reason),
        )
        self.carry(lambda: self.answered(name, serial, reply))

    def cancelled(self, name: str) -> None:
        """A cancel reached the hub."""
        self.ledger.unwant("demo", self.stream.raw, name)
        self.rounds.unwanted("demo", self.stream.raw, name)

    def fetch(self, name: str, number: int) -> None:
        """A download ends: with the object, or with 404 when it was evicted meanwhile."""
        if self.bucket.get(number):
            self.at_requester(name, lambda r: r.fetched(number, self.now))
        else:
            error = NotFound("gone", kind="no-such-object")
            self.at_requester(name, lambda r: r.fetch_failed(number, error, self.now))

    def timers(self) -> None:
        """The machines' own timers."""
        for name, machine in self.requesters.items():
            timer = machine.timer()
            if timer is not None and timer <= self.now:
                self.at_requester(name, lambda r: r.tick(self.now))
        for name, provider in self.providers.items():
            timer = provider.timer()
            if timer is not None and timer <= self.now:
                self.at_provider(name, lambda p: p.tick(self.now))
        self.later(0.02, self.timers)

    def begin(self) -> None:
        """Start everything."""
        self.later(0.0, self.hub_tick)
        self.later(0.0, self.timers)
        for name in self.requesters:
            pause = self.starts[name] if self.starts[name] >= 0 else self.random.uniform(0.0, 2.0)
            self.later(pause, partial(self.at_requester, name, lambda r: r.start(self.now)))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.1, 0.3]),
    objects=st.integers(1, 12),
    holders=st.integers(1, 3),
    readers=st.integers(1, 4),
)
def test_everybody_gets_everything_over_a_bad_network(
    seed: int, loss: float, objects: int, holders: int, readers: int
) -> None:
    """With up to three of ten messages lost and some repeated, every reader ends with every object, and with room for
    all of them each object is uploaded once."""
    world = World(seed, loss=loss, objects=objects, holders=holders, readers=readers, quota=objects)
    world.begin()
    world.run(world.now + 300)
    assert world.ends == dict.fromkeys(world.requesters)
    assert world.puts == objects


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.2]), readers=st.integers(1, 3))
def test_a_stream_larger_than_the_quota_flows_through(seed: int, loss: float, readers: int) -> None:
    """Twelve objects pass through room for five, whatever the order of the readers, and the quota holds throughout."""
    world = World(seed, loss=loss, objects=12, holders=2, readers=readers, quota=5)
    world.begin()
    world.run(world.now + 900)
    assert world.ends == dict.fromkeys(world.requesters)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), moment=st.floats(0.0, 6.0))
def test_a_dead_provider_is_replaced(seed: int, moment: float) -> None:
    """A holder dies at any moment of a transfer without a word: another one finishes it."""
    world = World(seed, loss=0.05, objects=8, holders=2, readers=2, quota=8)
    world.begin()
    world.later(moment, lambda: world.dead.add(next(iter(world.providers))))
    world.run(world.now + 300)
    assert world.ends == dict.fromkeys(world.requesters)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_without_any_holder_every_reader_is_told_why(seed: int) -> None:
    """When all holders are dead from the start each get ends by its deadline, with the reason."""
    world = World(seed, loss=0.0, objects=3, holders=1, readers=2, quota=3)
    world.dead.update(world.providers)
    world.begin()
    world.run(world.now + 120)
    assert [error.kind for error in world.ends.values() if error is not None] == ["no-holder"] * 2
