"""How the hub serves a folder bucket over HTTP, in the details that other providers decide for themselves."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import select
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.contract.buckets.conftest import serve_folder
from tests.contract.buckets.requests import Reply, begin, digest_of, download, send, upload

from entrepot_hub.adapters.buckets import SignedRequest, folder_web
from entrepot_hub.adapters.buckets.folder import FolderBucket, FolderSettings

DATA = bytes(i * 7 % 251 for i in range(5000))


@pytest.fixture
async def bucket(tmp_path: Path) -> AsyncIterator[FolderBucket]:
    """A served folder that gives up soon."""
    async with serve_folder(tmp_path / "bucket", FolderSettings(stall=0.5, sync=False)) as served:
        yield served


def kind_of(reply: Reply) -> str:
    """The kind of the error in a reply's body."""
    error = json.loads(reply.body)["error"]
    assert set(error) == {"kind", "message", "hint", "data"}
    return str(error["kind"])


async def granted(bucket: FolderBucket, data: bytes = DATA) -> SignedRequest:
    """A signed PUT of these bytes at "k"."""
    return await bucket.sign_put("k", len(data), digest_of(data), 300)


async def talk(url: str, head: str, body: bytes = b"") -> bytes:
    """Send a raw request and read until the answer's head is there."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        target = f"{parts.path}?{parts.query}"
        writer.write(f"{head.format(target=target)}\r\nHost: {parts.netloc}\r\n\r\n".encode() + body)
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_each_refusal_has_its_status_and_kind(bucket: FolderBucket) -> None:
    """Bad URL 403, no length 411, other length 400, other bytes 400, taken 412, absent 404: each with its
    reason."""
    signed = await granted(bucket)
    other = await send(signed, DATA, url=signed.url.replace("/k?", "/l?"))
    assert (other.status, kind_of(other)) == (403, "bad-signature")
    nowhere = await send(signed, DATA, url=signed.url.replace("/bucket/b1/", "/bucket/b2/"))
    assert (nowhere.status, kind_of(nowhere)) == (404, "not-found")
    chunked = await send(signed, b"0\r\n\r\n", headers={"Transfer-Encoding": "chunked"})
    assert (chunked.status, kind_of(chunked)) == (411, "invalid-input")
    longer = await send(signed, DATA + b"+", headers={"Content-Length": "5001"})
    assert (longer.status, kind_of(longer)) == (400, "invalid-input")
    changed = await send(signed, DATA[::-1])
    assert (changed.status, kind_of(changed)) == (400, "invalid-input")
    for name, value in (("Content-Encoding", "gzip"), ("Content-Range", "bytes 0-4999/5000")):
        assert (await send(signed, DATA, headers={**signed.headers, name: value})).status == 400
    absent = await download(bucket, "k")
    assert (absent.status, kind_of(absent)) == (404, "no-such-object")
    done = await send(signed, DATA)
    assert done.status == 200
    taken = await send(signed, DATA)
    assert (taken.status, kind_of(taken)) == (412, "exists")
    await bucket.put_tombstone("k")
    gone = await download(bucket, "k", done.headers["etag"].strip('"'))
    assert (gone.status, kind_of(gone)) == (412, "changed")


@pytest.mark.parametrize(
    "text",
    [
        "bytes=0-1,3-4",
        "bytes=5-4",
        "bytes=-0",
        "bytes=-",
        "bytes=a-b",
        "items=0-1",
        "bytes=5000-",
        "bytes= 0-1",
        "0-1",
        "",
    ],
)
async def test_what_is_not_one_range_inside_is_416(bucket: FolderBucket, text: str) -> None:
    """Several ranges, nonsense and ranges outside never give the whole object."""
    await bucket.create("k", DATA)
    reply = await download(bucket, "k", Range=text)
    assert (reply.status, kind_of(reply)) == (416, "invalid-input")
    assert reply.headers["content-range"] == "bytes */5000"


async def test_a_suffix_longer_than_the_object_is_all_of_it(bucket: FolderBucket) -> None:
    """The last 9,999 bytes of 5,000 are the object, as a range."""
    await bucket.create("k", DATA)
    reply = await download(bucket, "k", Range="bytes=-9999")
    assert (reply.status, reply.body, reply.headers["content-range"]) == (206, DATA, "bytes 0-4999/5000")


async def test_conditions_of_the_reader_are_kept(bucket: FolderBucket) -> None:
    """If-Match and If-Range with another etag are 412, with this one they change nothing."""
    await bucket.create("k", DATA)
    head = await bucket.head("k")
    assert head is not None
    quoted = f'"{head.etag}"'
    assert (await download(bucket, "k", **{"If-Match": f'"x", {quoted}'})).body == DATA
    assert (await download(bucket, "k", **{"If-Match": '"x"'})).status == 412
    assert (await download(bucket, "k", **{"If-Range": quoted, "Range": "bytes=0-1"})).body == DATA[:2]
    assert (await download(bucket, "k", **{"If-Range": '"x"', "Range": "bytes=0-1"})).status == 412


async def test_no_neighbour_is_served_as_an_encoding(bucket: FolderBucket) -> None:
    """An object "k.gz" is not served for "k", whatever encodings the reader accepts."""
    await bucket.create("k", DATA)
    await bucket.create("k.gz", b"other")
    assert (await download(bucket, "k", **{"Accept-Encoding": "gzip, br"})).body == DATA


async def test_other_methods_are_405(bucket: FolderBucket) -> None:
    """HEAD, DELETE, POST and OPTIONS are no methods of a signed URL."""
    await bucket.create("k", DATA)
    signed = await bucket.sign_get("k", None, 60)
    for method in ("HEAD", "DELETE", "POST", "OPTIONS", "PATCH"):
        assert (await send(signed, method=method, headers={"Content-Length": "0"})).status == 405


async def test_an_upload_that_stalls_is_given_up(bucket: FolderBucket) -> None:
    """When no byte comes for the stall time the upload ends with 408 and leaves nothing."""
    connection = await asyncio.to_thread(begin, await granted(bucket), DATA[:100])
    response = await asyncio.to_thread(connection.getresponse)
    body = await asyncio.to_thread(response.read)
    connection.close()
    assert (response.status, json.loads(body)["error"]["kind"]) == (408, "deadline")
    assert await bucket.head("k") is None
    assert await bucket.pending_bytes() == 0


async def test_a_reader_that_stalls_is_let_go(bucket: FolderBucket) -> None:
    """A reader that takes nothing for the stall time is disconnected before the end."""
    data = bytes(32 << 20)
    await bucket.create("k", data)
    parts = urlsplit((await bucket.sign_get("k", None, 60)).url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1024)
    writer.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    await asyncio.sleep(1.5)
    received = 0
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(1 << 20):
            received += len(piece)
    assert 0 < received < len(data)
    writer.close()


async def test_an_upload_that_only_trickles_is_given_up(bucket: FolderBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no upload: below the floor rate it ends with 408 and leaves nothing."""
    monkeypatch.setattr(folder_web, "_FLOOR", 1 << 30)
    connection = await asyncio.to_thread(begin, await granted(bucket), DATA[:100])

    def trickle() -> tuple[int, bytes]:
        assert connection.sock is not None
        for at in range(100, len(DATA)):
            with contextlib.suppress(ConnectionError):
                connection.send(DATA[at : at + 1])
            if select.select([connection.sock], [], [], 0.05)[0]:
                break
        response = connection.getresponse()
        return response.status, response.read()

    status, body = await asyncio.to_thread(trickle)
    connection.close()
    assert (status, json.loads(body)["error"]["kind"]) == (408, "deadline")
    assert await bucket.head("k") is None


