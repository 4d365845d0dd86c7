"""When a request of the hub to a bucket is made again: full jitter, the server's wish, one deadline for all of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from botocore.exceptions import ClientError

from entrepot_hub.adapters.buckets.s3_errors import ENDED_KEYS, code_of, setback

#: The first pause is at most this long, in seconds; each further one at most twice as long.
BASE: Final = 0.2
#: The longest pause that nobody asked for.
LONGEST: Final = 5.0


class Tries:
    """The requests of one operation, which together take at most ``total`` seconds; each is made at most ``attempts``
    times.

    ``wait`` sleeps and returns whether to give up. ``renew`` gets other keys once the provider says that these have
    ended; ``False``: there are none. ``failed`` is what the first try of the first request raised, if somebody else
    made it. Not for several threads.
    """

    def __init__(
        self,
        *,
        attempts: int,
        total: float,
        wait: Callable[[float], bool],
        renew: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        failed: Exception | None = None,
    ) -> None:
        self._attempts = attempts
        self._end = clock() + total
        self._wait = wait
        self._renew = renew
        self._clock = clock
        self._chance = chance
        self._failed = failed
        #: Whether the last request was made more than once: an earlier try may have done what it asked for.
        self.repeated = False

    @property
    def left(self) -> float:
        """Seconds until the operation has to be over."""
        return self._end - self._clock()

    def make[T](self, request: Callable[[], T]) -> T:
        """The answer to the request, which must be safe to repeat. Raises what its last try raised."""
        self.repeated = False
        renewed = False
        tries = 0
        while True:
            try:
                failed, self._failed = self._failed, None
                if failed is not None:
                    raise failed
                return request()
            except Exception as error:
                if isinstance(error, ClientError) and code_of(error) in ENDED_KEYS and not renewed and self._renew():
                    renewed = True
                    continue
                tries += 1
                asked = setback(error)
                if asked is None or tries >= self._attempts:
                    raise
                pause = max(self._chance() * min(LONGEST, BASE * 2 ** (tries - 1)), asked)
                # Waiting for longer than there is time would only bring the error later.
                if pause >= self.left or self._wait(pause):
                    raise
                self.repeated = True
