"""What the hub asks of an S3 bucket for every object goes past boto3, and no further than boto3 would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from entrepot.core.errors import Conflict, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.buckets import s3_looks
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.s3 import S3Bucket
from entrepot_hub.adapters.buckets.s3_looks import SHORT
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

ETAG = "0123456789abcdef0123456789abcdef"
SHOWN = f'ETag: "{ETAG}"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n'


class Server:
    """Answers each request on a kept connection with what ``say(method, headers)`` gives, and counts both."""

    def __init__(self, *answers: bytes) -> None:
        self.asked: list[str] = []
        self.connections = 0
        self.agents: list[str] = []
        self._answers = list(answers)

    @asynccontextmanager
    async def bucket(self, **settings: Any) -> AsyncIterator[S3Bucket]:
        """A bucket at that server."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            filled: dict[str, Any] = {
                "bucket": "contract",
                "region": "us-east-1",
                "endpoint": f"http://127.0.0.1:{port}",
                "profile": "aws",
                "credentials": S3Credentials(access_key="a", secret_key="s"),
            }
            bucket = S3Bucket(S3Settings(**(filled | settings)), name="looked")
            try:
                yield bucket
            finally:
                await bucket.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.asked.append(head.partition(" HTTP/")[0])
                self.agents += [line for line in head.splitlines() if line.lower().startswith("user-agent")]
                writer.write(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
                await writer.drain()
        writer.close()


def answer(status: int, body: bytes = b"", headers: str = SHOWN, *, length: int | None = None) -> bytes:
    """An answer on a connection that stays."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


async def test_looks_and_short_reads_share_a_connection_and_leave_boto3_alone() -> None:
    """Any number of them one after another need one connection, and none is boto3's."""
    part = answer(206, b"1234567", f"Content-Range: bytes 0-6/9\r\n{SHOWN}")
    server = Server(answer(200, length=9), part)
    async with server.bucket() as bucket:
        head = await bucket.head("k")
        assert head is not None
        assert (head.length, head.etag, head.modified) == (9, ETAG, 1445412480.0)
        for _ in range(5):
            assert await bucket.read("k", 0, 7, ETAG) == b"1234567"
    assert server.connections == 1
    assert {agent.partition(": ")[2] for agent in server.agents} == {"entrepot-hub"}


async def test_a_head_and_a_read_find_nothing_without_a_second_request() -> None:
    """What is not there is told from one answer."""
    server = Server(answer(404, headers=""))
    async with server.bucket() as bucket:
        assert await bucket.head("k") is None
        with pytest.raises(NotFound):
            await bucket.read("k", 0, 7)
        assert len(server.asked) == 2


async def test_another_content_is_told_at_once() -> None:
    """A server that leaves the condition out of account does not pass another object off."""
    server = Server(answer(200, b"1234567"))
    async with server.bucket() as bucket:
        with pytest.raises(Conflict):
            await bucket.read("k", 0, 7, "another")
    assert len(server.asked) == 1


async def test_a_server_that_sends_everything_is_left_to_boto3() -> None:
    """Where the range is not honoured and lies far in, the bytes before it are not passed through the event loop."""
    whole = bytes(i % 251 for i in range(SHORT + 100))
    server = Server(answer(200, whole))
    async with server.bucket() as bucket:
        assert await bucket.read("k", SHORT, 50) == whole[SHORT : SHORT + 50]
        assert len(server.asked) == 2
        assert any("Boto3" in agent for agent in server.agents)
        assert await bucket.read("k", 3, 50) == whole[3:53]


async def test_a_proxy_of_the_machine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine reaches the endpoint by a proxy, so do looks and reads."""
    proxy = Server(answer(200, length=9))
    async with proxy.bucket() as at_proxy:
        monkeypatch.setenv("http_proxy", at_proxy._settings.hub_endpoint)
        monkeypatch.setenv("no_proxy", "")
        settings = S3Settings(
            bucket="contract",
            region="x",
            endpoint="http://far.invalid",
            credentials=S3Credentials(access_key="a", secret_key="s"),
        )
        bucket = S3Bucket(settings, name="behind")
        assert await bucket.head("k") is not None
        await bucket.aclose()
    assert proxy.asked == ["HEAD http://far.invalid/contract/k"]


async def test_closing_ends_a_look_that_waits() -> None:
    """Who looks while the bucket is closed is told that it is, soon."""
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        settings = S3Settings(
            bucket="contract",
            region="x",
            endpoint=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            credentials=S3Credentials(access_key="a", secret_key="s"),
        )
        bucket = S3Bucket(settings, name="closed")
        looking = asyncio.ensure_future(bucket.head("k"))
        await asked.wait()
        async with asyncio.timeout(60):
            await bucket.aclose()
            with pytest.raises(RetryLater, match="closed"):
                await looking


HINT = b"HTTP/1.1 103 x\r\n\r\n"
CHUNKED = b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes 0-6/9\r\n" + SHOWN.encode() + b"\r\n"
CHUNK = b"1\r\nx\r\n"


@asynccontextmanager
async def flooded(begins: bytes, piece: bytes, **settings: Any) -> AsyncIterator[tuple[S3Bucket, list[str]]]:
    """A bucket whose endpoint sends ``piece`` without end to all but boto3; and who asked it."""
    asked: list[str] = []
    good = answer(206, b"1234567", f"Connection: close\r\nContent-Range: bytes 0-6/9\r\n{SHOWN}")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            asked.append("boto3" if b"Boto3" in await reader.readuntil(b"\r\n\r\n") else "hub")
            writer.write(good if asked[-1] == "boto3" else begins)
            while asked[-1] != "boto3":
                writer.write(piece)
                await writer.drain()
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        filled: dict[str, Any] = {
            "bucket": "contract",
            "region": "x",
            "endpoint": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            "credentials": S3Credentials(access_key="a", secret_key="s"),
        }
        bucket = S3Bucket(S3Settings(**(filled | settings)), name="flooded")
        try:
            yield bucket, asked
        finally:
            await bucket.aclose()


@pytest.mark.parametrize(
    ("begins", "piece"),
    [
        (b"", HINT * 1000),
        (CHUNKED % 404, CHUNK * 1000),
        (CHUNKED % 206, b"1;" + b"e" * 7000 + b"\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 7000 + b"\r\n"),
    ],
    ids=["heads", "pieces", "extensions", "fields"],
)
async def test_an_answer_without_end_is_left_to_the_threads(begins: bytes, piece: bytes) -> None:
    """An endpoint that sends heads or pieces without end has the event loop's attention once; then threads ask it."""
    async with flooded(begins, piece, total=20.0) as (bucket, asked):
        for _ in range(3):
            assert await bucket.read("k", 0, 7) == b"1234567"
    assert asked == ["hub", "boto3", "boto3", "boto3"]


async def test_an_endpoint_has_the_attention_of_the_event_loop_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while a bucket that was left to threads is looked at as before."""
    monkeypatch.setattr(s3_looks, "_SHUNNED", 0.0)
    async with flooded(b"", HINT * 1000, total=20.0) as (bucket, asked):
        for _ in range(2):
            assert await bucket.read("k", 0, 7) == b"1234567"
    assert asked == ["hub", "boto3", "hub", "boto3"]


class Deaf(asyncio.Transport):
    """A transport that knows only whether it was ended."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


def connected(*, head: bool = False) -> tuple[s3_looks._Rationed, Deaf, list[str]]:
    """A connection on which an answer is to come, and what it told."""
    told: list[str] = []
    connection = s3_looks._Rationed(asyncio.get_running_loop(), lambda: told.append("flood"))
    transport = Deaf()
    connection.connection_made(transport)
    connection.set_response_params(skip_payload=head, read_until_eof=True)
    return connection, transport, told


async def test_little_of_a_flood_is_parsed() -> None:
    """Of ten thousand heads that come in one read, a few dozen are parsed; the connection is ended."""
    connection, transport, told = connected()
    connection.data_received(HINT * 14_000)
    assert transport.aborted
    assert told == ["flood"]
    assert len(connection) < 100


async def test_few_pieces_of_a_body_are_parsed() -> None:
    """Of forty thousand chunks of one byte that come in one read, not two thousand are parsed."""
    connection, transport, told = connected()
    connection.data_received(CHUNKED % 404 + CHUNK * 40_000)
    assert transport.aborted
    assert told == ["flood"]
    _, body = await connection.read()
    assert body.total_bytes < 2000


async def test_bytes_one_by_one_are_given_up() -> None:
    """An answer that comes in a read for every byte is not followed to its end."""
    connection, transport, told = connected()
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
        connection.data_received(bytes([byte]))
    assert transport.aborted
    assert told == ["flood"]


async def test_what_nobody_asked_for_ends_the_connection() -> None:
    """What comes after an answer, at once or later, is not parsed, and no misdeed."""
    for cut in (0, 1000):
        connection, transport, told = connected(head=True)
        whole = answer(200, b"", f"X: {'y' * 2000}\r\n", length=9) + HINT * 14_000
        end = whole.index(HINT)
        connection.data_received(whole[: end + cut])
        connection.data_received(whole[end + cut :])
        assert transport.aborted
        assert len(connection) < 100
        assert (await connection.read())[0].code == 200
        assert not told


@pytest.mark.parametrize("call", ["read", "list"])
async def test_an_error_nested_without_measure_is_nonsense(call: str) -> None:
    """XML that is nested so deep that nobody can follow it is an error of ours, whoever reads it."""
    depth = 1100
    server = Server(answer(403, b"<Error>" + b"<a>" * depth + b"</a>" * depth + b"</Error>", ""))
    async with server.bucket(attempts=1) as bucket:
        with pytest.raises(RetryLater) as caught:
            await (bucket.read("k", 0, 7) if call == "read" else bucket.list(""))
    assert caught.value.kind == "bucket-unreachable"


@pytest.mark.parametrize("call", ["read", "list"])
async def test_a_long_error_is_not_read(call: str) -> None:
    """Of an error that is longer than any S3 server's, the status counts."""
    server = Server(answer(400, b"<Error><Code>Found</Code><a>" + b"x" * 40_000 + b"</a></Error>", ""))
    async with server.bucket(attempts=1) as bucket:
        with pytest.raises(InvalidInput) as caught:
            await (bucket.read("k", 0, 7) if call == "read" else bucket.list(""))
    assert caught.value.data["code"] == "400"


@pytest.mark.parametrize("etag", [b"\xff\xfe\x80", b"a\x01b", "é".encode(), b"e" * 201])
@pytest.mark.parametrize("looks", [True, False])
async def test_an_etag_is_printable(etag: bytes, looks: bool) -> None:
    """An etag with other characters than printable ones of ASCII is not taken, whoever asked for it."""
    for body in (b"", b"1234567"):
        server = Server(answer(206, body, length=7).replace(ETAG.encode(), etag))
        async with server.bucket(attempts=1) as bucket:
            bucket._no_looks = not looks
            with pytest.raises(RetryLater, match="ETag"):
                await (bucket.read("k", 0, 7, ETAG) if body else bucket.head("k"))


@pytest.mark.parametrize("status", [101, 201, 204, 299])
@pytest.mark.parametrize("looks", [True, False])
async def test_an_object_is_shown_with_two_statuses(status: int, looks: bool) -> None:
    """An answer that is no 200 and no 206 shows no object, whatever else is in it."""
    server = Server(answer(status, b"", f"Connection: close\r\n{SHOWN}"))
    async with server.bucket(attempts=1) as bucket:
        bucket._no_looks = not looks
        for call in (bucket.head("k"), bucket.read("k", 0, 7)):
            with pytest.raises(RetryLater, match=f"status {status}"):
                await call


async def test_a_thread_does_not_listen_to_heads_without_end() -> None:
    """boto3 gives up an endpoint that says again and again that its answer is to come."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            while True:
                writer.write(b"HTTP/1.1 100 x\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        gone.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        settings = S3Settings(
            bucket="contract",
            region="x",
            endpoint=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            credentials=S3Credentials(access_key="a", secret_key="s"),
            attempts=1,
            total=10.0,
            read_timeout=5.0,
        )
        bucket = S3Bucket(settings, name="endless")
        with pytest.raises(RetryLater) as caught:
            await bucket.list("")
        assert "within" not in str(caught.value)
        await bucket.aclose()
        await gone.wait()


@pytest.mark.parametrize("status", [206, 404])
async def test_a_thread_does_not_take_an_answer_in_crumbs(status: int) -> None:
    """Threads are not kept busy by an object or an error that comes in pieces of a byte: it is given up."""
    body = b"".join([b"1\r\nx\r\n"] * 5000) + b"0\r\n\r\n"
    headers = f"Transfer-Encoding: chunked\r\nContent-Range: bytes 0-4999/5000\r\n{SHOWN}"
    server = Server(f"HTTP/1.1 {status} X\r\n{headers}\r\n".encode() + body)
    async with server.bucket(attempts=1) as bucket:
        with pytest.raises(RetryLater, match="pieces"):
            await bucket.read("k", 0, 5000)
