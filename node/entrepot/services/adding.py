"""Many files made streams: small ones together, large ones each for itself, with one progress for all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Final

from entrepot.adapters.files import identify
from entrepot.adapters.store import MOST_AT_ONCE, SMALL_FILE, Store
from entrepot.adapters.store import Added as Stored
from entrepot.core.errors import EntrepotError
from entrepot.services.hubs import JoinedChannel
from entrepot.services.progress import Meter

#: What one file came to.
type Outcome = tuple[Path, Stored | EntrepotError]

#: Bytes of small files that are hashed before they are recorded together.
_BATCH: Final = 64 << 20


class Adding:
    """Adds ``paths`` to one channel. ``meter`` is told the bytes of all of them; what need not be read, because it is
    unchanged or was hashed before an interruption, goes from the total of several, so that it is no rate; of one file
    it is told as here already."""

    def __init__(
        self, store: Store, paths: Sequence[Path], channel: JoinedChannel, *, copy: bool, meter: Meter | None
    ) -> None:
        self._store = store
        self._paths = paths
        self._channel = channel
        self._copy = copy
        self._meter = meter
        self._sizes: list[int] = []
        self._total = 0
        self._done = 0
        self._note: str | None = None  # what is waited for once nothing is left to be read
        self._last = ("", 0)  # the file told of last, and what was here of it

    async def batches(self) -> AsyncGenerator[list[Outcome]]:
        """What became of the files, in their order, as it is recorded. An error stands for the file it is about."""
        self._sizes = await asyncio.to_thread(_sizes, self._paths)
        self._total = sum(self._sizes)
        at = 0
        while at < len(self._paths):
            end = self._run_from(at)
            if end - at > 1:
                yield await self._together(at, end)
            else:
                end = at + 1
                yield [(self._paths[at], await self._alone(at))]
            at = end

    @contextlib.contextmanager
    def telling(self, count: int) -> Iterator[None]:
        """While the block runs the daemon is told of so many files, and by it the hub: that takes longer than reading
        small ones does."""
        self._note = f"waiting until the hub knows of {count:,} file{'' if count == 1 else 's'}"
        self._all_told()
        try:
            yield
        finally:
            self._note = None

    def _run_from(self, at: int) -> int:
        """Where the run of small files that begins at ``at`` ends."""
        end, size = at, 0
        while (
            not self._copy
            and end < min(len(self._paths), at + MOST_AT_ONCE)
            and self._sizes[end] <= SMALL_FILE
            and size < _BATCH
        ):
            size += self._sizes[end]
            end += 1
        return end

    async def _together(self, at: int, end: int) -> list[Outcome]:
        begun = 0

        def moving(count: int, name: str) -> None:
            nonlocal begun
            self._done += sum(self._sizes[at + begun : at + count])
            begun = count
            self._tell(0, name)

        before = self._done
        paths = self._paths[at:end]
        found: list[Stored | EntrepotError]
        try:
            found = await self._store.add_batch(
                paths, channel=self._channel.scope, lock=self._channel.lock, progress=moving if self._meter else None
            )
        except EntrepotError as error:  # it is the store's, and so each file's
            found = [error] * len(paths)
        self._done = before + sum(self._sizes[at:end])
        self._last = paths[-1].name, 0
        self._all_told()
        return list(zip(paths, found, strict=True))

    async def _alone(self, at: int) -> Stored | EntrepotError:
        path, size = self._paths[at], self._sizes[at]
        skipped = here = 0
        begun = False

        def moving(done: int, length: int) -> None:
            nonlocal skipped, here, begun
            if not begun:
                begun = True
                before = done if done < length and not self._copy else 0
                skipped, here = (before, 0) if len(self._paths) > 1 else (0, before)
                self._total -= skipped
            self._tell(done - skipped, path.name, here)

        self._tell(0, path.name)
        try:
            added = await self._store.add(
                path,
                channel=self._channel.scope,
                lock=self._channel.lock,
                copy=self._copy,
                progress=moving if self._meter else None,
            )
        except EntrepotError as error:
            self._total -= size - skipped
            return error
        if added.unchanged:
            self._total -= size
        else:
            self._done += size - skipped
        return added

    def _tell(self, done: int, name: str, here: int = 0) -> None:
        if self._meter is not None:
            self._last = name, here
            self._meter.count(self._done + done, self._total, self._note, name, here)

    def _all_told(self) -> None:
        """Tell at once if nothing is left to be read."""
        if self._meter is not None and self._done >= self._total:
            self._meter.count(self._done, self._total, self._note, *self._last)
            self._meter.close()


async def one_ahead[T](source: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """What ``source`` gives, the next of which is made while the caller works with one."""

    async def following() -> T | None:
        return await anext(source, None)

    task = asyncio.create_task(following())
    try:
        while (one := await task) is not None:
            task = asyncio.create_task(following())
            yield one
    finally:
        task.cancel()
        await asyncio.wait([task])


def _sizes(paths: Sequence[Path]) -> list[int]:
    """Of each path the bytes of the file there, 0 where there is none."""
    sizes = []
    for path in paths:
        try:
            found = identify(path)
        except EntrepotError:  # told when it is its turn
            found = None
        sizes.append(0 if found is None else found.size)
    return sizes
