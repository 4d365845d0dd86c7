"""What the hub asks of an S3 bucket again, and what not: against a server that answers from a script."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError

from entrepot.core.errors import Conflict, Denied, EntrepotError, RetryLater
from entrepot_hub.adapters.buckets import Bucket
from entrepot_hub.adapters.buckets.credentials import S3Ambient, S3Credentials
from entrepot_hub.adapters.buckets.s3 import S3Bucket
from entrepot_hub.adapters.buckets.s3_retries import BASE, LONGEST, Tries
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

ETAG = "0123456789abcdef0123456789abcdef"
SHOWN = f'ETag: "{ETAG}"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n'
RESET = "reset"


def answer(status: int, body: bytes = b"", headers: str = "", *, length: int | None = None) -> bytes:
    """An answer; ``length`` is what it claims to have."""
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + body


def error(status: int, code: str, headers: str = "") -> bytes:
    """An S3 error."""
    return answer(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode(), headers)


HEAD = answer(200, headers=SHOWN, length=7)
GONE = answer(404)
LIST = answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
DATA = answer(206, b"1234567", f"Content-Range: bytes 0-6/7\r\n{SHOWN}")
WRITTEN = answer(200, headers=f'ETag: "{ETAG}"\r\n')

CALLS: dict[str, tuple[Callable[[Bucket], Awaitable[object]], bytes]] = {
    "head": (lambda bucket: bucket.head("k"), HEAD),
    "read": (lambda bucket: bucket.read("k", 0, 7), DATA),
    "list": (lambda bucket: bucket.list(""), LIST),
}
PASSING: dict[str, bytes | str] = {
    "408": answer(408),
    "429": answer(429),
    "500": error(500, "InternalError"),
    "502": answer(502),
    "503": error(503, "SlowDown"),
    "504": answer(504),
    "reset": RESET,
    "silence": b"",
    "nonsense": b"nonsense\r\n\r\n",
}


class Script:
    """A server that gives these answers in turn, one a connection, and the last one for ever."""

    def __init__(self, *answers: bytes | str) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    @asynccontextmanager
    async def bucket(self, **settings: Any) -> AsyncIterator[S3Bucket]:
        """A bucket at that server."""
        server = await asyncio.start_server(self._give, "127.0.0.1", 0)
        async with server:
            filled: dict[str, Any] = {
                "bucket": "contract",
                "region": "us-east-1",
                "endpoint": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
                "profile": "aws",
                "credentials": S3Credentials(access_key="a", secret_key="s"),
            }
            bucket = S3Bucket(S3Settings(**(filled | settings)), name="scripted")
            try:
                yield bucket
            finally:
                await bucket.aclose()

    async def _give(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head.split()[0])
        said = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(said, str):
            writer.transport.abort()
            return
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("passing", PASSING)
async def test_what_passes_is_asked_again(call: str, passing: str) -> None:
    """What a busy server or a bad line does to one request does not reach the caller."""
    work, good = CALLS[call]
    script = Script(PASSING[passing], PASSING[passing], good)
    async with script.bucket() as bucket:
        assert await work(bucket) is not None
    assert len(script.asked) == 3


@pytest.mark.parametrize(
    ("call", "cut"),
    [
        ("read", answer(206, b"123", f"Content-Range: bytes 0-6/7\r\n{SHOWN}", length=7)),
        ("read", answer(200, b"123", SHOWN, length=7)),
        ("list", answer(200, b"<ListBucketResult><IsTrunc", length=60)),
    ],
)
async def test_a_truncated_body_is_asked_for_again(call: str, cut: bytes) -> None:
    """A body that ends early, after 200 or 206, is never taken for the whole."""
    work, good = CALLS[call]
    script = Script(cut, good)
    async with script.bucket() as bucket:
        assert await work(bucket) == (b"1234567" if call == "read" else await bucket.list(""))


@pytest.mark.parametrize(("status", "code"), [(400, "InvalidRequest"), (403, "AccessDenied"), (501, "NotImplemented")])
async def test_what_does_not_pass_is_asked_once(status: int, code: str) -> None:
    """A refusal that will be the same next time is told at once."""
    script = Script(error(status, code))
    async with script.bucket() as bucket:
        with pytest.raises(EntrepotError):
            await bucket.list("")
    assert len(script.asked) == 1


async def test_attempts_are_counted() -> None:
    """After the last attempt the caller hears what the server said, and how long it wants to be left alone."""
    script = Script(error(503, "SlowDown", "Retry-After: 0\r\n"))
    async with script.bucket(attempts=3) as bucket:
        with pytest.raises(RetryLater) as caught:
            await bucket.list("")
    assert (caught.value.kind, caught.value.data["after"]) == ("busy", 0.0)
    assert len(script.asked) == 3


async def test_a_wish_longer_than_the_time_left_is_not_waited_for() -> None:
    """A Retry-After beyond the operation's deadline ends it at once, with the wish in the error."""
    script = Script(error(503, "SlowDown", "Retry-After: 1000\r\n"))
    async with script.bucket(total=30.0) as bucket:
        with pytest.raises(RetryLater) as caught:
            await bucket.list("")
    assert caught.value.data["after"] == 1000.0
    assert len(script.asked) == 1


