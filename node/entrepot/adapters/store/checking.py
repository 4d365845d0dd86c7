"""Hashing again what is held: verification, and bits for another size of miniblock. All of it blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from entrepot.adapters.files import open_source
from entrepot.adapters.hashing import NEVER, PIECE, PIECE_LEVEL, Flag, Progress, hash_file, hash_spans
from entrepot.adapters.store import catalogue, proofs
from entrepot.adapters.store.bitmap import Bitmap
from entrepot.adapters.store.catalogue import Content, Known
from entrepot.adapters.store.database import Database
from entrepot.adapters.store.proofs import Verified
from entrepot.adapters.store.reading import Reader
from entrepot.adapters.store.records import Verification
from entrepot.core import ranges
from entrepot.core.errors import EntrepotError
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import StreamId
from entrepot.core.merkle import LEAF, NODE_LENGTH, depth, fold, from_nodes
from entrepot.core.ranges import Pair, of_numbers

_WHOLE_LEVEL: Final = 6  # 1 MiB

#: Whether a linked file that is not trusted holds the stream after all; if so it counts again.
type StillHolds = Callable[[Known, Content, Progress | None, Flag], bool]


class Checker:
    """Checks the streams of one store."""

    def __init__(self, database: Database, reader: Reader, pool: ThreadPoolExecutor, still_holds: StillHolds) -> None:
        self._database = database
        self._reader = reader
        self._pool = pool
        self._still_holds = still_holds

    def verify(self, stop: Flag, stream: StreamId, *, progress: Progress | None) -> Verification:
        """See :meth:`Store.verify`."""
        known = self._reader.known(stream)
        checked = whole = 0
        bad: dict[Path, tuple[int, ...]] = {}
        missing: list[Path] = []
        for content in known.contents:
            if self._reader.current(content, known.opening.length) is None:
                if not content.stored and self._still_holds(known, content, progress, stop):
                    checked += -(-known.opening.length // (LEAF << _WHOLE_LEVEL))
                    whole += 1
                else:
                    missing.append(content.path)
                continue
            count, spoiled = self._check(known, content, stop, progress)
            checked += count
            if spoiled:
                bad[content.path] = tuple(spoiled)
            elif content.complete:
                whole += 1
        if bad:
            self._reader.forget(stream)
        return Verification(stream, checked, bad, tuple(missing), whole)

    def _check(self, known: Known, content: Content, stop: Flag, progress: Progress | None) -> tuple[int, list[int]]:
        """How many miniblocks were hashed and which are bad; the catalogue knows afterwards."""
        checked = 0
        levels = self._levels(known, content)
        if not levels and content.complete:
            return self._check_whole(known, content, stop, progress)
        for level in levels:
            expected = self._expected(known, level)
            size = LEAF << level
            count = -(-known.opening.length // size)
            wanted: tuple[Pair, ...] = ((0, count - 1),) if count else ()
            if not content.complete:
                held = Bitmap(count)
                for chunk, row in self._database.run_from_thread(proofs.verified, content.id, level):
                    held.merge(chunk, row)
                wanted = of_numbers(index for index in range(count) if index in held)
            spoiled = [
                index
                for index, node in self._hash(known, content, level, wanted, stop, progress)
                if node != expected[index * NODE_LENGTH : (index + 1) * NODE_LENGTH]
            ]
            checked += ranges.size(wanted)
            if spoiled:
                bad = frozenset(spoiled)
                good = [index for index in ranges.numbers(wanted) if index not in bad]
                self._demote(content, level, good, spoiled)
                return checked, spoiled
        return checked, []

    def _levels(self, known: Known, content: Content) -> list[int]:
        if not content.complete:
            return self._database.run_from_thread(proofs.verified_levels, content.id)
        for level in self._database.run_from_thread(proofs.node_levels, known.id):
            raw = self._expected(known, level)
            if (
                len(raw) == -(-known.opening.length // (LEAF << level)) * NODE_LENGTH
                and from_nodes(known.opening.length, raw, level) == known.opening
            ):
                return [level]
        return [_WHOLE_LEVEL] if known.opening.length <= LEAF << _WHOLE_LEVEL else []

    def _check_whole(
        self, known: Known, content: Content, stop: Flag, progress: Progress | None
    ) -> tuple[int, list[int]]:
        """For a file whose nodes are not kept: it is good or bad as a whole."""
        count = -(-known.opening.length // (LEAF << _WHOLE_LEVEL))
        descriptor = open_source(content.path)
        try:
            hashed = hash_file(
                descriptor,
                known.opening.length,
                _WHOLE_LEVEL,
                self._pool,
                alias=False,
                progress=progress,
                stop=stop,
            )
        finally:
            os.close(descriptor)
        if hashed.opening == known.opening:
            self._database.run_from_thread(proofs.put_nodes, known.id, _WHOLE_LEVEL, hashed.nodes)
            return count, []
        self._demote(content, _WHOLE_LEVEL, [], list(range(count)))
        return count, list(range(count))

    def _expected(self, known: Known, level: int) -> bytes:
        if known.opening.length <= LEAF << level:
            return known.opening.root
        return self._database.run_from_thread(proofs.nodes, known.id, level)

    def _hash(
        self,
        known: Known,
        content: Content,
        level: int,
        wanted: Sequence[Pair],
        stop: Flag,
        progress: Progress | None,
    ) -> Iterator[tuple[int, bytes | None]]:
        """Some miniblocks, in their order, and their nodes as the file has them: None where it cannot be read."""
        length, size = known.opening.length, LEAF << level
        top = min(level, depth(length))
        low = min(top, PIECE_LEVEL)
        spans = [(first * size, min((last + 1) * size, length) - first * size) for first, last in wanted]
        done, total = 0, sum(span for _, span in spans)
        try:
            descriptor = open_source(content.path)
        except EntrepotError:
            yield from ((index, None) for index in ranges.numbers(wanted))
            return
        parts: list[bytes] | None = []
        try:
            for offset, piece, nodes in hash_spans(descriptor, spans, low, self._pool, stop):
                index, end = offset // size, offset + piece
                if size <= PIECE:
                    count = -(-piece // size)
                    row: Sequence[bytes | None] = [None] * count if nodes is None else nodes
                    yield from zip(range(index, index + count), row, strict=True)
                else:
                    parts = None if parts is None or nodes is None else parts + nodes
                    if end % size == 0 or end == length:
                        yield index, None if parts is None else fold(parts, low, top)[0]
                        parts = []
                done += piece
                if progress is not None:
                    progress(done, total)
        finally:
            os.close(descriptor)

    def _demote(self, content: Content, level: int, good: list[int], bad: list[int]) -> None:
        if not content.stored:
            self._database.run_from_thread(catalogue.mark_stale, content.id)
            return
        self._database.run_from_thread(
            proofs.clear_verified,
            content.id,
            level,
            {chunk: bytes(row) for chunk, row in Bitmap.rows(good).items()},
            {chunk: bytes(row) for chunk, row in Bitmap.rows(bad).items()},
        )

    def translate_bits(self, known: Known, content: Content, geometry: Geometry) -> Bitmap:
        """Bits for miniblocks of another size than those the stored file was fetched in: a miniblock whose bytes
        are all covered by verified ones is hashed, and it and its node are recorded."""
        covered = [False] * geometry.miniblock_count
        for level in self._database.run_from_thread(proofs.verified_levels, content.id):
            other = LEAF << level
            bitmap = Bitmap(-(-geometry.length // other))
            for chunk, row in self._database.run_from_thread(proofs.verified, content.id, level):
                bitmap.merge(chunk, row)
            for index in range(geometry.miniblock_count):
                offset, length = geometry.miniblock_span(index)
                covered[index] |= bitmap.has_all(range(offset // other, (offset + length - 1) // other + 1))
        wanted = of_numbers(index for index, whole in enumerate(covered) if whole)
        if not wanted:
            return Bitmap(geometry.miniblock_count)
        found = self._hash(known, content, geometry.lock.level, wanted, NEVER, None)
        nodes = {index: node for index, node in found if node is not None}
        rows = {chunk: bytes(row) for chunk, row in Bitmap.rows(nodes).items()}
        self._database.run_from_thread(
            proofs.record_verified,
            [Verified(known.id, content.id, geometry.lock.level, rows, nodes, b"", {}, {})],
        )
        bitmap = Bitmap(geometry.miniblock_count)
        for index in nodes:
            bitmap.add(index)
        return bitmap
