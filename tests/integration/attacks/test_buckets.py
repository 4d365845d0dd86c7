"""A bucket that answers whatever harms a node: real sockets, real transfers."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import repeat
from pathlib import Path

import pytest
from tests.integration.attacks.conftest import Refused
from tests.servers.grid import SMALL, Content

from entrepot.adapters.store import Store
from entrepot.adapters.transfer import SignedRequest, Transfers, TransferSettings
from entrepot.adapters.transfer.connections import refuse_metadata
from entrepot.core.errors import Corrupt, Denied, EntrepotError, NotFound, RetryLater
from entrepot.core.lock import SchemaLock

LOCK = SchemaLock("demo", miniblock=SMALL["miniblock"], object=SMALL["object"])
QUICK = TransferSettings(attempts=2, backoff=0.01, retry_after_limit=0.05, idle_timeout=2.0, total_timeout=5.0)

#: What is answered to a request: pieces, each sent at once.
type Answer = Callable[[], Iterator[bytes]]


class Bucket:
    """Gives every connection one answer. ``sent`` counts bytes that a client took, ``seen`` what it said."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/object?signed=yes"
        self.sent = 0
        self.seen: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    self.seen.append(connection.recv(65536))
                    for piece in self._answer():
                        connection.sendall(piece)
                        self.sent += len(piece)
                except OSError:
                    continue

    def close(self) -> None:
        if self._listening.fileno() < 0:
            return
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)


@contextmanager
def bucket(answer: Answer) -> Iterator[Bucket]:
    """A bucket that is there for a test."""
    found = Bucket(answer)
    try:
        yield found
    finally:
        found.close()


def whole(head: str, body: bytes = b"") -> Answer:
    """One answer: the lines of ``head`` and a body."""
    return lambda: iter([head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body])


def endless(head: str) -> Answer:
    """An answer that goes on for as long as somebody takes it, up to 1 GiB."""

    def pieces() -> Iterator[bytes]:
        yield head.replace("\n", "\r\n").encode() + b"\r\n"
        yield from repeat(bytes(1 << 20), 1024)

    return pieces


async def get(url: str, content: Content) -> bytes:
    """A range of the content's first object, as a lazy reader asks for it."""
    async with Transfers(QUICK) as transfers:
        request = SignedRequest("GET", url)
        return await transfers.get_range(request, content.stream, LOCK, content.opening, 0, range(2))


@pytest.fixture
def content() -> Content:
    """Two objects."""
    return Content(os.urandom(100_000), LOCK)


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 404 x\nTransfer-Encoding: chunked\n\n-1",
        "HTTP/1.1 503 x\nTransfer-Encoding: chunked\n\n-7fffffff",
        "HTTP/1.1 403 x\nTransfer-Encoding: chunked\n\nffffffffffffffff",
        "HTTP/1.1 404 x\n",
        "HTTP/1.1 206 x\nTransfer-Encoding: chunked\nContent-Range: bytes 0-9/10\n\n-1",
    ],
)
async def test_an_error_without_end_is_not_read(content: Content, head: str) -> None:
    """Of an error's text a few KiB are read, whatever lengths it claims: no memory goes into the rest."""
    with bucket(endless(head)) as found:
        with pytest.raises(EntrepotError):
            await get(found.url, content)
        found.close()
        assert found.sent < 64 << 20  # of 1 GiB: what the system's buffers took


@pytest.mark.parametrize(
    "retry_after",
    ["\xb2", "Mon, 1 Jan 2020 99999999999999999999:00:00 GMT", "Mon, 1 Jan 2020 00:00:00 +99999999999999999999", "-1"],
)
async def test_a_senseless_pause_is_no_pause(content: Content, retry_after: str) -> None:
    """A Retry-After that is no time is as good as none; the trouble is the bucket's, not a crash of the node."""
    with (
        bucket(whole(f"HTTP/1.1 503 x\nContent-Length: 0\nRetry-After: {retry_after}")) as found,
        pytest.raises(RetryLater) as caught,
    ):
        await get(found.url, content)
    assert caught.value.kind == "bucket-unreachable"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(content: Content, status: int) -> None:
    """A bucket cannot send a node elsewhere: what the Location names sees no request."""
    with bucket(whole("HTTP/1.1 200 x\nContent-Length: 1", b"x")) as inner:
        head = f"HTTP/1.1 {status} x\nLocation: {inner.url}\nContent-Length: 0"
        with bucket(whole(head)) as found, pytest.raises(RetryLater):
            await get(found.url, content)
        assert found.seen
        assert not inner.seen


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://127.0.0.1/x", "http:///x", "//127.0.0.1/x", "http://[::1/x", "ftp://h/x"]
)
async def test_only_http_is_spoken(content: Content, url: str) -> None:
    """A hub that names anything but an http URL is refused before anything is opened."""
    with pytest.raises(EntrepotError) as caught:
        await get(url, content)
    assert caught.value.kind == "invalid-input"


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("169.254.169.254", True),
        ("::ffff:169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
        ("127.0.0.1", False),
        ("192.168.1.5", False),
        ("fd00::5", False),
        ("8.8.8.8", False),
    ],
)
def test_no_metadata_service_is_asked(address: str, refused: bool) -> None:
    """A connection that ends at a cloud's metadata service is given up before a byte is sent, whatever its name."""
    with pytest.raises(Denied) if refused else nullcontext():
        refuse_metadata(address)


