"""What the hub asks of an S3 bucket for every object goes past boto3, and no further than boto3 would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from entrepot.core.errors import Conflict, NotFound, RetryLater
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
