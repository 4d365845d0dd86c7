"""What a hostile endpoint cannot do to a hub: fill its memory, speak through its errors, keep it from closing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot_hub.adapters.buckets import Bucket, SignedRequest, probe, s3
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.s3 import S3Bucket
from entrepot_hub.adapters.buckets.s3_settings import S3Settings
from entrepot_hub.adapters.buckets.s3_transport import MAX_ANSWER

TOKEN = "Session-Token-of-the-hub"
ROLE = "arn:aws:iam::000000000000:role/hub"
CALLS: dict[str, Callable[[Bucket], Awaitable[object]]] = {
    "list": lambda bucket: bucket.list(""),
    "read": lambda bucket: bucket.read("k", 0, 10),
    "create": lambda bucket: bucket.create("k", b"x"),
    "examine": lambda bucket: bucket.examine(),
}
type _Give = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def endpoint(give: _Give) -> AsyncIterator[str]:
    """A server that calls this with each request's head, one a connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await give(await reader.readuntil(b"\r\n\r\n"), writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        # A connection accepted in this very turn of the loop joins its server in the next one, and a server that
        # closes in between leaves it open: a client that was given up while it connected makes one.
        await asyncio.sleep(0)


def at(url: str, **settings: Any) -> S3Bucket:
    """A bucket there, with temporary keys."""
    filled: dict[str, Any] = {
        "credentials": S3Credentials(access_key="AKIAHUB", secret_key="s", session_token=TOKEN),
        "attempts": 1,
    }
    return S3Bucket(S3Settings(bucket="contract", region="x", endpoint=url, **(filled | settings)), name="hostile")


def always(answer: bytes) -> _Give:
    """The same answer for everyone."""

    async def give(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return give


def refusal(code: str, status: int = 400) -> bytes:
    """An S3 error with this code, and the token in its message."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>you sent {TOKEN}</Message></Error>".encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def told(error: BaseException) -> str:
    """All that a log could show of an error."""
    data = error.data if isinstance(error, EntrepotError) else {}
    return f"{error} {data} " + "".join(traceback.format_exception(error))


async def error_of(bucket: S3Bucket, call: str) -> EntrepotError:
    """The error that the call raises; one of a library fails the test."""
    try:
        with pytest.raises(EntrepotError) as caught:
            await CALLS[call](bucket)
    finally:
        await bucket.aclose()
    return caught.value


@pytest.mark.parametrize(("call", "status"), [("list", 200), ("list", 500), ("read", 500), ("read", 404)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_that_never_ends_is_given_up(call: str, status: int, chunked: bool) -> None:
    """A listing or an error without an end is read up to a limit, once, and the connection is closed."""
    sent = 0
    asked = 0
    piece = b"A" * (1 << 20)

    async def give(_head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent, asked
        asked += 1
        coding = "Transfer-Encoding: chunked" if chunked else "Connection: close"
        writer.write(f"HTTP/1.1 {status} X\r\n{coding}\r\n\r\n".encode())
        while sent < 200 << 20:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
            sent += len(piece)

    async with endpoint(give) as url:
        error = await error_of(at(url, attempts=4), call)
    assert (type(error), error.kind) == (RetryLater, "bucket-unreachable")
    # What the event loop does not follow a thread asks for anew.
    assert asked == (2 if call == "read" else 1)
    # What is in the sockets' buffers comes on top.
    assert sent < MAX_ANSWER + (64 << 20)


@pytest.mark.parametrize(
    "code",
    [TOKEN, TOKEN[3:9], "AKIAHUB", f"Evil {TOKEN}", "A&#10;level=info", "A&#x85;B", "é", "A" * 65, "A" * 70_000, ""],
    ids=["token", "part", "key", "words", "newline", "control", "letter", "long", "huge", "empty"],
)
@pytest.mark.parametrize("call", ["list", "read", "create"])
async def test_no_words_of_the_endpoint_are_repeated(call: str, code: str) -> None:
    """Instead of a code that does not look like one, or repeats what was sent, the status is told; a message never."""
    async with endpoint(always(refusal(code))) as url:
        error = await error_of(at(url), call)
    assert (type(error), error.data["code"]) == (InvalidInput, "400")
    assert TOKEN[3:9] not in told(error)
    assert "level" not in told(error)
    assert len(str(error)) < 300


async def test_a_code_is_quoted() -> None:
    """A code that looks like one helps the owner, and stays."""
    async with endpoint(always(refusal("MalformedPolicy.v-2"))) as url:
        error = await error_of(at(url), "list")
    assert error.data["code"] == "MalformedPolicy.v-2"
    assert "MalformedPolicy.v-2" in error.message


@pytest.mark.parametrize(
    "answer",
    [
        f"{TOKEN}\r\n\r\n",
        f"HTTP/1.1 {TOKEN}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n<{TOKEN}",
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(TOKEN)}\r\n\r\n{TOKEN}",
        f"HTTP/1.1 500 OK\r\nContent-Length: {len(TOKEN)}\r\n\r\n{TOKEN}",
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{TOKEN}\r\n",
        f'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "e"\r\nLast-Modified: {TOKEN}\r\n\r\n12345',
        f'HTTP/1.1 206 OK\r\nContent-Length: 5\r\nETag: "e"\r\nContent-Range: bytes {"9" * 5000}-{TOKEN}\r\n\r\n12345',
        f'HTTP/1.1 206 OK\r\nContent-Length: 5\r\nETag: "e"\r\nContent-Range: bytes 0-4/{"9" * 5000}\r\n\r\n12345',
        f"HTTP/1.1 200 OK\r\nContent-Length: {TOKEN}\r\n\r\n",
        f"HTTP/1.1 400 X\r\nContent-Length: 0\r\n{TOKEN} without a colon\r\n\r\n",
    ],
    ids=["line", "status", "cut", "no-xml", "error", "chunk", "date", "range", "number", "length", "header"],
)
@pytest.mark.parametrize("call", ["list", "read", "create"])
async def test_nonsense_is_not_repeated(call: str, answer: str, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be understood gives an error of ours that shows none of it; no library writes it into the log."""
    async with endpoint(always(answer.encode())) as url:
        bucket = at(url)
        outcome = (await asyncio.gather(CALLS[call](bucket), return_exceptions=True))[0]
        await bucket.aclose()
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, EntrepotError)
        assert TOKEN not in told(outcome)
    assert TOKEN not in caplog.text


