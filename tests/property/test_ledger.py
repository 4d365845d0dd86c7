"""The SQL ledger does what the model does, whatever is asked of it in whatever order; the quota always holds."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.contract.ledger.conftest import model, populate
from tests.contract.ledger.exchange import GRACE, LOCK, OPENING, OTHER, STREAM

from entrepot.core.errors import EntrepotError
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.ledger import (
    LIVE,
    Found,
    GrantStatus,
    Ledger,
    ObjectRef,
    ObjectStatus,
    ObjectView,
    Proposal,
    WantOrder,
    charge,
)
from entrepot_hub.core.wishes import Front

QUOTA = 500
NODES = st.sampled_from("ABC")
SESSIONS = st.sampled_from(["s1", "s2"])
CHANNELS = st.sampled_from(["demo", "demo", "demo", "other"])
STREAMS = st.sampled_from([STREAM, STREAM, OTHER])
NUMBERS = st.integers(0, 5)
REFS = st.builds(ObjectRef, CHANNELS, st.just(LOCK), STREAMS, NUMBERS)
SIZES = st.sampled_from([100, 100, 100, 60])
LENGTHS = st.sampled_from([None, None, 100, 60, 40, 101])
DIGESTS = st.sampled_from([b"d" * 32, b"d" * 32, b"e" * 32])
FOUND = st.none() | st.builds(
    Found, st.sampled_from([100, 100, 60, 0]), st.sampled_from(["e1", "e2"]), st.none() | DIGESTS
)
FRONTS = st.builds(Front, NODES, STREAMS, st.sampled_from([0.0, 5.0]))
HEADS = st.none() | FRONTS
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair))), max_size=3).map(tuple)

_template: Path | None = None


def _populated() -> Path:
    """A populated database to copy, made once in this process."""
    global _template
    if _template is None:
        folder = Path(tempfile.mkdtemp(prefix="entrepot-ledger-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _template = folder / "hub.db"
        database = Database(f"sqlite:///{_template}")
        database.migrate_now()
        asyncio.run(populate(database, QUOTA))
        database.close()
    return _template


class LedgerMachine(RuleBasedStateMachine):
    """Both ledgers are asked the same; their answers and their objects are compared after each step."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="entrepot-ledger-"))
        shutil.copy(_populated(), self.folder / "hub.db")
        self.database = Database(f"sqlite:///{self.folder / 'hub.db'}")
        self.sql = SqlLedger(self.database)
        self.model = model(QUOTA)
        self.now = 100.0
        self.most = {"demo": QUOTA, "other": QUOTA}
        self.refs: set[ObjectRef] = set()
        self.grants: list[tuple[bytes, str]] = [(bytes(16), "A")]
        for number in range(4):
            self.upload(ObjectRef("demo", LOCK, STREAM, number))

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()
            shutil.rmtree(self.folder)

    def both(self, ask: Callable[[Ledger], Any]) -> Any:
        """The common answer, or the common error's kind."""
        answers = []
        for ledger in (self.sql, self.model):
            try:
                answers.append(ask(ledger))
            except EntrepotError as error:
                answers.append(error.kind)
        assert answers[0] == answers[1]
        return answers[0]

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0, 50.0, 120.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(ref=REFS)
    def upload(self, ref: ObjectRef) -> None:
        """The whole way of an object, which single steps seldom find."""
        grant = len(self.grants).to_bytes(16)
        wish = Proposal(ref, grant, "A", "s1", 100, self.now + 10)
        self.both(lambda ledger: ledger.grant([wish], self.now))
        self.both(lambda ledger: ledger.accept(grant, "A", b"d" * 32, self.now + 10, self.now + 100, self.now))
        self.both(lambda ledger: ledger.settle(ref, Found(100, "e1", None), self.now, GRACE))
        self.grants.append((grant, "A"))
        self.refs.add(ref)

    @rule(channel=CHANNELS, quota=st.sampled_from([0, 150, 300, QUOTA]))
    def set_quota(self, channel: str, quota: int) -> None:
        """The owner lowers the quota, or raises it again."""
        self.model.add_channel(channel, quota)
        with self.database.transaction() as connection:
            connection.execute(sa.update(t.channels).where(t.channels.c.name == channel).values(quota=quota))
        self.most[channel] = max(self.most[channel], quota)

    @rule()
    def crash(self) -> None:
        """The hub ends and another one opens its database."""
        self.database.close()
        self.database = Database(f"sqlite:///{self.folder / 'hub.db'}")
        self.sql = SqlLedger(self.database)

    @rule(ref=REFS, tombstone=st.booleans(), late=st.booleans())
    def late_put(self, ref: ObjectRef, tombstone: bool, late: bool) -> None:
        """A lease lapses before its PUT: it lands later, after an eviction and another grant, or never."""
        self.upload(ref)
        self.both(lambda ledger: ledger.condemn(ref, None, self.now))
        self.both(lambda ledger: ledger.evict_end(ref, tombstone, self.now))
        again = len(self.grants).to_bytes(16)
        self.grants.append((again, "B"))
        wish = Proposal(ref, again, "B", "s2", 100, self.now + 10)
        self.both(lambda ledger: ledger.grant([wish], self.now))
        self.both(lambda ledger: ledger.accept(again, "B", b"d" * 32, self.now + 10, self.now + 100, self.now))
        self.now += 11.0
        self.both(lambda ledger: ledger.lapse(self.now))
        self.both(lambda ledger: ledger.settle(ref, None, self.now, GRACE))
        if late:
            self.both(lambda ledger: ledger.settle(ref, Found(100, "e2", b"d" * 32), self.now, GRACE))

    @rule(ref=REFS, found=FOUND)
    def settle(self, ref: ObjectRef, found: Found | None) -> None:
        self.look(ref, found)

    def look(self, ref: ObjectRef, found: Found | None) -> None:
        """A look. Where it finds that somebody else deleted the object, what one of its grants may still put there is
        reserved, whether it fits or not."""
        before = self.model.view(ref).record
        self.both(lambda ledger: ledger.settle(ref, found, self.now, GRACE))
        after = self.model.view(ref).record
        if found is None and (before.status, after.status) == (ObjectStatus.READY, ObjectStatus.RESERVED):
            grants = [grant for grant in self.model._grants.values() if grant.ref == ref]
            able = [g.length for g in grants if g.put_until > 0 and self.now <= g.put_until + GRACE]
            assert after.size == max(before.size, *able, 0)
            self.most[ref.channel] += after.size - before.size

    @invariant()
    def same_objects(self) -> None:
        """Both know the same of every object, and no more than one grant of it is live."""
        if not hasattr(self, "database"):
            return
        views = {}
        for ref in sorted(self.refs):
            views[ref] = self.both(lambda ledger, ref=ref: ledger.view(ref))  # type: ignore[misc]
            _check(views[ref])
        for channel in ("demo", "other"):
            usage = self.both(lambda ledger, channel=channel: ledger.usage(channel))  # type: ignore[misc]
            charges = [charge(view.record) for ref, view in views.items() if ref.channel == channel]
            assert usage.charged == usage.stored + usage.reserved == sum(charges) <= self.most[channel]
            self.most[channel] = max(usage.quota, usage.charged)  # what a lowered quota left may only become less
            for stream in (STREAM, OTHER):
                self.both(lambda ledger, c=channel, s=stream: ledger.wants(c, s, self.now))  # type: ignore[misc]
                self.both(lambda ledger, c=channel, s=stream: ledger.holders(c, s))  # type: ignore[misc]
                self.both(lambda ledger, c=channel, s=stream: ledger.summary(c, s, LOCK))  # type: ignore[misc]
        with self.database.transaction() as connection:
            live = sa.select(t.grants.c.object_id).where(t.grants.c.status.in_([s.value for s in LIVE]))
            rows = connection.execute(live).scalars().all()
            assert len(rows) == len(set(rows))


