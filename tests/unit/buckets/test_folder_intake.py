"""Large uploads to a folder bucket, which a thread reads from the connection itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import itertools
import json
import os
import random
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from tests.contract.buckets.conftest import serve_folder
from tests.contract.buckets.requests import begin, digest_of, download, upload

from entrepot_hub.adapters.buckets import SignedRequest, folder_intake, folder_web
from entrepot_hub.adapters.buckets.folder import FolderBucket, FolderSettings
from entrepot_hub.adapters.buckets.folder_web import FolderWeb

DATA = random.Random(5).randbytes(3_000_001)


@pytest.fixture
async def bucket(tmp_path: Path) -> AsyncIterator[FolderBucket]:
    """A served folder that gives up soon."""
    async with serve_folder(tmp_path / "bucket", FolderSettings(stall=1.0, sync=False)) as served:
        yield served


async def granted(bucket: FolderBucket, key: str = "k", data: bytes = DATA) -> SignedRequest:
    """A signed PUT of these bytes."""
    return await bucket.sign_put(key, len(data), digest_of(data), 300)


def head_of(signed: SignedRequest) -> bytes:
    """The request's head."""
    parts = urlsplit(signed.url)
    lines = [f"{signed.method} {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in signed.headers.items()), "", ""]).encode()


@contextmanager
def connected(signed: SignedRequest) -> Iterator[socket.socket]:
    """A connection to where the request goes."""
    parts = urlsplit(signed.url)
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30) as found:
        yield found


def answers(found: socket.socket, *methods: str) -> list[tuple[int, bytes]]:
    """The answers to requests of these methods, in their order."""
    file = found.makefile("rb")

    class Rest:
        def makefile(self, *_: object) -> object:
            return _Open(file)

    seen = []
    for method in methods:
        response = http.client.HTTPResponse(Rest(), method=method)  # type: ignore[arg-type]
        response.begin()
        seen.append((response.status, response.read()))
    file.close()
    return seen


class _Open:
    """A file that an answer reads from and does not close."""

    def __init__(self, file: object) -> None:
        self._file = file

    def __getattr__(self, name: str) -> object:
        return (lambda: None) if name == "close" else getattr(self._file, name)


async def test_requests_follow_a_large_upload_on_its_connection(bucket: FolderBucket) -> None:
    """Two large uploads and two downloads, all sent before the first answer, are each served: the next request is
    found where the body ends."""
    requests = [
        head_of(await granted(bucket, "a")) + DATA,
        head_of(await granted(bucket, "b", DATA[1:])) + DATA[1:],
        head_of(await bucket.sign_get("a", None, 60)),
        head_of(await bucket.sign_get("b", None, 60)),
    ]

    def work(signed: SignedRequest) -> list[tuple[int, bytes]]:
        with connected(signed) as found:
            sender = threading.Thread(target=found.sendall, args=(b"".join(requests),))
            sender.start()
            seen = answers(found, "PUT", "PUT", "GET", "GET")
            sender.join()
            return seen

    seen = await asyncio.to_thread(work, await granted(bucket))
    assert seen == [(200, b""), (200, b""), (200, DATA), (200, DATA[1:])]