async def test_a_url_cannot_bring_a_second_request(content: Content) -> None:
    """Line breaks in a URL or in a signed header end the request with an error, not with more lines."""
    with bucket(whole("HTTP/1.1 404 x\nContent-Length: 0")) as found, pytest.raises(EntrepotError):
        await get(found.url + " HTTP/1.1\r\nX: y\r\n\r\nDELETE /", content)
    assert not any(b"DELETE" in said for said in found.seen)
    with bucket(whole("HTTP/1.1 404 x\nContent-Length: 0")) as found:
        async with Transfers(QUICK) as transfers:
            request = SignedRequest("GET", found.url, {"If-Match": 'x"\r\nDELETE: y'})
            with pytest.raises(EntrepotError):
                await transfers.get_range(request, content.stream, LOCK, content.opening, 0, range(2))
    assert not any(b"DELETE" in said for said in found.seen)


def trick(content: Content, name: str) -> Answer:
    """An answer to a GET of the whole of object 0 that is wrong in one way."""
    good = content.object(0)
    other = content.object(1)
    size = len(good)
    flipped = bytearray(good)
    flipped[-1] ^= 1
    header = bytearray(good)
    header[100] ^= 1
    longer = f"HTTP/1.1 200 x\nContent-Length: {size + 1}"
    answers = {
        "a flipped byte": (f"HTTP/1.1 200 x\nContent-Length: {size}", bytes(flipped)),
        "a flipped node": (f"HTTP/1.1 200 x\nContent-Length: {size}", bytes(header)),
        "another object": (f"HTTP/1.1 200 x\nContent-Length: {size}", (other + bytes(size))[:size]),
        "one byte more": (longer, good + b"x"),
        "a part nobody asked for": (f"HTTP/1.1 206 x\nContent-Length: {size}\nContent-Range: bytes 0-1/2", good),
        "an encoding": (f"HTTP/1.1 200 x\nContent-Encoding: gzip\nContent-Length: {size}", good),
        "chunks": ("HTTP/1.1 200 x\nTransfer-Encoding: chunked", f"{size:x}\r\n".encode() + good + b"\r\n0\r\n\r\n"),
        "two lengths": (f"HTTP/1.1 200 x\nContent-Length: {size - 1}\nContent-Length: {size}", good),
        "an early end": (f"HTTP/1.1 200 x\nContent-Length: {size}", good[: size // 2]),
        "zeros": (f"HTTP/1.1 200 x\nContent-Length: {size}", bytes(size)),
    }
    return whole(*answers[name])


@pytest.mark.parametrize(
    "name",
    [
        "a flipped byte",
        "a flipped node",
        "another object",
        "one byte more",
        "a part nobody asked for",
        "an encoding",
        "chunks",
        "two lengths",
        "an early end",
        "zeros",
    ],
)
async def test_no_wrong_byte_is_kept(tmp_path: Path, content: Content, name: str) -> None:
    """Whatever a bucket answers for a whole object, the store's file holds bytes of the stream or none."""
    async with Store(tmp_path / "store") as store, Transfers(QUICK) as transfers:
        async with await store.begin(content.stream, content.opening, LOCK, "scope", "") as fetch:
            with bucket(trick(content, name)) as found, pytest.raises((Corrupt, RetryLater, NotFound)):
                await transfers.get_object(SignedRequest("GET", found.url), fetch, 0)
            await fetch.finish()
            path = fetch.content.path
            held = [index for index in range(4) if fetch.has(range(index, index + 1))]
        data = path.read_bytes()
    for index in range(4):
        span = slice(index * LOCK.miniblock, (index + 1) * LOCK.miniblock)
        kept = data[span]
        assert kept == (content.data[span] if index in held else bytes(len(kept)))
    assert not (name in {"another object", "zeros", "a flipped node"} and held)


#: Fields of a header that say how much is to come: offset, and what is put there.
CLAIMS = {
    "another codec": (9, b"\x01"),
    "miniblocks of 2^63 bytes": (10, b"\x3f"),
    "2^63 miniblocks in the object": (11, b"\x3f"),
    "a stream of 2^63 - 1 bytes": (48, b"\x7f" + b"\xff" * 7),
    "four milliard miniblocks": (92, b"\xff" * 4),
    "a stored miniblock of 4 GiB": (96, b"\xff" * 4),
    "a stored miniblock of nothing": (96, bytes(4)),
    "two stored miniblocks of other lengths": (96, (SMALL["miniblock"] - 1).to_bytes(4)),
}


@pytest.mark.parametrize("exact", [True, False], ids=["of the right length", "without end"])
@pytest.mark.parametrize("claim", CLAIMS)
async def test_a_header_that_claims_more_costs_nothing(
    tmp_path: Path, content: Content, claim: str, exact: bool, refused: Refused
) -> None:
    """A header whose lengths, codec or geometry are not those that id and lock give is refused before a byte of what it
    announces is read or kept."""
    at, lie = CLAIMS[claim]
    bad = bytearray(content.object(0))
    bad[at : at + len(lie)] = lie

    def pieces() -> Iterator[bytes]:
        length = len(bad) if exact else 1 << 30
        yield f"HTTP/1.1 200 x\r\nContent-Length: {length}\r\n\r\n".encode() + bytes(bad)
        if not exact:
            yield from repeat(bytes(1 << 20), 1023)

    async with (
        Store(tmp_path / "store") as store,
        Transfers(QUICK) as transfers,
        await store.begin(content.stream, content.opening, LOCK, "scope", "") as fetch,
    ):
        with bucket(pieces) as found:
            with pytest.raises((Corrupt, RetryLater, NotFound)) as caught:
                await transfers.get_object(SignedRequest("GET", found.url), fetch, 0)
            found.close()
            assert found.sent < 64 << 20
        if exact:
            assert isinstance(caught.value, Corrupt)
        assert not any(fetch.has(range(index, index + 1)) for index in range(4))
    refused("zip-bomb miniblocks")
