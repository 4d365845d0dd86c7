"""A process of the simulated world: it can die or stand still at every call to anything outside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any, Final

from tests.simulation.loop import VirtualLoop
from tests.simulation.plan import Crash, Stall
from tests.simulation.trace import Trace

#: Unix time at which worlds begin.
EPOCH: Final = 1_000_000.0
#: The process whose code runs.
WHO: ContextVar[str] = ContextVar("who", default="")


class Process:
    """One life of a hub or node; ``name`` lasts, the object is made anew at every start. Calls of a dead process are
    cancelled, their effects are not told to anybody."""

    def __init__(self, name: str, loop: VirtualLoop, trace: Trace, died: Callable[[Process, float], None]) -> None:
        self.name = name
        self.alive = True
        self.skew = 0.0
        self.stalled_until = 0.0
        self._loop = loop
        self._trace = trace
        self._died = died
        self.context = copy_context()
        self._root: asyncio.Task[None] | None = None
        self._crashes: list[list[Any]] = []  # [moment, calls left, after, seconds down]
        self._stalls: list[Stall] = []

    def arm(self, crashes: list[Crash], stalls: list[Stall]) -> None:
        """What will happen to it; what lies in the past happened to a former life."""
        now = self._loop.time()
        self._crashes = [[c.start, c.call, c.after, c.down] for c in crashes if c.start >= now]
        self._stalls = [stall for stall in stalls if stall.start >= now]

    def clock(self) -> float:
        """Unix time by its own clock."""
        return EPOCH + self._loop.time() + self.skew

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run its life."""
        self.context.run(WHO.set, self.name)
        self._root = self._loop.create_task(work, context=self.context)
        return self._root

    def kill(self, down: float | None = None) -> None:
        """It dies now and is started again after ``down`` seconds (None: never)."""
        if not self.alive:
            return
        self.alive = False
        self._trace.add(self._loop.time(), self.name, "dies")
        if self._root is not None:
            self._root.cancel()
        if down is not None:
            self._died(self, down)

    async def outside(self, delay: float, effect: Callable[[], Any]) -> Any:
        """Have ``effect`` happen after ``delay``; it does even if this process dies meanwhile."""
        crash = await self.passed()
        future = self._loop.create_future()
        self._loop.call_later(delay, _happen, effect, future)
        result = await future
        if not self.alive:
            raise asyncio.CancelledError
        if crash is not None:
            await self._die(crash)
        if self.stalled_until > self._loop.time():
            await asyncio.sleep(self.stalled_until - self._loop.time())
        return result

    async def passed(self) -> float | None:
        """Come to a call: die or stand still there, if it is the moment. How long it stays down if it is to die after
        the call."""
        if not self.alive:
            raise asyncio.CancelledError
        now = self._loop.time()
        for stall in self._stalls:
            if now >= stall.start:
                self._stalls.remove(stall)
                self.stalled_until = max(self.stalled_until, now + stall.seconds)
                self._trace.add(now, self.name, "stands still")
                break
        if self.stalled_until > now:
            await asyncio.sleep(self.stalled_until - now)
        after: float | None = None
        for crash in self._crashes:
            if now >= crash[0]:
                crash[1] -= 1
                if crash[1] <= 0:
                    self._crashes.remove(crash)
                    if crash[2]:
                        after = crash[3]
                    else:
                        await self._die(crash[3])
                break
        return after

    async def _die(self, down: float) -> None:
        self.kill(down)
        await self._loop.create_future()  # cancelled with all tasks of the process


def _happen(effect: Callable[[], Any], future: asyncio.Future[Any]) -> None:
    try:
        result = effect()
    except Exception as error:
        if not future.done():
            future.set_exception(error)
        return
    if not future.done():
        future.set_result(result)
