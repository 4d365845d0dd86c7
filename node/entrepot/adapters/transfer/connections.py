"""Connections to buckets: kept alive, bounded, through proxies, with private certificate authorities. All blocking."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from entrepot.adapters.transfer.requests import SignedRequest, TransferSettings
from entrepot.core.errors import Denied, InvalidInput

#: Servers close what idles for long; a connection older than this is not used again. Seconds.
KEPT_FOR: Final = 20.0
#: Metadata services that are not at a link-local address: AWS over IPv6, Alibaba, Oracle.
_METADATA: Final = frozenset(ipaddress.ip_address(a) for a in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192"))
_UNSENT: Final = 256 << 10  # bytes that wait in the system's buffer to be sent
_UNSENT_MOST: Final = 1 << 20  # … on a connection that sends them in some hundredths of a second
_RECORD: Final = 16 << 10  # bytes in one record of TLS
_PIECE_MOST: Final = 256 << 10  # bytes given to TLS at once on a fast connection
#: Seconds of a connection's rate that may be on their way without counting as progress.
_AHEAD: Final = 1 / 32


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: the connection's key, and what its request line says."""

    secure: bool
    host: str
    port: int
    proxy: str | None
    line: str

    @property
    def key(self) -> tuple[bool, str, int, str | None]:
        """What connections are kept by."""
        return self.secure, self.host, self.port, self.proxy


@dataclass(slots=True)
class Connection:
    """One open connection. ``reused``: the server may have closed it without our seeing it yet. ``piece``: bytes to
    give TLS at once, which gives nothing back before all of them are out."""

    http: http.client.HTTPConnection
    target: Target
    reused: bool
    piece: int = _RECORD
    unsent: int = 0

    @property
    def socket(self) -> socket.socket:
        """The socket, while it is open."""
        assert isinstance(self.http.sock, socket.socket)
        return self.http.sock

    def ran(self, rate: float) -> None:
        """It sent at ``rate`` bytes/s lately. What was handed to the system counts as sent, and a lease lives on that:
        on a slow line megabytes would seem sent that are not, on a fast one every wake-up costs more than it tells.
        What is on its way is not limited by this, so long lines stay fast."""
        ahead = int(rate * _AHEAD)
        self.piece = min(max(ahead, _RECORD), _PIECE_MOST)
        unsent = _UNSENT_MOST if ahead >= _UNSENT_MOST else _UNSENT
        if unsent != self.unsent and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            self.unsent = unsent
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)

    def close(self) -> None:
        """Closes it. May be called again."""
        self.http.close()


