"""The free upload slots of sessions, whatever streams they are for."""

from __future__ import annotations

from weakref import WeakSet, WeakValueDictionary

type Session = tuple[str, str]

#: A grant that was made so shortly before an offer was heard may have been unknown to its session.
UNDERWAY = 0.25
#: What offers tell of a session is believed for so many seconds, and at most twice as long.
HOLD = 1.0


class Seat:
    """A session's upload slots: as many as it seems to have, less its live grants, and less the proposals on their way
    to the ledger.

    How many it has is what its offers say is free, and what it was granted that it knew of then. Either may be older
    than what has happened since, and then the sum is too small; so the largest one lately heard counts. One that was
    too large the session itself corrects, by declining.
    """

    __slots__ = ("__weakref__", "_before", "_granted", "_latest", "_reserved", "_since", "_vacant")

    def __init__(self, vacant: WeakSet[Seat]) -> None:
        self._before = self._latest = 0  # the largest sums of the second before, and of the one since ``_since``
        self._since = float("-inf")
        self._reserved = 0
        self._granted: dict[bytes, float | None] = {}  # live grants: when they were made; None: it knows of this one
        self._vacant = vacant

    @property
    def free(self) -> int:
        """Slots that are neither granted nor proposed."""
        return max(self._before, self._latest) - len(self._granted) - self._reserved

    def heard(self, slots: int, now: float) -> None:
        """The session says how many slots it has free; what was granted just now it may not have known."""
        known = sum(1 for at in self._granted.values() if at is None or at <= now - UNDERWAY)
        if now > self._since + HOLD:
            self._before = self._latest if now <= self._since + 2 * HOLD else 0
            self._latest, self._since = 0, now
        self._latest = max(self._latest, slots + known)
        self._changed()

    def reserve(self) -> None:
        """A slot is proposed."""
        self._reserved += 1
        self._changed()

    def release(self) -> None:
        """The ledger has judged a proposal."""
        self._reserved -= 1
        self._changed()

    def grant(self, grant: bytes, now: float) -> None:
        """A slot is granted."""
        self._granted[grant] = now
        self._changed()

    def accepted(self, grant: bytes) -> None:
        """The session took a grant: it counts it among its own from now on."""
        if grant in self._granted:
            self._granted[grant] = None

    def leave(self, grant: bytes) -> None:
        """A grant is over."""
        self._granted.pop(grant, None)
        self._changed()

    def full(self) -> None:
        """The session knows better what it has free, and that is nothing."""
        self._before = self._latest = min(max(self._before, self._latest), len(self._granted))
        self._changed()

    def _changed(self) -> None:
        if self.free > 0:
            self._vacant.add(self)
        else:
            self._vacant.discard(self)


class Seats:
    """The seats of all sessions that offer something or upload something."""

    def __init__(self) -> None:
        self._seats: WeakValueDictionary[Session, Seat] = WeakValueDictionary()
        self._vacant: WeakSet[Seat] = WeakSet()

    @property
    def vacant(self) -> bool:
        """Whether any session has a free slot."""
        return len(self._vacant) > 0

    def of(self, session: Session) -> Seat:
        """The session's seat, kept as long as somebody else keeps it."""
        seat = self._seats.get(session)
        if seat is None:
            seat = self._seats[session] = Seat(self._vacant)
        return seat
