"""Pins: streams whose objects are never evicted, and how much of a quota they may keep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from entrepot.core.errors import RetryLater
from entrepot.core.units import format_size

#: Objects that must fit beside the pins: with fewer, a stream that flows through the channel would stand still.
RESERVED_OBJECTS = 4


class PinKind(StrEnum):
    """Why a stream stays: somebody asked for it, or the bucket is its home."""

    PIN = "pin"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Pin:
    """A pinned stream. ``actor`` is who asked for it, ``at`` when (unix seconds)."""

    stream: bytes
    kind: PinKind
    actor: str
    at: float


@dataclass(frozen=True, slots=True)
class Pinned:
    """A pin with what it keeps: ``length`` of the stream in bytes (None: not known), ``objects`` and ``stored`` bytes
    of it in the bucket."""

    pin: Pin
    length: int | None
    objects: int
    stored: int

    @property
    def kept(self) -> int:
        """Bytes of the quota that it may come to keep."""
        return max(self.length or 0, self.stored)


def check_room(quota: int, others: Iterable[Pinned], new: Pinned, reserve: int) -> None:
    """RetryLater (over-quota) where less than ``reserve`` bytes of the quota would be left for what is not pinned."""
    kept = sum(pinned.kept for pinned in others)
    left = quota - kept - new.kept
    if left < reserve:
        raise RetryLater(
            f"{format_size(new.kept)} pinned beside {format_size(kept)} would leave {format_size(max(left, 0))} of "
            f"{format_size(quota)} for everything else, which needs {format_size(reserve)}",
            kind="over-quota",
            hint="Raise the channel's quota or unpin another stream",
            quota=quota,
            pinned=kept,
            more=new.kept,
            reserve=reserve,
        )