class GrantMachine(LedgerMachine):
    """Grants and all that becomes of them."""

    @rule(refs=st.lists(REFS, min_size=1, max_size=6), node=NODES, session=SESSIONS, size=SIZES)
    def grant(self, refs: list[ObjectRef], node: str, session: str, size: int) -> None:
        first = len(self.grants)
        proposals = [
            Proposal(ref, (first + place).to_bytes(16), node, session, size, self.now + 10)
            for place, ref in enumerate(refs)
        ]
        self.both(lambda ledger: ledger.grant(proposals, self.now))
        self.both(lambda ledger: ledger.grant(proposals[:1], self.now))
        self.grants += [(proposal.grant, node) for proposal in proposals]
        self.refs.update(refs)

    @rule(data=st.data(), digest=DIGESTS, life=st.sampled_from([5.0, 100.0]), length=LENGTHS)
    def accept(self, data: st.DataObject, digest: bytes, life: float, length: int | None) -> None:
        """Perhaps for fewer bytes than were granted, or for more, which is refused."""
        grant, node = data.draw(st.sampled_from(self.grants[-8:]))
        until, put_until = self.now + 10, self.now + life
        self.both(lambda ledger: ledger.accept(grant, node, digest, until, put_until, self.now, length))

    @rule(ref=REFS, first=LENGTHS, second=LENGTHS, late=st.booleans())
    def shrink(self, ref: ObjectRef, first: int | None, second: int | None, late: bool) -> None:
        """A grant is accepted for so many bytes and lapses, another one for others; one of both lands in the end."""
        for node, length in (("A", first), ("B", second)):
            grant = len(self.grants).to_bytes(16)
            self.grants.append((grant, node))
            wish = Proposal(ref, grant, node, "s1", 100, self.now + 10)
            self.both(lambda ledger, wish=wish: ledger.grant([wish], self.now))  # type: ignore[misc]
            self.both(
                lambda ledger, grant=grant, node=node, length=length: ledger.accept(  # type: ignore[misc]
                    grant, node, b"d" * 32, self.now + 10, self.now + 100, self.now, length
                )
            )
            if node == "A":
                self.now += 11.0
                self.both(lambda ledger: ledger.lapse(self.now))
        self.refs.add(ref)
        size = (first if late else second) or 100
        self.both(lambda ledger: ledger.settle(ref, Found(size, "e3", None), self.now, GRACE))

    @rule(number=NUMBERS, lengths=st.tuples(LENGTHS, LENGTHS), late=st.booleans())
    def vanish(self, number: int, lengths: tuple[int | None, int | None], late: bool) -> None:
        """What the second of two grants brought is deleted by somebody else; perhaps the first one's PUT lands then."""
        ref = ObjectRef("demo", LOCK, STREAM, number)
        self.shrink(ref, *lengths, late=False)
        self.look(ref, None)
        if late:
            self.look(ref, Found(lengths[0] or 100, "e4", None))

    @rule(data=st.data(), sent=st.integers(0, 101))
    def progress(self, data: st.DataObject, sent: int) -> None:
        grant, node = data.draw(st.sampled_from(self.grants[-8:]))
        self.both(lambda ledger: ledger.progress(grant, node, sent, 10.0, 2.0, self.now))

    @rule(data=st.data(), end=st.sampled_from([GrantStatus.FAILED, GrantStatus.CANCELLED]))
    def end_grant(self, data: st.DataObject, end: GrantStatus) -> None:
        grant, _ = data.draw(st.sampled_from(self.grants[-8:]))
        self.both(lambda ledger: ledger.end_grant(grant, end, "busy", self.now))
        self.both(lambda ledger: ledger.find_grant(grant))

    @rule(limit=st.sampled_from([1, 1000]))
    def lapse(self, limit: int) -> None:
        self.both(lambda ledger: ledger.lapse(self.now, limit))

    @rule(node=NODES, session=SESSIONS)
    def disconnect(self, node: str, session: str) -> None:
        self.both(lambda ledger: ledger.shorten(node, session, self.now + 2, self.now))

    @rule(node=NODES, session=SESSIONS)
    def reconnect(self, node: str, session: str) -> None:
        self.both(lambda ledger: ledger.restore(node, session, self.now + 10, self.now))

    @rule(ref=REFS)
    def clear_tombstone(self, ref: ObjectRef) -> None:
        self.both(lambda ledger: ledger.clear_tombstone(ref, self.now))

    @rule(limit=st.sampled_from([2, 100]), channel=st.none() | CHANNELS)
    def stale(self, limit: int, channel: str | None) -> None:
        self.both(lambda ledger: ledger.stale(self.now, GRACE, limit, channel))

    @rule(channel=CHANNELS, stream=STREAMS, node=NODES)
    def hold(self, channel: str, stream: bytes, node: str) -> None:
        self.both(lambda ledger: ledger.hold(channel, [(stream, OPENING)], node, self.now))

    @rule(channel=CHANNELS, stream=STREAMS, node=NODES)
    def unhold(self, channel: str, stream: bytes, node: str) -> None:
        self.both(lambda ledger: ledger.unhold(channel, stream, node))

    @rule(channel=CHANNELS, of_member=st.sampled_from([0, 1, 2]), of_channel=st.sampled_from([1, 3, 100]))
    def thin_holders(self, channel: str, of_member: int, of_channel: int) -> None:
        self.both(lambda ledger: ledger.thin_holders(channel, of_member, of_channel))

    @rule(channel=CHANNELS, before=st.sampled_from([0.0, 20.0]), limit=st.sampled_from([1, 100]))
    def forget(self, channel: str, before: float, limit: int) -> None:
        """Only what is needed for nothing goes: the ledgers agree on how much that is."""
        self.both(lambda ledger: ledger.forget_absent(self.now - before))
        self.both(lambda ledger: ledger.forget_streams(channel, b"", limit))

    @rule(channel=CHANNELS, node=NODES)
    def strike(self, channel: str, node: str) -> None:
        self.both(lambda ledger: ledger.strike(channel, node, "corrupt", self.now))

    @rule(before=st.sampled_from([0.0, 200.0]))
    def prune(self, before: float) -> None:
        self.both(lambda ledger: ledger.prune(self.now - before))

    @rule(ref=REFS, tombstone=st.booleans())
    def evict_end(self, ref: ObjectRef, tombstone: bool) -> None:
        self.both(lambda ledger: ledger.evict_end(ref, tombstone, self.now))

    @rule(ref=REFS, etag=st.sampled_from([None, "e1", "e2"]))
    def condemn(self, ref: ObjectRef, etag: str | None) -> None:
        self.both(lambda ledger: ledger.condemn(ref, etag, self.now))


