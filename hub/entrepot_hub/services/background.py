"""Work that nobody waits for: started from anywhere, bounded, ended with the hub, and never silent when it fails."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

from entrepot.core.errors import EntrepotError
from entrepot_hub.core.rates import Tally


class Background:
    """A task group whose tasks fail alone. Trouble outside (an unreachable bucket, a busy database) is a warning and is
    met again by the next timer; what stays is told once a minute, with how many ``times``. Anything else is our
    mistake: it is logged with its traceback and counted, and the hub's readiness shows it."""

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._log = structlog.get_logger("background")
        self._troubles = Tally()
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

    @property
    def tasks(self) -> int:
        """Pieces of work under way."""
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run it. When too much runs already it is dropped (False) and counted: every verb is said again."""
        if self._group is None or len(self._tasks) >= self._most:
            self.refused += 1
            work.close()
            return False
        task = self._group.create_task(self.guard(work))
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            work.close()  # cancelled before it began: nobody else closes it

        task.add_done_callback(over)
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
            about = {name: error.data[name] for name in ("channel", "bucket") if error.data.get(name) is not None}
            name = repr((error.kind, error.message, about))
            count = self._troubles.note(name, asyncio.get_running_loop().time())
            if count:
                again = {} if count == 1 else {"times": count}
                self._log.warning("trouble", kind=error.kind, why=error.message, **about, **again)
        except Exception:  # noqa: BLE001
            self.mistakes += 1
            self._log.exception("mistake")


class Lanes:
    """Work of many channels side by side, of each so many pieces at once and so many waiting: a bucket that hangs or
    fails holds up nobody else's. What a piece raises goes to whoever guards what ``spawn`` runs; the rest goes on."""

    def __init__(
        self, spawn: Callable[[Coroutine[Any, Any, None]], object], *, wide: int = 8, most: int = 10_000
    ) -> None:
        self._spawn = spawn
        self._wide = wide
        self._most = most
        self._waiting: dict[str, deque[Callable[[], Awaitable[object]]]] = {}
        self._running: dict[str, int] = {}

    def put(self, channel: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Have it done; False, and it is not, where too much waits in the channel already."""
        waiting = self._waiting.setdefault(channel, deque())
        if len(waiting) >= self._most:
            self._start(channel)
            return False
        waiting.append(work)
        self._start(channel)
        return True

    def busy(self, channel: str) -> bool:
        """Whether anything of the channel waits or runs."""
        self._start(channel)
        return channel in self._waiting or channel in self._running

    def clear(self, channel: str) -> None:
        """Forget what waits in the channel."""
        self._waiting.pop(channel, None)

    def _start(self, channel: str) -> None:
        while len(self._waiting.get(channel, ())) > 0 and self._running.get(channel, 0) < self._wide:
            self._running[channel] = self._running.get(channel, 0) + 1
            work = self._next(channel)
            if self._spawn(self._run(channel, work)) is False:  # too much runs already: it waits for the next call
                self._waiting.setdefault(channel, deque()).appendleft(work)
                self._ended(channel)
                return

    def _next(self, channel: str) -> Callable[[], Awaitable[object]]:
        waiting = self._waiting[channel]
        work = waiting.popleft()
        if not waiting:
            del self._waiting[channel]
        return work

    async def _run(self, channel: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            self.clear(channel)  # the hub stops
            raise
        finally:
            self._ended(channel)
            self._start(channel)

    def _ended(self, channel: str) -> None:
        self._running[channel] -= 1
        if not self._running[channel]:
            del self._running[channel]