async def test_a_refused_probe_repeats_nothing() -> None:
    """What is told of a refused upload is the provider's code, not the token that it repeats."""

    async def refused(code: str) -> str:
        async def give(head: bytes, writer: asyncio.StreamWriter) -> None:
            absent = b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(refusal(code, 403) if head.startswith(b"PUT") else absent)
            await writer.drain()

        async with endpoint(give) as url:
            bucket = at(url)
            with pytest.raises(Denied) as caught:
                await bucket.probe(expiry=False)
            await bucket.aclose()
        return str(caught.value)

    assert TOKEN not in await refused(TOKEN)
    assert TOKEN not in await refused(f"you sent {TOKEN}")
    assert "NotEntitled" in await refused("NotEntitled")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "begins", ["HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\nETag: e\r\n\r\n", "HTTP/1.1 200 OK\r\nA: "]
)
async def test_a_trickling_server_does_not_keep_a_bucket_from_closing(
    call: str, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing ends what waits for an answer that comes byte by byte, and all threads of the bucket."""
    monkeypatch.setattr(s3, "_GRACE", 0.3)
    asked, stop = asyncio.Event(), asyncio.Event()

    async def give(head: bytes, writer: asyncio.StreamWriter) -> None:
        if call == "examine" and b"Authorization" in head:
            writer.write(refusal("NotImplemented", 501))
            return
        if head.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        writer.write(begins.encode())
        asked.set()
        while not stop.is_set():
            writer.write(b"x")
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.05)

    async with endpoint(give) as url:
        bucket = at(url)
        asking = asyncio.ensure_future(CALLS[call](bucket))
        await asked.wait()
        waiting = asyncio.ensure_future(bucket.list(""))
        async with asyncio.timeout(60):
            await bucket.aclose()
            outcomes = await asyncio.gather(asking, waiting, return_exceptions=True)
        stop.set()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("bucket-hostile")]
    assert isinstance(outcomes[1], RetryLater)
    # An examination says of what it could not try that it is not known.
    assert call == "examine" or isinstance(outcomes[0], RetryLater)


async def test_closing_ends_the_assuming_of_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where roles are given out is no more trusted than the bucket: its silence does not hold a thread."""
    monkeypatch.setattr(s3, "_GRACE", 0.3)
    asked, stop = asyncio.Event(), asyncio.Event()

    async def give(_head: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await stop.wait()

    async with endpoint(give) as url:
        pair = S3Credentials(access_key="a", secret_key="s", role=ROLE)
        bucket = at(url, credentials=pair)
        asking = asyncio.ensure_future(bucket.sign_get("k", None, 60))
        await asked.wait()
        async with asyncio.timeout(20):
            await bucket.aclose()
            with pytest.raises(RetryLater):
                await asking
        stop.set()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("bucket-hostile")]


async def test_a_bucket_that_does_not_start_is_closed() -> None:
    """When entering fails nothing stays behind: no thread, no connection."""
    async with endpoint(always(refusal("InvalidAccessKeyId", 403))) as url:
        bucket = at(url)
        with pytest.raises(Denied):
            async with bucket:
                raise AssertionError("entered")
        with pytest.raises(RetryLater, match="closed"):
            await bucket.list("")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("bucket-hostile")]


async def test_an_object_that_trickles_gives_its_thread_back() -> None:
    """A read that is given up for slowness leaves its thread to the next one."""
    asked = 0
    stop = asyncio.Event()

    async def give(_head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(b'HTTP/1.1 206 X\r\nContent-Length: 100\r\nContent-Range: bytes 0-99/100\r\nETag: "e"\r\n\r\n')
        if asked > 1:
            writer.write(b"x" * 100)
            return
        while not stop.is_set():
            writer.write(b"x" if asked == 1 else b"")
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.2)

    async with endpoint(give) as url:
        bucket = at(url, threads=1, total=2.0)
        with pytest.raises(RetryLater):
            await bucket.read("k", 0, 100)
        assert await bucket.read("k", 0, 100) == b"x" * 100
        await bucket.aclose()
        stop.set()


async def test_a_probe_of_a_trickling_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of a probe whose answer comes byte by byte counts as not answered after a while."""
    monkeypatch.setattr(probe, "_LIMIT", 0.5)
    stop = asyncio.Event()

    async def give(_head: bytes, writer: asyncio.StreamWriter) -> None:
        while not stop.is_set():
            writer.write(b"H")
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.05)

    async with endpoint(give) as url:
        signed = SignedRequest(method="PUT", url=f"{url}/k", headers={}, expires_at=0.0)
        async with asyncio.timeout(60):
            assert (await probe.send(signed, b"")).status == 0
        stop.set()
