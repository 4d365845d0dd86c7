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
from collections.abc import Iterator

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
from entrepot.adapters.transfer.connections import Connection, Connections, poll, proxy_headers
from entrepot.adapters.transfer.requests import CancelToken, Moved, PutOutcome, SignedRequest
from entrepot.core.errors import Conflict, InvalidInput

_RECORD = 16 << 10  # bytes in one record of TLS
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
                early = _send(connection, source, descriptor, buffer, idle_timeout, progress, token)
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
) -> http.client.HTTPResponse | None:
    """Sends the body; returns the answer if it came before the end."""
    sent = 0
    for piece in _pieces(source, descriptor, buffer):
        view = piece
        while view:
            if token.is_set():
                raise cancelled()
            can_read, can_write = poll(connection.socket, read=True, write=True, timeout=idle_timeout)
            if can_read and (first := _first_byte(connection.socket)) is not None:
                if not first:
                    raise ConnectionResetError("the server closed the connection before it had everything")
                return _answer(connection, first)
            if not (can_read or can_write):
                raise TimeoutError
            if can_write:
                # TLS gives nothing back before all of it is out: not more than one record, lest an answer be missed.
                count = connection.socket.send(view[:_RECORD] if connection.target.secure else view)
                view = view[count:]
                sent += count
                if progress is not None:
                    progress(sent)
    return None


def _pieces(source: ObjectSource, descriptor: int, buffer: memoryview) -> Iterator[memoryview]:
    yield memoryview(source.header)
    offset, end = source.offset, source.offset + source.length
    while offset < end:
        piece = buffer[: min(len(buffer), end - offset)]
        if read_into(descriptor, piece, offset) != len(piece):
            raise Conflict(f"{source.path} became shorter while it was sent", kind="changed", path=str(source.path))
        yield piece
        offset += len(piece)


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
