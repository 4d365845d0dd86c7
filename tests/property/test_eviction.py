"""Laws of eviction: on small versions of the bench's traces, and between the bench and both ledgers."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from scripts.bench_eviction import SHARES, Ours, bound, gdsf, known, measure, ours, table
from scripts.bench_traces import TRACES, UPLINKS, Trace
from tests.contract.ledger.exchange import LOCK, OPENING
from tests.property.test_ledger import CHANNELS, NODES, STREAMS, CacheMachine

from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.eviction import LATENCY, Candidate, choose
from entrepot_hub.core.ledger import Found, ObjectRef, ObjectStatus, Proposal, WantOrder
from entrepot_hub.core.model_ledger import ModelLedger
from entrepot_hub.core.pins import Pin, PinKind
from entrepot_hub.core.sealing import MasterKey

CANDIDATES = st.lists(
    st.builds(
        lambda size, standing, visits, wanted, holders, used_at: (size, standing, visits, wanted, holders, used_at),
        st.integers(1, 50), st.floats(0, 100), st.integers(0, 7), st.booleans(), st.integers(0, 2),
        st.sampled_from([0.0, 90_000.0]),
    ),
    max_size=30,
)  # fmt: skip


@given(rows=CANDIDATES, need=st.integers(0, 400), limit=st.integers(0, 20), level=st.floats(0, 50))
def test_a_choice_is_enough_and_no_more(
    rows: list[tuple[int, float, int, bool, int, float]], need: int, limit: int, level: float
) -> None:
    """It frees what is needed if that can be had, nothing superfluous, takes a last resort only when nothing else is
    left, and never lowers the level or a standing."""
    candidates = [
        Candidate(key, key, size, standing, visits, wanted, holders=holders, used_at=used_at)
        for key, (size, standing, visits, wanted, holders, used_at) in enumerate(sorted(rows, key=lambda r: r[1]))
    ]
    choice = choose(iter(candidates), need, limit, level, 100_000.0)
    chosen = [candidates[key] for key in choice.chosen]
    assert len(set(choice.chosen)) == len(chosen) <= limit
    freed = sum(candidate.size for candidate in chosen)
    assert freed >= need or len(chosen) in {limit, len(candidates)} or limit == 0
    assert not chosen or freed - chosen[-1].size < need
    assert choice.level >= level

    def last(candidate: Candidate[int]) -> int:
        return 2 if candidate.wanted else int(candidate.holders == 0 and candidate.used_at > 0)

    assert [last(candidate) for candidate in chosen] == sorted(last(candidate) for candidate in chosen)
    worst = max((last(candidate) for candidate in chosen), default=0)
    assert all(c.key in choice.chosen for c in candidates if last(c) < worst)
    for key, standing in choice.raised:
        assert key not in choice.chosen
        assert standing > candidates[key].standing


@pytest.mark.parametrize("name", [name for name in TRACES if name != "recorded"])
def test_small_traces_keep_the_laws(name: str) -> None:
    """No policy is below the bound or above no cache at all; a replay repeats itself."""
    trace = TRACES[name](0.05)
    for share in SHARES:
        capacity = max(int(trace.footprint * share), max(trace.sizes))
        outcome = ours(trace, capacity)
        assert outcome == ours(trace, capacity)
        least = bound(trace, capacity)
        for cost in (outcome.cost, gdsf(trace, capacity).cost, known("LRU")(trace, capacity).cost):
            assert least - 1e-6 <= cost <= trace.cost + 1e-6


def test_the_recorded_trace_is_what_it_was() -> None:
    """Its size and how much of its streams is read: another recording is another table of results."""
    trace = TRACES["recorded"](1.0)
    assert (len(trace.requests), len(set(trace.requests)), len(trace.sizes)) == (40_002, 6345, 12_994)
    assert trace.cost > 0
    assert max(trace.sizes) <= 4 << 20


def test_a_cache_of_everything_uploads_each_object_once() -> None:
    """At the footprint nothing is evicted; without a repeated read the bound is the whole cost."""
    trace = TRACES["one-hit"](0.02)
    outcome = ours(trace, trace.footprint)
    assert outcome.evicted == ()
    assert outcome.cost == pytest.approx(sum(trace.costs[each] for each in set(trace.requests)))
    once = Trace("once", trace.sizes, trace.costs, trace.streams, list(range(len(trace.sizes))))
    assert bound(once, trace.footprint) == pytest.approx(once.cost)


def test_the_table_names_what_is_behind() -> None:
    """A row in which ours is more than 10 % behind is named under the table."""
    trace = TRACES["away"](0.02)
    row = measure("away", 0.25, trace)
    assert "nowhere" in table([row | {"against_best": 1.05}])
    assert "More than 10 % behind: away at 25%" in table([row | {"against_best": 1.2}])
    assert "nobody online could serve" in table([row])


@settings(max_examples=30, deadline=None)
@given(
    reads=st.lists(st.integers(0, 11), min_size=20, max_size=120),
    uplinks=st.lists(st.sampled_from(UPLINKS), min_size=4, max_size=4),
    room=st.integers(2, 6),
)
def test_the_ledger_evicts_as_the_bench_does(reads: list[int], uplinks: list[float], room: int) -> None:
    """The same reads make the model ledger and the bench evict the same objects in the same order."""
    size = 1 << 20
    streams = [number // 3 for number in range(12)]
    costs = [LATENCY + size / uplinks[stream] for stream in streams]
    trace = Trace("drawn", [size] * 12, costs, streams, reads)
    expected = Ours(trace, room * size, scatter=0.0).replay()
    assert ledger_evicts(trace, room * size) == list(expected.evicted)


def ledger_evicts(trace: Trace, quota: int) -> list[int]:
    """What the model ledger evicts when these objects are read one after the other."""
    ledger, now, grants, gone = ModelLedger(), 1000.0, count(1), []
    ledger.add_channel("demo", quota)
    ledger.add_member("demo", "A", "A")
    refs = [
        ObjectRef("demo", LOCK, b"\xff" + bytes(30) + bytes([stream]), number)
        for number, stream in enumerate(trace.streams)
    ]
    for ref in refs:
        ledger.hold("demo", [(ref.stream, OPENING)], "A", now)
    for at, number in enumerate(trace.requests):
        ref, size = refs[number], trace.sizes[number]
        now += 10.0
        if ledger.view(ref).record.status is ObjectStatus.READY:
            reader = f"reader {at}"
            ledger.want(
                WantOrder("demo", LOCK, ref.stream, reader, ((number, number),), 1, now + 1), [number], now, now
            )
            ledger.unwant("demo", ref.stream, reader)
            continue
        need = ledger.usage("demo").charged + size - quota
        for record in ledger.evict_begin("demo", need, now, 1.0, 1000):
            ledger.evict_end(record.ref, False, now)
            gone.append(refs.index(record.ref))
        grant = next(grants).to_bytes(16)
        seconds = trace.costs[number] - LATENCY
        (outcome,) = ledger.grant([Proposal(ref, grant, "A", "s", size, now + 1000)], now)
        assert outcome.refusal is None
        ledger.accept(grant, "A", b"d" * 32, now + 900, now + 900, now)
        now += seconds
        view = ledger.settle(ref, Found(size, "e", None), now, 1.0)
        assert view is not None
        assert view.record.status is ObjectStatus.READY
    return gone


class PinMachine(CacheMachine):
    """Pins, holders and who is online, among all that the cache does."""

    @rule(channel=CHANNELS, stream=STREAMS, kind=st.sampled_from(PinKind), reserve=st.sampled_from([0, 0, 200]))
    def pin(self, channel: str, stream: bytes, kind: PinKind, reserve: int) -> None:
        pin = Pin(stream, kind, "admin", self.now)
        self.both(lambda ledger: ledger.pin(channel, pin, reserve))
        self.both(lambda ledger: ledger.pins(channel))

    @rule(channel=CHANNELS, stream=STREAMS)
    def unpin(self, channel: str, stream: bytes) -> None:
        self.both(lambda ledger: ledger.unpin(channel, stream, "admin", self.now))

    @rule(channel=CHANNELS, stream=STREAMS, node=NODES)
    def hold(self, channel: str, stream: bytes, node: str) -> None:
        self.both(lambda ledger: ledger.hold(channel, [(stream, OPENING)], node, self.now))

    @rule(node=NODES, ago=st.sampled_from([0.0, 400.0]))
    def see(self, node: str, ago: float) -> None:
        at = max(self.now - ago, self.model._seen.get(node, 0.0))
        self.model.see(node, at)
        asyncio.run(Registry(self.database, MasterKey(bytes(32))).seen({node: at}))


TestPins = PinMachine.TestCase
TestPins.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)
