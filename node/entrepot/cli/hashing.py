"""Reading and hashing files without a node: what a stream is called is a function of its bytes."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from entrepot.adapters.files import identify_open, open_source, translated
from entrepot.adapters.hashing import PIECE, hash_file
from entrepot.cli.progress import Meter
from entrepot.core.errors import Conflict
from entrepot.core.merkle import HashedStream, StreamHasher

#: The argument that stands for standard input.
STDIN: Final = Path("-")
#: Only the root is wanted: one node is kept for each 64 MiB.
_LEVEL: Final = 12
_WORKERS: Final = 2


def hash_path(path: Path, meter: Meter, *, alias: bool) -> HashedStream:
    """The opening of the file at ``path`` and, with ``alias``, its SHA-256. Blocks.

    Raises ``no-such-file``, ``unreadable``, and ``changed`` if the file was written to meanwhile.
    """
    if path == STDIN:
        return _hash_stdin(meter, alias=alias)
    descriptor = open_source(path)
    try:
        before = identify_open(descriptor)
        with ThreadPoolExecutor(_WORKERS) as pool:
            found = hash_file(descriptor, before.size, _LEVEL, pool, alias=alias, progress=meter.report)
        if not before.same(identify_open(descriptor)):
            raise Conflict(f"{path} changed while it was read", kind="changed", hint="Try again when it is finished.")
        return found
    finally:
        os.close(descriptor)


def _hash_stdin(meter: Meter, *, alias: bool) -> HashedStream:
    hasher = StreamHasher(_LEVEL, sha256=alias)
    while True:
        with translated("standard input"):
            piece = sys.stdin.buffer.read(PIECE)
        if not piece:
            return hasher.finish()
        hasher.update(piece)
        meter.report(hasher.length)
