"""A bucket's endpoint that is none: what of it the hub tells, and where it lets itself be sent."""

from __future__ import annotations

import json
import secrets
import time

import pytest
from tests.integration.attacks.conftest import Refused
from tests.integration.attacks.test_buckets import bucket, whole
from tests.integration.attacks.test_faces import raw
from tests.integration.s3.test_channel import ask
from tests.servers.grid import Grid

from entrepot.core.signing import sign_request

SECRET = "ASIA" + secrets.token_hex(16)
KEYS = json.dumps({"access_key": "AKIAOFSOMEBODY", "secret_key": "a-secret-of-somebody"})
DOCUMENT = json.dumps({"AccessKeyId": SECRET, "SecretAccessKey": SECRET, "Token": SECRET}).encode()
FAULT = f"<Error><Code>AccessDenied</Code><Message>{SECRET}</Message><HostId>{SECRET}</HostId></Error>".encode()
#: A code of S3 is letters and digits and is quoted: a secret among other characters must not pass for one.
BARE = f"<Error><Code>key: {SECRET}</Code></Error>".encode()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("HTTP/1.1 200 OK", DOCUMENT),
        (f"HTTP/1.1 403 {SECRET}\nX-Amz-Request-Id: {SECRET}", FAULT),
        (f"HTTP/1.1 400 {SECRET}", FAULT),
        (f"HTTP/1.1 400 {SECRET}", BARE),
        (f"HTTP/1.1 404 {SECRET}", DOCUMENT),
    ],
    ids=["a document", "denied", "a fault", "no code", "nothing there"],
)
async def test_an_endpoint_that_is_a_metadata_service_tells_nobody_anything(
    grid: Grid, head: str, body: bytes, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a server inside the hub's network answers to the hub's requests is in no answer, log or audit line."""
    with bucket(whole(f"{head}\nContent-Length: {len(body)}\nConnection: close", body)) as inside:
        endpoint = inside.url.removesuffix("/object?signed=yes")
        status, text = await ask(
            grid,
            "channel.create",
            name="demo",
            bucket=f"s3://bucket/x?region=us-east-1&endpoint={endpoint}",
            credentials=KEYS,
        )
        assert inside.seen
    assert status != 200
    said = capfd.readouterr()
    log = json.dumps(await grid.admin("audit"))
    for told in (text, said.out, said.err, log):
        assert SECRET not in told
        assert "a-secret-of-somebody" not in told
    refused("SSRF through a bucket endpoint")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_an_endpoint_sends_the_hub_nowhere(grid: Grid, status: int, refused: Refused) -> None:
    """The hub follows no redirect of an endpoint: what it leads to sees no request."""
    with bucket(whole("HTTP/1.1 200 OK\nContent-Length: 0\nConnection: close")) as inner:
        head = f"HTTP/1.1 {status} x\nLocation: {inner.url}\nContent-Length: 0\nConnection: close"
        with bucket(whole(head)) as outer:
            endpoint = outer.url.removesuffix("/object?signed=yes")
            place = f"s3://bucket/x?region=us-east-1&endpoint={endpoint}"
            answered, _ = await ask(grid, "channel.create", name="demo", bucket=place, credentials=KEYS)
            assert outer.seen
        assert answered != 200
        assert not inner.seen
    refused("SSRF through a bucket endpoint")


@pytest.mark.usefixtures("lock")
async def test_nobody_but_the_admin_names_an_endpoint(grid: Grid, refused: Refused) -> None:
    """Over HTTP even an owner finds no way to make a channel, or to move one to another bucket."""
    owner = await grid.peer("owner", rights="owner")
    place = "s3://bucket/x?region=us-east-1&endpoint=http://127.0.0.1:9"
    body = json.dumps({"name": "mine", "bucket": place, "credentials": KEYS}).encode()
    for method, path in (
        ("POST", "/v1/channels"),
        ("PUT", "/v1/channels/mine"),
        ("POST", "/v1/channels/mine"),
        ("PATCH", "/v1/channels/demo"),
        ("PUT", "/v1/channels/demo"),
        ("PUT", "/v1/channels/demo/bucket"),
        ("PUT", "/v1/channels/demo/credentials"),
        ("POST", "/admin/channel.create"),
    ):
        headers = {"Content-Type": "application/json"}
        nonce = secrets.token_urlsafe(16)
        sign_request(method, grid.url + path, headers, body, key=owner.key, nonce=nonce, now=time.time())
        assert (await raw(grid.url, method, path, headers, body))[0] in {404, 405}, (method, path)
    assert [channel["name"] for channel in (await grid.admin("channel.list"))] == ["demo"]
    refused("SSRF through a bucket endpoint")
