"""How fast bytes may move: limits as people write them, and the bucket of tokens that keeps to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from entrepot.core.errors import EntrepotError, InvalidInput
from entrepot.core.units import format_rate, parse_size

#: The smallest limit, in bytes/s: below it an upload could not keep its lease (see ``floor_rate`` of the exchange).
SLOWEST: Final = 32 << 10
#: Seconds of the rate that may move at once: half of it as one piece, half to catch up with what a late thread missed.
BURST: Final = 0.05
_OFF: Final = "off"


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Limits in bytes/s of all that a process sends (``up``) and receives (``down``); None is no limit."""

    up: int | None = None
    down: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``10M`` for both ways, ``2M:10M`` for up and down, ``off`` for no limit on either or one of them.

        Bytes/s with K, M, G as in sizes. Raises ``invalid-input``, also for less than 32 KiB/s.
        """
        first, colon, second = text.strip().partition(":")
        up = _limit(first, text)
        return cls(up, _limit(second, text) if colon else up)

    def __str__(self) -> str:
        """As it is written: ``off``, ``10M``, ``2M:off``."""
        up, down = _written(self.up), _written(self.down)
        return up if up == down else f"{up}:{down}"


def _limit(text: str, whole: str) -> int | None:
    if text.lower() == _OFF:
        return None
    hint = (
        "Write a whole number of bytes per second with K, M or G: "
        "10M for both ways, 2M:10M for up and down, off for no limit."
    )
    try:
        rate = parse_size(text)
    except EntrepotError:
        raise InvalidInput(f"{whole[:50]!r} is no limit of bandwidth", hint=hint) from None
    if rate < SLOWEST:
        raise InvalidInput(f"{whole[:50]!r} is too slow: {format_rate(SLOWEST)} is the least", hint=hint)
    return rate


def _written(rate: int | None) -> str:
    if rate is None:
        return _OFF
    for shift, letter in ((30, "G"), (20, "M"), (10, "K")):
        if rate % (1 << shift) == 0:
            return f"{rate >> shift}{letter}"
    return str(rate)


class TokenBucket:
    """Keeps all who ask it to ``rate`` bytes/s together: in any time ``t`` at most ``rate * (t + BURST)`` bytes.

    ``now`` is any monotonic clock, in seconds. Who asks waits as long as it is told and then moves what it asked for,
    in the order in which they asked.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        #: The most bytes to ask for at once.
        self.quantum = max(int(rate * BURST / 2), 1)
        self._paid_until = float("-inf")

    def reserve(self, count: int, now: float) -> float:
        """Seconds after which ``count`` bytes, at most :attr:`quantum`, may move."""
        start = max(self._paid_until, now - BURST / 2)
        self._paid_until = start + count / self.rate
        return max(start - now, 0.0)

    def refund(self, count: int) -> None:
        """So many of the bytes that were reserved did not move."""
        self._paid_until -= count / self.rate
