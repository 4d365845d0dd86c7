"""A stream opened without being fetched: what is read comes, and no more than the miniblocks that hold it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from entrepot.adapters.store import Fetch as StoreFetch
from entrepot.adapters.store import Store
from entrepot.adapters.transfer import SignedRequest, Transfers
from entrepot.core.errors import Conflict, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.messages import Signed
from entrepot.services.fetching import Getter, Span
from entrepot.services.hubs import JoinedChannel
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings

#: Bytes handed out at a time when streaming.
PIECE: Final = 1 << 20
_URLS_KEPT: Final = 64
_URL_MARGIN: Final = 5.0  # seconds before its end at which a URL is not used any more

type Connect = Callable[[], Awaitable[tuple[Session, JoinedChannel]]]


@dataclass(eq=False, slots=True)
class _Wait:
    span: Span
    here: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RemoteFile:
    """A stream of known ``length`` (bytes) to read from anywhere in it. Close it.

    Verified miniblocks stay in the store, so what was read once is local. Reads may run at the same time; those that
    wait for the network share one want.
    """

    def __init__(
        self,
        stream: StreamId,
        opening: Opening,
        store: Store,
        transfers: Transfers,
        settings: NodeSettings,
        connect: Connect,
        *,
        name: str | None = None,
        deadline: float | None = None,
    ) -> None:
        self.stream = stream
        self.opening = opening
        self.length = opening.length
        self.name = name
        self._store = store
        self._transfers = transfers
        self._settings = settings
        self._connect = connect
        self._deadline = deadline
        self._fetch: StoreFetch | None = None
        self._urls: dict[int, tuple[Signed, float]] = {}
        self._waiting: list[_Wait] = []
        self._pump: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> RemoteFile:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stops what is under way. May be called again."""
        self._closed = True
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()
            await asyncio.wait([pump])
        for wait in self._waiting:
            wait.here.cancel()
        self._waiting.clear()
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            await fetch.aclose()

    async def read(self, offset: int, length: int) -> bytes:
        """The ``length`` bytes at ``offset``, verified; fewer at the end of the stream, none beyond it.

        Raises InvalidInput for negative numbers, and the reason when the bytes cannot be had.
        """
        if self._closed:
            raise InvalidInput("the file was closed")
        if offset < 0 or length < 0:
            raise InvalidInput("offset and length are not negative", offset=offset, length=length)
        length = min(length, self.length - offset)
        if length <= 0:
            return b""
        found = await self._local(offset, length)
        if found is None:
            await self._need((offset, length))
            found = await self._local(offset, length)
        if found is None:
            raise RetryLater("the bytes were removed from the store as soon as they came", kind="busy")
        return found

    async def stream_range(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes]:
        """The bytes from ``offset`` on, piece by piece in order, while those behind are still on their way."""
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput("offset and length are not negative", offset=offset, length=length)
        end = self.length if length is None else min(self.length, offset + length)
        at = offset
        getting: asyncio.Task[object] | None = None
        came = asyncio.Event()
        try:
            while at < end:
                came.clear()
                over = getting is not None and getting.done()
                piece = await self._local(at, min(PIECE - at % PIECE, end - at))
                if piece is not None:
                    yield piece
                    at += len(piece)
                elif getting is None:
                    getting = asyncio.create_task(self._get([(at, end - at)], on_object=lambda _: came.set()))
                    getting.add_done_callback(lambda _: came.set())
                elif over:
                    await getting
                    raise RetryLater("the bytes were removed from the store as soon as they came", kind="busy")
                else:
                    await came.wait()
        finally:
            if getting is not None:
                getting.cancel()
                await asyncio.wait([getting])
                if not getting.cancelled():
                    getting.exception()

    # -- inside -------------------------------------------------------------------------------------------------

    async def _local(self, offset: int, length: int) -> bytes | None:
        """The bytes if all of them are here."""
        try:
            return await self._store.read(self.stream, offset, length)
        except (NotFound, Conflict):
            return None  # not here, or in a file that became another: the network has it

    async def _need(self, span: Span) -> None:
        wait = _Wait(span)
        self._waiting.append(wait)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._fetch_waiting())
        await wait.here

    async def _fetch_waiting(self) -> None:
        """Bring what reads wait for, all of them together, until none waits."""
        while self._waiting:
            await asyncio.sleep(0)  # reads that begin together are asked for together
            batch, self._waiting = self._waiting, []
            error: BaseException | None = None
            try:
                spans = [wait.span for wait in batch]
                await self._by_known_urls(spans)
                if missing := [span for span in spans if not self._came(span)]:
                    await self._get(missing)
            except EntrepotError as failure:
                error = failure
            except BaseException:
                for wait in batch:
                    wait.here.cancel()
                raise
            for wait in batch:
                if wait.here.done():
                    continue
                if error is None:
                    wait.here.set_result(None)
                else:
                    wait.here.set_exception(error)

    def _came(self, span: Span) -> bool:
        fetch = self._fetch
        return fetch is not None and not fetch.complete and fetch.has(fetch.geometry.miniblocks_of_range(*span))

    async def _by_known_urls(self, spans: list[Span]) -> None:
        """Miniblocks of an object whose URL is still good need no want."""
        fetch = self._fetch
        if fetch is None or not self._urls:
            return
        now = asyncio.get_running_loop().time()
        per = fetch.geometry.miniblocks_per_object
        wanted: dict[int, set[int]] = {}
        for offset, length in spans:
            for index in fetch.geometry.miniblocks_of_range(offset, length):
                if index // per in self._urls:
                    wanted.setdefault(index // per, set()).add(index % per)
        for number, miniblocks in wanted.items():
            get, until = self._urls[number]
            request = SignedRequest(get.method, get.url, get.headers)
            try:
                if now >= until:
                    raise NotFound("the URL is too old")
                await self._transfers.get_object(request, fetch, number, miniblocks=miniblocks)
            except EntrepotError as error:
                if isinstance(error, RetryLater) and error.kind == "disk-full":
                    raise
                del self._urls[number]  # the hub is asked again

    async def _get(self, spans: list[Span], on_object: Callable[[int], None] | None = None) -> None:
        session, channel = await self._connect()
        try:
            await self._get_from(session, channel, spans, on_object)
        except Conflict as error:
            if error.kind != "stale-lock":
                raise
            await session.refresh()
            session, channel = await self._connect()
            await self._get_from(session, channel, spans, on_object)

    async def _get_from(
        self, session: Session, channel: JoinedChannel, spans: list[Span], on_object: Callable[[int], None] | None
    ) -> None:
        fetch = self._fetch
        if fetch is None or fetch.lock != channel.lock or not self._still_here(fetch):
            self._urls.clear()
            self._fetch = None
            if fetch is not None:
                await fetch.aclose()
            fetch = self._fetch = await self._store.begin(
                self.stream, self.opening, channel.lock, channel.scope, self.name or ""
            )
        await Getter(
            session,
            channel,
            self.stream,
            self._store,
            self._transfers,
            self._settings,
            spans=spans,
            fetch=fetch,
            in_order=True,
            deadline=self._deadline,
            on_object=on_object,
            on_url=self._remember,
        ).run()

    @staticmethod
    def _still_here(fetch: StoreFetch) -> bool:
        """A complete fetch whose bytes are not here any more is of a file that became another."""
        return not fetch.complete

    def _remember(self, number: int, get: Signed) -> None:
        until = asyncio.get_running_loop().time() + get.expires / 1000 - _URL_MARGIN
        self._urls[number] = (get, until)
        while len(self._urls) > _URLS_KEPT:
            del self._urls[next(iter(self._urls))]