async def test_one_url_has_so_many_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of one URL that take nothing hold their own places, however they write it; another URL is served."""
    monkeypatch.setattr(folder_web, "_READERS", 2)
    async with (
        serve_folder(tmp_path / "bucket", FolderSettings(sync=False)) as bucket,
        contextlib.AsyncExitStack() as stack,
    ):
        data = bytes(32 << 20)
        await bucket.create("k", data)
        one, other = await bucket.sign_get("k", None, 600), await bucket.sign_get("k", None, 300)
        parts = urlsplit(one.url)
        for path in (parts.path, parts.path.replace("/k", "/%6b")):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1024)
            stack.callback(writer.close)
            writer.write(f"GET {path}?{parts.query} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)).startswith(b"HTTP/1.1 200 ")
        refused = await send(one)
        assert (refused.status, kind_of(refused)) == (503, "busy")
        assert refused.headers["retry-after"] == "1"
        assert len((await send(other)).body) == len(data)


async def test_an_upload_that_outlives_its_url_does_not_land(tmp_path: Path) -> None:
    """Bytes that are complete only after the URL's end are dropped: nothing lands after a sweep."""
    async with serve_folder(tmp_path / "bucket") as bucket:
        signed = await granted(bucket)
        connection = await asyncio.to_thread(begin, signed, DATA[:100])
        while await bucket.pending_bytes() == 0 and not os.listdir(tmp_path / "bucket/.pending"):
            await asyncio.sleep(0.01)
        bucket.clock = lambda: signed.expires_at
        await asyncio.to_thread(connection.send, DATA[100:])
        response = await asyncio.to_thread(connection.getresponse)
        await asyncio.to_thread(response.read)
        connection.close()
        assert response.status == 403
        assert await bucket.head("k") is None
        assert await bucket.pending_bytes() == 0


