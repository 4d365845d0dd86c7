"""How many requests to a bucket at once: as many as bring more bytes per second, and no more.

A :class:`Concurrency` is told what each request brought and answers with a limit. It climbs while climbing pays, goes
back where it does not, tries now and then whether fewer do as well, and halves when a bucket says that it is too much.
Requests count in rounds: the rate of a limit is judged by requests that began and ended under it, while all of it was
in use. What arrives slowly because nothing more is there to be fetched says nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

#: The rate of a round is judged after so many seconds of all its requests, in units of the limit …
ROUND: Final = 0.5
#: … and after so many requests, in the same unit.
REQUESTS: Final = 1
#: What twice as many requests must bring at least to be worth it, and what half as many may lose at most.
GAIN: Final = 0.1
LOSS: Final = 0.05
#: Rounds after which another limit is tried again: first, and at most.
REST: Final = 8
REST_MOST: Final = 64


class Outcome(Enum):
    """How a request ended."""

    WELL = "well"
    THROTTLED = "throttled"  # 429 or 503: the bucket wants fewer
    FAILED = "failed"  # anything else, which more or fewer requests would not have changed


class _Trial(Enum):
    NONE = "none"
    MORE = "more"
    FEWER = "fewer"


class Concurrency:
    """The limit, between 1 and ``most``, beginning with ``start``. Times in seconds."""

    def __init__(self, start: int = 4, most: int = 16) -> None:
        self.most = max(most, 1)
        self.limit = min(max(start, 1), self.most)
        self._round = 0
        self._trial = _Trial.NONE  # what the present limit is tried for
        self._next = _Trial.MORE  # what is tried when the present round is over
        self._settled = self.limit  # what a trial that fails goes back to
        self._rate: float | None = None  # bytes/s at that limit, while trials go on
        self._moved = False  # whether a trial was worth it since the last rest
        self._careful = False  # a bucket once said that it was too much: one more at a time
        self._rest = 0  # rounds until trials begin again
        self._next_rest = REST
        self._clear()

    def begun(self) -> int:
        """A request begins: what :meth:`ended` is to be told with it."""
        return self._round

    def ended(self, begun: int, count: int, seconds: float, outcome: Outcome, *, busy: int) -> None:
        """A request that began at ``begun`` brought ``count`` bytes in ``seconds``; ``busy`` were under way at its end,
        itself among them."""
        if begun != self._round:
            return
        if outcome is Outcome.THROTTLED:
            self._halve()
        elif outcome is Outcome.WELL and busy >= self.limit:
            self._count += 1
            self._bytes += count
            self._seconds += max(seconds, 1e-6)
            if self._seconds >= ROUND * self.limit and self._count >= REQUESTS * self.limit:
                self._judge(self.limit * self._bytes / self._seconds)

    def _clear(self) -> None:
        self._count = self._bytes = 0
        self._seconds = 0.0

    def _move(self, limit: int) -> None:
        self.limit = limit
        self._round += 1
        self._clear()

    def _halve(self) -> None:
        self._careful = True
        self._settled = max(self.limit // 2, 1)
        self._pause()
        self._move(self._settled)

    def _pause(self) -> None:
        """No trials for some rounds, for more of them each time that trials brought nothing."""
        if self._moved:
            self._next_rest = REST
        self._rest, self._next_rest = self._next_rest, min(self._next_rest * 2, REST_MOST)
        self._trial, self._next, self._rate, self._moved = _Trial.NONE, _Trial.MORE, None, False

    def _judge(self, rate: float) -> None:
        """A round is over."""
        base, trial = self._rate, self._trial
        if base is None or trial is _Trial.NONE:
            if self._rest > 0:
                self._rest -= 1
                self._clear()
                return
            self._rate = rate
            self._try()
            return
        if trial is _Trial.MORE:
            worth = rate >= base * (1 + GAIN * min(self.limit / self._settled - 1, 1.0))
        else:
            worth = rate >= base * (1 - LOSS)
        if worth:
            self._settled, self._rate, self._moved = self.limit, rate, True
            self._try()
            return
        self._move(self._settled)
        if self._moved or trial is _Trial.FEWER:
            self._pause()
        else:  # the rate at the old limit is taken anew, then the other way is tried
            self._trial, self._next, self._rate = _Trial.NONE, _Trial.FEWER, None

    def _try(self) -> None:
        """Goes on with another limit, if there is one."""
        if self._next is _Trial.MORE:
            limit = min(self._settled + (1 if self._careful else self._settled), self.most)
            if limit == self._settled and not self._moved:
                self._next = _Trial.FEWER
        if self._next is _Trial.FEWER:
            limit = max(self._settled // 2, 1)
        if limit == self._settled:
            self._pause()
            self._clear()
            return
        self._trial = self._next
        self._move(limit)
