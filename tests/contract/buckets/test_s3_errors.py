"""Whatever an S3 server or the way to it does, the hub sees one of our errors and no library's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.contract.buckets.conftest import s3_settings
from tests.servers.ministack import S3Server
from tests.servers.process import free_port

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot_hub.adapters.buckets import Bucket
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.s3 import S3Bucket

KEY = "some/key"
CALLS: dict[str, Callable[[Bucket], Awaitable[object]]] = {
    "start": lambda bucket: bucket.start(),
    "head": lambda bucket: bucket.head(KEY),
    "read": lambda bucket: bucket.read(KEY, 0, 10),
    "delete": lambda bucket: bucket.delete(KEY),
    "tombstone": lambda bucket: bucket.put_tombstone(KEY),
    "create": lambda bucket: bucket.create(KEY, b"x"),
    "list": lambda bucket: bucket.list(""),
}


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The endpoint of a server that gives everyone these bytes and hangs up."""

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(give, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def away(endpoint: str) -> S3Bucket:
    """A bucket at this endpoint, asked once."""
    settings = s3_settings(S3Server(endpoint))
    return S3Bucket(replace(settings, attempts=1, create=False, read_timeout=1.0), name="away")


def xml(status: int, code: str) -> bytes:
    """An S3 error, whole."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


async def error_of(bucket: S3Bucket, call: str) -> EntrepotError:
    """The error that the call raises; one of a library fails the test."""
    try:
        with pytest.raises(EntrepotError) as caught:
            await CALLS[call](bucket)
    finally:
        await bucket.aclose()
    return caught.value


@pytest.mark.parametrize("call", CALLS)
async def test_nobody_listens(call: str) -> None:
    """A closed port is a bucket that cannot be reached now, in one sentence that names no object."""
    error = await error_of(away(f"http://127.0.0.1:{free_port()}"), call)
    assert (type(error), error.kind) == (RetryLater, "bucket-unreachable")
    assert error.message == "the bucket cannot be reached: Connection refused"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<ListBu",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 5\r\n\r\n<a<b>",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\nnot <xml!",
        b"HTTP/1.1 302 Away\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["nothing", "no-http", "cut", "no-xml", "broken", "redirect"],
)
async def test_a_server_that_talks_nonsense(answer: bytes, call: str) -> None:
    """Half answers, wrong answers and none give one of our errors, or an answer of the right kind."""
    async with answering(answer) as endpoint:
        bucket = away(endpoint)
        outcome = (await asyncio.gather(CALLS[call](bucket), return_exceptions=True))[0]
        await bucket.aclose()
    assert not isinstance(outcome, BaseException) or isinstance(outcome, (RetryLater, InvalidInput))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", "busy"),
        (429, "TooManyRequests", "busy"),
        (409, "ConditionalRequestConflict", "busy"),
        (500, "InternalError", "bucket-unreachable"),
        (507, "InsufficientStorage", "disk-full"),
        (400, "InvalidRequest", "invalid-setting"),
        (301, "PermanentRedirect", "invalid-setting"),
        (403, "InvalidAccessKeyId", "denied"),
        (403, "SignatureDoesNotMatch", "denied"),
        (403, "RequestTimeTooSkewed", "clock-skew"),
    ],
)
async def test_what_a_server_refuses(status: int, code: str, kind: str, call: str) -> None:
    """Each refusal has its kind, so that a caller knows whether to wait, to mend a setting or to mend a
    key."""
    async with answering(xml(status, code)) as endpoint:
        error = await error_of(away(endpoint), call)
    assert error.kind == kind


@pytest.mark.parametrize("call", CALLS)
async def test_wrong_keys_are_denied(ministack: S3Server, rclone: S3Server, call: str) -> None:
    """An unknown key or a wrong secret is a denial for every call, never an absent object."""
    # ministack checks signatures in URLs, not those in headers; rclone does.
    for server in (replace(ministack, access_key="AKIAUNKNOWN"), replace(rclone, secret_key="wrong")):
        error = await error_of(S3Bucket(s3_settings(server), name="wrong"), call)
        assert isinstance(error, Denied)


async def test_a_missing_bucket_is_a_wrong_setting(ministack: S3Server) -> None:
    """A bucket that is not there is told at the start, unless it is to be made."""
    settings = replace(s3_settings(ministack, bucket="not-made-yet"), create=False)
    error = await error_of(S3Bucket(settings, name="missing"), "start")
    assert (type(error), error.kind) == (InvalidInput, "invalid-setting")
    for _ in range(2):
        async with S3Bucket(replace(settings, create=True), name="made") as bucket:
            assert (await bucket.list("")).entries == ()


async def test_a_server_that_does_not_answer_is_given_up(ministack: S3Server) -> None:
    """A server that accepts and stays silent is given up after the read timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await error_of(away(f"http://127.0.0.1:{silent.getsockname()[1]}"), "head")
    assert error.kind == "bucket-unreachable"


LISTED = b"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>%s</ListBucketResult>"


@asynccontextmanager
async def denying(may_list: bool, present: set[str]) -> AsyncIterator[str]:
    """The endpoint of a server that shows what is present and answers 403 for all else, as S3 does."""

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        target = head.split()[1]
        key = target.partition("?")[0].removeprefix("/contract").removeprefix("/")
        if "list-type" in target and may_list:
            found = b"".join(b"<Contents><Key>%s</Key></Contents>" % name.encode() for name in present)
            body = LISTED % found
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        elif key in present and "list-type" not in target and key != "secret":
            writer.write(
                b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\nETag: "e"\r\nConnection: close\r\n'
                b"Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n"
            )
        elif "list-type" in target:
            writer.write(xml(403, "AccessDenied"))
        else:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(give, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("may_list", "present", "absent"),
    [
        (True, {".entrepot"}, True),
        (True, set(), True),
        (True, {"secret"}, False),
        (False, {".entrepot"}, True),
        (False, set(), False),
    ],
    ids=["listed-absent", "empty", "listed-denied", "mark-readable", "nothing-readable"],
)
async def test_403_is_absent_only_when_that_is_sure(may_list: bool, present: set[str], absent: bool) -> None:
    """Without the right to list, 403 means absent only if the owner's mark shows that the keys still work."""
    async with denying(may_list, present) as endpoint:
        bucket = away(endpoint)
        await bucket.start()
        if absent:
            assert await bucket.head("secret") is None
        else:
            with pytest.raises(Denied):
                await bucket.head("secret")
        await bucket.aclose()


async def test_after_closing_nothing_is_asked(ministack: S3Server) -> None:
    """A closed bucket refuses to look, closing again does nothing, and its URLs go on."""
    async with S3Bucket(s3_settings(ministack), name="closing") as bucket:
        await bucket.create("closing", b"x")
    await bucket.aclose()
    for call in CALLS.values():
        with pytest.raises(RetryLater):
            await call(bucket)
    assert (await bucket.sign_get("closing", None, 60)).url.startswith(ministack.endpoint)


def test_no_secret_shows() -> None:
    """Neither settings, nor buckets, nor signed requests show a secret in their repr."""
    credentials = S3Credentials(access_key="AKIA", secret_key="hidden-one", session_token="hidden-two")
    settings = replace(s3_settings(S3Server("http://127.0.0.1:1")), credentials=credentials)
    signed = asyncio.run(S3Bucket(settings, name="n").sign_get("a", "e", 60))
    for thing in (credentials, settings, S3Bucket(settings, name="n"), signed):
        assert "hidden" not in repr(thing)
        assert "Signature" not in repr(thing)
    assert "hidden-two" in signed.url
