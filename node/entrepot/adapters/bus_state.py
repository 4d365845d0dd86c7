"""How a bus is set up, where it stands and what it counted."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    """How a bus behaves. Times are seconds."""

    connect_timeout: float = 5.0
    flush_timeout: float = 5.0
    ping_interval: int = 20  # two unanswered pings end a dead connection
    max_payload: int = 65536  # bytes
    pending: int = 1024  # messages that wait for one subscription's handler
    pending_bytes: int = 8 << 20
    max_requests: int = 4096  # at once
    max_subscriptions: int = 4000  # at once; the hub's limit for a node is 4,096
    backoff_first: float = 0.5
    backoff_longest: float = 10.0
    stable_after: float = 5.0  # a connection that lived so long starts the back-off afresh
    refresh_from: float = 0.5  # of the JWT's life
    refresh_until: float = 0.7
    close_timeout: float = 10.0  # what handlers get to end when the bus is closed
    renew_timeout: float = 30.0
    renew_again: float = 15.0  # after a renewal that failed; less when little life is left
    refresh_grace: float = 2.0  # what requests under way get before a planned reconnect
    tls: ssl.SSLContext | None = field(default=None, repr=False)  # for tls:// and wss://; None: the system's


class BusState(StrEnum):
    """Where a bus stands. ``revoked`` and ``closed`` are final."""

    CONNECTING = "connecting"
    UP = "up"
    REFRESHING = "refreshing"
    DOWN = "down"
    REVOKED = "revoked"
    CLOSED = "closed"


@dataclass(slots=True)
class BusStats:
    """Counters since the bus was started."""

    connects: int = 0
    losses: int = 0
    refreshes: int = 0
    renewals: int = 0
    renew_failures: int = 0
    violations: int = 0
    dropped: int = 0  # messages that found a full queue
    handler_errors: int = 0
