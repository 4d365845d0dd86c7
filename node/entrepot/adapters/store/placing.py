"""Small streams that go from the network straight to where the user wants them: held in memory while they come, then
placed many at once, with two transactions for all of them.

For a stream of one miniblock of which nothing is here, a sparse file in the store, its bits and its move to the output
cost far more than the bytes do. A kill loses what was in memory and not yet placed: one miniblock for each get, as
with larger streams. What makes a kill in the middle of placing harmless is the order of an export: the link is
announced before the file has its name, and counts only once it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from entrepot.adapters.files import (
    FileIdentity,
    identify,
    identify_open,
    move,
    open_writable,
    real_path,
    remove_file,
    require_space,
    sync_data,
    sync_folder,
    translated,
    write_at,
)
from entrepot.adapters.outputs import temporary_beside, writing_output
from entrepot.adapters.store import catalogue
from entrepot.adapters.store.checkpoints import now_ms
from entrepot.adapters.store.database import Database
from entrepot.core.errors import Conflict, EntrepotError, InvalidInput, NotFound
from entrepot.core.format import Header, decode_header, verify_miniblock
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.ranges import Pair

#: The longest stream, in bytes, that is held in memory while it comes.
SMALL: Final = 256 << 10
#: Streams that are placed together, at most.
_TOGETHER: Final = 256


def is_small(opening: Opening, lock: SchemaLock) -> bool:
    """Whether the stream is one that :class:`SmallFetch` takes: not empty, of one miniblock, and short."""
    return 0 < opening.length <= min(SMALL, lock.miniblock)


class SmallFetch:
    """One small stream being fetched under one lock: as :class:`Fetch` to whoever fetches, but in memory, and nothing
    of it is in the store before :meth:`Store.place`. Used by one thread at a time."""

    def __init__(self, stream: StreamId, opening: Opening, lock: SchemaLock) -> None:
        self.stream = stream
        self.opening = opening
        self.lock = lock
        self.geometry = Geometry(opening.length, lock)
        #: The verified bytes, once they are here.
        self.data: bytes | None = None
        #: The header that came with them, as it was.
        self.raw_header = b""
        self._origin: tuple[Header, str] | None = None

    @property
    def complete(self) -> bool:
        """Whether the stream is here."""
        return self.data is not None

    @property
    def verified_bytes(self) -> int:
        """Bytes of the stream that are verified."""
        return 0 if self.data is None else len(self.data)

    def missing_objects(self) -> tuple[Pair, ...]:
        """As :meth:`Fetch.missing_objects`."""
        return () if self.complete else ((0, 0),)

    def missing_miniblocks(self, number: int) -> tuple[int, ...]:
        """As :meth:`Fetch.missing_miniblocks`."""
        return () if self.complete else tuple(range(len(self.geometry.miniblocks_of(number))))

    def header(self, number: int) -> Header | None:
        """None: a header comes with its miniblock."""
        return None

    def origin(self, number: int) -> tuple[Header, str] | None:
        """As :meth:`Fetch.origin`."""
        return self._origin

    def accept_header(self, number: int, raw: bytes, etag: str | None = None) -> Header:
        """As :meth:`Fetch.accept_header`. Raises ``corrupt-object``."""
        header = decode_header(raw, stream=self.stream, lock=self.lock, number=number, opening=self.opening)
        self.raw_header = bytes(raw)
        self._origin = None if etag is None else (header, etag)
        return header

    def write_verified(self, header: Header, index: int, data: memoryview | bytes) -> bool:
        """Verifies the miniblock and keeps a copy; False if it was here. Raises ``corrupt-object``."""
        if header.stream != self.stream or header.geometry.lock != self.lock:
            raise InvalidInput("the header belongs to another stream or lock")
        if self.complete:
            return False
        verify_miniblock(header, index, data)
        self.data = bytes(data)
        return True

    async def finish(self) -> bool:
        """Returns whether the stream is here. Records nothing."""
        return self.complete

    async def aclose(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A small stream that is to be the file ``output``. ``data`` was verified."""

    fetch: SmallFetch
    data: bytes
    scope: str
    name: str
    output: Path
    force: bool


@dataclass(slots=True)
class _Placed:
    """One of them on its way."""

    wanted: Placement
    target: Path
    temporary: Path
    identity: FileIdentity
    link: int = 0