class Connections:
    """A bounded pool. Constructing it does no I/O; :meth:`prepare` reads a file of certificates that is named, the
    system's are read with the first connection that needs them: that takes longer than many a small transfer."""

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings
        self._idle: deque[tuple[float, Connection]] = deque()
        self._guard = threading.Lock()
        self._making = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    def prepare(self) -> None:
        """Reads the extra file of certificates, if there is one. Raises ``invalid-setting``."""
        if self._settings.ca_file is not None:
            self._context()

    def _context(self) -> ssl.SSLContext:
        """What TLS connections trust, made once. Reads files and blocks."""
        with self._making:
            if self._tls is None:
                self._tls = self._made()
            return self._tls

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        if self._settings.ca_file is not None:
            try:
                context.load_verify_locations(self._settings.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise InvalidInput(
                    f"the certificates in {self._settings.ca_file} cannot be used: {error}",
                    kind="invalid-setting",
                    path=self._settings.ca_file,
                ) from error
        return context

    def target(self, request: SignedRequest) -> Target:
        """Raises ``invalid-input`` for a URL that is not http or https."""
        try:
            parts = urlsplit(request.url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidInput(f"not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise InvalidInput("a signed URL is http or https and names a host")
        secure = parts.scheme == "https"
        port = port if port is not None else (443 if secure else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        proxy = self._proxy(secure, host, port)
        line = f"http://{parts.netloc.rpartition('@')[2]}{path}" if proxy is not None and not secure else path
        return Target(secure, host, port, proxy, line)

    def _proxy(self, secure: bool, host: str, port: int) -> str | None:
        proxy = self._settings.https_proxy if secure else self._settings.http_proxy
        if not proxy:
            return None
        return None if is_direct(self._settings.no_proxy, host, port) else proxy

    def take(self, target: Target, *, fresh: bool = False) -> Connection:
        """A connection to ``target``, a kept one unless ``fresh``. Raises what sockets and TLS raise."""
        while not fresh:
            found = self._kept(target)
            if found is None:
                break
            if not readable(found.socket):  # readable: closed, or bytes that belong to no answer
                found.reused, found.target = True, target
                return found
            found.close()
        connection = Connection(self._connect(target), target, reused=False)
        connection.http.connect()
        try:
            if target.proxy is None:
                refuse_metadata(connection.socket.getpeername()[0])
        except BaseException:
            connection.close()
            raise
        connection.socket.settimeout(self._settings.idle_timeout)
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.ran(0.0)
        return connection

    def _kept(self, target: Target) -> Connection | None:
        with self._guard:
            for at in range(len(self._idle) - 1, -1, -1):
                since, connection = self._idle[at]
                if connection.target.key == target.key and time.monotonic() - since < KEPT_FOR:
                    del self._idle[at]
                    return connection
        return None

    def give_back(self, connection: Connection) -> None:
        """Keeps a connection whose answer was read to its end."""
        dropped = []
        with self._guard:
            if self._closed or connection.http.sock is None:
                dropped.append(connection)
            else:
                self._idle.append((time.monotonic(), connection))
                while len(self._idle) > self._settings.slots:
                    dropped.append(self._idle.popleft()[1])
        for old in dropped:
            old.close()

    def close(self) -> None:
        """Closes what is kept. May be called again."""
        with self._guard:
            self._closed = True
            idle, self._idle = list(self._idle), deque()
        for _, connection in idle:
            connection.close()

    def _connect(self, target: Target) -> http.client.HTTPConnection:
        timeout, blocks = self._settings.connect_timeout, self._settings.buffer
        through = None if target.proxy is None else _proxy_parts(target.proxy)
        host, port = (target.host, target.port) if through is None else (through.hostname, through.port)
        assert host is not None
        if not target.secure:
            return http.client.HTTPConnection(host, port, timeout=timeout, blocksize=blocks)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, blocksize=blocks, context=self._context())
        if through is not None:
            connection.set_tunnel(target.host, target.port, proxy_headers(target.proxy))
        return connection


def refuse_metadata(address: str) -> None:
    """Raises ``denied`` for the addresses at which clouds tell a machine its own credentials: no bucket is there, and a
    hub that names one wants this node to ask for it. By address, so no name in the DNS gets around it."""
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    if found.is_link_local or found in _METADATA:
        raise Denied(f"a signed URL leads to {found}, where this machine's own secrets may be told", host=str(found))


def is_direct(no_proxy: Iterable[str], host: str, port: int) -> bool:
    """Whether the host is reached without a proxy: whether an item of ``no_proxy`` names it. An item is ``*``, a host
    or a domain, each with a port or without."""
    return any(_names(item, host, port) for item in no_proxy)


def _names(name: str, host: str, port: int) -> bool:
    name, host = name.strip().lower(), host.lower()
    if name.endswith(f":{port}"):
        name = name.removesuffix(f":{port}")
    name = name.strip("[]").lstrip(".")
    return name == "*" or (name != "" and (host == name or host.endswith(f".{name}")))


def _proxy_parts(proxy: str) -> SplitResult:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidInput("a proxy is an http:// URL", kind="invalid-setting")
    return parts if parts.port else parts._replace(netloc=f"{parts.netloc}:8080")


def proxy_headers(proxy: str | None) -> dict[str, str]:
    """The headers that a proxy with a user name in its URL wants."""
    if proxy is None:
        return {}
    parts = _proxy_parts(proxy)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


class Waiter:
    """Waits for one socket, again and again."""

    def __init__(self, found: socket.socket) -> None:
        self._socket = found
        self._poller = select.poll() if hasattr(select, "poll") else None
        self._mask = 0
        if self._poller is not None:
            self._poller.register(found, 0)

    def wait(self, *, read: bool, write: bool, timeout: float) -> tuple[bool, bool]:
        """Until the socket can be read or written: which of the two it is, neither after ``timeout`` seconds."""
        if self._poller is None:
            found = self._socket
            readers, writers, _ = select.select([found] if read else [], [found] if write else [], [], timeout)
            return bool(readers), bool(writers)
        wanted = (select.POLLIN if read else 0) | (select.POLLOUT if write else 0)
        if wanted != self._mask:
            self._poller.modify(self._socket, wanted)
            self._mask = wanted
        mask = 0
        for _, event in self._poller.poll(timeout * 1000):
            mask |= event
        broken = bool(mask & (select.POLLERR | select.POLLHUP | select.POLLNVAL))
        return read and (broken or bool(mask & select.POLLIN)), write and bool(mask & select.POLLOUT)


def readable(found: socket.socket) -> bool:
    """Whether something came, or the other side closed."""
    with contextlib.suppress(OSError, ValueError):
        return Waiter(found).wait(read=True, write=False, timeout=0)[0]
    return True
