"""The daemon's local HTTP API as values, and how errors travel in it.

======================  ======================================================================
``GET /v1/status``      :class:`DaemonStatus`
``POST /v1/added``      :class:`AddedRequest`: these streams are new in the store
``POST /v1/hubs``       a hub or a channel was joined: read ``hubs.json`` again
``POST /v1/stop``       withdraw and end
``GET /metrics``        for Prometheus; ``/healthz`` and ``/readyz``: see :mod:`entrepot.services.observation`
======================  ======================================================================

Everything is JSON; an error is ``{"error": {"kind", "message", "hint", "data"}}`` as everywhere. The socket is its
owner's only (0600): who can open it may do all of this.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from entrepot.core.api import Fault
from entrepot.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    EntrepotError,
    InvalidInput,
    NotFound,
    RetryLater,
    to_wire,
)

MAX_BODY: Final = 4 << 20
#: Streams in one request, uploads and channels in one status.
MAX_STREAMS: Final = 10_000
MAX_UPLOADS: Final = 256

StreamHex = Annotated[str, msgspec.Meta(pattern="^f[c-f][0-9a-f]{62}$")]


class AddedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """These streams were added to the store, or fetched."""

    streams: Annotated[tuple[StreamHex, ...], msgspec.Meta(max_length=MAX_STREAMS)]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """It was done. ``told``: announcements made to hubs."""

    ok: bool = True
    told: int = 0


class UploadView(msgspec.Struct, frozen=True, kw_only=True):
    """One object being uploaded; ``sent`` and ``size`` in bytes."""

    channel: str
    stream: str
    object: int
    stage: str
    sent: int
    size: int


class HubView(msgspec.Struct, frozen=True, kw_only=True):
    """How the daemon stands with one hub. ``state``: ``connecting``, ``up``, ``down``, ``unreachable``, ``denied``;
    ``since`` in unix seconds; ``reason`` says why it is not up."""

    host: str
    url: str
    name: str
    node: str
    state: str
    since: float
    reason: Fault | None
    channels: tuple[str, ...]
    offered_channels: tuple[str, ...]
    uploads: tuple[UploadView, ...]
    seeks: int = 0
    offers: int = 0
    grants: int = 0
    uploaded_objects: int = 0
    uploaded_bytes: int = 0
    failures: int = 0
    last_failure: Fault | None = None


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The running daemon. ``instance`` is new at every start; ``started`` in unix seconds; sizes in bytes.
    ``bwlimit``: its limit of bandwidth, as ``--bwlimit`` takes it."""

    pid: int
    instance: str
    version: str
    started: float
    home: str
    hubs: tuple[HubView, ...]
    streams: int
    stored_bytes: int
    linked_bytes: int
    bwlimit: str = "off"


def fault_of(error: EntrepotError | None) -> Fault | None:
    """The error as an answer shows it."""
    return None if error is None else msgspec.convert(to_wire(error), Fault)


def status_of(error: EntrepotError) -> int:
    """The HTTP status of an error's class."""
    match error:
        case NotFound():
            return 404
        case Denied():
            return 403
        case Conflict():
            return 409
        case RetryLater():
            return 503
        case Corrupt():
            return 422
        case InvalidInput():
            return 400
        case _:
            return 500
