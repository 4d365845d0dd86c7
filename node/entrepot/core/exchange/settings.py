"""What the exchange waits for and how much it does at once: one table of defaults, in seconds and counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: How many times the rate that is needed a throttled transfer has.
_SPARE: Final = 4.0
_MINIBLOCK: Final = 1 << 20  # bytes: what is verified at once, usually
_OBJECT: Final = 4 << 20  # bytes: what is uploaded at once, usually


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeSettings:
    """Settings of the exchange, shared by hub, provider and requester. All times in seconds."""

    #: A want ends after so long without a verified byte.
    want_deadline: float = 60.0
    #: A lease ends after so long without enough growing bytes.
    lease: float = 10.0
    #: How long a signed PUT URL can be used at most; see :meth:`put_life`.
    put_url: float = 900.0
    #: What an upload may take besides the time that its bytes need at ``floor_rate``.
    put_slack: float = 60.0
    #: How long a signed GET URL can be used.
    get_url: float = 600.0
    #: An object that a reader was told about is not evicted for so long; every want for it begins that anew. Shorter
    #: than ``want_deadline``, so that a reader that died does not starve the others.
    read_lease: float = 45.0
    #: How long after its end a PUT that began in time may still land.
    put_grace: float = 300.0
    #: Objects that a requester wants beyond those it is fetching.
    window: int = 8
    #: Objects that a requester fetches at once in the beginning, and at most: it adapts to what that brings.
    fetches: int = 4
    fetches_most: int = 16
    #: Objects that a provider uploads at once.
    slots: int = 4
    #: Grants that a provider keeps waiting for a slot before it calls itself busy.
    queue: int = 8
    #: Objects that one node is granted at once, whatever its sessions say, so that claimed ones gain it nothing.
    uploads: int = 64
    #: How long the hub gathers offers before it chooses.
    offer_window: float = 0.010
    #: An offer is good for so long; it is asked for again after ``offer_refresh``.
    offer_life: float = 20.0
    offer_refresh: float = 10.0
    #: The lease of a session that disconnected ends after so long.
    disconnect_grace: float = 2.0
    #: Bytes/s below which progress does not renew a lease.
    floor_rate: float = 16_384.0
    #: So many failures exclude a provider from a stream for ``exclusion``.
    failures: int = 2
    exclusion: float = 60.0
    #: A grant that was not accepted is sent again after so long.
    resend: float = 0.5
    #: Pauses between two seeks for a stream that nobody offers: they double from the first to the second, then grow
    #: to an eighth of the time that was waited, at most the third.
    seek_again: float = 0.25
    seek_again_quick: float = 4.0
    seek_again_most: float = 60.0
    #: Known holders that are asked before the whole channel is.
    known_holders: int = 8
    #: First and longest time after which a requester asks again.
    again: float = 1.0
    again_most: float = 60.0

    def throttled(self, up: float | None, down: float | None) -> ExchangeSettings:
        """These settings for a node that may move so many bytes/s (None: any number): so few objects at once that each
        upload keeps its lease, no more waiting for their turn than begin while theirs holds, and something verified
        long before a want ends."""
        slots, queue = self.slots, self.queue
        if up is not None:
            slots = min(slots, max(int(up / (_SPARE * self.floor_rate)), 1))
            queue = min(queue, int(up * self.lease / _SPARE / _OBJECT))
        most = self.fetches_most
        if down is not None:
            most = min(most, max(int(down * self.want_deadline / _SPARE / _MINIBLOCK), 1))
        return replace(self, slots=slots, queue=queue, fetches=min(self.fetches, most), fetches_most=most)

    def put_life(self, length: int) -> float:
        """For how many seconds the PUT URL of an object of ``length`` bytes can be used: as long as the slowest upload
        that keeps its lease. What a URL could still do after that serves only who replays it."""
        return min(self.put_url, self.put_slack + length / self.floor_rate)
