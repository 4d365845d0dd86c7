"""Hashing of whole files with worker threads: Merkle nodes and the plain SHA-256 in one pass over the bytes.

The pass reads pieces into a ring of reused buffers. One thread reads them in order and feeds the plain SHA-256
while a pool takes the Merkle nodes of each piece; hashlib lets go of the interpreter lock, so both run at once.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol

from entrepot.adapters.files import read_into
from entrepot.core.errors import Conflict, RetryLater
from entrepot.core.merkle import LEAF, NODE_LENGTH, HashedStream, depth, fold, from_nodes, node_of

#: Bytes read at a time, and the level of a node that covers them.
PIECE: Final = 2 << 20
_PIECE_LEVEL: Final = (PIECE // LEAF).bit_length() - 1
_RING: Final = 4

type Progress = Callable[[int, int], None]


class Flag(Protocol):
    """Anything that can be asked whether to stop: a :class:`threading.Event`."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


NEVER: Final = threading.Event()


def hash_file(
    descriptor: int,
    length: int,
    level: int,
    pool: ThreadPoolExecutor | None = None,
    *,
    alias: bool = True,
    progress: Progress | None = None,
    stop: Flag = NEVER,
) -> HashedStream:
    """Hashes the first ``length`` bytes of an open file; blocks. ``level`` is log2(miniblock / 16 KiB).

    ``progress(done, length)`` is called in this thread, in bytes. Memory: four pieces of 2 MiB and 32 bytes for
    each node kept. Raises ``changed`` when the file ends early and ``cancelled`` once ``stop`` is set.
    """
    kept = min(level, _PIECE_LEVEL)
    whole = hashlib.sha256() if alias else None
    ring = [memoryview(bytearray(min(PIECE, max(length, 1)))) for _ in range(_RING if length > PIECE else 1)]
    waiting: list[Future[list[bytes]] | None] = [None] * len(ring)
    top = depth(length)
    low = min(kept, top)
    nodes: list[bytes] = []

    def collect(slot: int) -> None:
        future, waiting[slot] = waiting[slot], None
        if future is not None:
            nodes.extend(future.result())

    offset = turn = 0
    try:
        while offset < length:
            if stop.is_set():
                raise RetryLater("hashing was cancelled", kind="cancelled")
            slot = turn % len(ring)
            collect(slot)
            piece = ring[slot][: min(PIECE, length - offset)]
            if read_into(descriptor, piece, offset) != len(piece):
                raise Conflict("the file became shorter while it was read", kind="changed")
            if pool is None or length <= PIECE:
                nodes.extend(nodes_of(piece, low))
            else:
                waiting[slot] = pool.submit(nodes_of, piece, low)
            if whole is not None:
                whole.update(piece)
            offset += len(piece)
            turn += 1
            if progress is not None:
                progress(offset, length)
        for later in range(turn, turn + len(ring)):
            collect(later % len(ring))
    finally:
        for future in waiting:
            if future is not None and not future.cancel():
                future.exception()  # the buffer must be free before it is dropped
    kept_nodes = gather(nodes, low, min(level, top))
    return HashedStream(from_nodes(length, kept_nodes, level), kept_nodes, None if whole is None else whole.digest())


def nodes_of(piece: memoryview, level: int) -> list[bytes]:
    """The nodes at ``level`` of consecutive runs of 2^level leaves; the last may be short."""
    span = LEAF << level
    return [node_of(piece[at : at + span], level) for at in range(0, len(piece), span)]


def gather(nodes: list[bytes], level: int, top: int) -> bytes:
    """Nodes at level ``top``, back to back, from consecutive ``nodes`` at ``level``."""
    return b"".join(fold(nodes, level, top))


def split_nodes(nodes: bytes) -> list[bytes]:
    """Nodes kept back to back, one by one."""
    return [nodes[at : at + NODE_LENGTH] for at in range(0, len(nodes), NODE_LENGTH)]
