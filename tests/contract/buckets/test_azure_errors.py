"""Whatever an Azure account or the way to it does, the hub sees one of our errors and no library's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from tests.contract.buckets.conftest import azure_settings
from tests.servers.azurite import AzureServer
from tests.servers.process import free_port

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot_hub.adapters.buckets import Bucket
from entrepot_hub.adapters.buckets.azure import AzureBucket
from entrepot_hub.adapters.buckets.azure_settings import AzureSettings
from entrepot_hub.adapters.buckets.credentials import AzureClient, AzureKey

KEY = "some/key"
CALLS: dict[str, Callable[[Bucket], Awaitable[object]]] = {
    "start": lambda bucket: bucket.start(),
    "head": lambda bucket: bucket.head(KEY),
    "read": lambda bucket: bucket.read(KEY, 0, 10),
    "delete": lambda bucket: bucket.delete(KEY),
    "tombstone": lambda bucket: bucket.put_tombstone(KEY),
    "create": lambda bucket: bucket.create(KEY, b"x"),
    "list": lambda bucket: bucket.list(""),
    "examine": lambda bucket: bucket.examine(),
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


def away(endpoint: str) -> AzureBucket:
    """A container at this endpoint, asked once."""
    settings = azure_settings(AzureServer(endpoint))
    return AzureBucket(replace(settings, attempts=1, create=False, read_timeout=1.0), name="away")


def xml(status: int, code: str, detail: str = "") -> bytes:
    """An error of Azure's, whole."""
    body = (
        f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code><Message>m</Message>"
        f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail></Error>"
    ).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nx-ms-error-code: {code}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


async def error_of(bucket: AzureBucket, call: str) -> EntrepotError:
    """The error that the call raises; one of a library fails the test."""
    try:
        with pytest.raises(EntrepotError) as caught:
            await CALLS[call](bucket)
    finally:
        await bucket.aclose()
    return caught.value


@pytest.mark.parametrize("call", CALLS)
async def test_nobody_listens(call: str) -> None:
    """A closed port is a container that cannot be reached now."""
    error = await error_of(away(f"http://127.0.0.1:{free_port()}"), call)
    assert (type(error), error.kind) == (RetryLater, "bucket-unreachable")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 100\r\n\r\n<Enumer",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 5\r\n\r\n<a<b>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 206 OK\r\nContent-Length: 3\r\nContent-Range: bytes 5-7/9\r\nETag: "e"\r\n\r\nabc',
        b"HTTP/1.1 201 OK\r\nContent-Length: 0\r\nLast-Modified: some day\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\nnot <xml!",
        b"HTTP/1.1 302 Away\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["nothing", "no-http", "cut", "no-xml", "bare", "other-range", "no-date", "broken", "redirect"],
)
async def test_a_server_that_talks_nonsense(answer: bytes, call: str) -> None:
    """Half answers, wrong answers and none give one of our errors, or an answer of the right kind."""
    async with answering(answer) as endpoint:
        bucket = away(endpoint)
        outcome = (await asyncio.gather(CALLS[call](bucket), return_exceptions=True))[0]
        await bucket.aclose()
    assert not isinstance(outcome, BaseException) or isinstance(outcome, (RetryLater, InvalidInput))
    assert call != "read" or isinstance(outcome, EntrepotError)


@pytest.mark.parametrize("call", [call for call in CALLS if call != "examine"])
@pytest.mark.parametrize(
    ("status", "code", "detail", "kind"),
    [
        (503, "ServerBusy", "", "busy"),
        (429, "TooManyRequests", "", "busy"),
        (409, "AccountBeingCreated", "", "busy"),
        (500, "InternalError", "", "bucket-unreachable"),
        (400, "InvalidHeaderValue", "", "invalid-setting"),
        (404, "ContainerNotFound", "", "invalid-setting"),
        (403, "AuthenticationFailed", "The MAC signature found in the request is wrong", "denied"),
        (403, "AuthenticationFailed", "Request date header too old", "clock-skew"),
        (403, "AuthorizationFailure", "", "denied"),
        (403, "AuthorizationPermissionMismatch", "", "denied"),
        (409, "BlobImmutableDueToPolicy", "", "denied"),
        (412, "LeaseIdMissing", "", "denied"),
    ],
)
async def test_what_an_account_refuses(status: int, code: str, detail: str, kind: str, call: str) -> None:
    """Each refusal has its kind, so that a caller knows whether to wait, to mend a setting or to mend a key."""
    if call in {"head", "tombstone", "start"}:
        detail = ""  # HEAD has no body to explain itself in
        kind = "denied" if kind == "clock-skew" else kind
    async with answering(xml(status, code, detail)) as endpoint:
        if (call, status) == ("create", 412):  # what is held is there, and that is all that create asks
            bucket = away(endpoint)
            assert await CALLS[call](bucket) is False
            await bucket.aclose()
            return
        error = await error_of(away(endpoint), call)
    assert error.kind == kind


