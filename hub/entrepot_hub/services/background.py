"""Work that nobody waits for: started from anywhere, bounded, ended with the hub, and never silent when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

from entrepot.core.errors import EntrepotError


class Background:
    """A task group whose tasks fail alone. Trouble outside (an unreachable bucket, a busy database) is a warning and is
    met again by the next timer; anything else is our mistake: it is logged with its traceback and counted, and the
    hub's readiness shows it."""

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._log = structlog.get_logger("background")
        self.mistakes = 0
        self.refused = 0

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._group is not None
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run it. When too much runs already it is dropped (False) and counted: every verb is said again."""
        if self._group is None or len(self._tasks) >= self._most:
            self.refused += 1
            work.close()
            return False
        task = self._group.create_task(self.guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before it began: nobody else closes it
        return True

    def every(self, pause: float, work: Callable[[], Awaitable[object]]) -> None:
        """Run ``work`` now and again ``pause`` seconds after it ended, until the end."""

        async def repeat() -> None:
            while True:
                await self.guard(work())
                await asyncio.sleep(pause)

        self.spawn(repeat())

    async def guard(self, work: Awaitable[object]) -> None:
        """Wait for ``work``; whatever it raises is logged and goes no further."""
        try:
            await work
        except EntrepotError as error:
            self._log.warning("trouble", kind=error.kind, why=error.message)
        except Exception:  # noqa: BLE001
            self.mistakes += 1
            self._log.exception("mistake")
