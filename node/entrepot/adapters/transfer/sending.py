"""One attempt to upload an object: header, then straight from the file. Blocks; runs in a worker thread.

The server may answer before it has the body (no right, too late, the object exists) and then stop reading. So the
socket is watched both ways while sending: neither side waits for the other for ever, and the status is seen
instead of the broken pipe that follows it.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from typing import Final

from entrepot.adapters.files import identify_open, open_source, read_into
from entrepot.adapters.store.records import ObjectSource
from entrepot.adapters.transfer.answers import (
    Setback,
    cancelled,
    error_body,
    error_code,
    network_errors,
    refusal,
    unreachable,
)
from entrepot.adapters.transfer.connections import Connection, Connections, Waiter, proxy_headers
from entrepot.adapters.transfer.requests import CancelToken, Moved, PutOutcome, SignedRequest
from entrepot.adapters.transfer.throttle import Throttle
from entrepot.core.errors import Conflict, InvalidInput

#: The most bytes handed to the system before it is looked whether an answer came.
_TURN: Final = 1 << 20
#: The system moves bytes from file to socket itself; elsewhere its calls differ, and reading first is not much slower.
_DIRECT: Final = sys.platform == "linux" and hasattr(os, "sendfile")
_MORE: Final = getattr(socket, "MSG_MORE", 0)  # what follows goes into the same packet
_EXISTS = (409, 412)
#: How Azure refuses, with 403, to let a URL that may only create replace something.
_OVERWRITES = frozenset({"UnauthorizedBlobOverwrite", "AuthorizationPermissionMismatch"})


def put(
    connections: Connections,
    request: SignedRequest,
    source: ObjectSource,
    *,
    buffer: memoryview,
    idle_timeout: float,
    progress: Moved | None,
    token: CancelToken,
    fresh: bool,
    attempt: int,
    throttle: Throttle,
) -> PutOutcome:
    """Sends one object. Raises :class:`Setback` where another attempt may help."""
    for name, value in request.headers.items():
        if name.lower() == "content-length" and value != str(source.size):
            raise Conflict("the request was signed for another length than the object has", kind="changed")
    target = connections.target(request)
    host = target.host
    descriptor = open_source(source.path)
    try:
        _insist(source, descriptor)
        if token.is_set():
            raise cancelled()
        with network_errors(host, token):
            connection = connections.take(target, fresh=fresh)
        with attached(connection, token), network_errors(host, token, stale=connection.reused):
            try:
                begin(connection, request, {"Content-Length": str(source.size)})
                early = _send(connection, source, descriptor, buffer, idle_timeout, progress, token, throttle)
                response = early if early is not None else connection.http.getresponse()
            except (BrokenPipeError, ConnectionResetError):
                found = _last_words(connection)
                if found is None:
                    raise
                early = response = found
            body = error_body(response)
            outcome = _outcome(host, response, body, early is not None, attempt)
            if early is None and response.isclosed() and not response.will_close:
                connections.give_back(connection)
            else:
                connection.close()
        _insist(source, descriptor)
        return outcome
    finally:
        os.close(descriptor)


def _insist(source: ObjectSource, descriptor: int) -> None:
    if not source.matches(identify_open(descriptor)):
        raise Conflict(
            f"{source.path} changed since it was hashed",
            kind="changed",
            hint="Add the file again: its new content has another stream id.",
            path=str(source.path),
        )


@contextlib.contextmanager
def attached(connection: Connection, token: CancelToken) -> Iterator[None]:
    """Lets the token close the connection; closes it if the block fails."""
    found = connection.socket
    token.attach(found)
    try:
        yield
    except BaseException:
        connection.close()
        raise
    finally:
        token.detach(found)


def begin(connection: Connection, request: SignedRequest, extra: dict[str, str]) -> None:
    """Sends the request line and headers: the signed ones, and ours where they do not clash."""
    http_connection, target = connection.http, connection.target
    named = {name.lower() for name in request.headers}
    http_connection.putrequest(request.method, target.line, skip_host="host" in named, skip_accept_encoding=True)
    ours = {"Accept-Encoding": "identity", "User-Agent": request.agent} | extra
    if not target.secure:
        ours |= proxy_headers(target.proxy)
    for name, value in request.headers.items():
        try:
            http_connection.putheader(name, value)
        except ValueError as error:
            raise InvalidInput(f"a signed request has a header that cannot be sent: {name[:100]!r}") from error
    for name, value in ours.items():
        if name.lower() not in named:
            http_connection.putheader(name, value)
    http_connection.endheaders()


def _send(
    connection: Connection,
    source: ObjectSource,
    descriptor: int,
    buffer: memoryview,
    idle_timeout: float,
    progress: Moved | None,
    token: CancelToken,
    throttle: Throttle,
) -> http.client.HTTPResponse | None:
    """Sends the body; returns the answer if it came before the end."""
    found = connection.socket
    outlet, waiter = _Outlet(connection, source, descriptor, buffer), Waiter(found)
    patience, allowed = found.gettimeout(), 0
    marked, mark = 0, time.monotonic()
    found.settimeout(0)
    try:
        while outlet.sent < source.size:
            if token.is_set():
                raise cancelled()
            if not allowed:
                allowed = throttle.take(min(source.size - outlet.sent, _TURN), token)
            write = not outlet.listening
            can_read, can_write = waiter.wait(read=True, write=write, timeout=idle_timeout)
            if can_read and (first := _first_byte(found)) is not None:
                if not first:
                    raise ConnectionResetError("the server closed the connection before it had everything")
                found.settimeout(patience)
                return _answer(connection, first)
            if not (can_read or can_write):
                raise TimeoutError
            count = outlet.push(allowed)
            if count:
                allowed -= count
                if outlet.sent - marked >= _TURN:
                    now = time.monotonic()
                    connection.ran((outlet.sent - marked) / max(now - mark, 1e-6))
                    marked, mark = outlet.sent, now
                if progress is not None:
                    progress(outlet.sent)
        return None
    finally:
        throttle.give_back(allowed)
        found.settimeout(patience)


class _Outlet:
    """The bytes of one object on their way into one socket that never blocks. ``sent``: bytes that are out;
    ``listening``: TLS wants to hear something before it sends on."""

    def __init__(self, connection: Connection, source: ObjectSource, descriptor: int, buffer: memoryview) -> None:
        self.sent = 0
        self.listening = False
        self._connection = connection
        self._socket = connection.socket
        self._source = source
        self._descriptor = descriptor
        self._buffer = buffer
        self._direct = _DIRECT and not connection.target.secure
        self._header = memoryview(source.header)
        self._piece = memoryview(b"")  # what was read and is not sent
        self._begun = 0  # bytes that TLS was given and may have sent in part: it is given the same ones again

    def push(self, most: int) -> int:
        """Sends up to ``most`` bytes, as many as there is room for; returns how many. Raises ``changed``."""
        self.listening = False
        try:
            count = self._push(most)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return 0
        except ssl.SSLWantReadError:
            self.listening = True
            return 0
        self.sent += count
        return count

    def _push(self, most: int) -> int:
        at = self.sent - len(self._header)
        if self._direct and at >= 0:
            count = self._pass(self._source.offset + at, min(most, self._source.length - at))
            if count is not None:
                return count
            self._direct = False
        if self._connection.target.secure:
            return self._encrypt(most)
        if at < 0:
            return self._socket.send(self._header[self.sent :][:most], _MORE if self._source.length else 0)
        count = self._socket.send(self._read(at)[:most])
        self._piece = self._piece[count:]
        return count

    def _pass(self, offset: int, most: int) -> int | None:
        """From the file into the socket; None where this file cannot be passed on so."""
        try:
            count = os.sendfile(self._socket.fileno(), self._descriptor, offset, most)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError:
            return None  # reading it tells what is wrong with the file, sending what is wrong with the socket
        if not count:
            raise self._shorter()
        return count

    def _encrypt(self, most: int) -> int:
        at = self.sent - len(self._header)
        view = self._header[self.sent :] if at < 0 else self._read(at)
        count = self._begun or min(len(view), most, self._connection.piece)
        self._begun = count
        count = self._socket.send(view[:count])
        self._begun = 0
        if at >= 0:
            self._piece = self._piece[count:]
        return count

    def _read(self, at: int) -> memoryview:
        """The next bytes of the file, from ``at`` within the object's on; what was read before is not read again."""
        if not self._piece:
            piece = self._buffer[: min(len(self._buffer), self._source.length - at)]
            if read_into(self._descriptor, piece, self._source.offset + at) != len(piece):
                raise self._shorter()
            self._piece = piece
        return self._piece

    def _shorter(self) -> Conflict:
        path = self._source.path
        return Conflict(f"{path} became shorter while it was sent", kind="changed", path=str(path))


