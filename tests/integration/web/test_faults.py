"""Whatever goes wrong in a request is answered in our words, and nothing of it leaks."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from aiohttp import web

from entrepot.core.errors import KINDS, Corrupt, EntrepotError, RetryLater
from entrepot_hub.services.settings import LimitSettings
from entrepot_hub.services.web.errors import status_of


async def crash(_request):
    raise ZeroDivisionError("a secret in a message")


async def slow(_request):
    await asyncio.sleep(60)
    return web.Response()


async def longer_than_allowed(_request):
    await asyncio.sleep(0.6)
    return web.json_response({})


async def own_timeout(_request):
    raise TimeoutError


async def full(_request):
    raise RetryLater("no room", kind="over-quota", quota=5)


async def broken(_request):
    raise Corrupt("bad bytes")


ROUTES = [
    web.get("/test/crash/{secret}", crash),
    web.get("/test/slow", slow),
    web.get("/test/timeout", own_timeout),
    web.get("/test/full", full),
    web.get("/test/broken", broken),
    web.get("/bucket/slow", longer_than_allowed),
]


@pytest.fixture
async def hub(make_hub):
    return await make_hub(more=ROUTES, limits=LimitSettings(request=0.3))


async def get(http, url):
    async with http.get(url) as response:
        return response.status, await response.json(), response.headers


async def test_a_mistake_of_ours_is_logged_and_answered_by_number(hub, http):
    """The client gets an incident's number and no detail; the log has it all, but not the path."""
    with structlog.testing.capture_logs() as logs:
        status, answer, _ = await get(http, f"{hub.url}/test/crash/token")
    assert (status, answer["error"]["kind"]) == (500, "internal")
    assert "secret" not in str(answer)
    [entry] = logs
    assert entry["incident"] == answer["error"]["data"]["incident"]
    assert isinstance(entry["exc_info"], ZeroDivisionError)
    assert entry["route"] == "/test/crash/{secret}"
    assert "token" not in str({name: value for name, value in entry.items() if name != "exc_info"})


async def test_a_request_has_its_time(hub, http):
    """A handler that takes too long is ended and answered; bulk paths keep their own time."""
    status, answer, headers = await get(http, f"{hub.url}/test/slow")
    assert (status, answer["error"]["kind"]) == (503, "deadline")
    assert headers["Retry-After"]
    assert (await get(http, f"{hub.url}/bucket/slow"))[0] == 200


async def test_a_timeout_of_our_own_is_a_mistake(hub, http):
    """A TimeoutError that is not the request's end of time was forgotten by us."""
    with structlog.testing.capture_logs() as logs:
        status, answer, _ = await get(http, f"{hub.url}/test/timeout")
    assert (status, answer["error"]["kind"], len(logs)) == (500, "internal", 1)


async def test_our_errors_keep_kind_hint_and_data(hub, http):
    """What a handler raises reaches the client whole, with the status of its class."""
    status, answer, headers = await get(http, f"{hub.url}/test/full")
    assert (status, headers["Retry-After"]) == (503, "2")
    assert answer == {"error": {"kind": "over-quota", "message": "no room", "hint": None, "data": {"quota": 5}}}
    assert (await get(http, f"{hub.url}/test/broken"))[0] == 422


async def test_what_the_library_refuses_is_in_our_form_too(hub, http):
    """No such path, a wrong method, too long a body."""
    status, answer, _ = await get(http, f"{hub.url}/v1/nothing")
    assert (status, answer["error"]["kind"]) == (404, "not-found")
    async with http.delete(f"{hub.url}/v1/session") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["kind"] == "unsupported"
    async with http.post(f"{hub.url}/v1/join", data=b"x" * 65537) as response:
        assert response.status == 413
        assert (await response.json())["error"]["kind"] == "invalid-input"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[" * 60000, "application/json"),
        (b"\xff", "application/json"),
        (b'{"a": "\\ud800"}', "application/json"),
        (b"null", "application/json"),
        (b"{}", "text/plain"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(hub, http, body, kind):
    """Broken, deep, misencoded and mistyped bodies are the caller's mistake, not ours."""
    async with http.post(f"{hub.url}/v1/join", data=body, headers={"Content-Type": kind}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["kind"] == "invalid-message"


async def test_a_compressed_bomb_is_not_unpacked(hub, http):
    """A compressed body is refused as it is: nothing here sends one."""
    import zlib

    body = zlib.compress(b" " * 50_000_000)
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    async with http.post(f"{hub.url}/v1/join", data=body, headers=headers) as response:
        assert response.status == 400


async def test_a_body_that_stops_arriving_is_given_up(hub):
    """Half a body holds a handler no longer than any request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.settings.listen.port)
    writer.write(b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
    await writer.drain()
    assert (await reader.readline()).startswith(b"HTTP/1.1 503")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_a_status(kind):
    """Classes decide; who is not authenticated is told by 401."""
    error: EntrepotError = KINDS[kind]("x", kind=kind)
    expected = {
        "NotFound": {404},
        "Denied": {401, 403},
        "Conflict": {409},
        "RetryLater": {429, 503},
        "Corrupt": {422},
        "InvalidInput": {400},
        "Internal": {500},
    }
    assert status_of(error) in expected[type(error).__name__]
