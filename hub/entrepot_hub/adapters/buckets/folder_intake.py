"""The bytes of an upload on their way from its connection to the disk.

Large bodies are read from the socket by the thread that hashes and writes them: aiohttp's parser and the event loop
would copy each byte once more and hand it over in many small pieces. The parser counts a body's bytes, so it is told
of as many as were read past it, before anybody else reads from the connection: the next request is found where it
begins, whatever became of this one. Small bodies, and those that come through TLS, go through the event loop.

While a sender pauses no thread waits for it. Memory: about 1 MiB per upload or thread, whatever the object's size.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from asyncio.trsock import TransportSocket
from typing import Final

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from entrepot.core.errors import InvalidInput, RetryLater
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.adapters.buckets.folder_files import Upload

_PIECE: Final = 512 << 10
#: Bodies of which less is to come are not worth a way of their own.
_LARGE: Final = 256 << 10
#: A thread waits so long for more, in milliseconds, and so many seconds for so many bytes, before it leaves the
#: waiting to the event loop …
_LINGER: Final = 2
_SOON: Final = 0.01
_WORTH: Final = 64 << 10
#: … and takes so much at once at most, for so many seconds, that others have their turn.
_TURN: Final = 16 << 20
_LONG: Final = 0.1
#: The event loop is woken when so many bytes are there, or, when that takes longer than so many seconds, any.
_ENOUGH: Final = 512 << 10
_IMPATIENCE: Final = 0.2
_ZEROS: Final = bytes(128 << 10)
_NETWORKS: Final = (socket.AF_INET, socket.AF_INET6)


async def take_in(request: web.Request, bucket: FolderBucket, upload: Upload) -> None:
    """Write the body of the request, which has a Content-Length, to the upload.

    Raises ``RetryLater(deadline)`` if no byte comes for the stall time, ``InvalidInput`` if the body ends early, and
    what writing raises. The rest of the body is then where it was: on the connection.
    """
    direct = _direct(request)
    if direct is None:
        await _stream(request, bucket, upload)
        return
    transport, connection = direct
    pieces, left = _arrived(request)
    if left < _LARGE:
        if pieces:
            await bucket.write(upload, pieces)
        await _stream(request, bucket, upload)
        return
    draught = Draught(upload, socket.fromfd(connection.fileno(), connection.family, connection.type), left)
    transport.pause_reading()
    drawing: asyncio.Future[None] | None = None
    try:
        if pieces:
            await bucket.write(upload, pieces)
        while draught.left and not draught.ended:
            await _wait(draught, bucket.settings.stall)
            drawing = bucket.draw(draught.draw)
            await asyncio.shield(drawing)
        if draught.left:
            raise InvalidInput("the upload ended before its Content-Length")
    finally:
        if drawing is not None and not drawing.done():
            draught.stop.set()
            await _settled(drawing, draught, transport)
        taken = left - draught.left
        draught.close()
        _account_for(request, transport, taken)


def _direct(request: web.Request) -> tuple[asyncio.Transport, TransportSocket] | None:
    """The transport of a connection whose socket can be read, and the socket."""
    transport = request.transport
    if (request.content_length or 0) < _LARGE or "Transfer-Encoding" in request.headers or transport is None:
        return None
    found = transport.get_extra_info("socket")
    if transport.get_extra_info("sslcontext") is not None or found is None or found.family not in _NETWORKS:
        return None
    return None if found.fileno() < 0 else (transport, found)


def _arrived(request: web.Request) -> tuple[list[bytes], int]:
    """What of the body has come through the parser, which then has nothing left, and how much has not."""
    pieces: list[bytes] = []
    try:
        while piece := request.content.read_nowait():
            pieces.append(piece)
    except (HttpProcessingError, ClientError, ConnectionError) as error:
        raise InvalidInput("the upload ended before its Content-Length") from error
    if request.content.is_eof():
        return pieces, 0
    return pieces, (request.content_length or 0) - sum(map(len, pieces))


def _account_for(request: web.Request, transport: asyncio.Transport, count: int) -> None:
    """Tell the parser of ``count`` bytes of the body that it did not see, and let the connection be read again."""
    protocol = transport.get_protocol()
    assert isinstance(protocol, asyncio.Protocol)
    zeros = memoryview(_ZEROS)
    while count and not transport.is_closing() and request.transport is not None:
        protocol.data_received(bytes(zeros[:count]) if count < len(zeros) else _ZEROS)
        count -= min(count, len(zeros))
        request.content.read_nowait()
    transport.resume_reading()


async def _settled(drawing: asyncio.Future[None], draught: Draught, transport: asyncio.Transport) -> None:
    """Returns when the thread, which was told to stop, has: until then nobody knows how much it read."""
    try:
        await asyncio.wait([drawing])
    except asyncio.CancelledError:
        transport.abort()  # nobody can go on with it
        drawing.add_done_callback(lambda _: draught.close())
        raise
    drawing.exception()  # what stopped the upload is told instead


async def _wait(draught: Draught, stall: float) -> None:
    """Until there is something to be read. Raises ``RetryLater(deadline)``."""
    loop = asyncio.get_running_loop()
    for enough, seconds in ((_ENOUGH, min(_IMPATIENCE, stall)), (1, stall)):
        draught.want(enough)
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(draught.number, _ready, ready)
        try:
            async with asyncio.timeout(seconds):
                await ready
            return
        except TimeoutError:
            continue
        finally:
            loop.remove_reader(draught.number)
    raise _stalled(stall)


def _ready(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _stalled(seconds: float) -> RetryLater:
    return RetryLater(f"no byte came for {seconds:g} seconds", kind="deadline", seconds=seconds)


class Draught:
    """The rest of a body, read from its connection's socket, of which it has a handle of its own.

    ``left``: bytes that are to come; exact whenever no thread is at work. ``ended``: the sender sends no more.
    """

    def __init__(self, upload: Upload, connection: socket.socket, left: int) -> None:
        self.left = left
        self.ended = False
        self.stop = threading.Event()
        self._upload = upload
        self._socket = connection
        self._socket.setblocking(False)
        self._wanted = 1

    @property
    def number(self) -> int:
        """The handle's number."""
        return self._socket.fileno()

    def want(self, count: int) -> None:
        """The socket counts as readable when so many bytes are there, or all that are to come."""
        self._wake_at(min(count, self.left))

    def draw(self, buffer: memoryview) -> None:
        """Read, hash and write what is there, and what comes before long; blocks. A sender that brings little has its
        turn over soon, however steadily it does."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        turn = 0
        end = time.monotonic() + _LONG
        while self.left and not self.ended and turn < _TURN and not self.stop.is_set():
            count = self._fill(buffer[: self.left], poller)
            if count:
                self._upload.write([buffer[:count]])
            turn += count
            if count < _WORTH or time.monotonic() >= end:
                return

    def close(self) -> None:
        """Leave the socket to its connection."""
        self._wake_at(1)
        self._socket.close()

    def _fill(self, buffer: memoryview, poller: select.poll) -> int:
        done = worth = 0
        end = time.monotonic() + _SOON
        while done < len(buffer):
            try:
                count = self._socket.recv_into(buffer[done:])
            except BlockingIOError:
                self.want(_ENOUGH)
                if time.monotonic() < end and poller.poll(_LINGER):
                    continue
                break
            except ConnectionError:
                count = 0
            if not count:
                self.ended = True
                break
            done += count
            self.left -= count
            now = time.monotonic()
            if done - worth >= _WORTH:
                worth, end = done, now + _SOON
            elif now >= end:
                break
        return done

    def _wake_at(self, count: int) -> None:
        if count != self._wanted and hasattr(socket, "SO_RCVLOWAT"):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._wanted = count


async def _stream(request: web.Request, bucket: FolderBucket, upload: Upload) -> None:
    """Through the event loop: one piece is written while the next comes in."""
    content = request.content
    pieces: list[bytes] = []
    gathered = 0
    writing: asyncio.Future[int] | None = None
    try:
        while True:
            try:
                async with asyncio.timeout(bucket.settings.stall):
                    piece = await content.readany()
            except TimeoutError:
                raise _stalled(bucket.settings.stall) from None
            except (HttpProcessingError, ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
                raise InvalidInput("the upload ended before its Content-Length") from error
            if piece:
                pieces.append(piece)
                gathered += len(piece)
                if gathered < _PIECE:
                    continue
            if writing is not None:
                await writing
                writing = None
            if pieces:
                writing = bucket.write(upload, pieces)
                pieces, gathered = [], 0
            if not piece:
                if writing is not None:
                    await writing
                return
    except BaseException:
        if writing is not None:
            writing.cancel()
        raise