async def test_an_upload_cancelled_at_any_moment_leaves_nothing(bucket: FolderBucket, tmp_path: Path) -> None:
    """A handler that is cancelled while it begins an upload leaves no file behind."""
    for moment in range(20):
        task = asyncio.create_task(bucket.begin())
        for _ in range(moment % 4):
            await asyncio.sleep(0)
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(outcome, BaseException):
            await bucket.discard(outcome)
    await bucket.aclose()
    assert os.listdir(tmp_path / "bucket/.pending") == []


async def test_a_full_disk_is_507(bucket: FolderBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the upload ends with 507 and a reason, and nothing of it stays."""
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if threading.current_thread().name.startswith("bucket-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    reply = await send(await granted(bucket), DATA)
    monkeypatch.undo()
    assert (reply.status, kind_of(reply)) == (507, "disk-full")
    assert await bucket.head("k") is None
    assert await bucket.pending_bytes() == 0
    assert (await upload(bucket, "k", DATA)).status == 200


async def test_a_client_may_ask_before_it_sends(bucket: FolderBucket) -> None:
    """With Expect: 100-continue a good upload is called for and a refused one is told before its body."""
    signed = await granted(bucket)
    ask = "PUT {target} HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: "
    assert (await talk(signed.url, ask + "5000")).startswith(b"HTTP/1.1 100 ")
    assert (await talk(signed.url, ask + "5001")).startswith(b"HTTP/1.1 400 ")
    await bucket.create("k", DATA)
    assert (await talk(signed.url, ask + "5000")).startswith(b"HTTP/1.1 412 ")


async def test_a_connection_serves_many_requests(bucket: FolderBucket) -> None:
    """Uploads, refusals and downloads follow one another on one connection."""
    import http.client

    first = await bucket.sign_put("a", len(DATA), digest_of(DATA), 60)
    again = await bucket.sign_put("a", len(DATA), digest_of(DATA), 60)
    get = await bucket.sign_get("a", None, 60)

    def work() -> list[tuple[int, int]]:
        parts = urlsplit(first.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
        seen = []
        for signed, body in ((first, DATA), (again, DATA), (get, None), (get, None)):
            target = urlsplit(signed.url)
            connection.request(signed.method, f"{target.path}?{target.query}", body, dict(signed.headers))
            response = connection.getresponse()
            seen.append((response.status, len(response.read())))
        connection.close()
        return seen

    seen = await asyncio.to_thread(work)
    assert [status for status, _ in seen] == [200, 412, 200, 200]
    assert [length for _, length in seen[2:]] == [5000, 5000]


async def test_a_closed_bucket_says_so(bucket: FolderBucket) -> None:
    """Requests that arrive while the hub shuts down are told to come again."""
    signed = await granted(bucket)
    await bucket.aclose()
    await bucket.aclose()
    reply = await send(signed, DATA)
    assert (reply.status, kind_of(reply), reply.headers["retry-after"]) == (503, "bucket-unreachable", "1")


async def test_a_url_opens_few_uploads_at_once(bucket: FolderBucket, tmp_path: Path) -> None:
    """However many connections use one URL, two of them put bytes on the disk; the others are told to come later."""
    signed = await granted(bucket)
    bucket.settings = FolderSettings(stall=60, sync=False)
    held = [await asyncio.to_thread(begin, signed, DATA[:-1]) for _ in range(2)]
    while len(os.listdir(tmp_path / "bucket/.pending")) < 2:
        await asyncio.sleep(0.01)
    for _ in range(5):
        refused = await send(signed, DATA)
        assert (refused.status, kind_of(refused), refused.headers["retry-after"]) == (503, "busy", "1")
    assert len(os.listdir(tmp_path / "bucket/.pending")) == 2
    # Another key has a turn of its own.
    assert (await upload(bucket, "other", DATA)).status == 200
    for connection in held:
        connection.close()
    while os.listdir(tmp_path / "bucket/.pending"):
        await asyncio.sleep(0.01)
    assert (await send(signed, DATA)).status == 200
