"""The store: what a node holds, linked where it lies or kept in a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Concatenate, Final, Self

from entrepot.adapters.files import (
    make_folder,
    occupied,
    remove_file,
    translated,
)
from entrepot.adapters.hashing import Progress
from entrepot.adapters.store import catalogue
from entrepot.adapters.store.adding import Adder
from entrepot.adapters.store.batches import BatchAdder
from entrepot.adapters.store.checking import Checker
from entrepot.adapters.store.database import Database
from entrepot.adapters.store.export import Exporter
from entrepot.adapters.store.fetch import Fetch, Recorder
from entrepot.adapters.store.intake import Intake
from entrepot.adapters.store.placing import Placement, Placements, Placer, SmallFetch
from entrepot.adapters.store.reading import Reader
from entrepot.adapters.store.records import (
    Added,
    Entry,
    Holding,
    How,
    ObjectSource,
    Size,
    StoreSettings,
    Verification,
)
from entrepot.adapters.store.schema import MIGRATIONS
from entrepot.core.errors import Conflict, Corrupt, EntrepotError, Internal, InvalidInput, NotFound, RetryLater
from entrepot.core.identifiers import Opening, StreamId, StreamKind
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import DigestKind
from entrepot.core.ranges import holds

CATALOGUE: Final = "catalogue.sqlite3"
CONTENT: Final = "content"
#: Seconds after which a file in the content folder that the catalogue does not know is left over from a kill.
ABANDONED_AFTER: Final = 24 * 3600
_TOUCH_EVERY: Final = 60.0

#: Tells whether somebody else is known to hold a stream.
type HeldElsewhere = Callable[[StreamId], Awaitable[bool]]


class Store:
    """An async context manager; several processes may have the same folder open.

    A *scope* is an opaque text, the hub and channel that a stream was added to or fetched from. Methods raise
    errors of :mod:`entrepot.core.errors`; next to what each one names, any of them may raise ``busy`` (another
    process keeps the catalogue), ``corrupt-store``, ``unreadable`` and ``disk-full``.
    """

    def __init__(self, folder: Path, settings: StoreSettings | None = None) -> None:
        self.folder = folder
        self.settings = settings = settings if settings is not None else StoreSettings()
        if settings.journal not in ("wal", "delete"):
            raise InvalidInput('the journal is "wal" or "delete"', kind="invalid-setting", value=settings.journal)
        self._content = folder / CONTENT
        self._database = Database(
            folder / CATALOGUE,
            MIGRATIONS,
            journal="wal" if settings.journal == "wal" else "delete",
            busy_timeout=settings.busy_timeout,
            synced=settings.synced,
        )
        self._files: ThreadPoolExecutor | None = None
        self._hashers: ThreadPoolExecutor | None = None
        self._parts: _Parts | None = None
        self._closing = threading.Event()
        self._guard = threading.Lock()
        self._touched: dict[StreamId, float] = {}

    # ---- life

    async def __aenter__(self) -> Self:
        """Opens the store, making it if it is not there."""
        await self._database.open()
        try:
            self._files = ThreadPoolExecutor(self.settings.workers, "store-files")
            self._hashers = ThreadPoolExecutor(self.settings.hashers, "store-hash")
            self._parts = _Parts(self, self._hashers)
            await self._run(self._prepare)
            self._parts.recorder.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Records what fetches wrote, stops hashing, closes everything. May be called again."""
        if self._parts is not None:
            await self._parts.placements.aclose()
        self._closing.set()
        parts, self._parts = self._parts, None
        files, self._files = self._files, None
        hashers, self._hashers = self._hashers, None
        if parts is not None:
            await asyncio.to_thread(parts.recorder.close)
            await asyncio.to_thread(parts.intake.release)
        for pool in (files, hashers):
            if pool is not None:
                await asyncio.to_thread(pool.shutdown)
        await self._database.aclose()

    def _prepare(self) -> None:
        make_folder(self._content)
        known = {str(path) for path in self._database.run_from_thread(catalogue.stored_paths)}
        oldest = time.time() - ABANDONED_AFTER
        with translated(self._content):
            for shelf in os.scandir(self._content):
                if not shelf.is_dir(follow_symlinks=False):
                    continue
                for found in os.scandir(shelf.path):
                    name = f"{shelf.name}/{found.name}"
                    if name not in known and found.stat(follow_symlinks=False).st_mtime < oldest:
                        remove_file(Path(found.path))

    @property
    def _open(self) -> _Parts:
        if self._parts is None:
            raise Internal("the store is not open")
        return self._parts

    async def _run[**P, R](self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._files is None:
            raise Internal("the store is not open")
        return await asyncio.get_running_loop().run_in_executor(self._files, lambda: work(*args, **kwargs))

    async def _run_again[**P, R](self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Once more where a stored file went between look and use: another process exported or removed it."""
        try:
            return await self._run(work, *args, **kwargs)
        except NotFound as error:
            if error.kind != "no-such-file":
                raise
            return await self._run(work, *args, **kwargs)

    async def _run_stoppable[**P, R](
        self, work: Callable[Concatenate[_Stop, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As :meth:`_run` for long work, which ends soon after the caller is cancelled or the store closes."""
        stop = _Stop(self._closing)
        try:
            return await self._run(work, stop, *args, **kwargs)
        finally:
            stop.set()

    def _touch(self, stream: StreamId) -> None:
        now = time.monotonic()
        with self._guard:
            if now - self._touched.get(stream, -_TOUCH_EVERY) < _TOUCH_EVERY:
                return
            if len(self._touched) > 10_000:
                self._touched.clear()
            self._touched[stream] = now
        self._database.run_from_thread(catalogue.touch, stream, _now())

    # ---- adding

    async def add(
        self,
        path: Path,
        *,
        channel: str,
        lock: SchemaLock,
        copy: bool = False,
        name: str | None = None,
        progress: Progress | None = None,
    ) -> Added:
        """Makes the file at ``path`` a stream of this store, in the scope ``channel``.

        The file is hashed where it lies and linked, symbolic links followed; with ``copy`` the store keeps a copy
        (sharing blocks where the file system can) that later changes of the file do not touch. A file that has not
        changed since it was added is not read. ``progress(done, total)`` is called in a worker thread, in bytes.
        Raises ``no-such-file``, ``unreadable``, ``invalid-input`` for anything but a file, ``changed`` if the file
        changes while it is hashed.
        """
        return await self._run_stoppable(
            self._open.adder.add,
            path,
            scope=channel,
            lock=lock,
            copy=copy,
            name=name,
            progress=progress,
        )

    async def add_batch(
        self,
        paths: Sequence[Path],
        *,
        channel: str,
        lock: SchemaLock,
        progress: Callable[[int, str], None] | None = None,
    ) -> list[Added | EntrepotError]:
        """As :meth:`add` for many small files (up to 2 MiB is worth it, 1,024 at once), in a few transactions for all:
        what each came to, in their order. ``progress(count, name)`` is called in a worker thread as the file after
        ``count`` is begun. Raises only what concerns all of them.
        """
        return await self._run_stoppable(self._open.batch_adder.add, paths, scope=channel, lock=lock, progress=progress)

    async def add_bytes(
        self, data: bytes, *, channel: str, lock: SchemaLock, name: str = "", kind: StreamKind = StreamKind.FILE
    ) -> Added:
        """Keeps ``data``, for example a tree's listing, as a stream in the store's own folder."""
        return await self._run(self._open.adder.add_bytes, data, scope=channel, lock=lock, name=name, kind=kind)

    async def refresh(self, stream: StreamId, *, progress: Progress | None = None) -> bool:
        """Hashes the stream's stale linked files again. One that holds the stream after all (its times changed,
        its bytes did not) counts again, another one is forgotten. Returns whether the stream is held now."""
        return await self._run_stoppable(self._open.adder.refresh, stream, progress=progress)

    async def lies_at(self, stream: StreamId, path: Path, *, progress: Progress | None = None) -> bool:
        """Whether the file at ``path`` is this stream: one that the store links to and that has not changed since, or
        one of the stream's length that is hashed now. False for a stream that the store does not know."""
        return await self._run_stoppable(self._open.adder.lies_at, stream, path, progress=progress)

    # ---- asking

    async def find_alias(self, sha256: bytes) -> StreamId | None:
        """The stream whose whole-file SHA-256 was found to be this."""
        return await self._database.run(catalogue.by_alias, sha256)

    async def alias(self, stream: StreamId) -> bytes:
        """The SHA-256 (32 bytes) of a stream that is held completely, computed if it is not known."""

        def work(stop: _Stop) -> bytes:
            reader = self._open.reader
            return reader.alias(reader.known(stream), stop)

        return await self._run_stoppable(work)

    async def scopes(self, stream: StreamId) -> set[str]:
        """The scopes the stream was added to or fetched from; empty if it is not known."""
        return set(await self._database.run(catalogue.scopes, stream))

    async def known(self, streams: Sequence[StreamId]) -> set[StreamId]:
        """Those of many streams of which :meth:`scopes` tells any."""
        return await self._database.run(catalogue.those_known, streams)

    async def join_scope(self, stream: StreamId, scope: str) -> None:
        """Puts a stream that is held into one more scope. Raises ``no-such-stream``."""
        await self._database.run(catalogue.join_scope, stream, scope)
        if scope not in await self.scopes(stream):
            raise NotFound(f"the store has nothing of {stream}", kind="no-such-stream", stream=str(stream))

    async def holds(self, stream: StreamId, scope: str, lock: SchemaLock) -> Holding | None:
        """What can be served of the stream in ``scope``: None if it is not in the scope or nothing is left of it.
        Looks at the file's size and times."""

        found = await self.held([stream], scope, lock)
        return found[0] if found else None

    async def held(self, streams: Sequence[StreamId], scope: str, lock: SchemaLock) -> list[Holding]:
        """As :meth:`holds` for many streams, with one look into the catalogue: what can be served, in their order."""

        def work() -> list[Holding]:
            reader = self._open.reader
            found = []
            for known in self._database.run_from_thread(catalogue.known_in, streams, scope):
                holding = reader.holding(known, lock)
                if holding is not None:
                    found.append(holding)
            return found

        return await self._run(work)

    async def present(self, stream: StreamId) -> int:
        """Bytes of the stream that are here and verified; 0 for one that is not known. Looks at the files' sizes and
        times: a linked file that changed is no longer counted, here and in :meth:`entry`."""

        def work() -> int:
            known = self._database.run_from_thread(catalogue.known, stream)
            reader = self._open.reader
            return 0 if known is None else reader.present(reader.known(stream))

        return await self._run(work)

    async def altered(self, after: int = 0, limit: int = 1000) -> tuple[list[str], int | None]:
        """The streams, by name, of which a file changed, is gone or cannot be looked at now, by a look at each of a
        page of files; and where the next page begins, None after the last. Changes nothing."""

        def work() -> tuple[list[str], int | None]:
            rows = self._database.run_from_thread(catalogue.files, after, limit)
            reader = self._open.reader
            found = [
                name
                for name, length, content in rows
                if content.stale or not reader.unaltered(reader.located(content), length)
            ]
            return found, rows[-1][2].id if len(rows) == limit else None

        return await self._run(work)

    async def streams(self, scope: str | None = None, after: StreamId | None = None, limit: int = 1000) -> list[Entry]:
        """A page of the catalogue in the order of ids: those past ``after``, of one scope or of all."""
        found = await self._database.run(
            catalogue.entries, scope, b"" if after is None else after.raw, max(1, min(limit, 10_000))
        )
        return [self._absolute(entry) for entry in found]

    async def entry(self, stream: StreamId) -> Entry:
        """One stream's entry. Raises ``no-such-stream``."""
        found = await self._database.run(catalogue.entry, stream)
        if found is None:
            raise NotFound(f"the store has nothing of {stream}", kind="no-such-stream", stream=str(stream))
        return self._absolute(found)

    def _absolute(self, entry: Entry) -> Entry:
        return replace(entry, links=tuple(self._content / path for path in entry.links))

    async def size(self) -> Size:
        """What the store takes on the disk, and what it links to."""

        def work() -> Size:
            stored = sum(
                occupied(self._content / path) for path in self._database.run_from_thread(catalogue.stored_paths)
            )
            streams, linked = self._database.run_from_thread(catalogue.totals)
            return Size(stored, linked, streams)

        return await self._run(work)

    # ---- reading and serving

    async def read(self, stream: StreamId, offset: int, length: int) -> bytes:
        """``length`` verified bytes from ``offset``. Raises ``no-such-stream`` if they are not all here, ``changed``
        if they lie in a linked file that is no longer what it was."""
        return await self._run_again(self._open.reader.read, stream, offset, length)

    async def object_source(
        self, stream: StreamId, lock: SchemaLock, number: int, kind: DigestKind = "sha256"
    ) -> ObjectSource:
        """Object ``number`` under ``lock``, ready to be sent; its digest of this kind is computed once and kept.

        Raises ``changed`` if the linked file is no longer what it was (it is then marked stale: :meth:`refresh`),
        ``no-such-stream``.
        """

        def work() -> ObjectSource:
            self._touch(stream)
            return self._open.reader.object_source(stream, lock, number, kind)

        return await self._run_again(work)

    async def served(
        self, stream: StreamId, scope: str, lock: SchemaLock, number: int, kind: DigestKind
    ) -> ObjectSource | None:
        """As :meth:`object_source`, for an object that :meth:`holds` tells of in this scope; None for any other."""

        def work() -> ObjectSource | None:
            reader = self._open.reader
            known = self._database.run_from_thread(catalogue.known_in, [stream], scope)
            holding = reader.holding(known[0], lock) if known else None
            if holding is None or not holds(holding.objects, number):
                return None
            self._touch(stream)
            return reader.object_source(stream, lock, number, kind)

        return await self._run_again(work)

    async def confirm(self, source: ObjectSource) -> None:
        """Raises ``changed`` unless the file is still what it was when ``source`` was made: ask after sending."""
        await self._run(self.confirm_from_thread, source)

    def confirm_from_thread(self, source: ObjectSource) -> None:
        """As :meth:`confirm`, for worker threads and in them."""
        self._open.reader.confirm(source)

    # ---- fetching

    async def begin(self, stream: StreamId, opening: Opening, lock: SchemaLock, scope: str, name: str = "") -> Fetch:
        """Starts to fetch a stream, or goes on where any process left off. Close the result.

        For a stream that is held already the fetch is complete from the start. Raises ``corrupt`` if ``opening`` is
        not the stream's, ``disk-full`` if what is missing does not fit.
        """
        if not opening.proves(stream):
            raise Corrupt("the opening is not this stream's", stream=str(stream))
        fetch = await self._run(self._open.intake.begin, stream, opening, lock, scope, name, self._finish)
        if opening.length == 0:
            await self._finish(fetch)
        return fetch

    async def _finish(self, fetch: Fetch) -> None:
        await self._run(self._open.intake.finish, fetch)

    # ---- giving out, checking, removing

    async def export(self, stream: StreamId, output: Path, force: bool = False) -> How:
        """Makes the stream a file at ``output``, with one copy of the bytes on the disk, in one step: ``output`` is
        never seen half-written. Afterwards the store links to it like to a file that was added.

        Raises ``exists`` without ``force``, also for a file that appears meanwhile; ``no-such-stream`` if the
        stream is not complete, ``no-such-file`` if there is no folder for the output, ``disk-full``.
        """
        for last in (False, True):
            try:
                return await self._run_stoppable(self._open.exporter.export, stream, output, force)
            except NotFound as error:  # another process exported or removed it between look and use
                if last or error.kind != "no-such-file":
                    raise
        raise Internal("not reached")

    async def place(self, fetch: SmallFetch, scope: str, name: str, output: Path, force: bool = False) -> How:
        """Makes a small stream that came into memory the file ``output``, as :meth:`export` would, and keeps it as a
        link; several at once cost little more than one. Where that fails the store keeps the bytes.

        Raises as :meth:`export` and :meth:`begin`.
        """
        data = fetch.data
        if data is None:
            raise InvalidInput("the stream is not here yet", stream=str(fetch.stream))
        wanted = Placement(fetch, data, scope, name, output, force)
        refused = await self._open.placements.put(wanted)
        if refused is None:
            return How.MOVED
        try:
            async with await self.begin(fetch.stream, fetch.opening, fetch.lock, scope, name) as kept:
                if not kept.complete:
                    await self._run(lambda: kept.write_verified(kept.accept_header(0, fetch.raw_header), 0, data))
                await kept.finish()
        except RetryLater as error:
            if "output" in refused.data and error.kind == "disk-full":
                raise refused from None  # no room here either: where it should have gone is what the caller knows of
            raise
        return await self.export(fetch.stream, output, force)

    async def verify(self, stream: StreamId, *, progress: Progress | None = None) -> Verification:
        """Hashes all files of the stream again. Bad miniblocks of a stored file count as missing from now on, a
        linked file with any is stale. A linked file that changed or is gone is ``missing`` each time, unless hashing
        finds the stream in it after all: then it counts again. ``progress`` as in :meth:`add`.

        Raises ``no-such-stream``.
        """
        return await self._run_stoppable(self._open.checker.verify, stream, progress=progress)

    async def pin(self, stream: StreamId, pinned: bool = True) -> None:
        """Keeps the stream from being removed or pruned. Raises ``no-such-stream``."""
        if not await self._database.run(catalogue.set_pinned, stream, pinned):
            raise NotFound(f"the store has nothing of {stream}", kind="no-such-stream", stream=str(stream))

    async def remove(
        self,
        stream: StreamId,
        *,
        scope: str | None = None,
        force: bool = False,
        held_elsewhere: HeldElsewhere | None = None,
    ) -> bool:
        """Forgets the stream and deletes the store's own file of it; linked files are never touched.

        With ``scope`` it only leaves that scope, and goes when it was the last. Without ``force`` a pinned stream
        raises ``in-use``, and a complete stored file of a stream that ``held_elsewhere`` does not vouch for and no
        link holds raises ``last-copy``. Returns whether the stream is gone; raises ``no-such-stream``.
        """
        entry = await self.entry(stream)
        if scope is not None and entry.scopes - {scope}:
            await self._database.run(catalogue.leave_scope, stream, scope)
            return False
        if not force:
            if entry.pinned:
                raise Conflict(
                    f"{entry.name or stream} is pinned", kind="in-use", hint="Unpin it first.", stream=str(stream)
                )
            await self._refuse_last_copy(stream, held_elsewhere)
        await self._run(self._discard, catalogue.forget, stream)
        return True

    async def _refuse_last_copy(self, stream: StreamId, held_elsewhere: HeldElsewhere | None) -> None:
        def only_here() -> bool:
            reader = self._open.reader
            whole = reader.complete(known := reader.known(stream))
            return whole is not None and not any(
                not content.stored and reader.current(content, known.opening.length) for content in known.contents
            )

        if await self._run(only_here) and not (held_elsewhere is not None and await held_elsewhere(stream)):
            raise Conflict(
                f"nobody else is known to hold {stream}: this may be the last copy",
                kind="last-copy",
                hint="Export it first, or remove it with --force.",
                stream=str(stream),
            )

    def _discard(self, forget: Callable[..., list[Path]], stream: StreamId) -> None:
        for path in self._database.run_from_thread(forget, stream):
            remove_file(self._content / path)
        self._open.reader.forget(stream)

    async def prune(self, limit: int, *, held_elsewhere: HeldElsewhere | None = None) -> int:
        """Deletes stored files, longest unused first, until the store takes at most ``limit`` bytes on the disk.

        Pins, streams being fetched here, and what may be the last copy stay. Returns the bytes that became free.
        """
        total = (await self.size()).stored
        freed = 0
        if total <= limit:
            return 0
        for stream, path, _complete in await self._database.run(catalogue.least_used, 1_000_000):
            if total - freed <= limit:
                break
            if self._open.intake.fetching(stream):
                continue
            size = await self._run(occupied, self._content / path)
            with contextlib.suppress(Conflict, NotFound):
                await self._refuse_last_copy(stream, held_elsewhere)
                await self._run(self._discard, catalogue.drop_stored, stream)
                freed += size
        return freed


class _Stop:
    """Set when the caller went away; counts as set when the store closes."""

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing
        self._gone = False

    def set(self) -> None:
        self._gone = True

    def is_set(self) -> bool:
        return self._gone or self._closing.is_set()


class _Parts:
    """What a store that is open works with."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor) -> None:
        settings, database, folder = store.settings, store._database, store._content
        self.intake = Intake(database, folder, settings)
        self.reader = Reader(
            database, folder, pool, tree_cache=settings.tree_cache, live=self.intake.live, reserve=settings.reserve
        )
        self.recorder = Recorder(
            database, after=settings.flush_after, limit=settings.flush_bytes, synced=settings.synced
        )
        self.adder = Adder(database, self.reader, folder, pool, settings)
        self.batch_adder = BatchAdder(database, alias=settings.alias)
        self.checker = Checker(database, self.reader, pool, self.adder.still_holds)
        self.intake.use(self.reader, self.checker, self.recorder)
        self.exporter = Exporter(database, self.reader, reserve=settings.reserve)
        placer = Placer(database, reserve=settings.reserve, synced=settings.synced)
        self.placements = Placements(lambda wanted: store._run(placer.place, wanted))


def _now() -> int:
    return time.time_ns() // 1_000_000
