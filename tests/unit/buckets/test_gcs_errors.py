"""Whatever Google or the way to it does, the hub sees one of our errors and no library's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.servers.gcs import GcsServer, run_gcs
from tests.servers.process import free_port

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot_hub.adapters.buckets import Bucket
from entrepot_hub.adapters.buckets.gcs import GcsBucket
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings

KEY = "some/key"
CALLS: dict[str, Callable[[Bucket], Awaitable[object]]] = {
    "start": lambda bucket: bucket.start(),
    "head": lambda bucket: bucket.head(KEY),
    "read": lambda bucket: bucket.read(KEY, 0, 10),
    "read-etag": lambda bucket: bucket.read(KEY, 0, 10, "e"),
    "delete": lambda bucket: bucket.delete(KEY),
    "tombstone": lambda bucket: bucket.put_tombstone(KEY),
    "create": lambda bucket: bucket.create(KEY, b"x"),
    "list": lambda bucket: bucket.list(""),
    "examine": lambda bucket: bucket.examine(),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """The fake server behind the proxy."""
    with run_gcs(tmp_path_factory.mktemp("gcs")) as running:
        yield running


type Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The endpoint of a server that gives each connection to the handler once, and hangs up."""

    handling: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handling.add(task)
        try:
            with contextlib.suppress(EOFError, ConnectionError):
                await handler(reader, writer)
                await writer.drain()
        except asyncio.CancelledError:
            return  # the test is over; streams report a cancelled handler as a failure
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling, return_exceptions=True)


async def whole(reader: asyncio.StreamReader) -> bytes:
    """One request, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = sum(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    return head + await reader.readexactly(length)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The endpoint of a server that gives everyone these bytes and hangs up."""

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await whole(reader)
        writer.write(answer)

    async with serving(give) as endpoint:
        yield endpoint


def away(server: GcsServer, endpoint: str) -> GcsBucket:
    """A bucket at this endpoint, asked once, with tokens from the server."""
    settings = GcsSettings(
        bucket="away", endpoint=endpoint, credentials=server.credentials, attempts=1, connect_timeout=1, read_timeout=1
    )
    return GcsBucket(settings, name="away")


def answer_of(status: int, reason: str, message: str = "m") -> bytes:
    """An error of the JSON API, whole."""
    body = json.dumps(
        {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}}
    ).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


async def error_of(bucket: GcsBucket, call: str) -> EntrepotError:
    """The error that the call raises; one of a library fails the test."""
    try:
        with pytest.raises(EntrepotError) as caught:
            await CALLS[call](bucket)
    finally:
        await bucket.aclose()
    return caught.value


@pytest.mark.parametrize("call", CALLS)
async def test_nobody_listens(server: GcsServer, call: str) -> None:
    """A closed port is a bucket that cannot be reached now."""
    error = await error_of(away(server, f"http://127.0.0.1:{free_port()}"), call)
    assert (type(error), error.kind) == (RetryLater, "bucket-unreachable")


@pytest.mark.parametrize("call", CALLS)
async def test_no_token_can_be_had(server: GcsServer, call: str) -> None:
    """A token endpoint that is out of reach is a bucket that cannot be reached now."""
    document = json.loads(server.document) | {"token_uri": f"http://127.0.0.1:{free_port()}/token"}
    credentials = replace(server.credentials, document=json.dumps(document))
    settings = GcsSettings(bucket="away", endpoint=server.endpoint, credentials=credentials, attempts=1)
    error = await error_of(GcsBucket(settings, name="away"), call)
    assert (type(error), error.kind) == (RetryLater, "bucket-unreachable")


