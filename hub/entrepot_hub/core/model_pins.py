"""The model ledger's pins, and which nodes it takes to be online."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Container, Iterable
from dataclasses import replace

from entrepot.core.errors import NotFound
from entrepot.core.identifiers import Opening
from entrepot_hub.core.eviction import ONLINE
from entrepot_hub.core.ledger import ObjectRef
from entrepot_hub.core.pins import Pin, Pinned, check_room


class ModelPins:
    """A part of :class:`~entrepot_hub.core.model_ledger.ModelLedger`."""

    def __init__(self) -> None:
        self._pins: dict[str, dict[bytes, Pin]] = {}
        self._seen: dict[str, float] = {}

    @abstractmethod
    def opening(self, channel: str, stream: bytes) -> Opening | None:
        """See ``Ledger.opening``."""

    @abstractmethod
    def _stored(self, channel: str, stream: bytes) -> tuple[int, int]:
        """(objects, bytes) of the stream in the bucket under any lock."""

    @abstractmethod
    def _quota(self, channel: str) -> int:
        """The channel's quota in bytes; NotFound (no-such-channel)."""

    def see(self, node: str, now: float) -> None:
        """The node was heard."""
        self._seen[node] = now

    def pin(self, channel: str, pin: Pin, reserve: int) -> Pinned:
        """See ``Ledger.pin``."""
        quota, pins = self._quota(channel), self._pins.setdefault(channel, {})
        before = pins.get(pin.stream)
        new = self._pinned(channel, pin if before is None else replace(before, kind=pin.kind))
        if before is None:
            if new.length is None and not new.objects:
                raise NotFound("the channel knows no such stream", kind="no-such-stream", stream=pin.stream.hex())
            check_room(quota, self.pins(channel), new, reserve)
        pins[pin.stream] = new.pin
        return new

    def unpin(self, channel: str, stream: bytes, actor: str, now: float) -> bool:
        """See ``Ledger.unpin``."""
        del actor, now
        self._quota(channel)
        return self._pins.get(channel, {}).pop(stream, None) is not None

    def pins(self, channel: str) -> list[Pinned]:
        """See ``Ledger.pins``."""
        self._quota(channel)
        found = sorted(self._pins.get(channel, {}).values(), key=lambda pin: (pin.at, pin.stream))
        return [self._pinned(channel, pin) for pin in found]

    def _pinned(self, channel: str, pin: Pin) -> Pinned:
        opening = self.opening(channel, pin.stream)
        return Pinned(pin, None if opening is None else opening.length, *self._stored(channel, pin.stream))

    def _is_pinned(self, ref: ObjectRef) -> bool:
        return ref.stream in self._pins.get(ref.channel, {})

    def _holders_online(self, members: Container[str], holders: Iterable[str], now: float) -> int:
        """How many holders are online; one of which nothing was noted yet counts."""
        since = now - ONLINE
        return sum(1 for node in holders if node in members and self._seen.get(node, math.inf) > since)
