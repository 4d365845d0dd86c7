"""A task that keeps a context manager open, so that it can be entered and left from different tasks.

Task groups belong to the task that entered them; a node is opened and closed by whoever uses it, also from the
blocking face, where every call is a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager


class Lifetime[T]:
    """Keeps what ``make()`` gives open between :meth:`start` and :meth:`aclose`."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._end = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether it was closed, or ended by itself."""
        return self._task is not None and self._task.done()

    async def start(self) -> T:
        """Enters it; raises what entering raises. Call it once."""
        entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = self._task = asyncio.create_task(self._run(entered))
        try:
            futures: list[asyncio.Future[object]] = [entered, task]  # type: ignore[list-item]  # invariance
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            entered.cancel()
            task.cancel()
            await asyncio.wait([task])
            raise
        if not entered.done():
            await task
            raise asyncio.CancelledError
        return entered.result()

    async def _run(self, entered: asyncio.Future[T]) -> None:
        try:
            async with self._make() as value:
                entered.set_result(value)
                await self._end.wait()
        except Exception as error:
            if entered.done():
                raise
            entered.set_exception(error)

    async def aclose(self) -> None:
        """Leaves it; raises what leaving raises, or what ended it before. May be called again."""
        self._end.set()
        task = self._task
        if task is not None:
            await asyncio.shield(task)
