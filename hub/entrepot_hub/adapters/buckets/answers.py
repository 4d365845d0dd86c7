"""HTTP answers of providers to the libraries that stand on requests: bounded in bytes and in time, followed nowhere.

Whoever names a bucket's endpoint decides what answers there. An answer that never ends must cost neither the hub's
memory nor a thread for ever, a redirect must not lead the hub to other servers, and what the endpoint says must not
get into errors and logs as it is. Everything here blocks but :meth:`BoundedAdapter.cut`.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HeaderParsingError
from urllib3.util.response import assert_header_parsing

from entrepot.core.errors import InvalidInput, RetryLater

#: The most bytes of an answer that is no object.
MAX_ANSWER: Final = 8 << 20
#: Seconds that whoever closes a bucket waits for its calls to end, and again after their connections were cut.
PATIENCE: Final = 5.0
#: What the head of an answer may take on the wire; and an eighth of the body more, for the marks between chunks.
_MAX_HEAD: Final = 1 << 20
_CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})")


class BoundedAdapter(HTTPAdapter):
    """What a ``requests.Session`` mounts. An answer takes at most ``seconds``, and has at most :data:`MAX_ANSWER`
    bytes after decoding, or, if it is the range that was asked for, those of the range. ``connections`` are kept.

    Raises ``RetryLater(bucket-unreachable)`` for an answer that is larger and for every request after :meth:`cut`,
    ``InvalidInput(invalid-setting)`` for a redirect, and requests' errors. Safe for threads.
    """

    def __init__(self, *, seconds: float, connections: int) -> None:
        self._seconds = seconds
        self._wires: weakref.WeakSet[_Wire] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_cut = False
        self._asked = threading.local()
        super().__init__(pool_maxsize=connections)

    def cut(self) -> None:
        """End the connections on which answers are awaited, and make no more requests. Does not wait."""
        with self._lock:
            self._is_cut = True
            wires = [*self._wires]
        for wire in wires:
            wire.cut()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """As the base class says, but for what this one refuses."""
        if self._is_cut:
            raise RetryLater("the bucket is closed", kind="bucket-unreachable")
        request.headers["Accept-Encoding"] = "identity"
        self._asked.most = max(MAX_ANSWER, _span(request) or 0)
        answer = super().send(request, *args, **kwargs)
        if answer.is_redirect:
            status = answer.status_code
            answer.close()
            raise InvalidInput(
                "what answers at the bucket's endpoint sends the hub elsewhere, and it does not go there",
                kind="invalid-setting",
                hint="State the endpoint that answers itself",
                status=status,
            )
        return answer

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As the base class says, with bounded connections."""
        super().init_poolmanager(*args, **kwargs)
        self._bound(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        """As the base class says, with bounded connections."""
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        self._bound(manager)
        return manager

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """As the base class says, with a bounded body, and without guesses about its characters."""
        answer = super().build_response(req, resp)
        answer.encoding = "utf-8"
        span = _span(req)
        most = span if span is not None and answer.status_code == 206 else MAX_ANSWER
        # Held weakly: in a cycle, an answer that a library drops would not be closed in order.
        held = weakref.ref(resp)

        def stream(*args: Any, **kwargs: Any) -> Iterator[bytes]:
            raw: Any = held()
            seen = 0
            for chunk in type(raw).stream(raw, *args, **kwargs):
                seen += len(chunk)
                if seen > most:
                    raw.close()
                    raise _too_much()
                yield chunk

        resp.stream = stream
        return answer

    def _bound(self, manager: Any) -> None:
        manager.pool_classes_by_scheme = {
            "http": partial(self._pool, HTTPConnectionPool),
            "https": partial(self._pool, HTTPSConnectionPool),
        }

    def _pool(self, kind: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        pool = kind(*args, **kwargs)
        pool.ConnectionCls = partial(self._connection, pool.ConnectionCls)
        return pool

    def _connection(self, kind: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        connection = kind(*args, **kwargs)
        connection.response_class = partial(_Answer, self._wire)
        return connection

    def _wire(self, sock: socket.socket) -> _Wire:
        most = self._asked.most
        wire = _Wire(sock, most + most // 8 + _MAX_HEAD, time.monotonic() + self._seconds)
        with self._lock:
            self._wires.add(wire)
            if self._is_cut:
                wire.cut()
        return wire


class _Answer(http.client.HTTPResponse):
    """An answer read from a wire, whose head makes sense."""

    def __init__(self, wire: Callable[[socket.socket], _Wire], sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(wire(sock))

    def begin(self) -> None:
        """As the base class says."""
        super().begin()
        try:
            assert_header_parsing(self.msg)
        except (HeaderParsingError, TypeError):
            # urllib3 would write to the log what it cannot read.
            raise http.client.HTTPException("the head of the answer makes no sense") from None


class _Wire(io.RawIOBase):
    """What comes over a socket: at most ``most`` bytes, before ``end`` (monotonic seconds)."""

    def __init__(self, sock: socket.socket, most: int, end: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._left = most
        self._end = end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._end:
            raise TimeoutError("the answer takes too long")
        taken = self._raw.readinto(buffer)
        self._left -= taken or 0
        if self._left < 0:
            raise _too_much()
        return taken

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            # Not the method of TLS sockets, which is for one thread.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def word_of(code: object) -> str:
    """A provider's code, "" for what is none: it gets into errors."""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


def _span(request: requests.PreparedRequest) -> int | None:
    """How many bytes a request asks for, if it is for a range."""
    asked = _RANGE.fullmatch(str(request.headers.get("x-ms-range") or request.headers.get("Range") or ""))
    return None if asked is None else int(asked[2]) - int(asked[1]) + 1


def _too_much() -> RetryLater:
    return RetryLater("the bucket answers with more than was asked for", kind="bucket-unreachable")
