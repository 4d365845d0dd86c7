"""An event loop in virtual time: its clock jumps to the next timer, so an hour of waiting costs nothing.

Deterministic: timers run in the order of their times, of equals in the order in which they were set; work for threads
is done at once; tasks have their serial number for a hash, so that a set of them has one order in every process.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any


class Standstill(RuntimeError):
    """Nothing is ready and no timer is set: whoever still waits waits for ever."""


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, work: Coroutine[Any, Any, Any], serial: int, **more: Any) -> None:
        self.serial = serial
        super().__init__(work, **more)

    def __hash__(self) -> int:
        return self.serial

    def __eq__(self, other: object) -> bool:
        return self is other


class _Timers:
    """What the loop takes for a selector: instead of waiting it moves the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Let the time pass in which nothing happens."""
        if timeout is None:
            raise Standstill("nothing will ever happen")
        if timeout > 0:
            self._loop.leap()
        return []

    def close(self) -> None:
        """There is nothing to close."""


class VirtualLoop(BaseEventLoop):
    """``now`` begins at 0.0 seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.timer = Timer
        self._selector = _Timers(self)
        serials = count(1)
        self.set_debug(False)
        self.set_task_factory(lambda loop, work, **more: _Task(work, next(serials), loop=loop, **more))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def leap(self) -> None:
        """Jump to the next timer."""
        self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """As asyncio has it; of equal times the first that was set runs first."""
        handle = self.timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, handle)  # type: ignore[attr-defined]
        handle._scheduled = True  # type: ignore[attr-defined]
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Done at once, on the loop: there are no threads here."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _process_events(self, events: list[Any]) -> None:
        """There is nothing outside."""

    def _write_to_self(self) -> None:
        """Nobody waits in a system call."""


class Timer(asyncio.TimerHandle):
    """A timer that also compares by when it was set."""

    _serials = count()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.serial = next(Timer._serials)

    def __lt__(self, other: Any) -> bool:
        mine, others = self._when, other._when  # type: ignore[attr-defined]
        return bool(self.serial < other.serial if mine == others else mine < others)


def finish(loop: VirtualLoop) -> None:
    """End whatever still runs, and close."""
    loop.set_exception_handler(lambda _loop, _context: None)
    for _ in range(20):
        left = sorted(asyncio.all_tasks(loop), key=hash)
        if not left:
            break
        for task in left:
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
