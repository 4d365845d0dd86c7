"""Bulk bytes between files and buckets: bounded threads, attempts with pauses, stopped at once when cancelled."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

from entrepot.adapters.metrics import Direction, Metrics, Stopwatch
from entrepot.adapters.store.fetch import Fetch
from entrepot.adapters.store.placing import SmallFetch
from entrepot.adapters.store.records import ObjectSource
from entrepot.adapters.transfer.answers import Setback
from entrepot.adapters.transfer.connections import Connections
from entrepot.adapters.transfer.receiving import Download, receive_object, receive_range
from entrepot.adapters.transfer.requests import (
    CancelToken,
    Moved,
    PutOutcome,
    SignedRequest,
    TransferSettings,
)
from entrepot.adapters.transfer.sending import put
from entrepot.adapters.transfer.throttle import Throttle
from entrepot.adapters.transfer.trial import reach
from entrepot.core.errors import Corrupt, EntrepotError, Internal, InvalidInput, RetryLater
from entrepot.core.format import Header
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock

_HEADERS_KEPT: Final = 256
_LARGEST_KEPT_HEADER: Final = 1 << 16
_LARGEST_KEPT_BUFFER: Final = 4 << 20
#: A miniblock that does not verify is asked for once more before the object is called corrupt: a report of what
#: only the network spoilt would strike the reporter.
_CORRUPT_TRIES: Final = 2


class Transfers:
    """Moves objects on signed URLs. An async context manager; at most ``slots`` transfers run at once.

    Errors: ``no-such-object`` (404, or a tombstone), ``expired`` / ``denied`` (400, 401, 403), ``changed`` (412),
    ``bucket-unreachable`` after all attempts or at once where another cannot help, ``corrupt-object`` with
    ``miniblock`` and ``etag`` in its data, ``wrong-length``, ``cancelled``, ``deadline`` after the total time-out, and
    what the store raises. ``metrics`` is told of every object moved.
    """

    def __init__(self, settings: TransferSettings | None = None, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self.settings = settings = settings if settings is not None else TransferSettings()
        if settings.slots < 1 or settings.attempts < 1 or settings.buffer < 4096:
            raise InvalidInput("slots and attempts are at least 1, the buffer 4 KiB", kind="invalid-setting")
        self._up, self._down = Throttle(settings.bandwidth.up), Throttle(settings.bandwidth.down)
        self._connections = Connections(settings)
        self._slots = asyncio.Semaphore(settings.slots)
        self._entrance = asyncio.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._all = CancelToken()
        self._buffers = threading.local()
        self._headers: OrderedDict[tuple[StreamId, bytes, int], Header] = OrderedDict()

    async def __aenter__(self) -> Self:
        """Raises ``invalid-setting`` for certificates that cannot be read."""
        await asyncio.to_thread(self._connections.prepare)
        self._threads = ThreadPoolExecutor(self.settings.slots, "transfer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stops every transfer and closes every connection. May be called again."""
        self._all.set()
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        await asyncio.to_thread(self._connections.close)

    async def put(
        self,
        request: SignedRequest,
        source: ObjectSource,
        progress: Moved | None = None,
        cancel: CancelToken | None = None,
        *,
        sent: Callable[[ObjectSource], None] | None = None,
    ) -> PutOutcome:
        """Uploads one object. A create-only PUT that meets an object is an outcome, not an error.

        ``progress(bytes)`` counts the bytes sent in this attempt, from a worker thread. ``sent(source)`` is called in
        that thread once the object is there, and what it raises is raised. Raises ``changed`` if the file is not what
        it was when ``source`` was made, before or after.
        """
        attempts = 0

        def work(token: CancelToken, fresh: bool) -> PutOutcome:
            nonlocal attempts
            attempts += 1
            outcome = put(
                self._connections,
                request,
                source,
                buffer=self._buffer(self.settings.buffer),
                idle_timeout=self.settings.idle_timeout,
                progress=progress,
                token=token,
                fresh=fresh,
                attempt=attempts,
                throttle=self._up,
            )
            if sent is not None and not outcome.exists:
                sent(source)
            return outcome

        return await self._told("up", work, cancel, lambda _: source.size, lambda outcome: outcome.exists)

    async def get_object(
        self,
        request: SignedRequest,
        fetch: Fetch | SmallFetch,
        number: int,
        progress: Moved | None = None,
        cancel: CancelToken | None = None,
        *,
        miniblocks: Container[int] | None = None,
        hindered: Callable[[EntrepotError], None] | None = None,
    ) -> int:
        """Downloads what ``fetch`` lacks of object ``number``; returns the verified bytes that came.

        With ``miniblocks`` only those, numbered within the object from zero. ``progress(bytes)`` counts what came,
        from a worker thread. ``hindered`` is told why an attempt failed that another follows. What came before an
        error stays in the fetch.
        """
        download = Download(
            self._connections, request, fetch.stream, fetch.lock, fetch.opening, number, throttle=self._down
        )
        size = max(fetch.lock.miniblock, self.settings.buffer)

        def work(token: CancelToken, fresh: bool) -> int:
            receive_object(
                download,
                fetch,
                miniblocks,
                buffer=self._buffer(size),
                progress=progress,
                token=token,
                fresh=fresh,
            )
            return download.moved

        return await self._told("down", work, cancel, lambda _: download.moved, hindered=hindered, room=size)

    async def get_range(
        self,
        request: SignedRequest,
        stream: StreamId,
        lock: SchemaLock,
        opening: Opening,
        number: int,
        miniblocks: range,
        cancel: CancelToken | None = None,
    ) -> bytes:
        """The verified bytes of consecutive miniblocks of object ``number``, numbered within the object from zero.

        They are held in memory. Headers are kept for the next range of the same object.
        """
        count = len(Geometry(opening.length, lock).miniblocks_of(number))
        if miniblocks.step != 1 or not 0 <= miniblocks.start <= miniblocks.stop <= count:
            raise InvalidInput(f"the object has miniblocks 0 to {count - 1}")
        if not miniblocks:
            return b""
        download = Download(self._connections, request, stream, lock, opening, number, throttle=self._down)
        key = (stream, lock.id, number)
        size = max(lock.miniblock, self.settings.buffer)

        def work(token: CancelToken, fresh: bool) -> tuple[Header, bytes]:
            return receive_range(
                download,
                miniblocks,
                self._headers.get(key),
                buffer=self._buffer(size),
                token=token,
                fresh=fresh,
            )

        header, data = await self._told(
            "down", work, cancel, lambda found: 0 if found is None else len(found[1]), room=size
        )
        if header.length <= _LARGEST_KEPT_HEADER:
            self._headers[key] = header
            self._headers.move_to_end(key)
            while len(self._headers) > _HEADERS_KEPT:
                self._headers.popitem(last=False)
        return data

    async def reach(self, request: SignedRequest) -> int:
        """Tries whether a bucket is reached: the bytes that a small GET brought, which are thrown away."""
        return await self._attempts(
            "down", lambda token, fresh: reach(self._connections, request, token=token, fresh=fresh), None
        )

    def _buffer(self, size: int) -> memoryview:
        """This thread's buffer, at least ``size`` bytes; very large ones are not kept."""
        found: memoryview | None = getattr(self._buffers, "view", None)
        if found is None or len(found) < size:
            found = memoryview(bytearray(size))
            if size <= _LARGEST_KEPT_BUFFER:
                self._buffers.view = found
        return found

    async def _told[R](
        self,
        direction: Direction,
        work: Callable[[CancelToken, bool], R],
        cancel: CancelToken | None,
        size: Callable[[R | None], int],
        exists: Callable[[R], bool] = lambda _: False,
        hindered: Callable[[EntrepotError], None] | None = None,
        room: int = 0,
    ) -> R:
        """:meth:`_attempts`, told to the metrics. The time counts from the first attempt's begin."""
        watch: Stopwatch | None = None

        def timed(token: CancelToken, fresh: bool) -> R:
            nonlocal watch
            watch = watch or Stopwatch()
            return work(token, fresh)

        outcome, found = "cancelled", None
        try:
            found = await self._attempts(direction, timed, cancel, hindered, room)
            outcome = "exists" if exists(found) else "ok"
            return found
        except EntrepotError as error:
            outcome = error.kind
            raise
        finally:
            self._metrics.moved(direction, outcome, size(found), 0.0 if watch is None else watch.seconds)

    async def _attempts[R](
        self,
        direction: Direction,
        work: Callable[[CancelToken, bool], R],
        cancel: CancelToken | None,
        hindered: Callable[[EntrepotError], None] | None = None,
        room: int = 0,
    ) -> R:
        """Runs ``work(token, fresh)`` until it succeeds, fails for good, or was tried often enough. ``room``: bytes of
        its buffer."""
        settings, tried, corrupt, stale = self.settings, 0, 0, 0
        while True:
            pause = 0.0
            try:
                if stale or tried or corrupt:
                    self._metrics.tried_again(direction)
                return await self._attempt(work, bool(stale or tried), cancel, room)
            except Corrupt as error:
                corrupt += 1
                if error.kind != "corrupt-object" or corrupt >= _CORRUPT_TRIES:
                    raise
            except Setback as setback:
                if setback.at_once and stale < 2:
                    stale += 1
                    continue
                tried += 1
                if tried >= settings.attempts:
                    raise setback.error from setback
                if hindered is not None:
                    hindered(setback.error)
                pause = random.uniform(0, min(settings.backoff_limit, settings.backoff * 2 ** (tried - 1)))  # noqa: S311
                if setback.after is not None:
                    pause = max(pause, min(setback.after, settings.retry_after_limit))
            await self._pause(pause, cancel)

    async def _pause(self, seconds: float, cancel: CancelToken | None) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            if self._all.is_set() or (cancel is not None and cancel.is_set()):
                raise RetryLater("the transfer was stopped", kind="cancelled")
            left = until - loop.time()
            if left <= 0:
                return
            await asyncio.sleep(min(left, 0.1))

    @asynccontextmanager
    async def _room(self, size: int) -> AsyncIterator[None]:
        """A thread, and memory for its buffer: larger ones take the places of several threads."""
        count, held = min(max(-(-size // _LARGEST_KEPT_BUFFER), 1), self.settings.slots), 0
        try:
            async with self._entrance:  # one after the other: nobody holds some places and waits for those of others
                while held < count:
                    await self._slots.acquire()
                    held += 1
            yield
        finally:
            for _ in range(held):
                self._slots.release()

    async def _attempt[R](
        self, work: Callable[[CancelToken, bool], R], fresh: bool, cancel: CancelToken | None, room: int
    ) -> R:
        """One attempt in a thread. Whatever ends it, the thread is done with the caller's things on return."""
        async with self._room(room):
            threads = self._threads
            if threads is None:
                raise Internal("the transfers are not open")
            token = CancelToken(self._all)
            if cancel is not None:
                cancel.adopt(token)
            future = asyncio.get_running_loop().run_in_executor(threads, work, token, fresh)
            try:
                async with asyncio.timeout(self.settings.total_timeout):
                    return await asyncio.shield(future)
            except TimeoutError:
                token.set()
                await asyncio.wait([future])
                future.exception()
                raise RetryLater(
                    "the request took too long",
                    kind="deadline",
                    seconds=self.settings.total_timeout,
                ) from None
            except asyncio.CancelledError:
                token.set()
                await asyncio.shield(asyncio.wait([future]))
                if not future.cancelled():
                    future.exception()
                raise
            finally:
                token.close()
                if cancel is not None:
                    cancel.disown(token)
