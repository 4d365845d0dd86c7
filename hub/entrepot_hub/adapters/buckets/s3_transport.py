"""What lies between boto3 and an endpoint that cannot be trusted: bounded answers, sockets that can be ended.

boto3 reads an answer whole, however long it is, and passes on what an error says. Here an answer that is no object
has a limit in bytes and in time; of an error nothing is left but a code that can be quoted; and all sockets of a
bucket are known, so that closing it ends the waits of its threads.
"""

from __future__ import annotations

import http.client
import logging
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
    AWSPreparedRequest,
    AWSResponse,
)

from entrepot.core.errors import RetryLater

#: The most bytes of an answer that is no object: a page of a thousand long keys has less than 2 MiB.
MAX_ANSWER: Final = 8 << 20
#: An error that is longer is not read for its code: that takes time, and no S3 server sends one.
MAX_ERROR: Final = 32 << 10
#: The most heads of one answer; those before the last say that it is to come.
MAX_HEADS: Final = 4
#: The statuses with which an object, or part of it, is shown.
GOOD: Final = frozenset({200, 206})
_PIECE: Final = 64 << 10
#: In how many pieces an answer may come: so many, and one more for each so many bytes. Each takes a thread's time.
_PIECES: Final = 1024
_PER_PIECE: Final = 64
#: What an error's code looks like, with every provider. Anything else is not quoted.
_CODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECRET: Final = ("Authorization", "X-Amz-Security-Token")


class Sockets:
    """The open sockets of one bucket. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._ended = False
        self._here = threading.local()

    @property
    def ended(self) -> bool:
        """Whether they were ended: what came from one since then may be cut off anywhere."""
        return self._ended

    def add(self, one: object) -> None:
        """Know a socket. Raises ``ConnectionError`` after :meth:`end`."""
        with self._lock:
            if self._ended:
                raise ConnectionError("the bucket is closed")
            # A tunnel inside TLS is no socket: its reads end by their own time-out.
            if isinstance(one, socket.socket):
                self._open.add(one)

    def hold(self, body: _Object) -> None:
        """Know the one object that this thread reads."""
        self.let_go()
        self._here.body = body

    def let_go(self) -> None:
        """Close what this thread read, at the end of its operation: botocore forgets it if it dislikes a header."""
        body: _Object | None = getattr(self._here, "body", None)
        if body is not None:
            self._here.body = None
            body.close()

    def end(self) -> None:
        """End all of them: who waits for one is told at once. None comes after."""
        with self._lock:
            self._ended = True
            for one in tuple(self._open):
                # The plain one's method: TLS would change the object under the thread that reads from it.
                with suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)


def guard(client: Any, sockets: Sockets, total: float) -> None:
    """Bound what this client of boto3 reads (an answer that is no object: also by ``total`` seconds), clean what its
    errors say, and know its sockets."""
    session = client._endpoint.http_session
    classes = _pools(sockets)
    # botocore has no setting for either.
    session._pool_classes_by_scheme = classes
    session._manager.pool_classes_by_scheme = classes
    client._endpoint.http_session = _Bounded(session, sockets, total)
    client.meta.events.register_first("after-call", _clean)
    # Once for all: a filter is added to a logger only if it is not there.
    logging.getLogger("urllib3.connection").addFilter(_HEADERS)


def quotable(code: str, secret: str = "") -> bool:
    """Whether an endpoint's code may be shown: it looks like one, and does not repeat a secret that was sent."""
    return _CODE.fullmatch(code) is not None and code not in secret


def clean(parsed: dict[str, Any], status: int, secret: str) -> None:
    """Leave of what an error says its code, or its status instead of one that cannot be quoted."""
    code = str(parsed.get("Error", {}).get("Code") or "")
    parsed["Error"] = {"Code": code if quotable(code, secret) else str(status), "Message": "not quoted"}