async def test_closing_ends_a_pause() -> None:
    """A bucket that is closed does not wait out what a server asked for."""
    script = Script(error(503, "SlowDown", "Retry-After: 20\r\n"))
    async with script.bucket() as bucket:
        asking = asyncio.ensure_future(bucket.list(""))
        while not script.asked:
            await asyncio.sleep(0.01)
        await bucket.aclose()
        with pytest.raises(RetryLater):
            await asking
    assert len(script.asked) == 1


async def test_a_server_that_trickles_is_given_up() -> None:
    """A body that comes byte by byte, each in time, does not hold the caller for longer than the operation may take."""
    stop = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(200, b"<", length=100000))
        while not stop.is_set():
            writer.write(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.05)
        writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    async with server:
        settings = S3Settings(
            bucket="contract",
            region="x",
            endpoint=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            credentials=S3Credentials(access_key="a", secret_key="s"),
            total=0.3,
            connect_timeout=0.3,
            read_timeout=0.3,
        )
        bucket = S3Bucket(settings, name="slow")
        with pytest.raises(RetryLater):
            await bucket.list("")
        stop.set()
        await bucket.aclose()


async def test_a_create_whose_answer_was_lost_is_its_own() -> None:
    """When the repetition of a create finds the key taken by the very same bytes, it was ours."""
    mine = answer(206, b"1234567", f"Content-Range: bytes 0-6/7\r\n{SHOWN}")
    script = Script(GONE, RESET, error(412, "PreconditionFailed"), HEAD, mine)
    async with script.bucket() as bucket:
        assert await bucket.create("k", b"1234567") is True
    assert script.asked == ["HEAD", "PUT", "PUT", "HEAD", "GET"]
    script = Script(GONE, RESET, error(412, "PreconditionFailed"), HEAD, mine)
    async with script.bucket() as bucket:
        assert await bucket.create("k", b"7654321") is False


async def test_a_create_that_is_refused_at_once_is_another_s() -> None:
    """A first 412 is somebody else's object, even with the same bytes; a 409 passes and is asked again."""
    script = Script(GONE, error(412, "PreconditionFailed"))
    async with script.bucket() as bucket:
        assert await bucket.create("k", b"1234567") is False
    script = Script(GONE, error(409, "ConditionalRequestConflict"), WRITTEN)
    async with script.bucket() as bucket:
        assert await bucket.create("k", b"1234567") is True


async def test_a_tombstone_or_delete_whose_answer_was_lost_is_done() -> None:
    """A conditional change that is repeated and finds its own work is no conflict; at the first try it is one."""
    empty = answer(200, headers=SHOWN)
    script = Script(HEAD, RESET, error(412, "PreconditionFailed"), empty)
    async with script.bucket() as bucket:
        assert (await bucket.put_tombstone("k", ETAG)).length == 0
    script = Script(HEAD, RESET, error(412, "PreconditionFailed"), GONE)
    async with script.bucket() as bucket:
        assert await bucket.delete("k", ETAG) is True
    script = Script(HEAD, error(412, "PreconditionFailed"))
    async with script.bucket() as bucket:
        with pytest.raises(Conflict):
            await bucket.delete("k", ETAG)


