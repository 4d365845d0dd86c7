"""A limit on the bytes per second that all threads of a process move in one direction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from entrepot.adapters.transfer.answers import cancelled
from entrepot.adapters.transfer.requests import CancelToken
from entrepot.core.rate import TokenBucket

#: Seconds after which a thread that waits looks whether it is to stop.
_LOOK: Final = 0.05


class Throttle:
    """One direction's limit in bytes/s, None for none. ``clock`` is monotonic; ``pause`` waits so many seconds."""

    def __init__(
        self,
        rate: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = None if rate is None else TokenBucket(rate)
        self._clock = clock
        self._pause = pause
        self._guard = threading.Lock()

    def take(self, count: int, token: CancelToken) -> int:
        """How many of ``count`` bytes may move now, at least one; blocks until then. Raises ``cancelled``."""
        bucket = self._bucket
        if bucket is None:
            return count
        count = min(count, bucket.quantum)
        with self._guard:
            at = self._clock()
            at += bucket.reserve(count, at)
        while (left := at - self._clock()) > 0:
            if token.is_set():
                self.give_back(count)
                raise cancelled()
            self._pause(min(left, _LOOK))
        return count

    def give_back(self, count: int) -> None:
        """So many bytes that were taken did not move after all."""
        if self._bucket is not None and count:
            with self._guard:
                self._bucket.refund(count)
