"""The store against a model: whatever is done in whatever order, it never says or serves what is not so."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from entrepot.adapters.store import Fetch, Store, StoreSettings
from entrepot.adapters.store.bitmap import CHUNK, Bitmap, join_bits, without_bits
from entrepot.core.errors import Conflict, EntrepotError, NotFound
from entrepot.core.format import encode_header, verify_object
from entrepot.core.geometry import Geometry
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher

LOCK = SchemaLock("demo", miniblock=16384, object=32768)
CONTENTS = [bytes([65 + k]) * length for k, length in enumerate((0, 1, 16384, 50_000, 100_000))]
HASHED = []
for _data in CONTENTS:
    _hasher = StreamHasher(LOCK.level)
    _hasher.update(_data)
    HASHED.append(_hasher.finish())
which = st.integers(0, len(CONTENTS) - 1)


class StoreMachine(RuleBasedStateMachine):
    """Model: per stream the set of verified miniblocks that were recorded, and the linked files as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="entrepot-machine-"))
        self.loop = asyncio.new_event_loop()
        self.fetches: dict[int, Fetch] = {}
        self.recorded: dict[int, set[int]] = {}
        self.complete: set[int] = set()
        self.links: dict[int, set[Path]] = {}
        self.clock = 0
        self.open()

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def open(self) -> None:
        self.store = Store(self.folder / "s", StoreSettings(reserve=0, flush_after=0.001, synced=False))
        self.run(self.store.__aenter__())

    def teardown(self) -> None:
        self.run(self.store.aclose())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def age(self, path: Path) -> None:
        self.clock += 1_000_000_000
        os.utime(path, ns=(self.clock, self.clock))

    def held(self, k: int) -> bool:
        return k in self.complete or bool(self.links.get(k))

    @rule(k=which, name=st.integers(0, 3))
    def add(self, k: int, name: int) -> None:
        path = self.folder / f"file{name}"
        for links in self.links.values():
            links.discard(path)
        path.write_bytes(CONTENTS[k])
        self.age(path)
        added = self.run(self.store.add(path, channel="c", lock=LOCK))
        assert added.opening == HASHED[k].opening
        self.links.setdefault(k, set()).add(path)

    @rule(name=st.integers(0, 3))
    def modify(self, name: int) -> None:
        path = self.folder / f"file{name}"
        if path.exists() and path.stat().st_size:
            with path.open("r+b") as writer:
                writer.write(b"#")
            self.age(path)
            for links in self.links.values():
                links.discard(path)

    @rule(name=st.integers(0, 3))
    def delete(self, name: int) -> None:
        path = self.folder / f"file{name}"
        path.unlink(missing_ok=True)
        for links in self.links.values():
            links.discard(path)

    @rule(k=which)
    def begin(self, k: int) -> None:
        if k not in self.fetches:
            was_held = self.held(k)
            opening = HASHED[k].opening
            fetch = self.run(self.store.begin(opening.stream_id(), opening, LOCK, "c"))
            self.fetches[k] = fetch
            geometry = Geometry(opening.length, LOCK)
            if was_held:
                assert fetch.complete
            else:
                here = {
                    at
                    for number in range(geometry.object_count)
                    for index, at in enumerate(geometry.miniblocks_of(number))
                    if index not in fetch.missing_miniblocks(number)
                }
                assert here >= self.recorded.get(k, set())
                if not opening.length:
                    self.complete.add(k)

    @precondition(lambda self: self.fetches)
    @rule(data=st.data())
    def write(self, data) -> None:
        k = data.draw(st.sampled_from(sorted(self.fetches)))
        fetch, geometry = self.fetches[k], Geometry(len(CONTENTS[k]), LOCK)
        if not geometry.miniblock_count:
            return
        at = data.draw(st.integers(0, geometry.miniblock_count - 1))
        number = geometry.object_of_miniblock(at)
        raw = encode_header(fetch.stream, fetch.opening, LOCK, number, HASHED[k].nodes)
        offset, length = geometry.miniblock_span(at)
        header = fetch.accept_header(number, raw)
        index = at - geometry.miniblocks_of(number).start
        wrote = fetch.write_verified(header, index, CONTENTS[k][offset : offset + length])
        if data.draw(st.booleans()):
            self.run(asyncio.to_thread(fetch.drain))
            if wrote:
                self.recorded.setdefault(k, set()).add(at)

    @precondition(lambda self: self.fetches)
    @rule(data=st.data())
    def finish(self, data) -> None:
        k = data.draw(st.sampled_from(sorted(self.fetches)))
        fetch = self.fetches.pop(k)
        if self.run(fetch.finish()) and fetch.content.stored:
            self.complete.add(k)
        self.run(fetch.aclose())

    @rule(kill=st.booleans())
    def reopen(self, kill: bool) -> None:
        for fetch in self.fetches.values():
            if kill:
                fetch.release()
            else:
                self.run(fetch.aclose())
                if fetch.complete and fetch.content.stored:
                    self.complete.add(self.key(fetch))
        self.fetches.clear()
        self.run(self.store.aclose())
        self.open()

    def key(self, fetch: Fetch) -> int:
        return next(k for k, found in enumerate(HASHED) if found.opening == fetch.opening)

    @rule(k=which, name=st.integers(0, 3), force=st.booleans())
    def export(self, k: int, name: int, force: bool) -> None:
        path = self.folder / f"file{name}"
        if k in self.fetches:
            return
        stream, there = HASHED[k].opening.stream_id(), path.exists()
        refused: EntrepotError | None = None
        try:
            self.run(self.store.export(stream, path, force))
        except (Conflict, NotFound) as error:
            refused = error
        if refused is not None:
            assert refused.kind in ("exists", "changed", "no-such-stream")
            assert (refused.kind == "exists" and there and not force) or not self.held(k)
            return
        assert self.held(k)
        assert path.read_bytes() == CONTENTS[k]
        for links in self.links.values():
            links.discard(path)
        self.links.setdefault(k, set()).add(path)
        if not self.run(self.store.entry(stream)).stored:
            self.complete.discard(k)
            self.recorded.pop(k, None)

    @rule(k=which)
    def remove(self, k: int) -> None:
        if k in self.fetches:
            return
        try:
            self.run(self.store.remove(HASHED[k].opening.stream_id(), force=True))
        except NotFound:
            assert not self.held(k)
        self.complete.discard(k)
        self.recorded.pop(k, None)
        self.links.pop(k, None)

    @rule(k=which)
    def verify(self, k: int) -> None:
        try:
            assert not self.run(self.store.verify(HASHED[k].opening.stream_id())).bad
        except NotFound:
            assert not self.held(k)

    @rule(k=which)
    def serve(self, k: int) -> None:
        stream, geometry = HASHED[k].opening.stream_id(), Geometry(len(CONTENTS[k]), LOCK)
        for number in range(geometry.object_count):
            try:
                source = self.run(self.store.object_source(stream, LOCK, number))
            except EntrepotError:
                assert not self.held(k)
                continue
            with source.path.open("rb") as reader:
                reader.seek(source.offset)
                verify_object(source.header + reader.read(source.length), stream=stream, lock=LOCK, number=number)

    @invariant()
    def what_is_held_is_right(self) -> None:
        for k, found in enumerate(HASHED):
            stream = found.opening.stream_id()
            holding = self.run(self.store.holds(stream, "c", LOCK))
            if self.held(k):
                assert holding is not None
                assert holding.complete
            if holding is not None and holding.complete:
                assert self.run(self.store.read(stream, 0, len(CONTENTS[k]))) == CONTENTS[k]


@pytest.mark.blocking
def test_store_agrees_with_the_model() -> None:
    """Adding, fetching, dying, exporting, editing, removing in any order: the store holds and serves what is so."""
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))


@given(st.sets(st.integers(0, 3000)), st.sets(st.integers(0, 3000)))
def test_bits_go_through_rows(one: set[int], two: set[int]) -> None:
    """Bits written as rows, joined and taken away chunk by chunk are the union and the difference of the sets."""
    first, second = Bitmap.rows(one), Bitmap.rows(two)
    joined, rest = Bitmap(3001), Bitmap(3001)
    for chunk in {*first, *second}:
        a, b = (bytes(rows.get(chunk, bytes(CHUNK // 8))) for rows in (first, second))
        joined.merge(chunk, join_bits(a, b))
        rest.merge(chunk, without_bits(a, b))
    assert set(range(3001)) - set(joined.missing()) == one | two
    assert set(range(3001)) - set(rest.missing()) == one - two
    assert (joined.set_count, rest.set_count) == (len(one | two), len(one - two))
    assert joined.full == (len(one | two) == 3001)
