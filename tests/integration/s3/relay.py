"""A relay between nodes and an S3 server that makes trouble when told to; otherwise it passes everything on."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What happens to one request: it waits ``delay`` seconds first; it is answered with ``status`` by the relay
    itself; ``cut`` lets half of its body through and ends; ``flip`` spoils the last byte of the answer."""

    method: str
    delay: float = 0.0
    status: int = 0
    cut: bool = False
    flip: bool = False


@dataclass
class Relay:
    """A running relay. Each of ``troubles`` meets one request of its method, first come first served; ``seen`` are the
    (method, status) of all answers, ``agents`` the methods and the User-Agents of all requests."""

    endpoint: str
    troubles: list[Trouble] = field(default_factory=list)
    seen: list[tuple[str, int]] = field(default_factory=list)
    agents: list[tuple[str, str]] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str) -> Trouble | None:
        """The trouble that this request meets."""
        with self.guard:
            found = next((trouble for trouble in self.troubles if trouble.method == method), None)
            if found is not None:
                self.troubles.remove(found)
            return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    relay: ClassVar[Relay]
    target: ClassVar[str]

    def do_PUT(self) -> None:
        self._pass_on()

    def do_GET(self) -> None:
        self._pass_on()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        trouble = self.relay.take(self.command)
        self.relay.agents.append((self.command, self.headers.get("User-Agent", "")))
        length = int(self.headers.get("Content-Length", "0"))
        if trouble is not None and trouble.cut:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if trouble is not None and trouble.delay:
            time.sleep(trouble.delay)
        if trouble is not None and trouble.status:
            self._answer(trouble.status, {}, b"<Error/>")
            return
        connection = http.client.HTTPConnection(self.target, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP}
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return
        finally:
            connection.close()
        if trouble is not None and trouble.flip and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self._answer(response.status, headers, data)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with self.relay.guard:
            self.relay.seen.append((self.command, status))
        try:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # who asked is gone
            self.close_connection = True


@contextmanager
def run_relay(endpoint: str) -> Iterator[Relay]:
    """A running relay to a server, in threads of this process."""
    handler = type("Handler", (_Handler,), {"target": urlsplit(endpoint).netloc})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        relay = Relay(f"http://127.0.0.1:{server.server_address[1]}")
        handler.relay = relay  # type: ignore[attr-defined]
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield relay
        finally:
            server.shutdown()
            serving.join()
