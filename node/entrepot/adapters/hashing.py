"""Hashing of whole files with worker threads: Merkle nodes and the plain SHA-256 in one pass over the bytes.

The workers read pieces into a ring of reused buffers and take the Merkle nodes of each; the plain SHA-256, which has to
take one byte after the other, follows them in the calling thread. Both let go of the interpreter lock, so a file takes
about as long as its plain SHA-256, or as the disk. Every few seconds the caller may keep how far it is: a later pass
over the same file goes on from there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol

from entrepot.adapters.files import read_into
from entrepot.adapters.sha256 import Sha256, new, resumed
from entrepot.core.errors import Conflict, EntrepotError, RetryLater
from entrepot.core.merkle import LEAF, NODE_LENGTH, HashedStream, depth, fold, from_nodes

#: Bytes read at a time, and the level of a node that covers them.
PIECE: Final = 2 << 20
PIECE_LEVEL: Final = (PIECE // LEAF).bit_length() - 1
_RING: Final = 4
#: Seconds of work that may be lost.
KEEP_EVERY: Final = 2.0

type Progress = Callable[[int, int], None]


class Flag(Protocol):
    """Anything that can be asked whether to stop: a :class:`threading.Event`."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


NEVER: Final = threading.Event()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a pass is: the nodes of the first ``done`` bytes, back to back, and the state of the plain SHA-256 (None
    where it was not wanted or cannot be kept)."""

    done: int
    nodes: bytes
    state: bytes | None


class Keeper(Protocol):
    """Keeps how far a pass over one state of one file is, across processes."""

    def last(self, level: int) -> Checkpoint | None:
        """Where to go on, if nodes at ``level`` were kept for the file as it is now."""

    def keep(self, level: int, done: int, nodes: bytes, state: bytes | None) -> None:
        """``done`` bytes are hashed; ``nodes`` are those since the last call. Raises ``changed`` if the file is not
        what it was."""


def hash_file(
    descriptor: int,
    length: int,
    level: int,
    pool: ThreadPoolExecutor | None = None,
    *,
    alias: bool = True,
    progress: Progress | None = None,
    stop: Flag = NEVER,
    keeper: Keeper | None = None,
) -> HashedStream:
    """Hashes the first ``length`` bytes of an open file; blocks. ``level`` is log2(miniblock / 16 KiB).

    ``progress(done, length)`` is called in this thread, in bytes; the first call tells where it goes on. Memory: four
    pieces of 2 MiB and 32 bytes for each node kept. ``keeper`` keeps how far it is, every two seconds
    and when it is stopped. Raises ``changed`` when the file ends early and ``cancelled`` once ``stop`` is set.
    """
    top = depth(length)
    low = min(level, PIECE_LEVEL, top)
    if pool is None or length <= PIECE:
        return _hash_small(descriptor, length, level, low, alias, progress, stop)
    found = None if keeper is None else keeper.last(low)
    work = _Pass(descriptor, length, low, pool, progress, stop, keeper)
    whole = new() if alias else None
    if found is not None:
        work.nodes += found.nodes
        work.done = work.kept = found.done
        if alias:
            whole = None if found.state is None else resumed(found.state, found.done)
            whole = whole if whole is not None else work.catch_up(found.done)
    if progress is not None:
        progress(work.done, length)
    work.run(whole)
    kept = b"".join(fold(split_nodes(work.nodes), low, min(level, top))) if low < min(level, top) else bytes(work.nodes)
    return HashedStream(from_nodes(length, kept, level), kept, None if whole is None else whole.digest())


def _hash_small(
    descriptor: int, length: int, level: int, low: int, alias: bool, progress: Progress | None, stop: Flag
) -> HashedStream:
    """Without threads, piece by piece."""
    whole = sha256() if alias else None
    buffer = memoryview(bytearray(min(PIECE, length)))
    nodes: list[bytes] = []
    for offset in range(0, length, PIECE):
        if stop.is_set():
            raise _cancelled()
        piece = buffer[: length - offset]
        _read(descriptor, piece, offset)
        nodes += nodes_of(piece, low)
        if whole is not None:
            whole.update(piece)
        if progress is not None:
            progress(offset + len(piece), length)
    kept = gather(nodes, low, min(level, depth(length)))
    return HashedStream(from_nodes(length, kept, level), kept, None if whole is None else whole.digest())


class _Slot:
    """One buffer of the ring, and what a worker does with it."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(PIECE))
        self.piece = self.buffer[:0]
        self.read = threading.Event()
        self.future: Future[bytes] | None = None