class Placer:
    """Places small streams for one store. ``reserve``: bytes to leave free on any disk it writes to."""

    def __init__(self, database: Database, *, reserve: int, synced: bool) -> None:
        self._database = database
        self._reserve = reserve
        self._synced = synced

    def place(self, wanted: Sequence[Placement]) -> list[EntrepotError | None]:
        """Makes files of them: for each None, or why it is none, with nothing left behind then. Blocks."""
        results: list[EntrepotError | None] = [None] * len(wanted)
        folders: dict[Path, Path] = {}
        placed: dict[int, _Placed] = {}
        needed = sum(len(one.data) for one in wanted)
        for at, one in enumerate(wanted):
            try:
                placed[at] = self._write(one, folders, needed)
            except EntrepotError as error:
                results[at] = error
        try:
            self._database.run_from_thread(_announce, list(placed.values()), now_ms())
        except EntrepotError as error:
            for at, one_placed in placed.items():
                results[at] = error
                _discard(one_placed.temporary)
            return results
        dropped: list[_Placed] = []
        for at, one_placed in list(placed.items()):
            try:
                move(one_placed.temporary, one_placed.target, replace=one_placed.wanted.force, synced=False)
            except EntrepotError as error:
                results[at] = error
                _discard(one_placed.temporary)
                dropped.append(placed.pop(at))
        self._settle(placed, dropped, results)
        return results

    def _write(self, one: Placement, folders: dict[Path, Path], needed: int) -> _Placed:
        output = one.output
        if not output.name or output.name in (".", ".."):
            raise InvalidInput(f"{output} is not the name of a file", path=str(output))
        folder = folders.get(output.parent)
        if folder is None:
            folder = real_path(output.parent)
            with translated(folder):
                if not folder.is_dir():
                    raise NotFound(f"there is no folder {folder}", kind="no-such-file", path=str(folder))
            with writing_output(folder, self._reserve):
                require_space(folder, needed, self._reserve)
            folders[output.parent] = folder
        target = folder / output.name
        with translated(target):
            if not one.force and os.path.lexists(target):
                raise Conflict(
                    f"{target} is already there",
                    kind="exists",
                    hint="Choose another name, or let it be replaced (--force).",
                    path=str(target),
                )
        with writing_output(folder, self._reserve):
            temporary, identity = self._written(one.data, target)
        return _Placed(one, target, temporary, identity)

    def _written(self, data: bytes, target: Path) -> tuple[Path, FileIdentity]:
        temporary = temporary_beside(target)
        descriptor = open_writable(temporary, create=True)
        try:
            write_at(descriptor, data, 0, temporary)
            if self._synced:
                sync_data(descriptor, temporary)
            return temporary, identify_open(descriptor)
        except BaseException:
            _discard(temporary)
            raise
        finally:
            os.close(descriptor)

    def _settle(self, placed: dict[int, _Placed], dropped: list[_Placed], results: list[EntrepotError | None]) -> None:
        """Lets the links of files that have their names count, and forgets those of the others. One that somebody
        changed at once stays stale: the output is theirs now."""
        settled: list[tuple[int, FileIdentity]] = []
        try:
            for folder in {one.target.parent for one in placed.values()}:
                sync_folder(folder)
            for one in placed.values():
                before, after = one.identity, identify(one.target)
                same = (before.size, before.mtime_ns, before.inode)
                if after is not None and (after.size, after.mtime_ns, after.inode) == same:
                    settled.append((one.link, after))
            self._database.run_from_thread(_settled, settled, dropped)
        except EntrepotError as error:  # the files are there: what does not count yet is hashed when it is asked for
            for at in placed:
                results[at] = error


class Placements:
    """Hands what is to be placed to ``place``, which runs in a thread: all that waits meanwhile goes together next. In
    the event loop's thread."""

    def __init__(self, place: Callable[[Sequence[Placement]], Awaitable[list[EntrepotError | None]]]) -> None:
        self._place = place
        self._waiting: deque[tuple[Placement, asyncio.Future[EntrepotError | None]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def put(self, wanted: Placement) -> EntrepotError | None:
        """Returns once the file is there, or why it is not."""
        done: asyncio.Future[EntrepotError | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await done

    async def aclose(self) -> None:
        """Returns when nothing waits any more. May be called again."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._waiting:
            batch = self._next()
            try:
                results = await self._place([wanted for wanted, _ in batch])
            except Exception as error:  # noqa: BLE001  # raised to those who wait
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():
                    done.set_result(result)

    def _next(self) -> list[tuple[Placement, asyncio.Future[EntrepotError | None]]]:
        """Those at the front, of which no two are to be the same file."""
        batch: list[tuple[Placement, asyncio.Future[EntrepotError | None]]] = []
        outputs: set[Path] = set()
        while self._waiting and len(batch) < _TOGETHER and self._waiting[0][0].output not in outputs:
            one = self._waiting.popleft()
            outputs.add(one[0].output)
            if not one[1].done():  # nobody waits any more
                batch.append(one)
        return batch


def _announce(db: sqlite3.Connection, placed: Sequence[_Placed], now: int) -> None:
    for one in placed:
        wanted = one.wanted
        fetch = wanted.fetch
        catalogue.remember(db, fetch.stream, fetch.opening, wanted.scope, wanted.name, None, now)
        one.link = catalogue.announce_move(db, fetch.stream, one.target)


def _settled(db: sqlite3.Connection, settled: Sequence[tuple[int, FileIdentity]], dropped: Sequence[_Placed]) -> None:
    for link, identity in settled:
        catalogue.settle_move(db, link, identity, None)
    for one in dropped:
        catalogue.drop_content(db, one.link)
        catalogue.forget_empty(db, one.wanted.fetch.stream)


def _discard(path: Path) -> None:
    with contextlib.suppress(EntrepotError):
        remove_file(path)