async def test_another_range_is_never_taken() -> None:
    """A 200 gives its part of the whole; a range that was not asked for, or that says nothing, is refused."""
    whole = answer(200, b"1234567", SHOWN)
    async with Script(whole).bucket() as bucket:
        assert await bucket.read("k", 2, 3) == b"345"
        assert await bucket.read("k", 5, 30) == b"67"
    for span in ("bytes 4-6/7", "bytes */7", "lines 0-6/7"):
        async with Script(answer(206, b"567", f"Content-Range: {span}\r\n{SHOWN}")).bucket(attempts=1) as bucket:
            with pytest.raises(RetryLater):
                await bucket.read("k", 2, 3)


async def test_ended_keys_that_cannot_be_renewed_are_told() -> None:
    """An answer that the keys have ended is a denial of its own kind, not an endless repetition."""
    script = Script(error(400, "ExpiredToken"))
    async with script.bucket() as bucket:
        with pytest.raises(Denied) as caught:
            await bucket.list("")
    assert caught.value.kind == "expired"
    assert len(script.asked) == 1


async def test_ended_keys_are_renewed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that can be renewed are, when the provider says that they ended; if that does not help, it is told."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S")
    script = Script(error(400, "ExpiredToken"), LIST)
    async with script.bucket(credentials=S3Ambient()) as bucket:
        assert (await bucket.list("")).entries == ()
    assert len(script.asked) == 2
    script = Script(error(400, "ExpiredToken"))
    async with script.bucket(credentials=S3Ambient()) as bucket:
        with pytest.raises(Denied):
            await bucket.list("")
    assert len(script.asked) == 2


async def test_assuming_a_role_is_tried_again_too() -> None:
    """A reset while a role is assumed does not reach who wants a URL."""
    given = (
        b"<AssumeRoleResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><AssumeRoleResult><Credentials>"
        b"<AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>S</SecretAccessKey><SessionToken>T</SessionToken>"
        b"<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
    script = Script(RESET, answer(503), answer(200, given))
    pair = S3Credentials(access_key="a", secret_key="s", role="arn:aws:iam::000000000000:role/hub")
    async with script.bucket(credentials=pair) as bucket:
        assert "ASIA" in (await bucket.sign_get("k", None, 60)).url
    assert script.asked == ["POST"] * 3


def test_pauses_are_random_and_grow_to_a_limit() -> None:
    """Full jitter: between nothing and a limit that doubles; a server's wish is never undercut."""
    waited: list[float] = []
    asked = iter(["", "", "", "", "", "", "", "3"])

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    def tries(chance: float) -> Tries:
        return Tries(
            attempts=8,
            total=1000.0,
            wait=wait,
            renew=lambda: False,
            clock=lambda: 0.0,
            chance=lambda: chance,
        )

    def refuse() -> None:
        headers = {"retry-after": next(asked, "3")}
        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": headers}}, "Head")  # type: ignore[typeddict-item]

    with pytest.raises(ClientError):
        tries(1.0).make(refuse)
    assert waited == [min(BASE * 2**i, LONGEST) for i in range(7)]
    waited.clear()
    with pytest.raises(ClientError):
        tries(0.0).make(refuse)
    assert waited == [3.0] * 7


def test_a_date_is_a_wish_too() -> None:
    """Retry-After as a date counts from now; nonsense counts for nothing."""
    from email.utils import formatdate

    from entrepot_hub.adapters.buckets.s3_errors import retry_after

    def said(text: str) -> float | None:
        return retry_after(ClientError({"ResponseMetadata": {"HTTPHeaders": {"retry-after": text}}}, "Head"))  # type: ignore[typeddict-item]

    in_a_while = said(formatdate(time.time() + 100, usegmt=True))
    assert in_a_while is not None
    assert 0 < in_a_while <= 101
    assert said(formatdate(0, usegmt=True)) == 0.0
    assert said("soon") is None
    assert said("99999999") == 3600.0