@pytest.mark.parametrize("call", CALLS)
async def test_wrong_keys_are_denied(azurite: AzureServer, call: str) -> None:
    """A wrong key is a denial for every call, never an absent object; examine says that it could learn nothing."""
    wrong = replace(azurite, key=base64.b64encode(b"another key").decode())
    bucket = AzureBucket(azure_settings(wrong), name="wrong")
    if call == "examine":
        facts = await bucket.examine()
        assert (facts.public_read, facts.cors) == (None, None)
        assert "403" in facts.unknown["public_read"]
        await bucket.aclose()
        return
    assert isinstance(await error_of(bucket, call), Denied)


async def test_a_missing_container_is_a_wrong_setting(azurite: AzureServer) -> None:
    """A container that is not there is told at the start, unless it is to be made; and by every later call."""
    settings = replace(azure_settings(azurite, container="not-made-yet"), create=False)
    for call in [call for call in CALLS if call != "examine"]:
        error = await error_of(AzureBucket(settings, name="missing"), call)
        assert (type(error), error.kind) == (InvalidInput, "invalid-setting"), call
    for _ in range(2):
        async with AzureBucket(replace(settings, create=True), name="made") as bucket:
            assert (await bucket.list("")).entries == ()


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    """A server that accepts and stays silent is given up after the read timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await error_of(away(f"http://127.0.0.1:{silent.getsockname()[1]}"), "head")
    assert error.kind == "bucket-unreachable"


async def test_a_hierarchical_namespace_is_refused() -> None:
    """An account where folders are things of their own is refused at the start."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nx-ms-is-hns-enabled: true\r\nConnection: close\r\n\r\n"
    async with answering(answer) as endpoint:
        error = await error_of(away(endpoint), "start")
    assert (error.kind, "namespace" in str(error)) == ("invalid-setting", True)


