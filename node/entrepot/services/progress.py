"""What long work tells of itself: one value for every callback, not more often than an eye can follow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

type Kind = Literal["hash", "get", "put"]
type OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` bytes (0 while the total is not known); ``rate`` in bytes/s over the last seconds;
    ``note``: what is being waited for, in words; ``name``: of several files the one that is in hand; ``here``: so many
    of the bytes done were here before it began, and are no rate; ``share``: how much is done, 0 to 1, where that is
    known without the total."""

    kind: Kind
    done: int
    total: int
    note: str | None = None
    rate: float = 0.0
    name: str | None = None
    here: int = 0
    share: float | None = None


class Meter:
    """Turns counts, which may come from any thread, into calls of ``callback`` on the event loop.

    At most one call in ``every`` seconds, but for the last one (:meth:`close`).
    """

    def __init__(
        self,
        kind: Kind,
        callback: OnProgress | None,
        loop: asyncio.AbstractEventLoop,
        *,
        every: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kind: Kind = kind
        self._callback = callback
        self._loop = loop
        self._every = every
        self._clock = clock
        self._due = clock()
        self._mark = (clock(), 0)
        self._rate = 0.0
        self._marked = False
        self._here = 0
        self._last: tuple[int, int, str | None, str | None, int, float | None] | None = None

    def count(
        self,
        done: int,
        total: int,
        note: str | None = None,
        name: str | None = None,
        here: int = 0,
        share: float | None = None,
        at_once: bool = False,
    ) -> None:
        """``done`` of ``total`` bytes are through, and the rest as in :class:`Progress`. ``at_once``: tell it however
        lately the last was told, for the next may be long in coming."""
        if self._callback is None:
            return
        self._last = (done, total, note, name, here, share)
        now = self._clock()
        if now < self._due and not at_once:
            return
        self._due = now + self._every
        self._tell(now)

    def close(self) -> None:
        """Tell the last count, if it was not told."""
        if self._callback is not None and self._last is not None:
            self._tell(self._clock())

    def _tell(self, now: float) -> None:
        assert self._last is not None
        done, total, note, name, here, share = self._last
        since, before = self._mark
        before, self._here = before + here - self._here, here
        self._mark = (since, before)
        if not self._marked or done < before:
            # What was here before is no rate, and it is not known before the total is.
            self._marked = total > 0
            self._mark = (now, done)
        elif now - since >= 1.0:
            recent = max(done - before, 0) / (now - since)
            self._rate = recent if self._rate == 0.0 else 0.6 * self._rate + 0.4 * recent
            self._mark = (now, done)
        progress = Progress(self._kind, done, total, note, self._rate, name, here, share)
        self._loop.call_soon_threadsafe(self._call, progress)

    def _call(self, progress: Progress) -> None:
        if self._callback is not None:
            self._callback(progress)
