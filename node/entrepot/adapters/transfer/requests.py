"""What a transfer is told and what it answers: plain values, and the token that stops it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from entrepot.core.rate import Bandwidth

#: This program's version.
VERSION: Final = version("entrepot")
#: Told the bytes moved so far in this call, from a worker thread.
type Moved = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """One HTTP request that whoever has it may make: a secret, so its repr shows neither query nor headers.

    ``headers`` must be sent exactly as they are: they are part of the signature. ``agent``: who asks, for the bucket's
    access log; it is not signed.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    agent: str = f"entrepot/{VERSION}"

    def __repr__(self) -> str:
        return f"SignedRequest({self.method} {self.url.partition('?')[0]})"


def agent(transfer: str | None) -> str:
    """How this program names itself to a bucket, with the transfer (16 hexadecimal digits) that a request serves."""
    return f"entrepot/{VERSION} (transfer={transfer})" if transfer else f"entrepot/{VERSION}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """How bytes are moved. Times in seconds, sizes in bytes."""

    slots: int = 16  #: transfers at once, each in a thread with one buffer; fewer if their buffers exceed 4 MiB each
    connect_timeout: float = 10.0
    idle_timeout: float = 30.0  #: without a byte moving
    total_timeout: float = 900.0  #: for one request: a signed URL's life
    attempts: int = 4
    backoff: float = 0.25  #: before the second attempt at most this, then twice, four times …
    backoff_limit: float = 8.0
    retry_after_limit: float = 30.0  #: a server may ask for no longer a pause
    buffer: int = 1 << 20
    bandwidth: Bandwidth = field(default_factory=Bandwidth)  #: the most bytes/s of objects, of all transfers together
    ca_file: str | None = None  #: certificates to trust besides the system's
    http_proxy: str | None = field(default=None, repr=False)
    https_proxy: str | None = field(default=None, repr=False)
    no_proxy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PutOutcome:
    """The bucket's answer to an upload. ``exists``: a create-only PUT met an object (or a tombstone), perhaps our
    own from an attempt whose answer was lost (``attempts`` > 1): compare its digest before believing it."""

    status: int
    etag: str | None
    created: bool
    exists: bool
    attempts: int


class CancelToken:
    """Stops a transfer from any thread: closes the socket it is waiting on. Setting it cancels its children."""

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._guard = threading.Lock()
        self._set = False
        self._sockets: set[socket.socket] = set()
        self._children: set[CancelToken] = set()
        self._parent = parent
        if parent is not None:
            parent.adopt(self)

    def adopt(self, child: CancelToken) -> None:
        """Setting this token sets ``child`` too."""
        with self._guard:
            self._children.add(child)
            gone = self._set
        if gone:
            child.set()

    def close(self) -> None:
        """The transfer is over: its parent forgets it."""
        if self._parent is not None:
            self._parent.disown(self)

    def disown(self, child: CancelToken) -> None:
        """The opposite of :meth:`adopt`."""
        with self._guard:
            self._children.discard(child)

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._set

    def set(self) -> None:
        """Stops the transfer. May be called again."""
        with self._guard:
            self._set = True
            sockets, children = list(self._sockets), list(self._children)
        for found in sockets:
            _shut(found)
        for child in children:
            child.set()

    def attach(self, found: socket.socket) -> None:
        """The transfer waits on this socket from now on."""
        with self._guard:
            self._sockets.add(found)
            gone = self._set
        if gone:
            _shut(found)

    def detach(self, found: socket.socket) -> None:
        """The transfer is done with this socket."""
        with self._guard:
            self._sockets.discard(found)


def _shut(found: socket.socket) -> None:
    # The plain socket's own method: TLS would drop state that the thread waiting on it still uses.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(found, socket.SHUT_RDWR)