def body(text: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer with this body."""
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (status, len(text)) + text


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        body(b"{"),
        body(b"[]"),
        body(b"7"),
        body(b'{"items":[7]}'),
        body(b'{"items":[{}]}'),
        body(b'{"items":[{"name":7}]}'),
        body(b'{"items":[{"name":"k","size":"many"}]}'),
        body(b'{"size":"many","generation":"x","md5Hash":"?"}'),
        body(b'{"policy":{}}'),
        body(b'{"bindings":7,"lifecycle":7,"retentionPolicy":7,"softDeletePolicy":{"retentionDurationSeconds":"x"}}'),
        body(b"0123456789", b"206 Partial Content"),
        body(b"not json!", b"500 Oops"),
        b"HTTP/1.1 302 Away\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Same\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_server_that_talks_nonsense(server: GcsServer, answer: bytes) -> None:
    """Half answers, wrong answers and none give one of our errors, or an answer of the right kind."""
    async with answering(answer) as endpoint:
        bucket = away(server, endpoint)
        for name, call in CALLS.items():
            outcome = (await asyncio.gather(call(bucket), return_exceptions=True))[0]
            good = not isinstance(outcome, BaseException) or isinstance(outcome, (RetryLater, InvalidInput))
            assert good, f"{name}: {outcome!r}"
        await bucket.aclose()


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (503, "backendError", "busy"),
        (429, "rateLimitExceeded", "busy"),
        (403, "userRateLimitExceeded", "busy"),
        (409, "conflict", "busy"),
        (500, "internalError", "bucket-unreachable"),
        (408, "timeout", "bucket-unreachable"),
        (507, "full", "disk-full"),
        (400, "invalid", "invalid-setting"),
        (403, "accountDisabled", "denied"),
        (401, "authError", "denied"),
    ],
)
async def test_what_google_refuses(server: GcsServer, status: int, reason: str, kind: str) -> None:
    """Each refusal has its kind, so that a caller knows whether to wait, to mend a setting or to mend a key."""
    async with answering(answer_of(status, reason)) as endpoint:
        bucket = away(server, endpoint)
        for name in CALLS.keys() - {"start", "examine"}:
            with pytest.raises(EntrepotError) as caught:
                await CALLS[name](bucket)
            assert caught.value.kind == kind, name
        await bucket.aclose()


async def test_a_denial_names_the_permission(server: GcsServer) -> None:
    """What the service account lacks is told by name, and so is a policy that keeps objects."""
    message = "hub@x does not have storage.objects.delete access to the Google Cloud Storage object."
    async with answering(answer_of(403, "forbidden", message)) as endpoint:
        error = await error_of(away(server, endpoint), "create")
    assert "storage.objects.delete" in error.message
    held = "Object 'b/k' is under active Temporary hold and cannot be deleted, overwritten or archived."
    for reason, words in (("retentionPolicyNotMet", "m"), ("objectUnderActiveHold", "m"), ("forbidden", held)):
        async with answering(answer_of(403, reason, words)) as endpoint:
            error = await error_of(away(server, endpoint), "create")
        assert (error.kind, "retention" in error.message) == ("denied", True)


async def test_a_missing_bucket_is_a_wrong_setting(server: GcsServer) -> None:
    """A bucket that is not there is told by every call, unless it is to be made; twice making it is once."""
    settings = GcsSettings(bucket="not-made-yet", endpoint=server.endpoint, credentials=server.credentials, attempts=1)
    for call in CALLS:
        error = await error_of(GcsBucket(settings, name="missing"), call)
        assert (type(error), error.kind) == (InvalidInput, "invalid-setting"), call
    for _ in range(2):
        async with GcsBucket(replace(settings, create=True, location="EU"), name="made") as bucket:
            assert (await bucket.list("")).entries == ()
            assert (await bucket.examine()).soft_delete == 0
    made = server.control.records["not-made-yet"]
    assert made["location"] == "EU"
    assert made["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"]


async def test_a_server_that_does_not_answer_is_given_up(server: GcsServer) -> None:
    """A server that accepts and stays silent is given up after the read timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await error_of(away(server, f"http://127.0.0.1:{silent.getsockname()[1]}"), "head")
    assert error.kind == "bucket-unreachable"


@pytest.mark.parametrize(
    ("head", "data"),
    [
        (b"200 OK", b"0123456789"),
        (b"206 Partial Content\r\nContent-Range: bytes 0-9/100", b"0123456789"),
        (b"206 Partial Content\r\nContent-Range: bytes 40-51/100", b"0123456789ab"),
        (b"206 Partial Content", b"0123456789"),
    ],
    ids=["200", "elsewhere", "too-much", "unsaid"],
)
async def test_another_range_is_not_taken_for_the_range(server: GcsServer, head: bytes, data: bytes) -> None:
    """A whole object, another range, a longer one and one that is not said are errors, not bytes."""
    async with answering(body(data, head)) as endpoint:
        bucket = away(server, endpoint)
        with pytest.raises(RetryLater) as caught:
            await bucket.read(KEY, 40, 10)
        await bucket.aclose()
    assert caught.value.kind == "bucket-unreachable"


async def test_a_passing_failure_is_repeated(server: GcsServer) -> None:
    """A 503 and a connection that ends are tried again as often as the settings say, no more often, and nothing else is
    asked."""
    asked = 0

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await whole(reader)
        asked += 1
        writer.write({1: answer_of(503, "backendError"), 2: b""}.get(asked, body(b'{"items":[]}')))

    async with serving(give) as endpoint, asyncio.timeout(60):
        settings = GcsSettings(bucket="away", endpoint=endpoint, credentials=server.credentials)
        bucket = GcsBucket(settings, name="again")
        assert (await bucket.list("")).entries == ()
        await bucket.aclose()
        assert asked == 3
        asked = 0
        bucket = GcsBucket(replace(settings, attempts=2), name="twice")
        assert (await error_of(bucket, "list")).kind == "bucket-unreachable"
    assert asked == 2


async def test_a_create_whose_answer_was_lost_finds_its_own_write(server: GcsServer) -> None:
    """When the answer to a create is lost, the repetition that is refused looks whether it was the first try."""
    settings = GcsSettings(bucket="lost", endpoint=server.endpoint, credentials=server.credentials, create=True)
    host = server.endpoint.removeprefix("http://").split(":")
    cut = 0

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request to the server; the answer to the first upload is lost."""
        nonlocal cut
        sent = await whole(reader)
        there, back = await asyncio.open_connection(*host)
        back.write(sent.replace(b"Connection: keep-alive", b"Connection: close"))
        answer = await there.read()
        back.close()
        await back.wait_closed()
        if sent.startswith(b"POST") and not cut:
            cut += 1
        else:
            writer.write(answer)

    async with GcsBucket(settings, name="lost") as bucket, serving(relay) as endpoint, asyncio.timeout(60):
        through = GcsBucket(replace(settings, endpoint=endpoint), name="relayed")
        assert await through.create("mine", b"mine") is True
        assert cut == 1
        assert await through.create("mine", b"mine") is False
        cut = 0
        await bucket.create("theirs", b"theirs")
        assert await through.create("theirs", b"mine") is False
        assert cut == 1
        await through.aclose()


async def test_403_is_absent_only_when_that_is_sure(server: GcsServer) -> None:
    """Without the right to list, Google's 403 means absent only if the owner's mark shows that the account works."""
    settings = GcsSettings(bucket="unlisted", endpoint=server.endpoint, credentials=server.credentials, create=True)
    async with GcsBucket(settings, name="unlisted") as bucket:
        try:
            server.control.denied.add("storage.objects.list")
            await bucket.start()
            with pytest.raises(Denied):
                await bucket.head("absent")
            assert await bucket.create(".entrepot", b"mine")
            assert await bucket.head("absent") is None
            assert await bucket.delete("absent") is False
            server.control.denied.add("storage.objects.get")
            with pytest.raises(Denied) as caught:
                await bucket.head("absent")
            server.control.denied.remove("storage.objects.list")
            assert await bucket.head("absent") is None
            with pytest.raises(Denied):
                await bucket.head(".entrepot")
        finally:
            server.control.denied.clear()
    assert "storage.objects.get" in caught.value.message


async def test_after_closing_nothing_is_asked(server: GcsServer) -> None:
    """A closed bucket refuses to look, closing again does nothing, and its URLs go on."""
    settings = GcsSettings(bucket="closing", endpoint=server.endpoint, credentials=server.credentials, create=True)
    async with GcsBucket(settings, name="closing") as bucket:
        await bucket.create("closing", b"x")
    await bucket.aclose()
    for call in CALLS.values():
        with pytest.raises(RetryLater):
            await call(bucket)
    signed = await bucket.sign_get("closing", None, 60)
    assert signed.url.startswith(server.endpoint)
    assert signed.expires_at > time.time()


async def test_an_endless_answer_is_cut_off(server: GcsServer) -> None:
    """An answer of more than eight mebibytes is given up, and so is a range of more bytes than were asked for."""
    long = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"[" * ((8 << 20) + 1)
    ranged = b"HTTP/1.1 206 X\r\nContent-Range: bytes 0-9/99\r\nConnection: close\r\n\r\n" + b"x" * 50_000
    for call, answer in (("list", long), ("read", ranged)):
        async with answering(answer) as endpoint:
            error = await error_of(away(server, endpoint), call)
        assert (type(error), error.kind) == (RetryLater, "bucket-unreachable")
        assert "more than was asked for" in error.message


async def test_what_the_endpoint_says_is_not_repeated(server: GcsServer) -> None:
    """Free text of the endpoint is in no error and in nothing that it was raised from."""
    said = answer_said("evil words <here>")
    for answer in (said, b"evil words\r\n\r\n", b"HTTP/1.1 evil words\r\n\r\n"):
        async with answering(answer) as endpoint:
            error = await error_of(away(server, endpoint), "list")
        assert "evil" not in f"{error} {error.data} {error.hint}"
        assert error.__cause__ is None


async def test_a_redirect_is_not_followed(server: GcsServer) -> None:
    """Nobody is asked where a redirect leads."""
    asked: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        writer.close()

    async with await asyncio.start_server(note, "127.0.0.1", 0) as other:
        to = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/"
        answer = f"HTTP/1.1 307 X\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        for call in ("list", "head", "read"):
            async with answering(answer) as endpoint:
                assert (await error_of(away(server, endpoint), call)).kind == "invalid-setting"
    assert asked == []


def answer_said(words: str) -> bytes:
    """A refusal in the endpoint's own words."""
    return answer_of(400, words, words)


async def test_closing_cuts_off_an_answer_that_trickles(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket can be closed while an answer comes byte by byte: the call ends with an error."""
    monkeypatch.setattr("entrepot_hub.adapters.buckets.gcs.PATIENCE", 0.1)
    begun = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        begun.set()
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as slow, asyncio.timeout(30):
        endpoint = f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}"
        bucket = away(server, endpoint)
        listing = asyncio.create_task(bucket.list(""))
        await begun.wait()
        await bucket.aclose()
        with pytest.raises(RetryLater):
            await listing


async def test_a_bucket_that_does_not_start_is_closed(server: GcsServer) -> None:
    """Nobody closes what was never entered: it closes itself."""
    bucket = away(server, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RetryLater):
        await bucket.__aenter__()
    with pytest.raises(RetryLater, match="closed"):
        await bucket.list("")
