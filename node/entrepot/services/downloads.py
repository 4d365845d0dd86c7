"""The downloads of one get: as many requests to the bucket at once as pay, several of them for one large object.

A large object comes in parts of whole miniblocks, each asked for alone. All parts and objects of the get share the
lanes that :class:`~entrepot.core.exchange.concurrency.Concurrency` allows, in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from entrepot.adapters.store import Fetch, SmallFetch
from entrepot.adapters.transfer import Moved, SignedRequest, Transfers
from entrepot.core.errors import EntrepotError
from entrepot.core.exchange.concurrency import Concurrency, Outcome

#: Plain bytes of one part. An object of less than twice as much is asked for as a whole.
PART: Final = 8 << 20
_THROTTLED: Final = (429, 503)


class Lanes:
    """Lets through as many as the limit allows, in the order in which they came. In the event loop's thread."""

    def __init__(self, concurrency: Concurrency) -> None:
        self.busy = 0
        self._concurrency = concurrency
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Waits for a lane and has it for the block."""
        if self._waiting or self.busy >= self._concurrency.limit:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.busy -= 1  # the lane was ours already
                self._admit()
                raise
        else:
            self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self.busy < self._concurrency.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.busy += 1
                turn.set_result(None)


@dataclass(slots=True)
class _Request:
    """One request under way: what was said of it meanwhile."""

    throttled: bool = False
    failed: bool = False

    def hindered(self, error: EntrepotError) -> None:
        """An attempt of it failed."""
        self.throttled |= error.data.get("status") in _THROTTLED
        self.failed = True

    @property
    def outcome(self) -> Outcome:
        return Outcome.THROTTLED if self.throttled else Outcome.FAILED if self.failed else Outcome.WELL


class Downloads:
    """Brings objects into a fetch. ``progress()`` makes what is told of one request's verified bytes."""

    def __init__(self, transfers: Transfers, concurrency: Concurrency, progress: Callable[[], Moved]) -> None:
        self._transfers = transfers
        self._concurrency = concurrency
        self._progress = progress
        self._lanes = Lanes(concurrency)

    @property
    def busy(self) -> int:
        """Requests under way."""
        return self._lanes.busy

    async def bring(
        self, request: SignedRequest, fetch: Fetch | SmallFetch, number: int, miniblocks: Container[int] | None = None
    ) -> int:
        """Downloads what ``fetch`` lacks of object ``number``, or of those ``miniblocks`` of it; returns the verified
        bytes that came. Raises what :meth:`Transfers.get_object` raises; what came before stays."""
        first, *rest = parts(fetch, number, miniblocks)
        # The first one learns the header, which proves all of them.
        moved = await self._part(request, fetch, number, first)
        left = deque(rest)

        async def work() -> None:
            nonlocal moved
            while left:
                came = await self._part(request, fetch, number, left.popleft())
                moved += came  # after the wait: others add to it meanwhile

        if left:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(len(left), self._concurrency.most)):
                        group.create_task(work())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return moved

    async def _part(
        self, request: SignedRequest, fetch: Fetch | SmallFetch, number: int, miniblocks: Container[int] | None
    ) -> int:
        async with self._lanes.one():
            clock = asyncio.get_running_loop().time
            begun, since, told = self._concurrency.begun(), clock(), _Request()
            moved, error = 0, None
            try:
                moved = await self._transfers.get_object(
                    request, fetch, number, self._progress(), miniblocks=miniblocks, hindered=told.hindered
                )
            except EntrepotError as failure:
                told.hindered(failure)
                error = failure
            self._concurrency.ended(begun, moved, clock() - since, told.outcome, busy=self._lanes.busy)
            if error is not None:
                raise error
            return moved


def parts(
    fetch: Fetch | SmallFetch, number: int, miniblocks: Container[int] | None = None
) -> Sequence[Container[int] | None]:
    """What to ask for, one after the other or at once: everything (None, or ``miniblocks`` as they are), or the
    miniblocks of parts, numbered within the object."""
    most = max(PART // fetch.lock.miniblock, 1)
    if len(fetch.geometry.miniblocks_of(number)) < 2 * most:
        return (miniblocks,)
    missing = [index for index in fetch.missing_miniblocks(number) if miniblocks is None or index in miniblocks]
    if len(missing) < 2 * most:
        return (miniblocks,)
    return [frozenset(missing[at : at + most]) for at in range(0, len(missing), most)]