def listed(*names: str, more: str = "") -> bytes:
    """A page of a listing."""
    blobs = "".join(
        f"<Blob><Name>{name}</Name><Properties><Last-Modified>Wed, 21 Oct 2015 07:28:00 GMT</Last-Modified>"
        "<Etag>0x8D</Etag><Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
        for name in names
    )
    body = (
        "<?xml version='1.0' encoding='utf-8'?><EnumerationResults ServiceEndpoint='http://a/' ContainerName='c'>"
        f"<Blobs>{blobs}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>"
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


async def test_a_listing_that_begins_at_the_name_it_was_given() -> None:
    """Azure begins a listing at a name, included: the page begins after it. Its own mark means that there is more."""
    async with answering(listed("a", "b", "c", more="m")) as endpoint:
        bucket = away(endpoint)
        page = await bucket.list("", "a", 2)
        assert ([entry.key for entry in page.entries], page.next) == (["b", "c"], "c")
        page = await bucket.list("", "a", 1)
        assert ([entry.key for entry in page.entries], page.next) == (["b"], "b")
        await bucket.aclose()


async def test_a_listing_in_another_order_is_refused() -> None:
    """Pages that do not ascend would lose names: that is told, not shown."""
    async with answering(listed("b", "a")) as endpoint:
        assert (await error_of(away(endpoint), "list")).kind == "invalid-setting"


async def test_a_listing_without_an_end_is_given_up() -> None:
    """A server that always has more, and never what is asked for, is given up."""
    async with answering(listed(more="again")) as endpoint:
        assert (await error_of(away(endpoint), "list")).kind == "bucket-unreachable"


async def test_a_busy_account_is_asked_again() -> None:
    """What fails once may succeed at the next attempt."""
    answers = [xml(503, "ServerBusy"), listed("a")]

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(give, "127.0.0.1", 0) as server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        bucket = AzureBucket(replace(azure_settings(AzureServer(endpoint)), attempts=2), name="busy")
        assert [entry.key for entry in (await bucket.list("")).entries] == ["a"]
        await bucket.aclose()


class _Refusing:
    """Gets no token."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def get_token(self, *scopes: str, **_: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (ClientAuthenticationError("AADSTS7000215: Invalid client secret provided."), "denied"),
        (ServiceRequestError("nobody there"), "bucket-unreachable"),
    ],
)
@pytest.mark.parametrize("call", [*CALLS, "sign"])
async def test_an_application_without_a_token(call: str, cause: Exception, kind: str) -> None:
    """What keeps an application from its token is told as it is, also when a URL is to be signed."""
    settings = AzureSettings(
        container="contract",
        endpoint=f"https://127.0.0.1:{free_port()}",
        credentials=AzureClient(account="entrepottests", tenant="t", client="c", secret="hidden"),
        attempts=1,
    )
    bucket = AzureBucket(settings, name="n", token=_Refusing(cause))  # type: ignore[arg-type]
    try:
        with pytest.raises(EntrepotError) as caught:
            await (bucket.sign_get(KEY, None, 60) if call == "sign" else CALLS[call](bucket))
    finally:
        await bucket.aclose()
    assert caught.value.kind == kind


async def test_after_closing_nothing_is_asked(azurite: AzureServer) -> None:
    """A closed bucket refuses to look, closing again does nothing, and its URLs go on."""
    async with AzureBucket(azure_settings(azurite), name="closing") as bucket:
        await bucket.create("closing", b"x")
    await bucket.aclose()
    for call in CALLS.values():
        with pytest.raises(RetryLater):
            await call(bucket)
    assert (await bucket.sign_get("closing", None, 60)).url.startswith(azurite.endpoint)


def test_no_secret_shows() -> None:
    """Neither settings, nor buckets, nor signed requests show a secret in their repr."""
    key = base64.b64encode(b"hidden").decode()
    settings = replace(azure_settings(AzureServer("http://127.0.0.1:1")), credentials=AzureKey(account="abc", key=key))
    signed = asyncio.run(AzureBucket(settings, name="n").sign_get("a", "e", 60))
    client = AzureClient(account="abc", tenant="t", client="c", secret=key)
    for thing in (
        settings,
        AzureBucket(settings, name="n"),
        signed,
        replace(settings, endpoint=None, credentials=client),
    ):
        assert key not in repr(thing)
        assert "sig=" not in repr(thing)
    assert "sig=" in signed.url


async def test_an_endless_answer_is_cut_off() -> None:
    """An answer of more than eight mebibytes is given up, and so is a range of more bytes than were asked for."""
    long = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"[" * ((8 << 20) + 1)
    ranged = b"HTTP/1.1 206 X\r\nContent-Range: bytes 0-9/99\r\nConnection: close\r\n\r\n" + b"x" * 50_000
    for call, answer in (("list", long), ("read", ranged)):
        async with answering(answer) as endpoint:
            error = await error_of(away(endpoint), call)
        assert (type(error), error.kind) == (RetryLater, "bucket-unreachable")
        assert "more than was asked for" in error.message


async def test_what_the_endpoint_says_is_not_repeated() -> None:
    """Free text of the endpoint is in no error and in nothing that it was raised from."""
    said = answer_said("evil words <here>")
    for answer in (said, b"evil words\r\n\r\n", b"HTTP/1.1 evil words\r\n\r\n"):
        for call in ("list", "head"):  # in the body of the one, in a header of the other
            async with answering(answer) as endpoint:
                error = await error_of(away(endpoint), call)
            assert "evil" not in f"{error} {error.data} {error.hint}"
            assert error.__cause__ is None


async def test_a_redirect_is_not_followed() -> None:
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
                assert (await error_of(away(endpoint), call)).kind == "invalid-setting"
    assert asked == []


def answer_said(words: str) -> bytes:
    """A refusal in the endpoint's own words."""
    return xml(400, words)


async def test_closing_cuts_off_an_answer_that_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket can be closed while an answer comes byte by byte: the call ends with an error."""
    monkeypatch.setattr("entrepot_hub.adapters.buckets.azure.PATIENCE", 0.1)
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
        bucket = away(endpoint)
        listing = asyncio.create_task(bucket.list(""))
        await begun.wait()
        await bucket.aclose()
        with pytest.raises(RetryLater):
            await listing


async def test_a_bucket_that_does_not_start_is_closed() -> None:
    """Nobody closes what was never entered: it closes itself."""
    bucket = away(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RetryLater):
        await bucket.__aenter__()
    with pytest.raises(RetryLater, match="closed"):
        await bucket.list("")
