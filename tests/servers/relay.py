"""A relay in front of a hub's HTTP port that sees every request to the bucket, and slows, holds or cuts it at will.

It makes "half-way through a transfer" a place that a test can stand at: bytes pass until so many have passed, then they
wait, however long the test takes, until they are let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

_PIECE = 64 << 10
_SLOW_PIECE = 8 << 10
#: Small buffers of the operating system, so that what the relay holds back holds back its sender too.
_BUFFER = 32 << 10
_POLL = 0.005


@dataclass
class Passage:
    """One request to the bucket: ``body`` bytes went in, ``answer`` bytes (without its head) came back."""

    method: str
    path: str
    connection: int
    length: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    body: int = 0
    answer: int = 0
    status: int | None = None

    @property
    def key(self) -> str:
        """The object's key in the bucket."""
        return self.path.partition("?")[0].split("/", 3)[3]


@dataclass
class _Hold:
    after: int
    base: int


class Relay:
    """Listens at ``port`` of loopback, from :meth:`start` to :meth:`close`, and passes all on to ``target``.

    Only requests to the bucket (``/bucket/…``) are slowed and held; the others pass. It runs in a thread of its own:
    all methods may be called from tests of any kind.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        #: Bytes/s of bucket traffic in each direction; None: as fast as it goes.
        self.rate: float | None = None
        #: Every request to the bucket, in the order of arrival.
        self.passages: list[Passage] = []
        self._passed = {"PUT": 0, "GET": 0}
        self._holds: dict[str, _Hold] = {}
        self._due = {"PUT": 0.0, "GET": 0.0}
        self._held = {"PUT": threading.Event(), "GET": threading.Event()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections = 0
        self._ready = threading.Event()

    def start(self) -> Self:
        """Listen."""
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._listening.bind(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def close(self) -> None:
        """End it and every connection. May be called again."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # -- what tests do --------------------------------------------------------------------------------------------

    def hold(self, method: str, after: int = 0) -> None:
        """Let ``after`` bytes more of all PUTs (or GETs) pass, and then none until :meth:`release`."""
        self._held[method].clear()
        self._holds[method] = _Hold(after, self._passed[method])

    def wait_held(self, method: str, seconds: float = 60.0) -> None:
        """Return once something waits."""
        assert self._held[method].wait(seconds), f"no {method} reached the point where it is held"

    def release(self, method: str | None = None) -> None:
        """Let pass what was held."""
        for one in ("PUT", "GET") if method is None else (method,):
            self._holds.pop(one, None)

    def cut(self) -> None:
        """Break every connection there is now."""

        def abort() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def puts(self, status: int | None = None) -> list[Passage]:
        """The PUTs until now; with ``status`` those that ended so."""
        return self._found("PUT", status)

    def gets(self, status: int | None = None) -> list[Passage]:
        """The GETs until now; with ``status`` those that were answered so."""
        return self._found("GET", status)

    def _found(self, method: str, status: int | None) -> list[Passage]:
        return [p for p in list(self.passages) if p.method == method and status in (None, p.status)]

    @property
    def put_bytes(self) -> int:
        """Bytes of objects that went to the bucket, whatever became of them."""
        return self._passed["PUT"]

    @property
    def get_bytes(self) -> int:
        """Bytes of objects that came from the bucket."""
        return self._passed["GET"]

    # -- inside ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._listening, limit=2 * _PIECE)
        self._ready.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            found: socket.socket = writer.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            back, there = await asyncio.open_connection("127.0.0.1", self.target, limit=2 * _PIECE)
            self._writers.add(there)
            current: list[Passage | None] = [None]
            directions = [
                asyncio.create_task(self._requests(reader, there, current, number)),
                asyncio.create_task(self._answers(back, writer, current)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in directions:
                    task.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for one in (writer, there):
                if one is not None:
                    self._writers.discard(one)
                    with contextlib.suppress(Exception):
                        await asyncio.wait_for(one.drain(), 1)
                    one.close()

    async def _requests(
        self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, current: list[Passage | None], number: int
    ) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, rest = head.partition(b"\r\n")
            method, path, _ = line.decode("latin-1").split(" ", 2)
            length = next(
                (
                    int(value)
                    for name, _, value in (field.partition(b":") for field in rest.split(b"\r\n"))
                    if name.strip().lower() == b"content-length"
                ),
                0,
            )
            passage = None
            if path.startswith("/bucket/"):
                passage = Passage(method, path, number, length)
                self.passages.append(passage)
            current[0] = passage
            if passage is not None:
                await self._gate(method, 0)
            there.write(head)
            while length:
                piece = await reader.read(min(self._piece(), length))
                if not piece:
                    return
                if passage is not None:
                    await self._gate("PUT", len(piece))
                    passage.body += len(piece)
                there.write(piece)
                await there.drain()
                length -= len(piece)
            await there.drain()

    async def _answers(
        self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, current: list[Passage | None]
    ) -> None:
        while piece := await back.read(self._piece()):
            passage = current[0]
            if passage is not None:
                count = len(piece)
                if passage.status is None:
                    passage.status = int(piece[9:12])
                    count -= min(count, piece.find(b"\r\n\r\n") + 4)
                if passage.method == "GET" and passage.status in (200, 206):
                    await self._gate("GET", count)
                passage.answer += count
                passage.ended = time.monotonic()
            writer.write(piece)
            await writer.drain()

    def _piece(self) -> int:
        return _PIECE if self.rate is None else _SLOW_PIECE

    async def _gate(self, method: str, count: int) -> None:
        """Wait until ``count`` bytes more may pass; none: until anything may."""
        while (hold := self._holds.get(method)) is not None:
            left = hold.base + hold.after - self._passed[method]
            if left >= max(count, 1):
                break
            self._held[method].set()
            await asyncio.sleep(_POLL)
        self._passed[method] += count
        if self.rate is not None and count:
            now = self._loop.time()
            self._due[method] = max(self._due[method], now) + count / self.rate
            await asyncio.sleep(self._due[method] - now)


def until[T](look: Callable[[], T], seconds: float = 60.0, what: str = "it") -> T:
    """The first true value of ``look()``; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.01)
    return found


def noted(name: str, value: Any) -> None:
    """Print a measurement: pytest shows it with -s or -rP; nothing is asserted of it."""
    print(f"measured: {name}: {value:.2f} s" if isinstance(value, float) else f"measured: {name}: {value}")