class _Pass:
    """One pass over a file, from ``done`` on."""

    def __init__(
        self,
        descriptor: int,
        length: int,
        low: int,
        pool: ThreadPoolExecutor,
        progress: Progress | None,
        stop: Flag,
        keeper: Keeper | None,
    ) -> None:
        self.done = 0  # bytes that are in both hashes
        self.kept = 0  # of them, those that a later pass need not read
        self.nodes = bytearray()
        self._descriptor = descriptor
        self._length = length
        self._low = low
        self._pool = pool
        self._progress = progress
        self._stop = stop
        self._keeper = keeper
        self._kept_nodes = 0
        self._next = 0  # where the next piece begins

    def run(self, whole: Sha256 | None) -> None:
        """Hashes what is left."""
        ring = [_Slot() for _ in range(_RING)]
        self._next = self.done
        self._kept_nodes = len(self.nodes)
        due = time.monotonic() + KEEP_EVERY
        try:
            for slot in ring:
                self._begin(slot)
            turn = 0
            while self.done < self._length:
                slot = ring[turn % _RING]
                if self._stop.is_set():
                    self._keep(whole)
                    raise _cancelled()
                self._take(slot, whole)
                self._begin(slot)
                turn += 1
                if self._progress is not None:
                    self._progress(self.done, self._length)
                if time.monotonic() >= due and self.done < self._length:
                    self._keep(whole)
                    due = time.monotonic() + KEEP_EVERY
        finally:
            for slot in ring:
                if slot.future is not None and not slot.future.cancel():
                    slot.future.exception()  # the buffer must be free before it is dropped

    def catch_up(self, until: int) -> Sha256:
        """The plain SHA-256 of the first ``until`` bytes, whose state was not kept."""
        whole = new()
        buffer = memoryview(bytearray(PIECE))
        for offset in range(0, until, PIECE):
            if self._stop.is_set():
                raise _cancelled()
            piece = buffer[: until - offset]
            _read(self._descriptor, piece, offset)
            whole.update(piece)
        return whole

    def _begin(self, slot: _Slot) -> None:
        """Has a worker read and hash the next piece, if there is one."""
        slot.future = None
        if self._next < self._length:
            offset, size = self._next, min(PIECE, self._length - self._next)
            self._next += size
            slot.piece = slot.buffer[:size]
            slot.read.clear()
            slot.future = self._pool.submit(self._work, slot, offset)

    def _work(self, slot: _Slot, offset: int) -> bytes:
        try:
            _read(self._descriptor, slot.piece, offset)
        finally:
            slot.read.set()
        return b"".join(nodes_of(slot.piece, self._low))

    def _take(self, slot: _Slot, whole: Sha256 | None) -> None:
        """The next piece into both hashes."""
        assert slot.future is not None
        slot.read.wait()
        if slot.future.done():
            slot.future.result()  # it could not be read
        if whole is not None:
            whole.update(slot.piece)
        self.nodes += slot.future.result()
        self.done += len(slot.piece)

    def _keep(self, whole: Sha256 | None) -> None:
        if self._keeper is None or self.done == self.kept:
            return
        state = None if whole is None else whole.state()
        self._keeper.keep(self._low, self.done, bytes(self.nodes[self._kept_nodes :]), state)
        self.kept, self._kept_nodes = self.done, len(self.nodes)


def hash_spans(
    descriptor: int, spans: Iterable[tuple[int, int]], level: int, pool: ThreadPoolExecutor, stop: Flag = NEVER
) -> Iterator[tuple[int, int, list[bytes] | None]]:
    """The nodes at ``level`` (at most :data:`PIECE_LEVEL`) of spans of an open file, each an offset and a length in
    bytes: piece by piece its offset, its length and its nodes, or None for one that cannot be read.

    A span begins where a node does. Memory: four pieces of 2 MiB. Raises ``cancelled`` once ``stop`` is set.
    """
    free = [memoryview(bytearray(PIECE)) for _ in range(_RING)]
    under_way: deque[tuple[int, memoryview, memoryview, Future[list[bytes] | None]]] = deque()

    def next_done() -> tuple[int, int, list[bytes] | None]:
        offset, buffer, piece, future = under_way.popleft()
        found = future.result()
        free.append(buffer)
        return offset, len(piece), found

    try:
        for start, length in spans:
            for offset in range(start, start + length, PIECE):
                if stop.is_set():
                    raise _cancelled()
                if not free:
                    yield next_done()
                buffer = free.pop()
                piece = buffer[: start + length - offset]
                under_way.append((offset, buffer, piece, pool.submit(_nodes_at, descriptor, piece, offset, level)))
        while under_way:
            yield next_done()
    finally:
        for *_, future in under_way:
            if not future.cancel():
                future.exception()  # the buffer must be free before it is dropped


def _nodes_at(descriptor: int, piece: memoryview, offset: int, level: int) -> list[bytes] | None:
    try:
        _read(descriptor, piece, offset)
    except EntrepotError:
        return None
    return nodes_of(piece, level)


def _read(descriptor: int, piece: memoryview, offset: int) -> None:
    if read_into(descriptor, piece, offset) != len(piece):
        raise Conflict("the file became shorter while it was read", kind="changed")


def _cancelled() -> RetryLater:
    return RetryLater("hashing was cancelled", kind="cancelled")


def nodes_of(piece: memoryview, level: int) -> list[bytes]:
    """The nodes at ``level`` of consecutive runs of 2^level leaves; the last may be short."""
    return fold([sha256(piece[at : at + LEAF]).digest() for at in range(0, len(piece), LEAF)], 0, level)


def gather(nodes: list[bytes], level: int, top: int) -> bytes:
    """Nodes at level ``top``, back to back, from consecutive ``nodes`` at ``level``."""
    return b"".join(fold(nodes, level, top))


def split_nodes(nodes: bytes | bytearray) -> list[bytes]:
    """Nodes kept back to back, one by one."""
    return [bytes(nodes[at : at + NODE_LENGTH]) for at in range(0, len(nodes), NODE_LENGTH)]