def _first_byte(found: socket.socket) -> bytes | None:
    """The next byte if there is one, empty at the end, None if what came was TLS's own business."""
    timeout = found.gettimeout()
    found.settimeout(0)
    try:
        return found.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None
    finally:
        found.settimeout(timeout)


class _Resumed(io.RawIOBase):
    """A socket's bytes with those put back that were read already."""

    def __init__(self, first: bytes, found: socket.socket) -> None:
        self._first = first
        self._socket = found

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._first:
            count = min(len(self._first), len(buffer))
            buffer[:count] = self._first[:count]
            self._first = self._first[count:]
            return count
        return self._socket.recv_into(buffer)


class _Rest:
    """As much of a socket as an answer needs."""

    def __init__(self, first: bytes, found: socket.socket) -> None:
        self._raw = _Resumed(first, found)

    def makefile(self, *_: object) -> io.BufferedReader:
        return io.BufferedReader(self._raw)


def _answer(connection: Connection, first: bytes) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(_Rest(first, connection.socket), method="PUT")  # type: ignore[arg-type]
    response.begin()
    return response


def _last_words(connection: Connection) -> http.client.HTTPResponse | None:
    """The answer that a server gave before it closed on us, None if it gave none."""
    if connection.http.sock is None:
        return None
    try:
        first = _first_byte(connection.socket)
        return _answer(connection, first) if first else None
    except (OSError, http.client.HTTPException):
        return None


def _outcome(host: str, response: http.client.HTTPResponse, body: bytes, early: bool, attempt: int) -> PutOutcome:
    status, etag = response.status, response.headers.get("ETag")
    if status in (200, 201, 204):
        if early:
            raise Setback(unreachable("it took an object that was not sent to the end", host))
        return PutOutcome(status, etag, created=True, exists=False, attempts=attempt)
    refused = refusal(host, response, body)
    if isinstance(refused, Setback):
        raise refused
    if status in _EXISTS or error_code(body) in _OVERWRITES:
        return PutOutcome(status, etag, created=False, exists=True, attempts=attempt)
    raise refused
