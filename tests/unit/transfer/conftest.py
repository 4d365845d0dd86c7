"""A bucket over real HTTP that behaves, or misbehaves once per scripted step, and streams to move."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from entrepot.adapters.store import ObjectSource, Store, StoreSettings
from entrepot.adapters.transfer import SignedRequest, Transfers, TransferSettings
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock

LOCK = SchemaLock("demo", miniblock=16384, object=65536)

type Step = Callable[[Handler], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.bucket.connections += 1

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def act(self) -> None:
        bucket = self.server.bucket
        bucket.seen.append((self.command, self.path, dict(self.headers)))
        step = bucket.script.popleft() if bucket.script else None
        (step or type(self).behave)(self)

    def do_GET(self) -> None:
        self.act()

    def do_PUT(self) -> None:
        self.act()

    def behave(self) -> None:
        if self.command == "PUT":
            self.store()
        else:
            self.serve()

    def store(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) != length:
            self.close_connection = True
            return
        if self.headers.get("If-None-Match") == "*" and self.path in self.server.bucket.objects:
            self.reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self.server.bucket.objects[self.path] = body
        self.reply(200, b"", ETag='"stored"')

    def serve(self) -> None:
        data = self.server.bucket.objects.get(self.path)
        if data is None:
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        wanted = self.headers.get("Range")
        if wanted is None:
            self.reply(200, data, ETag='"e"')
            return
        first, last = (int(x) for x in wanted.removeprefix("bytes=").split("-"))
        if first >= len(data):
            self.reply(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            return
        part = data[first : last + 1]
        self.reply(206, part, ETag='"e"', **{"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"})

    def reply(self, status: int, body: bytes, *, send: Any = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and "Transfer-Encoding" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if send is None else send)
        if send is not None:
            self.close_connection = True

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    bucket: Bucket

    def handle_error(self, *args: object) -> None:
        pass


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.script: deque[Step | None] = deque()
        self.connections = 0
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.bucket = self
        self.scheme = "http"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def url(self, key: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/{key}"

    def get(self, key: str = "o") -> SignedRequest:
        return SignedRequest("GET", self.url(key), {})

    def put(self, key: str = "o", **headers: str) -> SignedRequest:
        return SignedRequest("PUT", self.url(key), headers)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def transfers() -> AsyncIterator[Transfers]:
    settings = TransferSettings(backoff=0.001, idle_timeout=5, slots=3, buffer=20_000)
    async with Transfers(settings) as opened:
        yield opened


@dataclass
class Stream:
    """A stream that one store has and another one wants."""

    data: bytes
    stream: StreamId
    opening: Opening
    lock: SchemaLock
    geometry: Geometry
    sources: list[ObjectSource]
    there: Store
    here: Store

    def object(self, number: int) -> bytes:
        source = self.sources[number]
        return source.header + self.data[source.offset : source.offset + source.length]


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[Stream]:
    data = os.urandom(16384 * 6 + 100)
    path = tmp_path / "file"
    path.write_bytes(data)
    settings = StoreSettings(reserve=0, flush_after=0.02)
    async with Store(tmp_path / "there", settings) as there, Store(tmp_path / "here", settings) as here:
        added = await there.add(path, channel="hub/demo", lock=LOCK)
        geometry = Geometry(added.length, LOCK)
        sources = [await there.object_source(added.stream, LOCK, n) for n in range(geometry.object_count)]
        yield Stream(data, added.stream, added.opening, LOCK, geometry, sources, there, here)
