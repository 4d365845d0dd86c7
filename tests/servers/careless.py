"""An S3 server that checks nothing at all: no signature, no length, no precondition; it keeps what arrives.

The worst provider that a channel's owner can bring. It exists to show that entrepot notices. With a certificate it
serves https, and it can write down what it was asked, header by header.
"""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.servers.ministack import S3Server

#: The name of its bucket, where that stands in the host.
BUCKET = "contract"


@dataclass(frozen=True)
class Asked:
    """A request as it came: header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[Asked]]
    lock: ClassVar[threading.Lock]

    def parse_request(self) -> bool:
        good = super().parse_request()
        if good and self.command != "PUT":
            self._note(b"")
        return good

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self._note(data)
        with self.lock:
            self.objects[self._key()] = data
        self._answer(200, {"ETag": _etag(data)})

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._answer(200, {}, self._listing(query.get("prefix", [""])[0]))
            return
        self.do_HEAD()

    def do_HEAD(self) -> None:
        data = self.objects.get(self._key())
        if data is None:
            self._answer(404, {})
            return
        self._answer(200, {"ETag": _etag(data), "Last-Modified": formatdate(0, usegmt=True)}, data)

    def do_DELETE(self) -> None:
        with self.lock:
            self.objects.pop(self._key(), None)
        self._answer(204, {})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _key(self) -> str:
        path = urlsplit(self.path).path.lstrip("/")
        # The bucket stands in the host or in the path.
        return path if self.headers["Host"].startswith(f"{BUCKET}.") else path.partition("/")[2]

    def _note(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.lock:
            self.asked.append(Asked(self.command, self.path, headers, body))

    def _listing(self, prefix: str) -> bytes:
        found = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><ETag>{_etag(data)}</ETag>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@contextmanager
def run_careless(asked: list[Asked] | None = None, *, tls: ssl.SSLContext | None = None) -> Iterator[S3Server]:
    """A running careless server, in threads of this process. What it is asked is added to ``asked``."""
    state = {"objects": {}, "lock": threading.Lock(), "asked": [] if asked is None else asked}
    handler = type("Handler", (_Handler,), state)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            scheme = "http" if tls is None else "https"
            yield S3Server(f"{scheme}://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            serving.join()
