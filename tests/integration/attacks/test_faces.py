"""What listens: the hub's address, its folder buckets, the daemon; asked by whoever can reach them."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import http_parser
from tests.integration.attacks.conftest import Refused
from tests.integration.node.conftest import Site
from tests.servers.grid import Content, Grid, Peer, send, until

from entrepot.core import subjects
from entrepot.core.messages import MAX_HEADER, Want, WantReply, decode, encode
from entrepot.core.signing import sign_request

SECRET = b"not for anybody: " + secrets.token_hex(16).encode()


async def raw(url: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> tuple:
    """A request whose path goes out exactly as it is: status, headers, body."""

    def call() -> tuple:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
            for name, value in ({"Content-Length": str(len(body))} | dict(headers or {})).items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def test_no_path_leads_out_of_a_folder_bucket(grid: Grid, content: Content, refused: Refused) -> None:
    """With a good signature in the URL, every path but the granted one is refused: no file beside the bucket, of the
    hub or of the machine is read or made."""
    (grid.folder / "secret.txt").write_bytes(SECRET)
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.follow("demo", content.stream)
    await reader.want(content, ranges=((0, 1),))
    await holder.offer(content, await holder.sought(content))
    other = await holder.accept(content, await holder.granted(1))
    await holder.upload(content, await holder.granted(0))
    state = await until(lambda: (s := reader.state(0)) is not None and s.state == "ready" and s)
    assert state
    assert state.get is not None
    assert other.put is not None
    before = sorted(path for path in grid.folder.rglob("*") if "bucket-demo" not in str(path) or path.is_dir())
    for signed, body in ((state.get, b""), (other.put, content.object(1))):
        parts = urlsplit(signed.url)
        bucket, _, key = parts.path.removeprefix("/bucket/").partition("/")
        paths = [
            f"/bucket/{bucket}/{path}"
            for path in (
                "../secret.txt",
                "..%2fsecret.txt",
                "%2e%2e/secret.txt",
                "%2e%2e%2fsecret.txt",
                "..%5csecret.txt",
                "..%252fsecret.txt",
                f"{key}/../../../secret.txt",
                f"{key}/..%2f..%2f..%2f..%2fsecret.txt",
                f"{key}%00",
                f"{key}%0a",
                f"{key}/",
                f"./{key}",
                f"/{key}",
                "/etc/passwd",
                "%2fetc%2fpasswd",
                ".entrepot",
                key.upper(),
                key[:-1] + "2",
            )
        ]
        paths += [f"/bucket/{name}/{key}" for name in ("..", "%2e%2e", ".", "other", f"{bucket}%2f..", bucket.upper())]
        paths += ["/bucket/../secret.txt", "/bucket/%2e%2e/secret.txt", "/../secret.txt", "/bucket/../hub/master.key"]
        for path in paths:
            status, _, answer = await raw(grid.url, signed.method, f"{path}?{parts.query}", signed.headers, body)
            assert status in {400, 403, 404, 405, 413}, path  # 413: only the bucket's own paths take long bodies
            assert SECRET not in answer, path
            assert b"root:" not in answer, path
    assert (grid.folder / "secret.txt").read_bytes() == SECRET
    after = sorted(path for path in grid.folder.rglob("*") if "bucket-demo" not in str(path) or path.is_dir())
    assert [path for path in after if path not in before and path.suffix not in {".db-wal", ".db-shm"}] == []
    assert (await send(state.get))[1] == content.object(0)
    refused("traversal in folder URLs")


async def test_a_page_under_another_name_learns_nothing(grid: Grid, content: Content, refused: Refused) -> None:
    """A browser whose page had its name turned to the hub's address (DNS rebinding) sees what anybody sees, and
    changes nothing: every other answer needs a signature over the hub's own address, which Host does not change."""
    member = await grid.peer("member")
    evil = {"Host": "evil.example", "Origin": "http://evil.example", "Content-Type": "application/json"}
    for method, path, expected in (
        ("GET", "/v1/hub", {200}),
        ("GET", "/healthz", {200}),
        ("GET", f"/v1/channels/demo/streams/{content.stream}", {401}),
        ("GET", "/v1/channels/demo", {401}),
        ("POST", "/v1/session", {401}),
        ("POST", "/v1/channels/demo/invites", {401}),
        ("PUT", f"/v1/channels/demo/members/{member.node}", {401}),
        ("DELETE", f"/v1/channels/demo/members/{member.node}", {401}),
        ("OPTIONS", "/v1/session", {401, 403, 404, 405}),
        ("POST", "/admin/status", {404}),
        ("POST", "/admin/channel.revoke", {404}),
        ("GET", "/bucket/demo/x", {403, 404}),
    ):
        status, headers, body = await raw(grid.url, method, path, evil, b"{}" if method in {"POST", "PUT"} else b"")
        assert status in expected, (method, path, status)
        assert "Access-Control-Allow-Origin" not in headers
        assert member.node.encode() not in body.replace(path.encode(), b"")  # but for what it said itself
    signed = dict(evil)
    sign_request(
        "POST", "http://evil.example/v1/session", signed, b"{}", key=member.key, nonce="n" * 22, now=grid_clock(grid)
    )
    assert (await raw(grid.url, "POST", "/v1/session", signed, b"{}"))[0] == 401
    refused("DNS rebinding on the local face")


