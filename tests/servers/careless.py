"""An S3 server that checks nothing at all: no signature, no length, no precondition; it keeps what arrives.

The worst provider that a channel's owner can bring. It exists to show that entrepot notices.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.servers.ministack import S3Server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]]
    lock: ClassVar[threading.Lock]

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
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
        return urlsplit(self.path).path.lstrip("/").partition("/")[2]

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
def run_careless() -> Iterator[S3Server]:
    """A running careless server, in threads of this process."""
    handler = type("Handler", (_Handler,), {"objects": {}, "lock": threading.Lock()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield S3Server(f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            serving.join()