class CacheMachine(LedgerMachine):
    """Readers, wants and eviction."""

    @rule(number=NUMBERS, node=NODES)
    def read(self, number: int, node: str) -> None:
        """A reader comes and goes: the object is visited, and not leased any more."""
        order = WantOrder("demo", LOCK, STREAM, node, ((number, number),), 1, self.now + 5)
        self.both(lambda ledger: ledger.want(order, [number], self.now + 5, self.now))
        self.both(lambda ledger: ledger.got("demo", STREAM, node, [number], self.now))

    @rule(times=st.integers(1, 3), tombstone=st.booleans(), back=st.booleans())
    def make_room(self, times: int, tombstone: bool, back: bool) -> None:
        """Objects are chosen to leave one after the other, and leave; perhaps they are uploaded again."""
        for _ in range(times):
            for record in self.both(lambda ledger: ledger.evict_begin("demo", 100, self.now, GRACE)):
                self.both(lambda ledger, ref=record.ref: ledger.evict_end(ref, tombstone, self.now))  # type: ignore[misc]
                if back:
                    self.upload(record.ref)

    @rule(
        channel=CHANNELS, need=st.sampled_from([0, 1, 150, 900]), limit=st.sampled_from([2, 64]),
        wish=st.sampled_from([0, 250]), head=HEADS, stalled=st.lists(FRONTS, max_size=2),
    )  # fmt: skip
    def evict_begin(
        self, channel: str, need: int, limit: int, wish: int, head: Front | None, stalled: list[Front]
    ) -> None:
        self.both(
            lambda ledger: ledger.evict_begin(
                channel, need, self.now, GRACE, limit, wish=wish, head=head, stalled=stalled
            )
        )

    @rule(ref=REFS, etag=st.sampled_from([None, "e1", "e2"]))
    def condemn(self, ref: ObjectRef, etag: str | None) -> None:
        self.both(lambda ledger: ledger.condemn(ref, etag, self.now))

    @rule(ref=REFS, tombstone=st.booleans())
    def evict_end(self, ref: ObjectRef, tombstone: bool) -> None:
        self.both(lambda ledger: ledger.evict_end(ref, tombstone, self.now))

    @rule(
        channel=CHANNELS, stream=STREAMS, node=NODES, pairs=PAIRS, window=st.integers(1, 4),
        life=st.sampled_from([5.0, 60.0]), numbers=st.lists(NUMBERS, max_size=4), keep=st.booleans(),
    )  # fmt: skip
    def want(
        self, channel: str, stream: bytes, node: str, pairs: tuple[tuple[int, int], ...], window: int,
        life: float, numbers: list[int], keep: bool,
    ) -> None:  # fmt: skip
        order = WantOrder(channel, LOCK, stream, node, pairs, window, self.now + life, keep)
        self.both(lambda ledger: ledger.want(order, numbers, self.now + 30, self.now))

    @rule(channel=CHANNELS, stream=STREAMS, node=NODES)
    def unwant(self, channel: str, stream: bytes, node: str) -> None:
        self.both(lambda ledger: ledger.unwant(channel, stream, node))

    @rule(channel=CHANNELS, stream=STREAMS, node=NODES, numbers=st.lists(NUMBERS, max_size=4))
    def got(self, channel: str, stream: bytes, node: str, numbers: list[int]) -> None:
        self.both(lambda ledger: ledger.got(channel, stream, node, numbers, self.now))

    @rule(refs=st.lists(REFS, max_size=4), nodes=st.lists(NODES, max_size=3))
    def lend(self, refs: list[ObjectRef], nodes: list[str]) -> None:
        self.both(lambda ledger: ledger.lend(refs, nodes, self.now + 20, self.now))


def _check(view: ObjectView) -> None:
    """What is true of every object at every instant."""
    record, grant = view.record, view.grant
    assert record.tombstone == (record.status is ObjectStatus.TOMBSTONE) or (
        record.tombstone and record.status is ObjectStatus.RESERVED
    )
    if grant is not None:
        assert grant.status in LIVE
        assert record.status is ObjectStatus.RESERVED
    if record.status in {ObjectStatus.ABSENT, ObjectStatus.TOMBSTONE}:
        assert (record.size, record.etag, record.digest) == (0, None, None)


_STEPS = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestGrants = GrantMachine.TestCase
TestGrants.settings = _STEPS
TestCache = CacheMachine.TestCase
TestCache.settings = _STEPS
