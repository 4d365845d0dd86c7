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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

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
        self._arm()

    async def run(self) -> None:
        """Call the machine when it wants to be called; for ever. Raises what the machine or ``perform`` raises then."""
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        try:
            self._arm()
            await self._ended
        finally:
            self._loop = None
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

    def _arm(self) -> None:
        """Have :meth:`_ring` called in time. An alarm that is early is left as it is: it looks again. Most events move
        the time into the future, and then an event costs no timer."""
        if self._loop is None:
            return
        at = self._machine.timer()
        if at is None or (self._alarm is not None and self._alarm_at <= at):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = self._loop.call_later(max(at - self._clock(), 0.0), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        try:
            at = self._machine.timer()
            if at is not None and at <= self._clock():
                self.feed(self._machine.tick)
            else:
                self._arm()
        except Exception as error:  # noqa: BLE001  # raised to whoever runs the driver
            if self._ended is not None and not self._ended.done():
                self._ended.set_exception(error)