def grid_clock(grid: Grid) -> float:
    """The time as the hub has it."""
    assert grid.hub is not None
    return float(grid.hub._exchange._clock())


def listening() -> set[tuple[str, str]]:
    """The TCP addresses at which this process listens."""
    mine = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            mine.add(os.readlink(f"/proc/self/fd/{name}").removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in mine and (table.startswith("udp") or fields[3] == "0A"):
                found.add((table, fields[1]))
    return found


@pytest.fixture
async def site(grid: Grid, empty_home: Path) -> AsyncIterator[Site]:
    """Whole nodes at the hub."""
    site = Site(grid, empty_home / secrets.token_hex(4))
    try:
        yield site
    finally:
        await site.aclose()


@pytest.mark.blocking
@pytest.mark.usefixtures("lock")
async def test_a_daemon_is_reached_by_its_file_alone(grid: Grid, site: Site, refused: Refused) -> None:
    """A daemon opens no port, so no page and no other user of the machine can reach it: there is its socket's file."""
    before = listening()
    assert any(address.endswith(f":{grid.port:04X}") for _, address in before), "the search finds nothing"
    await site.node("machine")
    await site.up("machine")
    assert listening() == before
    assert (site.settings("machine").socket.stat().st_mode & 0o777) == 0o600
    refused("DNS rebinding on the local face")


async def test_messages_at_their_limits(grid: Grid, content: Content, refused: Refused) -> None:
    """The largest message, the longest header and the most ranges are answered; one more is refused, and the hub goes
    on."""
    attacker: Peer = await grid.peer("attacker")
    assert attacker.bus is not None

    def want(count: int) -> Want:
        return Want(
            lock=content.lock.id,
            stream=content.stream.raw,
            session=attacker.session,
            ranges=tuple((2 * n, 2 * n) for n in range(count)),
            window=64,
            deadline=1000,
        )

    subject = subjects.hub_verb("demo", "want", attacker.node)
    for payload, kind in (
        (encode(want(64)), None),
        (encode(want(65)), "invalid-message"),
        (b"\xdf" + b"\xff" * 65_535, "invalid-message"),  # a map of four milliard fields
        (b"\x91" * 65_536, "invalid-message"),  # as deep as a message is long
        (b"\xc6\xff\xff\xff\xff" + bytes(65_531), "invalid-message"),  # four GiB of bytes to come
    ):
        reply = decode(WantReply, await attacker.bus.request(subject, payload, 10))
        assert (None if reply.error is None else reply.error.kind) == kind
    reader = await grid.peer("reader")
    await reader.want(content, ranges=((0, 1),))
    await attacker.offer(content, await attacker.sought(content))
    for number, size in ((0, MAX_HEADER), (1, MAX_HEADER + 1)):
        answer = await attacker.accept(content, await attacker.granted(number), header=os.urandom(size))
        assert answer.put is None
        assert answer.error is not None
        assert answer.error.kind in {"corrupt-object", "invalid-message"}
    assert (await attacker.want(content)).error is None
    refused("headers and messages at their limits")


@pytest.mark.usefixtures("lock")
async def test_requests_at_their_limits(grid: Grid, refused: Refused) -> None:
    """Header fields and bodies longer than the hub takes are refused without being kept, and the hub goes on."""
    json_ = {"Content-Type": "application/json"}
    for headers, body, expected in (
        ({"X": "x" * 100_000}, b"", {400, 431}),
        ({f"X{n}": "x" for n in range(20_000)}, b"", {400, 431}),
        ({"Signature-Input": "entrepot=(" + '"a" ' * 2000 + ")", "Signature": "entrepot=:AA==:"}, b"{}", {400, 401}),
        (json_, b"{" * 65_537, {400, 401, 413}),
        (json_, b"[" * 60_000, {400, 401}),
        (json_ | {"Content-Length": "99999999999999999999"}, b"", {400, 413}),
        (json_ | {"Content-Encoding": "gzip"}, os.urandom(1000), {400, 401}),
        (json_ | {"Transfer-Encoding": "chunked", "Content-Length": "2"}, b"{}", {400, 401}),
    ):
        try:
            status, _, _ = await raw(grid.url, "POST", "/v1/join", headers, body)
        except (ConnectionError, http.client.HTTPException):
            continue  # it hung up
        assert status in expected, (status, list(headers)[:3])
    status, _, _ = await raw(grid.url, "GET", "/" + "x" * 100_000)
    assert status in {400, 414}
    assert (await raw(grid.url, "GET", "/healthz"))[0] == 200
    refused("headers and messages at their limits")


async def test_a_strangers_body_is_never_unpacked(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small body that unpacks to gigabytes costs what its bytes cost, whatever is answered and whoever sends it."""
    unpacked: list[int] = []
    feed = http_parser.DeflateBuffer.feed_data

    def spy(self: http_parser.DeflateBuffer, data: bytes, *more: Any) -> Any:
        unpacked.append(len(data))
        return feed(self, data, *more)

    monkeypatch.setattr(http_parser.DeflateBuffer, "feed_data", spy)
    bomb = gzip.compress(bytes(8 << 20))
    for method, path in (("PUT", "/bucket/demo/x"), ("POST", "/v1/join"), ("POST", "/nowhere")):
        status, _, _ = await raw(grid.url, method, path, {"Content-Encoding": "gzip"}, bomb)
        assert 400 <= status < 500
    assert unpacked == []
