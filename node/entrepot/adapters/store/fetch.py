"""Streams on their way in: a sparse file, and which of its miniblocks are verified.

The order that makes a kill harmless: bytes are verified, written, synced, and only then are their bits recorded.
One recorder thread does the last two for all fetches of the store together, so a sync and a transaction are paid
per batch and not per miniblock. Two processes may fetch one stream at once: they write the same bytes to the same
places, and each sets bits only after its own sync.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Final, Self

from entrepot.adapters.files import sync_data, write_at
from entrepot.adapters.store import proofs
from entrepot.adapters.store.bitmap import Bitmap
from entrepot.adapters.store.catalogue import Content
from entrepot.adapters.store.database import Database
from entrepot.adapters.store.proofs import Verified
from entrepot.core.errors import Conflict, EntrepotError, Internal, InvalidInput, RetryLater
from entrepot.core.format import Header, decode_header, verify_miniblock
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.ranges import Pair, of_numbers

_HEADERS_KEPT: Final = 16
_LONGEST_WAIT: Final = 300.0  # seconds for the disk to take what is pending


class Fetch:
    """One stream being fetched under one lock. Made by :meth:`Store.begin`; an async context manager.

    Miniblocks are numbered within the stream, ``index`` within an object. The methods that are not coroutines may
    be called from any thread.
    """

    def __init__(
        self,
        *,
        stream: StreamId,
        opening: Opening,
        lock: SchemaLock,
        row: int,
        content: Content,
        descriptor: int | None,
        bitmap: Bitmap,
        recorder: Recorder,
        on_finish: Callable[[Fetch], Awaitable[None]],
        on_close: Callable[[Fetch], None],
    ) -> None:
        self.stream = stream
        self.opening = opening
        self.lock = lock
        self.geometry = Geometry(opening.length, lock)
        self.content = content
        #: Whether the catalogue has that the stream is held; for whoever records it.
        self.recorded_complete = False
        self._row = row
        self._descriptor = descriptor
        self._bitmap = bitmap
        self._recorder = recorder
        self._on_finish = on_finish
        self._on_close = on_close
        self._state = threading.Condition()
        self._users = 0
        self._closed = False
        self._failed: EntrepotError | None = None
        self._trouble: EntrepotError | None = None
        self._pending: dict[int, bytes] = {}
        self._pending_headers: dict[int, bytes] = {}
        self._pending_bytes = 0
        self._recording = False
        self._headers: OrderedDict[int, Header] = OrderedDict()
        self._etags: dict[int, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- what is here

    @property
    def complete(self) -> bool:
        """Whether every miniblock is verified. :meth:`finish` then makes the stream count as held."""
        with self._state:
            return self._bitmap.full

    @property
    def verified_bytes(self) -> int:
        """Plain bytes of the stream that are verified, recorded or about to be."""
        with self._state:
            count, last = self._bitmap.set_count, self._bitmap.count - 1
            if count == 0:
                return 0
            short = self.geometry.lock.miniblock - self.geometry.miniblock_span(last)[1]
            return count * self.geometry.lock.miniblock - (short if last in self._bitmap else 0)

    def has(self, miniblocks: range) -> bool:
        """Whether all these miniblocks of the stream are verified and written."""
        with self._state:
            return self._bitmap.has_all(miniblocks)

    def missing_objects(self) -> tuple[Pair, ...]:
        """The objects that lack a miniblock, as inclusive pairs, ascending."""
        with self._state:
            if self._bitmap.full:
                return ()
            return of_numbers(
                number
                for number in range(self.geometry.object_count)
                if not self._bitmap.has_all(self.geometry.miniblocks_of(number))
            )

    def missing_miniblocks(self, number: int) -> tuple[int, ...]:
        """The miniblocks that object ``number`` lacks, counted within the object, ascending."""
        span = self.geometry.miniblocks_of(number)
        with self._state:
            if self._bitmap.full:
                return ()
            return tuple(at - span.start for at in self._bitmap.missing(span))

    # ---- taking bytes in

    def header(self, number: int) -> Header | None:
        """The verified header of object ``number``, if it is known from before."""
        span = self.geometry.miniblocks_of(number)
        with self._state:
            found = self._headers.get(number)
            # A header is recorded together with bits: without one there is nothing to look for.
            begun = any(index in self._bitmap for index in span)
        if found is None and begun:
            raw = self._recorder.database.run_from_thread(proofs.header, self._row, self.lock.id, number)
            if raw is not None:
                found = self._keep(number, raw)
        return found

    def origin(self, number: int) -> tuple[Header, str] | None:
        """The header of object ``number`` that came last, and the etag of the object that it came with, if both are
        still in memory: where the codec leaves a choice, it tells where miniblocks lie in that object alone."""
        with self._state:
            header, etag = self._headers.get(number), self._etags.get(number)
            return None if header is None or etag is None else (header, etag)

    def accept_header(self, number: int, raw: bytes, etag: str | None = None) -> Header:
        """Decodes and verifies the header of object ``number``, of an object with this etag. Raises
        ``corrupt-object``."""
        header = self._keep(number, raw)
        with self._state:
            self._pending_headers[number] = raw
            if etag is not None and number in self._headers:
                self._etags[number] = etag
        return header

    def _keep(self, number: int, raw: bytes) -> Header:
        header = decode_header(raw, stream=self.stream, lock=self.lock, number=number, opening=self.opening)
        with self._state:
            self._headers[number] = header
            self._headers.move_to_end(number)
            self._etags.pop(number, None)
            while len(self._headers) > _HEADERS_KEPT:
                self._etags.pop(self._headers.popitem(last=False)[0], None)
        return header

    def write_verified(self, header: Header, index: int, data: memoryview | bytes) -> bool:
        """Verifies one miniblock of the object of ``header`` and writes it to its place; blocks.

        False if it was here already. Nothing of ``data`` is kept. Raises ``corrupt-object`` (nothing was written),
        ``disk-full`` (all that was verified stays), ``changed`` if the stream was removed meanwhile.
        """
        if header.stream != self.stream or header.geometry.lock != self.lock:
            raise InvalidInput("the header belongs to another stream or lock")
        number = header.number * self.geometry.miniblocks_per_object + index
        with self._using() as descriptor:
            if self.has(range(number, number + 1)):
                return False
            verify_miniblock(header, index, data)
            if descriptor is None:
                raise Internal("a stream that is here lacks a miniblock")
            write_at(descriptor, data, self.geometry.miniblock_span(number)[0], self.content.path)
            with self._state:
                if not self._bitmap.add(number):
                    return False
                self._pending[number] = header.nodes[index]
                self._pending_bytes += len(data)
                full = self._pending_bytes >= self._recorder.limit
            self._recorder.notify(self, urgent=full)
            if full:
                self._wait(lambda: self._pending_bytes < self._recorder.limit)
        return True

    def drain(self) -> None:
        """Returns once all that was written is synced and recorded; blocks."""
        with self._state:
            if not (self._pending or self._recording):
                self._raise()
                return
        self._recorder.notify(self, urgent=True)
        self._wait(lambda: not (self._pending or self._recording))

    async def finish(self) -> bool:
        """Records all that was written and, if the stream is complete, that it is held. Returns whether it is."""
        await self._on_finish(self)
        return self.complete

    async def aclose(self) -> None:
        """Records what was written and lets go of the file. May be called again."""
        with self._state:
            if self._closed:
                return
        try:
            # What cannot be recorded was reported to the writer; here it is only fetched again later.
            with contextlib.suppress(EntrepotError):
                await self._on_finish(self)
        finally:
            self.release()

    def release(self) -> None:
        """Lets go of the file at once; what was not recorded will be fetched again."""
        with self._state:
            self._closed = True
            idle = self._users == 0
        if idle:
            self._close_file()
        self._on_close(self)

    # ---- between writers and the recorder

    @contextlib.contextmanager
    def _using(self) -> Iterator[int | None]:
        with self._state:
            self._raise()
            if self._closed:
                raise RetryLater("the fetch was closed", kind="cancelled")
            self._users += 1
            descriptor = self._descriptor
        try:
            yield descriptor
        finally:
            with self._state:
                self._users -= 1
                last = self._closed and self._users == 0
            if last:
                self._close_file()

    def _close_file(self) -> None:
        with self._state:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _wait(self, ready: Callable[[], bool]) -> None:
        with self._state:
            done = self._state.wait_for(lambda: bool(self._failed or self._trouble) or ready(), _LONGEST_WAIT)
            self._raise()
            if not done:
                raise RetryLater("the disk does not keep up", kind="busy", path=str(self.content.path))

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble

    def take(self) -> Verified | None:
        """For the recorder: syncs the bytes written so far and says what to record. The fetch fails if the sync
        does: the system may have dropped what it could not write."""
        try:
            with self._using() as descriptor:
                with self._state:
                    pending, self._pending = self._pending, {}
                    headers, self._pending_headers = self._pending_headers, {}
                    self._pending_bytes = 0
                    self._recording = bool(pending)
                if not pending:
                    return None
                if descriptor is not None and self._recorder.synced:
                    sync_data(descriptor, self.content.path)
        except EntrepotError as error:
            self.fail(error)
            return None
        per_object = self.geometry.miniblocks_per_object
        used = {number // per_object for number in pending}
        single = self.geometry.miniblock_count == 1  # its node is the root
        return Verified(
            stream=self._row,
            content=self.content.id,
            level=self.lock.level,
            rows={chunk: bytes(bits) for chunk, bits in Bitmap.rows(pending).items()},
            nodes={} if single else pending,
            pending=pending,
            lock=self.lock.id,
            headers={} if single else {number: raw for number, raw in headers.items() if number in used},
        )

    def recorded(self, rows: list[tuple[int, bytes]] | None) -> None:
        """For the recorder: what :meth:`take` gave is recorded; ``rows`` are the bits as they are now."""
        if rows is None:
            self.fail(Conflict("the stream was removed from the store meanwhile", stream=str(self.stream)))
            return
        with self._state:
            for chunk, bits in rows:
                self._bitmap.merge(chunk, bits)
            self._recording = False
            self._state.notify_all()

    def postpone(self, batch: Verified, error: EntrepotError) -> None:
        """For the recorder: ``batch`` is synced but could not be recorded now. The next call raises ``error``,
        once; what was written is recorded with the next batch."""
        with self._state:
            self._pending = {**batch.pending, **self._pending}
            self._pending_headers = {**batch.headers, **self._pending_headers}
            self._recording = False
            self._trouble = error
            self._state.notify_all()

    def fail(self, error: EntrepotError) -> None:
        """For the recorder: nothing more can be recorded. Every later call raises ``error``."""
        with self._state:
            if self._failed is None:
                self._failed = error
            self._recording = False
            self._state.notify_all()


class Recorder:
    """The thread that syncs and records for all fetches of one store."""

    def __init__(self, database: Database, *, after: float, limit: int, synced: bool) -> None:
        """``after``: seconds that a verified miniblock waits at most for others; ``limit``: bytes of one fetch that
        may wait."""
        self.database = database
        self.limit = limit
        self.synced = synced
        self._after = after
        self._state = threading.Condition()
        self._dirty: dict[int, Fetch] = {}
        self._urgent = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="store-recorder", daemon=True)
        self._thread.start()

    def notify(self, fetch: Fetch, *, urgent: bool) -> None:
        """Tells that ``fetch`` has something to record, soon or (``urgent``) now."""
        with self._state:
            asleep = not self._dirty
            self._dirty[id(fetch)] = fetch
            if asleep or (urgent and not self._urgent):  # each wake-up takes the interpreter from those who hash
                self._urgent |= urgent
                self._state.notify_all()

    def close(self) -> None:
        """Records what is left and ends the thread; blocks. May be called again."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._state:
            self._closing = True
            self._state.notify_all()
        thread.join()

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._dirty or self._closing)
                until = time.monotonic() + self._after
                self._state.wait_for(lambda: self._urgent or self._closing, max(0.0, until - time.monotonic()))
                dirty, self._dirty = list(self._dirty.values()), {}
                self._urgent = False
                if not dirty and self._closing:
                    return
            self._record(dirty)

    def _record(self, dirty: list[Fetch]) -> None:
        taken = [(fetch, batch) for fetch in dirty if (batch := fetch.take()) is not None]
        if not taken:
            return
        try:
            results = self.database.run_from_thread(proofs.record_verified, [batch for _, batch in taken])
        except EntrepotError as error:
            for fetch, batch in taken:
                if isinstance(error, RetryLater):
                    fetch.postpone(batch, error)
                else:
                    fetch.fail(error)
            return
        for (fetch, _), rows in zip(taken, results, strict=True):
            fetch.recorded(rows)
