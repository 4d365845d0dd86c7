"""How fast nodes upload, measured over the time in which they had something to upload, whatever that was."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp

from entrepot.core.placement import UNIT, UNKNOWN
from entrepot_hub.core.ledger import GrantRecord

#: What was measured so many seconds of uploading ago counts for a third.
MEMORY = 30.0
#: A node is not called slow before it has uploaded for so long: what has gone out is told about every second.
WATCH = 2.5
#: A node that was not heard for so long while it uploads is slower than it was.
QUIET = 3.0


@dataclass(slots=True)
class _Meter:
    """Bytes, and seconds with something to upload, both fading; ``told``: bytes/s when bytes were last heard of."""

    active: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # length and bytes gone out, by grant
    bytes: float = 0.0
    seconds: float = 0.0
    at: float = 0.0
    told: float | None = None
    told_at: float = 0.0
    busy: float = 0.0  # seconds in all
    total: int = 0  # bytes in all

    def advance(self, now: float) -> None:
        passed = max(now - self.at, 0.0)
        self.at = max(now, self.at)
        if self.active:
            fade = exp(-passed / MEMORY)
            self.bytes *= fade
            self.seconds = self.seconds * fade + MEMORY * (1.0 - fade)
            self.busy += passed

    def count(self, more: int, now: float) -> None:
        self.advance(now)
        self.bytes += more
        self.total += more
        if self.seconds > 0.0:
            self.told, self.told_at = self.bytes / self.seconds, now


class Uplinks:
    """Of all nodes that one hub has seen uploading."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    def began(self, grant: GrantRecord, now: float) -> None:
        """The node takes its grant: from now on it uploads."""
        meter = self._meters.setdefault(grant.node, _Meter(at=now, told_at=now))
        meter.advance(now)
        if not meter.active:
            meter.told_at = now  # it had nothing to tell of
        meter.active.setdefault(grant.grant, (grant.length, 0))

    def sent(self, grant: GrantRecord, now: float) -> None:
        """The node told how much of the grant has gone out."""
        meter = self._meters.get(grant.node)
        if meter is not None and grant.grant in meter.active:
            length, before = meter.active[grant.grant]
            if grant.sent > before:
                meter.active[grant.grant] = (length, grant.sent)
                meter.count(grant.sent - before, now)

    def arrived(self, grant: GrantRecord, now: float) -> None:
        """What the grant was for is there. One whose beginning was not seen here counts by its accept."""
        self.began(grant, now)
        meter = self._meters[grant.node]
        _, before = meter.active.pop(grant.grant)
        if grant.accepted_at and meter.told is None and not meter.seconds:
            meter.seconds = min(max(now - grant.accepted_at, 0.0), MEMORY)
        meter.count(grant.length - before, now)

    def stopped(self, grant: GrantRecord, now: float) -> None:
        """The grant was taken from the node: what it told of it counts."""
        meter = self._meters.get(grant.node)
        if meter is not None:
            meter.advance(now)
            meter.active.pop(grant.grant, None)

    def ended(self, grant: GrantRecord, now: float) -> None:
        """The grant is over and nothing came of it: what was told of it is not believed any more."""
        meter = self._meters.get(grant.node)
        if meter is not None and grant.grant in meter.active:
            meter.advance(now)
            _, sent = meter.active.pop(grant.grant)
            if sent:
                meter.bytes = max(meter.bytes - sent, 0.0)
                meter.told = meter.bytes / meter.seconds if meter.seconds > 0.0 else None

    def rate(self, node: str, now: float) -> float | None:
        """Bytes/s, as far as that is known."""
        meter = self._meters.get(node)
        if meter is None:
            return None
        if meter.active and now > meter.told_at + QUIET:
            meter.advance(now)
            return meter.bytes / meter.seconds if meter.seconds else None
        return meter.told

    def guess(self, node: str, now: float) -> float:
        """The same, or what is taken for it until it is known; never nothing."""
        rate = self.rate(node, now)
        return UNKNOWN * UNIT if rate is None else max(rate, 1.0)

    def watched(self, node: str, now: float) -> bool:
        """Whether the node has uploaded for long enough to be called slow."""
        meter = self._meters.get(node)
        if meter is None:
            return False
        meter.advance(now)
        return meter.busy >= WATCH

    def total(self, node: str) -> int:
        """Bytes that the node has told of or brought, ever: only what was told between two times counts."""
        meter = self._meters.get(node)
        return 0 if meter is None else meter.total

    def left(self, node: str) -> int:
        """Bytes that the node is uploading and that have not gone out, as far as it told."""
        meter = self._meters.get(node)
        return 0 if meter is None else sum(length - sent for length, sent in meter.active.values())

    def left_of(self, grant: GrantRecord) -> int:
        """Bytes of the grant that have not gone out, as far as its node told."""
        meter = self._meters.get(grant.node)
        length, sent = (grant.length, 0) if meter is None else meter.active.get(grant.grant, (grant.length, 0))
        return length - sent

    def uploads(self, node: str) -> int:
        """Objects that the node is uploading."""
        meter = self._meters.get(node)
        return 0 if meter is None else len(meter.active)