class _Bounded:
    """botocore's session, but for what it does with answers."""

    def __init__(self, session: Any, sockets: Sockets, total: float) -> None:
        self._session = session
        self._sockets = sockets
        self._total = total

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """The answer. Raises what botocore raises, and ``RetryLater(bucket-unreachable)`` if it does not end."""
        end = time.monotonic() + self._total
        an_object = bool(request.stream_output)
        # Else it would be read here and now, all of it.
        request.stream_output = True
        answer: Any = self._session.send(request)
        _check_status(request.method, an_object, answer)
        secret = "\n".join(_text(request.headers.get(name, "")) for name in _SECRET)
        if an_object and answer.status_code < 300:
            object_body = _Object(answer.raw)
            self._sockets.hold(object_body)
            return _Answer(answer, object_body, secret)
        data = _read(answer.raw, end)
        body = _Whole(b"" if answer.status_code >= 300 and len(data) > MAX_ERROR else data)
        if self._sockets.ended:
            raise ConnectionError("the bucket is closed")
        return _Answer(answer, body, secret)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._session.close()


class _Answer(AWSResponse):
    """An answer with another body, that knows what it must not repeat."""

    def __init__(self, answer: Any, raw: Any, secret: str) -> None:
        super().__init__(answer.url, answer.status_code, answer.headers, raw)
        self.secret = secret


class _Object:
    """A body that gives what has come, not what fills a piece: who reads it can look at the clock."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._pieces = self._size = 0

    def read(self, amount: int) -> bytes:
        """At most so many bytes; none at the end."""
        data: bytes = self._raw.read1(amount)
        self._pieces += 1
        self._size += len(data)
        _check_pieces(self._pieces, self._size)
        return data

    def close(self) -> None:
        """Let the connection go."""
        self._raw.close()


class _Whole:
    """A body that was read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self) -> Iterator[bytes]:
        """All of it."""
        yield self._data


def _check_pieces(count: int, size: int) -> None:
    if count > _PIECES + size // _PER_PIECE:
        raise RetryLater("the bucket's answer comes in too many pieces", kind="bucket-unreachable")


def _check_status(method: str, an_object: bool, answer: Any) -> None:
    status = answer.status_code
    if status >= 300 or status in GOOD or (status >= 200 and not an_object and method != "HEAD"):
        return
    answer.raw.close()
    raise RetryLater(
        f"the bucket's endpoint answers with status {status}",
        kind="bucket-unreachable",
        hint="Is it an S3 server?",
    )


def _read(raw: Any, end: float) -> bytes:
    pieces, size = [], 0
    try:
        # What is there, not what fills a piece: else a server that trickles would keep us from looking at the clock.
        while piece := raw.read1(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER:
                raise RetryLater(
                    f"the bucket's endpoint answers with more than {MAX_ANSWER >> 20} MiB",
                    kind="bucket-unreachable",
                    hint="Is it an S3 server?",
                )
            _check_pieces(len(pieces), size)
            if time.monotonic() > end:
                raise RetryLater("the bucket's answer comes too slowly", kind="bucket-unreachable")
    except BaseException:
        raw.close()
        raise
    raw.release_conn()
    return b"".join(pieces)


def _clean(http_response: AWSResponse, parsed: dict[str, Any], **_: object) -> None:
    if http_response.status_code >= 300:
        clean(parsed, http_response.status_code, getattr(http_response, "secret", ""))


class _Headers(logging.Filter):
    """urllib3 writes headers that it cannot parse into its warning."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info or "headers" in str(record.msg):
            record.msg, record.args, record.exc_info = "an endpoint sends headers that cannot be parsed", (), None
        return True


_HEADERS: Final = _Headers()


class _Reply(http.client.HTTPResponse):
    """http.client itself would listen without end to an endpoint that says that its answer is to come."""

    _heads = 0

    def _read_status(self) -> Any:
        self._heads += 1
        if self._heads > MAX_HEADS:
            raise http.client.HTTPException("too many heads")
        return super()._read_status()  # type: ignore[misc]  # http.client has no setting for it


def _pools(sockets: Sockets) -> dict[str, type]:
    class Plain(AWSHTTPConnection):
        response_class = _Reply  # type: ignore[assignment]

        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class Secured(AWSHTTPSConnection):
        response_class = _Reply  # type: ignore[assignment]

        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class PlainPool(AWSHTTPConnectionPool):
        ConnectionCls = Plain

    class SecuredPool(AWSHTTPSConnectionPool):
        ConnectionCls = Secured

    return {"http": PlainPool, "https": SecuredPool}


def _text(header: str | bytes) -> str:
    return header.decode("utf-8", "replace") if isinstance(header, bytes) else header
