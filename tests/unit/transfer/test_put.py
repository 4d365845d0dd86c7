"""Uploading objects, to servers that behave and to others."""

from __future__ import annotations

import asyncio
import time

import pytest

from entrepot.adapters.store import Store
from entrepot.adapters.transfer import CancelToken, SignedRequest, Transfers, TransferSettings
from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.lock import SchemaLock


async def test_object_arrives_as_it_is(bucket, transfers, stream) -> None:
    """Header and payload arrive with the length announced, signed headers unchanged, over one kept connection."""
    moved: list[int] = []
    for source in stream.sources:
        outcome = await transfers.put(
            bucket.put(f"o{source.number}", **{"X-Signed": "yes"}), source, progress=moved.append
        )
        assert (outcome.status, outcome.created, outcome.exists, outcome.etag) == (200, True, False, '"stored"')
        assert bucket.objects[f"/o{source.number}"] == stream.object(source.number)
    assert max(moved) == stream.sources[0].size
    assert bucket.seen[0][2]["X-Signed"] == "yes"
    assert bucket.seen[0][2]["Content-Length"] == str(stream.sources[0].size)
    assert bucket.connections == 1


async def test_create_only_meets_an_object(bucket, transfers, stream) -> None:
    """A 412 to a create-only PUT, and Azure's 409, are outcomes."""
    bucket.objects["/o"] = b""
    outcome = await transfers.put(bucket.put(**{"If-None-Match": "*"}), stream.sources[0])
    assert (outcome.status, outcome.created, outcome.exists) == (412, False, True)
    bucket.script.append(lambda h: (h.rfile.read(int(h.headers["Content-Length"])), h.reply(409, b""))[1])
    outcome = await transfers.put(bucket.put(), stream.sources[0])
    assert (outcome.status, outcome.exists) == (409, True)


