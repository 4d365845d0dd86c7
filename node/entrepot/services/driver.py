"""Drives one of the exchange's state machines: events in, effects out, and a wake-up when time matters."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol


class Machine[E](Protocol):
    """What a driver needs of a machine. Times in seconds of any monotonic clock."""

    def tick(self, now: float) -> list[E]:
        """Time passed."""
        ...

    def timer(self) -> float | None:
        """When :meth:`tick` wants to be called next."""
        ...


class Driver[E]:
    """Feeds ``machine`` one event after another and hands each effect to ``perform``, which must not wait.

    An effect that is followed at once by another event (performed inside :meth:`feed`) is finished first: effects
    are carried out in the order in which they were decided.
    """

    def __init__(self, machine: Machine[E], perform: Callable[[E], None], clock: Callable[[], float]) -> None:
        self._machine = machine
        self._perform = perform
        self._clock = clock
        self._events: deque[Callable[[float], Sequence[E]]] = deque()
        self._feeding = False
        self._woken = asyncio.Event()

    def feed(self, event: Callable[[float], Sequence[E]]) -> None:
        """``event(now)`` tells the machine what happened and returns its effects."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                for effect in self._events.popleft()(self._clock()):
                    self._perform(effect)
        finally:
            self._feeding = False
        self._woken.set()

    async def run(self) -> None:
        """Call the machine when it wants to be called; for ever."""
        while True:
            self._woken.clear()
            at = self._machine.timer()
            wait = None if at is None else at - self._clock()
            if wait is None or wait > 0:
                try:
                    async with asyncio.timeout(wait):
                        await self._woken.wait()
                    continue
                except TimeoutError:
                    pass
            self.feed(self._machine.tick)
            await asyncio.sleep(0)