async def test_large_bodies_do_not_pass_through_the_event_loop(
    bucket: FolderBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large upload never takes the way of small ones; a small one does."""
    small = []
    real = folder_intake._stream

    async def told(*words: object) -> None:
        small.append(words)
        await real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_intake, "_stream", told)
    assert (await upload(bucket, "large", DATA)).status == 200
    assert not small
    assert (await upload(bucket, "small", DATA[:1000])).status == 200
    assert small


async def test_a_body_that_comes_in_bits_is_taken_whole(bucket: FolderBucket) -> None:
    """Pauses anywhere, in the head, in the body and before its last byte, change nothing."""
    signed = await granted(bucket)
    whole = head_of(signed) + DATA
    cuts = [0, 30, len(whole) - len(DATA), len(whole) - len(DATA) + 1, 400_000, 1_000_000, len(whole) - 1, len(whole)]

    def work() -> list[tuple[int, bytes]]:
        with connected(signed) as found:
            for start, end in itertools.pairwise(cuts):
                found.sendall(whole[start:end])
                time.sleep(0.3)
            return answers(found, "PUT")

    assert [status for status, _ in await asyncio.to_thread(work)] == [200]
    assert (await download(bucket, "k")).body == DATA


async def test_a_large_upload_that_stalls_is_given_up(bucket: FolderBucket) -> None:
    """When no byte of a large body comes for the stall time the upload ends with 408 and leaves nothing."""
    connection = await asyncio.to_thread(begin, await granted(bucket), DATA[:2_000_000])
    response = await asyncio.to_thread(connection.getresponse)
    body = await asyncio.to_thread(response.read)
    connection.close()
    assert (response.status, json.loads(body)["error"]["kind"]) == (408, "deadline")
    assert await bucket.head("k") is None
    assert await bucket.pending_bytes() == 0


async def test_a_large_upload_that_is_too_slow_is_given_up(
    bucket: FolderBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the floor rate a large upload ends with 408 although bytes keep coming."""
    monkeypatch.setattr(folder_web, "_FLOOR", 1 << 40)
    signed = await granted(bucket)

    def work() -> list[tuple[int, bytes]]:
        with connected(signed) as found:
            found.sendall(head_of(signed))
            found.settimeout(0)
            for at in range(0, len(DATA), 10_000):
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    found.send(DATA[at : at + 10_000])
                with contextlib.suppress(BlockingIOError):
                    found.recv(1, socket.MSG_PEEK)
                    break
                time.sleep(0.05)
            found.settimeout(30)
            return answers(found, "PUT")

    ((status, body),) = await asyncio.to_thread(work)
    assert (status, json.loads(body)["error"]["kind"]) == (408, "deadline")
    assert await bucket.head("k") is None


async def test_a_large_upload_cut_short_leaves_nothing(bucket: FolderBucket) -> None:
    """A sender that ends before the announced length is refused, and nothing of it stays."""
    signed = await granted(bucket)

    def work() -> bytes:
        with connected(signed) as found:
            found.sendall(head_of(signed) + DATA[:-1])
            found.shutdown(socket.SHUT_WR)
            return found.recv(1000)

    assert not (await asyncio.to_thread(work)).startswith(b"HTTP/1.1 200")
    for _ in range(1000):
        if not await bucket.pending_bytes():
            break
        await asyncio.sleep(0.01)
    assert await bucket.pending_bytes() == 0
    assert await bucket.head("k") is None


async def test_a_connection_goes_on_after_other_bytes_than_granted(bucket: FolderBucket) -> None:
    """A large body with one bit changed is refused with 400 and not there; the next one on the connection is taken."""
    signed = await granted(bucket)
    spoilt = bytearray(DATA)
    spoilt[2_500_000] ^= 1

    def work() -> list[int]:
        with connected(signed) as found:
            seen = []
            for body in (bytes(spoilt), DATA):
                found.sendall(head_of(signed) + body)
                seen += [status for status, _ in answers(found, "PUT")]
            return seen

    assert await asyncio.to_thread(work) == [400, 200]
    assert (await download(bucket, "k")).body == DATA


async def test_a_connection_goes_on_after_a_full_disk(bucket: FolderBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that finds the disk full in the middle is 507, whatever was read of it; when there is room again the
    next one on the same connection is taken."""
    real, written = os.write, 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal written
        if threading.current_thread().name.startswith("bucket-"):
            written += len(data)
            if 1_500_000 < written < 10_000_000:
                written = 10_000_000
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    signed = await granted(bucket)

    def work() -> list[int]:
        with connected(signed) as found:
            seen = []
            for _ in range(2):
                sender = threading.Thread(target=found.sendall, args=(head_of(signed) + DATA,))
                sender.start()
                seen += [status for status, _ in answers(found, "PUT")]
                sender.join()
            return seen

    assert await asyncio.to_thread(work) == [507, 200]
    assert (await download(bucket, "k")).body == DATA
    assert await bucket.pending_bytes() == 0


async def test_a_handler_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """When the server ends in the middle of a large upload, no file of it stays."""
    buckets: dict[str, FolderBucket] = {}
    app = web.Application()
    app.router.add_routes(FolderWeb(buckets.get).routes())
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with FolderBucket(
        tmp_path / "bucket", name="b1", secret=b"k" * 32, public_url=f"http://{host}:{port}"
    ) as bucket:
        buckets["b1"] = bucket
        connection = await asyncio.to_thread(begin, await granted(bucket), DATA[:2_000_000])
        for _ in range(1000):
            if await bucket.pending_bytes():
                break
            await asyncio.sleep(0.01)
        assert await bucket.pending_bytes()
        await runner.cleanup()
        assert await bucket.pending_bytes() == 0
    connection.close()
    assert os.listdir(tmp_path / "bucket/.pending") == []


class Written:
    """An upload that counts what is written to it."""

    def __init__(self) -> None:
        self.pieces: list[int] = []

    def write(self, pieces: list[memoryview]) -> int:
        self.pieces += [len(piece) for piece in pieces]
        return sum(self.pieces)


@contextmanager
def sending(size: int) -> Iterator[tuple[folder_intake.Draught, Written]]:
    """A draught of a body that a thread sends without end, so many bytes at once."""
    near, far = socket.socketpair()
    stop = threading.Event()
    # The draught's own end does not wait; this one does.
    far.settimeout(0.1)

    def send() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                far.send(bytes(size))

    sender = threading.Thread(target=send)
    sender.start()
    written = Written()
    draught = folder_intake.Draught(written, near, 1 << 40)  # type: ignore[arg-type]
    try:
        yield draught, written
    finally:
        draught.stop.set()
        stop.set()
        sender.join()
        draught.close()
        far.close()


def returns(draught: folder_intake.Draught) -> bool:
    """Whether a turn ends while the sender goes on."""
    select.select([draught.number], [], [], 30)
    drawing = threading.Thread(target=draught.draw, args=(memoryview(bytearray(1 << 20)),))
    drawing.start()
    drawing.join(20)
    ended = not drawing.is_alive()
    draught.stop.set()
    drawing.join()
    return ended


@pytest.mark.blocking
def test_a_steady_trickle_does_not_hold_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that always has one more byte has its turn over before it sent what is worth one."""
    # However the sender is scheduled: its next byte comes in time.
    monkeypatch.setattr(folder_intake, "_LINGER", 10_000)
    with sending(1) as (draught, written):
        assert returns(draught)
        assert sum(written.pieces) < 64 << 10


@pytest.mark.blocking
def test_a_turn_ends_however_much_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends fast gives way after a time too, not only after so many bytes."""
    monkeypatch.setattr(folder_intake, "_LONG", 0.0)
    with sending(128 << 10) as (draught, written):
        assert returns(draught)
        assert len(written.pieces) == 1