async def test_conflict_that_asks_for_another_try_gets_one(bucket, transfers, stream) -> None:
    """S3's 409 ConditionalRequestConflict is tried again."""
    bucket.script.append(
        lambda h: (
            h.rfile.read(int(h.headers["Content-Length"])),
            h.reply(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
        )[1]
    )
    outcome = await transfers.put(bucket.put(), stream.sources[0])
    assert (outcome.created, outcome.attempts) == (True, 2)


@pytest.mark.parametrize(
    ("status", "body", "error", "kind"),
    [
        (403, b"<Error><Code>AccessDenied</Code></Error>", Denied, "expired"),
        (403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>", Denied, "denied"),
        (400, b"<Error><Code>BadDigest</Code></Error>", Conflict, "changed"),
        (400, b"Request has expired", Denied, "expired"),
        (400, b"no", Denied, "denied"),
        (404, b"", NotFound, "no-such-object"),
        (301, b"", RetryLater, "bucket-unreachable"),
    ],
)
@pytest.mark.parametrize("early", [False, True])
async def test_refusals_are_told_apart(
    bucket, transfers, stream, status: int, body: bytes, error: type[EntrepotError], kind: str, early: bool
) -> None:
    """Each status has its error, also when it comes before the body was read."""

    def step(handler) -> None:
        if not early:
            handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.reply(status, body)
        handler.close_connection = True

    bucket.script.append(step)
    with pytest.raises(error) as caught:
        await transfers.put(bucket.put(), stream.sources[0])
    assert caught.value.kind == kind
    assert len(bucket.seen) == 1


@pytest.mark.parametrize("code", ["UnauthorizedBlobOverwrite", "AuthorizationPermissionMismatch"])
async def test_a_refused_overwrite_means_that_the_key_is_taken(bucket, transfers, stream, code: str) -> None:
    """Azure says 403 where others say 409 or 412: no reason to ask for another URL, but to look."""

    def step(handler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.reply(403, f"<Error><Code>{code}</Code></Error>".encode())

    bucket.script.append(step)
    outcome = await transfers.put(bucket.put(), stream.sources[0])
    assert (outcome.exists, outcome.created, outcome.status) == (True, False, 403)


async def test_early_answer_to_a_large_object_is_seen(bucket, transfers, tmp_path) -> None:
    """A server that says 412 and never reads the body neither blocks the upload nor hides behind a broken pipe."""
    path = tmp_path / "large"
    with path.open("wb") as writer:
        writer.truncate(96 << 20)
    lock = SchemaLock("demo", object=0)

    def step(handler) -> None:
        handler.reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        handler.wfile.flush()
        time.sleep(0.3)
        handler.close_connection = True

    bucket.script.extend([step, step])
    async with Store(tmp_path / "s") as store:
        added = await store.add(path, channel="c", lock=lock)
        source = await store.object_source(added.stream, lock, 0)
        moved: list[int] = []
        outcome = await transfers.put(bucket.put(), source, progress=moved.append)
    assert outcome.status == 412
    assert max(moved, default=0) < source.size


async def test_setbacks_are_tried_again(bucket, transfers, stream) -> None:
    """503, a reset in the middle and a connection closed without an answer are tried again; the object arrives."""

    def reset(handler) -> None:
        handler.rfile.read(1000)
        handler.reset()

    bucket.script.extend([lambda h: h.reply(503, b"", **{"Retry-After": "0", "Connection": "close"}), reset, reset])
    outcome = await transfers.put(bucket.put(), stream.sources[0])
    assert outcome.created
    assert outcome.attempts == 4
    assert bucket.objects["/o"] == stream.object(0)


async def test_it_gives_up_with_a_reason(bucket, transfers, stream) -> None:
    """After four attempts the last refusal is the error."""
    bucket.script.extend([lambda h: (h.rfile.read(int(h.headers["Content-Length"])), h.reply(500, b""))[1]] * 4)
    with pytest.raises(RetryLater) as caught:
        await transfers.put(bucket.put(), stream.sources[0])
    assert (caught.value.kind, caught.value.data["status"], len(bucket.seen)) == ("bucket-unreachable", 500, 4)


async def test_changed_file_is_not_sent(bucket, transfers, stream, tmp_path) -> None:
    """A file edited after its source was made is refused, before sending and after."""
    with pytest.raises(Conflict):
        await transfers.put(SignedRequest("PUT", bucket.url("o"), {"Content-Length": "1"}), stream.sources[0])

    def edit(sent: int) -> None:
        (tmp_path / "file").touch()

    with pytest.raises(Conflict) as caught:
        await transfers.put(bucket.put(), stream.sources[0], progress=edit)
    assert caught.value.kind == "changed"
    seen = len(bucket.seen)
    with pytest.raises(Conflict):
        await transfers.put(bucket.put(), stream.sources[0])
    assert len(bucket.seen) == seen


async def test_cancelling_closes_the_socket(bucket, transfers, stream) -> None:
    """A token set from elsewhere, and a cancelled task, end a transfer that waits for a silent server."""
    silent = asyncio.Event()
    loop = asyncio.get_running_loop()

    def step(handler) -> None:
        loop.call_soon_threadsafe(silent.set)
        handler.rfile.read()  # until the other side closes
        handler.close_connection = True

    bucket.script.extend([step, step])
    cancel = CancelToken()
    task = asyncio.create_task(transfers.put(bucket.put(), stream.sources[0], cancel=cancel))
    await silent.wait()
    cancel.set()
    with pytest.raises(RetryLater) as caught:
        await task
    assert caught.value.kind == "cancelled"
    silent.clear()
    task = asyncio.create_task(transfers.put(bucket.put(), stream.sources[0]))
    await silent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    outcome = await transfers.put(bucket.put(), stream.sources[0])
    assert outcome.created


async def test_total_time_out(bucket, stream) -> None:
    """A server that takes for ever ends in deadline, one that is silent in bucket-unreachable."""
    bucket.script.extend([lambda h: h.rfile.read() and None] * 4)
    async with Transfers(TransferSettings(total_timeout=0.2)) as transfers:
        with pytest.raises(RetryLater) as caught:
            await transfers.put(bucket.put(), stream.sources[0])
        assert caught.value.kind == "deadline"
    async with Transfers(TransferSettings(idle_timeout=0.1, attempts=2, backoff=0.001)) as transfers:
        with pytest.raises(RetryLater) as caught:
            await transfers.put(bucket.put(), stream.sources[0])
        assert caught.value.kind == "bucket-unreachable"


@pytest.mark.parametrize("url", ["ftp://h/x", "http:///x", "x", "http://h:99999/x", "http://127.0.0.1:1/a b"])
async def test_unusable_urls(transfers, stream, url: str) -> None:
    """A URL that no request can go to is invalid input."""
    with pytest.raises((InvalidInput, RetryLater)) as caught:
        await transfers.put(SignedRequest("PUT", url, {}), stream.sources[0])
    assert isinstance(caught.value, EntrepotError)


async def test_nobody_listens(transfers, stream) -> None:
    """A refused connection is bucket-unreachable."""
    with pytest.raises(RetryLater) as caught:
        await transfers.put(SignedRequest("PUT", "http://127.0.0.1:1/x", {}), stream.sources[0])
    assert caught.value.kind == "bucket-unreachable"


def test_signed_requests_keep_their_secret() -> None:
    """Neither query nor headers show in the repr."""
    shown = repr(SignedRequest("GET", "https://h/k?X-Amz-Signature=abc", {"Authorization": "xyz"}))
    assert "abc" not in shown
    assert "xyz" not in shown
    assert "user" not in repr(TransferSettings(https_proxy="http://user:pass@p:1"))
